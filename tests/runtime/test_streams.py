"""Streams of residuals, pools and runs, adapters that tokens turn on: through caches, padding, and layers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest
from worded import WORDS, by_hand_folder, by_hand_gguf, resident_and_streamed

import llmconv
from llmconv.errors import BadFile
from llmconv.formats.tensor import Tensor

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("kimi-k3", "granite-switch", "grovemoe", "deepseek4", "glm5-next", "qwen4exp", "hy-v4", "dots3-rescaled")
TURNING = {"granite-switch": 33}
"""Tokens after which another adapter is on."""


def ids(name: str, count: int = 60) -> Any:
    found = torch.randint(3, 90, (1, count), generator=torch.Generator().manual_seed(2))
    if name in TURNING:
        found[0, 9] = TURNING[name]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_token_by_token_and_padded_it_is_the_same(name: str) -> None:
    model = llmconv.load(by_hand_folder(by_hand.CONFIGS[name], by_hand.FORMS.get(name, 0)), "cpu", "f64")
    tokens = ids(name)
    with torch.inference_mode():
        expected = model(tokens)
        assert expected.std() > 0.01
        cache = model.cache(1, 64)
        steps = [model(tokens[:, :5], cache=cache)]
        steps += [model(tokens[:, i : i + 1], cache=cache) for i in range(5, 50)]
        steps.append(model(tokens[:, 50:], cache=cache))
        torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-8, rtol=0)
        mask = torch.ones(2, 70, dtype=torch.bool)
        mask[0, :10], mask[1, 20:23], mask[1, 63:] = False, False, False
        padded = torch.zeros(2, 70, dtype=torch.int64)
        padded[0, 10:], padded[1, :20], padded[1, 23:63] = tokens[0], tokens[0, :20], tokens[0, 20:]
        cache = model.cache(2, 80)
        found = torch.cat([model(padded[:, a:b], mask[:, a:b], cache) for a, b in ((0, 31), (31, 32), (32, 70))], 1)
        torch.testing.assert_close(found[0, 10:], expected[0], atol=1e-8, rtol=0)
        torch.testing.assert_close(found[1][mask[1]], expected[0], atol=1e-8, rtol=0)


def test_a_table_of_experts_that_are_not_there_is_refused() -> None:
    gguf = llmconv.convert.translate.translate(by_hand_folder(by_hand.CONFIGS["deepseek4"]), "gguf")
    name = "blk.0.ffn_gate_tid2eid.weight"
    gguf.add(Tensor.from_array(name, np.full(gguf.tensors[name].shape, 4, np.int32)))
    with pytest.raises(BadFile, match=r"tid2eid\.weight' sends a word to expert 4, but there are 4"):
        llmconv.load(gguf, "cpu")


def test_adapters_are_turned_on_by_their_tokens() -> None:
    folder = by_hand_folder(by_hand.CONFIGS["granite-switch"])
    model = llmconv.load(folder, "cpu", "f64")
    tokens = ids("granite-switch")
    other = tokens.clone()
    other[0, 9] = by_hand.CONFIGS["granite-switch"]["adapter_substitute_token_ids"][0]  # what is embedded
    with torch.inference_mode():
        one, two = model(tokens), model(other)
    torch.testing.assert_close(one[:, :9], two[:, :9], atol=1e-12, rtol=0)
    assert (one - two)[0, 9:].abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("name", ["deepseek4", *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES[:2])])
def test_streamed_it_is_the_same_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, streamed = resident_and_streamed(by_hand_gguf(name, tmp_path), monkeypatch)
    assert streamed == whole


@pytest.mark.parametrize("name", ["kimi-k3", "qwen3-tts"])
def test_a_file_that_keeps_what_a_fold_loses_has_a_size(name: str, tmp_path: Path) -> None:
    path = by_hand_gguf(name, tmp_path)
    found = llmconv.size(path)
    llmconv.convert.translate.translate(llmconv.open(path), "hf")
    assert found.parameters == sum(t.n_elements for t in llmconv.open(path).tensors.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grovemoe", "minimax-m3"])
def test_calibration_goes_through(name: str, tmp_path: Path) -> None:
    path, text = by_hand_gguf(name, tmp_path), tmp_path / "text.txt"
    text.write_text(" ".join(WORDS[i * 7 % len(WORDS)] for i in range(300)))
    on = llmconv.OnText(text, effort="fast", device="cpu")
    made = llmconv.quantize(path, tmp_path / "q.gguf", "Q4_0", pure=True, calibration=on)
    rounded = {t.name for t in made.output.tensors if t.loss_before is not None}
    blocks = {n for n, t in llmconv.open(tmp_path / "q.gguf").tensors.items() if t.type.name == "Q4_0"}
    assert rounded and {n for n in blocks if n.startswith("blk.")} <= rounded


@pytest.mark.parametrize(
    ("name", "tensor", "shape", "said"),
    [
        ("deepseek4", "blk.1.hc_ffn_scale.weight", (2,), r"hc_ffn_scale\.weight' has shape \[2\], expected \[3\]"),
        ("deepseek4", "blk.1.attn_compressor_ape.weight", (5, 64), r"attn_compressor_ape\.weight' has shape \[5, 64\]"),
        ("hy-v4", "blk.0.hc_attn_fn.weight", (5, 128), r"has 5 rows, which 2 streams don't have"),
        ("qwen4exp", "blk.0.ple_conv1d.weight", (128, 3), r"ple_conv1d\.weight' has shape \[128, 3\]"),
        ("kimi-k3", "output_res_score.weight", (3,), r"output_res_score\.weight' has shape \[3\], expected \[64\]"),
        ("grovemoe", "blk.0.ffn_down_chexps.weight", (3, 64, 16), r"has 3 matrices for 4 experts, 2 to each"),
    ],
)
def test_what_does_not_fit_is_named(name: str, tensor: str, shape: tuple[int, ...], said: str) -> None:
    gguf = llmconv.convert.translate.translate(by_hand_folder(by_hand.CONFIGS[name]), "gguf")
    gguf.add(Tensor.from_array(tensor, np.zeros(shape, np.float32)))
    with pytest.raises(BadFile, match=said):
        llmconv.load(gguf, "cpu")
