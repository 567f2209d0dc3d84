"""Every setting of every family's configuration class: honoured, refused, or named in a note.

The quick half asks the tables whether they know each setting; the slow half gives each another valid value, builds a
tiny model, and compares what transformers computes with what the converted model does, and what it says.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import MODELS, Tiny

import llmconv
from llmconv.convert import archs
from llmconv.convert.dialects import hf
from llmconv.convert.tables.settings import INERT
from llmconv.errors import LlmconvError
from llmconv.formats.checkpoint import Checkpoint

TYPES = {tiny.model_type: name for name, tiny in reversed(MODELS.items())}
"""The first model of each of transformers' types."""

_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
_DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
OTHERS: dict[str, list[Any]] = {
    **{name: ["relu", "gelu", "gelu_pytorch_tanh", "silu"] for name in ("hidden_act", "hidden_activation")},
    **{name: ["relu", "silu"] for name in ("activation_function", "activation")},
    "layer_types": [["full_attention", "sliding_attention"], ["sliding_attention"] * 2, ["full_attention"] * 2],
    "no_rope_layers": [[0, 1], [1, 1], [0, 0]],
    "no_rope_layer_interval": [2],
    "mlp_only_layers": [[0], [1]],
    "decoder_sparse_step": [2],
    "use_sliding_window": [{"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}],
    "max_window_layers": [{"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}],
    "sliding_window": [8, {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}],
    "use_bidirectional_attention": [True, {"use_bidirectional_attention": True, "sliding_window": 12}],
    "scale_attn_by_inverse_layer_idx": [True, {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}],
    "rope_parameters": [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}},
        {"rope_parameters": _YARN},
        {"rope_parameters": _YARN | {"attention_factor": 1.0}},
        {"rope_parameters": _YARN | {"mscale": 1.5, "mscale_all_dim": 0.5}},
        {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
        {"rope_parameters": _YARN | {"truncate": False}},
        {"rope_parameters": _YARN | {"truncate": True}},
        {"rope_parameters": _YARN | {"beta_fast": 8.0, "beta_slow": 2.0}},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"full_attention": _YARN, "sliding_attention": _DEFAULT}},
        {"rope_parameters": {"full_attention": _DEFAULT | {"rope_theta": 700.0}, "sliding_attention": _DEFAULT}},
        {"rope_parameters": {"full_attention": _DEFAULT, "sliding_attention": _DEFAULT | {"rope_theta": 900.0}}},
        {"rope_parameters": {"full_attention": _DEFAULT, "sliding_attention": _YARN}},
    ],
    "topk_method": [{"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}],
    "attn_config": [
        {"attn_config": {"softmax_scale": 0.5}},
        {"attn_config": {"clip_qkv": 0.1}},
        {"attn_config": {"alibi_bias_max": 4}},
    ],
    "head_dim": [32],
    "q_lora_rank": [32],
    "num_key_value_heads": [1, 4],
    "num_kv_heads": [{"num_kv_heads": 1, "new_decoder_architecture": True}],
    "final_logit_softcapping": [2.0],
    "attn_logit_softcapping": [1.0],
    "query_pre_attn_scalar": [64],
    "clip_qkv": [0.1],
    "partial_rotary_factor": [0.25],
    "norm_type": ["rmsnorm"],
    "n_group": [2],
    "topk_group": [2],
    "max_position_embeddings": [256],
    "num_experts_per_tok": [1],
    "vocab_size": [100],
    "rotary_dim": [4],
}
"""Other valid values: of the setting, or (a dict with its name) of several together."""

NOT_VALUES = {"id2label", "label2id", "architectures", "model_type", "transformers_version", "dtype", "torch_dtype"}

AS_ELSEWHERE = {
    ("mpt", "attn_config"): "transformers takes 8 for ALiBi's exponent whatever alibi_bias_max says",
    ("deepseek_v2", "norm_topk_prob"): "the published code makes the weights sum to 1, transformers does not",
    ("deepseek_v2", "n_group"): "transformers has no groups unless topk_method says so",
}
"""Where the reference is the model's own code, and transformers computes something else."""


def _settings(model_type: str) -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type, **MODELS[TYPES[model_type]].config)
    fields = transformers.AutoConfig.for_model(model_type).to_dict()
    return {name: value for name, value in config.to_dict().items() if name in fields and name not in NOT_VALUES}


@pytest.mark.parametrize("model_type", TYPES)
def test_every_setting_has_its_place(model_type: str) -> None:
    arch = archs.by_gguf(MODELS[TYPES[model_type]].gguf)
    assert arch is not None
    rotary = {"rope_parameters"} if "rope_theta" in arch.settings else set()
    tops = {name.split(".")[0] for name in (*arch.settings, *arch.fixed)}
    assert set(_settings(model_type)) - tops - INERT - rotary == set()


def _values(name: str, value: Any) -> list[dict[str, Any]]:
    if name in OTHERS:
        values = copy.deepcopy(OTHERS[name])  # configurations add to what they are given
        if name == "rope_parameters":  # two kinds of attention have one object each
            values = [v for v in values if ("full_attention" in v[name]) == ("full_attention" in value)]
        return [v if isinstance(v, dict) and name in v else {name: v} for v in values]
    if isinstance(value, bool):
        return [{name: not value}]
    if isinstance(value, int):
        return [{name: value * 2 or 2}]
    if isinstance(value, float):
        return [{name: value * 1.5 or 0.5}]
    return [{name: True}] if value is None else []


def _attention(tiny: Tiny) -> str:
    """The plain code; but transformers 5's for Falcon adds ALiBi twice, to the mask and to the scores."""
    return "sdpa" if tiny.model_type == "falcon" else "eager"


def _built(tiny: Tiny, changes: dict[str, Any], folder: Path) -> Any:
    """The model, or None where transformers takes no such configuration."""
    import torch
    import transformers

    torch.manual_seed(0)
    try:
        config = transformers.AutoConfig.for_model(tiny.model_type, **(tiny.config | changes))
        auto = transformers.AutoModel if tiny.task == "Model" else getattr(transformers, f"AutoModelFor{tiny.task}")
        model = auto.from_config(config, attn_implementation=_attention(tiny)).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.1 + (0.5 if parameter.ndim == 1 else 0.0))
        model.save_pretrained(folder)
        _reference(model)
    except Exception:
        return None
    return model


def _ids() -> Any:
    import torch

    return torch.tensor([[(i * 37 + 11) % 90 + 3 for i in range(40)]])


def _reference(model: Any) -> Any:
    import torch

    with torch.no_grad():
        out = model(_ids())
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def _ours(checkpoint: Checkpoint, tiny: Tiny) -> Any:
    import torch

    model = llmconv.load(checkpoint, dtype="f32", device="cpu")
    with torch.no_grad():
        return model.hidden(_ids()) if tiny.task == "Model" else model(_ids())


pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


def _near(one: Any, other: Any) -> bool:
    width = min(one.shape[-1], other.shape[-1])
    return bool((one[..., :width] - other[..., :width]).abs().max() < 2e-4)


def _by_keys_alone(checkpoint: Checkpoint, tiny: Tiny, folder: Path) -> Any:
    """What transformers computes with a folder made of the GGUF as if somebody else had written it."""
    import transformers

    keys = {k: v for k, v in checkpoint.metadata.items() if not k.startswith("llmconv.")}
    llmconv.save(hf.from_gguf(dataclasses.replace(checkpoint, metadata=keys)), folder)
    auto = transformers.AutoModel if tiny.task == "Model" else getattr(transformers, f"AutoModelFor{tiny.task}")
    return _reference(auto.from_pretrained(folder, attn_implementation=_attention(tiny)).float().eval())


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_every_setting_is_honoured_refused_or_named(model_type: str, tmp_path: Path) -> None:
    tiny = MODELS[TYPES[model_type]]
    tried = [
        (name, changes)
        for name, value in _settings(model_type).items()
        if name not in INERT and (model_type, name) not in AS_ELSEWHERE
        for changes in _values(name, value)
    ]
    found = [_wrong(tiny, name, changes, tmp_path / f"{n}") for n, (name, changes) in enumerate(tried)]
    assert found.count("") > 5
    assert [text for text in found if text] == []


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_settings_without_effect_have_none(model_type: str, tmp_path: Path) -> None:
    """All at once: what is in the list of those that change nothing changes nothing."""
    changes: dict[str, Any] = {}
    for name, value in _settings(model_type).items():
        if name in INERT - {"tie_word_embeddings", "vocab_size", "pruned_heads", "problem_type"} and (
            values := _values(name, value)
        ):
            changes |= values[0] if value is not None else {}
    changes |= {name: 5 for name in changes if name.endswith("_token_id")}
    assert not _wrong(MODELS[TYPES[model_type]], "", changes, tmp_path)


def _wrong(tiny: Tiny, name: str, changes: dict[str, Any], folder: Path) -> str:
    """What goes wrong with a model of these changes; "" where nothing does, or where it is refused or noted."""
    model = _built(tiny, changes, folder / "hf")
    if model is None:
        return ""
    try:
        gguf = hf.to_gguf(llmconv.open(folder / "hf"))
        want = _reference(model)
        if name and any(name in note and "no effect" in note for note in gguf.notes):
            return ""
        if not _near(want, _ours(gguf, tiny)):
            return f"{json.dumps(changes)}: other logits here"
        if not _near(want, _by_keys_alone(gguf, tiny, folder / "back")):
            return f"{json.dumps(changes)}: other logits by the GGUF's keys alone"
    except LlmconvError as error:
        assert "\n" not in str(error)
    return ""
