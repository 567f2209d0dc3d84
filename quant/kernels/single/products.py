"""One input times rows of weights.

An input of k numbers for rows of blocks is made (by `round_...` in `parts`) a record of 32 numbers each, of int32:

    digits    8 of four bytes each, signed, from -127 on; where inputs are not rounded to bytes two more times 8
    step      float32: what a unit of the last digit stands for
    sums      float32: of the first sixteen numbers, of the others, of all

With three digits, of base 254, an input is an integer of 24 bits under the largest magnitude of 32: as near as float32
comes in sums with that largest one, but multiplied by instructions that take four bytes at a time.  For plain weights
an input is k float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llmconv.quant.kernels.compiling.build import inner
from llmconv.quant.kernels.single import levels
from llmconv.quant.kernels.terms.steps import (
    BIAS,
    COLUMNS,
    RESULTS,
    ROW_BYTES,
    VALUES,
    WEIGHTS,
)
from llmconv.quant.kernels.vectors.byte_lanes import add_fours, add_signed_fours, load_all
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import f4, i4
from llmconv.quant.kernels.vectors.memory import load, prefetch_far, store
from llmconv.quant.kernels.vectors.places import bytes_at, floats_at, words_at
from llmconv.quant.kernels.vectors.simd import splat, to_float
from llmconv.quant.kernels.vectors.stack import empty
from llmconv.quant.kernels.vectors.sums import fuse, sum_lanes

BASE = 254
"""Of an input's digits."""
_AHEAD = 4
"""How many blocks ahead memory is asked for where processors don't see what comes."""


# ---- four bytes of each row times four of an input


def _one_digit(add):
    @inner
    def begin():
        return (splat(i4(0)),)

    @inner
    def more(sums, level, words, i):
        return (add(level, load_all(words, i), sums[0]),)

    @inner
    def whole(sums):
        return to_float(sums[0])

    return begin, more, whole, 12


def _three_digits(add):
    @inner
    def begin():
        return splat(i4(0)), splat(i4(0)), splat(i4(0))

    @inner
    def more(sums, level, words, i):
        first, second, third = sums
        return (
            add(level, load_all(words, i), first),
            add(level, load_all(words, i + 8), second),
            add(level, load_all(words, i + 16), third),
        )

    @inner
    def whole(sums):
        base = splat(f4(BASE))
        return fuse(fuse(to_float(sums[0]), base, to_float(sums[1])), base, to_float(sums[2]))

    return begin, more, whole, 28


# ---- rows


@inner
def _end_of_rows(table, start, row, stop, total):
    """Results of sixteen rows, or of those before stop."""
    results, bias = floats_at(table[start + RESULTS]), floats_at(table[start + BIAS])
    if row + LANES <= stop:
        if table[start + BIAS] != 0:
            total = total + load(bias, row)
        store(results, row, total)
        return
    few = empty(LANES, f4)
    store(few, 0, total)
    for i in range(stop - row):
        results[row + i] = few[i] + bias[row + i] if table[start + BIAS] != 0 else few[i]


class Form(NamedTuple):
    """How a type's rows are multiplied; functions are those of `levels`.

    size: bytes of a block.   parts: of 32 weights in it.   run: words under a scale, 4 or 8.   minimum, m: None where a
    type has no minima; minimum alone: where m is all there is.   offset: what is added to all levels.   scattered: read
    in an order that processors don't foresee, so they are told.
    """

    size: int
    level: Callable[..., Any]
    d: Callable[..., Any] = levels.half(0)
    m: Callable[..., Any] | None = None
    offset: int = 0
    signed: bool = False
    parts: int = 1
    run: int = 8
    scattered: bool = False
    scale: Callable[..., Any] | None = None
    minimum: Callable[..., Any] | None = None


def abreast(form, rounded):
    """Rows first, a multiple of sixteen, to stop of blocks that lie abreast: see `Form`."""
    level, scale, minimum, d, m, offset = form.level, form.scale, form.minimum, form.d, form.m, f4(form.offset)
    begin, more, whole, record = (_one_digit if rounded else _three_digits)(
        add_signed_fours if form.signed else add_fours
    )
    size, parts, run, step, pieces = form.size, form.parts, form.run, record - 4, 8 // form.run
    scattered = form.scattered
    lines = -(-LANES * size // (64 * parts))
    shifted, affine, scaled = form.offset != 0, m is not None, scale is not None
    offered = affine and minimum is not None
    scale, minimum, m = scale or level, minimum or level, m or d

    @inner
    def product(at, part, piece, words, floats):
        """Of a run of words: an input's numbers times levels."""
        sums = begin()
        for i in range(run):
            sums = more(sums, level(at, part, run * piece + i), words, run * piece + i)
        found = whole(sums) * load_all(floats, step)
        if shifted:
            found = fuse(splat(offset), load_all(floats, step + (3 if pieces == 1 else 1 + piece)), found)
        return found

    @inner
    def block_sums(at, inputs):
        """The products of a block without d, and the sums of what its minima are multiplied with."""
        total = least = splat(f4(0))
        for part in range(parts):
            if scattered:
                for line in range(lines * part, lines * (part + 1)):
                    prefetch_far(bytes_at(at), 64 * line + _AHEAD * LANES * size)
            words, floats = words_at(inputs), floats_at(inputs)
            for piece in range(pieces):
                found = product(at, part, piece, words, floats)
                total = fuse(found, scale(at, part, piece), total) if scaled else found
                if offered:
                    of_inputs = load_all(floats, step + (3 if pieces == 1 else 1 + piece))
                    least = fuse(minimum(at, part, piece), of_inputs, least)
                elif affine:
                    least = load_all(floats, step + 3)
            inputs += 4 * record
        return total, least

    @inner
    def rows(table, start, first, stop):
        blocks = table[start + COLUMNS] // (32 * parts)
        for row in range(first, stop, LANES):
            at, inputs = table[start + WEIGHTS] + row * table[start + ROW_BYTES], table[start + VALUES]
            total = splat(f4(0))
            for _ in range(blocks):
                found, least = block_sums(at, inputs)
                total = fuse(found, d(at), total)
                if affine:
                    total = fuse(least, m(at), total)
                at += LANES * size
                inputs += 4 * record * parts
            _end_of_rows(table, start, row, stop, total)

    return rows


@inner
def _end_of_row(table, start, row, total):
    if table[start + BIAS] != 0:
        total += floats_at(table[start + BIAS])[row]
    floats_at(table[start + RESULTS])[row] = total


def plain(weights_at, width, widen):
    """Rows of plain numbers of `width` bytes."""

    @inner
    def rows(table, start, first, stop):
        weights, values = weights_at(table[start + WEIGHTS]), floats_at(table[start + VALUES])
        stride, k = table[start + ROW_BYTES] // width, table[start + COLUMNS]
        for row in range(first, stop):
            at = row * stride
            a = b = splat(f4(0))
            for i in range(0, k - 31, 32):
                a = fuse(load(weights, at + i), load(values, i), a)
                b = fuse(load(weights, at + i + 16), load(values, i + 16), b)
            total = sum_lanes(a + b)
            for i in range(k // 32 * 32, k):
                total += widen(weights[at + i]) * values[i]
            _end_of_row(table, start, row, total)

    return rows


def _k_form(size, level, scale, **more):
    return Form(size, level, scale=scale, parts=8, **more)


_M, _LESS_M = levels.half(2), levels.minus_half(2)
BLOCKS = {
    "q4_0": Form(18, levels.q4_0, offset=-8),
    "q4_1": Form(20, levels.q4_1, m=_M),
    "q5_0": Form(22, levels.q5_0, offset=-16),
    "q5_1": Form(24, levels.q5_1, m=_M),
    "q8_0": Form(34, levels.q8_0, signed=True),
    "iq4_nl": Form(18, levels.iq4_nl, signed=True),
    "mxfp4": Form(17, levels.mxfp4, levels.half_power, offset=-12),
    "q2_k": _k_form(
        84,
        levels.q2_k,
        levels.scale_q2_k,
        run=4,
        minimum=levels.minimum_q2_k,
        d=levels.half(80),
        m=levels.minus_half(82),
    ),
    "q3_k": _k_form(110, levels.q3_k, levels.scale_q3_k, run=4, offset=-4, d=levels.half(108)),
    "q4_k": _k_form(144, levels.q4_k, levels.scale_q45_k, minimum=levels.minimum_q45_k, m=_LESS_M),
    "q5_k": _k_form(176, levels.q5_k, levels.scale_q45_k, minimum=levels.minimum_q45_k, m=_LESS_M),
    "q6_k": _k_form(210, levels.q6_k, levels.scale_q6_k, run=4, offset=-32, scattered=True, d=levels.half(208)),
    "iq4_xs": _k_form(136, levels.iq4_xs, levels.scale_iq4_xs, signed=True),
}
"""By type."""
