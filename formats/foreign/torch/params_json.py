"""`params.json` of Meta's and Mistral's own folders -> the config.json of the same model.

What it states beyond the keys known here is refused by name: such a model computes something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.errors import BadKey, Unsupported, cut

__all__ = ["config"]

_BOTH = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "norm_eps", "vocab_size", "rope_theta"),
    *("max_seq_len", "max_batch_size"),
}
_META = _BOTH | {"multiple_of", "ffn_dim_multiplier", "use_scaled_rope", "rope_scaling_factor", "model_parallel_size"}
_MISTRAL = _BOTH | {
    *("hidden_dim", "sliding_window", "moe", "model_type", "use_biases", "causal", "tied_embeddings"),
    *("max_position_embeddings", "yarn", "llama_4_scaling", "vision_encoder"),
}
_OF_MISTRAL = ("hidden_dim", "sliding_window", "moe", "yarn", "llama_4_scaling", "tied_embeddings")
_INERT = ("causal", "use_biases", "model_type")
_EXPECTED = {"causal": (True, None), "use_biases": (False, None), "model_type": ("transformer", None)}
_THETA = 10000.0  # of both programs, where the file is silent
_SMALL = ((2048, 16), (3072, 28))
"""(dim, layers) of Llama 3.2's text models, whose positions are stretched 32 times, not 8."""


def config(params: Mapping[str, Any], found: Mapping[str, int], where: str) -> tuple[dict[str, Any], list[str]]:
    """config.json, and notes on what it says that params.json doesn't.

    found: what the weights say: "rows" of the embedding, "hidden" width, whether the head is "tied", "experts".
    """
    of_mistral = any(key in params for key in _OF_MISTRAL)
    unknown = [key for key in params if key not in (_MISTRAL if of_mistral else _META)]
    if unknown:
        raise Unsupported(
            f"{where}: key {cut(unknown[0])} is none of {'Mistral' if of_mistral else 'Llama'}'s text models; use the "
            "model's Hugging Face folder"
        )
    for key in _INERT:
        if key in params and params[key] not in _EXPECTED[key]:
            raise BadKey(where, key, params[key], cut(_EXPECTED[key][0]), "another kind of model than is read here")
    rows, stated = found["rows"], params.get("vocab_size", -1)
    if isinstance(stated, int) and stated not in (-1, rows):
        raise BadKey(where, "vocab_size", stated, f"{rows}, the rows of the embedding")
    out = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": params["dim"],
        "intermediate_size": found["hidden"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "num_hidden_layers": params["n_layers"],
        "rms_norm_eps": _number(params, "norm_eps", 1e-5, where),
        "rope_theta": _number(params, "rope_theta", _THETA, where),
        "tie_word_embeddings": bool(found["tied"]),
        "vocab_size": rows,
    }
    if params.get("head_dim"):
        out["head_dim"] = params["head_dim"]
    notes = _mistral(params, found, out, where) if of_mistral else _llama(params, out, where)
    return out, notes


def _number(params: Mapping[str, Any], key: str, default: float, where: str) -> float:
    value = params.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
        raise BadKey(where, key, value, "a number above 0")
    return float(value)


def _llama(params: Mapping[str, Any], out: dict[str, Any], where: str) -> list[str]:
    """Rotary scaling and context as Meta's releases have them; params.json names neither."""
    notes = []
    theta = out["rope_theta"]
    context = 131072 if params.get("use_scaled_rope") else {500000.0: 8192, 1000000.0: 16384}.get(theta, 4096)
    if params.get("use_scaled_rope"):
        small = (params["dim"], params["n_layers"]) in _SMALL
        factor = _number(params, "rope_scaling_factor", 32.0 if small else 8.0, where)
        out["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        if not params.get("rope_scaling_factor"):
            notes.append(
                f"params.json does not say how far positions are stretched: {factor:g} times, as in Meta's own"
            )
    if not params.get("max_seq_len"):
        notes.append(f"params.json does not say the context length: {context} is taken, by its rotary settings")
    out["max_position_embeddings"] = params.get("max_seq_len") or context
    return notes


def _mistral(params: Mapping[str, Any], found: Mapping[str, int], out: dict[str, Any], where: str) -> list[str]:
    notes = []
    out.update(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=params.get("sliding_window"))
    out["head_dim"] = params.get("head_dim") or params["dim"] // params["n_heads"]
    context = params.get("max_position_embeddings") or params.get("max_seq_len")
    if not context:
        context = 32768
        notes.append(f"params.json does not say the context length: {context} is taken")
    out["max_position_embeddings"] = context
    if params.get("moe"):
        _experts(params["moe"], found, out, where)
    if params.get("yarn") or params.get("llama_4_scaling"):
        _ministral(params, out, where)
    return notes


def _experts(moe: Any, found: Mapping[str, int], out: dict[str, Any], where: str) -> None:
    count, used = (moe.get(k) if isinstance(moe, Mapping) else None for k in ("num_experts", "num_experts_per_tok"))
    if not isinstance(used, int) or count != found.get("experts") or set(moe) != {"num_experts", "num_experts_per_tok"}:
        expected = f"num_experts ({found.get('experts', 0)} by the weights) and num_experts_per_tok alone"
        raise BadKey(where, "moe", moe, expected)
    out.update(architectures=["MixtralForCausalLM"], model_type="mixtral")
    out.update(num_local_experts=count, num_experts_per_tok=used)


def _ministral(params: Mapping[str, Any], out: dict[str, Any], where: str) -> None:
    """Ministral 3: YaRN, and queries that grow with their position."""
    yarn, growth = params.get("yarn") or {}, params.get("llama_4_scaling") or {}
    if not isinstance(yarn, Mapping) or not isinstance(growth, Mapping) or not yarn or yarn.get("apply_scale"):
        raise Unsupported(
            f"{where}: keys yarn and llama_4_scaling are none of Ministral 3's; use the Hugging Face folder"
        )
    original = yarn.get("original_max_position_embeddings")
    if growth and growth.get("original_max_position_embeddings") != original:
        raise BadKey(where, "llama_4_scaling", dict(growth), f"the same original_max_position_embeddings, {original}")
    scaling = {
        "rope_type": "yarn",
        "rope_theta": out.pop("rope_theta"),
        "factor": _number(yarn, "factor", 1.0, where),
        "original_max_position_embeddings": original,
        "beta_fast": _number(yarn, "beta", 32.0, where),
        "beta_slow": _number(yarn, "alpha", 1.0, where),
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    if growth:
        scaling["llama_4_scaling_beta"] = _number(growth, "beta", 0.1, where)
    out.update(architectures=["Ministral3ForCausalLM"], model_type="ministral3", rope_parameters=scaling)
