"""What learns: the model with what only training needs, its optimizer, and the scale of float16 losses."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llmconv.formats.checkpoint import Checkpoint
from llmconv.runtime.model import Model
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.grid import put_on_grid, teacher_of
from llmconv.runtime.training.optim import make_optimizer
from llmconv.runtime.training.parallel import Team, build_model

__all__ = ["Learner", "make_learner"]


@dataclass
class Learner:
    """A model as a team trains it.

    model: it alone; wrapped: in DDP, sharded, or itself; forward: what a step calls (`wrapped`, compiled or not).
    """

    team: Team
    model: Model
    wrapped: nn.Module
    forward: Any
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    teacher: Model | None = None

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.model.metadata


def make_learner(start: Checkpoint, config: TrainConfig, team: Team) -> Learner:
    """The model of `start`, and all that makes it learn as `config` says."""
    torch.manual_seed(config.seed + team.rank)
    model, wrapped = build_model(start, team, functools.partial(_prepare, config, start))
    return Learner(
        team=team,
        model=model,
        wrapped=wrapped,
        forward=torch.compile(wrapped) if config.compile else wrapped,
        optimizer=make_optimizer(wrapped, config),
        scaler=torch.amp.GradScaler(team.device.type, enabled=config.dtype == "f16"),
        teacher=teacher_of(config.teacher, model, team),
    )


def _prepare(config: TrainConfig, start: Checkpoint, model: Model) -> None:
    if config.qat:
        put_on_grid(model, start, config.qat)
    _add_dropout(model, config.dropout)
    if config.activation_checkpointing:
        _recompute_blocks(model)


def _add_dropout(model: nn.Module, p: float) -> None:
    """Dropout on the embeddings and on what attention and MLP add to the residual, where GPT-2 has it.

    Attention without an output projection has it on its values, of which its output is a mean.
    """
    if not p:
        return

    def drop(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, p, module.training)

    names = {name for name, _ in model.named_modules()}
    for name, module in model.named_modules():
        bare = name.endswith(".attn_v") and name.replace("attn_v", "attn_output") not in names
        if bare or name == "token_embd" or name.endswith((".attn_output", ".ffn_down")):
            module.register_forward_hook(drop)


def _recompute_blocks(model: Any) -> None:
    from torch.utils.checkpoint import checkpoint

    for block in model.blk:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
