"""RWKV 6 and 7 and their hybrids against their recurrence, token by token in numpy; through every command's way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest
import recurrences
from worded import by_hand_folder, by_hand_gguf, resident_and_streamed

import llmconv
from llmconv.convert.dialects import hf
from llmconv.errors import BadFile
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["rwkv6", "rwkv6-qwen2", "rwkv7", "arwkv7"]
IDS = [int(i) for i in np.random.default_rng(3).integers(3, 96, 45)]


def folder_of(name: str) -> Checkpoint:
    return by_hand_folder(by_hand.CONFIGS[name], all_rows=name == "arwkv7")


@pytest.mark.parametrize("name", NAMES)
def test_as_the_recurrence_token_by_token(name: str) -> None:
    folder = folder_of(name)
    expected = recurrences.logits(folder, IDS)
    ours = llmconv.load(folder, "cpu", "f32")
    tokens = torch.tensor([IDS])
    with torch.no_grad():
        logits = ours(tokens)
        assert expected.std() > 0.1
        np.testing.assert_allclose(logits[0].numpy(), expected, atol=2e-5, rtol=0)
        cache = ours.cache(1, 64)
        steps = [ours(tokens[:, :19], cache=cache), *(ours(tokens[:, i : i + 1], cache=cache) for i in range(19, 30))]
        steps.append(ours(tokens[:, 30:], cache=cache))
        torch.testing.assert_close(torch.cat(steps, 1), logits, atol=2e-5, rtol=0)


def test_without_a_gate_or_a_norm() -> None:
    """ARWKV's are optional: five shares then, and heads as they come."""
    folder = by_hand_folder(by_hand.CONFIGS["arwkv7"])
    np.testing.assert_allclose(
        llmconv.load(folder, "cpu", "f32")(torch.tensor([IDS]))[0].detach().numpy(),
        recurrences.logits(folder, IDS),
        atol=2e-5,
        rtol=0,
    )
    gguf = hf.to_gguf(folder)
    kept = {n: t for n, t in gguf.tensors.items() if "time_mix_g" not in n}
    with pytest.raises(BadFile, match=r"time_mix_lerp_fused\.weight.* which its gate is not for"):
        llmconv.load(gguf.but(tensors=kept), "cpu")
    for name in [name for name in kept if name.endswith("lerp_fused.weight")]:
        kept[name] = Tensor.from_array(name, kept[name].numpy()[:5])
    assert bool(llmconv.load(gguf.but(tensors=kept), "cpu")(torch.tensor([IDS])).isfinite().all())


_LATER = [pytest.param(name, marks=pytest.mark.slow) for name in ("rwkv6", "minimax-m3", "ling3")]


@pytest.mark.parametrize("name", ["rwkv7", "minimax-01", *_LATER])
def test_streamed_it_is_the_same_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, streamed = resident_and_streamed(by_hand_gguf(name, tmp_path), monkeypatch)
    assert streamed == whole


def test_what_is_kept_of_a_text(tmp_path: Path) -> None:
    """Bytes of states, whatever the text's length: of each head a square, of each layer the tokens before."""
    made: dict[str, Any] = {
        name: llmconv.size(by_hand_gguf(name, tmp_path)) for name in ("rwkv6", "arwkv7", "minimax-01")
    }
    assert made["rwkv6"].states == 4 * 2 * (8 * 16 * 16 + 2 * 128)
    assert made["arwkv7"].states == 4 * 2 * (2 * 64 * 64 + 128)
    assert made["minimax-01"].states == 4 * 4 * 16 * 16  # one of its layers is lightning
    for name in ("rwkv6", "arwkv7"):
        model = llmconv.load(by_hand_gguf(name, tmp_path), "cpu")
        cache = model.cache(1, 8)
        with torch.no_grad():
            model(torch.tensor([IDS[:8]]), cache=cache)
        kept = sum(t.numel() for state in cache.states if state is not None for t in state)
        assert 4 * kept == made[name].states and all(layer is None for layer in cache.layers)
