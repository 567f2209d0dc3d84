"""MiniMax M2: experts scored by sigmoids, norms over all heads of the queries and keys together.

M3: norms that multiply by 1 + w, and an indexer that chooses blocks of tokens.  Text-01 and M1: lightning attention in
most layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    EXPERTS,
    HEAD_DIM,
    NORMS,
    QK_NORMS,
    attention,
    choice_bias,
    gated_mlp,
    shared_experts,
    shifted,
)
from llmconv.convert.archs.recurrent.parts import only
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Key, keys, row
from llmconv.convert.tables.config import look_up
from llmconv.convert.tables.loader import CHOICE, HEAD, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, Stack
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_experts = _at + "block_sparse_moe."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    turning = config.get("rotary_dim") or round(config.get("partial_rotary_factor", 1.0) * dims["head_dim"])
    own["rope.dimension_count"] = np.uint32(turning)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["rotary_dim"] = dims["n_rot"]
    config["partial_rotary_factor"] = dims["n_rot"] / (dims["head_dim"] or 1)


MINIMAX_M2 = Architecture(
    "minimax-m2",
    (HfName("MiniMaxM2ForCausalLM", "minimax_m2"),),
    keys=(
        *(k for k in COMMON if k.gguf != "rope.freq_base"),
        *keys("rope.freq_base  f32  rope_theta  5000000"),
        *HEAD_DIM,
        *EXPERTS,
        Key("expert_feed_forward_length", ("intermediate_size",)),
        Key("expert_gating_func", ("scoring_func",), "u32", "sigmoid", {"softmax": 1, "sigmoid": 2}),
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *(r for r in attention() if r.gguf[0].endswith(".weight")),
        row("blk.{i}.attn_q_norm.weight", _at + "self_attn.q_norm.weight", "n_head * head_dim"),
        row("blk.{i}.attn_k_norm.weight", _at + "self_attn.k_norm.weight", "n_head_kv * head_dim"),
        row("blk.{i}.ffn_gate_inp.weight", _experts + "gate.weight", "n_expert, n_embd"),
        choice_bias("block_sparse_moe.e_score_correction_bias"),
        row("blk.{i}.ffn_gate_exps.weight", _experts + "experts.{e}.w1.weight", "n_expert, n_ff, n_embd", Stack()),
        row("blk.{i}.ffn_down_exps.weight", _experts + "experts.{e}.w2.weight", "n_expert, n_embd, n_ff", Stack()),
        row("blk.{i}.ffn_up_exps.weight", _experts + "experts.{e}.w3.weight", "n_expert, n_ff, n_embd", Stack()),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"gating": "sigmoid", "normalize_experts": True},
    reads="rotary_dim partial_rotary_factor",
    inert="num_experts attn_type_list mtp_transformer_layers num_mtp_modules use_mtp shared_moe_mode use_routing_bias",
    fixed={"use_qk_norm": True, "qk_norm_type": "per_layer", "shared_intermediate_size": 0},
    loader=Loader(refused=OUT_BIAS, needed=(*HEAD, *CHOICE)),
)

_expert_rows = tuple(r for r in MINIMAX_M2.rows if "_exps." in r.gguf[0] or "gate_inp" in r.gguf[0])


def _dense(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """How many layers come before those with experts: zeros of a list, or kinds."""
    _finish(own, config, dims)
    flags = config.get("moe_layer_freq")
    if isinstance(kinds := config.get("mlp_layer_types"), list):
        flags = [kind != "dense" for kind in kinds]
    flags = flags if isinstance(flags, list) else [1]
    count = next((i for i, flag in enumerate(flags) if flag), len(flags))
    if not all(flags[count:]):
        raise Unsupported("config.json: a dense layer comes after one with experts, which no GGUF of the family says")
    own["leading_dense_block_count"] = np.uint32(count)
    own["expert_weights_norm"] = True


def _dense_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    _rebuild(config, own, dims)
    config["moe_layer_freq"] = [int(i >= dims["n_dense"]) for i in range(dims["n_layer"])]
    config.setdefault("sparse_attention_config", {})["sparse_attention_freq"] = config["moe_layer_freq"]
    config["shared_intermediate_size"] = dims["n_ff_shexp"]


_index, _chosen = _at + "self_attn.index_", "i >= n_dense"

_shared = tuple(
    dataclasses.replace(
        r, forms=tuple(Form(tuple(p.replace("mlp.", "block_sparse_moe.") for p in f.patterns)) for f in r.forms)
    )
    for r in shared_experts()
)

MINIMAX_M3 = Architecture(
    "minimax-m3",
    (
        HfName("MiniMaxM3SparseForCausalLM", "minimax_m3"),
        HfName("MiniMaxM3SparseForConditionalGeneration", "minimax_m3_vl"),
    ),
    keys=(
        *(k for k in COMMON if k.gguf not in ("rope.freq_base", "feed_forward_length")),
        *keys("""
            rope.freq_base                   f32   rope_theta                                             5000000
            feed_forward_length              u32   dense_intermediate_size|intermediate_size
            expert_feed_forward_length       u32   intermediate_size
            expert_shared_count              u32   n_shared_experts                                       1
            expert_weights_scale             f32   routed_scaling_factor
            attention.indexer.head_count     u32   sparse_attention_config.sparse_num_index_heads|index_n_heads
            attention.indexer.key_length     u32   sparse_attention_config.sparse_index_dim|index_head_dim
            attention.indexer.top_k          u32   sparse_attention_config.sparse_topk_blocks|index_topk_blocks
            attention.indexer.block_size     u32   sparse_attention_config.sparse_block_size|index_block_size
            attention.indexer.local_blocks   u32   sparse_attention_config.sparse_local_block|index_local_blocks
        """),
        *HEAD_DIM,
        *EXPERTS,
        Key("expert_gating_func", ("scoring_func",), "u32", "sigmoid", {"softmax": 1, "sigmoid": 2}),
    ),
    rows=(
        *shifted(EMBEDDINGS),
        *shifted(NORMS),
        *(r for r in attention() if r.gguf[0].endswith(".weight")),
        *shifted(QK_NORMS),
        *(r for r in gated_mlp(when="i < n_dense") if r.gguf[0].endswith(".weight")),
        *(dataclasses.replace(r, when=_chosen) for r in _expert_rows if "gate_inp" in r.gguf[0]),
        choice_bias("block_sparse_moe.e_score_correction_bias"),
        *(
            dataclasses.replace(r, when=_chosen, shapes=tuple(shape.replace("n_ff", "n_ff_exp") for shape in r.shapes))
            for r in _expert_rows
            if "_exps." in r.gguf[0]
        ),
        *_shared,
        row("blk.{i}.indexer.q_proj.weight", _index + "q_proj.weight", "index_heads * index_dim, n_embd", when=_chosen),
        row("blk.{i}.indexer.k_proj.weight", _index + "k_proj.weight", "index_dim, n_embd", when=_chosen),
        *shifted(
            (
                row("blk.{i}.indexer.q_norm.weight", _index + "q_norm.weight", "index_dim", when=_chosen),
                row("blk.{i}.indexer.k_norm.weight", _index + "k_norm.weight", "index_dim", when=_chosen),
            )
        ),
    ),
    prefixes=("model.", "language_model.model.", "model.language_model.", ""),
    finish=_dense,
    rebuild=_dense_back,
    decoder={"activation": "swiglu_oai", "gating": "sigmoid", "normalize_experts": True},
    reads="rotary_dim partial_rotary_factor moe_layer_freq mlp_layer_types sparse_attention_config",
    inert="num_experts use_routing_bias shared_intermediate_size layer_types qk_norm_type use_gemma_norm"
    " sparse_attention_config.sparse_attention_freq",
    fixed={"swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    loader=Loader(refused=OUT_BIAS, needed=(*HEAD, *CHOICE)),
)

_linear = "recurrent == 1 or (recurrent < 0 and (i + 1) % interval)"

_full = f"not ({_linear})"

_wide = "n_head * head_dim"


def _lightning(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _finish(own, config, dims)
    alphas, betas = (
        {float(look_up(config, _names_of(part, greek)) or 1.0) for part in _PARTS} for greek in ("alpha", "beta")
    )
    if len(alphas) > 1 or betas != {1.0}:
        raise Unsupported("config.json: its layernorm_..._alpha differ or a beta is not 1, which no GGUF can say")
    own["residual_scale"] = np.float32(alphas.pop())
    count, kinds = min(dims["n_layer"], 1 << 16), config.get("attn_type_list")
    if isinstance(named := config.get("layer_types"), list):
        kinds = [kind == "full_attention" for kind in named]
    if isinstance(kinds, list) and (lightning := [not kind for kind in kinds[:count]]) != [
        (i + 1) % 8 != 0 for i in range(count)
    ]:
        own["attention.recurrent_layers"] = np.asarray(lightning, np.bool_)


def _lightning_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    _rebuild(config, own, dims)
    usual = [(i + 1) % 8 != 0 for i in range(dims["n_layer"])]
    config["attn_type_list"] = [int(not on) for on in own.get("attention.recurrent_layers", usual)]
    for part in _PARTS:
        config[f"layernorm_{part}_alpha"] = float(own.get("residual_scale", 1.0))
        config[f"layernorm_{part}_beta"] = 1.0


_PARTS = ("full_attention", "linear_attention", "mlp")


def _names_of(part: str, greek: str) -> tuple[str, str]:
    """A factor's name as published, and as transformers has it."""
    return f"layernorm_{part}_{greek}", f"{part.replace('attention', 'attn')}_{greek}_factor"


MINIMAX_01 = Architecture(
    "minimax-01",
    (
        HfName("MiniMaxText01ForCausalLM", "minimax_text_01"),
        HfName("MiniMaxM1ForCausalLM", "minimax_m1"),
        HfName("MiniMaxForCausalLM", "minimax"),
    ),
    keys=(*COMMON, *HEAD_DIM, *EXPERTS),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *only(tuple(r for r in attention() if r.gguf[0].endswith(".weight")), _full),
        row("blk.{i}.attn_norm_2.weight", _at + "self_attn.norm.weight", _wide, when=_linear),
        row("blk.{i}.attn_qkv.weight", _at + "self_attn.qkv_proj.weight", f"3 * {_wide}, n_embd", when=_linear),
        row("blk.{i}.attn_gate.weight", _at + "self_attn.output_gate.weight", f"{_wide}, n_embd", when=_linear),
        row("blk.{i}.attn_output.weight", _at + "self_attn.out_proj.weight", f"n_embd, {_wide}", when=_linear),
        *_expert_rows,
    ),
    dropped=(r".*\.rotary_emb\.inv_freq", r".*\.self_attn\.(slope_rate|(query|key|diagonal)_decay)"),
    dims={"interval": "8"},
    finish=_lightning,
    rebuild=_lightning_back,
    decoder={
        "lightning": True,
        "scales_kept": True,
        "residual_after_norm": True,
        "normalize_experts": True,
        "latent_eps": 1e-6,
    },
    reads="rotary_dim partial_rotary_factor attn_type_list layer_types"
    + "".join(f" {name}" for part in _PARTS for greek in ("alpha", "beta") for name in _names_of(part, greek)),
    inert="num_experts postnorm shared_intermediate_size shared_moe_mode block_size layer_types",
    fixed={"postnorm": True, "shared_intermediate_size": 0, "sliding_window": None},
    loader=Loader(pieces={"latent_eps": 0.0}),
)

ARCHITECTURES = (MINIMAX_M2, MINIMAX_M3, MINIMAX_01)
