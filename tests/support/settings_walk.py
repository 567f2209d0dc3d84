"""Every setting of transformers' configurations with other valid values, models made with them, and their logits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from tiny_models import MODELS, Tiny, automatic

import llmconv
from llmconv.formats.checkpoint import Checkpoint

TYPES = {tiny.model_type: name for name, tiny in reversed(MODELS.items()) if "text_config" not in tiny.config}
"""The first model of each of transformers' types."""
_LONG = ("deepseek_v4", "dots3_note_text", "hy_v4", "minimax", "qwen4_exp_text")
"""Families of many settings, of which each costs seconds: walked when their tables change, by leaving them out here.

HY V4's and MiniMax's folders, made from keys alone, have published names, which transformers does not load.
"""
RUN = [kind for kind, name in TYPES.items() if MODELS[name].runs and kind not in _LONG]
"""Those that the runtime knows."""

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
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
        {"rope_parameters": YARN},
        {"rope_parameters": YARN | {"attention_factor": 1.0}},
        {"rope_parameters": YARN | {"mscale": 1.5, "mscale_all_dim": 0.5}},
        {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
        {"rope_parameters": YARN | {"truncate": False}},
        {"rope_parameters": YARN | {"beta_fast": 8.0, "beta_slow": 2.0}},
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
        {"rope_parameters": {"full_attention": YARN, "sliding_attention": DEFAULT}},
        {"rope_parameters": {"full_attention": DEFAULT | {"rope_theta": 700.0}, "sliding_attention": DEFAULT}},
        {"rope_parameters": {"full_attention": DEFAULT, "sliding_attention": DEFAULT | {"rope_theta": 900.0}}},
        {"rope_parameters": {"full_attention": DEFAULT, "sliding_attention": YARN}},
    ],
    "position_embedding_type": ["rope"],
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


def settings_of(model_type: str) -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type, **MODELS[TYPES[model_type]].config)
    fields = transformers.AutoConfig.for_model(model_type).to_dict()
    return {name: value for name, value in config.to_dict().items() if name in fields and name not in NOT_VALUES}


def other_values(name: str, value: Any) -> list[dict[str, Any]]:
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


def attention_of(tiny: Tiny) -> str:
    """The plain code; but transformers 5's for Falcon adds ALiBi twice, to the mask and to the scores."""
    return "sdpa" if tiny.model_type == "falcon" else "eager"


def built(tiny: Tiny, changes: dict[str, Any], folder: Path) -> Any:
    """The model, or None where transformers takes no such configuration."""
    import torch
    import transformers

    torch.manual_seed(0)
    try:
        config = transformers.AutoConfig.for_model(tiny.model_type, **(tiny.config | changes))
        model = automatic(tiny).from_config(config, attn_implementation=attention_of(tiny)).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.1 + (0.5 if parameter.ndim == 1 else 0.0))
        model.save_pretrained(folder)
        reference(model)
    except Exception:
        return None
    return model


def _ids() -> Any:
    import torch

    return torch.tensor([[(i * 37 + 11) % 90 + 3 for i in range(40)]])


def reference(model: Any) -> Any:
    import torch

    with torch.no_grad():
        out = model(_ids())
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def ours(checkpoint: Checkpoint, tiny: Tiny) -> Any:
    import torch

    model = llmconv.load(checkpoint, dtype="f32", device="cpu")
    with torch.no_grad():
        return model.hidden(_ids()) if tiny.task == "Model" else model(_ids())
