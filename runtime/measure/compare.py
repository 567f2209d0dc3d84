"""Two checkpoints side by side on one text: is it still the same model?

Definitions as in llama.cpp's `--kl-divergence` (A is its base), from both models' full-precision logits, run together:
no file of logits.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llmconv.convert.vocab import TokenType
from llmconv.errors import UsageError, cut
from llmconv.progress import Meter, Progress
from llmconv.runtime.checks import check_finite
from llmconv.runtime.measure import texts
from llmconv.runtime.measure.along import Along
from llmconv.runtime.measure.chunks import Batch, Clock, Running, Source, Window, Work, device_errors, work_on
from llmconv.runtime.measure.perplexity import mean_and_error
from llmconv.runtime.measure.sharing import Recall, of_each
from llmconv.runtime.model import Model
from llmconv.runtime.streamed.memory import Memory
from llmconv.show import Shown

__all__ = ["Comparison", "compare", "compared"]


@dataclass(frozen=True)
class Comparison(Shown):
    """What B lost against A on `tokens` scored tokens.

    ppl_ratio is ppl_b / ppl_a; its error takes into account that both saw the same text.
    *_kld: of KL(A || B) per token, in nats.  top1_agreement: share of tokens where both think the same most likely.
    rms_dp, mean_dp: of p_B - p_A of the token that came, as fractions.
    context: tokens in a chunk, or in the longest pair; chunks: how many of `unit` ("chunk" or "pair") were run.
    notes: what should be known of the text and of how the models ran.
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
    unit: str = "chunk"
    notes: list[str] = field(default_factory=list)


def compare(
    a: Source,
    b: Source,
    text: texts.TextSource,
    *,
    context: int | None = None,
    chunks: int | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    activations: str = "float",
    memory: Memory = None,
    plot: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run models `a` (the reference) and `b` over a text and compare their predictions, token by token.

    plot: an SVG to write: both losses along the text, KLD by position and by kind of token.
    Other arguments as `perplexity`'s; of pairs, every position is compared.  Where one vocabulary is the other's with
    padding behind it, the tokens of both are compared.  What either model spends on its padding, a share m of the
    probability at a position, counts as -ln(1 - m) of that position's KLD, and a note says how much it was.

    `UsageError` when the two don't share a vocabulary; `LlmconvError` when a scored position's logits hold NaN or
    infinities on either side: it names the model, the position and the likely cause.
    """
    along = Along(plot, ("A", "B"), "KLD")
    how = Running(device, dtype, activations, memory)
    return compared(a, b, text, Window(context, chunks), how, progress, along)


def compared(
    a: Source,
    b: Source,
    text: texts.TextSource,
    window: Window,
    how: Running,
    progress: Progress | None,
    along: Along | None = None,
    recall: Recall | None = None,
) -> Comparison:
    """`compare`.   recall: of model `a`, from comparing it with another over the same text."""
    with how.models(a, b) as (left, right), torch.inference_mode(), device_errors(left.device):
        work = work_on(left, texts.read(text), window)
        shared = _shared_words(left, right)
        found: list[Tensor] = []
        meter, clock, seen, done = Meter(progress, "compare", work.total, f"{work.unit}s"), Clock(), 0, 0
        kld, count = 0.0, 0
        batches = list(work.batches)
        make = functools.partial(_token_figures, (left, right), work.unit, shared)
        for batch, figures in of_each((left, right), batches, make, progress, recall):
            found.append(figures)
            if along is not None:
                along.add(batch, *figures[:3])
            seen, done = seen + batch.inputs.numel(), done + len(batch.numbers)
            kld, count = kld + figures[2].sum().item(), count + figures.shape[1]
            meter.reach(done, kld=kld / count)
    if along is not None:
        along.draw(left.tokenizer, f"{right.where} against {left.where}")
    notes = [f"{side}: {note}" for side, model in (("A", left), ("B", right)) for note in model.notes]
    all_figures = torch.cat(found, 1)
    notes += _padding_notes(left, right, all_figures[5], shared)
    return _summary(all_figures[:5], work, seen, clock, [*notes, *work.notes])


def _shared_words(left: Model, right: Model) -> int:
    """How many tokens the models share; `UsageError` unless one vocabulary is the other's, perhaps with padding."""
    sizes = left.decoder.vocab_size, right.decoder.vocab_size
    shared = min(sizes)
    if right.tokenizer is not None and left.tokenizer is not None:
        ours, theirs = left.tokenizer.vocab.tokens, right.tokenizer.vocab.tokens
        for i, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            if one != other:
                raise UsageError(
                    f"token {i} is {cut(one)} in the first model and {cut(other)} in the second, not one vocabulary"
                )
    if sizes[0] != sizes[1]:
        larger = left if sizes[0] > sizes[1] else right
        if larger.tokenizer is None or not _padded_from(larger, shared):
            raise UsageError(
                f"the models have {sizes[0]} and {sizes[1]} tokens, so their predictions can't be compared"
            )
    return shared


def _padded_from(model: Model, first: int) -> bool:
    """Whether the tokens from `first` on only fill the embedding up: nameless, or marked as unused."""
    vocab = model.tokenizer.vocab
    return all(vocab.type_of(i) == TokenType.UNUSED for i in range(first, len(vocab.tokens)))


def _padding_notes(left: Model, right: Model, spent: Tensor, shared: int) -> list[str]:
    """How many rows one side has alone, and the share of the probability that it spends on them."""
    for side, model in (("A", left), ("B", right)):
        if more := model.decoder.vocab_size - shared:
            rows = "1 row of padding" if more == 1 else f"{more:,} rows of padding"
            mean, most = spent.mean().item(), spent.max().item()
            return [f"{side}: its {rows} took {mean:.2g} of the probability on average, at most {most:.2g}"]
    return []


def _token_figures(
    models: tuple[Model, Model], unit: str, shared: int, batch: Batch, hidden: Sequence[Tensor]
) -> Tensor:
    """(6, N) float64 for N scored positions: -ln p_A, -ln p_B, KL, same top, p_B - p_A, share spent on padding.

    KL is that of A's probabilities of the shared tokens, made to sum to 1, from B's, and beside it -ln of that sum:
    without the latter a model that is sure of its padding would lose nothing against one that never says it.
    hidden: of each model, (N, dim).
    """
    left, device = models[0], models[0].device
    targets = batch.targets.flatten()
    step = max(1, (1 << 23) // left.decoder.vocab_size)
    out = []
    exact = torch.float32 if device.type == "mps" else torch.float64
    for start in range(0, len(targets), step):
        logs = []
        for side, model, states in zip("AB", models, hidden, strict=True):
            logits = model.head(states[start : start + step])
            check_finite(logits, model, batch.places(unit, start), side)
            logs.append(logits.to(device, exact).log_softmax(-1))
        wanted = targets[start : start + step, None]
        chosen_a, chosen_b = (log.gather(-1, wanted)[:, 0] for log in logs)
        kept_a, kept_b = (_kept(log, shared) for log in logs)
        log_a = logs[0][:, :shared].log_softmax(-1) if shared < logs[0].shape[1] else logs[0]
        kld = torch.linalg.vecdot(log_a.exp(), log_a - logs[1][:, :shared])  # all finite: what is 0 adds nothing
        if shared < logs[0].shape[1]:
            kld -= kept_a
        same = (logs[0].argmax(-1) == logs[1].argmax(-1)).to(exact)
        spent = -torch.expm1(torch.minimum(kept_a, kept_b))
        figures = torch.stack((-chosen_a, -chosen_b, kld, same, chosen_b.exp() - chosen_a.exp(), spent))
        out.append(figures.to("cpu", torch.float64))
    return torch.cat(out, 1)


def _kept(log: Tensor, shared: int) -> Tensor:
    """ln of the probability of the first `shared` tokens, (N,)."""
    return log[:, :shared].logsumexp(-1).clamp(max=0) if shared < log.shape[1] else log.new_zeros(len(log))


def _summary(figures: Tensor, work: Work, seen: int, clock: Clock, notes: list[str]) -> Comparison:
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
        context=work.context,
        chunks=work.total,
        seconds=clock.seconds,
        tokens_per_second=seen / clock.seconds,
        unit=work.unit,
        notes=notes,
    )
