"""Perplexity of a model on a text, or on (input, target) pairs."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmconv.progress import Meter, Progress
from llmconv.runtime.checks import check_finite
from llmconv.runtime.measure import texts
from llmconv.runtime.measure.along import Along
from llmconv.runtime.measure.chunks import Batch, Clock, Running, Source, Window, Work, device_errors, work_on
from llmconv.runtime.measure.sharing import of_each
from llmconv.runtime.model import Model
from llmconv.runtime.streamed.memory import Memory
from llmconv.show import Shown

__all__ = ["Perplexity", "log_likelihoods", "mean_and_error", "perplexity"]


@dataclass(frozen=True)
class Perplexity(Shown):
    """exp of the mean negative log-likelihood of `tokens` scored tokens, and its standard error.

    last_position_perplexity: over the last position of each pair only; None for a text.
    context: tokens in a chunk (the longest pair); chunks: how many chunks or pairs were run.
    notes: what should be known of the text and of how the model ran.
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
    notes: list[str] = field(default_factory=list)


def perplexity(
    model: Source,
    text: texts.TextSource,
    *,
    context: int | None = None,
    chunks: int | None = None,
    stride: int | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    activations: str = "float",
    memory: Memory = None,
    plot: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """How well `model` predicts a text.

    model: a path, a checkpoint or a loaded model.
    text: the path of a UTF-8 text, or of a JSON list of {"input", "target"} pairs, which is recognised by its content;
        or a text itself, as `llmconv.Text("Once upon a time")`.
    context: tokens in a chunk; default 512, or what the model takes.  chunks: stop after so many.
    stride: slide a window by so many tokens instead of cutting chunks.
    plot: an SVG to write: the loss along the text, by position and by kind of token.
    device, dtype, activations: as `load` takes them; a model that is loaded already stays as it is.
    memory: bytes for weights and what is computed, as a number or like "2G"; default: nine tenths of what is free.  A
        model that needs more is run layer by layer, all chunks through each, with the same result.

    `LlmconvError` when a scored position's logits hold NaN or infinities: it names the model, the position and the
    likely cause.
    """
    window = Window(context, chunks, stride)
    along = Along(plot, ("loss",), "Loss")
    running = Running(device, dtype, activations, memory).model(model)
    with torch.inference_mode(), device_errors(running.device):
        work = work_on(running, texts.read(text), window)
        found = _measured(running, work, stride, progress, along)
    along.draw(running.tokenizer, f"{running.where}: loss")
    return found


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of (N,) float64 values and the standard error of that mean."""
    mean = values.mean().item()
    n = values.numel()
    variance = (values.square().mean() - mean**2).item()
    return mean, math.sqrt(max(variance, 0.0) / (n - 1)) if n > 1 else 0.0


def _measured(model: Model, work: Work, stride: int | None, progress: Progress | None, along: Along) -> Perplexity:
    every: list[Tensor] = []
    last: list[Tensor] = []
    clock, seen, done, total, count = Clock(), 0, 0, 0.0, 0
    batches = list(work.batches)
    meter = Meter(progress, "perplexity", work.total, f"{work.unit}s")
    make = functools.partial(_losses, model, work.unit)
    for batch, losses in of_each([model], batches, make, progress):
        every.append(losses.flatten())
        last.append(losses[:, -1])
        along.add(batch, losses)
        seen, done = seen + batch.inputs.numel(), done + len(batch.numbers)
        total, count = total + losses.sum().item(), count + losses.numel()
        meter.reach(done, perplexity=math.exp(min(total / count, 700)))
    mean, error = mean_and_error(torch.cat(every))
    value = math.exp(min(mean, 700))
    return Perplexity(
        perplexity=value,
        stderr=error * value,
        tokens=count,
        context=work.context,
        chunks=work.total,
        stride=stride,
        last_position_perplexity=math.exp(min(torch.cat(last).mean().item(), 700)) if work.unit == "pair" else None,
        seconds=clock.seconds,
        tokens_per_second=seen / clock.seconds,
        notes=[*model.notes, *work.notes],
    )


_SLICE = 1 << 24  # logits in memory at once


def _losses(model: Model, unit: str, batch: Batch, states: Sequence[Tensor]) -> Tensor:
    """-ln p of a batch's targets: (B, S) float64 on the CPU.   states: what the last layer gave where they are."""
    (hidden,), targets = states, batch.targets.flatten()
    start = model.decoder.softmax_start if unit == "pair" else 0.0
    step, out = max(1, _SLICE // model.decoder.vocab_size), []
    for first in range(0, len(targets), step):
        logits = model.head(hidden[first : first + step])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        check_finite(logits, model, batch.places(unit, first))
        found = log_likelihoods(logits, targets[first : first + step], start).to("cpu", torch.float64)
        check_finite(found[:, None], model, batch.places(unit, first), what="the loss")
        out.append(-found)
    return torch.cat(out).view(batch.targets.shape)


# simple-llm's own definition: 1e-10 inside the logarithm, and its softmax's start in the denominator.
_LOG_START = 1e-10


def log_likelihoods(logits: Tensor, targets: Tensor, start: float) -> Tensor:
    """ln p(target) from logits (N, V) for targets (N,): (N,); simple-llm's own where its softmax has a start."""
    if not start:
        return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
    powers = (logits - logits.amax(-1, keepdim=True)).exp()
    chosen = powers.gather(-1, targets[:, None])[:, 0] / (start + powers.sum(-1))
    return (chosen.to("cpu", torch.float64) + _LOG_START).log()
