"""From a text file to the chunks of tokens that a measure scores, and the progress of going through them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmconv.errors import BadFile, LlmconvError, UsageError, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import open_regular
from llmconv.runtime.load import load
from llmconv.runtime.model import Model

__all__ = ["Chunks", "Source", "as_model", "device_errors", "read_text", "text_chunks", "tokenizer_of"]

Source = str | os.PathLike[str] | Checkpoint | Model
"""What a measure runs: a path, an opened checkpoint, or a model."""


def as_model(source: Source, device: str | torch.device, dtype: str | torch.dtype, activations: str) -> Model:
    """The model itself, or loaded."""
    return source if isinstance(source, Model) else load(source, device, dtype, activations)


def tokenizer_of(model: Model, source: Source) -> Any:
    """The model's tokenizer; `BadFile` when its file holds none."""
    if model.tokenizer is None:
        raise BadFile(
            f"{at(_name(source))}: holds no tokenizer, so a text can't be read; convert it with its vocabulary"
        )
    return model.tokenizer


def _name(source: Source) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    return str(source.source or "this model") if isinstance(source, Checkpoint) else "this model"


def read_text(path: str | os.PathLike[str]) -> str:
    """A text file as UTF-8; `BadFile` when it is missing or something else."""
    with open_regular(Path(path)) as file:
        data = file.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is {data[error.start]:#04x}"
        raise BadFile(f"{at(path)}: is no UTF-8 text ({byte}); convert it") from None


@dataclass(frozen=True)
class Chunks:
    """Rows of token ids and which of their positions are scored.

    tokens: (chunks, context) int64.
    first: how many positions of a row are context only; position i is scored by what it gives to token i + 1.
    firsts: the same per row, where rows differ (a sliding window), else None.
    """

    tokens: Tensor
    first: int
    firsts: list[int] | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def start(self, row: int) -> int:
        return self.first if self.firsts is None else self.firsts[row]


def text_chunks(
    model: Model,
    source: Source,
    text: str | os.PathLike[str],
    context: int | None,
    chunks: int | None,
    stride: int | None,
) -> Chunks:
    """A text file cut for scoring.

    Without `stride`, as llama.cpp's perplexity tool does it: the ids of the whole text (BOS before them where the model
    wants one) in consecutive chunks of `context`, each chunk's first id replaced by BOS, the second half scored, the
    tail dropped.  With `stride`, a window of `context` moves by `stride` over the text and scores what it newly covers,
    the first window everything, so every token but the first is scored once: the figure that papers give.
    """
    if not model.decoder.causal:
        raise UsageError(
            f"a {model.decoder.arch} model sees the words it would be scored on; give TEXT as a JSON list of "
            '{"input": …, "target": …} pairs'
        )
    tokenizer = tokenizer_of(model, source)
    limit = model.context_length or 512
    if context is None:
        context = min(512, limit)
    learned = model.decoder.positions == "learned"
    if context < 2 or (learned and context > limit):
        most = limit if learned else "many"
        raise UsageError(f"a context of {context} is not possible; this model takes 2 to {most}")
    ids = tokenizer.encode(read_text(text), add_special=True)
    if tokenizer.eos is not None and ids and ids[-1] == tokenizer.eos and tokenizer.bos != tokenizer.eos:
        ids = ids[:-1]
    if len(ids) < context:
        raise UsageError(
            f"{at(text)}: has {len(ids)} tokens, fewer than one chunk of {context}; give a longer text or a smaller "
            "context (-c)"
        )
    if max(ids) >= model.decoder.vocab_size:
        raise BadFile(
            f"{at(text)}: gives token {max(ids)}, but the model's embedding has {model.decoder.vocab_size} rows; "
            "its tokenizer is not its own"
        )
    if stride is not None:
        return _sliding(ids, context, stride, chunks)
    count = min(len(ids) // context, chunks or len(ids))
    tokens = torch.tensor(ids[: count * context]).view(count, context)
    if model.tokenizer.vocab.flag("bos") and tokenizer.bos is not None:
        tokens[:, 0] = tokenizer.bos
    return Chunks(tokens, context // 2)


def _sliding(ids: Sequence[int], context: int, stride: int, chunks: int | None) -> Chunks:
    if not 0 < stride < context:
        raise UsageError(f"a stride of {stride} is not possible; give 1 to {context - 1}, less than the context")
    starts = list(range(0, len(ids) - context + 1, stride))
    firsts = [0, *[context - 1 - stride] * (len(starts) - 1)]
    rest = len(ids) - context - starts[-1]
    if rest:  # a last window, at the text's end, scores what is left
        starts.append(len(ids) - context)
        firsts.append(context - 1 - rest)
    rows = torch.tensor([ids[s : s + context] for s in starts[:chunks]])
    return Chunks(rows, context - 1 - stride, firsts[:chunks])


def batches(chunks: Chunks, device: torch.device, tokens: int | None = None) -> Iterator[tuple[list[int], Tensor]]:
    """Rows of equal scoring together, about `tokens` tokens a batch: (row numbers, (rows, context) on `device`)."""
    per_batch = max(1, (tokens or (2048 if device.type == "cpu" else 16384)) // chunks.tokens.shape[1])
    row = 0
    while row < len(chunks):
        stop = row + 1
        while stop < min(len(chunks), row + per_batch) and chunks.start(stop) == chunks.start(row):
            stop += 1
        yield list(range(row, stop)), chunks.tokens[row:stop].to(device)
        row = stop


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


def check_finite(value: float, source: Source) -> None:
    """A model that gives NaN is named rather than averaged."""
    if value != value:
        raise LlmconvError(
            f"{at(_name(source))}: the model's output is not a number; try --dtype f32, or verify the file"
        )
