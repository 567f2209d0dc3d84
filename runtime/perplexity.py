"""Perplexity of a model on a text, or on (input, target) pairs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmconv.errors import BadFile, UsageError, at
from llmconv.progress import Meter, Progress
from llmconv.runtime.chunks import (
    Clock,
    Source,
    as_model,
    batches,
    check_finite,
    device_errors,
    read_text,
    text_chunks,
    tokenizer_of,
)
from llmconv.runtime.model import Model
from llmconv.show import Shown

__all__ = ["Perplexity", "losses_from", "mean_and_error", "pairs_of", "perplexity"]


@dataclass(frozen=True)
class Perplexity(Shown):
    """exp of the mean negative log-likelihood of `tokens` scored tokens, and its standard error.

    last_position_perplexity: over the last position of each pair only; None for a text.
    context: tokens in a chunk (the longest pair); chunks: how many chunks or pairs were run.
    """

    perplexity: float
    stderr: float
    tokens: int
    context: int
    chunks: int
    stride: int | None
    last_position_perplexity: float | None
    seconds: float
    tokens_per_second: float


def perplexity(
    model: Source,
    text: str | os.PathLike[str],
    *,
    context: int | None = None,
    chunks: int | None = None,
    stride: int | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    activations: str = "float",
    progress: Progress | None = None,
) -> Perplexity:
    """How well `model` predicts the text file `text`.

    model: a path, a checkpoint or a loaded model.  text: UTF-8 text, or a JSON list of {"input", "target"} pairs, which
    is
        recognised by its content.
    context: tokens in a chunk; default 512, or what the model takes.  chunks: stop after so many.
    stride: slide a window by so many tokens instead of cutting chunks; see `text_chunks`.
    device, dtype, activations: as `load` takes them; a model that is loaded already stays as it is.
    """
    running = as_model(model, device, dtype, activations)
    pairs = pairs_of(text)
    with torch.inference_mode(), device_errors(running.device):
        if pairs is not None:
            if stride is not None:
                raise UsageError("pairs have no stride; leave --stride out")
            return _of_pairs(running, model, text, pairs[:chunks], progress)
        return _of_text(running, model, text, context, chunks, stride, progress)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of (N,) float64 values and the standard error of that mean."""
    mean = values.mean().item()
    n = values.numel()
    variance = (values.square().mean() - mean**2).item()
    return mean, math.sqrt(max(variance, 0.0) / (n - 1)) if n > 1 else 0.0


def log_likelihoods(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """ln p(target) of hidden states (N, dim) for targets (N,): (N,) float64; logits are made in slices of 16M."""
    step = max(1, (1 << 24) // model.decoder.vocab_size)
    out = []
    for start in range(0, len(targets), step):
        logits = model.head(hidden[start : start + step])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        chosen = logits.gather(-1, targets[start : start + step, None])[:, 0]
        out.append((chosen - logits.logsumexp(-1)).to("cpu", torch.float64))
    return torch.cat(out)


def _of_text(
    model: Model,
    source: Source,
    text: str | os.PathLike[str],
    context: int | None,
    chunks: int | None,
    stride: int | None,
    progress: Progress | None,
) -> Perplexity:
    cut = text_chunks(model, source, text, context, chunks, stride)
    width = cut.tokens.shape[1]
    meter = Meter(progress, "perplexity", len(cut), "chunks")
    losses: list[Tensor] = []
    total, count, clock = 0.0, 0, Clock()
    for rows, tokens in batches(cut, model.device):
        first = cut.start(rows[0])
        hidden = model.hidden(tokens)[:, first:-1]
        found = -log_likelihoods(model, hidden.reshape(-1, hidden.shape[-1]), tokens[:, first + 1 :].reshape(-1))
        losses.append(found)
        total, count = total + found.sum().item(), count + found.numel()
        check_finite(total, source)
        meter.reach(rows[-1] + 1, perplexity=math.exp(min(total / count, 700)))
    mean, error = mean_and_error(torch.cat(losses))
    value = math.exp(min(mean, 700))
    return Perplexity(
        perplexity=value,
        stderr=error * value,
        tokens=count,
        context=width,
        chunks=len(cut),
        stride=stride,
        last_position_perplexity=None,
        seconds=clock.seconds,
        tokens_per_second=len(cut) * width / clock.seconds,
    )


def pairs_of(text: str | os.PathLike[str]) -> list[tuple[str, str]] | None:
    """The pairs of a JSON list of {"input", "target"} objects (or two-element lists); None for any other text."""
    path = Path(text)
    if path.suffix.lower() != ".json":
        return None
    import orjson

    content = read_text(path)
    try:
        found = orjson.loads(content)
    except ValueError:
        return None
    if not isinstance(found, list) or not found or not isinstance(found[0], dict | list):
        return None
    out = []
    for i, item in enumerate(found):
        both = (item.get("input"), item.get("target")) if isinstance(item, dict) else tuple(item[:2])
        if len(both) != 2 or not all(isinstance(part, str) for part in both):
            raise BadFile(f'{at(path)}: entry {i} is no pair of texts; expected {{"input": …, "target": …}}')
        out.append((both[0], both[1]))
    return out


# simple-llm's own definition: 1e-10 inside the logarithm, and its softmax's start in the denominator.
_LOG_START = 1e-10


def _pair_losses(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """-ln p of hidden (N, dim) for targets (N,)."""
    start = model.decoder.softmax_start
    return losses_from(model.head(hidden), targets, start) if start else -log_likelihoods(model, hidden, targets)


def losses_from(logits: Tensor, targets: Tensor, softmax_start: float) -> Tensor:
    """-ln p of logits (N, vocab) for targets (N,), (N,) float64; simple-llm's own where a softmax has a start."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if not softmax_start:
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none").to("cpu", torch.float64)
    powers = (logits - logits.amax(-1, keepdim=True)).exp()
    chosen = powers.gather(-1, targets[:, None])[:, 0] / (softmax_start + powers.sum(-1))
    return -(chosen.to("cpu", torch.float64) + _LOG_START).log()


def _of_pairs(
    model: Model,
    source: Source,
    text: str | os.PathLike[str],
    pairs: list[tuple[str, str]],
    progress: Progress | None,
) -> Perplexity:
    """Every position of every pair: the input's token i should give the target's token i."""
    every: list[Tensor] = []
    last: list[Tensor] = []
    meter = Meter(progress, "perplexity", len(pairs), "pairs")
    clock, total, count, longest = Clock(), 0.0, 0, 0
    for done, given, wanted in pair_batches(model, source, text, pairs):
        hidden = model.hidden(given)
        losses = _pair_losses(model, hidden.flatten(0, 1), wanted.flatten()).view(given.shape)
        every.append(losses.flatten())
        last.append(losses[:, -1])
        total, count, longest = total + losses.sum().item(), count + losses.numel(), max(longest, given.shape[1])
        check_finite(total, source)
        meter.reach(done, perplexity=math.exp(min(total / count, 700)))
    mean, error = mean_and_error(torch.cat(every))
    value = math.exp(min(mean, 700))
    return Perplexity(
        perplexity=value,
        stderr=error * value,
        tokens=count,
        context=longest,
        chunks=len(pairs),
        stride=None,
        last_position_perplexity=math.exp(min(torch.cat(last).mean().item(), 700)),
        seconds=clock.seconds,
        tokens_per_second=count / clock.seconds,
    )


def pair_batches(
    model: Model, source: Source, text: str | os.PathLike[str], pairs: list[tuple[str, str]]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The pairs as token ids, those of one length together: (pairs done after it, inputs, targets), both (B, T)."""
    tokenizer = tokenizer_of(model, source)
    encoded = [(tokenizer.encode(a), tokenizer.encode(b)) for a, b in pairs]
    for i, (given, wanted) in enumerate(encoded):
        if not given or len(given) != len(wanted):
            raise BadFile(
                f"{at(text)}: pair {i} has {len(given)} tokens of input and {len(wanted)} of target, expected as many"
            )
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]))
    for done, batch in _equal_lengths(order, encoded):
        inputs, targets = (torch.tensor([encoded[i][part] for i in batch], device=model.device) for part in (0, 1))
        yield done, inputs, targets


def _equal_lengths(order: list[int], encoded: list[tuple[list[int], list[int]]]) -> Iterator[tuple[int, list[int]]]:
    """Batches of up to 256 pairs of one length: (pairs done after it, their numbers)."""
    start = 0
    while start < len(order):
        length, stop = len(encoded[order[start]][0]), start + 1
        while stop < min(len(order), start + 256) and len(encoded[order[stop]][0]) == length:
            stop += 1
        yield stop, order[start:stop]
        start = stop
