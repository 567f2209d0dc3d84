"""The neighbours of every point that is not in a codebook: what `iq2xs_init_impl`, `iq3xs_init_impl` of ggml build.

A point is a number u with one level in every `bits` bits.  The search asks for the codebook entries nearest to u,
ordered by distance and then by number; here their numbers lie one point's after another's.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import I32, U8, inner, kernel, out
from llmconv.quant.kernels.vectors.lanes import i4
from llmconv.quant.kernels.vectors.stack import empty


@inner
def _distances(levels, entries, size, u, bits, found):
    """Squared distances from u to the entries, and the smallest one."""
    least = i4(1 << 30)
    for entry in range(entries):
        total = i4(0)
        for i in range(size):
            step = i4(levels[entry * size + i]) - i4((u >> (bits * i)) & ((1 << bits) - 1))
            total += step * step
        found[entry] = total
        least = min(least, total)
    return least


@kernel(U8, types.intp, types.intp, I32, types.intp, out(types.int32), out(types.uint16))
def neighbours(levels, size, bits, points, shells, first, numbers):
    """List the neighbours of `points`: all entries at the `shells` smallest distances that occur.

    first: where in `numbers` a point's neighbours start, one more than there are points.
    numbers: may be empty: then only `first` is filled.
    """
    entries = levels.size // size
    found = empty(entries, np.int32)
    place = 0
    for p in range(points.size):
        first[p] = place
        shell = _distances(levels, entries, size, points[p], bits, found)
        for _ in range(shells):
            following = i4(1 << 30)
            for entry in range(entries):
                if found[entry] == shell:
                    if numbers.size:
                        number = 0
                        for i in range(size):
                            number |= np.int64(levels[entry * size + i]) << (bits * i)
                        numbers[place] = number
                    place += 1
                elif found[entry] > shell:
                    following = min(following, found[entry])
            shell = following
    first[points.size] = place
