"""A layer in stages: matrices of one input are rounded together, before their results are made for those that follow.

Batches wait within the layer, so that each product is made once.  Of a model that is left in its file, whose memory is
for weights, they begin the layer again for each stage: the same numbers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from llmconv.runtime.calibrate.inputs import Inputs, Sums, inputs_of
from llmconv.runtime.calibrate.layered import Between
from llmconv.runtime.calibrate.shared import as_one, merged, mine, turns
from llmconv.runtime.calibrate.threads import by_turns
from llmconv.runtime.calibrate.units import Unit
from llmconv.runtime.calibrate.watching import often
from llmconv.runtime.checks import not_finite
from llmconv.runtime.linear import Linear
from llmconv.runtime.model import Model
from llmconv.runtime.products import forget_scratch
from llmconv.runtime.streamed.weights import Weights

__all__ = ["Stages", "Waiting", "may_wait", "stages_of"]

_MOST_BYTES = 1 << 29
"""Of batches that wait, beside a model that is smaller."""
_FEW = 16
"""Tokens that show the order of a layer's products."""


def stages_of(model: Model, unit: Unit, wanted: Sequence[str], states: Between) -> list[list[str]]:
    """Those of a unit's tensors that have one input, in the order of the computation; all in one stage where experts,
    or layers that are gone through twice, leave no such order."""
    found: list[list[str]] = []

    def look() -> None:
        if 0 in mine(len(states)):
            found.extend(_order(unit, wanted, *states[0]))

    if len(wanted) > 1 and model.decoder.layers_alone and not often(model):
        as_one(look)
    every = merged(dict(enumerate(found)))
    return [every[i] for i in range(len(every))] or [[*wanted]]


def _order(unit: Unit, wanted: Sequence[str], states: Tensor, tokens: Tensor) -> list[list[str]]:
    modules = {name: unit.modules[name] for name in wanted}
    if states.shape[:2] != tokens.shape or not all(isinstance(m, Linear) for m in modules.values()):
        return []
    called: list[str] = []
    order: list[tuple[str, Tensor]] = []

    def see(name: str, x: Tensor, y: Tensor | None, part: int | None) -> None:
        if name in modules and y is not None:
            order.append((name, x))

    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(_before(module, functools.partial(_noted, called, name)))
        unit.watched(states[:1, :_FEW], tokens[:1, :_FEW], see)
    if not sorted(called) == sorted(name for name, _ in order) == sorted(modules):
        return []
    found: list[list[str]] = []
    for i, (name, x) in enumerate(order):
        if i and order[i - 1][1] is x:
            found[-1].append(name)
        else:
            found.append([name])
    return found


def _noted(called: list[str], name: str, _: Tensor) -> None:
    called.append(name)


@contextlib.contextmanager
def _before(module: Any, told: Callable[[Tensor], Any]) -> Iterator[None]:
    """Within it `told` is given what the module is about to multiply."""
    handle = module.register_forward_pre_hook(lambda _, given: told(given[0]))
    try:
        yield
    finally:
        handle.remove()


def may_wait(model: Model, unit: Unit, states: Between) -> bool:
    """Whether memory has room for all batches within the unit at once."""
    if isinstance(model.wants, Weights):
        return False
    widest = max(module.shape[-1] for module in unit.modules.values())
    most = max(_MOST_BYTES, sum(t.nbytes for t in (*model.parameters(), *model.buffers())))
    return 4 * states.before(0)[1] * (model.decoder.dim + 2 * widest) <= most


class Stages:
    """Batches that begin a unit anew for each stage.   later: tensors at which a run has shown enough."""

    def __init__(self, model: Model, unit: Unit, states: Between, stages: Sequence[list[str]], later: Collection[str]):
        self.model, self.unit, self.states, self.stages, self._later = model, unit, states, stages, later

    def inputs(self, stage: int, weights: Mapping[str, Tensor]) -> dict[str, Inputs]:
        """What goes into the tensors of a stage, after those before have become what they are; as `inputs_of`."""
        until = {*self._later, *(name for names in self.stages[stage + 1 :] for name in names)}
        return inputs_of(self.model, self.unit, self.stages[stage], weights, self.states, until)

    def finish(self) -> None:
        """To what the unit gives."""
        self.states.advance(self.unit.run)

    def close(self) -> None:
        pass


class Waiting(Stages):
    """Batches that wait before each stage until it is rounded."""

    def __init__(self, model: Model, unit: Unit, states: Between, stages: Sequence[list[str]], later: Collection[str]):
        super().__init__(model, unit, states, stages, later)
        self._hooks = contextlib.ExitStack()
        for names in stages:
            self._hooks.enter_context(_before(unit.modules[names[0]], self._arrived))
        self._ways: dict[int, Generator[None, None, Tensor]] = {}
        self._rests: dict[int, Callable[[], None]] = {}
        self._here = 0
        self._sums: dict[str, Sums] = {}

    def inputs(self, stage: int, weights: Mapping[str, Tensor]) -> dict[str, Inputs]:
        names = self.stages[stage]
        alike = next((name for name in names if name not in weights), "")
        leaders = {name: name if name in weights else alike for name in names}
        self._sums = {
            name: Sums(1, self.unit.modules[name].shape[-1], weights.get(name), False)
            for name in names
            if leaders[name] == name
        }

        def run(i: int) -> None:
            if i not in self._ways:
                self._ways[i] = by_turns(lambda rest: self._begun(i, rest))
            for sums in self._sums.values():
                sums.begin(*self.states.before(i))
            self._here = i
            next(self._ways[i])

        for some in turns(len(self.states), run):
            for sums in self._sums.values():
                sums.ran(some)
        found = {name: sums.result() for name, sums in self._sums.items()}
        return {name: found[leader] for name, leader in leaders.items()}

    def _begun(self, i: int, rest: Callable[[], None]) -> Tensor:
        self._rests[i] = rest
        return self.unit.run(*self.states[i])

    def _arrived(self, x: Tensor) -> None:
        for name, sums in self._sums.items():
            if not sums.add(x, 0):
                raise not_finite(self.model, f"the inputs of {name!r}", bool(x.isnan().any()))
        forget_scratch()  # of this thread
        self._rests[self._here]()

    def finish(self) -> None:
        def run() -> None:
            for i in mine(len(self.states)):
                try:
                    next(self._ways[i])
                except StopIteration as end:
                    self.states.put(i, end.value)

        as_one(run)

    def close(self) -> None:
        """Wherever they are."""
        for way in self._ways.values():
            way.close()
        self._hooks.close()
