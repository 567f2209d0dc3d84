"""Quantization-aware training: weights that are used as their type rounds them, and a teacher to imitate.

Gradients count the rounding as nothing (Bengio et al. 2013, arXiv:1308.3432, "straight through").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from llmconv.convert.quantizing.plan import Recipe, make_plan
from llmconv.errors import UsageError, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant.filetypes import file_type
from llmconv.runtime.linear import Stored
from llmconv.runtime.load import load
from llmconv.runtime.model import Model
from llmconv.runtime.training.parallel import Team

__all__ = ["imitation_loss", "put_on_grid", "teacher_of"]


def put_on_grid(model: Model, start: Checkpoint, type_name: str) -> None:
    """Let the model use its weights as `quantize` to that file type will store them.

    `UsageError` for a type that can't be encoded without importance weights, which change while training does.
    """
    shadows = {n: Tensor.shadow(n, t.shape, t.type) for n, t in start.tensors.items()}
    planned = Checkpoint(shadows, dict(start.metadata))
    plan = make_plan(planned, file_type(type_name), Path("model.gguf"), Recipe(allow_requantize=True))
    if plan.needs_importance:
        raise UsageError(f"{plan.needs_importance} needs importance weights, which training has none of; another --qat")
    modules = dict(model.named_modules())
    for tensor in plan.tensors:
        module = modules.get(tensor.source.name.removesuffix(".weight"))
        if isinstance(module, Stored) and tensor.choice.quantizable:
            module.rounds = tensor.choice.type


def teacher_of(path: str, model: Model, team: Team) -> Model | None:
    """The model to imitate, in float32 on the team's device; `UsageError` for one of another vocabulary."""
    if not path:
        return None
    teacher = load(path, team.device, "f32")
    for p in teacher.parameters():
        p.requires_grad_(False)
    if teacher.decoder.vocab_size != model.decoder.vocab_size:
        raise UsageError(
            f"the teacher {cut(path)} has {teacher.decoder.vocab_size} tokens, the model {model.decoder.vocab_size}; "
            "they must have one vocabulary"
        )
    return teacher


def imitation_loss(logits: torch.Tensor, teacher: Model, inputs: Any, mask: Any, targets: torch.Tensor) -> torch.Tensor:
    """The sum over the targets of KL(teacher || model), in nats."""
    with torch.no_grad():
        wanted = teacher(inputs, mask).float().log_softmax(-1)
    counted = targets.flatten() != -100
    log = logits.float().log_softmax(-1)
    return F.kl_div(log.flatten(0, 1)[counted], wanted.flatten(0, 1)[counted], reduction="sum", log_target=True)
