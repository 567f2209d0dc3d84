"""The notes about what llama.cpp will not do, held by llama.cpp: they are true, and where none is given it agrees."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import settings_walk as walk
from hf_models import model
from llama_cpp_logits import logits
from tiny_models import MODELS

import llmconv
from llmconv.convert import archs
from llmconv.convert.dialects import hf
from llmconv.convert.tables.settings import INERT
from llmconv.errors import LlmconvError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

IDS = [(i * 37 + 11) % 90 + 3 for i in range(40)]
SAME = 4e-3  # of the largest logit; ggml keeps its GELU in float16
NO_LOAD = ("will not load", "will stop")


def _compared(name: str, changes: dict[str, Any], folder: Path, noted: bool = True) -> tuple[list[str], Any] | None:
    """(notes about llama.cpp, differences by position or None where it does not run); None: refused or no model.

    noted: whether it is run, too, where a note says that it does otherwise.
    """
    tiny = MODELS[name]
    if walk.built(tiny, changes, folder / "hf") is None:
        return None
    try:
        gguf = hf.to_gguf(llmconv.open(folder / "hf"))
        notes = [note for note in gguf.notes if "llama.cpp" in note]
        if notes and not noted and not any(text in note for note in notes for text in NO_LOAD):
            return notes, None
        ours = walk.ours(gguf, tiny)[0].numpy()
    except LlmconvError:
        return None
    theirs = logits(gguf, IDS, folder / "model.gguf")
    if theirs is None:
        return notes, None
    width = min(ours.shape[1], theirs.shape[1])
    return notes, np.abs(ours[:, :width] - theirs[:, :width]).max(axis=1) / np.abs(ours).max()


_YARN = walk.YARN
_LLAMA3 = MODELS["llama-3.1"].config["rope_parameters"]
_WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
_SPLIT = {"full_attention": walk.DEFAULT | {"rope_theta": 700.0}, "sliding_attention": walk.DEFAULT}
TRUE: dict[str, tuple[str, dict[str, Any], str]] = {
    "relu": ("llama", {"hidden_act": "relu"}, "activation 'relu'"),
    "relu, granite": ("granite", {"hidden_act": "relu"}, "activation 'relu'"),
    "relu, gemma": ("gemma", {"hidden_activation": "relu"}, "activation 'relu'"),
    "window, llama": ("mistral", {"sliding_window": 8}, "window of 8 tokens"),
    "windows, qwen2": ("qwen2", _WINDOW, "layer 1 has attention over a window of 8"),
    "windows, starcoder2": ("starcoder2", {"sliding_window": 8}, "window of 8 tokens"),
    "window, phi3": ("phi3", {"sliding_window": 8}, "window of 8 tokens"),
    "positions, smollm3": ("smollm3", {"no_rope_layers": [0, 1]}, "rotary positions"),
    "betas": ("llama", {"rope_parameters": _YARN | {"beta_fast": 8.0, "beta_slow": 2.0}}, "beta_fast"),
    "truncate": ("llama", {"rope_parameters": _YARN | {"truncate": False}}, "truncate"),
    "truncate, gpt-oss": ("gpt-oss", {"rope_parameters": _YARN | {"truncate": False}}, "truncate"),
    "dynamic": (
        "llama",
        {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "scaled dynamically",
    ),
    "scores, gpt2": ("gpt2", {"scale_attn_weights": False}, "scores times 1 (not 0.25)"),
    "scores, gemma2": ("gemma2", {"query_pre_attn_scalar": 4}, "scores times 0.5"),
    "scores, gemma3": ("gemma3", {"query_pre_attn_scalar": 4}, "scores times 0.5"),
    "residuals, bloom": ("bloom", {"apply_residual_connection_post_layernorm": True}, "residuals"),
    "weights, qwen3-moe": ("qwen3-moe", {"norm_topk_prob": False}, "sum to 1"),
    "clamp, olmoe": ("olmoe", {"clip_qkv": 0.1}, "clamped at 0.1"),
    "base of windows, olmo3": ("olmo3", {"rope_parameters": _SPLIT}, "the rotary base"),
    "biases, qwen3": ("qwen3", {"attention_bias": True}, "no place for blk.0.attn_output.bias"),
    "biases, smollm3": ("smollm3", {"mlp_bias": True}, "no place for blk.0.ffn_down.bias"),
    "biases, falcon": ("falcon-7b", {"bias": True}, "no place for"),
    "no biases, gpt-neox": ("gpt-neox", {"attention_bias": False}, "needs blk.0.attn_qkv.bias"),
    "no biases, starcoder2": ("starcoder2", {"use_bias": False}, "needs blk.0.ffn_up.bias"),
    "no biases, gpt-oss": ("gpt-oss", {"attention_bias": False}, "needs blk.0.attn_output.bias"),
    "head, gemma2": ("gemma2", {"tie_word_embeddings": False}, "no place for output.weight"),
    **{
        f"tied, {name}": (name, {"tie_word_embeddings": True}, "needs output.weight")
        for name in ("qwen2-moe", "gpt-neox", "stablelm", "olmo2", "olmoe", "nemotron", "gpt-oss")
    },
    **{
        f"divisors, {name}": (name, {"rope_parameters": _LLAMA3}, "no place for rope_freqs.weight")
        for name in ("qwen2", "qwen3", "qwen3-moe", "smollm3")
    },
    "heads, cohere2": ("cohere2", {"head_dim": 32}, "wants as many numbers"),
    "heads, nemotron": ("nemotron", {"head_dim": 32}, "wants as many numbers"),
    "heads, olmoe": ("olmoe", {"num_key_value_heads": 1}, "wants as many heads"),
    "norms, command-r": ("command-r-plus", {}, "no place for blk.0.attn_k_norm.weight"),
    "by depth, deepseek": ("deepseek-v2", {}, "wants a latent of the queries"),
    "groups, deepseek": (
        "deepseek-v2-latent-query",
        {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1},
        "groups of experts judged by the best 1 (not 2)",
    ),
    "magnitude, deepseek": ("deepseek-v3", {"rope_parameters": _YARN}, "scores times"),
    "both sides, gemma3": (
        "gemma3",
        {"use_bidirectional_attention": True, "sliding_window": 12},
        "its windows reach to both sides",
    ),
    "no window, gemma3": ("gemma3", {"layer_types": ["full_attention"] * 2}, "it will stop"),
    "plain layers": ("qwen3-moe", {"mlp_only_layers": [0]}, "will not load"),
    "alibi, falcon": ("falcon-7b", {"alibi": True}, "of the kind 'alibi'"),
}


@pytest.mark.parametrize("case", TRUE)
def test_a_note_is_true(case: str, tmp_path: Path) -> None:
    name, changes, words = TRUE[case]
    compared = _compared(name, changes, tmp_path)
    assert compared is not None
    notes, differences = compared
    note = next((note for note in notes if words in note), None)
    assert note is not None, notes
    if any(text in note for text in NO_LOAD):
        assert differences is None
    else:
        assert differences is not None
        assert differences.max() > 2 * SAME


_OWN = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8}
AGREES: dict[str, tuple[str, dict[str, Any]]] = {
    "own pattern, gemma2": ("gemma2", _OWN),
    "own pattern, gemma3": ("gemma3", _OWN),
    "own pattern, cohere2": ("cohere2", _OWN),
    "own pattern, gpt-oss": ("gpt-oss", _OWN | {"rope_parameters": walk.DEFAULT}),
    "no window, olmo3": ("olmo3", {"layer_types": ["full_attention"] * 2}),
    "head, gemma3": ("gemma3", {"tie_word_embeddings": False}),
    "biases, llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "attention_factor": ("llama", {"rope_parameters": _YARN | {"attention_factor": 1.0}}),
    "magnitudes, deepseek": ("deepseek-v3", {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}),
    "all groups, deepseek": ("deepseek-v3", {"topk_group": 2}),
    "no window, smollm3": ("smollm3", {"use_sliding_window": True, "sliding_window": 8}),
    "heads, cohere2-moe": ("cohere2-moe", {"head_dim": 32}),
    "dense and unwindowed, cohere2-moe": ("cohere2-moe", {"layer_types": ["full_attention", "sliding_attention"]}),
    "norms, cohere2-moe": ("cohere2-moe", {"rms_norm_eps": 1e-5}),
    "heads apart": ("starcoder-heads-apart", {}),
}


@pytest.mark.parametrize("case", AGREES)
def test_what_llama_cpp_does_as_well(case: str, tmp_path: Path) -> None:
    compared = _compared(*AGREES[case], tmp_path)
    assert compared is not None
    notes, differences = compared
    assert differences is not None and differences.max() <= SAME
    assert [note for note in notes if "that read no pattern" not in note] == []


FAMILIES = [t for t, name in walk.TYPES.items() if (a := archs.by_gguf(MODELS[name].gguf)) and a.loader.exists]


def _stated(model_type: str, changes: dict[str, Any]) -> dict[str, Any] | None:
    """The whole configuration, as transformers completes it; None where it takes no such one."""
    tiny = MODELS[walk.TYPES[model_type]]
    arch = archs.by_gguf(tiny.gguf)
    assert arch is not None
    try:
        config = transformers.AutoConfig.for_model(model_type, **copy.deepcopy(tiny.config | changes)).to_dict()
    except Exception:
        return None
    cls = next((name.cls for name in arch.hf if name.model_type == model_type), arch.hf[0].cls)
    return {**config, "architectures": [cls]}


def _gguf(config: dict[str, Any]) -> Checkpoint:
    """Of a model with every tensor of its table, which takes no time to make; that these are its tensors is what
    conversions of transformers' own models prove."""
    folder = model(config, "F32")
    for name, tensor in folder.tensors.items():
        values = tensor.numpy()
        if values.dtype.kind == "f":
            values = values * np.float32(0.1) + np.float32(0.5 if values.ndim == 1 else 0)
            folder.tensors[name] = Tensor.from_array(name, values)
    return hf.to_gguf(folder)


def _says(gguf: Checkpoint) -> dict[str, Any]:
    """What llama.cpp reads of it: keys and shapes."""
    keys = {k: np.asarray(v).tolist() for k, v in gguf.metadata.items() if not k.startswith(("llmconv.", "general."))}
    return keys | {name: tensor.shape for name, tensor in gguf.tensors.items()}


def _off(gguf: Checkpoint, path: Path) -> float | None:
    """How far llama.cpp is off at nine of ten positions: experts that all but tie may be chosen otherwise.   None: it
    does not load the file."""
    theirs = logits(gguf, IDS, path)
    if theirs is None:
        return None
    ours = walk.ours(gguf, MODELS["llama"])[0].numpy()  # of a causal model
    width = min(ours.shape[1], theirs.shape[1])
    return float(np.quantile(np.abs(ours[:, :width] - theirs[:, :width]).max(axis=1) / np.abs(ours).max(), 0.9))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [t for t in FAMILIES if MODELS[walk.TYPES[t]].task == "CausalLM"])
def test_without_a_note_it_agrees(model_type: str, tmp_path: Path) -> None:
    """Every setting of the walk that makes another GGUF."""
    usual = _stated(model_type, {})
    assert usual is not None
    seen, wrong, tried = _says(_gguf(usual)), [], 0
    for setting, value in walk.settings_of(model_type).items():
        for changes in walk.other_values(setting, value) if setting not in INERT else []:
            config, tried = _stated(model_type, changes), tried + 1
            try:
                gguf = _gguf(config) if config is not None else None
                if gguf is None or _says(gguf) == seen:
                    continue
                notes = [note for note in gguf.notes if "llama.cpp" in note]
                refused = any(text in note for note in notes for text in NO_LOAD)
                off = _off(gguf, tmp_path / "model.gguf") if refused or not notes else 0.0
                walk.ours(gguf, MODELS["llama"])
            except LlmconvError:
                continue
            if off is not None and refused:
                wrong.append(f"loads: {json.dumps(changes)}")
            elif not refused and (off is None or off > SAME):
                wrong.append(json.dumps(changes))
    assert tried > 5
    assert wrong == []
