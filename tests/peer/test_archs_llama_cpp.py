"""Our GGUF of every family runs in llama.cpp (through llama-cpp-python), and its logits are transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest
import tiny_models
from llama_cpp_logits import logits
from worded import by_hand_folder

import llmconv
from llmconv import formats
from llmconv.convert.archs.experts.hy_v4 import HY_V4
from llmconv.convert.dialects import hf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

# Models that llama.cpp does not run, or not as transformers does.
NOT_THERE = {
    "gptj": "no GPT-J",
    "phimoe": "chooses by a plain softmax",
    "opt": "no OPT",
    "opt-projected": "no OPT",
    "command-r-plus": "looks for the norms of queries and keys in models of 64 layers only",
    "deepseek-v2": "knows the models without a query's latent by their number of layers",
    "exaone4": "has windows in a model of 64 layers only",
    "bitnet-relu2": "SiLU in every BitNet, no head of its own",
    "falcon-h1-normed-tied": "no scale of its own for a tied head, no norm before the gate",
    "gemma3n": "is made for the published sizes: see the test of these below",
    "gemma3n-padded": "the same",
    "llama4": "has chunks of 8192 tokens, and queries that grow every 8192",
    "falcon-rw": "no ALiBi, no serial blocks in Falcon",
    "qwen4-exp": "has parts of three axes that are no larger than what turns",
    "hy-v4-transformers": "turns pairs of heads: see the test of these below",
}

_STOPS = ("hy-v4", "dots3", "dots3-rescaled", "dots3-predicting")
_ENCODERS = ("neobert", "neobert-classifier", "jina2", "jina2-code", "jina3", "nomic-moe", "jina5-nano")
WITHOUT = (*_ENCODERS, "llama-embed", "youtu", "chameleon-swin", *_STOPS, *by_hand.NOT_RUN)
"""No logits, of encoders either: test_encoders_peer.py. llama.cpp does not load a Youtu of this shape, and gives
Chameleon 34B's feed-forwards what attention gave without what it was added to; it turns pairs of HY V4's heads
(below), and wants the bias that dots 3's experts are chosen by, which transformers' has (above); the others are not
run here."""
SEE_ALL = ("dream", "rnd1", "llada", "llada-moe")
SIZES: dict[str, dict[str, Any]] = {
    "deepseek-v4": {"hc_mult": 4, "index_head_dim": 64},
    "dots3-transformers": {"index_head_dim": 64},
}
"""What llama.cpp takes for given: four streams of residuals, and indexers' heads of whole 64s."""


def _inside(name: str, **changes: Any) -> dict[str, Any]:
    config = by_hand.CONFIGS[name]
    return config | {"text_config": config["text_config"] | changes}


_LING = by_hand.CONFIGS["ling3-vl"]
_SWITCH = by_hand.CONFIGS["granite-switch"]
LACKED = by_hand.CONFIGS | {
    # of its layer for further tokens llama.cpp wants more tensors
    "ling3-vl": _LING | {"text_config": _LING["text_config"] | {"num_nextn_predict_layers": 0}},
    **{n: by_hand.CONFIGS[n] | SIZES["deepseek-v4"] for n in ("deepseek4", "deepseek4-predicting")},
    **{n: _inside(n, hc_mult=4) for n in ("glm5-next", "glm5-next-predicting")},
    "qwen4exp": _inside("qwen4exp", output_gate_type="sigmoid"),  # llama.cpp knows no other
    "qwen4exp-text": by_hand.CONFIGS["qwen4exp-text"] | {"output_gate_type": "sigmoid"},
    "granite-switch": _SWITCH | {"intermediate_size": _SWITCH["shared_intermediate_size"]},  # as published
}

IDS = [1, 5, 9, 33, 70, 12, 95, 3, 8, 21, 44, 2, 60, 7]


DECODERS = [name for name, tiny in tiny_models.MODELS.items() if tiny.task == "CausalLM" and tiny.runs]

GEMMA3N = {
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 256,
    "laurel_rank": 64,
    "num_hidden_layers": 5,
    "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
    "activation_sparsity_pattern": [0.95] * 5,
    "num_kv_shared_layers": 0,
    "intermediate_size": [4096] * 5,
}
"""What llama.cpp takes for given; wide, as it divides by one less for the deviation that gates are cut by."""


def test_gemma3n_of_published_sizes_agrees(tmp_path: Path) -> None:
    test_logits_agree("gemma3n-padded", tmp_path, **GEMMA3N)


@pytest.mark.parametrize("name", [name for name in DECODERS if name not in NOT_THERE])
def test_logits_agree(name: str, tmp_path: Path, **changes: Any) -> None:
    """Of decoders; encoders have vectors: test_embed_peer.py."""
    model = tiny_models.build(name, tmp_path / "hf", **SIZES.get(name, {}) | changes)
    original = type(model).from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = original(torch.tensor([IDS])).logits[0].numpy()
    gguf = hf.to_gguf(formats.open(tmp_path / "hf"))
    found = logits(gguf, IDS, tmp_path / "model.gguf")
    assert found is not None
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 2e-2 * scale


@pytest.mark.parametrize("name", [name for name in LACKED if name not in WITHOUT])
def test_what_transformers_lacks_agrees_with_ours(name: str, tmp_path: Path) -> None:
    folder = by_hand_folder(LACKED[name], by_hand.FORMS.get(name, 0))
    with torch.no_grad():
        expected = llmconv.load(folder, "cpu", "f32")(torch.tensor([IDS]))[0].numpy()
    found = logits(hf.to_gguf(folder), IDS, tmp_path / "model.gguf", causal=name not in SEE_ALL)
    assert found is not None
    said = np.abs(expected) < 1e30  # not tokens of images, which Chameleon never says
    assert np.abs(found - expected)[said].max() <= 2e-2 * np.abs(expected[said]).max()


def test_hy_v4_agrees_but_for_which_numbers_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of a head in transformers, pairs in llama.cpp."""
    monkeypatch.setitem(HY_V4.decoder, "rope", "pairs")
    monkeypatch.setitem(LACKED, "hy-v4", by_hand.CONFIGS["hy-v4"] | {"index_head_dim": 64})
    test_what_transformers_lacks_agrees_with_ours("hy-v4", tmp_path)
