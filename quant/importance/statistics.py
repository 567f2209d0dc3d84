"""What an importance matrix says of its model: a row a tensor, as `llama-imatrix --show-statistics` has them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.importance.sums import Sums
from llmconv.show import Shown

__all__ = ["TensorStatistics", "statistics_of"]

_SILENT = 1e-5
"""Mean squares up to this count as inactive."""
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class TensorStatistics(Shown):
    """Of the mean squared inputs of a tensor's columns (of all its experts that saw any).

    tokens: counted, the most that one of its matrices saw.   total, least, most, mean, deviation: of the means.
    active: share of columns above 1e-5.   columns: how many there are.   entropy: in bits, of the means as a
    distribution; evenness: that over its maximum.   outliers: share of columns more than one deviation above the mean.
    similarity: the cosine with the same tensor's sums a layer before, None where there is none.
    """

    name: str
    layer: int | None
    tokens: int
    total: float
    least: float
    most: float
    mean: float
    deviation: float
    active: float
    columns: int
    entropy: float
    evenness: float
    outliers: float
    similarity: float | None


def statistics_of(sums: Sums) -> list[TensorStatistics]:
    """A row a tensor with any tokens, by the tensor's kind and then the largest totals first, as the reference's."""
    rows = list(_rows(sums))
    return sorted(rows, key=lambda row: (_kind(row.name), -row.total))


def _kind(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _rows(sums: Sums) -> Iterator[TensorStatistics]:
    for name, entry in sums.entries.items():
        counted = entry.counts > 0
        if not counted.any():
            continue
        means = entry.means().reshape(len(counted), -1)[counted].reshape(-1)
        total, mean, deviation = float(means.sum()), float(means.mean()), float(means.std())
        shares = means[means > 0] / total if total > 0 else means[:0]
        entropy = float(-(shares * np.log2(shares)).sum())
        found = _LAYER.search(name)
        yield TensorStatistics(
            name=name,
            layer=int(found[1]) if found else None,
            tokens=int(entry.counts.max()),
            total=total,
            least=float(means.min()),
            most=float(means.max()),
            mean=mean,
            deviation=deviation,
            active=float((means > _SILENT).mean()),
            columns=means.size,
            entropy=entropy,
            evenness=entropy / math.log2(means.size) if means.size > 1 else 0.0,
            outliers=float((means > mean + deviation).mean()) if deviation > 0 else 0.0,
            similarity=_similarity(sums, name, found),
        )


def _similarity(sums: Sums, name: str, layer: re.Match[str] | None) -> float | None:
    if layer is None:
        return None
    before = sums.entries.get(f"{name[: layer.start(1)]}{int(layer[1]) - 1}{name[layer.end(1) :]}")
    if before is None or before.sums.size != sums.entries[name].sums.size:
        return None
    return _cosine(sums.entries[name].sums.reshape(-1), before.sums.reshape(-1))


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else 0.0
