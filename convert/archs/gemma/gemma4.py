"""Gemma 4: two sizes of heads, keys and values lent to later layers, vectors for each layer, experts beside a dense
feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import EMBEDDINGS
from llmconv.convert.tables.architecture import Architecture, HfName, Made, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.pieces import Pieces
from llmconv.convert.tables.windows import PATTERN
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."
_dim = "(swa * d_swa + (1 - swa) * head_dim)"
_owns = "i < n_layer - n_shared"
_borrows = "i >= n_layer - n_shared"

WORDS = "n_ple_vocab + (not n_ple_vocab) * n_vocab"

PER_LAYER = (
    row("per_layer_token_embd.weight", "{p}embed_tokens_per_layer.weight", f"{WORDS}, n_layer * n_ple", when="n_ple"),
    row("per_layer_model_proj.weight", "{p}per_layer_model_projection.weight", "n_layer * n_ple, n_embd", when="n_ple"),
    row("per_layer_proj_norm.weight", "{p}per_layer_projection_norm.weight", "n_ple", when="n_ple"),
    row("blk.{i}.inp_gate.weight", _at + "per_layer_input_gate.weight", "n_ple, n_embd", when="n_ple"),
    row("blk.{i}.proj.weight", _at + "per_layer_projection.weight", "n_embd, n_ple", when="n_ple"),
    row("blk.{i}.post_norm.weight", _at + "post_per_layer_input_norm.weight", "n_embd", when="n_ple"),
)
"""A vector of each token for each layer, read from a table of its own and from the token's embedding."""

PIECES: Pieces = {
    "embed_scale": "sqrt",
    "activation": "gelu_tanh",
    "activation_key": "hidden_activation",
    "passes_float16": True,
    "attention_scale": 1.0,
    "value_norm": True,
    "lends": True,
    "window_rope_base": 10000.0,
    "window_rope_scaled": False,
    "final_softcap": 30.0,
}
"""What Gemma 3n and 4 have in common."""

FOUR_NORMS = (
    row("blk.{i}.attn_norm.weight", _at + "input_layernorm.weight", "n_embd"),
    row("blk.{i}.post_attention_norm.weight", _at + "post_attention_layernorm.weight", "n_embd"),
    row("blk.{i}.ffn_norm.weight", _at + "pre_feedforward_layernorm.weight", "n_embd"),
    row("blk.{i}.post_ffw_norm.weight", _at + "post_feedforward_layernorm.weight", "n_embd"),
)

_mlp = (
    row("blk.{i}.ffn_gate.weight", _at + "mlp.gate_proj.weight", "n_ff, n_embd"),
    row("blk.{i}.ffn_up.weight", _at + "mlp.up_proj.weight", "n_ff, n_embd"),
    row("blk.{i}.ffn_down.weight", _at + "mlp.down_proj.weight", "n_embd, n_ff"),
)


def lent_attention(dim: str, keys_as_values: bool = False) -> Any:
    """Rows of attention whose last layers use the keys and values of earlier ones; published files have some of their
    own there too, which nobody reads.   keys_as_values: the layers without a window may have no values."""
    at, q, kv = _at + "self_attn.", f"n_head * {dim}", f"n_head_kv * {dim}"
    rows = [
        row("blk.{i}.attn_q.weight", at + "q_proj.weight", f"{q}, n_embd"),
        row("blk.{i}.attn_output.weight", at + "o_proj.weight", f"n_embd, {q}"),
        row("blk.{i}.attn_q_norm.weight", at + "q_norm.weight", dim),
        row("blk.{i}.attn_q.bias", at + "q_proj.bias", q, optional="attention_bias"),
        row("blk.{i}.attn_output.bias", at + "o_proj.bias", "n_embd", optional="attention_bias"),
    ]
    for when, there in ((_owns, False), (_borrows, True)):
        bias: bool | str = True if there else "attention_bias"
        rows += [
            row("blk.{i}.attn_k.weight", at + "k_proj.weight", f"{kv}, n_embd", when=when, optional=there),
            row("blk.{i}.attn_k_norm.weight", at + "k_norm.weight", dim, when=when, optional=there),
            row("blk.{i}.attn_k.bias", at + "k_proj.bias", kv, when=when, optional=bias),
        ]
        values: tuple[tuple[str, bool | str], ...] = ((when, there),)
        if keys_as_values and not there:
            values = ((f"{when} and swa", False), (f"{when} and not swa", "!attention_k_eq_v"))
        for place, may in values:
            rows.append(row("blk.{i}.attn_v.weight", at + "v_proj.weight", f"{kv}, n_embd", when=place, optional=may))
        rows.append(row("blk.{i}.attn_v.bias", at + "v_proj.bias", kv, when=when, optional=bias))
    return tuple(rows)


def _experts() -> Any:
    there = "n_expert"
    return (
        row("blk.{i}.ffn_gate_inp.weight", _at + "router.proj.weight", "n_expert, n_embd", when=there),
        row("blk.{i}.ffn_gate_inp.scale", _at + "router.scale", "n_embd", when=there),
        row(
            "blk.{i}.ffn_gate_up_exps.weight",
            _at + "experts.gate_up_proj",
            "n_expert, 2 * n_ff_exp, n_embd",
            when=there,
        ),
        row("blk.{i}.ffn_down_exps.weight", _at + "experts.down_proj", "n_expert, n_embd, n_ff_exp", when=there),
        row("blk.{i}.ffn_down_exps.scale", _at + "router.per_expert_scale", "n_expert", when=there),
        row("blk.{i}.post_ffw_norm_1.weight", _at + "post_feedforward_layernorm_1.weight", "n_embd", when=there),
        row("blk.{i}.pre_ffw_norm_2.weight", _at + "pre_feedforward_layernorm_2.weight", "n_embd", when=there),
        row("blk.{i}.post_ffw_norm_2.weight", _at + "post_feedforward_layernorm_2.weight", "n_embd", when=there),
    )


_FAR = 1e30
"""What a frequency is divided by that is not to turn at all."""


def _divisors(config: Mapping[str, Any], dims: Dims) -> Any:
    """Of the layers without a window: a part of each head turns, as fast as it would if all of it did."""
    rope = config.get("rope") or {}
    kind = str(rope.get("rope_type") or "proportional")
    part = float(rope.get("partial_rotary_factor") or (1.0 if rope else 0.25)) if kind == "proportional" else 1.0
    half = dims["n_rot"] // 2
    turning = min(int(part * dims["n_rot"] // 2), half)
    factor = float(rope.get("factor") or 1.0) if kind == "proportional" else 1.0
    return np.asarray([factor] * turning + [_FAR] * (half - turning), np.float32)


def _read_divisors(values: Any, config: dict[str, Any]) -> None:
    turning = values.reshape(-1) < _FAR / 2
    rope = config["rope_parameters"]["full_attention"]
    if rope["rope_type"] != "default" and (values == 1).all():  # stretched otherwise, and all of a head turns
        return
    rope |= {"rope_type": "proportional", "partial_rotary_factor": float(turning.mean())}
    if turning.any() and values.reshape(-1)[0] != 1:
        rope["factor"] = float(values.reshape(-1)[0])


def windows_of(config: Mapping[str, Any], count: int, every: int) -> list[bool]:
    """Which of the layers have a window, the last excepted."""
    kinds = config.get("layer_types")
    if not isinstance(kinds, list):
        return [(i + 1) % every != 0 and i + 1 < count for i in range(count)]
    if len(kinds) >= count and kinds[count - 1] != "full_attention":
        raise Unsupported(
            f"config.json: the last of layer_types is {kinds[count - 1]!r:.40}, which every release of transformers "
            "takes for 'full_attention'; write that to convert"
        )
    return [kind == "sliding_attention" for kind in kinds[:count]]


def _of_full(config: Mapping[str, Any], windows: list[bool], name: str, older: str) -> Any:
    """A setting of the layers without a window: stated for each, or once under another name; None where neither."""
    per_layer = config.get("per_layer_config")
    if not isinstance(per_layer, Mapping):
        return config.get(older)
    of_each = {int(i): each for i, each in per_layer.items() if isinstance(each, Mapping)}
    found = {of_each.get(i, {}).get(name) for i, windowed in enumerate(windows) if not windowed}
    others = {of_each.get(i, {}).get(name) for i, windowed in enumerate(windows) if windowed} - {config.get(name), None}
    if len(found) > 1 or others:
        raise Unsupported(f"config.json: per_layer_config has several {name} for layers of one kind, expected one")
    return next(iter(found), None)


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    count = min(int(own["block_count"]), 1 << 16)
    windows = windows_of(config, count, 6)
    own[PATTERN] = np.asarray(windows, np.bool_)
    small = int(own["attention.key_length_swa"])
    per_layer = isinstance(config.get("per_layer_config"), Mapping)
    large = _of_full(config, windows, "head_dim", "global_head_dim") or (small if per_layer else 512)
    own["attention.key_length"] = own["attention.value_length"] = np.uint32(large)
    own["rope.dimension_count"], own["rope.dimension_count_swa"] = np.uint32(large), np.uint32(small)
    if per_layer or config.get("attention_k_eq_v"):
        fewer = _of_full(config, windows, "num_key_value_heads", "num_global_key_value_heads")
        usual = int(own["attention.head_count_kv"])
        if fewer is not None:
            own["attention.head_count_kv"] = np.asarray([usual if on else int(fewer) for on in windows], np.int32)
    if config.get("use_double_wide_mlp"):
        wide, first = int(own["feed_forward_length"]), count - int(own["attention.shared_kv_layers"])
        own["feed_forward_length"] = np.asarray([wide if i < first else 2 * wide for i in range(count)], np.int32)
    without = str(config.get("model_type")).startswith("gemma4_unified")  # unless its configuration says otherwise
    if config.get("hidden_size_per_layer_input", None if without else 256) is None:
        own["embedding_length_per_layer_input"] = np.uint32(0)
    own.setdefault("final_logit_softcapping", np.float32(0))  # llama.cpp takes its absence for 30
    if not config.get("enable_moe_block"):
        for name in ("expert_count", "expert_used_count", "expert_feed_forward_length"):
            own.pop(name, None)
    table_of_layers(own, config)
    if config.get("use_bidirectional_attention") == "all":
        own["attention.causal"] = False  # the window of the configuration counts both sides
        own["attention.sliding_window"] = np.uint32(int(config.get("sliding_window", 512)) // 2 + 1)


def table_of_layers(own: dict[str, Any], config: Mapping[str, Any], usual: int = 262144) -> None:
    """How many tokens have vectors for each layer, where that is not the vocabulary."""
    words = config.get("vocab_size_per_layer_input", usual)
    if own.get("embedding_length_per_layer_input") and words != config.get("vocab_size"):
        own["vocab_size_per_layer_input"] = np.uint32(words)


def _first(value: Any, i: int | None) -> int | None:
    """A layer's number, of one for all or of one each; None where there is no such layer."""
    if i is None or value is None:
        return None
    return int(value[i]) if isinstance(value, np.ndarray | list) else int(value)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    count = dims["n_layer"]
    windows = [bool(on) for on in np.broadcast_to(own.get(PATTERN, False), (count,))]
    full, swa = (windows.index(kind) if kind in windows else None for kind in (False, True))
    small = int(own.get("attention.key_length_swa", dims["head_dim"]))
    config["head_dim"], config["global_head_dim"] = small, dims["head_dim"]
    kv = own.get("attention.head_count_kv", dims["n_head"])
    usual, fewer = _first(kv, full if swa is None else swa), _first(kv, full)
    config["num_key_value_heads"] = usual
    different = {"head_dim": dims["head_dim"]}
    if fewer != usual and fewer is not None:
        config["num_global_key_value_heads"] = different["num_key_value_heads"] = fewer
    config["per_layer_config"] = {str(i): different for i, windowed in enumerate(windows) if not windowed}
    widths = own.get("feed_forward_length")
    if isinstance(widths, np.ndarray | list):
        config["intermediate_size"] = int(widths[0])
        config["use_double_wide_mlp"] = any(int(n) != int(widths[0]) for n in widths)
    config["final_logit_softcapping"] = float(own.get("final_logit_softcapping", 30.0)) or None
    config["enable_moe_block"] = dims["n_expert"] > 0
    config["vocab_size_per_layer_input"] = dims["n_ple_vocab"] or dims["n_vocab"]
    config["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": float(config.pop("rope_theta", 1e6))},
        "sliding_attention": {"rope_type": "default", "rope_theta": float(config.pop("rope_local_base_freq", 1e4))},
    }
    if scaling := config.pop("rope_scaling", None):
        config["rope_parameters"]["full_attention"] |= scaling
    if not own.get("attention.causal", True):
        config.update(use_bidirectional_attention="all", sliding_window=(dims["window"] - 1) * 2)


GEMMA4 = Architecture(
    "gemma4",
    (
        HfName("Gemma4ForCausalLM", "gemma4_text"),
        HfName("Gemma4ForConditionalGeneration", "gemma4"),
        HfName("Gemma4UnifiedForConditionalGeneration", "gemma4_unified"),
    ),
    keys=keys("""
        block_count                       u32   num_hidden_layers                  30
        context_length                    u32   max_position_embeddings            131072
        embedding_length                  u32   hidden_size                        2304
        feed_forward_length               u32   intermediate_size                  9216
        attention.head_count              u32   num_attention_heads                8
        attention.head_count_kv           u32   num_key_value_heads                4
        rope.freq_base                    f32   rope_theta                         1000000
        rope.freq_base_swa                f32   rope_local_base_freq               10000
        attention.layer_norm_rms_epsilon  f32   rms_norm_eps                       1e-6
        attention.key_length_swa          u32   head_dim                           256
        attention.value_length_swa        u32   head_dim                           256
        attention.sliding_window          u32   sliding_window                     512
        attention.shared_kv_layers        u32   num_kv_shared_layers               0
        embedding_length_per_layer_input  u32   hidden_size_per_layer_input        256
        final_logit_softcapping           f32   final_logit_softcapping
        expert_count                      u32   num_experts
        expert_used_count                 u32   top_k_experts
        expert_feed_forward_length        u32   moe_intermediate_size|expert_intermediate_size
        vocab_size_per_layer_input        u32   -
    """),
    rows=(
        *EMBEDDINGS,
        *PER_LAYER,
        *FOUR_NORMS,
        *lent_attention(_dim, keys_as_values=True),
        *_mlp,
        *_experts(),
        row("blk.{i}.layer_output_scale.weight", _at + "layer_scalar", "1", optional=True),
    ),
    made=(Made("rope_freqs.weight", _divisors, _read_divisors, ("proportional", "none", "default")),),
    prefixes=("model.", "model.language_model.", "language_model.model.", ""),
    dropped=(r".*rotary_emb\..*inv_freq",),
    tied=True,
    finish=_finish,
    rebuild=_rebuild,
    decoder={**PIECES, "window_pattern": 6, "normalize_experts": True},
    reads="layer_types global_head_dim num_global_key_value_heads per_layer_config use_double_wide_mlp"
    " enable_moe_block attention_k_eq_v vocab_size_per_layer_input use_bidirectional_attention partial_rotary_factor",
    fixed={"use_bidirectional_attention": ("vision", "all")},
    loader=Loader(
        pieces={"lends_last_two": True, "causal_without_window": True},
        refused=tuple(f"blk.{{i}}.attn_{part}.bias" for part in ("q", "k", "v", "output")),
        wants={"not n_ple_vocab": "vectors for each layer of all tokens"},
    ),
)

ARCHITECTURES = (GEMMA4,)
