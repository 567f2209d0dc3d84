"""32 small integers in two i32x16 (see `simd`) as the bytes, nibbles and fifth bits of a block."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmconv.quant.kernels.vectors.byte_lanes import halves, has_avx2
from llmconv.quant.kernels.vectors.codegen import I8, I16, I32, call, pointer

_BYTES, _SHORTS = ir.VectorType(I8, 32), ir.VectorType(I16, 16)


def _picks(*numbers):
    return ir.Constant(ir.VectorType(I32, len(numbers)), list(numbers))


def _each(number, vector=_BYTES):
    return ir.Constant(vector, [number] * vector.count)


def _saturated(context, builder, low, high):
    """The integers as bytes, those below 0 as 0 and those above 255 as 255."""
    if not has_avx2(context):
        both = builder.shuffle_vector(low, high, _picks(*range(32)))
        least, most = _each(0, both.type), _each(255, both.type)
        both = builder.select(builder.icmp_signed("<", both, least), least, both)
        return builder.trunc(builder.select(builder.icmp_signed(">", both, most), most, both), _BYTES)
    first, second = (call(builder, "llvm.x86.avx2.packssdw", _SHORTS, halves(builder, x)) for x in (low, high))
    words = builder.bitcast(call(builder, "llvm.x86.avx2.packuswb", _BYTES, [first, second]), ir.VectorType(I32, 8))
    return builder.bitcast(builder.shuffle_vector(words, words, _picks(0, 4, 1, 5, 2, 6, 3, 7)), _BYTES)


def _put(context, builder, sig, args, value):
    place = pointer(context, builder, sig.args[0], args[0], args[1], value.type)
    builder.store(value, place, align=1)


@intrinsic
def store_32(typingctx, array, index, low, high):
    """The low bytes of 32 integers to `array[index : index + 32]`."""

    def generate(context, builder, sig, args):
        low, high = (builder.and_(x, ir.Constant(x.type, [255] * 16)) for x in args[2:])
        _put(context, builder, sig, args, _saturated(context, builder, low, high))
        return context.get_dummy_value()

    return types.void(array, types.intp, low, high), generate


def _quants(width):
    @intrinsic
    def put(typingctx, array, index, low, high):
        def generate(context, builder, sig, args):
            top = _each((1 << width) - 1)
            quants = _saturated(context, builder, *args[2:])
            quants = builder.select(builder.icmp_unsigned("<", quants, top), quants, top)
            if width == 5:
                fifth = builder.icmp_unsigned("!=", builder.and_(quants, _each(16)), _each(0))
                _put(context, builder, sig, args, builder.bitcast(fifth, I32))
                args = [args[0], builder.add(args[1], ir.Constant(args[1].type, 4))]
                quants = builder.and_(quants, _each(15))
            first, second = (builder.shuffle_vector(quants, quants, _picks(*range(at, at + 16))) for at in (0, 16))
            second = builder.shl(builder.bitcast(second, ir.VectorType(I16, 8)), _each(4, ir.VectorType(I16, 8)))
            _put(context, builder, sig, args, builder.or_(first, builder.bitcast(second, first.type)))
            return context.get_dummy_value()

        return types.void(array, types.intp, low, high), generate

    put.__doc__ = f"""32 integers, clamped to 0 … {(1 << width) - 1}, from `array[index]` on.

    Fifth bits come first, where there are five, as 32 bits; then nibbles, integer i beside integer i + 16.
    """
    return put


store_fours, store_fives = _quants(4), _quants(5)
