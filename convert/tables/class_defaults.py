"""What transformers' classes take for a setting that a config.json does not state, where the tables would take another.

Files written by hand or by other programs leave out what is usual in their class; `Key.default` is that of most
families.  Sizes are not listed: tensors say them.  A test compares the list with the classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from llmconv.convert.tables.config import normalized, text_config

__all__ = ["CLASS_DEFAULTS", "completed"]

_DEFAULTS = """
attention_multiplier = 1.0: granite granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared
attention_value_scale = 0.707: mimo_v2_flash
hidden_act = "relu2": bitnet
moe_k = 6: ernie4_5_moe
moe_renormalize = true: bailing_hybrid
n_group = 8: deepseek_v3 deepseek_v32
norm_topk_prob = true: deepseek_v3 deepseek_v32 dots3_note_text exaone_moe glm4_moe_lite glm_moe_dsa hy_v4 mistral4
num_experts_per_tok = 10: qwen3_next
num_experts_per_tok = 6: afmoe deepseek_v4
num_experts_per_tok = 8: deepseek_v3 deepseek_v32 dots3_note_text exaone_moe glm4_moe glm_moe_dsa hy_v3 hy_v4 laguna
num_experts_per_tok = 8: mellum mimo_v2_flash minimax_m2 olmoe qwen3_5_moe_text qwen3_moe solar_open
num_experts_per_token = 8: bailing_hybrid kimi_linear
num_expert_group = 8: bailing_hybrid
original_max_position_embeddings = 4096: phi3
rms_norm_eps = 1.5625e-07: glm glm4
rms_norm_eps = 1e-05: minimax
rms_norm_eps = 1e-05: afmoe apertus arcee bamba bitnet dots3_note_text ernie4_5 ernie4_5_moe eurobert exaone4 exaone_moe
rms_norm_eps = 1e-05: glm4_moe glm4_moe_lite glm_moe_dsa gpt_oss granite_swa hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4
rms_norm_eps = 1e-05: internlm3 kimi_linear minicpm3 ministral3 mixtral olmo2 olmo3 olmoe phi3 solar_open
routed_scaling_factor = 1.8: glm4_moe_lite
routed_scaling_factor = 2.446: kimi_linear
routed_scaling_factor = 2.5: bailing_hybrid deepseek_v3 deepseek_v32 exaone_moe glm_moe_dsa
routed_scaling_factor = 2.827: hy_v4
router_scaling_factor = 2.826: hy_v3
sliding_window = 1024: afmoe mellum
sliding_window = 4096: exaone4 exaone_moe mistral olmo3
sliding_window = 512: laguna
swiglu_limit = 10.0: hy_v4
topk_group = 1: glm4_moe mistral4
topk_group = 4: bailing_hybrid deepseek_v3 deepseek_v32
rope_theta = 1000000.0: mixtral phimoe solar_open
rope_theta = 500000.0: bitnet cohere olmo3
"""
"""Setting = value: types of models."""

_YARN = {"rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0}
_MISTRAL = _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}


def _two(full: dict[str, float], windowed: dict[str, float]) -> dict[str, Any]:
    """Of layers that see everything, and of those with a window."""
    return {"full_attention": {"rope_type": "default"} | full, "sliding_attention": {"rope_type": "default"} | windowed}


_ROTARY: dict[str, dict[str, Any]] = {
    "apertus": {"rope_type": "llama3", "rope_theta": 12000000.0, "factor": 8.0}
    | {"original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "gpt_oss": _YARN
    | {"rope_theta": 150000.0, "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096},
    "laguna": _two(
        {"rope_theta": 500000.0, "partial_rotary_factor": 0.5}, {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    ),
    "mellum": _two({"rope_theta": 500000.0}, {"rope_theta": 10000.0}),
    "mimo_v2_flash": _two(
        {"rope_theta": 5000000.0, "partial_rotary_factor": 0.334},
        {"rope_theta": 10000.0, "partial_rotary_factor": 0.334},
    ),
    "ministral3": _MISTRAL | {"rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384},
    "mistral4": _MISTRAL | {"rope_theta": 10000.0, "factor": 128.0, "original_max_position_embeddings": 8192},
}
"""Type of a model -> its rotary settings, where a file has none at all."""
_ANY_ROTARY = ("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq")


def _by_type() -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for line in _DEFAULTS.strip().splitlines():
        setting, _, types = line.rpartition(": ")
        name, _, value = setting.partition(" = ")
        for model_type in types.split():
            out.setdefault(model_type, {})[name] = json.loads(value)
    for model_type, settings in _ROTARY.items():
        out.setdefault(model_type, {})["rope_parameters"] = settings
    return out


CLASS_DEFAULTS = _by_type()
"""Type of a model -> settings."""


def completed(config: Mapping[str, Any], names: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    """A flat configuration with what its class takes for settings that it does not state under any of their names.

    names: those of each key.
    """
    defaults = CLASS_DEFAULTS.get(str(text_config(config).get("model_type")), {})
    groups = tuple(names)
    missing = {name: value for name, value in defaults.items() if not _states(config, name, groups)}
    if missing:
        return normalized({**config, **missing})
    return config if isinstance(config, dict) else dict(config)


def _states(config: Mapping[str, Any], setting: str, groups: Iterable[tuple[str, ...]]) -> bool:
    if setting == "rope_parameters":
        return any(config.get(name) for name in _ANY_ROTARY)
    names = next((group for group in groups if setting in group), (setting,))
    return any(name.split(".")[0] in config for name in names)
