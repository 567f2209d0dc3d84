"""Calibrating a model whose weights are left in the file: a layer at a time, forward and back, with the same bits."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from llmconv.convert.reports.streaming import TooLittle
from llmconv.errors import UsageError
from llmconv.formats.tensor import Tensor as Stored
from llmconv.runtime.calibrate.shared import agreed_least, as_one, mine, several
from llmconv.runtime.calibrate.watching import layer_of, matrices
from llmconv.runtime.measure.chunks import Running, Source
from llmconv.runtime.model import Model
from llmconv.runtime.streamed.states import States
from llmconv.runtime.streamed.weights import Weights

__all__ = ["Back", "Between", "back_by_layers", "loaded", "prepare", "running", "there"]

_PIECE = 2048
_SEARCHED = 16
"""float32 of each weight that a search for better codes works with."""
_SUMS = 1 << 29
"""Of sums over a tensor's inputs: see `inputs._MOST_BYTES`."""
_GRADIENT = "gradient."
"""Of tensors that are kept of an interrupted run."""
_FACTORED = 40
"""Bytes of each number of a matrix of inputs while it is factored: a few float64 at a time."""


def loaded(how: Running, source: Source, standard: bool) -> Model:
    """A model to calibrate: in memory where there is room for what is made of it too, else left in its file.

    standard: whether the moments of its gradients are kept.
    """
    most = agreed_least(how.most())  # that all go the same way
    how = dataclasses.replace(how, memory=most)
    model = how.model(source)
    if isinstance(source, Model) or model.wants is not None or most is None or not model.decoder.layers_alone:
        return model
    own = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    moments = sum(4 * m.shape[-2] * min(m.shape[-2], 1024) for m in matrices(model).values()) if standard else 0
    moments += moments // several() if several() > 1 else 0  # what a batch adds, and a share of the sums
    if own + moments + _beside(model, 1) + own // 2 <= most:  # and the blocks that it becomes
        return model
    del model
    try:
        left = dataclasses.replace(how, memory=own - 1).model(source)
    except TooLittle:  # nearly all of it is one part
        return how.model(source)
    if isinstance(left.wants, Weights):
        left.wants.plan = dataclasses.replace(left.wants.plan, memory=most)
    return left


def prepare(model: Model, batches: Sequence[Tensor], jobs: int = 1) -> None:
    """Where weights are left in the file, plan for so many tokens and for what is made of a layer beside its results.

    `UsageError` for a model whose layers need each other, `TooLittle` for too little memory.
    """
    if not isinstance(model.wants, Weights):
        return
    if not model.decoder.layers_alone:
        raise UsageError(
            f"{model.where}: its layers hand each other more than states, so that it is calibrated with all weights in "
            "memory only; use a machine that has room for them, or --imatrix"
        )
    longest = max((batch.shape[1] for batch in batches), default=1)
    own = max((sum(batch.numel() for batch in batches[i :: several()]) for i in range(several())), default=0)
    model.wants.prepare(own, longest, _beside(model, jobs))


def _beside(model: Model, jobs: int) -> int:
    """About what rounding the largest tensor and the inputs of its layer take, or the gradients of a layer's rows."""
    tensor, sums, rows = 0, defaultdict[int, int](int), defaultdict[int, int](int)
    for name, module in matrices(model).items():
        count = module.shape[0] if len(module.shape) > 2 else 1
        height, width = module.shape[-2:]
        searched = _SEARCHED * 4 * jobs * min(height, _PIECE) * width + _FACTORED * jobs * width * width
        tensor = max(tensor, 8 * count * height * width + searched)
        layer = layer_of(name)
        sums[layer] += (1 if several() == 1 else 2) * min(4 * count * width * width, _SUMS)  # and what a batch adds
        rows[layer] += 3 * 4 * height * min(height, 1024) if layer >= 0 else 0
    return max(tensor + max(sums.values()), *rows.values())


class Between:
    """What a unit gives each of this process's batches, with the batch's tokens: in memory, or as far as a plan says in
    a file.   beside: whether there is another one, which has what the plan has room for."""

    def __init__(self, model: Model, batches: Sequence[Tensor], beside: bool = False):
        self._batches = batches
        self._states: States | None = None
        if isinstance(model.wants, Weights):
            self._states = States(0 if beside else model.wants.plan.states, model.device)
        self._here: dict[int, Tensor] = {}

    def begin(self, made: Callable[[Tensor], Tensor]) -> None:
        """What the first unit is given, of each batch's tokens."""
        self._each(lambda i: made(self._batches[i]))

    def before(self, i: int) -> tuple[int, int]:
        """How many tokens stand before a batch, and how many there are."""
        sizes = [batch.numel() for batch in self._batches]
        return sum(sizes[:i]), sum(sizes)

    def put(self, i: int, value: Tensor) -> None:
        if self._states is None:
            self._here[i] = value
        else:
            self._states.put(i, value)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return (self._here[i] if self._states is None else self._states.get(i)), self._batches[i]

    def __len__(self) -> int:
        """Of all processes' batches."""
        return len(self._batches)

    def advance(self, run: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Through the next unit."""
        self._each(lambda i: run(*self[i]))

    def _each(self, made: Callable[[int], Tensor]) -> None:
        def run() -> None:
            for i in mine(len(self)):
                self.put(i, made(i))

        as_one(run)

    def close(self) -> None:
        self._here.clear()
        if self._states is not None:
            self._states.close()


@contextlib.contextmanager
def running(model: Model, batches: Sequence[Tensor], jobs: int) -> Iterator[Between]:
    """Where a model's batches are while it is looked at, unit by unit; see `prepare`."""
    prepare(model, batches, jobs)
    states = Between(model, batches)
    try:
        yield states
    finally:
        states.close()
        if isinstance(model.wants, Weights):
            model.wants.rest()


def there(model: Model, part: int | str) -> None:
    """See that a part's weights are in the model."""
    if model.wants is not None:
        model.wants(part)


class Back:
    """Parts of a text on their way through the layers and back, this process's own; what went into each layer is kept,
    or its gradient."""

    def __init__(self, model: Model, weights: Weights, parts: Sequence[Tensor]):
        self.model, self.parts, self._weights = model, parts, weights
        self._states = States(weights.plan.states, model.device)

    def forward(self) -> None:
        as_one(self._forward)

    def _forward(self) -> None:
        own = mine(len(self.parts))
        for i in own:
            self._put(0, i, self._begun(i))
        for layer in range(len(self.model.blk)):
            for i in own:
                self._put(layer + 1, i, self._through(layer, i, self._entered(layer, i)))

    def at_the_end(self, i: int, gradient: Callable[[Tensor], Tensor]) -> None:
        """From the last layer's results of part `i` to their gradient; `gradient`: of what the head is given."""
        layer = len(self.model.blk)
        entered = self._entered(layer, i)
        hidden = self.model.end(entered)
        self._return(layer, i, entered, hidden, gradient(hidden.detach()))

    def back(self, layer: int, i: int) -> None:
        """From the gradient of what a layer gives to that of what it is given; -1: of the embedding."""
        self._weights.onward = -1
        if layer < 0:
            self._begun(i).backward(self._entered(0, i).detach())  # type: ignore[no-untyped-call]
            return
        entered = self._entered(layer, i)
        self._return(layer, i, entered, self._through(layer, i, entered), self._entered(layer + 1, i))

    def hidden(self, i: int) -> Tensor:
        """What the head is given of part `i`, after `forward`."""
        return self.model.end(self._entered(len(self.model.blk), i))

    def so_far(self, layer: int) -> Iterator[Stored]:
        """The gradients of what the layer is given, part by part, by one process alone."""
        for i in range(len(self.parts)):
            yield Stored.from_array(f"{_GRADIENT}{i}", self._entered(layer, i).detach())

    def go_on(self, done: int, kept: Mapping[str, Stored]) -> None:
        """From `so_far` of another time, when so many layers were done."""
        for i in range(len(self.parts)):
            value = torch.from_numpy(np.array(kept[f"{_GRADIENT}{i}"].numpy()))
            self._put(len(self.model.blk) - done, i, value.to(self._entered(0, i)))

    def _begun(self, i: int) -> Tensor:
        tokens = self.parts[i].to(self.model.device)
        return self.model.begin(tokens, self.model.step(tokens))

    def _through(self, layer: int, i: int, entered: Tensor) -> Tensor:
        return self.model.through(layer, entered, self.model.step(self.parts[i].to(self.model.device)))

    def _return(self, layer: int, i: int, entered: Tensor, given: Tensor, gradient: Tensor) -> None:
        given.backward(gradient.detach())  # type: ignore[no-untyped-call]
        assert entered.grad is not None
        self._put(layer, i, entered.grad)

    def _put(self, layer: int, i: int, value: Tensor) -> None:
        self._states.put(layer * len(self.parts) + i, value.detach())

    def _entered(self, layer: int, i: int) -> Tensor:
        return self._states.get(layer * len(self.parts) + i).detach().requires_grad_(True)


@contextlib.contextmanager
def back_by_layers(model: Model, weights: Weights, parts: Sequence[Tensor]) -> Iterator[Back]:
    run = Back(model, weights, parts)
    try:
        yield run
    finally:
        run._states.close()
        weights.onward = 1
        weights.rest()
