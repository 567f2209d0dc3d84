"""Phi-2 (parallel, LayerNorm, partial rotary) and Phi-3 (fused projections, long rotary factors)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, NORMS, linear, norm
from llmconv.convert.archs.rope import partial_rotary
from llmconv.convert.tables.architecture import Architecture, HfName, Made, keys, row
from llmconv.convert.tables.loader import HEAD, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.errors import BadFile, Unsupported

_at = "{p}layers.{i}."

_finish, _rebuild = partial_rotary("partial_rotary_factor", 0.5)

PHI2 = Architecture(
    "phi2",
    (HfName("PhiForCausalLM", "phi"),),
    keys=keys("""
        block_count                     u32   num_hidden_layers|n_layer
        context_length                  u32   max_position_embeddings|n_positions
        embedding_length                u32   hidden_size|n_embd
        feed_forward_length             u32   intermediate_size|n_inner     = 4 * n_embd
        attention.head_count            u32   num_attention_heads|n_head
        attention.head_count_kv         u32   num_key_value_heads           = n_head
        attention.layer_norm_epsilon    f32   layer_norm_eps|layer_norm_epsilon   1e-5
        rope.freq_base                  f32   rope_theta                    10000
    """),
    rows=(
        row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd"),
        *norm("output_norm", "{p}final_layernorm"),
        *linear("output", "lm_head", "n_vocab", "n_embd"),
        *norm("blk.{i}.attn_norm", _at + "input_layernorm"),
        *linear("blk.{i}.attn_q", _at + "self_attn.q_proj", "n_head * head_dim", "n_embd"),
        *linear("blk.{i}.attn_k", _at + "self_attn.k_proj", "n_head_kv * head_dim", "n_embd"),
        *linear("blk.{i}.attn_v", _at + "self_attn.v_proj", "n_head_kv * head_dim", "n_embd"),
        *linear("blk.{i}.attn_output", _at + "self_attn.dense", "n_embd", "n_head * head_dim"),
        *linear("blk.{i}.ffn_up", _at + "mlp.fc1", "n_ff", "n_embd"),
        *linear("blk.{i}.ffn_down", _at + "mlp.fc2", "n_embd", "n_ff"),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"parallel": True, "activation": "gelu_tanh"},
    reads="partial_rotary_factor",
    inert="rotary_dim flash_attn flash_rotary fused_dense img_processor",
    fixed={"qk_layernorm": False},
    loader=Loader(needed=HEAD),
)


def _phi3_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    rope = config.get("rope") or {}
    fraction = rope.get("partial_rotary_factor") or 1.0
    own["rope.dimension_count"] = np.uint32(int(fraction * dims["head_dim"]))
    original = rope.get("original_max_position_embeddings") or dims["n_ctx"]
    own["rope.scaling.original_context_length"] = np.uint32(original)
    own.setdefault("attention.sliding_window", np.uint32(0))
    if rope.get("long_factor") and own.pop("rope.scaling.type", None) is not None:
        own["rope.scaling.attn_factor"] = np.float32(long_magnitude(rope, dims["n_ctx"], original))


def long_magnitude(rope: Mapping[str, Any], n_ctx: int, original: int) -> float:
    """What cos and sin are multiplied by where rotary frequencies have long factors."""
    scale = n_ctx / original
    if rope["rope_type"] == "yarn":
        factor = 0.1 * math.log(scale) + 1.0 if scale > 1.0 else 1.0
    elif rope["rope_type"] in ("su", "longrope"):
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1.0 else 1.0
    else:
        raise Unsupported(f"config.json: rope type {rope['rope_type']!r} with long factors; known: longrope, su, yarn")
    stated = rope.get("attention_factor")
    return factor if stated is None else float(stated)


def _phi3_rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    if dims["head_dim"] and dims["n_rot"] != dims["head_dim"]:
        config["partial_rotary_factor"] = dims["n_rot"] / dims["head_dim"]
    config["original_max_position_embeddings"] = int(own.get("rope.scaling.original_context_length", dims["n_ctx"]))
    if not config.get("sliding_window"):
        config["sliding_window"] = None


def _factors(kind: str) -> Made:
    """The rotary factors of Phi-3's long contexts, as a tensor."""
    other = "short" if kind == "long" else "long"

    def make(config: Mapping[str, Any], dims: Dims) -> Any:
        rope = config.get("rope") or {}
        values, of = rope.get(f"{kind}_factor"), str(rope.get("rope_type")).lower()
        if of not in LONG_KINDS:
            return None
        if not values and (rope.get(f"{other}_factor") or of != "yarn"):
            raise BadFile(
                f"config.json: rope_scaling ({of}) has no {kind}_factor; it takes one and a {other}_factor, "
                f"{dims['n_rot'] // 2} numbers each"
            )
        if not values:
            return None
        if not isinstance(values, list) or len(values) != dims["n_rot"] // 2:
            raise BadFile(
                f"config.json: {kind}_factor has {len(values) if isinstance(values, list) else values!r} values, "
                f"expected {dims['n_rot'] // 2}, half of the rotary dimensions"
            )
        return np.asarray(values, np.float32)

    def read(values: Any, config: dict[str, Any]) -> None:
        scaling = config.setdefault("rope_scaling", {"type": "longrope"})
        scaling[f"{kind}_factor"] = [float(str(v)) for v in values.reshape(-1)]
        scaling.setdefault(f"{other}_factor", [1.0] * values.size)  # what its absence is in llama.cpp

    return Made(f"rope_factors_{kind}.weight", make, read)


LONG_KINDS = ("longrope", "su", "yarn")
"""Kinds of rotary scaling that take long and short factors (YaRN's only if there are any)."""
LONG_FACTORS = (_factors("long"), _factors("short"))

PHI3 = Architecture(
    "phi3",
    (HfName("Phi3ForCausalLM", "phi3"), HfName("Phi4ForCausalLMV", "phi4-siglip")),
    keys=(*COMMON, *keys("attention.sliding_window  u32  sliding_window")),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        row(
            "blk.{i}.attn_qkv.weight",
            _at + "self_attn.qkv_proj.weight",
            "(n_head + 2 * n_head_kv) * head_dim, n_embd",
        ),
        row("blk.{i}.attn_output.weight", _at + "self_attn.o_proj.weight", "n_embd, n_head * head_dim"),
        row("blk.{i}.ffn_up.weight", _at + "mlp.gate_up_proj.weight", "2 * n_ff, n_embd"),
        row("blk.{i}.ffn_down.weight", _at + "mlp.down_proj.weight", "n_embd, n_ff"),
    ),
    made=LONG_FACTORS,
    finish=_phi3_finish,
    rebuild=_phi3_rebuild,
    decoder={"window_pattern": 0},
    reads="original_max_position_embeddings partial_rotary_factor",
    inert="embd_layer img_processor",
    loader=Loader(unread=("attention.sliding_window",)),
)

ARCHITECTURES = (PHI2, PHI3)
