"""Nomic BERT: BERT's norms, rotary positions, gated MLPs, no biases; published under names of its own.

Version 2 has biases, and experts in every other layer's place of an MLP without a gate.  What its experts add to a
token is one bias for all of them, which GGUF has no name for: it travels along and is computed with here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.heads import rebuild
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Concat, Dims, Reshape, Transpose
from llmconv.convert.tables.rows import Form, Row

_old, _new = "{p}encoder.layers.{i}.", "{p}layers.{i}."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["attention.causal"] = False
    trained = config.get("max_trained_positions", 2048)
    if config.get("n_positions") == 8192 and trained == 2048:  # the first releases state what they stretch to
        own["context_length"] = np.uint32(trained)


def _both(gguf: str, old: str, new: str, shape: str) -> Row:
    return row(gguf, _new + new, shape, alt=(Form((_old + old,)),))


def _norm(gguf: str, old: str, new: str) -> tuple[Row, ...]:
    return tuple(_both(f"{gguf}.{part}", f"{old}.{part}", f"{new}.{part}", "n_embd") for part in ("weight", "bias"))


_qkv = tuple(f"{_new}self_attn.{part}_proj.weight" for part in "qkv")

NOMIC = Architecture(
    "nomic-bert",
    (HfName("NomicBertModel", "nomic_bert"),),
    keys=keys("""
        block_count                     u32   num_hidden_layers|n_layer
        context_length                  u32   max_position_embeddings|n_positions
        embedding_length                u32   hidden_size|n_embd
        feed_forward_length             u32   intermediate_size|n_inner
        attention.head_count            u32   num_attention_heads|n_head
        attention.layer_norm_epsilon    f32   layer_norm_eps|layer_norm_epsilon   1e-12
        rope.freq_base                  f32   rope_theta|rotary_emb_base          1000
        token_type_count                u32   type_vocab_size                     2
    """),
    rows=(
        row("token_embd.weight", "{p}embeddings.word_embeddings.weight", "n_vocab, n_embd"),
        row("token_types.weight", "{p}embeddings.token_type_embeddings.weight", "n_token_types, n_embd"),
        *(
            row(
                f"token_embd_norm.{part}",
                "{p}embeddings.LayerNorm." + part,
                "n_embd",
                alt=(Form(("{p}emb_ln." + part,)),),
            )
            for part in ("weight", "bias")
        ),
        row(
            "blk.{i}.attn_qkv.weight",
            _qkv,
            "3 * n_embd, n_embd",
            Concat(("n_embd",) * 3),
            alt=(Form((_old + "attn.Wqkv.weight",)),),
        ),
        _both("blk.{i}.attn_output.weight", "attn.out_proj.weight", "self_attn.o_proj.weight", "n_embd, n_embd"),
        *_norm("blk.{i}.attn_output_norm", "norm1", "post_attention_layernorm"),
        _both("blk.{i}.ffn_up.weight", "mlp.fc11.weight", "mlp.up_proj.weight", "n_ff, n_embd"),
        _both("blk.{i}.ffn_gate.weight", "mlp.fc12.weight", "mlp.gate_proj.weight", "n_ff, n_embd"),
        _both("blk.{i}.ffn_down.weight", "mlp.fc2.weight", "mlp.down_proj.weight", "n_embd, n_ff"),
        *_norm("blk.{i}.layer_output_norm", "norm2", "post_mlp_layernorm"),
    ),
    prefixes=("", "bert.", "model."),
    kept=(r"(bert\.)?pooler\.dense\.(weight|bias)", r"cls\..*"),
    tied=True,
    finish=_finish,
    rebuild=rebuild,
    fits=lambda config: not config.get("moe_every_n_layers"),
    decoder={"norm": "layer", "causal": False, "rope_base": 1000.0},
    reads="n_positions max_trained_positions moe_every_n_layers",
    inert="use_rms_norm use_xentropy use_flash_attn fused_dropout_add_ln fused_bias_fc parallel_block_tied_norm"
    " pad_vocab_size_multiple attn_pdrop embd_pdrop resid_pdrop scale_attn_by_inverse_layer_idx reorder_and_upcast_attn"
    " rotary_scaling_factor summary_activation summary_first_dropout summary_proj_to_labels summary_type"
    " summary_use_proj dense_seq_output last_layer_subset shared_token_type scale_attn_weights head_dim",
    fixed={
        "prenorm": False,
        "causal": False,
        "qkv_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "parallel_block": False,
        "activation_function": "swiglu",
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
    },
)


def _finish_moe(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["attention.causal"] = False
    if config.get("n_positions") == 2048 and config.get("max_trained_positions", 2048) == 2048:
        own["context_length"] = np.uint32(512)  # what it was trained on, as its card says


def _rebuild_moe(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    rebuild(config, own, dims)
    config["n_positions"] = config["max_trained_positions"] = dims["n_ctx"]
    config |= {"activation_function": "gelu", "causal": False, "prenorm": False, "pad_token_id": 1}
    config |= dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), True)
    config |= {"rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None}
    config |= {"moe_normalize_expert_weights": False, "num_shared_experts": 0}


_experts = "n_moe_every and i % n_moe_every == 1"


def _biased(gguf: str, theirs: str, out: str, into: str, when: str = "") -> tuple[Row, Row]:
    return (
        row(f"{gguf}.weight", f"{_old}{theirs}.weight", f"{out}, {into}", when=when),
        row(f"{gguf}.bias", f"{_old}{theirs}.bias", out, when=when),
    )


NOMIC_MOE = NOMIC.variant(
    "nomic-bert-moe",
    HfName("NomicBertModel", "nomic_bert"),
    keys=keys("""
        block_count                     u32   n_layer
        context_length                  u32   n_positions
        embedding_length                u32   n_embd
        feed_forward_length             u32   n_inner
        attention.head_count            u32   n_head
        attention.layer_norm_epsilon    f32   layer_norm_epsilon      1e-12
        rope.freq_base                  f32   rotary_emb_base         10000
        token_type_count                u32   type_vocab_size         1
        moe_every_n_layers              u32   moe_every_n_layers
        expert_count                    u32   num_experts
        expert_used_count               u32   moe_top_k               1
    """),
    drop=("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight", "blk.{i}.ffn_down.weight"),
    rows=(
        row("token_embd.weight", "{p}embeddings.word_embeddings.weight", "n_vocab, n_embd"),
        *(row(f"token_embd_norm.{part}", "{p}emb_ln." + part, "n_embd") for part in ("weight", "bias")),
        *_biased("blk.{i}.attn_qkv", "attn.Wqkv", "3 * n_embd", "n_embd"),
        *_biased("blk.{i}.attn_output", "attn.out_proj", "n_embd", "n_embd"),
        *(
            row(f"blk.{{i}}.{gguf}.{part}", f"{_old}{theirs}.{part}", "n_embd")
            for gguf, theirs in (("attn_output_norm", "norm1"), ("layer_output_norm", "norm2"))
            for part in ("weight", "bias")
        ),
        *_biased("blk.{i}.ffn_up", "mlp.fc1", "n_ff", "n_embd", f"not ({_experts})"),
        *_biased("blk.{i}.ffn_down", "mlp.fc2", "n_embd", "n_ff", f"not ({_experts})"),
        row("blk.{i}.ffn_gate_inp.weight", _old + "mlp.router.layer.weight", "n_expert, n_embd", when=_experts),
        row(
            "blk.{i}.ffn_up_exps.weight",
            _old + "mlp.experts.mlp.w1",
            "n_expert, n_ff, n_embd",
            Reshape(("n_expert * n_ff", "n_embd"), ("n_expert", "n_ff", "n_embd")),
            when=_experts,
        ),
        row(
            "blk.{i}.ffn_down_exps.weight",
            _old + "mlp.experts.mlp.w2",
            "n_expert, n_embd, n_ff",
            Reshape(("n_expert * n_ff", "n_embd"), ("n_expert", "n_ff", "n_embd")),
            Transpose(),
            when=_experts,
        ),
    ),
    kept=(*NOMIC.kept, r".*\.mlp\.experts\.bias"),
    computed={r".*encoder\.layers\.(\d+)\.mlp\.experts\.bias": "blk.{}.ffn_exps_out.bias"},
    finish=_finish_moe,
    rebuild=_rebuild_moe,
    fits=lambda config: bool(config.get("moe_every_n_layers")),
    decoder={"activation": "gelu", "rope_base": 10000.0, "activation_key": ""},
    reads="n_positions max_trained_positions",
    inert="moe_impl ffn_div expert_choice_router moe_resid_pdrop moe_aux_loss_weight moe_loss_weight",
    fixed={
        "qkv_proj_bias": True,
        "mlp_fc1_bias": True,
        "mlp_fc2_bias": True,
        "activation_function": "gelu",
        "moe_normalize_expert_weights": False,
        "num_shared_experts": 0,
        "expert_choice_router": False,
    },
)

ARCHITECTURES = (NOMIC, NOMIC_MOE)
