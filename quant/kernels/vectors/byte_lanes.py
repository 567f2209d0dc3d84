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
    """Whether its registers hold sixteen lanes, of bytes too."""
    return _has(context, "avx512bw")


def has_vnni(context):
    """Whether it multiplies bytes and adds up four products in one instruction of sixteen lanes."""
    return has_avx512(context) and _has(context, "avx512vnni")


def halves(builder, vector):
    """The lower and the upper eight lanes, which is what a register of AVX2 holds."""
    undefined = ir.Constant(_WORDS, ir.Undefined)
    picks = (ir.Constant(ir.VectorType(_I32, 8), list(range(at, at + 8))) for at in (0, 8))
    return [builder.shuffle_vector(vector, undefined, pick) for pick in picks]


def _joined(builder, low, high):
    eight = ir.VectorType(_I32, 8)
    low, high = builder.bitcast(low, eight), builder.bitcast(high, eight)
    return builder.shuffle_vector(low, high, ir.Constant(_WORDS, list(range(16))))


_PAIRS_OF_BYTES = "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx512.pmaddubs.w.512"
_PAIRS_OF_SHORTS = "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx512.pmaddw.d.512"
_LOOK_UP = "llvm.x86.avx2.pshuf.b", "llvm.x86.avx512.pshuf.b.512"


def by_registers(context, builder, names, element, result, x, y):
    """An instruction on two vectors: AVX2's on their halves, or AVX-512's."""
    wide = has_avx512(context)
    bits = 512 if wide else 256
    args, out = ir.VectorType(element, bits // element.width), ir.VectorType(result, bits // result.width)

    def done(*pair):
        return call(builder, names[wide], out, [builder.bitcast(one, args) for one in pair])

    if wide:
        return builder.bitcast(done(x, y), _WORDS)
    return _joined(builder, *map(done, halves(builder, x), halves(builder, y)))


def _split(builder, vector, element, signed):
    """The lower and the upper halves of a vector's elements, each as wide as the element."""
    half = ir.Constant(vector.type, [element.width // 2] * vector.type.count)
    shift = builder.ashr if signed else builder.lshr
    return shift(builder.shl(vector, half), half), shift(vector, half)


def _dot_parts(builder, x, y, element, signed):
    """Halves of x's elements times those of y's, which are signed, added."""
    whole = ir.VectorType(element, 32 * LANES // element.width)
    x, y = (builder.bitcast(v, whole) for v in (x, y))
    pairs = zip(_split(builder, x, element, signed), _split(builder, y, element, True), strict=True)
    return builder.bitcast(builder.add(*(builder.mul(a, b) for a, b in pairs)), _WORDS)


def _pairs_of_bytes(context, builder, x, y):
    if has_avx2(context):
        return by_registers(context, builder, _PAIRS_OF_BYTES, _I8, _I16, x, y)
    return _dot_parts(builder, x, y, _I16, False)


def _pairs_of_shorts(context, builder, x, y):
    if has_avx2(context):
        return by_registers(context, builder, _PAIRS_OF_SHORTS, _I16, _I32, x, y)
    return _dot_parts(builder, x, y, _I32, True)


def _fours(context, builder, x, y, total):
    if has_vnni(context):
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", _WORDS, [total, x, y])
    ones = ir.Constant(_WORDS, [0x00010001] * LANES)
    return builder.add(total, _pairs_of_shorts(context, builder, _pairs_of_bytes(context, builder, x, y), ones))


def _signed_fours(context, builder, x, y, total):
    if not has_avx2(context):
        ones = ir.Constant(_WORDS, [0x00010001] * LANES)
        return builder.add(total, _dot_parts(builder, _dot_parts(builder, x, y, _I16, True), ones, _I32, True))
    zero = ir.Constant(_BYTES, [0] * 4 * LANES)
    wide, other = builder.bitcast(x, _BYTES), builder.bitcast(y, _BYTES)
    negative = builder.icmp_signed("<", wide, zero)
    size = builder.select(negative, builder.sub(zero, wide), wide)
    if has_avx512(context):
        turned = builder.bitcast(builder.select(negative, builder.sub(zero, other), other), _WORDS)
    else:
        turned = by_registers(context, builder, ("llvm.x86.avx2.psign.b",), _I8, _I8, y, x)
    return _fours(context, builder, builder.bitcast(size, _WORDS), turned, total)


def _dot(generate, doc):
    @intrinsic
    def dot(typingctx, x, y):
        return i32x16(x, y), lambda context, builder, sig, args: generate(context, builder, *args)

    dot.__doc__ = doc
    return dot


dot_bytes = _dot(
    _pairs_of_bytes,
    "Unsigned bytes of x times signed bytes of y, neighbours added: two int16 a lane, which must hold the sums.",
)
dot_shorts = _dot(_pairs_of_shorts, "Signed int16 of x times those of y, neighbours added: one int32 a lane.")


def _adding(generate, doc):
    @intrinsic
    def add(typingctx, x, y, total):
        return i32x16(x, y, total), lambda context, builder, sig, args: generate(context, builder, *args)

    add.__doc__ = doc
    return add


add_fours = _adding(
    _fours,
    "Unsigned bytes of x times signed bytes of y, added to a total in each lane; int16 must hold the sum of two.",
)
add_signed_fours = _adding(_signed_fours, "The same for signed bytes of x; those of y are not -128.")


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
            return by_registers(context, builder, _LOOK_UP, _I8, _I8, table, args[1])
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
