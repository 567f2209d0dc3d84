"""What the intrinsics of `simd`, `memory` and others are made of: the vector types, and pieces of LLVM's code."""

from __future__ import annotations

import functools

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import models, register_model
from numba.np.arrayobj import populate_array

LANES = 16
I1, I8, I16, I32 = (ir.IntType(n) for n in (1, 8, 16, 32))
FLOAT, HALF = ir.FloatType(), ir.HalfType()
ELEMENT = {"f32": FLOAT, "i32": I32, "mask": I1, "u8": I8}


class VecType(types.Type):
    """Numba's type of a sixteen-lane value; `kind` is f32, i32, mask or u8."""

    def __init__(self, kind):
        self.kind = kind
        super().__init__(f"{kind}x{LANES}")

    @property
    def key(self):
        return self.kind


f32x16, i32x16, mask16, u8x16 = (VecType(kind) for kind in ("f32", "i32", "mask", "u8"))


@register_model(VecType)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(ELEMENT[fe_type.kind], LANES))


def vec(element):
    return ir.VectorType(element, LANES)


def const(vector_type, number):
    return ir.Constant(vector_type, [number] * LANES)


def i32(number):
    return ir.Constant(I32, number)


def broadcast(builder, scalar):
    """A scalar LLVM value in every lane."""
    vector_type = vec(scalar.type)
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, scalar, i32(0))
    return builder.shuffle_vector(first, undefined, const(vec(I32), 0))


def call(builder, name, result, args):
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(function, args)


def lift(context, builder, kind, numba_type, value):
    """`value` as a vector of `kind`: itself, or a number broadcast."""
    if isinstance(numba_type, VecType):
        return value
    scalar_type = types.float32 if kind == "f32" else types.int32
    return broadcast(builder, context.cast(builder, value, numba_type, scalar_type))


def pointer(context, builder, array_type, array, index, pointee):
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), pointee.as_pointer())


def flat_array(context, builder, array_type, data, size):
    """Numba's value for the flat array of `size` numbers at `data`, which nobody counts references to."""
    width = context.get_constant(types.intp, array_type.dtype.bitwidth // 8)
    array = context.make_array(array_type)(context, builder)
    populate_array(array, data=data, shape=[size], strides=[width], itemsize=width, meminfo=None)
    return array._getvalue()


# ---- float16, in hardware where the target CPU has it and in integer arithmetic where not


def converts_half(context):
    """Whether the CPU that numba compiles for (NUMBA_CPU_NAME and _FEATURES included) converts float16 itself.

    LLVM would otherwise call a library routine that numba does not link, and abort the process.
    """
    triple, _, features = context.codegen().magic_tuple()
    if triple.startswith(("aarch64", "arm64")):
        return True
    return "+f16c" in features.split(",")


def widen_half(context, builder, half):
    """float16 bit patterns (i16, scalar or vector) -> float32."""
    vector = isinstance(half.type, ir.VectorType)
    f32, i32, f16 = (vec(t) if vector else t for t in (FLOAT, I32, HALF))
    if converts_half(context):
        return builder.fpext(builder.bitcast(half, f16), f32)

    c = functools.partial(const if vector else ir.Constant, i32)
    w = builder.zext(half, i32)
    sign = builder.shl(builder.and_(w, c(0x8000)), c(16))
    magnitude = builder.and_(w, c(0x7FFF))
    # Exponent and mantissa in place; multiplying by 2^112 corrects the bias and normalizes subnormals, exactly.
    scale = builder.bitcast(c(0x77800000), f32)
    finite = builder.bitcast(builder.fmul(builder.bitcast(builder.shl(magnitude, c(13)), f32), scale), i32)
    special = builder.or_(builder.shl(magnitude, c(13)), c(0x7F800000))
    is_special = builder.icmp_unsigned(">=", magnitude, c(0x7C00))
    return builder.bitcast(builder.or_(builder.select(is_special, special, finite), sign), f32)


def narrow_half(context, builder, value):
    """float32 (scalar or vector) -> float16 bit patterns (i16), to nearest, ties to even."""
    vector = isinstance(value.type, ir.VectorType)
    f32, i32, i16, f16 = (vec(t) if vector else t for t in (FLOAT, I32, I16, HALF))
    if converts_half(context):
        return builder.bitcast(builder.fptrunc(value, f16), i16)

    c = functools.partial(const if vector else ir.Constant, i32)
    w = builder.bitcast(value, i32)
    sign = builder.and_(builder.lshr(w, c(16)), c(0x8000))
    magnitude = builder.and_(w, c(0x7FFFFFFF))
    # Below 2^-14: adding 0.5 leaves the subnormal's bits, rounded by the adder, at the end of the mantissa.
    half = builder.bitcast(c(0x3F000000), f32)
    small = builder.sub(builder.bitcast(builder.fadd(builder.bitcast(magnitude, f32), half), i32), c(0x3F000000))
    odd = builder.and_(builder.lshr(magnitude, c(13)), c(1))
    rounded = builder.add(builder.add(magnitude, c(0x0FFF - 0x38000000)), odd)
    normal = builder.lshr(rounded, c(13))
    result = builder.select(builder.icmp_unsigned("<", magnitude, c(0x38800000)), small, normal)
    result = builder.select(builder.icmp_unsigned(">=", magnitude, c(0x477FF000)), c(0x7C00), result)
    result = builder.select(builder.icmp_unsigned(">", magnitude, c(0x7F800000)), c(0x7E00), result)
    return builder.trunc(builder.or_(result, sign), i16)
