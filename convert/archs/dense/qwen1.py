"""Qwen 1: Llama under GPT's names, q, k and v in one matrix with a bias."""

from __future__ import annotations

from llmconv.convert.archs.parts import EMBEDDINGS
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import HEAD, Loader

_h = "{p}h.{i}."


QWEN1 = Architecture(
    "qwen",
    (HfName("QWenLMHeadModel", "qwen"),),
    keys=keys("""
        block_count                       u32   num_hidden_layers
        context_length                    u32   max_position_embeddings|seq_length
        embedding_length                  u32   hidden_size
        feed_forward_length               u32   intermediate_size
        attention.head_count              u32   num_attention_heads
        rope.freq_base                    f32   rotary_emb_base                     10000
        attention.layer_norm_rms_epsilon  f32   layer_norm_epsilon                  1e-6
        attention.layer_norm_epsilon      f32   layer_norm_epsilon                  1e-6
    """),
    rows=(
        row("token_embd.weight", "{p}wte.weight", "n_vocab, n_embd"),
        row("output_norm.weight", "{p}ln_f.weight", "n_embd"),
        EMBEDDINGS[2],
        row("blk.{i}.attn_norm.weight", _h + "ln_1.weight", "n_embd"),
        row("blk.{i}.attn_qkv.weight", _h + "attn.c_attn.weight", "3 * n_embd, n_embd"),
        row("blk.{i}.attn_qkv.bias", _h + "attn.c_attn.bias", "3 * n_embd"),
        row("blk.{i}.attn_output.weight", _h + "attn.c_proj.weight", "n_embd, n_embd"),
        row("blk.{i}.ffn_norm.weight", _h + "ln_2.weight", "n_embd"),
        row("blk.{i}.ffn_up.weight", _h + "mlp.w1.weight", "n_ff // 2, n_embd"),
        row("blk.{i}.ffn_gate.weight", _h + "mlp.w2.weight", "n_ff // 2, n_embd"),
        row("blk.{i}.ffn_down.weight", _h + "mlp.c_proj.weight", "n_embd, n_ff // 2"),
    ),
    prefixes=("transformer.", ""),
    decoder={"norm": "rms", "activation_key": ""},
    reads="max_position_embeddings",
    inert="bf16 fp16 fp32 onnx_safe use_logn_attn use_dynamic_ntk softmax_in_fp32 kv_channels no_bias rotary_pct"
    " tokenizer_type use_cache_quantization use_cache_kernel seq_length",
    fixed={"scale_attn_weights": True},
    loader=Loader(needed=HEAD),
)

ARCHITECTURES = (QWEN1,)
