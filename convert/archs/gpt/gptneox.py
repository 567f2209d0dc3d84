"""GPT-NeoX (Pythia)."""

from __future__ import annotations

from llmconv.convert.archs.parts import linear, norm
from llmconv.convert.archs.rope import partial_rotary
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import HEAD, OUT_BIAS, Loader
from llmconv.convert.tables.ops import SwapRows

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
        rope.freq_base                  f32   rotary_emb_base|rope_theta  10000
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
    reads="rotary_pct partial_rotary_factor rotary_emb_base",
    inert="is_decoder",
    loader=Loader(needed=(*HEAD, "blk.{i}.attn_qkv.bias", *OUT_BIAS)),
)

ARCHITECTURES = (GPTNEOX,)
