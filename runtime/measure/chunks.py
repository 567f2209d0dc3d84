"""From a text or pairs to the batches of tokens that a measure runs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmconv.convert.reports.streaming import TooLittle
from llmconv.errors import BadFile, UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.runtime.checks import check_looks_back
from llmconv.runtime.load import load, pick_device
from llmconv.runtime.measure.texts import Passage, unknown
from llmconv.runtime.model import Model
from llmconv.runtime.streamed.memory import Memory, limit
from llmconv.runtime.streamed.weights import Weights

__all__ = ["Batch", "Clock", "Running", "Source", "Window", "Work", "device_errors", "tokenizer_of", "work_on"]

Source = str | os.PathLike[str] | Checkpoint | Model
"""What a measure runs: a path, an opened checkpoint, or a model."""


@dataclass(frozen=True)
class Running:
    """How a model is loaded that isn't yet: see `load`."""

    device: str | torch.device = "auto"
    dtype: str | torch.dtype = "auto"
    activations: str = "float"
    memory: Memory = None

    def model(self, source: Source, streamed: bool = True) -> Model:
        """The model itself, or loaded; its layers stay in the file where they don't fit into the memory.

        streamed: False for what needs all weights at once.   `UsageError` for a model that has not.
        """
        found = self._loaded(source, self.most() if streamed else None)
        if not streamed and found.wants is not None:
            raise UsageError(f"{found.where}: its weights were left in the file; load it without a limit of memory")
        return found

    @contextmanager
    def models(self, a: Source, b: Source) -> Iterator[tuple[Model, Model]]:
        """Two that share the memory: of two that are left in their files each has half of it, else the second has what
        the first leaves.   Within, too little memory is told in terms of what both need."""
        most, left = self.most(), self.half(a)
        taken, whole = (left.wants.plan.memory, False) if isinstance(left.wants, Weights) else (_bytes_of(left), True)
        if isinstance(a, Model) and self.memory is None:
            taken = 0  # what is free is what it has left
        try:
            yield left, self._loaded(b, None if most is None else max(most - taken, 1))
        except TooLittle as error:
            if most is None or (isinstance(a, Model) and error.given == taken):
                raise
            raise TooLittle(most, error.least + (taken if whole else max(taken, error.least))) from None

    def half(self, source: Source) -> Model:
        """A model that is loaded within half of the memory, for another beside it."""
        most = self.most()
        try:
            return self._loaded(source, None if most is None else max(1, most // 2))
        except TooLittle as error:
            raise TooLittle(most or error.given, 2 * error.least) from None

    def most(self) -> int | None:
        """Bytes for weights and results; None where nobody knows how many there are."""
        return limit(self.memory, pick_device(self.device))

    def _loaded(self, source: Source, memory: int | None) -> Model:
        if isinstance(source, Model):
            return source
        return load(source, self.device, self.dtype, self.activations, memory)


def _bytes_of(model: Model) -> int:
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


@dataclass(frozen=True)
class Window:
    """How much of a text is run at once.

    context: tokens in a chunk (None: 512, or what the model takes).  chunks: how many of them, or of pairs (None: all).
    stride: how far a sliding window moves (None: chunks stand side by side).   `UsageError` for numbers that are none.
    """

    context: int | None = None
    chunks: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("context", 2), ("chunks", 1), ("stride", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise UsageError(f"{name} is {value!r}, expected a whole number of at least {least}")


@dataclass(frozen=True)
class Batch:
    """Rows that are run together.

    inputs: (B, T) int64 ids on the model's device.  scored: which of their positions are.
    targets: (B, S), what each of those should give.  numbers: of the chunks or pairs that the rows are, from 0.
    """

    inputs: Tensor
    scored: slice
    targets: Tensor
    numbers: Sequence[int]

    def places(self, unit: str, first: int) -> Callable[[int], str]:
        """In words, where the scored positions from `first` on stand, counted through the batch; all begin with 0."""

        def place(row: int) -> str:
            chunk, position = divmod(first + row, self.targets.shape[1])
            return f"{unit} {self.numbers[chunk]}, position {position + (self.scored.start or 0)}"

        return place


@dataclass(frozen=True)
class Work:
    """All that is to be run and scored.

    unit: "chunk" or "pair".  total: how many of them.  context: tokens in a chunk, or in the longest pair.
    notes: what should be known of the text.
    """

    unit: str
    total: int
    context: int
    batches: Iterable[Batch]
    notes: list[str] = field(default_factory=list)


def work_on(model: Model, passage: Passage, window: Window) -> Work:
    """A text cut into chunks, or pairs by their length; `UsageError` or `BadFile` where that can't be."""
    if passage.pairs is None:
        return _chunks(model, passage, window)
    if window.stride is not None:
        raise UsageError("pairs have no stride; leave --stride out")
    return _pairs(model, passage, passage.pairs[: window.chunks])


def tokenizer_of(model: Model) -> Any:
    """The model's tokenizer; `BadFile` when its file holds none."""
    if model.tokenizer is None:
        raise BadFile(f"{model.where}: holds no tokenizer, so a text can't be read; convert it with its vocabulary")
    return model.tokenizer


# ---- a text


@dataclass(frozen=True)
class _Cut:
    """Rows of token ids, (chunks, context) int64, and how many positions at each row's start are context only."""

    tokens: Tensor
    firsts: list[int]


def _chunks(model: Model, passage: Passage, window: Window) -> Work:
    """A text cut for scoring; position i is scored by what it gives to token i + 1.

    Without a stride, as llama.cpp's perplexity tool does it: the ids of the whole text (BOS before them where the model
    wants one) in consecutive chunks, each chunk's first id replaced by BOS, the second half scored, the tail dropped.
    With one, a window moves by it over the text and scores what it newly covers, the first window everything, so every
    token but the first is scored once: the figure that papers give.
    """
    check_looks_back(model.decoder, 'give TEXT as a JSON list of {"input": …, "target": …} pairs')
    tokenizer = tokenizer_of(model)
    context = _context(model, window)
    text = passage.text
    if window.chunks is not None:
        text = tokenizer.beginning(text, window.chunks * (window.stride or context) + context)
    ids: list[int] = tokenizer.encode(text, add_special=True)
    if tokenizer.eos is not None and ids and ids[-1] == tokenizer.eos and tokenizer.bos != tokenizer.eos:
        ids = ids[:-1]
    if len(ids) < context:
        raise UsageError(
            f"{passage.name}: has {len(ids)} tokens, fewer than one chunk of {context}; give a longer text or a "
            "smaller context (-c)"
        )
    _check_known(model, passage, max(ids))
    if window.stride is None:
        cut = _side_by_side(ids, context, window.chunks)
        if model.tokenizer.vocab.flag("bos") and tokenizer.bos is not None:
            cut.tokens[:, 0] = tokenizer.bos
    else:
        cut = _sliding(ids, context, window.stride, window.chunks)
    notes = unknown(tokenizer, passage.name, [text], [ids])
    if 0 < model.context_length < context:
        notes.append(
            f"{model.where}: chunks of {context} tokens are longer than the {model.context_length} that it was made for"
        )
    return Work("chunk", len(cut.firsts), context, _Chunked(cut, model.device), notes)


def _context(model: Model, window: Window) -> int:
    """Tokens in a chunk: as asked for, or 512, or fewer where the model takes fewer."""
    most = model.most_tokens
    context = window.context or min(512, model.context_length or 512)
    least = 3 if window.stride is None else 2  # half of two tokens is context, and the last one scores nothing
    if context < least or (most is not None and context > most):
        raise UsageError(f"a context of {context} is not possible; this model takes {least} to {most or 'many'}")
    return context


def _check_known(model: Model, passage: Passage, largest: int) -> None:
    if largest >= model.decoder.vocab_size:
        raise BadFile(
            f"{passage.name}: gives token {largest}, but the embedding of {model.where} has "
            f"{model.decoder.vocab_size} rows; its tokenizer is not its own"
        )


def _side_by_side(ids: list[int], context: int, chunks: int | None) -> _Cut:
    count = min(len(ids) // context, chunks or len(ids))
    return _Cut(torch.tensor(ids[: count * context]).view(count, context), [context // 2] * count)


def _sliding(ids: list[int], context: int, stride: int, chunks: int | None) -> _Cut:
    if stride >= context:
        raise UsageError(f"a stride of {stride} is not possible; give 1 to {context - 1}, less than the context")
    starts = list(range(0, len(ids) - context + 1, stride))
    firsts = [0, *[context - 1 - stride] * (len(starts) - 1)]
    rest = len(ids) - context - starts[-1]
    if rest:  # a last window, at the text's end, scores what is left
        starts.append(len(ids) - context)
        firsts.append(context - 1 - rest)
    return _Cut(torch.tensor([ids[s : s + context] for s in starts[:chunks]]), firsts[:chunks])


@dataclass(frozen=True)
class _Chunked:
    """The batches of a cut text: rows of equal scoring together, about 2048 tokens a batch, on a GPU 16384."""

    cut: _Cut
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        tokens, firsts = self.cut.tokens, self.cut.firsts
        most = max(1, (2048 if self.device.type == "cpu" else 16384) // tokens.shape[1])
        row = 0
        while row < len(firsts):
            stop, first = row + 1, firsts[row]
            while stop < min(len(firsts), row + most) and firsts[stop] == first:
                stop += 1
            part = tokens[row:stop].to(self.device)
            yield Batch(part, slice(first, -1), part[:, first + 1 :], range(row, stop))
            row = stop


# ---- pairs


def _pairs(model: Model, passage: Passage, pairs: list[tuple[str, str]]) -> Work:
    """Every position of every pair: the input's token i should give the target's token i."""
    tokenizer = tokenizer_of(model)
    encoded = [(tokenizer.encode(a), tokenizer.encode(b)) for a, b in pairs]
    most = model.most_tokens
    for i, (given, wanted) in enumerate(encoded):
        if not given or len(given) != len(wanted):
            raise BadFile(
                f"{passage.name}: pair {i} has {len(given)} tokens of input and {len(wanted)} of target, expected as "
                "many"
            )
        if most is not None and len(given) > most:
            raise BadFile(
                f"{passage.name}: pair {i} has {len(given)} tokens, more than the {most} that this model takes"
            )
    _check_known(model, passage, max(id for both in encoded for part in both for id in part))
    notes = unknown(
        tokenizer, passage.name, [part for both in pairs for part in both], [part for both in encoded for part in both]
    )
    longest = max(len(given) for given, _ in encoded)
    return Work("pair", len(pairs), longest, _Paired(encoded, model.device), notes)


@dataclass(frozen=True)
class _Paired:
    """The batches of pairs: those of one length together, up to 256 of them."""

    encoded: list[tuple[list[int], list[int]]]
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        order = sorted(range(len(self.encoded)), key=lambda i: len(self.encoded[i][0]))
        start = 0
        while start < len(order):
            length, stop = len(self.encoded[order[start]][0]), start + 1
            while stop < min(len(order), start + 256) and len(self.encoded[order[stop]][0]) == length:
                stop += 1
            rows = order[start:stop]
            inputs, targets = (
                torch.tensor([self.encoded[i][part] for i in rows], device=self.device) for part in (0, 1)
            )
            yield Batch(inputs, slice(None), targets, rows)
            start = stop


# ---- while it runs


@contextmanager
def device_errors(
    device: torch.device, advice: str = "use a smaller context (-c) or batch, or another device"
) -> Iterator[None]:
    """Running out of a device's memory becomes a sentence with the way out; a CPU says it in a plain `RuntimeError`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in text:
            raise
        wanted = re.search(r"tried to allocate ([\d.]+ \w+)", text, re.IGNORECASE)
        asked = f" (it was asked for {wanted[1]} more)" if wanted else ""
        raise UsageError(f"device {str(device)!r} is out of memory{asked}; {advice}") from None


class Clock:
    """Tokens per second."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return max(time.perf_counter() - self.started, 1e-9)
