"""Kernels of IQ4_NL and IQ4_XS: 4-bit indices into sixteen unevenly spaced values.

The search: a scale for 32 weights, tried at 16 values; each try rounds every weight to its nearest value, and the
scale that explains the (weighted) weights best wins.  Source of the layouts and rules: `block_iq4_nl`,
`block_iq4_xs` and `quantize_row_iq4_nl_impl` in ggml.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, U8, inner, kernel
from llmconv.quant.kernels.terms.levels import IQ4
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import OUT_F32, OUT_U8, f4, get_f16, get_u16, i4, inverse, put_f16, tile
from llmconv.quant.kernels.vectors.memory import gather, load, load_i32, store
from llmconv.quant.kernels.vectors.simd import (
    clamp,
    fabs,
    max_,
    nearest_int,
    neg,
    not_,
    select,
    splat,
    sqrt,
    to_float,
    to_u8,
)
from llmconv.quant.kernels.vectors.stack import empty

MIDDLES = (IQ4[:-1] + IQ4[1:]) / 2
"""Between neighbouring values; the middle itself belongs to the upper one."""

_WEIGHT, _FROM, _BELOW, _ABOVE, _BELOW2, _ABOVE2 = (32 * LANES * i for i in range(6))
"""Where the search keeps, for each of its 32 weights: the importance, and see `_crossings`."""
_SCRATCH = 6 * 32 * LANES


@inner
def _nearest(x):
    value = splat(IQ4[0])
    for i in range(15):
        value = select(x >= MIDDLES[i], splat(IQ4[i + 1]), value)
    return value


@inner
def _index(x):
    """The index of the nearest value; NaN gives 15, as the reference's search does."""
    index = splat(i4(0))
    for i in range(15):
        index = index + select(not_(x < MIDDLES[i]), splat(i4(1)), i4(0))
    return index


@inner
def _weigh(column, start, importance, at, sigma2, s):
    """The weights' importance: theirs squared, or the given one times sqrt(2 mean square of the block + square)."""
    if importance.size:
        for i in range(32):
            x = load(column, start + LANES * i)
            store(s, _WEIGHT + LANES * i, importance[at + i] * sqrt(sigma2 + x * x))
    else:
        for i in range(32):
            x = load(column, start + LANES * i)
            store(s, _WEIGHT + LANES * i, x * x)


@inner
def _crossings(column, start, peak, s):
    """For each weight, what the tries of `_search` can round it to.

    The tries scale it by (t - 127) / peak for t = -7 … 7, a range narrower than the gap between any two middles it
    could touch: so it crosses one middle at most.  That middle goes to `_FROM`; to `_BELOW` and `_ABOVE`, the
    weighted product of the weight with the value on either side; to `_BELOW2` and `_ABOVE2`, the weighted
    square of that value.
    """
    first, last = f4(-134) / peak, f4(-120) / peak
    for i in range(32):
        x = load(column, start + LANES * i)
        top = max_(first * x, last * x)
        middle = splat(f4(-np.inf))
        below = splat(IQ4[0])
        above = below
        for j in range(15):
            reached = top >= MIDDLES[j]
            middle = select(reached, splat(MIDDLES[j]), middle)
            below = select(reached, splat(IQ4[j]), below)
            above = select(reached, splat(IQ4[j + 1]), above)
        w = load(s, _WEIGHT + LANES * i)
        store(s, _FROM + LANES * i, middle)
        store(s, _BELOW + LANES * i, w * below * x)
        store(s, _ABOVE + LANES * i, w * above * x)
        store(s, _BELOW2 + LANES * i, w * below * below)
        store(s, _ABOVE2 + LANES * i, w * above * above)


@inner
def _better(qx, q2, scale, best):
    found = (q2 > f4(0)) & (qx * qx > best * q2)
    better = qx / q2
    return select(found, better, scale), select(found, better * qx, best)


@inner
def _search(column, start, s):
    """The scale of 32 weights, sixteen blocks at once (`quantize_row_iq4_nl_impl` with 7 tries each way)."""
    zero = splat(f4(0))
    amax, peak = zero, zero
    for i in range(32):
        x = load(column, start + LANES * i)
        a = fabs(x)
        greater = a > amax
        amax = select(greater, a, amax)
        peak = select(greater, x, peak)

    inverse_scale = f4(1) / (neg(peak) / IQ4[0])
    qx, q2 = zero, zero
    for i in range(32):
        x = load(column, start + LANES * i)
        w = load(s, _WEIGHT + LANES * i)
        q = _nearest(inverse_scale * x)
        qx = qx + w * q * x
        q2 = q2 + w * q * q
    scale = select(q2 > f4(0), qx / q2, zero)
    best = scale * qx

    _crossings(column, start, peak, s)
    for t in range(-7, 8, 3):
        scale0, scale1, scale2 = f4(t - 127) / peak, f4(t - 126) / peak, f4(t - 125) / peak
        a, a2, b, b2, c, c2 = zero, zero, zero, zero, zero, zero
        for i in range(32):
            x, middle = load(column, start + LANES * i), load(s, _FROM + LANES * i)
            below, above = load(s, _BELOW + LANES * i), load(s, _ABOVE + LANES * i)
            below2, above2 = load(s, _BELOW2 + LANES * i), load(s, _ABOVE2 + LANES * i)
            up = scale0 * x >= middle
            a, a2 = a + select(up, above, below), a2 + select(up, above2, below2)
            up = scale1 * x >= middle
            b, b2 = b + select(up, above, below), b2 + select(up, above2, below2)
            up = scale2 * x >= middle
            c, c2 = c + select(up, above, below), c2 + select(up, above2, below2)
        scale, best = _better(a, a2, scale, best)
        scale, best = _better(b, b2, scale, best)
        scale, best = _better(c, c2, scale, best)
    return select(amax < f4(1e-15), zero, scale)


@inner
def _put(rows, start, inverse_scale, out, at):
    """The indices of 32 weights into 16 bytes."""
    low, high = _index(load(rows, start) * inverse_scale), _index(load(rows, start + 16) * inverse_scale)
    store(out, at, to_u8(low | (high << i4(4))))


@kernel(F32, F32, types.intp, types.intp, OUT_U8)
def encode_iq4_nl(rows, importance, columns, height, out):
    column, s, scales = empty(32 * LANES, f4), empty(_SCRATCH, f4), empty(LANES, f4)
    step = columns // 32  # blocks with the same importance are a row apart
    for top in range(0, height, LANES):
        lanes = min(LANES, height - top)
        for c in range(step):
            first = top * step + c
            tile(rows, first, step, 32, column)
            sigma2 = splat(f4(0))
            if importance.size:
                for i in range(32):
                    x = load(column, LANES * i)
                    sigma2 = sigma2 + x * x
                sigma2 = sigma2 * f4(2 / 32)
            _weigh(column, 0, importance, 32 * c, sigma2, s)
            store(scales, 0, _search(column, 0, s))
            for lane in range(lanes):
                block = first + lane * step
                put_f16(out, 18 * block, scales[lane])
                _put(rows, 32 * block, inverse(scales[lane]), out, 18 * block + 2)


@kernel(F32, F32, types.intp, types.intp, OUT_U8)
def encode_iq4_xs(rows, importance, columns, height, out):
    column, s = empty(256 * LANES, f4), empty(_SCRATCH, f4)
    d, levels, inverses = empty(LANES, f4), empty(8 * LANES, np.int32), empty(8 * LANES, f4)
    scales = empty(8 * LANES, f4)
    step = columns // 256
    for top in range(0, height, LANES):
        lanes = min(LANES, height - top)
        for c in range(step):
            first = top * step + c
            tile(rows, first, step, 256, column)
            sigma2 = splat(f4(0))
            if importance.size:
                for i in range(256):
                    x = load(column, LANES * i)
                    sigma2 = sigma2 + x * x
                sigma2 = sigma2 * f4(2 / 256)
            amax, peak = splat(f4(0)), splat(f4(0))
            for part in range(8):
                _weigh(column, 32 * LANES * part, importance, 256 * c + 32 * part, sigma2, s)
                scale = _search(column, 32 * LANES * part, s)
                store(scales, LANES * part, scale)
                a = fabs(scale)
                greater = a > amax
                amax = select(greater, a, amax)
                peak = select(greater, scale, peak)
            unit = neg(peak) / f4(32)
            store(d, 0, unit)
            inverse_unit = select(unit != f4(0), f4(1) / unit, splat(f4(0)))
            for part in range(8):
                level = clamp(nearest_int(inverse_unit * load(scales, LANES * part)), i4(-32), i4(31))
                scale = unit * to_float(level)
                store(levels, LANES * part, level + i4(32))
                store(inverses, LANES * part, select(scale != f4(0), f4(1) / scale, splat(f4(0))))
            for lane in range(lanes):
                block = first + lane * step
                at = 136 * block
                put_f16(out, at, d[lane])
                high = i4(0)
                for part in range(8):
                    level = levels[LANES * part + lane]
                    high |= (level >> 4) << (2 * part)
                    if part % 2 == 0:
                        out[at + 4 + part // 2] = level & 15
                    else:
                        out[at + 4 + part // 2] |= (level & 15) << 4
                    _put(rows, 256 * block + 32 * part, inverses[LANES * part + lane], out, at + 8 + 16 * part)
                out[at + 2] = high & 255
                out[at + 3] = high >> 8


@inner
def _get(blocks, at, d, out, start):
    q = load_i32(blocks, at)
    store(out, start, gather(IQ4, q & i4(15)) * d)
    store(out, start + 16, gather(IQ4, q >> i4(4)) * d)


@kernel(U8, OUT_F32)
def decode_iq4_nl(blocks, out):
    for block in range(blocks.size // 18):
        _get(blocks, 18 * block + 2, get_f16(blocks, 18 * block), out, 32 * block)


@kernel(U8, OUT_F32)
def decode_iq4_xs(blocks, out):
    for block in range(blocks.size // 136):
        at = 136 * block
        d = get_f16(blocks, at)
        high = i4(get_u16(blocks, at + 2))
        for part in range(8):
            low = (i4(blocks[at + 4 + part // 2]) >> i4(4 * (part % 2))) & i4(15)
            level = low | (((high >> i4(2 * part)) & i4(3)) << i4(4))
            _get(blocks, at + 8 + 16 * part, d * f4(level - i4(32)), out, 256 * block + 32 * part)
