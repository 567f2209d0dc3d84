"""The working memory of kernels: small flat arrays on the stack, in place of numpy's.

Numba's own `np.empty` calls its runtime, which code that is loaded without numba doesn't have; these cost nothing.
They end with the function that makes them: don't return one, and don't make one in a loop.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from llmconv.quant.kernels.vectors.codegen import flat_array

_ALIGNMENT = 64  # a vector never crosses a cache line
_APART = 320  # bytes between arrays: at the same places of two pages, one's loads would wait for the other's stores


def _element(dtype):
    return dtype.instance_type if isinstance(dtype, types.NumberClass) else dtype.dtype


def _maker(zero, doc):
    @intrinsic
    def make(typingctx, size, dtype):
        array_type = types.Array(_element(dtype), 1, "C")

        def generate(context, builder, sig, args):
            count = context.cast(builder, args[0], sig.args[0], types.intp)
            width = array_type.dtype.bitwidth // 8
            room = builder.add(count, ir.Constant(count.type, _APART // width))
            data = builder.alloca(context.get_data_type(array_type.dtype), size=room)
            data.align = _ALIGNMENT
            if zero:
                cgutils.memset(builder, data, builder.mul(count, ir.Constant(count.type, width)), 0)
            return flat_array(context, builder, array_type, data, count)

        return array_type(types.unliteral(size), dtype), generate

    make.__doc__ = doc
    return make


empty = _maker(False, "`size` numbers of a dtype (np.float32, ...), whatever they were.")
zeros = _maker(True, "`size` zeros of a dtype.")
