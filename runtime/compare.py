"""Two checkpoints side by side on one text: is it still the same model?

Definitions as in llama.cpp's `--kl-divergence` (A is its base), from both models' full-precision logits, run together:
no file of logits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmconv.errors import UsageError
from llmconv.progress import Progress, Step
from llmconv.runtime.chunks import (
    Clock,
    Source,
    as_model,
    batches,
    check_finite,
    device_errors,
    text_chunks,
)
from llmconv.runtime.model import Model
from llmconv.runtime.perplexity import mean_and_error, pair_batches, pairs_of
from llmconv.show import Shown

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison(Shown):
    """What B lost against A on `tokens` scored tokens.

    ppl_ratio is ppl_b / ppl_a; its error takes into account that both saw the same text.
    *_kld: of KL(A || B) per token, in nats.  top1_agreement: share of tokens where both think the same most likely.
    rms_dp, mean_dp: of p_B - p_A of the token that came, as fractions.
    """

    ppl_a: float
    ppl_a_stderr: float
    ppl_b: float
    ppl_b_stderr: float
    ppl_ratio: float
    ppl_ratio_stderr: float
    mean_kld: float
    mean_kld_stderr: float
    median_kld: float
    kld_90: float
    kld_99: float
    kld_999: float
    max_kld: float
    top1_agreement: float
    top1_agreement_stderr: float
    mean_dp: float
    mean_dp_stderr: float
    rms_dp: float
    rms_dp_stderr: float
    tokens: int
    context: int
    chunks: int
    seconds: float
    tokens_per_second: float


def compare(
    a: Source,
    b: Source,
    text: str | os.PathLike[str],
    *,
    context: int | None = None,
    chunks: int | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    activations: str = "float",
    progress: Progress | None = None,
) -> Comparison:
    """Run models `a` (the reference) and `b` over a text file and compare their predictions, token by token.

    Arguments as `perplexity`'s; of pairs, every position is compared.
    `UsageError` when the two don't share a vocabulary.
    """
    left, right = (as_model(source, device, dtype, activations) for source in (a, b))
    with torch.inference_mode(), device_errors(left.device):
        work = _work(left, a, text, context, chunks)
        found: list[Tensor] = []
        clock, width, seen, total = Clock(), 0, 0, 0
        for done, total, inputs, scored, targets in work:
            if not found:
                _check_same_words(left, right)
            hidden = [m.hidden(inputs.to(m.device))[:, scored].flatten(0, 1) for m in (left, right)]
            found.append(_token_figures(left, right, hidden[0], hidden[1], targets.reshape(-1)))
            width, seen = max(width, inputs.shape[1]), seen + inputs.numel()
            check_finite(found[-1][2].mean().item(), b)
            if progress:
                kld = torch.cat([part[2] for part in found]).mean().item()
                progress(Step("compare", done, total, "chunks", facts={"kld": kld}))
    return _summary(torch.cat(found, 1), width, total, seen, clock)


def _work(
    model: Model, source: Source, text: str | os.PathLike[str], context: int | None, chunks: int | None
) -> Iterator[tuple[int, int, Tensor, slice, Tensor]]:
    """What to run and score: (chunks done after it, in all, inputs (B, T), scored positions, their targets)."""
    pairs = pairs_of(text)
    if pairs is not None:
        pairs = pairs[:chunks]
        for done, inputs, targets in pair_batches(model, source, text, pairs):
            yield done, len(pairs), inputs, slice(None), targets
        return
    cut = text_chunks(model, source, text, context, chunks, None)
    for rows, tokens in batches(cut, model.device):
        yield rows[-1] + 1, len(cut), tokens, slice(cut.first, -1), tokens[:, cut.first + 1 :]


def _check_same_words(left: Model, right: Model) -> None:
    sizes = left.decoder.vocab_size, right.decoder.vocab_size
    if sizes[0] != sizes[1]:
        raise UsageError(f"the models have {sizes[0]} and {sizes[1]} tokens, so their predictions can't be compared")
    if right.tokenizer is not None and left.tokenizer is not None:
        ours, theirs = left.tokenizer.vocab.tokens, right.tokenizer.vocab.tokens
        for i, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            if one != other:
                raise UsageError(
                    f"token {i} is {one!r} in the first model and {other!r} in the second, not one vocabulary"
                )


def _token_figures(left: Model, right: Model, ours: Tensor, theirs: Tensor, targets: Tensor) -> Tensor:
    """For hidden states (N, dim) of both: (5, N) float64: -ln p_A, -ln p_B, KL, same top, p_B - p_A."""
    step = max(1, (1 << 23) // left.decoder.vocab_size)
    out = []
    exact = torch.float32 if left.device.type == "mps" else torch.float64
    for start in range(0, len(targets), step):
        logs = [
            m.head(h[start : start + step]).to(left.device, exact).log_softmax(-1)
            for m, h in ((left, ours), (right, theirs))
        ]
        log_a, log_b = logs
        wanted = targets[start : start + step, None]
        chosen_a, chosen_b = log_a.gather(-1, wanted)[:, 0], log_b.gather(-1, wanted)[:, 0]
        chances = log_a.exp()
        kld = torch.where(chances > 0, chances * (log_a - log_b), 0.0).sum(-1)
        same = (log_a.argmax(-1) == log_b.argmax(-1)).to(exact)
        out.append(
            torch.stack((-chosen_a, -chosen_b, kld, same, chosen_b.exp() - chosen_a.exp())).to("cpu", torch.float64)
        )
    return torch.cat(out, 1)


def _summary(figures: Tensor, context: int, chunks: int, seen: int, clock: Clock) -> Comparison:
    loss_a, loss_b, kld, same, change = figures
    n = loss_a.numel()
    (mean_a, error_a), (mean_b, error_b) = mean_and_error(loss_a), mean_and_error(loss_b)
    ppl_a, ppl_b = math.exp(min(mean_a, 700)), math.exp(min(mean_b, 700))
    covariance = ((loss_a * loss_b).mean().item() - mean_a * mean_b) / max(n - 1, 1)
    ratio = math.exp(max(min(mean_b - mean_a, 700), -700))
    ratio_error = math.sqrt(max(error_a**2 + error_b**2 - 2 * covariance, 0.0)) * ratio
    mean_kld, kld_error = mean_and_error(kld)
    median, kld_90, kld_99, kld_999 = np.quantile(kld.numpy(), (0.5, 0.9, 0.99, 0.999)).tolist()
    agreement = same.mean().item()
    mean_dp, dp_error = mean_and_error(change)
    square, square_error = mean_and_error(change.square())
    rms = math.sqrt(square)
    return Comparison(
        ppl_a=ppl_a,
        ppl_a_stderr=error_a * ppl_a,
        ppl_b=ppl_b,
        ppl_b_stderr=error_b * ppl_b,
        ppl_ratio=ratio,
        ppl_ratio_stderr=ratio_error,
        mean_kld=mean_kld,
        mean_kld_stderr=kld_error,
        median_kld=median,
        kld_90=kld_90,
        kld_99=kld_99,
        kld_999=kld_999,
        max_kld=kld.max().item(),
        top1_agreement=agreement,
        top1_agreement_stderr=math.sqrt(agreement * (1 - agreement) / (n - 1)) if n > 1 else 0.0,
        mean_dp=mean_dp,
        mean_dp_stderr=dp_error,
        rms_dp=rms,
        rms_dp_stderr=square_error / (2 * rms) if rms else 0.0,
        tokens=n,
        context=context,
        chunks=chunks,
        seconds=clock.seconds,
        tokens_per_second=seen / clock.seconds,
    )
