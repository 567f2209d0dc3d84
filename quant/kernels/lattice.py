"""Kernels that find the scales of weights which lie on a type's grid, and were perhaps rounded to 16 bits since.

A scale is a float16 number.  A weight of 16 bits stands for all numbers that round to it, so that few scales come into
question for a given multiple; each is tried on all weights of its span, of which a wrong one fails the first few.
A value is level * (scale * factor) - minimum * shift, as the types' decoders compute it.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, I32, inner, kernel, out
from llmconv.quant.kernels.vectors.lanes import OUT_F32, OUT_U8, f4, i4
from llmconv.quant.kernels.vectors.simd import bits, f16_bits, f16_value, from_bits

_INTS = out(types.int32)
_SIGN, _INFINITE = 0x8000, 0x7C00


@inner
def _rounded(value, kind):
    """As a tensor's own type says it: 0 float32, 1 float16, 2 bfloat16."""
    if kind == 1:
        return f16_value(f16_bits(value))
    if kind == 2:
        raw = bits(value)
        return from_bits(i4((raw + 0x7FFF + ((raw >> 16) & 1)) & -0x10000))
    return value


@inner
def _near(center, step):
    """Bits of the float16 numbers around one, itself first; -1 for those beyond 0 and infinity."""
    found = center + ((step + 1) >> 1 if step & 1 else -(step >> 1))
    magnitude = found & 0x7FFF
    if (found ^ center) & _SIGN or magnitude >= _INFINITE or found < 0 or (magnitude == 0 and step):
        return -1
    return found


@inner
def _place(value, levels, uniform):
    """The place of the level nearest to a value, or -1."""
    count = levels.size
    if uniform:
        t = value - levels[0]
        if not (t > f4(-0.5) and t < f4(count) - f4(0.5)):
            return -1
        return np.int64(t + f4(0.5))
    best, least = -1, f4(np.inf)
    for i in range(count):
        off = abs(value - levels[i])
        if off < least:
            best, least = i, off
    return best


@inner
def _fits(x, at, size, step, low, kind, levels, uniform, codes):
    """Whether so many weights are levels times `step` less `low`, rounded; `codes` become their places."""
    inverse = f4(1) / step if step != f4(0) else f4(0)
    for i in range(at, at + size):
        place = _place((x[i] + low) * inverse, levels, uniform)
        if place < 0 or _rounded(levels[place] * step - low, kind) != x[i]:
            return False
        codes[i] = place
    return True


@kernel(F32, types.int64, F32, types.boolean, types.int64, F32, types.boolean, OUT_F32, _INTS, OUT_U8)
def by_largest(x, kind, levels, uniform, span, multiples, positive, scales, codes, found):
    """Scales of spans without minimum: what the largest weight is one of `multiples` of, the first that fits all."""
    around = 9 if kind == 2 else 2
    for n in range(found.size):
        start, largest = span * n, f4(0)
        for i in range(start, start + span):
            if abs(x[i]) > abs(largest):
                largest = x[i]
        found[n] = 0
        for m in range(multiples.size):
            if found[n] or largest == f4(0):
                break
            center = np.int64(f16_bits(largest / multiples[m]))
            for step in range(2 * around + 1):
                half = _near(center, step)
                if half < 0 or (positive and half & _SIGN):
                    continue
                scale = f16_value(np.uint16(half))
                if scale != f4(0) and _fits(x, start, span, scale, f4(0), kind, levels, uniform, codes):
                    scales[n] = scale
                    found[n] = 1
                    break


@kernel(F32, types.int64, F32, types.int64, OUT_F32, OUT_F32, _INTS, OUT_U8)
def by_ends(x, kind, levels, span, scales, minimums, codes, found):
    """Scales and minima of spans whose least weight is the lowest level, the greatest one as high as any fits."""
    around = 5 if kind == 2 else 0
    slack = f4(1 / 256) if kind == 2 else f4(1 / 2048) if kind == 1 else f4(1 / 16777216)
    for n in range(found.size):
        start = span * n
        least, most = x[start], x[start]
        for i in range(start, start + span):
            least, most = min(least, x[i]), max(most, x[i])
        found[n] = 0
        for steps in range(levels.size - 1, 0, -1):
            if found[n] or least == most:
                break
            for at in range(2 * around + 1):
                low = _near(np.int64(f16_bits(least)), at)
                if found[n] or low < 0:
                    continue
                offset = f16_value(np.uint16(low))
                if _rounded(offset, kind) != least:
                    continue
                guess = (most - offset) / f4(steps)
                center = np.int64(f16_bits(guess))
                reach = slack * max(abs(most), abs(least)) / f4(steps) / (abs(guess) * f4(1 / 2048))
                wide = np.int64(min(reach, f4(40))) + 1
                for step in range(2 * wide + 1):
                    half = _near(center, step)
                    if half <= 0 or half & _SIGN:
                        continue
                    scale = f16_value(np.uint16(half))
                    if _fits(x, start, span, scale, -offset, kind, levels, True, codes):
                        scales[n], minimums[n] = scale, -offset
                        found[n] = 1
                        break


@inner
def _sub_block(x, at, size, scale, minimum, given, limits, kind, levels, uniform, codes, kept, where):
    """A factor and a shift near those given with which a sub-block fits, the given ones first.

    Also such shifts that its least weight is not the lowest level but the next, the second or the third.
    """
    for step in range(36):
        factor, shift = given[0] + (step + 1) % 3 - 1, given[1] + (step // 3 + 1) % 3 - 1
        if step >= 9:
            if minimum == f4(0):
                break
            shift += np.int64(f4(step // 9) * scale * f4(factor) / minimum + f4(0.5))
        if factor < limits[0] or factor > limits[1] or shift < limits[2] or shift > limits[3]:
            continue
        if _fits(x, at, size, scale * f4(factor), minimum * f4(shift), kind, levels, uniform, codes):
            kept[2 * where], kept[2 * where + 1] = factor, shift
            return True
    return False


@inner
def _any_pair(x, at, size, scale, minimum, limits, kind, levels, uniform, codes, kept, where):
    """Any factor and shift at all with which a sub-block fits, the largest factor first.

    The weights farthest apart are whole steps apart, as far as their rounding shows: few factors are left by that.
    """
    least, most = x[at], x[at]
    for i in range(at, at + size):
        least, most = min(least, x[i]), max(most, x[i])
    lost = f4(2.0**-7) if kind == 2 else f4(2.0**-10) if kind == 1 else f4(2.0**-20)
    unsure = lost * max(abs(least), abs(most))
    for factor in range(limits[1], limits[0] - 1, -1):
        step = scale * f4(factor)
        steps = (most - least) / step if step != f4(0) else f4(0)
        off = abs(steps - f4(np.int64(steps + f4(0.5))))
        if steps > f4(levels.size) or (off < f4(0.5) and off * step > unsure + step * f4(1e-3)):
            continue
        if step == f4(0) and most != least:
            continue
        for shift in range(limits[2], limits[3] + 1):
            if _fits(x, at, size, scale * f4(factor), minimum * f4(shift), kind, levels, uniform, codes):
                kept[2 * where], kept[2 * where + 1] = factor, shift
                return True
    return False


@kernel(
    F32,
    types.int64,
    F32,
    types.boolean,
    types.int64,
    I32,
    I32,
    I32,
    types.boolean,
    F32,
    F32,
    OUT_F32,
    OUT_F32,
    _INTS,
    _INTS,
    OUT_U8,
)
def by_search(
    x, kind, levels, uniform, block, limits, around, given, every, scales, minimums, new_scales, new_minimums, kept,
    codes, found,
):  # fmt: skip
    """Scales and minima of superblocks, near those that an encoder found.

    block: weights under a factor and a shift.   limits: the lowest and highest factor and shift.   around: how many
    float16 numbers on either side of each scale and minimum are tried.   given, kept: factor and shift of each block.
    every: factors and shifts are not sought near those given, but all of them tried.
    """
    each = given.size // (2 * found.size)
    for n in range(found.size):
        found[n] = 0
        center, center_low = np.int64(f16_bits(scales[n])), np.int64(f16_bits(minimums[n]))
        for step in range(2 * around[2 * n] + 1):
            half = _near(center, step)
            if found[n] or half < 0:
                continue
            scale = f16_value(np.uint16(half))
            for step_low in range(2 * around[2 * n + 1] + 1):
                low = _near(center_low, step_low)
                if low < 0:
                    continue
                minimum = f16_value(np.uint16(low))
                whole = True
                for j in range(n * each, (n + 1) * each):
                    pair = (given[2 * j], given[2 * j + 1])
                    if every:
                        fits = _any_pair(
                            x, block * j, block, scale, minimum, limits, kind, levels, uniform, codes, kept, j
                        )
                    else:
                        fits = _sub_block(
                            x, block * j, block, scale, minimum, pair, limits, kind, levels, uniform, codes, kept, j
                        )
                    if not fits:
                        whole = False
                        break
                if whole:
                    new_scales[n], new_minimums[n] = scale, minimum
                    found[n] = 1
                    break
