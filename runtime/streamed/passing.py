"""Batches of tokens through a model: one after the other where it is in memory, else all of them through each layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from torch import Tensor

from llmconv.progress import Meter, Progress
from llmconv.runtime.cache import Step
from llmconv.runtime.layers.mlp import Mixture
from llmconv.runtime.model import Block, Model
from llmconv.runtime.streamed.states import States
from llmconv.runtime.streamed.weights import Weights

__all__ = ["Passed"]


class Passed:
    """What the last layer gives for each batch, as `Model.hidden` does, bit for bit.

    batches: (rows, tokens) int64 ids each.   kinds: types of the tokens, where a model has such.
    """

    def __init__(
        self,
        model: Model,
        batches: Iterable[Tensor],
        progress: Progress | None = None,
        kinds: Sequence[Tensor | None] | None = None,
    ):
        self._model, self._kinds = model, kinds
        self._states: States | None = None
        self._batches: Sequence[Tensor] = list(batches)
        if isinstance(model.wants, Weights):
            alone = model.device.type == "cpu"  # on a GPU more run together than the plan takes for granted
            longest = max((batch.shape[1] if alone else batch.numel() for batch in self._batches), default=1)
            model.wants.prepare(sum(batch.numel() for batch in self._batches), longest)
            if not (model.decoder.layers_alone or model.decoder.recurrent is not None):
                return  # layers hand each other more than states: each batch goes through all of them
            self._pass(model.wants, Meter(progress, "layers", len(model.blk), "layers"))

    def hidden(self, i: int) -> Tensor:
        """(rows, tokens, dim) of batch `i`, on the model's device."""
        if self._states is not None:
            return self._model.end(self._states.get(i))
        return self._model.hidden(self._batches[i].to(self._model.device), kinds=self._kind(i))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Forget what was kept."""
        if self._states is not None:
            self._states.close()
        if isinstance(self._model.wants, Weights):
            self._model.wants.rest()

    def _kind(self, i: int) -> Tensor | None:
        return None if self._kinds is None else self._kinds[i]

    def _pass(self, weights: Weights, meter: Meter) -> None:
        model = self._model
        states = self._states = States(weights.plan.states, weights.device)
        try:
            for i, tokens in enumerate(self._batches):
                ids = tokens.to(weights.device)
                states.put(i, model.begin(ids, self._step(i), self._kind(i)))
            for layer in range(len(model.blk)):
                if weights.experts_of(layer) and not _apart(model, layer):
                    self._by_experts(layer, weights, states)
                else:
                    for i in range(len(self._batches)):
                        states.put(i, model.through(layer, states.get(i), self._step(i)))
                meter(1)
        except BaseException:
            self.__exit__()
            raise

    def _step(self, i: int) -> Step:
        return self._model.step(self._batches[i].to(self._model.device))

    def _by_experts(self, layer: int, weights: Weights, states: States) -> None:
        """A layer whose experts come one by one: each is met by as many batches as there is room for."""
        weights(layer)
        block = self._model.blk[layer]
        assert isinstance(block, Block)
        together = weights.plan.together
        for first in range(0, len(self._batches), together):
            some = range(first, min(first + together, len(self._batches)))
            halves = [block.before_mlp(states.get(i), self._step(i)) for i in some]
            mixtures = [
                Mixture(block, half.normed, half.entered, tokens=half.tokens)
                for half in halves
                if half.normed is not None
            ]
            used = sorted({expert for mixture in mixtures for expert in mixture.used})
            for expert, then in zip(used, [*used[1:], None], strict=True):
                for mixture in mixtures:
                    if expert in mixture.used:
                        mixture.add(expert)
                        if then is not None:
                            weights.expect(layer, then)
            for i, half, mixture in zip(some, halves, mixtures, strict=True):
                states.put(i, block.after_mlp(half, mixture.result()))


def _apart(model: Model, layer: int) -> bool:
    """Whether a layer's experts stand beside a dense feed-forward, with norms of their own (Gemma 4)."""
    mlp = model.decoder.layers[layer].mlp
    return mlp is not None and mlp.apart
