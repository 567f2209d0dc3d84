"""What a sweep finds: a row a type, and which of them no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmconv.show import Shown

__all__ = ["Sweep", "SweepRow", "frontier"]


@dataclass(frozen=True)
class SweepRow(Shown):
    """One type: its file, its size and bits per weight, and what `compare` says of it against the original.

    ppl_ratio_stderr: paired, as both saw the same text.   sha256: of the file.
    """

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
    ppl_ratio_stderr: float = 0.0
    file: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Sweep(Shown):
    """model, text: file names; size, bits_per_weight, ppl: the original's; tokens: positions scored; rows: as asked.

    kv_cache: bytes of the model's cache in F16 at `kv_context` tokens, 0 where that is not known.
    about: how it was made: version, command, date, device, imatrix, hashes, in words.
    card: what a model card begins with: licence, name and the like, of the model's own metadata.
    """

    model: str
    text: str
    context: int
    tokens: int
    size: int
    ppl: float
    ppl_stderr: float
    rows: list[SweepRow]
    bits_per_weight: float = 0.0
    kv_cache: int = 0
    kv_context: int = 0
    about: dict[str, str] = field(default_factory=dict)
    card: dict[str, str] = field(default_factory=dict)

    @property
    def original(self) -> SweepRow:
        """A row for the model that was quantized."""
        return SweepRow(
            type="original",
            size=self.size,
            bits_per_weight=self.bits_per_weight,
            ppl=self.ppl,
            ppl_stderr=self.ppl_stderr,
            ppl_ratio=1.0,
            mean_kld=0.0,
            mean_kld_stderr=0.0,
            max_kld=0.0,
            top1_agreement=1.0,
            quantize_seconds=0.0,
            evaluate_seconds=0.0,
        )

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
