"""Layer by layer: each matrix is rounded for the inputs that it will get, from layers that are rounded already."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmconv.convert.reports.streaming import EMBEDDING as WORDS, HEAD
from llmconv.formats.writing.scratch import Rows, Scratch
from llmconv.formats.writing.stream import threads
from llmconv.progress import Meter
from llmconv.quant import gpu
from llmconv.quant.block import BlockType, Bytes
from llmconv.quant.rounding.groups import stored_as
from llmconv.runtime.calibrate.gradients import EMBEDDING, Gradients
from llmconv.runtime.calibrate.inputs import Inputs, inputs_of
from llmconv.runtime.calibrate.kept import Rounds
from llmconv.runtime.calibrate.layered import Between, running, there
from llmconv.runtime.calibrate.matrices import (
    LONG,
    SHORT,
    Rounded,
    ToRound,
    losses_of_blocks,
    plain_losses,
    round_tensors,
)
from llmconv.runtime.calibrate.stages import Stages, Waiting, may_wait, stages_of
from llmconv.runtime.calibrate.targets import Shift, aimed, shifts_of
from llmconv.runtime.calibrate.threads import given_back, one_thread
from llmconv.runtime.calibrate.units import Unit, embedded, groups, units
from llmconv.runtime.calibrate.watching import layer_of
from llmconv.runtime.linear import Stored
from llmconv.runtime.model import Model
from llmconv.runtime.products import dense
from llmconv.runtime.streamed.weights import Weights

__all__ = ["Calibrated", "compare_losses", "losses_of", "round_model"]

T = TypeVar("T")
Floats = NDArray[np.float32]
Kinds = Mapping[str, type[BlockType]]
Offers = Mapping[str, Sequence[type[BlockType]]]


@dataclass(frozen=True)
class Calibrated:
    """What is known of a text.   batches: (rows, tokens) ids each.   gradients: over the same tokens, or of nothing.
    longer: whether rounding by it may take several times as long."""

    batches: Sequence[Tensor]
    gradients: Gradients
    longer: bool = False

    def to_round(self, name: str, module: Stored, kind: type[BlockType], inputs: Inputs) -> ToRound:
        """A tensor with what is known of it."""
        shape = module.shape if len(module.shape) > 2 else (1, *module.shape)
        rows = functools.partial(_rows_of, module)
        return ToRound((shape[0], shape[1], shape[2]), rows, kind, inputs, self.gradients.rows.get(name))


@dataclass
class _Pass:
    """A model on its way from float to rounded.   kinds: the type of each tensor to round.   found: those done."""

    model: Model
    known: Calibrated
    kinds: Kinds
    jobs: int
    meter: Meter
    found: dict[str, Rounded]
    scratch: Scratch | None
    """Where blocks are put aside of a model that memory has no room for."""
    kept: Rounds | None = None
    done: dict[str, Rounded] = field(default_factory=dict)
    """Of an earlier run."""
    exact: Between | None = None
    """The float model's states, where rounded layers are to give what its do."""
    shifts: dict[str, Shift] = field(default_factory=dict)

    def redo(self, modules: Mapping[str, Stored]) -> bool:
        """Whether an earlier run is done with these (of one layer, or the embedding), which they then become."""
        if self.kept is None or next(iter(modules)) not in self.kept.complete:
            return False
        first = next(iter(modules))
        if first != EMBEDDING:
            there(self.model, _part(first))
        for name, module in modules.items():
            if name in self.done:
                made = self.found[name] = self.done[name]
                replace(module, self.kinds[name], made.blocks)
                self.meter(math.prod(module.shape), f"{name}, already done")
        return True

    def settle(self, first: str) -> None:
        """Note that this run is done with the tensors of which `first` is the first."""
        if self.kept is not None:
            self.kept.settle(first)

    def round(self, inputs: Mapping[str, Inputs], modules: Mapping[str, Stored]) -> None:
        """Round tensors of a layer, and let the model go on with what they have become."""
        tensors = [self.known.to_round(name, modules[name], self.kinds[name], inputs[name]) for name in inputs]
        shifted = [self.shifts.pop(name, None) for name in inputs]
        tensors = [t if s is None else aimed(t, s) for t, s in zip(tensors, shifted, strict=True)]
        search = LONG if self.known.longer else SHORT
        with contextlib.closing(round_tensors(tensors, self.jobs, search)) as made_of:
            for name, made in zip(inputs, made_of, strict=True):
                replace(modules[name], self.kinds[name], made.blocks)
                self.found[name] = made if self.scratch is None else made.aside(self.scratch)
                if self.kept is not None:
                    self.kept.add(name, made)
                self.meter(math.prod(modules[name].shape), name)


def replace(module: Stored, kind: type[BlockType], blocks: Bytes | Rows) -> None:
    """Give a module blocks in place of what it holds; their numbers where the device can't decode them."""
    device, kind = module.weight.device, stored_as(kind)
    decoded = device.type != "cpu" and kind.name not in gpu.DECODERS
    whole = np.array(blocks[:])
    stored = torch.from_numpy(kind.decode(whole) if decoded else whole)
    module._parameters.pop("weight", None)
    module._buffers.pop("weight", None)
    module.block_type = None if decoded else kind
    module.register_buffer("weight", stored.view(*module.shape[:-1], -1).to(device))


@torch.inference_mode()
def round_model(
    model: Model, known: Calibrated, kinds: Kinds, jobs: int | None, meter: Meter, kept: Rounds | None = None
) -> dict[str, Rounded]:
    """Round the tensors of `kinds` in a loaded float model, which is changed to what they become; by tensor name.

    kept: what an earlier run has rounded, and where this one's is kept.
    Tensors that no token of the calibration went through are not among the results.
    """
    streamed = isinstance(model.wants, Weights)
    run = _Pass(model, known, kinds, threads(jobs), meter, {}, Scratch() if streamed else None, kept)
    run.done = {} if kept is None else kept.found()
    with one_thread(), running(model, known.batches, threads(jobs)) as states:
        if known.longer and model.decoder.layers_alone:
            run.exact = Between(model, known.batches, beside=True)
            run.exact.begin(lambda tokens: embedded(model, tokens))
        _embedding(run)
        states.begin(lambda tokens: embedded(model, tokens))
        for unit, onward in _until(model, run.kinds.keys() - run.found.keys()):
            if run.exact is not None:
                run.shifts = shifts_of(unit, run.kinds.keys() & unit.modules, known.gradients.tokens, run.exact, states)
                if onward:
                    run.exact.advance(unit.run)
            _unit(run, unit, states, onward)
            given_back()
        if run.exact is not None:
            run.exact.close()
    return run.found


def _rows_of(module: Stored, matrix: int, rows: slice) -> Floats:
    weight = module.weight[matrix, rows] if len(module.shape) > 2 else module.weight[rows]
    values: Floats = dense(weight, module.block_type, torch.float32).detach().cpu().numpy()
    return values


def losses_of(model: Model, known: Calibrated, kinds: Offers, jobs: int | None, meter: Meter) -> dict[str, list[float]]:
    """What rounding each tensor plainly to each of its types is predicted to cost, all others being exact."""

    def look(names: Sequence[str], tensors: Sequence[ToRound]) -> Iterator[list[float]]:
        return plain_losses(tensors, [kinds[name] for name in names], threads(jobs))

    with running(model, known.batches, threads(jobs)) as states:
        return _of_each(model, known, {name: offered[0] for name, offered in kinds.items()}, look, meter, states)


def compare_losses(
    model: Model, known: Calibrated, kinds: Kinds, made: Mapping[str, Rounded], jobs: int | None, meter: Meter
) -> dict[str, tuple[float, float]]:
    """What tensors rounded plainly and as they are made are predicted to cost on other batches, each alone."""

    def look(names: Sequence[str], tensors: Sequence[ToRound]) -> Iterator[tuple[float, float]]:
        plain = [made[name].plainly(t.numbers(), t.kind).blocks for name, t in zip(names, tensors, strict=True)]
        own = (plain, [made[name].blocks for name in names])
        return zip(*(losses_of_blocks(tensors, blocks, threads(jobs)) for blocks in own), strict=True)

    with running(model, known.batches, threads(jobs)) as states:
        return _of_each(model, known, {name: kinds[name] for name in made}, look, meter, states)


@torch.inference_mode()
def _of_each(
    model: Model,
    known: Calibrated,
    kinds: Kinds,
    look: Callable[[Sequence[str], Sequence[ToRound]], Iterator[T]],
    meter: Meter,
    states: Between,
) -> dict[str, T]:
    """What is found of the tensors of `kinds`, layer by layer, in a model that stays as it is."""
    found: dict[str, T] = {}
    metric = known.gradients.embedding_metric()

    def add(modules: Mapping[str, Stored], inputs: Mapping[str, Inputs]) -> None:
        tensors = [known.to_round(name, modules[name], kinds[name], inputs[name]) for name in inputs]
        for name, item in zip(inputs, look([*inputs], tensors), strict=True):
            found[name] = item
            meter(math.prod(modules[name].shape), name)

    with one_thread():
        if EMBEDDING in kinds and metric is not None:
            there(model, WORDS)
            add({EMBEDDING: model.token_embd}, {EMBEDDING: _at_rows(metric, known)})
        states.begin(lambda tokens: embedded(model, tokens))
        for unit, onward in _until(model, kinds.keys() - found.keys()):
            for own, later in _layers(model, unit):
                wanted = [name for name in own if name in kinds and name not in found]
                add(unit.modules, _inputs(model, known, unit, wanted, later, states))
            if onward:
                states.advance(unit.run)
            given_back()
    return found


def _until(model: Model, wanted: Collection[str]) -> Iterator[tuple[Unit, bool]]:
    """The units up to the last that has any of those tensors, each with whether another follows."""
    every = [*units(model)]
    last = max((i for i, unit in enumerate(every) if any(name in wanted for name in unit.modules)), default=-1)
    for i, unit in enumerate(every[: last + 1]):
        yield unit, i < last


def _embedding(run: _Pass) -> None:
    """The token embedding, in the metric of the gradients at its rows; plainly where those are not known."""
    metric = run.known.gradients.embedding_metric()
    if EMBEDDING in run.kinds and metric is not None:
        there(run.model, WORDS)
        if run.redo({EMBEDDING: run.model.token_embd}):
            return
        run.round({EMBEDDING: _at_rows(metric, run.known)}, {EMBEDDING: run.model.token_embd})
        run.settle(EMBEDDING)


def _at_rows(metric: Tensor, known: Calibrated) -> Inputs:
    """The embedding's metric, in the place of inputs."""
    return Inputs([metric.float()], [sum(batch.numel() for batch in known.batches)])


def _unit(run: _Pass, unit: Unit, states: Between, onward: bool) -> None:
    """Round a unit's tensors; `states` become what it gives, if another one follows."""
    finish: Callable[[], None] = functools.partial(states.advance, unit.run)
    with contextlib.ExitStack() as stack:
        for names, later in _layers(run.model, unit):
            if run.redo({name: unit.modules[name] for name in names}):
                continue
            wanted = [name for name in names if name in run.kinds and name not in run.found]
            if wanted:
                way = stack.enter_context(contextlib.closing(_way(run, unit, wanted, later, states)))
                for i in range(len(way.stages)):
                    found = way.inputs(i, run.known.gradients.tokens)
                    run.round(_reached(run.model, found), unit.modules)
                finish = way.finish
            run.settle(names[0])
        if onward:
            finish()


def _way(run: _Pass, unit: Unit, wanted: list[str], later: Collection[str], states: Between) -> Stages:
    """How batches go through a unit; as one stage where whole layers are to give what the float model's do."""
    stages = [wanted] if run.exact is not None else stages_of(run.model, unit, wanted, states)
    kind = Waiting if len(stages) > 1 and may_wait(run.model, unit, states) else Stages
    return kind(run.model, unit, states, stages, later)


def _layers(model: Model, unit: Unit) -> Iterator[tuple[list[str], set[str]]]:
    """The tensors of each of a unit's layers, and those at which a run has seen all that goes into them."""
    layers = groups(unit)
    for i, names in enumerate(layers):
        yield names, set() if model.decoder.cycles else {name for layer in layers[i + 1 :] for name in layer}


def _inputs(
    model: Model, known: Calibrated, unit: Unit, wanted: Sequence[str], later: Collection[str], states: Between
) -> dict[str, Inputs]:
    """What goes into those tensors of a layer that are wanted; see `_reached`."""
    if not wanted:
        return {}
    return _reached(model, inputs_of(model, unit, wanted, known.gradients.tokens, states, later))


def _reached(model: Model, found: Mapping[str, Inputs]) -> dict[str, Inputs]:
    """Of those tensors, which are seen to be in the model, the ones that not only zeros go through."""
    for name in [*found][:1]:
        there(model, _part(name))  # in a process that has no batches too
    return {name: own for name, own in found.items() if any(bool(h.diagonal().any()) for h in own.h)}


def _part(name: str) -> int | str:
    """The part of a model that a matrix comes with."""
    layer = layer_of(name)
    return HEAD if layer < 0 else layer
