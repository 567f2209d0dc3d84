"""The neighbours of every point that is not in a codebook: what `iq2xs_init_impl`, `iq3xs_init_impl` of ggml build.

A point is a number u with one level in every `bits` bits.  The search asks for the codebook entries nearest to u,
ordered by distance and then by number; here they are laid out sixteen at a time, one a lane.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import I32, U8, inner, kernel, out
from llmconv.quant.kernels.vectors.codegen import LANES
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
    """Lay out the neighbours of `points`: all entries at the `shells` smallest distances that occur.

    first: chunk where a point's neighbours start, one more than there are points.
    numbers: the chunks, 16 each; may be empty: then only `first` is filled.  A last chunk is filled up with its last
        member.
    """
    entries = levels.size // size
    found = empty(entries, np.int32)
    chunk = 0
    for p in range(points.size):
        first[p] = chunk
        shell = _distances(levels, entries, size, points[p], bits, found)
        count = 0
        for _ in range(shells):
            following = i4(1 << 30)
            for entry in range(entries):
                if found[entry] == shell:
                    if numbers.size:
                        number = 0
                        for i in range(size):
                            number |= np.int64(levels[entry * size + i]) << (bits * i)
                        numbers[LANES * chunk + count] = number
                    count += 1
                elif found[entry] > shell:
                    following = min(following, found[entry])
            shell = following
        width = (count + LANES - 1) // LANES
        if numbers.size:
            for i in range(LANES * chunk + count, LANES * (chunk + width)):
                numbers[i] = numbers[i - 1]
        chunk += width
    first[points.size] = chunk
