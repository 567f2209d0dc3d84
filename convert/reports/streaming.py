"""What running a model layer by layer takes: which parts are in memory when, bytes read and at once, from sizes alone.

The runtime (`runtime.streamed`) follows this plan, and `llmconv size --streaming` prints it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from llmconv.convert.reports.shape import Shape
from llmconv.errors import UsageError
from llmconv.quant import plain
from llmconv.show import Shown

__all__ = ["EMBEDDING", "HEAD", "Sizes", "StreamingPlan", "TooLittle", "part_of", "plan_streaming", "sizes_of"]

EMBEDDING, HEAD = "embedding", "head"
"""The parts beside the layers, which have numbers: the matrix that tokens are looked up in, and that of the logits."""

_LAYER = re.compile(r"blk\.(\d+)\.")
_STACK = re.compile(r"blk\.\d+\.ffn_\w+_exps\.weight")
BATCH = 2048
"""Tokens that run together on a CPU, or one chunk, where that is longer."""
_TILE = 20 << 20
"""What a product widens weights into, and what reading them passes through."""
_LOGITS = 1 << 24
"""Logits at once."""


class TooLittle(UsageError):
    """A memory in which a model can't be run.   given: bytes.   least: how many it takes.   option: that gives them."""

    def __init__(self, given: int, least: int, option: str = "memory"):
        super().__init__(
            f"a memory of {given:,} bytes is too small for the largest part of this model; give at least {least:,} "
            f"(--{option})"
        )
        self.given, self.least = given, least


@dataclass(frozen=True)
class Sizes:
    """A model's tensors under canonical names.   shapes: of each.   stored: bytes that each takes in memory.

    width: bytes of a number that is computed.
    """

    shapes: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, int]
    width: int = 4

    @property
    def total(self) -> int:
        return sum(self.stored.values())


@dataclass(frozen=True)
class StreamingPlan(Shown):
    """How a model is run within `memory` bytes, which Python and torch themselves come on top of.

    resident: whether all weights stay in memory.   smallest: the least memory that such a run can have.
    ahead: whether a part is read while the one before runs.   apart: layers whose experts are read one by one.
    weights, work, states: the most bytes of weights, of a layer's or the head's inner results, and of the batches'
        states that are kept in memory.   scratch: bytes of states in a temporary file.
    together: batches that run through an expert at a time.   passes: how often the experts' layers are read.
    read: bytes of the file that are read.
    """

    memory: int
    resident: bool
    smallest: int
    ahead: bool
    apart: tuple[int, ...]
    weights: int
    work: int
    states: int
    scratch: int
    together: int
    passes: int
    read: int

    @property
    def peak(self) -> int:
        """The most bytes at once."""
        return self.weights + self.work + self.states


def part_of(name: str, tied: bool) -> tuple[int | str, ...]:
    """The parts that a tensor belongs to: a layer's number, the embedding, the head; none for what always stays."""
    found = _LAYER.match(name)
    if found:
        return (int(found[1]),)
    if name == "token_embd.weight":
        return (EMBEDDING, HEAD) if tied else (EMBEDDING,)
    return (HEAD,) if name == "output.weight" else ()


@dataclass
class _Parts:
    """Bytes of the parts: those that always stay, of each part, of a layer's experts, and of the largest single one."""

    always: int
    whole: dict[int | str, int]
    experts: dict[int, int]
    one: dict[int, int]

    def without_experts(self, part: int | str) -> int:
        return self.whole[part] - (self.experts.get(part, 0) if isinstance(part, int) else 0)


def plan_streaming(
    sizes: Sizes, memory: int, tokens: int = 0, context: int = 1, *, leave: bool = False, beside: int | None = None
) -> StreamingPlan:
    """The plan for a model within `memory` bytes.

    tokens: of the text, in chunks of `context`; 0: nobody knows yet, so that the plan is one for few.
    leave: the weights are left in the file whatever there is room for.   beside: bytes of what else is made of a layer,
        which then has to be there whole, experts and all; None: nothing.
    `TooLittle` where not even the largest part fits; it asks for what a batch of the usual size takes.
    """
    parts = _parts(sizes)
    if beside is not None:
        parts.experts.clear()
        parts.one.clear()
    usual = max(context, BATCH // context * context)
    batch = min(usual, tokens or 1)
    work = working_bytes(sizes, batch) + (beside or 0)
    width = sizes.shapes["token_embd.weight"][-1] if "token_embd.weight" in sizes.shapes else 1
    state = batch * width * sizes.width
    batches = -(-tokens // batch)
    if not leave and sizes.total + (work if tokens else working_bytes(sizes, usual)) <= memory:
        return StreamingPlan(memory, True, 0, False, (), sizes.total, work, 0, 0, batches, 1, sizes.total)
    room = memory - parts.always - work
    least = max((_least(parts, part) for part in parts.whole), default=0)
    smallest = parts.always + work + least + (8 * state if parts.one else state)
    if memory < smallest:
        if not tokens:
            more = (usual - batch) * width * sizes.width
            smallest += working_bytes(sizes, usual) - work + (8 * more if parts.one else more)
        raise TooLittle(memory, smallest)
    apart = tuple(i for i in parts.one if parts.whole[i] > room)
    ordered = [parts.without_experts(p) if p in apart else parts.whole[p] for p in _order(parts)]
    one = [parts.one[p] if p in apart else 0 for p in _order(parts)]
    pairs = [a + b + 2 * e for a, b, e in zip(ordered, [*ordered[1:], 0], one, strict=True)]
    ahead = max(pairs, default=0) <= room - 2 * state
    weights = max(pairs if ahead else [a + e for a, e in zip(ordered, one, strict=True)], default=0)
    left = max(room - weights, 0)
    together = max(1, min(batches, left // (2 * 6 * state))) if apart else 1
    passes = -(-batches // together) if apart else 1
    kept = min(batches * state, max(left - (6 * state * together if apart else state), 0) // state * state)
    held = sum(parts.whole.values()) - sum(parts.experts[i] for i in apart)
    read = parts.always + held + passes * sum(parts.experts[i] for i in apart)
    return StreamingPlan(
        memory, False, smallest, ahead, apart, parts.always + weights, work, kept, batches * state - kept, together,
        passes, read,
    )  # fmt: skip


def _order(parts: _Parts) -> list[int | str]:
    """As they are used."""
    layers = sorted(p for p in parts.whole if isinstance(p, int))
    return [p for p in (EMBEDDING, *layers, HEAD) if p in parts.whole]


def _least(parts: _Parts, part: int | str) -> int:
    if isinstance(part, int) and part in parts.one:
        return min(parts.whole[part], parts.without_experts(part) + parts.one[part])
    return parts.whole[part]


def _parts(sizes: Sizes) -> _Parts:
    tied = "output.weight" not in sizes.shapes
    always, whole = 0, defaultdict[int | str, int](int)
    experts, one = defaultdict[int, int](int), defaultdict[int, int](int)
    for name, nbytes in sizes.stored.items():
        own = part_of(name, tied)
        always += 0 if own else nbytes
        for part in own:
            whole[part] += nbytes
            if isinstance(part, int) and is_stack(name):
                experts[part] += nbytes
                one[part] += nbytes // sizes.shapes[name][0]
    return _Parts(always, dict(whole), dict(experts), dict(one))


def is_stack(name: str) -> bool:
    """Whether a tensor stacks experts' matrices, which can be read one by one."""
    return _STACK.fullmatch(name) is not None


def working_bytes(sizes: Sizes, batch: int) -> int:
    """About what a batch's results inside a layer, or the logits of a part of it, take: the larger one."""
    rows = defaultdict[str, int](int)
    width = vocabulary = 0
    for name, shape in sizes.shapes.items():
        found = _LAYER.match(name)
        if found and len(shape) > 1 and name.endswith(".weight"):
            rows[found[1]] += shape[-2]
        elif name == "token_embd.weight":
            vocabulary, width = shape
    inside = batch * sizes.width * (max(rows.values(), default=0) + 4 * width)
    logits = 3 * sizes.width * min(_LOGITS, batch * vocabulary)
    return max(inside, logits) + min(_TILE, math.ceil(sizes.total / 4))


def sizes_of(shape: Shape) -> Sizes:
    """What a model's tensors take in memory on a CPU, as `load` keeps them; matrices without a type as BF16."""
    stored = {}
    for name, dims in shape.tensors.items():
        kind = shape.stored.get(name, plain.BF16)
        wide = len(dims) < 2 or (kind.is_plain() and kind not in (plain.F32, plain.F16, plain.BF16))
        row = dims[-1] if dims else 1
        stored[name] = math.prod(dims[:-1]) * (plain.F32 if wide else kind).row_bytes(row)
    return Sizes(shape.tensors, stored)
