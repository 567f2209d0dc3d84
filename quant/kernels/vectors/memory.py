"""Sixteen lanes (see `simd`) to and from arrays: loads, stores, transposes, and what goes across their rows.

`load` widens float16 (handed in as int16 arrays) and bfloat16 (as uint16) exactly.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from llmconv.quant.kernels.vectors.codegen import (
    ELEMENT,
    FLOAT,
    I8,
    I16,
    I32,
    LANES,
    const,
    f32x16,
    i32,
    i32x16,
    pointer,
    vec,
    widen_half,
)


def _load_f32(context, builder, array_type, array, index):
    """Sixteen weights as float32 from a float32, int16 (float16 bits) or uint16 (bfloat16 bits) array."""
    if array_type.dtype == types.float32:
        value = builder.load(pointer(context, builder, array_type, array, index, vec(FLOAT)))
        value.align = 1
        return value
    value = builder.load(pointer(context, builder, array_type, array, index, vec(I16)))
    value.align = 1
    if array_type.dtype == types.int16:
        return widen_half(context, builder, value)
    wide = builder.shl(builder.zext(value, vec(I32)), const(vec(I32), 16))
    return builder.bitcast(wide, vec(FLOAT))


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
def load_halves(typingctx, array, low, high):
    """Eight float32 from `array[low]` on, then eight from `array[high]` on."""

    def generate(context, builder, sig, args):
        eight = ir.VectorType(FLOAT, 8)
        halves = [pointer(context, builder, sig.args[0], args[0], at, eight) for at in args[1:]]
        return builder.shuffle_vector(*(builder.load(half, align=1) for half in halves), _picks(*range(LANES)))

    return f32x16(array, types.intp, types.intp), generate


@intrinsic
def load_i32(typingctx, array, index):
    """`array[index : index + 16]` of an integer array as i32x16, sign- or zero-extended by the array's type."""
    dtype = array.dtype
    if not isinstance(dtype, types.Integer) or dtype.bitwidth > 32:
        raise TypeError(f"load_i32: an integer array of at most 32 bits, not {dtype}")

    def generate(context, builder, sig, args):
        element = ir.IntType(dtype.bitwidth)
        value = builder.load(pointer(context, builder, sig.args[0], args[0], args[1], vec(element)))
        value.align = 1
        if dtype.bitwidth == 32:
            return value
        return (builder.sext if dtype.signed else builder.zext)(value, vec(I32))

    return i32x16(array, types.intp), generate


@intrinsic
def store(typingctx, array, index, value):
    """`array[index : index + 16] = value`: f32x16 to float32, i32x16 to (u)int32, u8x16 to (u)int8 arrays."""
    width = {"f32": 32, "i32": 32, "u8": 8}[value.kind]
    if array.dtype.bitwidth != width or not array.mutable:
        raise TypeError(f"store: {value} does not go into {array}")

    def generate(context, builder, sig, args):
        done = builder.store(args[2], pointer(context, builder, sig.args[0], args[0], args[1], args[2].type))
        done.align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


def _prefetch(caches, doc):
    @intrinsic
    def ask(typingctx, array, index):
        def generate(context, builder, sig, args):
            place = pointer(context, builder, sig.args[0], args[0], args[1], I8)
            function_type = ir.FunctionType(ir.VoidType(), [place.type, I32, I32, I32])
            function = builder.module.declare_intrinsic("llvm.prefetch", [place.type], function_type)
            builder.call(function, [place, i32(0), i32(caches), i32(1)])  # to read, data
            return context.get_dummy_value()

        return types.void(array, types.intp), generate

    ask.__doc__ = doc
    return ask


prefetch = _prefetch(3, "Ask for the cache line of `array[index]`, which may be past the end, ahead of its use.")
prefetch_far = _prefetch(2, "Well ahead of its use: into the second cache, since the first has room for few requests.")


@intrinsic
def load_bytes(typingctx, array, index):
    """64 bytes of a uint8 array as i32x16, in the machine's byte order."""

    def generate(context, builder, sig, args):
        return builder.load(pointer(context, builder, sig.args[0], args[0], args[1], vec(I32)), align=1)

    return i32x16(array, types.intp), generate


@intrinsic
def store_bytes(typingctx, array, index, value):
    """An i32x16 as 64 bytes of a uint8 array, in the machine's byte order."""

    def generate(context, builder, sig, args):
        builder.store(args[2], pointer(context, builder, sig.args[0], args[0], args[1], vec(I32)), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def gather(typingctx, array, indices):
    """`array[indices]`, lane by lane: float32 arrays -> f32x16, integer arrays -> i32x16."""
    is_float = array.dtype == types.float32

    def generate(context, builder, sig, args):
        dtype = sig.args[0].dtype
        result = ir.Constant(vec(FLOAT if is_float else I32), ir.Undefined)
        data = cgutils.create_struct_proxy(sig.args[0])(context, builder, args[0]).data
        for lane in range(LANES):
            at = builder.zext(builder.extract_element(args[1], i32(lane)), ir.IntType(64))
            value = builder.load(builder.gep(data, [at]))
            if not is_float and dtype.bitwidth < 32:
                value = (builder.sext if dtype.signed else builder.zext)(value, I32)
            result = builder.insert_element(result, value, i32(lane))
        return result

    return (f32x16 if is_float else i32x16)(array, indices), generate


def _swap_picks(distance):
    """Shuffles that swap, between two vectors, the lanes that differ in bit `distance`: the lower, the upper half."""
    low = [e if not e & distance else LANES + (e ^ distance) for e in range(LANES)]
    high = [e | distance if not e & distance else LANES + e for e in range(LANES)]
    return ir.Constant(vec(I32), low), ir.Constant(vec(I32), high)


def _picks(*numbers):
    return ir.Constant(ir.VectorType(I32, len(numbers)), list(numbers))


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
                four = pointer(context, builder, array_type, array, place, ir.VectorType(FLOAT, 4))
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
                    builder.store(eight, pointer(context, builder, sig.args[3], tile_array, place, eight.type), align=4)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, tile, types.intp), generate


def _of_blocks(vector, what, combine):
    """Functions that find the greatest (or the like) of sixteen blocks at once, each from its own sixteen numbers."""
    element = ELEMENT[vector.kind]

    @intrinsic
    def fold(typingctx, tile, block, x):
        def generate(context, builder, sig, args):
            tile_array, number, value = args
            eight = combine(builder, *(builder.shuffle_vector(value, value, _picks(*range(i, i + 8))) for i in (0, 8)))
            row = builder.shl(builder.and_(number, ir.Constant(number.type, 7)), ir.Constant(number.type, 4))
            index = builder.add(row, builder.and_(number, ir.Constant(number.type, 8)))
            builder.store(eight, pointer(context, builder, sig.args[0], tile_array, index, eight.type), align=4)
            return context.get_dummy_value()

        return types.void(tile, types.intp, x), generate

    @intrinsic
    def found(typingctx, tile):
        def generate(context, builder, sig, args):
            rows = []
            for row in range(8):
                index = ir.Constant(ir.IntType(64), LANES * row)
                place = pointer(context, builder, sig.args[0], args[0], index, vec(element))
                rows.append(builder.load(place, align=4))
            for distance in (4, 2, 1):
                low, high = _swap_picks(distance)
                pairs = zip(rows[:distance], rows[distance:], strict=True)
                rows = [combine(builder, *(builder.shuffle_vector(a, b, m) for m in (low, high))) for a, b in pairs]
            return rows[0]

        return vector(tile), generate

    fold.__doc__ = f"Note in `tile`, 128 numbers, the {what} of a vector's lanes for block 0 … 15."
    found.__doc__ = f"Lane i: the {what} noted for block i."
    return fold, found


def _choice(sign):
    return lambda builder, x, y: builder.select(builder.fcmp_ordered(sign, x, y), x, y)


note_umax, umax_of_blocks = _of_blocks(
    i32x16, "greatest, as unsigned,", lambda b, x, y: b.select(b.icmp_unsigned(">", x, y), x, y)
)
note_max, max_of_blocks = _of_blocks(f32x16, "greatest", _choice(">"))
note_min, min_of_blocks = _of_blocks(f32x16, "least", _choice("<"))


def _store_integer(kind, doc):
    @intrinsic
    def put(typingctx, array, index, value):
        def generate(context, builder, sig, args):
            place = pointer(context, builder, sig.args[0], args[0], args[1], context.get_value_type(kind))
            builder.store(context.cast(builder, args[2], sig.args[2], kind), place).align = 1
            return context.get_dummy_value()

        return types.void(array, types.intp, types.unliteral(value)), generate

    put.__doc__ = doc
    return put


store_u16 = _store_integer(types.uint16, "The low two bytes of an integer, little-endian, into a uint8 array.")
store_word = _store_integer(types.int32, "The low four bytes of an integer likewise.")
