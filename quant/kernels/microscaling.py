"""Kernels of MXFP4 and NVFP4: E2M1 numbers (0, .5, 1, 1.5, 2, 3, 4, 6 and a sign) under an 8-bit scale.

As in ggml, the numbers are stored doubled (`E2M1`) and the scales halved.  Sources of the layouts and rules:
`block_mxfp4`, `block_nvfp4`, their quantizers and `ggml_fp32_to_ue4m3` in ggml; the OCP microscaling formats 1.0.
"""

import numpy as np

from llmconv.quant.kernels.compiling.build import ROWS, U8, inner, kernel
from llmconv.quant.kernels.terms.levels import E2M1, LOG2_ROUNDS_UP
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import OUT_F32, OUT_U8, f4, i4, largest, load_twice
from llmconv.quant.kernels.vectors.memory import gather, load, load_i32, store
from llmconv.quant.kernels.vectors.simd import bits, fabs, from_bits, select, splat, to_u8
from llmconv.quant.kernels.vectors.stack import empty

MIDDLES = (E2M1[:7] + E2M1[1:8]) / 2
"""Between neighbouring magnitudes; the middle itself belongs to the lower one."""


_NIBBLE = np.repeat(np.array([0, 4], np.int32), 8)


@inner
def _floor_log2(x):
    """floor(log2f(x)) as the C library rounds it, x > 0."""
    exponent = i4(0)
    if x < f4(1.1754944e-38):
        x *= f4(8388608)
        exponent = i4(-23)
    pattern = bits(x)
    exponent += (pattern >> i4(23)) - i4(127)
    return exponent + i4((pattern & i4(0x7FFFFF)) >= LOG2_ROUNDS_UP[exponent + 149])


@inner
def _nearest(x, d):
    """The index in E2M1 of the number whose product with d is nearest to x, |x| not far above 12 d."""
    magnitude = fabs(x)
    index = splat(i4(0))
    for i in range(7):
        index = index + select(magnitude > MIDDLES[i] * d, splat(i4(1)), i4(0))
    return index | select((x < f4(0)) & (index > i4(0)), splat(i4(8)), i4(0))


@inner
def _nearest_far(x, d):
    """The same in the reference's own steps, whose rounding shows when x is far beyond 12 d."""
    index = splat(i4(0))
    best = fabs(splat(f4(0)) - x)
    for i in range(1, 16):
        error = fabs(splat(E2M1[i] * d) - x)
        better = error < best
        index = select(better, i4(i), index)
        best = select(better, error, best)
    return index


@inner
def _half_e8m0(e):
    """2^(e - 128): the scale with exponent byte e, halved."""
    return from_bits(i4(0x00200000) << i4(e)) if e < 2 else from_bits(i4(i4(e) - i4(1)) << i4(23))


@kernel(ROWS, OUT_U8)
def encode_mxfp4(rows, out):
    for block in range(rows.size // 32):
        low, high = load(rows, 32 * block), load(rows, 32 * block + 16)
        amax = largest(low, high)
        # Below 2^-125 the byte wraps, as the reference's conversion does: a scale so great that all become 0.
        e = i4((_floor_log2(amax) + i4(125)) & i4(255)) if amax > f4(0) else i4(0)
        d = _half_e8m0(e)
        at = 17 * block
        out[at] = e
        store(out, at + 1, to_u8(_nearest(low, d) | (_nearest(high, d) << i4(4))))


@kernel(U8, OUT_F32)
def decode_mxfp4(blocks, out):
    for block in range(blocks.size // 17):
        at = 17 * block
        d = _half_e8m0(i4(blocks[at]))
        q = load_i32(blocks, at + 1)
        store(out, 32 * block, gather(E2M1, q & i4(15)) * d)
        store(out, 32 * block + 16, gather(E2M1, q >> i4(4)) * d)


@inner
def _ue4m3(x):
    """Unsigned E4M3 of x, rounded half up (to 448 at most)."""
    if not x > f4(0):
        return i4(0)
    pattern = bits(min(x, f4(448)))
    exponent = (pattern >> i4(23)) - i4(127) + i4(7)
    if exponent <= 0:
        return min(i4(7), i4(x * f4(512) + f4(0.5)))
    if exponent >= 15:
        return i4(0x7E)
    # A carry out of the mantissa raises the exponent by itself.
    code = (exponent << i4(3)) + ((pattern >> i4(20)) & i4(7)) + ((pattern >> i4(19)) & i4(1))
    return code if code < i4(0x78) else i4(0x7E)


@inner
def _half_ue4m3(code):
    """Half of the number that an unsigned E4M3 code stands for; 0 for 0x7F."""
    code &= i4(0xFF)
    if code == 0 or code == 0x7F:
        return f4(0)
    exponent, mantissa = (code >> i4(3)) & i4(15), code & i4(7)
    if exponent == 0:
        return f4(mantissa) * f4(2.0**-10)
    return from_bits(((exponent + i4(119)) << i4(23)) | (mantissa << i4(20)))


@kernel(ROWS, OUT_U8)
def encode_nvfp4(rows, out):
    place = empty(LANES, np.int32)
    for block in range(rows.size // 64):
        at = 36 * block
        for part in range(4):
            x = load(rows, 64 * block + 16 * part)
            amax = largest(x, x)
            code = _ue4m3(amax / f4(6))
            out[at + part] = code
            d = _half_ue4m3(code)
            store(place, 0, _nearest_far(x, d) if amax > f4(16) * d else _nearest(x, d))
            for j in range(8):
                out[at + 4 + 8 * part + j] = place[j] | (place[j + 8] << 4)


@kernel(U8, OUT_F32)
def decode_nvfp4(blocks, out):
    nibble = load_i32(_NIBBLE, 0)
    for block in range(blocks.size // 36):
        at = 36 * block
        for part in range(4):
            d = _half_ue4m3(i4(blocks[at + part]))
            q = (load_twice(blocks, at + 4 + 8 * part) >> nibble) & i4(15)
            store(out, 64 * block + 16 * part, gather(E2M1, q) * d)
