"""A decoder's step of one token: a table of instructions that threads go through together, and the kernels they call.

The first thread does what is short by itself; products and heads are cut in chunks, which whoever is free takes.  A
thread that comes late, or whose processor others use, takes none, and nobody waits for it but for a chunk that it has
begun.  Who waits does so busily for a moment, then sleeps.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import U8, inner, kernel, out
from llmconv.quant.kernels.single import parts
from llmconv.quant.kernels.single.abreast import lay_rows
from llmconv.quant.kernels.single.products import BLOCKS, abreast, plain
from llmconv.quant.kernels.terms.steps import (
    CHUNK_ROWS,
    CHUNKS,
    CODE,
    DONE,
    FOLLOWERS,
    HEADS,
    HOW,
    NAPS,
    POSITION,
    ROW_COUNT,
    ROWS,
    START,
    TICKET,
    WIDTH,
)
from llmconv.quant.kernels.vectors.lanes import i4
from llmconv.quant.kernels.vectors.places import (
    brains_at,
    floats_at,
    halves_at,
    pause,
    run_rows,
    seen,
    show,
    sleep,
    take,
)
from llmconv.quant.kernels.vectors.simd import f16_value, from_bits

_TABLE = out(types.int64)
_INSTRUCTION = kernel(_TABLE, types.int64, types.int64, types.int64)
_PAUSES = 2000
"""How often a thread looks before it sleeps: some tens of microseconds."""


# ---- instructions


def _product(name, multiply):
    def rows(table, start, first, stop):
        multiply(table, start, first, stop)

    rows.__name__ = name
    return _INSTRUCTION(rows)


def _of_blocks(name, rounded):
    return _product(f"{'bytes' if rounded else 'floats'}_{name}", abreast(BLOCKS[name], rounded))


@inner
def _as_it_is(x):
    return x


@inner
def _of_half(x):
    return f16_value(np.uint16(x))


@inner
def _of_brain(x):
    return from_bits(i4(i4(x) << i4(16)))


PRODUCTS = (
    *(_of_blocks(name, rounded) for name in BLOCKS for rounded in (False, True)),
    _product("floats_f32", plain(floats_at, 4, _as_it_is)),
    _product("floats_f16", plain(halves_at, 2, _of_half)),
    _product("floats_bf16", plain(brains_at, 2, _of_brain)),
)


def _alone(name, do):
    def instruction(table, start, position, nothing):
        do(table, start, position)

    instruction.__name__ = name
    return _INSTRUCTION(instruction)


SHORT = tuple(_alone(name, do) for name, do in parts.ALONE.items())


@_INSTRUCTION
def attend(table, start, position, head):
    parts.attend(table, start, position, head)


# ---- weights


@kernel(U8, out(types.uint8), *[types.int64] * 7)
def lay(source, target, rows, row_bytes, size, narrow, leading, trailing, back):
    """Rows of blocks abreast, or back (see `single.abreast`)."""
    lay_rows(source, target, rows, row_bytes, size, narrow, leading, trailing, back)


# ---- threads


@inner
def _chunk(table, at, chunk, position):
    """One chunk of what threads share."""
    while chunk >= table[at + CHUNKS]:
        chunk -= table[at + CHUNKS]
        at += WIDTH
    if table[at + HOW] == ROWS:
        first = chunk * table[at + CHUNK_ROWS]
        run_rows(table[at + CODE], table, at, first, min(first + table[at + CHUNK_ROWS], table[at + ROW_COUNT]))
    else:
        run_rows(table[at + CODE], table, at, position, chunk)


@inner
def _chunks(table, at):
    """How many chunks an instruction and those that run with it have; none where it is not shared."""
    count = np.int64(0)
    if table[at + HOW] == ROWS or table[at + HOW] == HEADS:
        for i in range(table[at + FOLLOWERS] + 1):
            count += table[at + i * WIDTH + CHUNKS]
    return count


@inner
def _work(table, shared):
    """Take chunks of what is open until there are none left: of the token that is made by now, which for a thread that
    slept is not the one that it came for."""
    while True:
        ticket = seen(shared, TICKET)
        if (ticket & 0xFFFFFFFF) >= _chunks(table, (ticket >> 32) * WIDTH):
            return
        ticket = take(shared, TICKET)  # of what is open by now
        at = (ticket >> 32) * WIDTH
        if (ticket & 0xFFFFFFFF) < _chunks(table, at):
            _chunk(table, at, ticket & 0xFFFFFFFF, seen(shared, POSITION))
            take(shared, DONE)


@kernel(_TABLE, _TABLE, types.int64, types.int64, types.int64, types.int64)
def lead(table, shared, count, position, rest, moment):
    """Go through a table of `count` instructions and one behind, for the token at `position`.

    rest, moment: the address of the system's function that lets a thread sleep, and for how long.
    """
    show(shared, POSITION, position)
    instruction = np.int64(0)
    while instruction < count:
        at = instruction * WIDTH
        wanted = _chunks(table, at)
        instruction += 1
        if wanted == 0:
            if table[at + HOW] != START:
                run_rows(table[at + CODE], table, at, position, np.int64(0))
            continue
        show(shared, DONE, np.int64(0))
        show(shared, TICKET, (instruction - 1) << 32)
        _work(table, shared)
        looks = 0
        while seen(shared, DONE) < wanted:
            looks += 1
            if looks > _PAUSES:
                sleep(rest, moment)
                shared[NAPS] += 1
            else:
                pause()
        instruction += table[at + FOLLOWERS]
    show(shared, TICKET, count << 32)


@kernel(_TABLE, _TABLE, types.int64, types.int64, types.int64)
def assist(table, shared, count, rest, moment):
    """Beside a thread that leads, until it is through."""
    looks, before = 0, np.int64(-1)
    while True:
        _work(table, shared)
        ticket = seen(shared, TICKET)
        if ticket >> 32 >= count:
            return
        if ticket >> 32 != before:
            looks, before = 0, ticket >> 32
        looks += 1
        if looks > _PAUSES:
            sleep(rest, moment)
        else:
            pause()
