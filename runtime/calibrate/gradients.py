"""What an error in each matrix's results would cost: the squared gradients of the loss, over a text.

The loss is the model's own cross entropy with labels drawn from its predictions, so that the mean of g g' is the Fisher
information: ½ e' E[g g'] e is the KL divergence that a small error e makes (Martens 2020, arXiv:1412.1193).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmconv.formats.tensor import Tensor as Stored
from llmconv.formats.writing.scratch import Rows, Scratch
from llmconv.progress import Meter
from llmconv.quant.plain import F32
from llmconv.runtime.calibrate.collecting import name_of_experts
from llmconv.runtime.calibrate.inputs import clipped
from llmconv.runtime.calibrate.layered import Back, back_by_layers
from llmconv.runtime.calibrate.moments import add_moments, mirrored
from llmconv.runtime.calibrate.shared import Sum, merged, turns
from llmconv.runtime.calibrate.sofar import SoFar
from llmconv.runtime.calibrate.threads import given_back
from llmconv.runtime.calibrate.watching import layer_of, matrices, often, watching
from llmconv.runtime.checks import not_finite
from llmconv.runtime.linear import ExpertLinear
from llmconv.runtime.model import Model
from llmconv.runtime.sampling import generator_of
from llmconv.runtime.streamed.weights import Weights

__all__ = ["EMBEDDING", "Gradients", "drawn", "gather", "row_groups"]

EMBEDDING = "token_embd.weight"
_HEADS = {"output.weight", EMBEDDING}
_MOST_ROWS = 1024
"""Rows whose gradients' products are kept; a matrix with more is cut into groups of equal size."""


_MOST_BYTES = 1 << 28
"""Of what a backward pass keeps, as far as more than one row takes."""
_MOST_LOGITS = 1 << 23
_ROOM = 1 << 22
"""Figures of tokens that are kept in one piece of memory."""


@dataclass
class Gradients:
    """By tensor name, over N tokens:

    tokens: (N,) float32, the mean squared gradient of each token's results; not of experts, whose tokens may change.
    rows: one matrix E[g g'] for each of `row_groups`, float32, in memory or where they lie, large gradients cut as
        tokens' weights are; of the embedding and the head one vector, how much each row counts: how often a token
        comes, and the mean of p (1 - p).
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


def gather(model: Model, batches: Sequence[Tensor], seed: int, meter: Meter, kept: SoFar | None = None) -> Gradients:
    """Run batches (rows, tokens) forward and back.   seed: of the labels that are drawn.   kept: by one process, what
    an earlier run has found, and where this one keeps it."""
    found, generator = _Gathering(model, sum(t.numel() for t in batches)), generator_of(seed)
    model.token_embd.watch_rows = found.embedded
    parts = list(_parts(model, batches))
    heights = [torch.rand(part.numel(), 1, generator=generator) for part in parts]
    if kept is not None:
        found.known_by = [_digest(parts), seed, isinstance(model.wants, Weights)]
    try:
        with _weights_fixed(model), torch.enable_grad(), watching(matrices(model), found.seen):
            if isinstance(model.wants, Weights):
                with back_by_layers(model, model.wants, parts) as run:
                    _by_layers(run, found, heights, meter, kept)
            else:
                _at_once(model, found, parts, heights, meter, kept)
    finally:
        model.token_embd.watch_rows = None
    result = found.result()
    given_back()
    often = torch.bincount(torch.cat([t.flatten() for t in batches]).cpu(), minlength=model.decoder.vocab_size)
    result.rows[EMBEDDING] = [Stored.from_array(EMBEDDING, (often / often.sum()).numpy())]
    return result


def _digest(tensors: Sequence[Tensor]) -> str:
    """A hash of their shapes and numbers."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(str(tuple(tensor.shape)).encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _at_once(
    model: Model,
    found: _Gathering,
    parts: Sequence[Tensor],
    heights: Sequence[Tensor],
    meter: Meter,
    kept: SoFar | None,
) -> None:
    # room before all else: sums that lie between what a backward pass frees would keep it
    every, done = found.expect(*found.layers), 0
    if kept is not None:
        with torch.no_grad():
            done = found.go_on(kept, model.hidden(parts[0].to(model.device)))
        meter(sum(map(len, parts[:done])), "gradients, already done")

    def run(i: int) -> None:
        found.part = i
        hidden = model.hidden(parts[i].to(model.device))
        hidden.backward(found.at_the_head(hidden.detach(), heights[i]))  # type: ignore[no-untyped-call]

    for some in turns(len(parts), run, done):
        found.ran(every, some)
        if kept is not None and kept.due():
            kept.keep(found.so_far(), some.stop)
        meter(sum(len(parts[i]) for i in some), "gradients")


def _by_layers(run: Back, found: _Gathering, heights: Sequence[Tensor], meter: Meter, kept: SoFar | None) -> None:
    def head(i: int) -> None:
        found.part = i
        run.at_the_end(i, lambda hidden: found.at_the_head(hidden, heights[i]))

    def back(layer: int, i: int) -> None:
        found.part = i
        run.back(layer, i)

    run.forward()
    ends, layers, done = found.expect(-1), len(run.model.blk), 0
    if kept is not None:
        done = found.go_on(kept, run.hidden(0), run.go_on)
    for some in turns(len(heights), head) if not done else ():
        found.ran(ends, some)
        meter(sum(len(run.parts[i]) for i in some), "gradients")
    for layer in reversed(range(layers - done)):
        names = found.expect(layer)
        for some in turns(len(heights), functools.partial(back, layer)):
            found.ran(names, some)
        found.settle(names)
        if kept is not None and kept.due():
            kept.keep([*found.so_far(), *run.so_far(layer)], layers - layer, pieces=[found.settled()])
    for some in turns(len(heights), functools.partial(back, -1)):
        found.ran(ends, some)


def _parts(model: Model, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """Rows that run together: as many as what a backward pass keeps of them has room for, at least one."""
    numbers = 2 * sum(sum(module.shape[-2:]) for module in matrices(model).values())
    for tokens in batches:
        yield from torch.split(tokens, max(1, _MOST_BYTES // (4 * numbers * tokens.shape[1])))


def drawn(chances: Tensor, heights: Tensor, room: Tensor | None = None) -> Tensor:
    """A label (N,) for each row of chances (N, labels): where its sum reaches a share (N, 1), drawn below one.

    room: as `chances`, for their sums.
    """
    sums = torch.cumsum(chances, -1, out=torch.empty_like(chances) if room is None else room)
    found: Tensor = torch.searchsorted(sums, heights.to(chances.device) * sums[:, -1:])[:, 0]
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


Floats = NDArray[np.float32]
_EMBEDDING, _HEAD, _SPREAD = ":embedding", ":head", ":spread"
_SUM, _TOKENS = "sum.", "tokens."  # of tensors that are kept of an interrupted run
_ALIKE = 8  # tokens by whose logits a model is recognised


class _Gathering:
    """Sums, while batches run; of all processes together when they are asked for.

    layers: the names of what is summed, by layer; -1: outside of them.   part: the number of what runs now.
    known_by: JSON values that say what is run through which model, with `go_on`.
    """

    def __init__(self, model: Model, tokens: int):
        self.model, self.n, self.part = model, tokens, 0
        self._head_input: tuple[str, Tensor] | None = None
        self._logits: dict[int, Tensor] = {}
        self._modules = {n: m for n, m in matrices(model).items() if n not in _HEADS}
        self._ends: dict[str, tuple[int, ...]] = {_EMBEDDING: (model.token_embd.shape[-1],) * 2}
        if model.output is None:
            self._ends[_HEAD] = self._ends[_EMBEDDING]
        else:
            self._ends[_SPREAD] = (model.output.shape[-2],)
        self.layers: dict[int, list[str]] = {-1: [*self._ends]}
        for name in self._modules:
            self.layers.setdefault(layer_of(name), []).append(name)
        self._often = often(model)
        self._settled: dict[str, list[Stored]] = {}
        self._scratch = Scratch()
        self._tokens: dict[int, dict[str, list[Floats]]] = {}
        self._left = np.empty(_ROOM, np.float32)
        self._sums: dict[str, list[Sum]] = {}
        self._met: dict[str, None] = {}
        self.known_by: list[Any] = []
        self._kept = 0

    def expect(self, *layers: int) -> list[str]:
        """Make room for what is summed there; its names."""
        names = [name for layer in layers for name in self.layers.get(layer, [])]
        self._sums |= {name: self._made(name) for name in names}
        return names

    def _made(self, name: str) -> list[Sum]:
        if name in self._ends:
            return [Sum(torch.zeros(self._ends[name]), True)]
        module = self._modules[name]
        apart = self._often or isinstance(module, ExpertLinear) or not name.startswith("blk.")
        sizes = [group.stop - group.start for group in row_groups(module.shape[-2])]
        return [Sum(torch.zeros(size, size), apart) for size in sizes]

    def ran(self, names: Sequence[str], some: range) -> None:
        """After parts that ran side by side."""
        for name in names:
            for total in self._sums[name]:
                total.add(some)

    def so_far(self) -> Iterator[Stored]:
        """What is known when some parts have been run, without what is settled."""
        for name in self._met:
            for i, total in enumerate(self._sums.get(name, ())):
                yield Stored.from_array(f"{_SUM}{i}.{name}", total.so_far().numpy())
        for name, values in self._joined().items():
            yield Stored.from_array(f"{_TOKENS}{name}", values.numpy())

    def settled(self) -> Iterator[Stored]:
        """What has been settled since the last time."""
        for name in [*self._settled][self._kept :]:
            for i, part in enumerate(self._settled[name]):
                yield dataclasses.replace(part, name=f"{_SUM}{i}.{name}")
        self._kept = len(self._settled)

    def go_on(
        self, kept: SoFar, hidden: Tensor, others: Callable[[int, Mapping[str, Stored]], None] | None = None
    ) -> int:
        """From what an earlier run has kept: how much it had done.

        hidden: of the first part, by which the model is recognised.   others: is given that and what is kept beside.
        """
        logits = self.model.head(hidden.detach().flatten(0, 1)[:_ALIKE])
        found = kept.found([*self.known_by, _digest([hidden, logits])])
        if found is None:
            return 0
        done, (main, *pieces) = found
        for name, values in _numbered(main.tensors).items():
            self._met[name] = None
            for total, part in zip(self._sums[name], values, strict=True):
                total.go_on(torch.from_numpy(np.array(part.numpy())))
        for piece in pieces:
            for name, values in _numbered(piece.tensors).items():
                matrices = [torch.from_numpy(np.array(part.numpy())) for part in values]
                self._settled[name] = [self._aside(name, matrix) for matrix in matrices]
        self._kept = len(self._settled)
        tokens = {n.removeprefix(_TOKENS): t for n, t in main.tensors.items() if n.startswith(_TOKENS)}
        self._tokens[-1] = {name: [np.array(t.numpy())] for name, t in tokens.items()}
        if others is not None:
            others(done, main.tensors)
        return done

    def embedded(self, ids: Tensor, rows: Tensor) -> None:
        rows.requires_grad_(True)
        rows.register_hook(self._embedding_gradient)  # type: ignore[no-untyped-call]

    def _embedding_gradient(self, g: Tensor) -> None:
        add_moments(self._sum(_EMBEDDING), g.reshape(-1, g.shape[-1]).float())

    def seen(self, name: str, x: Tensor, y: Tensor | None, part: int | None) -> None:
        if name in _HEADS:
            self._head_input = name, x.detach()
        elif y is not None and y.requires_grad:
            y.register_hook(functools.partial(self._gradient, name))  # type: ignore[no-untyped-call]

    def at_the_head(self, hidden: Tensor, heights: Tensor) -> Tensor:
        """The loss's gradient at the head's inputs (rows, tokens, dim), for labels that `heights` choose; few logits at
        a time."""
        parts, few = [], max(1, _MOST_LOGITS // self.model.decoder.vocab_size)
        for part, height in zip(torch.split(hidden.flatten(0, 1), few), torch.split(heights, few), strict=True):
            part.requires_grad_(True)
            logits = self.model.head(part)
            chances = self._room(0, logits)
            torch.softmax(self._room(1, logits).copy_(logits.detach()), -1, out=chances)
            if not bool(chances.sum(-1).isfinite().all()):
                raise not_finite(self.model, "the logits of the calibration's text", True)
            labels = drawn(chances, height, self._room(1, logits))
            self._head(chances)
            chances[torch.arange(len(labels)), labels] -= 1  # the gradient of the cross entropy
            logits.backward(chances.to(logits.dtype))  # type: ignore[no-untyped-call]
            assert part.grad is not None
            parts.append(part.grad)
        return torch.cat(parts).view_as(hidden)

    def _room(self, which: int, like: Tensor) -> Tensor:
        """Working memory of some logits' size: to get it from the system anew takes longer than many a step in it."""
        found = self._logits.get(which)
        if found is None or found.numel() < like.numel():
            found = self._logits[which] = torch.empty(like.numel(), device=like.device)
        return found[: like.numel()].view(like.shape)

    def _head(self, chances: Tensor) -> None:
        """The logits' Fisher information is known: diag(p) - p p', of which the trace is 1 - sum p²."""
        if self._head_input is None:
            return
        name, x = self._head_input
        squares = torch.mul(chances, chances, out=self._room(1, chances))
        weight = 1 - squares.sum(-1)
        if name == EMBEDDING:
            add_moments(self._sum(_HEAD), x.reshape(-1, x.shape[-1]).float(), weight)
        else:
            self._sum(_SPREAD).add_((chances.sum(0) - squares.sum(0)).cpu())
        self._of_tokens(name, weight)

    def _gradient(self, name: str, g: Tensor) -> None:
        flat = g.reshape(-1, g.shape[-1]).float()
        squares = flat.square().mean(-1)
        if not name_of_experts(name):
            self._of_tokens(name, squares)
        self._met[name] = None
        weight = clipped(squares)
        if weight is not None:  # that of a token with a large gradient, the sum of the squares as it was
            weight = (weight / (squares / squares.mean())).nan_to_num(0)
        for total, group in zip(self._sums[name], row_groups(flat.shape[-1]), strict=True):
            add_moments(total.here, flat[:, group], weight)

    def _sum(self, name: str) -> Tensor:
        self._met[name] = None
        return self._sums[name][0].here

    def _of_tokens(self, name: str, values: Tensor) -> None:
        """Keep what a part's tokens count, in memory that was there before: small pieces between what a backward pass
        frees would keep it from being used again, more with every part."""
        if len(self._left) < values.numel():
            self._left = np.empty(max(_ROOM, values.numel()), np.float32)
        own, self._left = self._left[: values.numel()], self._left[values.numel() :]
        own[:] = values.cpu().numpy()
        self._tokens.setdefault(self.part, {}).setdefault(name, []).append(own)

    def settle(self, names: Sequence[str]) -> None:
        """Put aside what is known of rows: all of their tokens have been."""
        for name, sums in self._whole(names).items():
            self._settled[name] = [self._aside(name, part.div_(self.n)) for part in sums]

    def _whole(self, names: Sequence[str]) -> dict[str, list[Tensor]]:
        """Sums over all tokens, of the names that any of them went through; they are forgotten here."""
        every = {name: [_moments(total.whole()) for total in self._sums.pop(name)] for name in names}
        met = merged({name: None for name in self._met if name in every})
        return {name: every[name] for name in met}

    def _aside(self, name: str, matrix: Tensor) -> Stored:
        kept = Rows(self._scratch, matrix.numpy().view(np.uint8))
        return Stored(name, tuple(matrix.shape), F32, lambda start, stop: kept[start:stop])

    def result(self) -> Gradients:
        self._logits.clear()
        rows, n = dict(self._settled), self.n
        found = self._whole([*self._sums])
        ends = {name: found.pop(name)[0].div_(n) for name in self._ends if name in found}
        for name, parts in found.items():  # as they are: a second copy would be much
            rows[name] = [Stored.from_array(name, part.div_(n).numpy()) for part in parts]
        if _SPREAD in ends:
            rows["output.weight"] = [Stored.from_array("output.weight", ends[_SPREAD].numpy())]
        return Gradients(self._joined(), rows, ends.get(_EMBEDDING), ends.get(_HEAD))

    def _joined(self) -> dict[str, Tensor]:
        """The tokens' figures by name, in the order of the text."""
        every = merged(self._tokens)
        out: dict[str, list[Floats]] = {}
        for i in sorted(every):
            for name, parts in every[i].items():
                out.setdefault(name, []).extend(parts)
        return {name: torch.from_numpy(np.concatenate(parts)) for name, parts in out.items()}


def _moments(found: Tensor) -> Tensor:
    """A sum of moments, whole; one of other figures as it is."""
    return mirrored(found) if found.dim() == 2 else found


def _numbered(tensors: Mapping[str, Stored]) -> dict[str, list[Stored]]:
    """`sum.NUMBER.NAME` by name, in their order."""
    found: dict[str, list[Stored]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_SUM):
            found.setdefault(name.removeprefix(_SUM).partition(".")[2], []).append(tensor)
    return found
