"""Arrays at addresses, and what threads that work on the same ones tell each other by.

A step of one token goes through hundreds of arrays, too many to be parameters: their addresses stand in a table.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from llmconv.quant.kernels.vectors.codegen import flat_array, pointer

_I64, _I32, _BYTE = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()


def _at(dtype, doc):
    array_type = types.Array(dtype, 1, "C", aligned=False)

    @intrinsic
    def array_at(typingctx, address):
        def generate(context, builder, sig, args):
            data = builder.inttoptr(args[0], context.get_data_type(dtype).as_pointer())
            return flat_array(context, builder, array_type, data, ir.Constant(_I64, 0))

        return array_type(types.int64), generate

    array_at.__doc__ = doc
    return array_at


floats_at = _at(types.float32, "The float32 from an address on; how many is for the caller to know.")
halves_at = _at(types.int16, "The float16 from an address on, as int16.")
brains_at = _at(types.uint16, "The bfloat16 from an address on, as uint16.")
bytes_at = _at(types.uint8, "The bytes from an address on.")
words_at = _at(types.int32, "The int32 from an address on.")


@intrinsic
def take(typingctx, array, index):
    """One more in `array[index]`, an int64: the number that was there before; no two threads get the same."""

    def generate(context, builder, sig, args):
        place = pointer(context, builder, sig.args[0], args[0], args[1], _I64)
        return builder.atomic_rmw("add", place, ir.Constant(_I64, 1), "seq_cst")

    return types.int64(array, types.intp), generate


@intrinsic
def seen(typingctx, array, index):
    """`array[index]`, an int64, and with it all that was written before it was `shown`."""

    def generate(context, builder, sig, args):
        place = pointer(context, builder, sig.args[0], args[0], args[1], _I64)
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(array, types.intp), generate


@intrinsic
def show(typingctx, array, index, value):
    """`array[index] = value`, an int64, for other threads to see after all that was written before."""

    def generate(context, builder, sig, args):
        place = pointer(context, builder, sig.args[0], args[0], args[1], _I64)
        builder.store_atomic(args[2], place, "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), generate


@intrinsic
def pause(typingctx):
    """A moment, in a loop that waits for another thread."""

    def generate(context, builder, sig, args):
        if context.codegen().magic_tuple()[0].startswith(("x86_64", "i686")):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def sleep(typingctx, function, amount):
    """Call the system's function of one number at that address, which gives the processor to others."""

    def generate(context, builder, sig, args):
        kind = ir.FunctionType(_I32, [_I32]).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), [builder.trunc(args[1], _I32)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def run_rows(typingctx, code, table, start, first, stop):
    """Call the kernel at an address, of `(table, start, first, stop)`: an int64 array and three int64."""

    def generate(context, builder, sig, args):
        address, table, *numbers = args
        kind = ir.FunctionType(_I32, [_BYTE, _BYTE, _BYTE, *[_I64] * 4]).as_pointer()
        outcome = builder.bitcast(cgutils.alloca_once(builder, _I64, size=8), _BYTE)
        data = cgutils.create_struct_proxy(sig.args[1])(context, builder, table).data
        given = [outcome, outcome, builder.bitcast(data, _BYTE), ir.Constant(_I64, 0), *numbers]
        builder.call(builder.inttoptr(address, kind), given)
        return context.get_dummy_value()

    return types.void(types.int64, table, *[types.int64] * 3), generate
