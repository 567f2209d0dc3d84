"""What an error in each matrix's results would cost: the squared gradients of the loss, over a text.

The loss is the model's own cross entropy with labels drawn from its predictions, so that the mean of g g' is the Fisher
information: ½ e' E[g g'] e is the KL divergence that a small error e makes (Martens 2020, arXiv:1412.1193).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llmconv.formats.tensor import Tensor as Stored
from llmconv.formats.writing.scratch import Rows, Scratch
from llmconv.progress import Meter
from llmconv.quant.plain import F32
from llmconv.runtime.calibrate.collecting import name_of_experts
from llmconv.runtime.calibrate.layered import back_by_layers
from llmconv.runtime.calibrate.moments import add_moments, moments
from llmconv.runtime.calibrate.threads import given_back
from llmconv.runtime.calibrate.watching import matrices, watching
from llmconv.runtime.checks import not_finite
from llmconv.runtime.model import Model
from llmconv.runtime.sampling import generator_of
from llmconv.runtime.streamed.weights import Weights

__all__ = ["EMBEDDING", "Gradients", "drawn", "gather", "row_groups"]

EMBEDDING = "token_embd.weight"
_MOST_ROWS = 1024
"""Rows whose gradients' products are kept; a matrix with more is cut into groups of equal size."""


_MOST_BYTES = 1 << 28
"""Of what a backward pass keeps, as far as more than one row takes."""
_MOST_LOGITS = 1 << 23


@dataclass
class Gradients:
    """By tensor name, over N tokens:

    tokens: (N,) float32, the mean squared gradient of each token's results; not of experts, whose tokens may change.
    rows: one matrix E[g g'] for each of `row_groups`, float32, in memory or where they lie; of the embedding and the
        head one vector, how much each row counts: how often a token comes, and the mean of p (1 - p).
    embedding: (dim, dim) E[g g'] at the token embedding's rows.   head: (dim, dim) of a tied head's inputs, weighted.
    """

    tokens: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, list[Stored]] = field(default_factory=dict)
    embedding: Tensor | None = None
    head: Tensor | None = None

    def of_rows(self, name: str) -> list[Tensor] | None:
        """The matrices (or the vector) of a tensor's rows; None where they are not known."""
        found = self.rows.get(name)
        return None if found is None else [torch.from_numpy(np.array(part.numpy())) for part in found]

    def embedding_metric(self) -> Tensor | None:
        """What errors of the embedding's rows cost, (dim, dim): as inputs, and where it is the head too, as results."""
        return self.embedding if self.embedding is None or self.head is None else self.embedding + self.head


def row_groups(rows: int) -> list[slice]:
    """The rows of a matrix in groups of at most 1024, of equal size where that is possible."""
    count = -(-rows // _MOST_ROWS)
    size = -(-rows // count)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def gather(model: Model, batches: Sequence[Tensor], seed: int, meter: Meter) -> Gradients:
    """Run batches (rows, tokens) forward and back.   seed: of the labels that are drawn."""
    tokens = sum(t.numel() for t in batches)
    found, generator = _Gathering(model, tokens), generator_of(seed)
    model.token_embd.watch_rows = found.embedded
    parts = list(_parts(model, batches))
    try:
        with _weights_fixed(model), torch.enable_grad(), watching(matrices(model), found.seen):
            if isinstance(model.wants, Weights):
                with back_by_layers(model, model.wants, parts) as run:
                    run.forward()
                    for i, part in enumerate(parts):
                        run.at_the_end(i, lambda hidden: found.at_the_head(hidden, generator))
                        meter(len(part), "gradients")
                    run.back(found.settle)
            else:
                found.room = {n: _squares(m.shape[-2]) for n, m in matrices(model).items() if n not in found.heads}
                for part in parts:
                    hidden = model.hidden(part.to(model.device))
                    hidden.backward(found.at_the_head(hidden.detach(), generator))  # type: ignore[no-untyped-call]
                    meter(len(part), "gradients")
    finally:
        model.token_embd.watch_rows = None
    found.room.clear()
    found.logits.clear()
    result = found.result()
    given_back()
    often = torch.bincount(torch.cat([t.flatten() for t in batches]).cpu(), minlength=model.decoder.vocab_size)
    result.rows[EMBEDDING] = [Stored.from_array(EMBEDDING, (often / often.sum()).numpy())]
    return result


def _parts(model: Model, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """Rows that run together: as many as what a backward pass keeps of them has room for, at least one."""
    numbers = 2 * sum(sum(module.shape[-2:]) for module in matrices(model).values())
    for tokens in batches:
        yield from torch.split(tokens, max(1, _MOST_BYTES // (4 * numbers * tokens.shape[1])))


def drawn(chances: Tensor, generator: torch.Generator, room: Tensor | None = None) -> Tensor:
    """A label (N,) for each row of chances (N, labels): where its sum reaches a number drawn below one.

    room: as `chances`, for their sums.
    """
    sums = torch.cumsum(chances, -1, out=torch.empty_like(chances) if room is None else room)
    height = torch.rand(len(chances), 1, generator=generator).to(chances.device) * sums[:, -1:]
    found: Tensor = torch.searchsorted(sums, height)[:, 0]
    return found.clamp_(max=chances.shape[1] - 1)


@contextmanager
def _weights_fixed(model: Model) -> Iterator[None]:
    """No gradient for weights, only for what flows between them."""
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    for p in model.parameters():
        p.requires_grad_(False)
    try:
        yield
    finally:
        for name, p in model.named_parameters():  # of streamed weights they are others by now
            p.requires_grad_(name in wanted)


def _squares(rows: int) -> list[Tensor]:
    return [torch.zeros(g.stop - g.start, g.stop - g.start) for g in row_groups(rows)]


class _Gathering:
    """Sums, while batches run."""

    def __init__(self, model: Model, tokens: int):
        self.model, self.n = model, tokens
        self.settled: dict[str, list[Stored]] = {}
        self.scratch = Scratch()
        self.heads = {"output.weight", EMBEDDING}
        self.tokens: dict[str, list[Tensor]] = {}
        self.rows: dict[str, list[Tensor]] = {}
        self.room: dict[str, list[Tensor]] = {}
        """For `rows`, made before all else: sums that lie between what a backward pass frees would keep it."""
        self.embedding: Tensor | None = None
        self.head: Tensor | None = None
        self.spread: Tensor | None = None
        self.head_input: tuple[str, Tensor] | None = None
        self.logits: dict[int, Tensor] = {}

    def embedded(self, ids: Tensor, rows: Tensor) -> None:
        rows.requires_grad_(True)
        rows.register_hook(self._embedding_gradient)  # type: ignore[no-untyped-call]

    def _embedding_gradient(self, g: Tensor) -> None:
        new = moments(g.reshape(-1, g.shape[-1]).float()).cpu()
        self.embedding = new if self.embedding is None else self.embedding.add_(new)

    def seen(self, name: str, x: Tensor, y: Tensor | None, part: int | None) -> None:
        if name in self.heads:
            self.head_input = name, x.detach()
        elif y is not None and y.requires_grad:
            y.register_hook(functools.partial(self._gradient, name))  # type: ignore[no-untyped-call]

    def at_the_head(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """The loss's gradient at the head's inputs (rows, tokens, dim), for labels drawn here; few logits at a time."""
        parts = []
        for part in torch.split(hidden.flatten(0, 1), max(1, _MOST_LOGITS // self.model.decoder.vocab_size)):
            part.requires_grad_(True)
            logits = self.model.head(part)
            chances = self._room(0, logits)
            torch.softmax(logits.detach().float(), -1, out=chances)
            if not bool(chances.sum(-1).isfinite().all()):
                raise not_finite(self.model, "the logits of the calibration's text", True)
            labels = drawn(chances, generator, self._room(1, logits))
            self._head(chances)
            chances[torch.arange(len(labels)), labels] -= 1  # the gradient of the cross entropy
            logits.backward(chances.to(logits.dtype))  # type: ignore[no-untyped-call]
            assert part.grad is not None
            parts.append(part.grad)
        return torch.cat(parts).view_as(hidden)

    def _room(self, which: int, like: Tensor) -> Tensor:
        """Working memory of some logits' size: to get it from the system anew takes longer than many a step in it."""
        found = self.logits.get(which)
        if found is None or found.numel() < like.numel():
            found = self.logits[which] = torch.empty(like.numel(), device=like.device)
        return found[: like.numel()].view(like.shape)

    def _head(self, chances: Tensor) -> None:
        """The logits' Fisher information is known: diag(p) - p p', of which the trace is 1 - sum p²."""
        if self.head_input is None:
            return
        name, x = self.head_input
        squares = torch.mul(chances, chances, out=self._room(1, chances))
        weight = 1 - squares.sum(-1)
        if name == EMBEDDING:
            new = moments(x.reshape(-1, x.shape[-1]).float(), weight).cpu()
            self.head = new if self.head is None else self.head.add_(new)
        else:
            spread = (chances.sum(0) - squares.sum(0)).cpu()
            self.spread = spread if self.spread is None else self.spread.add_(spread)
        self.tokens.setdefault(name, []).append(weight.cpu())

    def _gradient(self, name: str, g: Tensor) -> None:
        flat = g.reshape(-1, g.shape[-1]).float()
        if not name_of_experts(name):
            self.tokens.setdefault(name, []).append(flat.square().mean(-1).cpu())
        if name not in self.rows:
            self.rows[name] = self.room.pop(name, []) or _squares(flat.shape[-1])
        for sums, group in zip(self.rows[name], row_groups(flat.shape[-1]), strict=True):
            add_moments(sums, flat[:, group])

    def settle(self) -> None:
        """Put aside what is known of rows: all of their tokens have been."""
        for name, parts in self.rows.items():
            self.settled[name] = [self._aside(name, part / self.n) for part in parts]
        self.rows.clear()

    def _aside(self, name: str, matrix: Tensor) -> Stored:
        kept = Rows(self.scratch, matrix.numpy().view(np.uint8))
        return Stored(name, tuple(matrix.shape), F32, lambda start, stop: kept[start:stop])

    def result(self) -> Gradients:
        n = self.n
        tokens = {name: torch.cat(parts) for name, parts in self.tokens.items()}
        rows = dict(self.settled)
        for name, parts in self.rows.items():  # as they are: a second copy would be much
            rows[name] = [Stored.from_array(name, part.div_(n).numpy()) for part in parts]
        if self.spread is not None:
            rows["output.weight"] = [Stored.from_array("output.weight", (self.spread / n).numpy())]
        embedding = None if self.embedding is None else self.embedding / n
        return Gradients(tokens, rows, embedding, None if self.head is None else self.head / n)
