"""Statistics of a tensor's values, streaming: one pass over slabs, whatever its size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmconv.formats.tensor import Tensor
from llmconv.show import Shown

__all__ = ["Histogram", "TensorStats", "histogram", "tensor_stats"]

OUTLIER_SIGMAS = 6.0
"""A value further than this many standard deviations from the mean is counted as an outlier."""


@dataclass(frozen=True)
class TensorStats(Shown):
    """n: elements; minimum, maximum, mean, std: over the finite ones (nan when there are none);
    zeros: share of exact zeros, 0..1; nonfinite: how many infinities and NaNs; outliers: how many finite
    values lie more than `OUTLIER_SIGMAS` standard deviations from the mean.
    """

    name: str
    n: int
    minimum: float
    maximum: float
    mean: float
    std: float
    zeros: float
    nonfinite: int
    outliers: int


@dataclass(frozen=True)
class Histogram(Shown):
    """edges: (bins + 1,) float64; counts: (bins,) int64; nonfinite: values that fell in no bin."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    nonfinite: int


def _finite(tensor: Tensor, start: int, stop: int) -> tuple[NDArray[np.float64], int]:
    """The finite values of some rows, flat, and how many were not finite."""
    values = tensor.rows(start, stop)
    flat = (np.abs(values) if values.dtype.kind == "c" else values).astype(np.float64).reshape(-1)
    good = np.isfinite(flat)
    count = int(flat.size - np.count_nonzero(good))
    return (flat if not count else flat[good]), count


def tensor_stats(tensor: Tensor, meter: Callable[[int], None] | None = None) -> TensorStats:
    """Statistics in float64.  Complex tensors are described by their magnitudes.

    Means and variances of slabs are joined by Chan's formula, which stays accurate for any number of them.
    Outliers need the mean and deviation first, so the tensor is read again where its extremes say there may be any.
    """
    n = zeros = bad = 0
    low, high, mean, m2 = math.inf, -math.inf, 0.0, 0.0
    for start, stop in tensor.slabs(1 << 20):
        values, count = _finite(tensor, start, stop)
        bad += count
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            zeros += values.size - int(np.count_nonzero(values))
            part, total = float(values.mean()), n + values.size
            delta = part - mean
            m2 += float(np.square(values - part).sum()) + delta * delta * n * values.size / total
            mean, n = mean + delta * values.size / total, total
        if meter:
            meter((stop - start) * tensor.row_bytes)
    std = math.sqrt(m2 / n) if n else math.nan
    outliers, far = 0, OUTLIER_SIGMAS * std
    if n and max(high - mean, mean - low) > far:
        for start, stop in tensor.slabs(1 << 20):
            values, _ = _finite(tensor, start, stop)
            outliers += int(np.count_nonzero(np.abs(values - mean) > far))
    if not n:
        low = high = mean = math.nan
    total = tensor.n_elements
    return TensorStats(tensor.name, total, low, high, mean, std, zeros / total if total else 0.0, bad, outliers)


def histogram(tensor: Tensor, bins: int = 40) -> Histogram:
    """Counts of the finite values in `bins` equal bins between their extremes; two passes."""
    low, high, bad = math.inf, -math.inf, 0
    for start, stop in tensor.slabs(1 << 20):
        values, count = _finite(tensor, start, stop)
        bad += count
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low > high:
        low, high = 0.0, 1.0
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    counts = np.zeros(bins, np.int64)
    for start, stop in tensor.slabs(1 << 20):
        counts += np.histogram(_finite(tensor, start, stop)[0], edges)[0]
    return Histogram(edges, counts, bad)
