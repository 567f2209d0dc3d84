"""GPT-2 and its kin: StarCoder (GPT-BigCode), GPT-J, OPT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Architecture, HfName, Key, Optional, keys, row
from llmconv.convert.tables.ops import Dims, SwapRows, Transpose

# Where the older names of transformers differ from the later ones, both are listed.
GPT_KEYS = keys("""
    block_count                     u32   n_layer|num_hidden_layers
    context_length                  u32   n_positions|n_ctx|max_position_embeddings
    embedding_length                u32   n_embd|hidden_size
    feed_forward_length             u32   n_inner|intermediate_size       = 4 * n_embd
    attention.head_count            u32   n_head|num_attention_heads
    attention.layer_norm_epsilon    f32   layer_norm_epsilon|layer_norm_eps   1e-5
""")

_at = "{p}h.{i}."
HEAD = row("output.weight", "lm_head.weight", "n_vocab, n_embd", optional="!tie_word_embeddings")


def norm(gguf: str, hf: str, when: str = "", optional: Optional = False) -> Any:
    """Rows of a LayerNorm: weight and bias."""
    return (
        row(gguf + ".weight", hf + ".weight", "n_embd", when=when, optional=optional),
        row(gguf + ".bias", hf + ".bias", "n_embd", when=when, optional=optional),
    )


def linear(gguf: str, hf: str, n_out: str, n_in: str, *ops: Any, bias: bool | str = False) -> Any:
    """Rows of a linear layer with a bias; GPT-2's Conv1D needs a Transpose of the weight."""
    moves = tuple(op for op in ops if not isinstance(op, Transpose))
    return (
        row(gguf + ".weight", hf + ".weight", f"{n_out}, {n_in}", *ops),
        row(gguf + ".bias", hf + ".bias", n_out, *moves, optional=bias),
    )


GPT2 = Architecture(
    "gpt2",
    (HfName("GPT2LMHeadModel", "gpt2"), HfName("GPT2Model", "gpt2")),
    keys=GPT_KEYS,
    rows=(
        row("token_embd.weight", "{p}wte.weight", "n_vocab, n_embd"),
        row("position_embd.weight", "{p}wpe.weight", "n_ctx, n_embd"),
        *norm("output_norm", "{p}ln_f"),
        HEAD,
        *norm("blk.{i}.attn_norm", _at + "ln_1"),
        *linear("blk.{i}.attn_qkv", _at + "attn.c_attn", "3 * n_embd", "n_embd", Transpose()),
        *linear("blk.{i}.attn_output", _at + "attn.c_proj", "n_embd", "n_embd", Transpose()),
        *norm("blk.{i}.ffn_norm", _at + "ln_2"),
        *linear("blk.{i}.ffn_up", _at + "mlp.c_fc", "n_ff", "n_embd", Transpose()),
        *linear("blk.{i}.ffn_down", _at + "mlp.c_proj", "n_embd", "n_ff", Transpose()),
    ),
    prefixes=("transformer.", ""),
    dropped=(r".*\.attn\.(masked_)?bias",),
    tied=True,
    decoder={"positions": "learned", "activation": "gelu_tanh"},
)


def _kv_heads(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    shared = config.get("multi_query", True)
    own["attention.head_count_kv"] = np.uint32(1 if shared else dims["n_head"])


def _multi_query(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["multi_query"] = dims["n_head_kv"] == 1


_qkv = "(n_head + 2 * n_head_kv) * head_dim"
_apart = SwapRows("n_head", 3, inner="head_dim")  # without multi-query attention each head has its own q, k, v

STARCODER = GPT2.variant(
    "starcoder",
    HfName("GPTBigCodeForCausalLM", "gpt_bigcode"),
    rows=(
        row("blk.{i}.attn_qkv.weight", _at + "attn.c_attn.weight", f"{_qkv}, n_embd", when="n_head_kv == 1"),
        row("blk.{i}.attn_qkv.bias", _at + "attn.c_attn.bias", _qkv, when="n_head_kv == 1"),
        *linear("blk.{i}.attn_output", _at + "attn.c_proj", "n_embd", "n_embd"),
        *linear("blk.{i}.ffn_up", _at + "mlp.c_fc", "n_ff", "n_embd"),
        *linear("blk.{i}.ffn_down", _at + "mlp.c_proj", "n_embd", "n_ff"),
    ),
    finish=_kv_heads,
    rebuild=_multi_query,
)
_heads_apart = (
    row("blk.{i}.attn_qkv.weight", _at + "attn.c_attn.weight", f"{_qkv}, n_embd", _apart, when="n_head_kv != 1"),
    row("blk.{i}.attn_qkv.bias", _at + "attn.c_attn.bias", _qkv, _apart, when="n_head_kv != 1"),
)
STARCODER = STARCODER.extended(_heads_apart)

GPTJ = Architecture(
    "gptj",
    (HfName("GPTJForCausalLM", "gptj"),),
    keys=(
        *GPT_KEYS,
        Key("rope.dimension_count", ("rotary_dim",), "u32", 64),
        Key("vocab_size", ("vocab_size",), "u32"),
    ),
    rows=(
        row("token_embd.weight", "{p}wte.weight", "n_vocab, n_embd"),
        *norm("output_norm", "{p}ln_f"),
        HEAD,
        row("output.bias", "lm_head.bias", "n_vocab", optional=lambda config: True),
        *norm("blk.{i}.attn_norm", _at + "ln_1"),
        row("blk.{i}.attn_q.weight", _at + "attn.q_proj.weight", "n_embd, n_embd"),
        row("blk.{i}.attn_k.weight", _at + "attn.k_proj.weight", "n_embd, n_embd"),
        row("blk.{i}.attn_v.weight", _at + "attn.v_proj.weight", "n_embd, n_embd"),
        row("blk.{i}.attn_output.weight", _at + "attn.out_proj.weight", "n_embd, n_embd"),
        *linear("blk.{i}.ffn_up", _at + "mlp.fc_in", "n_ff", "n_embd"),
        *linear("blk.{i}.ffn_down", _at + "mlp.fc_out", "n_embd", "n_ff"),
    ),
    prefixes=("transformer.", ""),
    dropped=(r".*\.attn\.(masked_)?bias", r".*\.attn\.embed_positions"),
    decoder={"rope": "pairs", "parallel": True, "activation": "gelu_tanh"},
)

_opt = "{p}layers.{i}."


def _opt_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["norm_before"] = bool(config.get("do_layer_norm_before", True))
    width = config.get("word_embed_proj_dim") or dims["n_embd"]
    own["word_embedding_length"] = np.uint32(width)
    own["activation"] = str(config.get("activation_function", "relu"))


def _opt_rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["do_layer_norm_before"] = bool(own.get("norm_before", True))
    config["word_embed_proj_dim"] = int(own.get("word_embedding_length", dims["n_embd"]))
    config["activation_function"] = str(own.get("activation", "relu"))


def _final_norm(config: Mapping[str, Any]) -> bool:
    return bool(config.get("do_layer_norm_before", True)) and not config.get("_remove_final_layer_norm", False)


OPT = Architecture(
    "opt",  # a name of our own: llama.cpp has no OPT
    (HfName("OPTForCausalLM", "opt"), HfName("OPTModel", "opt")),
    keys=(
        *keys("""
            block_count             u32   num_hidden_layers
            context_length          u32   max_position_embeddings
            embedding_length        u32   hidden_size
            feed_forward_length     u32   ffn_dim
            attention.head_count    u32   num_attention_heads
            vocab_size              u32   vocab_size
            attention.layer_norm_epsilon  f32  -  1e-5
        """),
    ),
    rows=(
        row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_word"),
        row("position_embd.weight", "{p}embed_positions.weight", "n_ctx + 2, n_embd"),
        row("token_embd_in.weight", "{p}project_in.weight", "n_embd, n_word", when="n_word != n_embd"),
        row("output_in.weight", "{p}project_out.weight", "n_word, n_embd", when="n_word != n_embd"),
        *norm("output_norm", "{p}final_layer_norm", optional=_final_norm),
        row("output.weight", "lm_head.weight", "n_vocab, n_word", optional="!tie_word_embeddings"),
        *norm("blk.{i}.attn_norm", _opt + "self_attn_layer_norm"),
        *linear("blk.{i}.attn_q", _opt + "self_attn.q_proj", "n_embd", "n_embd", bias="enable_bias"),
        *linear("blk.{i}.attn_k", _opt + "self_attn.k_proj", "n_embd", "n_embd", bias="enable_bias"),
        *linear("blk.{i}.attn_v", _opt + "self_attn.v_proj", "n_embd", "n_embd", bias="enable_bias"),
        *linear("blk.{i}.attn_output", _opt + "self_attn.out_proj", "n_embd", "n_embd", bias="enable_bias"),
        *norm("blk.{i}.ffn_norm", _opt + "final_layer_norm"),
        *linear("blk.{i}.ffn_up", _opt + "fc1", "n_ff", "n_embd", bias="enable_bias"),
        *linear("blk.{i}.ffn_down", _opt + "fc2", "n_embd", "n_ff", bias="enable_bias"),
    ),
    prefixes=("model.decoder.", "decoder.", ""),
    tied=True,
    finish=_opt_finish,
    rebuild=_opt_rebuild,
    decoder={"positions": "learned", "position_offset": 2, "activation": "relu"},
)

ARCHITECTURES = (GPT2, STARCODER, GPTJ, OPT)
