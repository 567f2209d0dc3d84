"""Nomic BERT: BERT's norms, rotary positions, gated MLPs, no biases; published under names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.heads import rebuild
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Concat, Dims
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
    decoder={"norm": "layer", "causal": False, "rope_base": 1000.0},
    reads="n_positions max_trained_positions",
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
        "moe_every_n_layers": (0, None),
    },
)

ARCHITECTURES = (NOMIC,)
