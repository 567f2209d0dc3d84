"""Kimi K3: Kimi Linear with experts in a narrower space, gates of whole matrices, residuals that layers look back on.

What scores the residuals is a norm's weight times a row, which GGUF keeps as one vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import each_layer
from llmconv.convert.archs.recurrent.kimi_linear import KIMI_LINEAR
from llmconv.convert.tables.architecture import Form, HfName, Row, keys, row
from llmconv.convert.tables.loader import OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, NegativeExp, Product

_at = "{p}layers.{i}."

_attn, _moe = _at + "self_attn.", _at + "block_sparse_moe."

_delta, _full, _sparse = "not n_head_kv", "n_head_kv", "n_expert and i >= n_dense"


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    normalized = own.get("expert_weights_norm", True)
    assert KIMI_LINEAR.finish is not None
    KIMI_LINEAR.finish(own, config, dims)
    own["expert_weights_norm"] = bool(normalized)
    own["attention.value_length"] = np.uint32(config["kv_lora_rank"])
    for name in ("expert_group_count", "expert_group_used_count"):
        own.pop(name, None)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    assert KIMI_LINEAR.rebuild is not None
    KIMI_LINEAR.rebuild(config, own, dims)
    full = [i + 1 for i, n in enumerate(each_layer(own, "attention.head_count_kv")) if n]
    delta = [i + 1 for i, n in enumerate(each_layer(own, "attention.head_count_kv")) if not n]
    for name in ("layer_types", "mlp_layer_types", "linear_num_heads", "head_dim"):
        config.pop(name, None)
    config["linear_attn_config"] |= {"full_attn_layers": full, "kda_layers": delta, "num_heads": dims["n_head"]}
    config["first_k_dense_replace"] = dims["n_dense"]
    config.update(hidden_act="situ", mla_use_nope=True, mla_use_output_gate=True)


def _score(gguf: str, theirs: str) -> Row:
    """The row of what scores residuals, its second factor as a matrix of one row or a vector."""
    names = (theirs + "_norm.weight", theirs + "_proj.weight")
    return row(gguf + ".weight", names, "n_embd", Product(row=True), alt=(Form(names, (Product(),)),))


def _narrow(each: Row) -> Row:
    """Experts see fewer numbers than the model has."""
    return dataclasses.replace(each, shapes=tuple(shape.replace("n_embd", "n_routed") for shape in each.shapes))


def _kept(each: Row) -> bool:
    return not each.gguf[0].startswith(("blk.{i}.ssm_g_", "blk.{i}.ssm_a"))


KIMI_K3 = dataclasses.replace(
    KIMI_LINEAR.variant(
        "kimi-k3",
        HfName("KimiK3ForConditionalGeneration", "kimi_k3"),
        keys=keys("""
            context_length                  u32   max_position_embeddings|model_max_length           1048576
            ssm.conv_kernel                 u32   linear_attn_config.short_conv_kernel_size          4
            kda.head_dim                    u32   linear_attn_config.head_dim                        128
            kda.gate_lower_bound            f32   linear_attn_config.gate_lower_bound
            expert_count                    u32   num_experts
            expert_used_count               u32   num_experts_per_token|num_experts_per_tok
            expert_latent_length            u32   routed_expert_hidden_size
            activation.situ_beta            f32   activation_situ_beta
            activation.situ_linear_beta     f32   activation_situ_linear_beta
            attn_res.block_size             u32   attn_res_block_size
        """),
        finish=_finish,
        rebuild=_rebuild,
        prefixes=("language_model.model.", "model.", ""),
        decoder={"activation": "situ", "activation_key": "", "latent_eps": 0.0},
        reads="linear_attn_config.full_attn_layers",
        inert="mla_use_output_gate qk_head_dim num_expert_group topk_group",
        fixed={"hidden_act": "situ"},
    ),
    loader=Loader(
        refused=(*OUT_BIAS, "blk.{i}.attn_q_a.bias", "blk.{i}.attn_kv_a_mqa.bias"), needed=("output.weight",)
    ),
    rows=(
        *(_narrow(r) if "_exps." in r.gguf[0] else r for r in KIMI_LINEAR.rows if _kept(r)),
        _score("output_res_score", "{p}output_attn_res"),
        _score("blk.{i}.attn_res_score", _at + "self_attention_res"),
        _score("blk.{i}.ffn_res_score", _at + "mlp_res"),
        row("blk.{i}.ssm_a", _attn + "A_log", "n_head", NegativeExp(), when=_delta),
        row("blk.{i}.ssm_g.weight", _attn + "g_proj.weight", "n_head * kda_dim, n_embd", when=_delta),
        row("blk.{i}.attn_gate.weight", _attn + "g_proj.weight", "n_head * v_mla, n_embd", when=_full),
        *(
            row(
                f"blk.{{i}}.ffn_routed_{name}.weight",
                _moe + f"routed_expert_{name}{end}.weight",
                shape,
                when=f"routes and {_sparse}",
                optional=name == "norm",
            )
            for name, end, shape in (
                ("down", "_proj", "n_routed, n_embd"),
                ("up", "_proj", "n_embd, n_routed"),
                ("norm", "", "n_routed"),
            )
        ),
    ),
)

ARCHITECTURES = (KIMI_K3,)
