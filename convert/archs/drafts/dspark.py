"""DSpark around the layers of other families: DeepSeek V4's, which lie beside its model as `mtp.N`, and Gemma 4's.

What stands once in a draft of DeepSeek's lies in one of its stages; any of them is looked into.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.experts import deepseek4
from llmconv.convert.archs.recurrent.parts import only
from llmconv.convert.archs.rope import ROPE_FREQS
from llmconv.convert.tables.architecture import Form, Made, Row, row
from llmconv.convert.tables.config import look_up, put
from llmconv.convert.tables.ops import Dims
from llmconv.errors import Unsupported

ARCHITECTURES = ()

DEEPSEEK4, GEMMA4 = "DeepseekV4DSparkModel", "Gemma4DSparkModel"

_STAGES = 8
"""How many stages are looked into for what stands once."""
_OWN = ("block_count", "nextn_predict_layers")
_FAR = 1e30  # what divides the frequencies of numbers that don't turn

_at = "{p}layers.{i}."


def is_of(config: Mapping[str, Any], cls: str) -> bool:
    """Whether a configuration is of this class."""
    classes = config.get("architectures")
    return isinstance(classes, list) and cls in classes


def staged(each: Row, theirs: str) -> Row:
    """A row that a draft of DeepSeek's has in one of its stages under this name."""
    forms = tuple(Form((f"mtp.{n}.{theirs}",)) for n in range(_STAGES))
    return dataclasses.replace(each, forms=(*each.forms, *forms))


def deepseek4_rows() -> tuple[Row, ...]:
    """DeepSeek V4's rows of a layer that sees a window alone, and of its streams' end."""
    beside = (
        dataclasses.replace(
            each,
            when="",
            forms=tuple(
                dataclasses.replace(f, patterns=tuple(p.replace(_at, "mtp.{i}.") for p in f.patterns))
                for f in each.forms[:1]
            ),
        )
        for each in (*deepseek4.LAYER, deepseek4.CHOICE)
    )
    ends = (
        dataclasses.replace(staged(each, each.forms[0].patterns[0].removeprefix("{p}")), when="n_hc")
        for each in deepseek4.HEAD
    )
    return (
        *(dataclasses.replace(each, forms=each.forms[-_STAGES:]) for each in ends),
        *only(tuple(beside), "n_hc"),
    )


def deepseek4_keys(own: dict[str, Any], config: Mapping[str, Any]) -> None:
    """The keys of DeepSeek V4 that a draft has."""
    for key in deepseek4.KEYS:
        value = look_up(config, key.names)
        value = key.default if value is None else value
        if value is not None and key.gguf not in _OWN:
            own[key.gguf] = key.typed(value, f"config.json: {key.names[0]}")
    count = min(int(own["block_count"]), 1 << 16)
    plain = {**config, "compress_ratios": [0] * count, "num_hash_layers": 0, "mlp_layer_types": None}
    deepseek4.lists(own, plain, int(own["attention.key_length"]))


def deepseek4_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    """The way back of `deepseek4_keys`."""
    for key in deepseek4.KEYS:
        if key.gguf not in _OWN and (value := own.get(key.gguf)) is not None:
            value = value.item() if isinstance(value, np.generic) else value
            named = next((k for k, v in (key.values or {}).items() if v == value), value)
            put(config, key.names[0], float(str(np.float32(named))) if key.kind == "f32" else named)
    config.update(architectures=[DEEPSEEK4], model_type="deepseek_v4", qk_rope_head_dim=dims["n_rot"])
    config["swiglu_limit"] = float(np.ravel(own.get("swiglu_clamp_exp", 10.0))[0])
    config["dspark_block_size"] = int(own["block_size"])
    config["dspark_target_layer_ids"] = config.pop("target_layer_ids")
    config["dspark_markov_rank"] = dims["n_markov"]


def gemma4_keys(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """The keys of a draft of Gemma 4's layers, all of which see everything, their values being their keys."""
    if not config.get("attention_k_eq_v") or set(config.get("layer_types") or ["?"]) != {"full_attention"}:
        raise Unsupported("config.json: its drafts are known with attention_k_eq_v true and full_attention alone")
    for name, usual in (("hidden_activation", "gelu_pytorch_tanh"), ("final_logit_softcapping", None)):
        if config.get(name, usual) not in (usual, 0):
            raise Unsupported(f"config.json: {name} is {config[name]!r:.40}, which no draft of Gemma 4 has in a GGUF")
    width = np.uint32(config["global_head_dim"])
    own["attention.head_count_kv"] = np.uint32(config["num_global_key_value_heads"])
    for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        own[name] = width
    own["embedding_scale"] = np.float32(math.sqrt(dims["n_embd"]))
    own["attention.scale"] = np.float32(1.0)
    own["hidden_activation"] = "gelu_pytorch_tanh"
    own.setdefault("rope.freq_base", np.float32(1e6))


def gemma4_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    """The way back of `gemma4_keys`."""
    config.update(architectures=[GEMMA4], model_type="gemma4_text", attention_k_eq_v=True)
    config["layer_types"] = ["full_attention"] * dims["n_layer"]
    config["global_head_dim"], config["num_global_key_value_heads"] = dims["head_dim"], dims["n_head_kv"]
    config["hidden_activation"] = "gelu_pytorch_tanh"
    config.setdefault(
        "rope_parameters", {"full_attention": {"rope_type": "default", "rope_theta": config["rope_theta"]}}
    )
    for name in ("hidden_act", "input_embedding_scale", "partial_rotary_factor"):
        config.pop(name, None)


GEMMA4_ROWS = only(
    (
        row("blk.{i}.post_attention_norm.weight", _at + "post_attention_layernorm.weight", "n_embd"),
        row("blk.{i}.ffn_norm.weight", _at + "pre_feedforward_layernorm.weight", "n_embd"),
        row("blk.{i}.post_ffw_norm.weight", _at + "post_feedforward_layernorm.weight", "n_embd"),
        row("blk.{i}.layer_output_scale.weight", _at + "layer_scalar", "1"),
    ),
    "own_scale",
)


def _divisors(config: Mapping[str, Any], dims: Dims) -> Any:
    if not is_of(config, GEMMA4):
        return ROPE_FREQS.make(config, dims)
    rope = config.get("rope") or {}
    kind = rope.get("rope_type") or ("default" if "rope_parameters" in config else "proportional")
    if kind != "proportional":
        return None
    half, part = dims["n_rot"] // 2, float(rope.get("partial_rotary_factor") or 0.25)
    turning = min(int(dims["n_rot"] * part / 2), half)
    return np.asarray([1.0] * turning + [_FAR] * (half - turning), np.float32)


def _read_divisors(values: Any, config: dict[str, Any]) -> None:
    turning = np.ravel(values) < _FAR / 2
    if turning.all() and (np.ravel(values) != 1).any():
        ROPE_FREQS.read(values, config)
        return
    proportional = {"rope_type": "proportional", "partial_rotary_factor": float(turning.mean())}
    config["rope_parameters"] = {"full_attention": proportional | {"rope_theta": config.get("rope_theta", 1e6)}}


FREQS = Made("rope_freqs.weight", _divisors, _read_divisors, ("llama3", "proportional"))
