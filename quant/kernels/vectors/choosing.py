"""Lanes out of small tables: each lane of an i32x16 says which of four or eight neighbouring lanes of a vector it gets.
Lanes into tables: each of some neighbouring lanes several times.

The tables are vectors, not arrays: LLVM would take loads of what was just stored apart into shifts of one huge integer.
"""

from llvmlite import ir
from numba.extending import intrinsic

from llmconv.quant.kernels.vectors.byte_lanes import halves, has_avx2, has_avx512
from llmconv.quant.kernels.vectors.codegen import FLOAT, I32, LANES, call, f32x16, i32, vec

_EIGHT = ir.VectorType(FLOAT, 8)


def _chooser(count, part, by_eight, by_sixteen):
    @intrinsic
    def choose(typingctx, table, index):
        def generate(context, builder, sig, args):
            table_, index_ = args
            if not has_avx2(context):
                found = ir.Constant(vec(FLOAT), ir.Undefined)
                for lane in map(i32, range(LANES)):
                    step = builder.and_(builder.extract_element(index_, lane), i32(count - 1))
                    number = builder.extract_element(table_, builder.add(step, i32(count * part)))
                    found = builder.insert_element(found, number, lane)
                return found
            width = 16 if has_avx512(context) else 8
            lanes = ir.Constant(ir.VectorType(I32, width), [count * part + i % count for i in range(width)])
            every = builder.shuffle_vector(table_, table_, lanes)
            if width == 16:
                return call(builder, by_sixteen, vec(FLOAT), [every, index_])
            low, high = (call(builder, by_eight, _EIGHT, [every, half]) for half in halves(builder, index_))
            return builder.shuffle_vector(low, high, ir.Constant(vec(I32), list(range(LANES))))

        return f32x16(table, index), generate

    choose.__doc__ = f"Lane i: lane {count * part} + (index[i] & {count - 1}) of the table."
    return choose


_PERMUTE4 = "llvm.x86.avx.vpermilvar.ps.256", "llvm.x86.avx512.vpermilvar.ps.512"
_PERMUTE8 = "llvm.x86.avx2.permps", "llvm.x86.avx512.permvar.sf.512"
choose4 = [_chooser(4, part, *_PERMUTE4) for part in range(4)]
"""By the quarter of the vector that is the table."""
choose8 = [_chooser(8, part, *_PERMUTE8) for part in range(2)]
"""By the half of the vector that is the table."""


def _repeater(count, part):
    first = part * (LANES // count)
    picks = ir.Constant(vec(I32), [first + i // count for i in range(LANES)])

    @intrinsic
    def repeat(typingctx, vector):
        return vector(vector), lambda context, builder, sig, args: builder.shuffle_vector(args[0], args[0], picks)

    repeat.__doc__ = f"Lane i: lane {first} + i // {count}."
    return repeat


repeat4, repeat8 = ([_repeater(count, part) for part in range(2)] for count in (4, 8))
"""Four or eight lanes for each; the first lanes, and those after them."""
