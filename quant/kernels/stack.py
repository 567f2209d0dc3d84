"""The working memory of kernels: small flat arrays on the stack, in place of numpy's.

Numba's own `np.empty` calls its runtime, which code that is loaded without numba doesn't have; these cost nothing.
They end with the function that makes them: don't return one, and don't make one in a loop.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

_ALIGNMENT = 64  # a vector never crosses a cache line
_APART = 320  # bytes between arrays: at the same places of two pages, one's loads would wait for the other's stores


def _element(dtype):
    return dtype.instance_type if isinstance(dtype, types.NumberClass) else dtype.dtype


def _make(context, builder, array_type, size, zero):
    element = context.get_data_type(array_type.dtype)
    width = array_type.dtype.bitwidth // 8
    data = builder.alloca(element, size=builder.add(size, ir.Constant(size.type, _APART // width)))
    data.align = _ALIGNMENT
    intp = size.type
    if zero:
        cgutils.memset(builder, data, builder.mul(size, ir.Constant(intp, width)), 0)
    array = context.make_array(array_type)(context, builder)
    step = ir.Constant(intp, width)
    populate_array(array, data=data, shape=[size], strides=[step], itemsize=step, meminfo=None)
    return array._getvalue()


@intrinsic
def empty(typingctx, size, dtype):
    """`size` numbers of a dtype (np.float32, ...), whatever they were."""
    array_type = types.Array(_element(dtype), 1, "C")

    def generate(context, builder, sig, args):
        count = context.cast(builder, args[0], sig.args[0], types.intp)
        return _make(context, builder, array_type, count, False)

    return array_type(types.unliteral(size), dtype), generate


@intrinsic
def zeros(typingctx, size, dtype):
    """`size` zeros of a dtype."""
    array_type = types.Array(_element(dtype), 1, "C")

    def generate(context, builder, sig, args):
        count = context.cast(builder, args[0], sig.args[0], types.intp)
        return _make(context, builder, array_type, count, True)

    return array_type(types.unliteral(size), dtype), generate
