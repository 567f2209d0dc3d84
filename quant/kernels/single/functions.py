"""Functions of sixteen float32 at once that C's library has, to an ulp or two; NaN stays NaN."""

from llmconv.quant.kernels.compiling.build import inner
from llmconv.quant.kernels.vectors.lanes import f4, i4
from llmconv.quant.kernels.vectors.simd import clamp, fabs, from_bits, rint, select, splat, to_int
from llmconv.quant.kernels.vectors.sums import fuse

_LOG2E, _LN2_HIGH, _LN2_LOW = f4(1.4426950408889634), f4(0.693145751953125), f4(1.42860682030941723212e-6)


@inner
def exp(x):
    """2^n exp(r), r within half a ln 2, by the Taylor series to its seventh power; 0 below -87, infinite above 88.7."""
    within = clamp(x, f4(-87.3), f4(88.8))
    n = rint(within * _LOG2E)
    r = fuse(n, splat(-_LN2_HIGH), within)
    r = fuse(n, splat(-_LN2_LOW), r)
    y = fuse(r, splat(f4(1 / 5040)), splat(f4(1 / 720)))
    y = fuse(y, r, splat(f4(1 / 120)))
    y = fuse(y, r, splat(f4(1 / 24)))
    y = fuse(y, r, splat(f4(1 / 6)))
    y = fuse(y, r, splat(f4(0.5)))
    y = fuse(y, r, splat(f4(1)))
    y = fuse(y, r, splat(f4(1)))
    half = to_int(n) >> i4(1)  # by two powers, since 2^128 is none; a negative one's upper bit is put back
    half = select(n < f4(0), half | i4(-0x80000000), half)
    other = to_int(n) - half
    y = y * from_bits((half + i4(127)) << i4(23)) * from_bits((other + i4(127)) << i4(23))
    y = select(x < f4(-87.3), f4(0), y)
    return select(x == x, y, x)


@inner
def sigmoid(x):
    return f4(1) / (f4(1) + exp(f4(0) - x))


@inner
def tanh(x):
    """By exp(-2 |x|) away from zero, by the series of an odd function near it."""
    size = fabs(x)
    e = exp(f4(-2) * size)
    far = (f4(1) - e) / (f4(1) + e)
    square = x * x
    near = fuse(square, splat(f4(-17 / 315)), splat(f4(2 / 15)))
    near = fuse(near, square, splat(f4(-1 / 3)))
    near = fuse(near * square, size, size)
    out = select(size < f4(0.15), near, far)
    return select(x < f4(0), f4(0) - out, out)
