"""Choosing the next token: penalty, temperature, top-k, top-p, min-p, in llama.cpp's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmconv.errors import UsageError

__all__ = ["Sampling", "choose", "generator_of"]


@dataclass(frozen=True)
class Sampling:
    """How to choose.  temperature 0 takes the most likely token; the others narrow what may be drawn.

    top_k: the k most likely (0: all).  top_p: the fewest that sum to p (1: all).  min_p: those at least p times as
    likely as the most likely (0: all).  repetition_penalty: divides positive and multiplies negative logits of the last
    `penalty_last_n` tokens (Keskar et al. 2019, arXiv:1909.05858); 1 is none.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    penalty_last_n: int = 64

    def __post_init__(self) -> None:
        for name in ("top_k", "penalty_last_n"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise UsageError(f"{name} is {value!r}, expected a whole number of 0 or more")
        for name, high in (("temperature", float("inf")), ("top_p", 1.0), ("min_p", 1.0)):
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise UsageError(f"{name} is {value}, expected 0 to {high:g}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UsageError(f"repetition_penalty is {self.repetition_penalty}, expected more than 0")


def choose(
    logits: Tensor, past: Sequence[int], how: Sampling, banned: Tensor | None, generator: torch.Generator
) -> int:
    """The next token for finite logits (V,); `banned` (tokens) are never chosen.  Drawn on the CPU, by seed."""
    logits = logits.float() if logits.dtype != torch.float64 else logits.clone()
    if how.repetition_penalty != 1 and how.penalty_last_n and past:
        _penalize(logits, past[-how.penalty_last_n :], how.repetition_penalty)
    if banned is not None:
        logits[banned] = float("-inf")
    if how.temperature == 0:
        return int(logits.argmax())
    count = min(how.top_k or logits.numel(), logits.numel())
    values, ids = (t.cpu() for t in logits.topk(count))
    chances = values.softmax(-1)
    keep = chances.cumsum(-1) - chances < how.top_p  # the token that passes p is kept, and always the first
    keep &= chances >= how.min_p * chances[0]
    keep[0] = True
    # The likeliest is 0 before it is divided, and doubles hold every temperature: nothing overflows to an infinity.
    drawn = ((values[keep] - values[0]).double() / how.temperature).to(values.dtype).softmax(-1)
    return int(ids[keep][torch.multinomial(drawn, 1, generator=generator)])


def _penalize(logits: Tensor, recent: Sequence[int], penalty: float) -> None:
    seen = torch.tensor(sorted(set(recent)), device=logits.device)
    old, most = logits[seen], torch.finfo(logits.dtype).max
    logits[seen] = torch.where(old > 0, old / penalty, old * penalty).clamp(-most, most)


def generator_of(seed: int | None) -> torch.Generator:
    """Chance that is the same for the same seed; None: another each time.   `UsageError` beyond 64 bits."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    elif isinstance(seed, int) and -(1 << 63) <= seed < 1 << 64:
        generator.manual_seed(seed)
    else:
        raise UsageError(f"seed is {seed!r}, expected a whole number of 64 bits")
    return generator
