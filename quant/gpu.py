"""Encoding and decoding in torch, on the tensors' device: Q8_0, Q4_0, Q4_K, Q6_K, MXFP4; decoding Q5_K and IQ4_XS.

Every operation is elementwise, correctly rounded and in the reference's order, and sums are taken weight by
weight over many blocks at once, so no library can fuse or reorder anything: on CPU tensors the bytes equal the
reference's (`BlockType.encode`) for all finite weights tried, and the same operations are IEEE ones on CUDA too.
A device that flushes subnormals to zero or divides inexactly may differ, by a level in rare blocks; the tests
measure the share of differing blocks and hold the error within 0.1 % of the reference's.  Importance weights are
not taken here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from llmconv.errors import UsageError
from llmconv.quant.block import by_name
from llmconv.quant.kernels.terms.levels import E2M1, IQ4, LOG2_ROUNDS_UP

__all__ = ["DECODERS", "ENCODERS", "decode", "encode"]


def encode(tensor: Tensor, type_name: str) -> Tensor:
    """Rows of weights -> their bytes, on the same device.

    tensor: (n, k) float32, float16, bfloat16 (widened exactly) or float64 (rounded to float32), finite, k a multiple
        of the type's block.
    Returns (n, row_bytes) uint8.  Raises `UsageError` for other types and shapes.
    """
    block = by_name(type_name)
    if block.name not in ENCODERS:
        raise UsageError(f"{block.name} has no torch encoder; those that have are {', '.join(ENCODERS)}")
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise UsageError(f"{block.name} takes float rows of shape (n, k), not {tensor.dtype} {tuple(tensor.shape)}")
    n, k = tensor.shape
    size, width = block.row_bytes(k), block.layout.itemsize
    out = torch.empty((n * size // width, width), dtype=torch.uint8, device=tensor.device)
    weights = tensor.detach().reshape(-1, block.block_size)
    step = _slab(tensor) // block.block_size
    with torch.inference_mode():
        for start in range(0, len(out), step):
            out[start : start + step] = ENCODERS[block.name](weights[start : start + step].float())
    return out.reshape(n, size)


def decode(blocks: Tensor, type_name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes of rows (n, row_bytes) uint8 -> weights (n, k), on the same device: `BlockType.decode`, then `dtype`."""
    block = by_name(type_name)
    if block.name not in DECODERS:
        raise UsageError(f"{block.name} has no torch decoder; those that have are {', '.join(DECODERS)}")
    width = block.layout.itemsize
    if blocks.ndim != 2 or blocks.dtype != torch.uint8 or blocks.shape[1] % width:
        raise UsageError(f"{block.name} takes uint8 rows of whole blocks of {width}, not {tuple(blocks.shape)}")
    packed = blocks.reshape(-1, width)
    out = torch.empty((len(packed), block.block_size), dtype=dtype, device=blocks.device)
    step = _slab(blocks) // block.block_size
    with torch.inference_mode():
        for start in range(0, len(out), step):
            out[start : start + step] = DECODERS[block.name](packed[start : start + step])
    return out.reshape(len(blocks), -1)


def _slab(tensor: Tensor) -> int:
    """Weights at a time: the K types' scratch is some forty float32 for each."""
    return 1 << 20 if tensor.device.type == "cpu" else 1 << 24


# ---- pieces.  Names as in the reference; `e` is a weight's place in its sub-block, the first axis of the searches.


def _number(value: float, like: Tensor) -> Tensor:
    """A float32 on the device: torch turns `1 / x` and `x / number` into products with rounded reciprocals."""
    return torch.full((), value, dtype=torch.float32, device=like.device)


def _inverse(d: Tensor) -> Tensor:
    return (_number(1, d) / d).where(d != 0, 0)


def _nearest_int(v: Tensor) -> Tensor:
    """ggml's: to int32, ties to even, wrapped beyond 2^22."""
    return ((v + 12582912.0).view(torch.int32) & 0x7FFFFF) - 0x400000


def _round_away(v: Tensor) -> Tensor:
    """C's roundf."""
    whole = v.trunc()
    return whole + ((v - whole).abs() >= 0.5) * v.sign()


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded: torch's float32 one is not on every CPU, and rounding float64's again is exact."""
    return x.double().sqrt().float()


def _sum(terms: Tensor) -> Tensor:
    """(e, m) -> (m,), from the first to the last as the reference adds."""
    total = terms[0] + 0.0
    for term in terms[1:]:
        total += term
    return total


def _half_bytes(d: Tensor) -> Tensor:
    """(m,) float32 -> (m, 2) uint8, the nearest float16's."""
    return d.half().unsqueeze(1).view(torch.uint8)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of (m, size) blocks, as (m, 1) float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _bytes(*parts: Tensor) -> Tensor:
    return torch.cat([part if part.dtype == torch.uint8 else part.to(torch.uint8) for part in parts], dim=1)


def _first_peak(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The largest magnitude along `dim`, and the first value that has it (+0 when all are zeros)."""
    magnitude = x.abs()
    peak = x.gather(dim, magnitude.argmax(dim, keepdim=True)).squeeze(dim)
    amax = magnitude.amax(dim)
    return amax, peak.where(amax > 0, 0)


# ---- Q8_0, Q4_0, MXFP4


def _encode_q8_0(x: Tensor) -> Tensor:
    amax = x.abs().amax(1)
    d = amax / _number(127, x)
    q = _round_away(x * _inverse(d)[:, None])
    q = q.where(q.isfinite(), 0)  # the inverse of a subnormal d is infinite, and C's conversion gives 0
    return _bytes(_half_bytes(d), q.to(torch.int8).view(torch.uint8))


def _decode_q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


def _encode_q4_0(x: Tensor) -> Tensor:
    d = _first_peak(x, 1)[1] / _number(-8, x)
    q = x * _inverse(d)[:, None] + 8.5
    q = q.where(q.isfinite(), 0).to(torch.int32).clamp(max=15)
    return _bytes(_half_bytes(d), q[:, :16] | (q[:, 16:] << 4))


def _nibbles(q: Tensor) -> Tensor:
    return torch.cat([q & 15, q >> 4], dim=1)


def _decode_q4_0(blocks: Tensor) -> Tensor:
    return (_nibbles(blocks[:, 2:]).to(torch.int8) - 8).float() * _half(blocks, 0)


def _half_e8m0(e: Tensor) -> Tensor:
    """(m,) int32 exponent bytes -> float32 2^(e - 128)."""
    subnormal = torch.full_like(e, 0x00200000) << e.clamp(max=1)
    return ((e - 1) << 23).where(e >= 2, subnormal).view(torch.float32)


def _encode_mxfp4(x: Tensor) -> Tensor:
    amax = x.abs().amax(1)
    tiny = amax < 2.0**-126
    pattern = (amax * 8388608.0).where(tiny, amax).view(torch.int32)
    exponent = (pattern >> 23) - 127 - 23 * tiny.int()
    rounds_up = torch.from_numpy(LOG2_ROUNDS_UP).to(x.device)[(exponent + 149).clamp(min=0)]
    exponent = exponent + ((pattern & 0x7FFFFF) >= rounds_up)
    e = ((exponent + 125) & 255).where(amax > 0, 0).int()
    d = _half_e8m0(e)[:, None]
    magnitude = x.abs()
    q = torch.zeros_like(x, dtype=torch.int32)
    for middle in (E2M1[:7] + E2M1[1:8]) / 2:
        q += magnitude > d * float(middle)
    q += 8 * ((x < 0) & (q > 0))
    return _bytes(e[:, None], q[:, :16] | (q[:, 16:] << 4))


def _decode_mxfp4(blocks: Tensor) -> Tensor:
    values = torch.from_numpy(E2M1).to(blocks.device)
    return values[_nibbles(blocks[:, 1:]).int()] * _half_e8m0(blocks[:, 0].int())[:, None]


# ---- Q4_K


def _scale_and_minimum(x: Tensor, w: Tensor, nmax: int, rmin: float, rdelta: float, nstep: int) -> tuple[Tensor, ...]:
    """`make_qkx2_quants` on (e, m) weights and their importance -> scale (m,), -minimum (m,), levels (e, m)."""
    low, high = x.amin(0), x.amax(0)
    sum_w, sum_x = _sum(w), _sum(w * x)
    low = low.clamp(max=0)
    flat = low == high
    iscale = _number(nmax, x) / (high - low)
    scale = _number(1, x) / iscale
    levels = _nearest_int(iscale * (x - low)).clamp(0, nmax).float()
    minimum = low
    error = _sum(w * (scale * levels + low - x).square())
    for step in range(nstep + 1):
        target = np.float32(rmin) + np.float32(rdelta) * np.float32(step) + np.float32(nmax)
        # The reference measures from the minimum of the best try so far.
        iscale = _number(float(target), x) / (high - minimum)
        aux = _nearest_int(iscale * (x - minimum)).clamp(0, nmax).float()
        wl = w * aux
        sum_l, sum_l2, sum_xl = _sum(wl), _sum(wl * aux), _sum(wl * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        this_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = this_minimum > 0
        this_minimum = this_minimum.where(~above, 0)
        this_scale = (sum_xl / sum_l2).where(above, this_scale)
        this_error = _sum(w * (this_scale * aux + this_minimum - x).square())
        better = (determinant > 0) & (this_error < error)
        error = this_error.where(better, error)
        scale = this_scale.where(better, scale)
        minimum = this_minimum.where(better, minimum)
        levels = aux.where(better, levels)
    return scale.where(~flat, 0), -minimum.where(~flat, low), levels.where(~flat, 0)


def _encode_q4_k(x: Tensor) -> Tensor:
    count = len(x)
    columns = x.reshape(-1, 32).t().contiguous()
    mean = _sqrt(_sum(columns.square()) / 32)
    scales, minima, levels = _scale_and_minimum(columns, mean + columns.abs(), 15, -1.0, 0.1, 20)
    units, six_bit = [], []
    for values in (scales.reshape(count, 8), minima.reshape(count, 8)):
        top = values.where(values > 0, 0).amax(1)
        inverse = (_number(63, x) / top).where(top > 0, 0)
        six_bit.append((_nearest_int(inverse[:, None] * values) & 255).clamp(max=63))
        units.append(top / _number(63, x))
    ls, lm = six_bit
    d, dm = (unit.half().float()[:, None] * six for unit, six in zip(units, six_bit, strict=True))
    d, dm, blocks = d.reshape(-1, 1), dm.reshape(-1, 1), x.reshape(-1, 32)
    q = _nearest_int((blocks + dm) / d).clamp(0, 15).where(d != 0, levels.t().int())
    q = q.reshape(count, 4, 2, 32)
    low = torch.cat([ls[:, :4] | (ls[:, 4:] >> 4 << 6), lm[:, :4] | (lm[:, 4:] >> 4 << 6)], dim=1)
    packed = torch.cat([low, (ls[:, 4:] & 15) | ((lm[:, 4:] & 15) << 4)], dim=1)
    return _bytes(
        _half_bytes(units[0]), _half_bytes(units[1]), packed, (q[:, :, 0] | (q[:, :, 1] << 4)).reshape(count, 128)
    )


def _decode_q4_k(blocks: Tensor) -> Tensor:
    d, dm = _scales_and_minima(blocks)
    return (d * _eighths(blocks[:, 16:]) - dm).reshape(-1, 256)


def _decode_q5_k(blocks: Tensor) -> Tensor:
    d, dm = _scales_and_minima(blocks)
    fifths = (blocks[:, None, 16:48] >> torch.arange(8, device=blocks.device, dtype=torch.uint8)[:, None]) & 1
    return (d * (_eighths(blocks[:, 48:]) | (fifths << 4)) - dm).reshape(-1, 256)


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: eight 6-bit numbers each (ggml's `get_scale_min_k4`) times a float16 -> two (m, 8, 1)."""
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([low & 63, (high & 15) | (low >> 6 << 4)], dim=1)
    minima = torch.cat([middle & 63, (high >> 4) | (middle >> 6 << 4)], dim=1)
    return (_half(blocks, 0) * scales)[..., None], (_half(blocks, 2) * minima)[..., None]


def _eighths(packed: Tensor) -> Tensor:
    """(m, 128) nibbles of Q4_K and Q5_K -> (m, 8, 32)."""
    pairs = packed.reshape(-1, 4, 1, 32)
    return torch.cat([pairs & 15, pairs >> 4], dim=2).reshape(-1, 8, 32)


# ---- Q6_K


def _symmetric_scale(x: Tensor, nmax: int) -> tuple[Tensor, Tensor]:
    """`make_qx_quants` weighted by the squares, (e, m) weights -> scale (m,), levels (e, m), of 0 … 2 nmax - 1."""
    amax, peak = _first_peak(x, 0)
    w = x.square()
    wx = w * x
    scale = best = levels = None
    for step in (0, *range(-9, 0), *range(1, 10)):
        target = np.float32(nmax) + np.float32(0.1) * np.float32(step)
        q = _nearest_int(_number(-float(target), x) / peak * x).clamp(-nmax, nmax - 1).float()
        sum_lx, sum_l2 = _sum(wx * q), _sum(w * q * q)
        this = sum_lx / sum_l2
        if scale is None or best is None or levels is None:
            scale = this.where(sum_l2 != 0, 0)
            best, levels = scale * sum_lx, q
            continue
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        scale = this.where(better, scale)
        best = (this * sum_lx).where(better, best)
        levels = q.where(better, levels)
    assert scale is not None and levels is not None
    alive = amax >= 1e-15
    return scale.where(alive, 0), (levels + nmax).where(alive, 0)


def _encode_q6_k(x: Tensor) -> Tensor:
    count = len(x)
    scales, levels = _symmetric_scale(x.reshape(-1, 16).t().contiguous(), 32)
    scales = scales.reshape(count, 16)
    amax, peak = _first_peak(scales.where(scales == scales, 0), 1)
    iscale = _number(-128, x) / peak
    unit = _number(1, x) / iscale
    eight_bit = _nearest_int(iscale[:, None] * scales).clamp(max=127)
    d = (unit.half().float()[:, None] * eight_bit.to(torch.int8)).reshape(-1, 1)
    q = (_nearest_int(x.reshape(-1, 16) / d).clamp(-32, 31) + 32).where(d != 0, levels.t().int())
    q = q.reshape(count, 2, 4, 32)
    low = torch.cat([(q[:, :, :2] & 15) | ((q[:, :, 2:] & 15) << 4)], dim=1).reshape(count, 128)
    high = q >> 4
    high = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    out = _bytes(low, high.reshape(count, 64), eight_bit & 255, _half_bytes(unit))
    return out.where((amax >= 1e-15)[:, None], 0)


def _decode_q6_k(blocks: Tensor) -> Tensor:
    low, high = blocks[:, :128].reshape(-1, 2, 2, 32), blocks[:, 128:192].reshape(-1, 2, 32)
    nibbles = torch.cat([low & 15, low >> 4], dim=2)
    twos = torch.stack([high & 3, (high >> 2) & 3, (high >> 4) & 3, high >> 6], dim=2)
    q = (nibbles | (twos << 4)).to(torch.int8) - 32
    d = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8)
    return (d[..., None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


# ---- IQ4_XS


def _decode_iq4_xs(blocks: Tensor) -> Tensor:
    high = blocks[:, 2].int() | (blocks[:, 3].int() << 8)
    low = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], dim=2).reshape(-1, 8).int()
    steps = torch.arange(8, device=blocks.device, dtype=torch.int32) * 2
    scales = (low | (((high[:, None] >> steps) & 3) << 4)) - 32
    values = torch.from_numpy(IQ4).to(blocks.device)[_nibbles(blocks[:, 8:].reshape(-1, 16)).int()]
    return ((_half(blocks, 0) * scales)[..., None] * values.reshape(-1, 8, 32)).reshape(-1, 256)


_Codec = Callable[[Tensor], Tensor]
ENCODERS: dict[str, _Codec] = {
    "Q8_0": _encode_q8_0,
    "Q4_0": _encode_q4_0,
    "Q4_K": _encode_q4_k,
    "Q6_K": _encode_q6_k,
    "MXFP4": _encode_mxfp4,
}
"""Type name -> (m, block size) float32 to (m, block bytes) uint8."""
DECODERS: dict[str, _Codec] = {
    "Q8_0": _decode_q8_0,
    "Q4_0": _decode_q4_0,
    "Q4_K": _decode_q4_k,
    "Q5_K": _decode_q5_k,
    "Q6_K": _decode_q6_k,
    "IQ4_XS": _decode_iq4_xs,
    "MXFP4": _decode_mxfp4,
}
"""And back."""
