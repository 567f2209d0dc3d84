"""What a sweep finds: a row a type, and which of them no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmconv.show import Shown

__all__ = ["Sweep", "SweepRow", "frontier"]


@dataclass(frozen=True)
class SweepRow(Shown):
    """One type: its file's size and bits per weight, and what `compare` says of it against the original."""

    type: str
    size: int
    bits_per_weight: float
    ppl: float
    ppl_stderr: float
    ppl_ratio: float
    mean_kld: float
    mean_kld_stderr: float
    max_kld: float
    top1_agreement: float
    quantize_seconds: float
    evaluate_seconds: float


@dataclass(frozen=True)
class Sweep(Shown):
    """model, text: file names; size, ppl: the original's; tokens: positions scored; rows: as asked for."""

    model: str
    text: str
    context: int
    tokens: int
    size: int
    ppl: float
    ppl_stderr: float
    rows: list[SweepRow]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the names of the types on the frontier."""
        return {**super().as_dict(), "frontier": sorted(frontier(self.rows))}


def frontier(rows: Sequence[SweepRow]) -> set[str]:
    """The types that no other beats: none is at most as large with a smaller mean KL divergence."""
    best: set[str] = set()
    lowest = float("inf")
    for row in sorted(rows, key=lambda r: (r.size, r.mean_kld)):
        if row.mean_kld < lowest:
            lowest = row.mean_kld
            best.add(row.type)
    return best
