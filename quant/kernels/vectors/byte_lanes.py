"""Products of small integers, four bytes or two int16 in each lane of an i32x16 (see `simd`).

With AVX2 an instruction each; elsewhere the same integers by plain vector code, which takes several times as long.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmconv.quant.kernels.vectors.codegen import LANES, broadcast, call, f32x16, i32x16, pointer, vec

_I8, _I16, _I32 = (ir.IntType(n) for n in (8, 16, 32))
_WORDS, _SHORTS, _BYTES = vec(_I32), ir.VectorType(_I16, 2 * LANES), ir.VectorType(_I8, 4 * LANES)
_BYTES_PICKS = ir.VectorType(_I32, 4 * LANES)
_ZERO = ir.Constant(ir.IntType(64), 0)


def _has(context, feature):
    triple, _, features = context.codegen().magic_tuple()
    return triple.startswith(("x86_64", "i686")) and f"+{feature}" in features.split(",")


def has_avx2(context):
    """Whether the CPU that numba compiles for has AVX2."""
    return _has(context, "avx2")


def has_avx512(context):
    """Whether it has registers of sixteen lanes."""
    return _has(context, "avx512f")


def halves(builder, vector):
    """The lower and the upper eight lanes, which is what a register of AVX2 holds."""
    undefined = ir.Constant(_WORDS, ir.Undefined)
    picks = (ir.Constant(ir.VectorType(_I32, 8), list(range(at, at + 8))) for at in (0, 8))
    return [builder.shuffle_vector(vector, undefined, pick) for pick in picks]


def _joined(builder, low, high):
    eight = ir.VectorType(_I32, 8)
    low, high = builder.bitcast(low, eight), builder.bitcast(high, eight)
    return builder.shuffle_vector(low, high, ir.Constant(_WORDS, list(range(16))))


def by_halves(builder, name, element, result, x, y):
    """An AVX2 instruction on both halves of two vectors."""
    args, out = ir.VectorType(element, 256 // element.width), ir.VectorType(result, 256 // result.width)
    parts = zip(halves(builder, x), halves(builder, y), strict=True)
    return _joined(builder, *(call(builder, name, out, [builder.bitcast(a, args) for a in pair]) for pair in parts))


def _split(builder, vector, element, signed):
    """The lower and the upper halves of a vector's elements, each as wide as the element."""
    half = ir.Constant(vector.type, [element.width // 2] * vector.type.count)
    shift = builder.ashr if signed else builder.lshr
    return shift(builder.shl(vector, half), half), shift(vector, half)


def dot_parts(builder, x, y, element, signed):
    """Halves of x's elements times those of y's, which are signed, added."""
    whole = ir.VectorType(element, 32 * LANES // element.width)
    x, y = (builder.bitcast(v, whole) for v in (x, y))
    pairs = zip(_split(builder, x, element, signed), _split(builder, y, element, True), strict=True)
    return builder.bitcast(builder.add(*(builder.mul(a, b) for a, b in pairs)), _WORDS)


@intrinsic
def dot_bytes(typingctx, x, y):
    """Unsigned bytes of x times signed bytes of y, neighbours added: two int16 a lane, which must hold the sums."""

    def generate(context, builder, sig, args):
        if has_avx2(context):
            return by_halves(builder, "llvm.x86.avx2.pmadd.ub.sw", _I8, _I16, *args)
        return dot_parts(builder, *args, _I16, False)

    return i32x16(x, y), generate


@intrinsic
def dot_shorts(typingctx, x, y):
    """Signed int16 of x times those of y, neighbours added: one int32 a lane."""

    def generate(context, builder, sig, args):
        if has_avx2(context):
            return by_halves(builder, "llvm.x86.avx2.pmadd.wd", _I16, _I32, *args)
        return dot_parts(builder, *args, _I32, True)

    return i32x16(x, y), generate


@intrinsic
def add_shorts(typingctx, x, y):
    """Two int16 sums a lane."""

    def generate(context, builder, sig, args):
        x, y = (builder.bitcast(a, _SHORTS) for a in args)
        return builder.bitcast(builder.add(x, y), _WORDS)

    return i32x16(x, y), generate


@intrinsic
def look_up(typingctx, table, index):
    """Every byte of `index`, 0 to 15, replaced by that byte of the uint8 array `table`."""

    def generate(context, builder, sig, args):
        sixteen = builder.load(pointer(context, builder, sig.args[0], args[0], _ZERO, vec(_I8)))
        sixteen.align = 1
        undefined = ir.Constant(vec(_I8), ir.Undefined)
        if has_avx2(context):
            every = ir.Constant(_BYTES_PICKS, [i % 16 for i in range(4 * LANES)])
            table = builder.bitcast(builder.shuffle_vector(sixteen, undefined, every), _WORDS)
            return by_halves(builder, "llvm.x86.avx2.pshuf.b", _I8, _I8, table, args[1])
        codes = builder.bitcast(args[1], _BYTES)
        found = ir.Constant(_BYTES, [0] * (4 * LANES))
        for i in range(16):
            same = builder.icmp_unsigned("==", codes, ir.Constant(_BYTES, [i] * (4 * LANES)))
            value = builder.shuffle_vector(sixteen, undefined, ir.Constant(_BYTES_PICKS, [i] * (4 * LANES)))
            found = builder.select(same, value, found)
        return builder.bitcast(found, _WORDS)

    return i32x16(table, index), generate


@intrinsic
def load_words(typingctx, array, start, stride):
    """Lane i: the four bytes at `array[start + i * stride]` of a uint8 array, as they lie."""

    def generate(context, builder, sig, args):
        array_, start_, stride_ = args
        result = ir.Constant(_WORDS, ir.Undefined)
        for lane in range(LANES):
            at = builder.add(start_, builder.mul(stride_, ir.Constant(start_.type, lane)))
            word = builder.load(pointer(context, builder, sig.args[0], array_, at, _I32))
            word.align = 1
            result = builder.insert_element(result, word, ir.Constant(_I32, lane))
        return result

    return i32x16(array, types.intp, types.intp), generate


@intrinsic
def load_all(typingctx, array, index):
    """`array[index]`, one number of an int32 or float32 array, in every lane."""

    def generate(context, builder, sig, args):
        element = ir.FloatType() if sig.args[0].dtype == types.float32 else _I32
        number = builder.load(pointer(context, builder, sig.args[0], args[0], args[1], element))
        number.align = 1
        return broadcast(builder, number)

    return (f32x16 if array.dtype == types.float32 else i32x16)(array, types.intp), generate
