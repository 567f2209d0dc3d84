"""One optimizer step and one validation, the same whatever the number of parts and processes."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llmconv.runtime.load import DTYPES
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.data import Batch, Pairs, Stream
from llmconv.runtime.training.parallel import Team

__all__ = ["train_step", "validate"]


def train_step(
    config: TrainConfig,
    forward: Any,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    team: Team,
    scaler: torch.amp.GradScaler,
) -> tuple[float, int, float]:
    """One optimizer step: its loss (nats per target, over all processes), how many targets, and the gradients' norm.

    Every part's loss is its sum over targets divided by the targets of the whole step, so neither the number of
    processes nor that of parts changes what is computed, whatever the padding.  The weights stay when the loss is
    not finite.
    """
    count = int((batch.targets != -100).sum())
    share = -(-batch.inputs.shape[0] // (team.size * config.accumulation))
    total = torch.zeros((), device=team.device)
    for part in range(config.accumulation):
        first = (part * team.size + team.rank) * share
        inputs, targets = (t[first : first + share].to(team.device) for t in (batch.inputs, batch.targets))
        mask = None if batch.mask is None else batch.mask[first : first + share].to(team.device)
        sync: Any = contextlib.nullcontext()
        if part < config.accumulation - 1 and isinstance(wrapped, nn.parallel.DistributedDataParallel):
            sync = wrapped.no_sync()
        with sync:
            with _autocast(config, team):
                logits = forward(inputs, mask)
                summed = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
            # DDP and FSDP average gradients over processes: undo it.
            scaler.scale(summed / count * team.size).backward()  # type: ignore[no-untyped-call]
        total += summed.detach()
    loss = float(team.total(total)) / count
    grad_norm = math.nan
    if math.isfinite(loss):
        scaler.unscale_(optimizer)
        if config.clip:
            norm = nn.utils.clip_grad_norm_(wrapped.parameters(), config.clip)
            grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss, count, grad_norm


def _autocast(config: TrainConfig, team: Team) -> Any:
    if config.dtype == "f32":
        return contextlib.nullcontext()
    return torch.autocast(team.device.type, DTYPES[config.dtype])


@torch.no_grad()
def validate(config: TrainConfig, wrapped: nn.Module, validation: Stream | Pairs, team: Team) -> float:
    """Mean loss over the validation data, nats per token; each process takes its share."""
    wrapped.eval()
    sums = torch.zeros(2, dtype=torch.float64, device="cpu" if team.device.type == "mps" else team.device)
    size = max(1, config.batch_size // config.accumulation)
    for i, batch in enumerate(validation.all(size, config.eval_batches)):
        if not team.sharded and i % team.size != team.rank:
            continue  # with sharded weights all processes must take part in every forward
        mask = None if batch.mask is None else batch.mask.to(team.device)
        inner = wrapped.module if isinstance(wrapped, nn.parallel.DistributedDataParallel) else wrapped
        with _autocast(config, team):
            logits = inner(batch.inputs.to(team.device), mask)
        targets = batch.targets.to(team.device)
        sums[0] += F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        sums[1] += (targets != -100).sum()
    wrapped.train()
    if not team.sharded:
        team.total(sums)
    return float(sums[0] / sums[1])
