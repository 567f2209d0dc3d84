"""Optimizer and learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from llmconv.runtime.training.config import TrainConfig

__all__ = ["learning_rate", "make_optimizer"]


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, then the schedule down to `peak_lr * min_lr_ratio`.

    "wsd" (warm-up, stable, decay; Hu et al. 2024, arXiv:2404.06395) stays at `peak_lr` until its last `decay_share`.
    """
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    begin = config.warmup_steps
    if config.schedule == "wsd":
        begin = max(begin, round(config.steps * (1 - config.decay_share)))
    done = min(1.0, max(0.0, (step - begin) / max(1, config.steps - begin)))
    low = config.peak_lr * config.min_lr_ratio
    match config.schedule:
        case "cosine":
            return low + (config.peak_lr - low) * 0.5 * (1 + math.cos(math.pi * done))
        case "linear" | "wsd":
            return config.peak_lr + (low - config.peak_lr) * done
        case _:
            return config.peak_lr


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (fused) or SGD; weight decay on matrices only, never on norms, biases and other vectors."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.peak_lr, momentum=config.beta1, nesterov=config.beta1 > 0)
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
