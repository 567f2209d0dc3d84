"""The kernel of GPTQ: columns rounded one after the other, each error spread over those that follow.

Sums are float32, in plain operations in a fixed order, so that the result is the same whatever the number of threads.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, inner, kernel, out
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.memory import load, store
from llmconv.quant.kernels.vectors.simd import splat

f4 = np.float32
OUT_F32, OUT_I32 = out(types.float32), out(types.int32)
_MAGIC = f4(12582912.0)  # 1.5 * 2^23: adding it rounds to integers
_FAR = f4(4e6)


@inner
def nearest(x):
    """The nearest integer, of numbers below 4 million."""
    x = min(max(x, -_FAR), _FAR)
    return np.int32((x + _MAGIC) - _MAGIC)


@inner
def nearest_code(level, levels, n, uniform):
    """The number of the level nearest to `level`."""
    if uniform:
        return min(max(nearest(level - levels[0]), np.int32(0)), np.int32(n - 1))
    best = np.int32(0)
    for i in range(1, n):
        if abs(levels[i] - level) < abs(levels[best] - level):
            best = np.int32(i)
    return best


@kernel(F32, OUT_F32, F32, F32, F32, types.boolean, types.intp, types.intp, OUT_I32, OUT_F32)
def round_in_order(factor, weights, step, low, levels, uniform, rows, columns, code, error):
    """Round columns one after the other, each error spread over those that follow (GPTQ, arXiv:2210.17323).

    factor: (columns, columns), upper triangular: Cholesky of the inverse of H.   weights: (rows, columns), changed.
    step, low: (rows, columns), of their blocks.   code, error: results; error is what columns beyond these still owe.
    """
    for r in range(rows):
        at = r * columns
        for a in range(columns):
            s, m, w = step[at + a], low[at + a], weights[at + a]
            q = np.int32(0)
            if s != f4(0):
                q = nearest_code((w + m) / s, levels, levels.size, uniform)
            code[at + a] = q
            e = (w - (levels[q] * s - m)) / factor[a * columns + a]
            error[at + a] = e
            first = a // LANES * LANES
            part = splat(-e)
            for c in range(first, columns, LANES):
                new = load(weights, at + c) + part * load(factor, a * columns + c)
                store(weights, at + c, new)
