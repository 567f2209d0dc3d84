"""One optimizer step and one validation, the same whatever the number of parts and processes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llmconv.errors import LlmconvError, at
from llmconv.runtime.linear import Stored
from llmconv.runtime.load import DTYPES
from llmconv.runtime.measure.perplexity import log_likelihoods
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.data import Batch, Pairs, Stream
from llmconv.runtime.training.grid import imitation_loss
from llmconv.runtime.training.learner import Learner
from llmconv.runtime.training.loss import loss_of_head
from llmconv.runtime.training.parallel import Team

__all__ = ["Done", "train_step", "validate"]

TEXT_SEQUENCES = 320
"""Windows of a text that a validation looks at when nothing is said; of pairs it looks at all."""
_LEAST_SCALE = 1e-3
"""A float16 scale that has been halved to this will not end the overflow any more."""


@dataclass(frozen=True)
class Done:
    """A step that is done: loss (nats per target, over all processes), targets, the gradients' norm (NaN for a step
    that float16 overflow took away), and whether some process was asked to stop."""

    loss: float
    tokens: int
    grad_norm: float
    stop: bool = False


def train_step(config: TrainConfig, learner: Learner, batch: Batch, step: int, stop: bool = False) -> Done:
    """Optimizer step number `step` (from 0).

    Every part's loss is its sum over targets divided by the targets of the whole step, so neither the number of
    processes nor that of parts changes what is computed, whatever the padding.
    stop: whether this process was asked to stop; all learn of it.

    Raises `LlmconvError`, the weights as they were, when the loss or the gradients are not finite.
    """
    team = learner.team
    count = int((batch.targets != -100).sum())
    total = torch.zeros(2, device=team.device)
    total[1] = stop
    for part in range(config.accumulation):
        inputs, targets, mask = _share(batch, part, config, team)
        sync: Any = contextlib.nullcontext()
        if part < config.accumulation - 1 and isinstance(learner.wrapped, nn.parallel.DistributedDataParallel):
            sync = learner.wrapped.no_sync()
        with sync:
            # DDP and FSDP average gradients over processes: undo it.
            summed, loss = _losses(config, learner, inputs, mask, targets, team.size / count)
            learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total[0] += summed.detach()
    mean, asked = team.total(total).tolist()
    mean /= count
    if not math.isfinite(mean):
        raise _not_finite(config, step, f"the loss is {mean}")
    grad_norm = _optimize(config, learner, step)
    learner.optimizer.zero_grad(set_to_none=True)
    return Done(mean, count, grad_norm, asked > 0)


def _losses(
    config: TrainConfig, learner: Learner, inputs: Any, mask: Any, targets: Any, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the losses over the targets, and that times `share`, whose gradients are wanted."""
    head = _plain_head(config, learner)
    if head is not None:
        return loss_of_head(learner.model.hidden(inputs, mask), head, targets, share)
    summed = _summed_loss(config, learner, inputs, mask, targets)
    return summed, summed * share


def _plain_head(config: TrainConfig, learner: Learner) -> torch.Tensor | None:
    """The head's matrix, where float32 logits are its product with hidden states, in a process that learns alone."""
    model, spec = learner.model, learner.model.decoder
    if config.dtype != "f32" or config.compile or learner.teacher is not None or learner.wrapped is not model:
        return None
    head = model.token_embd if model.output is None else model.output
    changed = spec.head_norm or spec.logit_scale != 1 or spec.final_softcap is not None or spec.silent is not None
    if changed or model.output_in is not None or not isinstance(head, Stored):
        return None
    bare = head.bias is None and head.block_type is None and head.rounds is None and not getattr(head, "scaled", False)
    whole = not hasattr(head.weight, "full_tensor")  # FSDP gathers it when the model is called
    return head.weight if bare and whole and head.weight.requires_grad and head.weight.dtype == torch.float32 else None


def _summed_loss(config: TrainConfig, learner: Learner, inputs: Any, mask: Any, targets: Any) -> torch.Tensor:
    """The sum of the losses over the targets; the logits themselves are gone when it returns."""
    with _autocast(config, learner.team):
        logits = learner.forward(inputs, mask)
        if learner.teacher is not None:
            return imitation_loss(logits, learner.teacher, inputs, mask, targets)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")


def _share(batch: Batch, part: int, config: TrainConfig, team: Team) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """This process's inputs, targets and mask of one part of a batch."""
    size = -(-batch.inputs.shape[0] // (team.size * config.accumulation))
    first = (part * team.size + team.rank) * size
    parts = (batch.inputs, batch.targets, batch.mask)
    inputs, targets, mask = (None if t is None else t[first : first + size].to(team.device) for t in parts)
    assert inputs is not None
    assert targets is not None
    return inputs, targets, mask


def _optimize(config: TrainConfig, learner: Learner, step: int) -> float:
    """Clip the gradients and move the weights; the norm that the gradients had."""
    scaler = learner.scaler
    scaler.unscale_(learner.optimizer)
    found = nn.utils.clip_grad_norm_(learner.wrapped.parameters(), config.clip or math.inf)
    norm = float(found.full_tensor() if hasattr(found, "full_tensor") else found)
    if not math.isfinite(norm):
        if not scaler.is_enabled():
            raise _not_finite(config, step, f"the gradients' norm is {norm}")
        if scaler.get_scale() < _LEAST_SCALE:
            raise _not_finite(config, step, "the gradients overflow float16 at every scale")
    scaler.step(learner.optimizer)
    scaler.update()
    return norm


def _not_finite(config: TrainConfig, step: int, what: str) -> LlmconvError:
    if step == 0 and config.from_checkpoint:
        cause = f"the weights of {at(config.from_checkpoint)} may be the cause; look at them with inspect --stats"
    elif config.dtype == "f16":
        cause = "float16 is likely too narrow for it; use --dtype bf16 or f32"
    else:
        cause = "the learning rate is likely too high; lower --lr, raise --warmup or clip harder (--clip)"
    return LlmconvError(f"{at(config.data)}: {what} at step {step + 1}; {cause}")


def _autocast(config: TrainConfig, team: Team) -> Any:
    if config.dtype == "f32":
        return contextlib.nullcontext()
    return torch.autocast(team.device.type, DTYPES[config.dtype])


@torch.no_grad()
def validate(
    config: TrainConfig,
    learner: Learner,
    validation: Stream | Pairs,
    tell: Callable[[int, int], bool] = lambda done, total: False,
) -> float | None:
    """Mean loss over the validation data, nats per token, as `perplexity` defines it; each process takes its share.

    What is measured depends on `config.eval_sequences` alone.  tell: called with the sequences done and all of them;
    when it gives True the validation ends without a result, None.
    """
    team, wanted = learner.team, config.eval_sequences
    if wanted < 0:
        wanted = 0 if isinstance(validation, Pairs) else TEXT_SEQUENCES
    total = min(wanted, validation.n_sequences) if wanted else validation.n_sequences
    size = max(1, config.batch_size // config.accumulation // team.size)
    inner = learner.wrapped
    inner = inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else inner
    sums = torch.zeros(2, dtype=torch.float64, device="cpu" if team.device.type == "mps" else team.device)
    inner.eval()
    try:
        for first in range(0, total, size * team.size):
            mine = first + team.rank * size
            # One that has nothing left works all the same: with sharded weights a forward takes all processes.
            batch = validation.sequences(min(mine, total - 1), min(mine + size, total))
            if mine < total or team.sharded:
                sums += _measured(config, learner, inner, batch) * (mine < total)
            if tell(min(first + size * team.size, total), total):
                return None
    finally:
        inner.train()
    team.total(sums)
    return float(sums[0] / sums[1])


def _measured(config: TrainConfig, learner: Learner, inner: nn.Module, batch: Batch) -> torch.Tensor:
    """(sum of the losses, targets) of a batch, float64."""
    device = learner.team.device
    with _autocast(config, learner.team):
        logits = inner(batch.inputs.to(device), None if batch.mask is None else batch.mask.to(device))
    kept = (batch.targets != -100).to(device)
    logits = logits[kept]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    start = learner.model.decoder.softmax_start
    losses = -log_likelihoods(logits, batch.targets.to(device)[kept], start).to("cpu", torch.float64)
    return torch.stack([losses.sum(), torch.tensor(float(losses.numel()), dtype=torch.float64)]).to(
        "cpu" if device.type == "mps" else device
    )
