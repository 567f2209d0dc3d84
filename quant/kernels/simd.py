"""Sixteen-lane vector values inside numba: explicit LLVM vector types, through `@intrinsic`.

A value of type `f32x16`, `i32x16`, `mask16` or `u8x16` lives in registers (one AVX-512 register, two AVX2, four
SSE2 ones) and is used like a number: `+ - * / & | ^ << >>` and comparisons work lane by lane, and a plain number
on either side is broadcast.  Every operation is the IEEE one: nothing is fused, reordered or approximated, so a
lane computes exactly what the same C expression would on a baseline x86-64.

Why not plain loops: numba cannot prove that arrays do not overlap, so accumulators go through memory, and LLVM
may not reorder float sums to vectorize them.  With one block a lane, every lane keeps its own order.

`>>` is logical (zero-filling).  `min_`, `max_` and `clamp` follow C's `a < b ? a : b`, so a NaN on the left
yields the right operand.  `load` widens float16 (handed in as int16 arrays) and bfloat16 (as uint16) exactly.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 16
_I1, _I8, _I16, _I32 = (ir.IntType(n) for n in (1, 8, 16, 32))
_FLOAT, _HALF = ir.FloatType(), ir.HalfType()
_ELEMENT = {"f32": _FLOAT, "i32": _I32, "mask": _I1, "u8": _I8}


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
        super().__init__(dmm, fe_type, ir.VectorType(_ELEMENT[fe_type.kind], LANES))


# ---- building blocks of the code generators


def _vec(element):
    return ir.VectorType(element, LANES)


def _const(vector_type, number):
    return ir.Constant(vector_type, [number] * LANES)


def _index(number):
    return ir.Constant(_I32, number)


def _broadcast(builder, scalar):
    """A scalar LLVM value in every lane."""
    vector_type = _vec(scalar.type)
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _index(0))
    return builder.shuffle_vector(first, undefined, _const(_vec(_I32), 0))


def _call(builder, name, result, args):
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(function, args)


def _lift(context, builder, kind, numba_type, value):
    """`value` as a vector of `kind`: itself, or a number broadcast."""
    if isinstance(numba_type, VecType):
        return value
    scalar_type = types.float32 if kind == "f32" else types.int32
    return _broadcast(builder, context.cast(builder, value, numba_type, scalar_type))


def _pointer(context, builder, array_type, array, index, pointee):
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), pointee.as_pointer())


# ---- operators


def _common(args):
    """The vector type two operands meet in, or None when they don't."""
    vectors = [a for a in args if isinstance(a, VecType)]
    if len(args) != 2 or not vectors or len(set(vectors)) != 1:
        return None
    if not all(isinstance(a, (VecType, types.Number, types.Boolean)) for a in args):
        return None
    return vectors[0]


def _operator(op, kinds, generate, result=None):
    """Teach numba `op` on vectors of `kinds`; `generate(builder, kind, x, y)` emits it."""

    @infer_global(op)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            vector = _common(args)
            if vector is not None and vector.kind in kinds:
                return signature(result or vector, *(types.unliteral(a) for a in args))

    def lower(context, builder, sig, args):
        kind = _common(sig.args).kind
        return generate(
            builder, kind, *(_lift(context, builder, kind, t, a) for t, a in zip(sig.args, args, strict=True))
        )

    for pair in ((VecType, VecType), (VecType, types.Number), (types.Number, VecType)):
        lower_builtin(op, *pair)(lower)


def _arithmetic(on_float, on_int):
    return lambda builder, kind, x, y: getattr(builder, on_float if kind == "f32" else on_int)(x, y)


def _comparison(sign):
    def generate(builder, kind, x, y):
        if kind != "f32":
            return builder.icmp_signed(sign, x, y)
        return (builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered)(sign, x, y)

    return generate


_operator(operator.add, ("f32", "i32"), _arithmetic("fadd", "add"))
_operator(operator.sub, ("f32", "i32"), _arithmetic("fsub", "sub"))
_operator(operator.mul, ("f32", "i32"), _arithmetic("fmul", "mul"))
_operator(operator.truediv, ("f32",), _arithmetic("fdiv", "sdiv"))
_operator(operator.and_, ("i32", "mask", "u8"), _arithmetic("", "and_"))
_operator(operator.or_, ("i32", "mask", "u8"), _arithmetic("", "or_"))
_operator(operator.xor, ("i32", "mask", "u8"), _arithmetic("", "xor"))
_operator(operator.lshift, ("i32",), _arithmetic("", "shl"))
_operator(operator.rshift, ("i32",), _arithmetic("", "lshr"))
for _op, _sign in (
    (operator.lt, "<"),
    (operator.gt, ">"),
    (operator.le, "<="),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    _operator(_op, ("f32", "i32"), _comparison(_sign), mask16)


# ---- values


@intrinsic
def splat(typingctx, number):
    """A number in every lane: float -> f32x16, integer -> i32x16."""
    number = types.unliteral(number)
    result = f32x16 if isinstance(number, types.Float) else i32x16

    def generate(context, builder, sig, args):
        return _lift(context, builder, result.kind, sig.args[0], args[0])

    return result(number), generate


def _ternary_types(*args):
    """The vector type of the vectors among `args`, which may also be numbers."""
    return next(a for a in args if isinstance(a, VecType))


@intrinsic
def select(typingctx, mask, yes, no):
    """Lane by lane: `yes` where the mask is set, else `no` (either may be a plain number)."""
    result = _ternary_types(yes, no)
    yes, no = types.unliteral(yes), types.unliteral(no)

    def generate(context, builder, sig, args):
        x, y = (_lift(context, builder, result.kind, t, a) for t, a in zip(sig.args[1:], args[1:], strict=True))
        return builder.select(args[0], x, y)

    return result(mask, yes, no), generate


def _choose(sign):
    """C's `x < y ? x : y` and `x > y ? x : y`."""

    def generate(builder, kind, x, y):
        return builder.select(_comparison(sign)(builder, kind, x, y), x, y)

    @intrinsic
    def choose(typingctx, x, y):
        result = _ternary_types(x, y)

        def emit(context, builder, sig, args):
            lifted = (_lift(context, builder, result.kind, t, a) for t, a in zip(sig.args, args, strict=True))
            return generate(builder, result.kind, *lifted)

        return result(types.unliteral(x), types.unliteral(y)), emit

    return choose


min_ = _choose("<")
max_ = _choose(">")


@intrinsic
def clamp(typingctx, value, low, high):
    """`max_(value, low)`, then `min_(that, high)`; a NaN becomes `low`."""

    def generate(context, builder, sig, args):
        kind = sig.args[0].kind
        x, lo, hi = (_lift(context, builder, kind, t, a) for t, a in zip(sig.args, args, strict=True))
        x = builder.select(_comparison(">")(builder, kind, x, lo), x, lo)
        return builder.select(_comparison("<")(builder, kind, x, hi), x, hi)

    return value(value, types.unliteral(low), types.unliteral(high)), generate


def _float_function(name, doc):
    @intrinsic
    def function(typingctx, x):
        return f32x16(x), lambda context, builder, sig, args: _call(
            builder, f"llvm.{name}.v{LANES}f32", args[0].type, args
        )

    function.__doc__ = doc
    return function


rint = _float_function("rint", "To the nearest integer, ties to even.")
round_ = _float_function("round", "To the nearest integer, ties away from zero (C's roundf).")
floor = _float_function("floor", "To the integer below.")
sqrt = _float_function("sqrt", "Correctly rounded square root.")
fabs = _float_function("fabs", "Absolute value; clears the sign bit.")


@intrinsic
def neg(typingctx, x):
    """Flip the sign of every float32 lane (also of zero)."""
    return x(x), lambda context, builder, sig, args: builder.fneg(args[0])


@intrinsic
def not_(typingctx, mask):
    return mask(mask), lambda context, builder, sig, args: builder.not_(args[0])


@intrinsic
def to_int(typingctx, x):
    """f32x16 -> i32x16, truncating; lanes outside int32 are unspecified."""
    return i32x16(x), lambda context, builder, sig, args: builder.fptosi(args[0], _vec(_I32))


@intrinsic
def to_float(typingctx, x):
    """i32x16 -> f32x16, nearest."""
    return f32x16(x), lambda context, builder, sig, args: builder.sitofp(args[0], _vec(_FLOAT))


@intrinsic
def to_u8(typingctx, x):
    """The low byte of every i32 lane."""
    return u8x16(x), lambda context, builder, sig, args: builder.trunc(args[0], _vec(_I8))


@intrinsic
def bits(typingctx, x):
    """The bit pattern of a float32, vector or scalar, as int32."""
    if isinstance(x, VecType):
        return i32x16(x), lambda context, builder, sig, args: builder.bitcast(args[0], _vec(_I32))
    return types.int32(types.float32), lambda context, builder, sig, args: builder.bitcast(args[0], _I32)


@intrinsic
def from_bits(typingctx, x):
    """The float32, vector or scalar, with that int32 bit pattern."""
    if isinstance(x, VecType):
        return f32x16(x), lambda context, builder, sig, args: builder.bitcast(args[0], _vec(_FLOAT))
    return types.float32(types.int32), lambda context, builder, sig, args: builder.bitcast(args[0], _FLOAT)


@intrinsic
def nearest_int(typingctx, x):
    """ggml's `nearest_int`, f32x16 -> i32x16: rint for |x| < 2^22, and the reference's wrapped result beyond."""

    def generate(context, builder, sig, args):
        magic = builder.fadd(args[0], _const(_vec(_FLOAT), 12582912.0))
        low = builder.and_(builder.bitcast(magic, _vec(_I32)), _const(_vec(_I32), 0x007FFFFF))
        return builder.sub(low, _const(_vec(_I32), 0x00400000))

    return i32x16(x), generate


# ---- across lanes


@intrinsic
def any_lane(typingctx, mask):
    """True when at least one lane of the mask is set."""

    def generate(context, builder, sig, args):
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], _I16), ir.Constant(_I16, 0))

    return types.boolean(mask), generate


@intrinsic
def mask_bits(typingctx, mask):
    """The mask as an integer: bit i is lane i."""

    def generate(context, builder, sig, args):
        return builder.zext(builder.bitcast(args[0], _I16), _I32)

    return types.uint32(mask), generate


@intrinsic
def trailing_zeros(typingctx, number):
    """How many zero bits a uint32 ends in (32 for zero)."""
    return types.uint32(types.uint32), lambda context, builder, sig, args: builder.cttz(args[0], ir.Constant(_I1, 0))


@intrinsic
def count_ones(typingctx, number):
    """How many bits of a uint32 are set."""
    return types.uint32(types.uint32), lambda context, builder, sig, args: builder.ctpop(args[0])


def _reduction(name, vector, scalar, doc):
    @intrinsic
    def reduce(typingctx, x):
        suffix = f"v{LANES}{vector.kind}"
        return scalar(x), lambda context, builder, sig, args: _call(
            builder, f"llvm.vector.reduce.{name}.{suffix}", _ELEMENT[vector.kind], args
        )

    reduce.__doc__ = doc
    return reduce


reduce_umax = _reduction("umax", i32x16, types.int32, "The greatest lane of an i32x16, compared as unsigned.")
reduce_add = _reduction("add", i32x16, types.int32, "The sum of the lanes of an i32x16.")
reduce_fmax = _reduction("fmax", f32x16, types.float32, "The greatest lane of an f32x16 without NaN.")
reduce_fmin = _reduction("fmin", f32x16, types.float32, "The least lane of an f32x16 without NaN.")


# ---- float16, in hardware where the target CPU has it and in integer arithmetic where not


def _converts_half(context):
    """Whether the CPU that numba compiles for (NUMBA_CPU_NAME and _FEATURES included) converts float16 itself.

    LLVM would otherwise call a library routine that numba does not link, and abort the process.
    """
    triple, _, features = context.codegen().magic_tuple()
    if triple.startswith(("aarch64", "arm64")):
        return True
    return "+f16c" in features.split(",")


def _widen_half(context, builder, half):
    """float16 bit patterns (i16, scalar or vector) -> float32."""
    vector = isinstance(half.type, ir.VectorType)
    f32, i32, f16 = (_vec(t) if vector else t for t in (_FLOAT, _I32, _HALF))
    if _converts_half(context):
        return builder.fpext(builder.bitcast(half, f16), f32)

    def c(number):
        return _const(i32, number) if vector else ir.Constant(i32, number)

    w = builder.zext(half, i32)
    sign = builder.shl(builder.and_(w, c(0x8000)), c(16))
    magnitude = builder.and_(w, c(0x7FFF))
    # Exponent and mantissa in place; multiplying by 2^112 corrects the bias and normalizes subnormals, exactly.
    scale = builder.bitcast(c(0x77800000), f32)
    finite = builder.bitcast(builder.fmul(builder.bitcast(builder.shl(magnitude, c(13)), f32), scale), i32)
    special = builder.or_(builder.shl(magnitude, c(13)), c(0x7F800000))
    is_special = builder.icmp_unsigned(">=", magnitude, c(0x7C00))
    return builder.bitcast(builder.or_(builder.select(is_special, special, finite), sign), f32)


def _narrow_half(context, builder, value):
    """float32 (scalar or vector) -> float16 bit patterns (i16), to nearest, ties to even."""
    vector = isinstance(value.type, ir.VectorType)
    f32, i32, i16, f16 = (_vec(t) if vector else t for t in (_FLOAT, _I32, _I16, _HALF))
    if _converts_half(context):
        return builder.bitcast(builder.fptrunc(value, f16), i16)

    def c(number):
        return _const(i32, number) if vector else ir.Constant(i32, number)

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


@intrinsic
def f16_bits(typingctx, x):
    """float32 -> the bits of the nearest float16, ties to even: scalar -> uint16, f32x16 -> i32x16."""
    if isinstance(x, VecType):
        return i32x16(x), lambda context, builder, sig, args: builder.zext(
            _narrow_half(context, builder, args[0]), _vec(_I32)
        )
    return types.uint16(types.float32), lambda context, builder, sig, args: _narrow_half(context, builder, args[0])


@intrinsic
def f16_value(typingctx, x):
    """The bits of a float16 -> float32: uint16 -> scalar, i32x16 -> f32x16."""
    if isinstance(x, VecType):
        return f32x16(x), lambda context, builder, sig, args: _widen_half(
            context, builder, builder.trunc(args[0], _vec(_I16))
        )
    return types.float32(types.uint16), lambda context, builder, sig, args: _widen_half(context, builder, args[0])


# ---- memory


def _load_f32(context, builder, array_type, array, index):
    """Sixteen weights as float32 from a float32, int16 (float16 bits) or uint16 (bfloat16 bits) array."""
    if array_type.dtype == types.float32:
        value = builder.load(_pointer(context, builder, array_type, array, index, _vec(_FLOAT)))
        value.align = 1
        return value
    value = builder.load(_pointer(context, builder, array_type, array, index, _vec(_I16)))
    value.align = 1
    if array_type.dtype == types.int16:
        return _widen_half(context, builder, value)
    wide = builder.shl(builder.zext(value, _vec(_I32)), _const(_vec(_I32), 16))
    return builder.bitcast(wide, _vec(_FLOAT))


def _check_rows(array):
    if array.dtype not in (types.float32, types.int16, types.uint16):
        raise TypeError(f"load: float32, int16 (float16 bits) or uint16 (bfloat16 bits), not {array.dtype}")


@intrinsic
def load(typingctx, array, index):
    """`array[index : index + 16]` as f32x16; float16 (int16 arrays) and bfloat16 (uint16) are widened exactly."""
    _check_rows(array)

    def generate(context, builder, sig, args):
        return _load_f32(context, builder, sig.args[0], *args)

    return f32x16(array, types.intp), generate


@intrinsic
def load_i32(typingctx, array, index):
    """`array[index : index + 16]` of an integer array as i32x16, sign- or zero-extended by the array's type."""
    dtype = array.dtype
    if not isinstance(dtype, types.Integer) or dtype.bitwidth > 32:
        raise TypeError(f"load_i32: an integer array of at most 32 bits, not {dtype}")

    def generate(context, builder, sig, args):
        element = ir.IntType(dtype.bitwidth)
        value = builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], _vec(element)))
        value.align = 1
        if dtype.bitwidth == 32:
            return value
        return (builder.sext if dtype.signed else builder.zext)(value, _vec(_I32))

    return i32x16(array, types.intp), generate


@intrinsic
def store(typingctx, array, index, value):
    """`array[index : index + 16] = value`: f32x16 to float32, i32x16 to (u)int32, u8x16 to (u)int8 arrays."""
    width = {"f32": 32, "i32": 32, "u8": 8}[value.kind]
    if array.dtype.bitwidth != width or not array.mutable:
        raise TypeError(f"store: {value} does not go into {array}")

    def generate(context, builder, sig, args):
        done = builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], args[1], args[2].type))
        done.align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of `array[index]`, which may be past the end, ahead of its use."""

    def generate(context, builder, sig, args):
        place = _pointer(context, builder, sig.args[0], args[0], args[1], _I8)
        function_type = ir.FunctionType(ir.VoidType(), [place.type, _I32, _I32, _I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [place.type], function_type)
        builder.call(function, [place, _index(0), _index(3), _index(1)])  # to read, into every cache, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def load_words(typingctx, array, index):
    """64 bytes of a uint8 array as i32x16, in the machine's byte order."""

    def generate(context, builder, sig, args):
        return builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], _vec(_I32)), align=1)

    return i32x16(array, types.intp), generate


@intrinsic
def store_words(typingctx, array, index, value):
    """An i32x16 as 64 bytes of a uint8 array, in the machine's byte order."""

    def generate(context, builder, sig, args):
        builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], args[1], _vec(_I32)), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def gather(typingctx, array, indices):
    """`array[indices]`, lane by lane: float32 arrays -> f32x16, integer arrays -> i32x16."""
    is_float = array.dtype == types.float32

    def generate(context, builder, sig, args):
        dtype = sig.args[0].dtype
        result = ir.Constant(_vec(_FLOAT if is_float else _I32), ir.Undefined)
        data = cgutils.create_struct_proxy(sig.args[0])(context, builder, args[0]).data
        for lane in range(LANES):
            at = builder.zext(builder.extract_element(args[1], _index(lane)), ir.IntType(64))
            value = builder.load(builder.gep(data, [at]))
            if not is_float and dtype.bitwidth < 32:
                value = (builder.sext if dtype.signed else builder.zext)(value, _I32)
            result = builder.insert_element(result, value, _index(lane))
        return result

    return (f32x16 if is_float else i32x16)(array, indices), generate


def _swap_picks(distance):
    """Shuffles that swap, between two vectors, the lanes that differ in bit `distance`: the lower, the upper half."""
    low = [e if not e & distance else LANES + (e ^ distance) for e in range(LANES)]
    high = [e | distance if not e & distance else LANES + e for e in range(LANES)]
    return ir.Constant(_vec(_I32), low), ir.Constant(_vec(_I32), high)


def _picks(*numbers):
    return ir.Constant(ir.VectorType(_I32, len(numbers)), list(numbers))


_JOIN = _picks(*range(8))
_EVEN_LOW, _EVEN_HIGH = _picks(0, 8, 1, 9, 4, 12, 5, 13), _picks(2, 10, 3, 11, 6, 14, 7, 15)
_PAIR_LOW, _PAIR_HIGH = _picks(0, 1, 8, 9, 4, 5, 12, 13), _picks(2, 3, 10, 11, 6, 7, 14, 15)


@intrinsic
def transpose(typingctx, source, start, stride, tile, at):
    """Sixteen rows of sixteen weights -> their columns: `tile[at + 16*i + lane] = source[start + lane*stride + i]`.

    `source` as for `load`; `tile` float32.  Eight rows and four columns at a time, which sixteen registers can hold:
    row i beside row i + 4, so that what is left are four transposed squares in each half.
    """
    _check_rows(source)

    def generate(context, builder, sig, args):
        array, begin, step, tile_array, tile_at = args
        array_type, intp = sig.args[0], begin.type
        indices = [builder.add(begin, builder.mul(step, ir.Constant(intp, lane))) for lane in range(LANES)]
        if array_type.dtype != types.float32:
            rows = [_load_f32(context, builder, array_type, array, index) for index in indices]

        def beside(lane, column):
            """Columns column .. column + 3 of rows `lane` and `lane + 4`."""
            if array_type.dtype != types.float32:
                first = range(column, column + 4)
                return builder.shuffle_vector(rows[lane], rows[lane + 4], _picks(*first, *(16 + i for i in first)))
            halves = []
            for index in (indices[lane], indices[lane + 4]):
                place = builder.add(index, ir.Constant(intp, column))
                four = _pointer(context, builder, array_type, array, place, ir.VectorType(_FLOAT, 4))
                halves.append(builder.load(four, align=1))
            return builder.shuffle_vector(*halves, _JOIN)

        for column in range(0, LANES, 4):
            for lane in (0, 8):
                a, b, c, d = (beside(lane + i, column) for i in range(4))
                low, high = (
                    [builder.shuffle_vector(x, y, m) for m in (_EVEN_LOW, _EVEN_HIGH)] for x, y in ((a, b), (c, d))
                )
                done = [builder.shuffle_vector(low[i], high[i], m) for i in (0, 1) for m in (_PAIR_LOW, _PAIR_HIGH)]
                for i, eight in enumerate(done):
                    place = builder.add(tile_at, ir.Constant(intp, LANES * (column + i) + lane))
                    builder.store(
                        eight, _pointer(context, builder, sig.args[3], tile_array, place, eight.type), align=4
                    )
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, tile, types.intp), generate


def _reduce_rows(vector, doc, combine):
    @intrinsic
    def reduce(typingctx, tile, at):
        def generate(context, builder, sig, args):
            element = _ELEMENT[vector.kind]
            rows = []
            for lane in range(LANES):
                index = builder.add(args[1], ir.Constant(args[1].type, LANES * lane))
                row = builder.load(_pointer(context, builder, sig.args[0], args[0], index, _vec(element)))
                row.align = 4
                rows.append(row)
            for distance in (8, 4, 2, 1):
                low, high = _swap_picks(distance)
                rows = [
                    combine(
                        builder,
                        builder.shuffle_vector(a, b, low),
                        builder.shuffle_vector(a, b, high),
                    )
                    for a, b in zip(rows[:distance], rows[distance:], strict=True)
                ]
            return rows[0]

        return vector(tile, types.intp), generate

    reduce.__doc__ = doc
    return reduce


def _umax(builder, x, y):
    return builder.select(builder.icmp_unsigned(">", x, y), x, y)


rows_umax = _reduce_rows(
    i32x16, "Lane i: the greatest, as unsigned, of the int32 `tile[at + 16*i : at + 16*i + 16]`.", _umax
)
rows_max = _reduce_rows(
    f32x16,
    "Lane i: the greatest of the float32 `tile[at + 16*i : at + 16*i + 16]`.",
    lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y),
)
rows_min = _reduce_rows(
    f32x16,
    "Lane i: the least of the float32 `tile[at + 16*i : at + 16*i + 16]`.",
    lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y),
)


@intrinsic
def store_u16(typingctx, array, index, value):
    """The low two bytes of an integer, little-endian, into a uint8 array."""

    def generate(context, builder, sig, args):
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], _I16)
        done = builder.store(context.cast(builder, args[2], sig.args[2], types.uint16), pointer)
        done.align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, types.unliteral(value)), generate
