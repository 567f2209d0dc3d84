"""A step of one token as a table of instructions: what `one_token` and its callers agree on.  Needs no numba.

An instruction is a row of WIDTH int64: how it is gone through, the address of the kernel that does it, and the kernel's
arguments, which are addresses, counts, and float32 by their bits.  Of an address that is 0 there is nothing.
"""

from collections.abc import Sequence

WIDTH = 20

START, ALONE, ROWS, HEADS = range(4)
"""How.  START: nothing is done; threads that come early wait here, and the table ends with one.   ALONE: by the first
thread, `kernel(table, where the instruction begins, position, 0)`.   ROWS: by all threads in chunks of rows of a
weight, `kernel(table, where, first row, the one to stop before)`.   HEADS: head by head, `kernel(table, where,
position, head)`."""

HOW, CODE, CHUNKS, FOLLOWERS = range(4)
"""Of every instruction.  CHUNKS: how many threads may share.   FOLLOWERS: how many more run at the same time, which
stand behind it."""

WEIGHTS, ROW_BYTES, ROW_COUNT, COLUMNS, VALUES, RESULTS, BIAS, CHUNK_ROWS = range(4, 12)
"""Products: rows of weights times an input, both as `single.products` has them.   CHUNK_ROWS: of blocks, which lie
abreast, a multiple of sixteen."""

QUERY, KEYS, VALUES_KEPT, HEAD_COUNT, HEADS_KEPT, HEAD, VALUE_HEAD, CAPACITY, WINDOW, SCALE, SCORES, ATTENDED = range(
    4, 16
)
"""`attend`: heads over keys and values of all tokens so far; `keep`: a new key (at QUERY) and value (at ATTENDED) to
theirs.   SCORES: room for as many numbers as the cache has tokens, for each head."""

SOURCE, TARGET, COUNT, SIZE, WEIGHT, SHIFT, FACTOR = range(4, 11)
"""`round_...`: COUNT numbers to VALUES' form at TARGET.
`norm_...`: COUNT vectors of SIZE, times WEIGHT, plus SHIFT; FACTOR: epsilon.
`join_...`: the activation of SOURCE, times what is at WEIGHT.   `add`: SOURCE times FACTOR, to TARGET.
`rotate_...`: COUNT vectors of SIZE at TARGET, by FACTOR numbers of each position at WEIGHT (cosines), SHIFT (sines)."""

ACTIVATIONS: Sequence[str] = ("silu", "gelu_tanh", "quick_gelu", "relu", "relu2", "identity", "tanh")
"""What there is a `join_...` of."""

TICKET, DONE, NAPS, POSITION, SHARED = 0, 16, 32, 48, 64
"""What threads share, in int64s that are a cache line apart: which instruction is open and how many of its chunks are
taken (the instruction in the upper half); how many are done; how often the first thread slept; the token's
position.   SHARED: their size."""
