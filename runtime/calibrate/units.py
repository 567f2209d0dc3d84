"""A model taken apart into units that run one after the other.

A unit is a layer; a model whose layers need more than what the one before gives is one unit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmconv.runtime.calibrate.watching import Watcher, layer_of, matrices, watching
from llmconv.runtime.linear import Stored
from llmconv.runtime.model import Model

__all__ = ["Unit", "embedded", "groups", "units"]


class _Enough(Exception):
    """What was wanted of a unit has been computed."""


@dataclass(frozen=True)
class Unit:
    """name: in words.   modules: its matrices, by tensor name.   run: from the states of a batch to the next unit's."""

    name: str
    modules: Mapping[str, Stored]
    run: Callable[[Tensor, Tensor], Tensor]

    def watched(self, states: Tensor, tokens: Tensor, seen: Watcher, ending: str | None = None) -> None:
        """Run it for what is seen; `seen` may raise `StopIteration` when it has what it wants.

        ending: a linear layer whose inputs are the last that are wanted: its product is not made.
        """

        def guarded(*given: Any) -> None:
            try:
                seen(*given)
            except StopIteration:
                raise _Enough from None

        with watching(self.modules, guarded), _ended(self.modules.get(ending or ""), ending or "", seen):
            try:
                self.run(states, tokens)
            except _Enough:
                return


@contextlib.contextmanager
def _ended(module: Stored | None, name: str, seen: Watcher) -> Iterator[None]:
    """Within it a run ends where this module is about to multiply what it is given."""

    def enough(_: Any, given: tuple[Tensor, ...]) -> None:
        seen(name, given[0], given[0], None)
        raise _Enough

    handle = None if module is None else module.register_forward_pre_hook(enough)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def units(model: Model) -> Iterator[Unit]:
    """The units, in order; states are what the embedding gives, then what each unit gives, (rows, tokens, dim)."""
    found = matrices(model)
    head = {n: m for n, m in found.items() if not n.startswith("blk.")}
    if not model.decoder.layers_alone:
        layers = {n: m for n, m in found.items() if n.startswith("blk.")}
        yield Unit("layers", layers, lambda _, tokens: model.hidden(tokens.to(model.device)))
        yield Unit("output", head, lambda states, _: _headed(model, states))
        return
    for i in range(len(model.blk)):
        own = {n: m for n, m in found.items() if n.startswith(f"blk.{i}.")}
        yield Unit(f"layer {i}", own, functools.partial(_layer, model, i))
    yield Unit("output", head, lambda states, _: _headed(model, model.end(states)))


def _layer(model: Model, layer: int, states: Tensor, tokens: Tensor) -> Tensor:
    return model.through(layer, states, model.step(tokens.to(model.device)))


def _headed(model: Model, states: Tensor) -> Tensor:
    """The head's products, a few rows at a time; its logits are not kept."""
    for part in torch.split(states.flatten(0, 1), max(1, (1 << 24) // model.decoder.vocab_size)):
        model.head(part)
    return states


def embedded(model: Model, tokens: Tensor) -> Tensor:
    """What the first unit is given."""
    if not model.decoder.layers_alone:
        return tokens
    tokens = tokens.to(model.device)
    return model.begin(tokens, model.step(tokens))


def groups(unit: Unit) -> list[list[str]]:
    """The names of the unit's matrices, those of a layer together, in the order of the layers."""
    found: dict[int, list[str]] = {}
    for name in unit.modules:
        found.setdefault(layer_of(name), []).append(name)
    return [found[layer] for layer in sorted(found)]
