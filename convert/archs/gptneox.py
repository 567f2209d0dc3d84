"""GPT-NeoX (Pythia), BLOOM, MPT and Falcon: LayerNorm models with one fused q, k, v projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.gpt2 import HEAD, linear, norm
from llmconv.convert.archs.partial import partial_rotary
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Key, keys, row
from llmconv.convert.tables.config import look_up
from llmconv.convert.tables.ops import Concat, Dims, Split, SwapRows

_heads = SwapRows("n_head", 3, inner="head_dim")  # (head, q k v, ...) -> (q k v, head, ...)
_at = "{p}layers.{i}."
_bias = "attention_bias=true"
_neox_finish, _neox_rebuild = partial_rotary("rotary_pct|partial_rotary_factor", 0.25)

GPTNEOX = Architecture(
    "gptneox",
    (HfName("GPTNeoXForCausalLM", "gpt_neox"),),
    keys=keys("""
        block_count                     u32   num_hidden_layers
        context_length                  u32   max_position_embeddings
        embedding_length                u32   hidden_size
        feed_forward_length             u32   intermediate_size
        attention.head_count            u32   num_attention_heads
        use_parallel_residual           bool  use_parallel_residual     true
        attention.layer_norm_epsilon    f32   layer_norm_eps            1e-5
        rope.freq_base                  f32   rope_theta                10000
    """),
    rows=(
        row("token_embd.weight", "{p}embed_in.weight", "n_vocab, n_embd"),
        *norm("output_norm", "{p}final_layer_norm"),
        row("output.weight", "embed_out.weight", "n_vocab, n_embd", optional="!tie_word_embeddings"),
        *norm("blk.{i}.attn_norm", _at + "input_layernorm"),
        *linear("blk.{i}.attn_qkv", _at + "attention.query_key_value", "3 * n_embd", "n_embd", _heads, bias=_bias),
        *linear("blk.{i}.attn_output", _at + "attention.dense", "n_embd", "n_embd", bias=_bias),
        *norm("blk.{i}.ffn_norm", _at + "post_attention_layernorm"),
        *linear("blk.{i}.ffn_up", _at + "mlp.dense_h_to_4h", "n_ff", "n_embd"),
        *linear("blk.{i}.ffn_down", _at + "mlp.dense_4h_to_h", "n_embd", "n_ff"),
    ),
    prefixes=("gpt_neox.", ""),
    dropped=(r".*\.attention\.(masked_)?bias", r".*\.rotary_emb\.inv_freq"),
    finish=_neox_finish,
    rebuild=_neox_rebuild,
    decoder={"activation": "gelu"},
)

_h = "{p}h.{i}."

BLOOM = Architecture(
    "bloom",
    (HfName("BloomForCausalLM", "bloom"), HfName("BloomModel", "bloom")),
    keys=keys("""
        block_count                     u32   n_layer|num_hidden_layers
        embedding_length                u32   hidden_size|n_embed
        context_length                  u32   seq_length                = n_embd
        feed_forward_length             u32   -                         = 4 * n_embd
        attention.head_count            u32   n_head|num_attention_heads
        attention.head_count_kv         u32   -                         = n_head
        attention.layer_norm_epsilon    f32   layer_norm_epsilon        1e-5
    """),
    rows=(
        row("token_embd.weight", "{p}word_embeddings.weight", "n_vocab, n_embd"),
        *norm("token_embd_norm", "{p}word_embeddings_layernorm"),
        *norm("output_norm", "{p}ln_f"),
        HEAD,
        *norm("blk.{i}.attn_norm", _h + "input_layernorm"),
        *linear("blk.{i}.attn_qkv", _h + "self_attention.query_key_value", "3 * n_embd", "n_embd", _heads),
        *linear("blk.{i}.attn_output", _h + "self_attention.dense", "n_embd", "n_embd"),
        *norm("blk.{i}.ffn_norm", _h + "post_attention_layernorm"),
        *linear("blk.{i}.ffn_up", _h + "mlp.dense_h_to_4h", "n_ff", "n_embd"),
        *linear("blk.{i}.ffn_down", _h + "mlp.dense_4h_to_h", "n_embd", "n_ff"),
    ),
    prefixes=("transformer.", ""),
    dropped=(),
    tied=True,
    decoder={"positions": "alibi", "activation": "gelu_tanh", "activation_fixed": True},
)

_b = "{p}blocks.{i}."
_qkv = "(n_head + 2 * n_head_kv) * head_dim"


def _mpt_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    attention = config.get("attn_config") or {}
    alibi = attention.get("alibi", True)
    own["attention.max_alibi_bias"] = np.float32(attention.get("alibi_bias_max", 8) if alibi else 0.0)
    own["feed_forward_length"] = np.uint32(int(config.get("expansion_ratio", 4) * dims["n_embd"]))


def _mpt_rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    attention = config.setdefault("attn_config", {})
    attention["alibi"] = bool(own.get("attention.max_alibi_bias", 0.0))
    config["expansion_ratio"] = dims["n_ff"] // dims["n_embd"] if dims["n_embd"] else 4


def _learned(config: Mapping[str, Any]) -> bool:
    return look_up(config, ("attn_config.alibi",)) is False


def _qk_norms(config: Mapping[str, Any]) -> bool:
    return bool(look_up(config, ("attn_config.qk_ln",)))


MPT = Architecture(
    "mpt",
    (HfName("MptForCausalLM", "mpt"), HfName("MPTForCausalLM", "mpt")),
    keys=(
        *keys("""
            block_count                 u32   n_layers
            context_length              u32   max_seq_len
            embedding_length            u32   d_model
            attention.head_count        u32   n_heads
            attention.head_count_kv     u32   attn_config.kv_n_heads
            attention.layer_norm_epsilon  f32  -  1e-5
            attention.clamp_kqv         f32   attn_config.clip_qkv
            feed_forward_length         u32   -                         = 4 * n_embd
        """),
    ),
    rows=(
        row("token_embd.weight", "{p}wte.weight", "n_vocab, n_embd"),
        row("position_embd.weight", "{p}wpe.weight", "n_ctx, n_embd", optional=_learned),
        row("output_norm.weight", "{p}norm_f.weight", "n_embd"),
        row("output_norm.bias", "{p}norm_f.bias", "n_embd", optional="!no_bias"),
        HEAD,
        row("blk.{i}.attn_norm.weight", _b + "norm_1.weight", "n_embd"),
        row("blk.{i}.attn_norm.bias", _b + "norm_1.bias", "n_embd", optional="!no_bias"),
        row("blk.{i}.attn_q_norm.weight", _b + "attn.q_ln.weight", "n_embd", optional=_qk_norms),
        row("blk.{i}.attn_q_norm.bias", _b + "attn.q_ln.bias", "n_embd", optional=_qk_norms),
        row("blk.{i}.attn_k_norm.weight", _b + "attn.k_ln.weight", "n_head_kv * head_dim", optional=_qk_norms),
        row("blk.{i}.attn_k_norm.bias", _b + "attn.k_ln.bias", "n_head_kv * head_dim", optional=_qk_norms),
        *linear("blk.{i}.attn_qkv", _b + "attn.Wqkv", _qkv, "n_embd", bias="!no_bias"),
        *linear("blk.{i}.attn_output", _b + "attn.out_proj", "n_embd", "n_embd", bias="!no_bias"),
        row("blk.{i}.ffn_norm.weight", _b + "norm_2.weight", "n_embd"),
        row("blk.{i}.ffn_norm.bias", _b + "norm_2.bias", "n_embd", optional="!no_bias"),
        *linear("blk.{i}.ffn_up", _b + "ffn.up_proj", "n_ff", "n_embd", bias="!no_bias"),
        row("blk.{i}.ffn.act.scales", _b + "ffn.act.scales", "n_ff", optional=True),
        *linear("blk.{i}.ffn_down", _b + "ffn.down_proj", "n_embd", "n_ff", bias="!no_bias"),
    ),
    prefixes=("transformer.", ""),
    dropped=(),
    tied=True,
    finish=_mpt_finish,
    rebuild=_mpt_rebuild,
    decoder={"positions": "alibi", "activation": "gelu"},
)


def _falcon_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    grouped = config.get("new_decoder_architecture", False)
    heads = config.get("num_kv_heads") or config.get("n_head_kv") or dims["n_head"]
    if not grouped:
        heads = config.get("n_head_kv") or (1 if config.get("multi_query", True) else dims["n_head"])
    own["attention.head_count_kv"] = np.uint32(heads)
    if config.get("alibi"):
        own["attention.max_alibi_bias"] = np.float32(8.0)
    if not config.get("parallel_attn", True):
        own["use_parallel_residual"] = False


def _falcon_rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    heads = dims["n_head_kv"]
    config["new_decoder_architecture"] = heads not in (1, dims["n_head"])
    config["multi_query"] = heads == 1
    config["num_kv_heads"] = heads
    config["alibi"] = bool(own.get("attention.max_alibi_bias", 0.0))
    config["parallel_attn"] = bool(own.get("use_parallel_residual", True))


# Each group of heads keeps its queries, its key and its value together; GGUF has all q, all k, all v.
_groups = (
    Split(("n_head // n_head_kv * head_dim", "head_dim", "head_dim"), "n_head_kv"),
    Concat(("n_head * head_dim", "n_head_kv * head_dim", "n_head_kv * head_dim")),
)


def _one_after_another(config: Mapping[str, Any]) -> bool:
    return not config.get("parallel_attn", True)


def _two_norms(config: Mapping[str, Any]) -> bool:
    norms = config.get("num_ln_in_parallel_attn") or (2 if config.get("new_decoder_architecture") else 1)
    return norms == 2 and not _one_after_another(config)


FALCON = Architecture(
    "falcon",
    (HfName("FalconForCausalLM", "falcon"), HfName("RWForCausalLM", "RefinedWebModel")),
    keys=(
        Key("context_length", ("max_position_embeddings",), "u32", 2048),
        *keys("""
            block_count                     u32   num_hidden_layers|n_layer
            embedding_length                u32   hidden_size
            feed_forward_length             u32   ffn_hidden_size           = 4 * n_embd
            attention.head_count            u32   num_attention_heads|n_head
            attention.layer_norm_epsilon    f32   layer_norm_epsilon        1e-5
            rope.freq_base                  f32   rope_theta                10000
        """),
    ),
    rows=(
        row("token_embd.weight", "{p}word_embeddings.weight", "n_vocab, n_embd"),
        *norm("output_norm", "{p}ln_f"),
        HEAD,
        row(
            ("blk.{i}.attn_norm.weight", "blk.{i}.attn_norm.bias"),
            (_h + "input_layernorm.weight", _h + "input_layernorm.bias"),
            ("n_embd", "n_embd"),
            alt=(Form((_h + "ln_mlp.weight", _h + "ln_mlp.bias"), beside="blk.{i}.attn_norm_2.weight"),),
        ),
        *norm("blk.{i}.attn_norm_2", _h + "ln_attn", optional=_two_norms),
        *linear("blk.{i}.attn_qkv", _h + "self_attention.query_key_value", _qkv, "n_embd", *_groups, bias="bias"),
        *linear("blk.{i}.attn_output", _h + "self_attention.dense", "n_embd", "n_embd", bias="bias"),
        *norm("blk.{i}.ffn_norm", _h + "post_attention_layernorm", optional=_one_after_another),
        *linear("blk.{i}.ffn_up", _h + "mlp.dense_h_to_4h", "n_ff", "n_embd", bias="bias"),
        *linear("blk.{i}.ffn_down", _h + "mlp.dense_4h_to_h", "n_embd", "n_ff", bias="bias"),
    ),
    prefixes=("transformer.", ""),
    tied=True,
    constants={"tensor_data_layout": "jploski"},
    finish=_falcon_finish,
    rebuild=_falcon_rebuild,
    decoder={"parallel": True, "activation": "gelu", "alibi_quirk": True},
)

ARCHITECTURES = (GPTNEOX, BLOOM, MPT, FALCON)
