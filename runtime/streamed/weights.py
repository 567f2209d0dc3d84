"""A model's weights in its file, of which one part at a time is in memory, and the next is being read."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmconv.convert.reports.streaming import (
    EMBEDDING,
    HEAD,
    Sizes,
    StreamingPlan,
    is_stack,
    part_of,
    plan_streaming,
)
from llmconv.formats.moving.rows import take
from llmconv.formats.tensor import Tensor as Stored
from llmconv.runtime.linear import ExpertLinear
from llmconv.runtime.model import Model
from llmconv.runtime.reading import fill_tensor, put, slots_of, tensor_of
from llmconv.runtime.streamed.lane import Lane

__all__ = ["Weights"]

Part = int | str
Values = dict[str, Tensor]
Piece = tuple[Part, int | None]
"""A part, or one expert of a layer."""


@dataclass(frozen=True)
class _Slot:
    """A parameter's or buffer's place in the model, and where its numbers are."""

    module: torch.nn.Module
    part: str
    source: Stored
    empty: Tensor


class Weights:
    """Puts the part that a model wants into it, and takes the one before out.

    model: built without storage; the parts that the plan keeps are filled here.   tensors: by canonical name.
    A reader thread fetches what is expected next; a part goes into the memory of one that is no longer used.
    """

    def __init__(
        self,
        model: Model,
        tensors: Mapping[str, Stored],
        device: torch.device,
        sizes: Sizes,
        plan: StreamingPlan,
    ):
        self.plan, self.device, self._sizes = plan, device, sizes
        self._every: dict[str, _Slot] = {}
        self._tied = "output.weight" not in tensors
        for name, (module, part) in slots_of(model).items():
            empty = getattr(module, part)
            source = tensor_of(tensors, name)
            if part_of(name, self._tied):
                self._every[name] = _Slot(module, part, source, empty)
            else:
                put(module, part, fill_tensor(source, torch.empty(empty.shape, dtype=empty.dtype, device=device)))
        self._slots: dict[Part, dict[str, _Slot]] = {}
        self._stacks: dict[int, dict[str, _Slot]] = {}
        self._order: list[Part] = [EMBEDDING, *range(len(model.blk)), HEAD]
        self.onward = 1
        """Where the next part lies: 1, or -1 on the way back through the layers."""
        self._now: Part | None = None
        self._held: dict[bool, Values] = {}
        self._experts: tuple[Piece, Values] | None = None
        self._ahead: dict[bool, tuple[Piece, Future[tuple[Values, Any]]]] = {}
        self._free: dict[bool, list[Tensor]] = {False: [], True: []}
        self._lane = Lane(device) if device.type == "cuda" else None
        self._reader = ThreadPoolExecutor(1, "llmconv-read")
        self._arrange()

    def prepare(self, tokens: int, context: int, beside: int | None = None) -> None:
        """Plan for so many tokens, in rows of at most `context`.   beside: see `plan_streaming`."""
        self.rest()
        self.plan = plan_streaming(self._sizes, self.plan.memory, tokens, context, leave=True, beside=beside)
        self._arrange()

    def _arrange(self) -> None:
        """Sort the tensors by the parts that they come with."""
        self._slots.clear()
        self._stacks.clear()
        for name, slot in self._every.items():
            for where in part_of(name, self._tied):
                module, apart = slot.module, where in self.plan.apart and is_stack(name)
                if isinstance(module, ExpertLinear) and slot.part == "weight":
                    module.one = functools.partial(self._expert, int(where), name) if apart else None
                (self._stacks if apart else self._slots).setdefault(where, {})[name] = slot  # type: ignore[arg-type]

    def __call__(self, part: Part) -> None:
        """See that `part` is in the model, and nothing else of what comes and goes."""
        if part == self._now:
            return
        self._drop()
        values = self._taken((part, None))
        for name, slot in self._slots.get(part, {}).items():
            put(slot.module, slot.part, values[name])
        self._now, self._held[False] = part, values
        at = self._order.index(part) + self.onward
        if self.plan.ahead and 0 <= at < len(self._order):
            self._expect((self._order[at], None))

    def experts_of(self, layer: int) -> int:
        """How many experts of a layer are read one by one; 0 where they are read with it."""
        return max((slot.empty.shape[0] for slot in self._stacks.get(layer, {}).values()), default=0)

    def expect(self, layer: int, expert: int) -> None:
        """The expert that will be wanted next, once the one in use is known."""
        if self.plan.ahead:
            self._expect((layer, expert))

    def rest(self) -> None:
        """Take everything out and let go of the memory."""
        self._drop()
        for kind in list(self._ahead):
            _, future = self._ahead.pop(kind)
            if not future.cancel():
                wait((future,))
        self._free = {False: [], True: []}

    def _expert(self, layer: int, name: str, expert: int) -> Tensor:
        """The stored matrix of one expert; its other matrices come with it."""
        piece: Piece = (layer, expert)
        if self._experts is None or self._experts[0] != piece:
            if self._experts is not None:
                self._free[True] += self._experts[1].values()
                self._experts = None
            self._experts = (piece, self._taken(piece))
        return self._experts[1][name]

    def _drop(self) -> None:
        """What was wanted goes, and its memory is for what comes."""
        if self._now is None:
            return
        for slot in self._slots.get(self._now, {}).values():
            put(slot.module, slot.part, slot.empty)
        self._free[False] += self._held.pop(False, {}).values()
        if self._experts is not None:
            self._free[True] += self._experts[1].values()
            self._experts = None
        self._now = None

    def _taken(self, piece: Piece) -> Values:
        """A piece's numbers: those that were read ahead, or read now."""
        kind = piece[1] is not None
        expected = self._ahead.pop(kind, None)
        if expected is not None:
            found = self._arrived(expected[1].result())
            if expected[0] == piece:
                return found
            self._free[kind] += found.values()
        return self._arrived(self._read(piece, *self._places(piece)))

    def _expect(self, piece: Piece) -> None:
        kind = piece[1] is not None
        if kind in self._ahead:
            return
        self._ahead[kind] = (piece, self._reader.submit(self._read, piece, *self._places(piece)))

    def _wanted(self, piece: Piece) -> dict[str, _Slot]:
        part, expert = piece
        return self._slots.get(part, {}) if expert is None else self._stacks[int(part)]

    @torch.inference_mode(False)  # memory goes from what runs the model to the reader, which is in no such mode
    def _places(self, piece: Piece) -> tuple[Values, Any]:
        """Memory for a piece, that of others which are no longer used where it fits; and when it is free."""
        expert = piece[1] is not None
        rooms, self._free[expert] = self._free[expert], []
        free: dict[Any, list[Tensor]] = {}
        for room in rooms:
            free.setdefault((room.shape, room.dtype), []).append(room)
        keys = {(slot.empty.shape[expert:], slot.empty.dtype) for slot in self._wanted(piece).values()}
        free = {key: some for key, some in free.items() if key in keys}
        del rooms  # what does not fit goes before anything new is asked for
        found: Values = {}
        for name, slot in self._wanted(piece).items():
            shape, dtype = slot.empty.shape[expert:], slot.empty.dtype
            same = free.get((shape, dtype))
            found[name] = same.pop() if same else torch.empty(shape, dtype=dtype, device=self.device)
        return found, None if self._lane is None else self._lane.after(found.values())

    @torch.inference_mode(False)
    @torch.no_grad()
    def _read(self, piece: Piece, places: Values, free: Any) -> tuple[Values, Any]:
        """The places with a piece's numbers; and when they are there, of a device that computes meanwhile."""
        lane = self._lane
        if lane is None:
            for name, source in self._sources(piece):
                fill_tensor(source, places[name])
            return places, None
        with lane.copying(free):
            for name, source in self._sources(piece):
                fill_tensor(source, places[name], lane.copied)
            return places, lane.done()

    def _sources(self, piece: Piece) -> Iterator[tuple[str, Stored]]:
        """A piece's tensors in the file, by name."""
        expert = piece[1]
        for name, slot in self._wanted(piece).items():
            source = slot.source
            if expert is not None:
                rows = source.n_rows // source.shape[0]
                source = take(source, expert * rows, rows, source.shape[1:])
            yield name, source

    def _arrived(self, read: tuple[Values, Any]) -> Values:
        found, done = read
        if self._lane is not None:
            self._lane.use(done)
        return found
