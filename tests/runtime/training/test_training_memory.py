"""The memory plan against what torch really keeps and allocates."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from worded import by_hand_gguf

torch = pytest.importorskip("torch", reason="measures what torch keeps")

from llmconv import formats
from llmconv.convert.reports.shape import shape_of
from llmconv.convert.reports.training_memory import TrainingMemory, training_memory
from llmconv.convert.translate import translate
from llmconv.convert.vocab import from_words
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.initial import fresh_checkpoint
from llmconv.runtime.training.learner import Learner, make_learner
from llmconv.runtime.training.parallel import Team
from llmconv.runtime.training.step import _summed_loss

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH, CONTEXT = 2, 48


def learner_of(preset: str, dim: int, vocab: int = 300, **changes: Any) -> tuple[Learner, TrainConfig, TrainingMemory]:
    heads = 1 if preset == "simple-36k" else 4
    config = TrainConfig(
        data="-", output="-", preset=preset, layers=3, dim=dim, heads=heads, context=CONTEXT, **changes
    )
    start = fresh_checkpoint(config, from_words(["[PAD]", "[UNK]", "[EOS]", *map(str, range(vocab - 3))]))
    shape = shape_of(start)
    planned = training_memory(
        shape,
        batch=BATCH,
        context=CONTEXT,
        activation_bytes=4 if config.dtype == "f32" else 2,
        checkpointing=config.activation_checkpointing,
        dropout=config.dropout > 0,
    )
    return make_learner(start, config, Team(0, 1, torch.device("cpu"))), config, planned


def allocated(run: Callable[[], Any]) -> list[int]:
    """Bytes that torch had after each time that it took or freed some; what `run` gives is alive to the end."""
    gc.disable()  # what it frees was taken before
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            made = run()
    finally:
        gc.enable()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    del made
    return list(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def kept_bytes(learner: Learner, config: TrainConfig, tokens: Any) -> int:
    """What there is after the forward pass: what autograd keeps for the backward one."""
    return allocated(lambda: _summed_loss(config, learner, tokens, None, tokens))[-1]


def peak_bytes(learner: Learner, config: TrainConfig, tokens: Any) -> int:
    """The most that a forward and backward pass has allocated at once, gradients being there already."""
    _summed_loss(config, learner, tokens, None, tokens).backward()
    return max(allocated(lambda: _summed_loss(config, learner, tokens, None, tokens).backward()))


@pytest.mark.parametrize(("dropout", "checkpointing"), [(0.0, False), (0.1, False), (0.0, True), (0.1, True)])
@pytest.mark.parametrize("dtype", ["f32", "bf16", pytest.param("f16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("preset", ["gpt2-small", "llama-15m", "simple-1m", "simple-36k"])
def test_activations_are_what_autograd_keeps(preset: str, dtype: str, dropout: float, checkpointing: bool) -> None:
    for dim in (64,) if dropout or checkpointing else (32, 64, 128):
        learner, config, planned = learner_of(
            preset, dim, dtype=dtype, dropout=dropout, activation_checkpointing=checkpointing
        )
        tokens = torch.randint(0, 300, (BATCH, CONTEXT))
        assert planned.activations == pytest.approx(kept_bytes(learner, config, tokens), rel=0.1), dim


ROUTED = ["mixtral", "qwen2-moe", "qwen3-moe", "granite-moe-shared", "gpt-oss"]
LATENT = ["deepseek-v2", "deepseek-v2-latent-query", "deepseek-v3"]
NORMS = ["olmo", "stablelm-12b", "command-r-plus"]  # without weights, with one for each head
BESIDE = ["gemma3n", "hrm-text", "mamba2", "qwen3-next", "mimo2", "hy-v4-transformers", "minicpm3"]


@pytest.mark.parametrize("name", [*ROUTED, *LATENT, *NORMS, *(pytest.param(n, marks=pytest.mark.slow) for n in BESIDE)])
def test_what_other_families_have_is_counted_too(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="makes the models")
    import tiny_models

    tiny_models.build(name, tmp_path)
    start = translate(formats.open(tmp_path), "gguf")
    for dtype, batch, context in (("f32", 2, 48), ("bf16", 2, 48), ("bf16", 4, 80)):
        config = TrainConfig(data="-", output="-", from_checkpoint=str(tmp_path), dtype=dtype)
        planned = training_memory(
            shape_of(start), batch=batch, context=context, activation_bytes=4 if dtype == "f32" else 2
        )
        learner = make_learner(start, config, Team(0, 1, torch.device("cpu")))
        tokens = torch.randint(3, 96, (batch, context), generator=torch.Generator().manual_seed(1))
        assert planned.activations == pytest.approx(kept_bytes(learner, config, tokens), rel=0.1), (dtype, batch)


PIECES = ["rwkv7", "ling3", "deepseek4", "kimi-k3", "qwen4exp", "glm5-next", "granite-switch", "talkie"]
MORE = [
    "mimo2-published",
    "plamo2",
    "plamo3",
    "grovemoe",
    "cogvlm",
    "minimax-01",
    "rwkv6",
    "arwkv7",
    "hy-v4",
    "dots3",
    "maple",
]
MORE += ["nemotron-h-predicting"]


@pytest.mark.parametrize("name", [*PIECES, *(pytest.param(n, marks=pytest.mark.slow) for n in MORE)])
def test_what_every_piece_keeps_is_counted(name: str, tmp_path: Path) -> None:
    start = translate(formats.open(by_hand_gguf(name, tmp_path)), "gguf")
    for dtype, batch, context in (("f32", 2, 48), ("bf16", 2, 80)):
        config = TrainConfig(data="-", output="-", from_checkpoint=str(tmp_path), dtype=dtype)
        width = 4 if dtype == "f32" else 2
        planned = training_memory(shape_of(start), batch=batch, context=context, activation_bytes=width)
        learner = make_learner(start, config, Team(0, 1, torch.device("cpu")))
        tokens = torch.randint(3, 96, (batch, context), generator=torch.Generator().manual_seed(1))
        assert planned.activations == pytest.approx(kept_bytes(learner, config, tokens), rel=0.1), dtype


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dtype", "vocab"), [("f32", 300), ("f32", 5000), ("bf16", 300), ("bf16", 5000)])
def test_the_plan_is_the_peak_of_a_step(dtype: str, vocab: int, checkpointing: bool) -> None:
    """Of a model that is small beside its activations, as the gradients of matrices come and go too."""
    for preset in ("gpt2-small", "llama-15m"):
        learner, config, planned = learner_of(
            preset, 64, vocab, dtype=dtype, activation_checkpointing=checkpointing, dropout=0.1
        )
        tokens = torch.randint(0, vocab, (BATCH, CONTEXT))
        expected = planned.activations + planned.workspace
        assert expected == pytest.approx(peak_bytes(learner, config, tokens), rel=0.1), preset
