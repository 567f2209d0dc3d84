"""InternLM2: Llama under other names, with q, k and v fused by group."""

from __future__ import annotations

from llmconv.convert.archs.parts import COMMON
from llmconv.convert.tables.architecture import Architecture, HfName, row
from llmconv.convert.tables.loader import HEAD, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Only, Split, rope_halves

_at = "{p}layers.{i}."

_kv = "n_head_kv * head_dim"

_q_shape, _kv_shape = "n_head * head_dim, n_embd", f"{_kv}, n_embd"

_permuted = (Only(0, rope_halves("n_head")), Only(1, rope_halves("n_head_kv")))

_qkv = ("blk.{i}.attn_q", "blk.{i}.attn_k", "blk.{i}.attn_v")

_grouped = Split(("n_head // n_head_kv * head_dim", "head_dim", "head_dim"), "n_head_kv")

INTERNLM2 = Architecture(
    "internlm2",
    (HfName("InternLM2ForCausalLM", "internlm2"),),
    keys=COMMON,
    rows=(
        row("token_embd.weight", "{p}tok_embeddings.weight", "n_vocab, n_embd"),
        row("output_norm.weight", "{p}norm.weight", "n_embd"),
        row("output.weight", "output.weight", "n_vocab, n_embd", optional="!tie_word_embeddings"),
        row("blk.{i}.attn_norm.weight", _at + "attention_norm.weight", "n_embd"),
        row("blk.{i}.ffn_norm.weight", _at + "ffn_norm.weight", "n_embd"),
        row(
            tuple(f"{n}.weight" for n in _qkv),
            _at + "attention.wqkv.weight",
            (_q_shape, _kv_shape, _kv_shape),
            _grouped,
            *_permuted,
        ),
        row(
            tuple(f"{n}.bias" for n in _qkv),
            _at + "attention.wqkv.bias",
            ("n_head * head_dim", _kv, _kv),
            _grouped,
            *_permuted,
            optional="bias",
        ),
        row("blk.{i}.attn_output.weight", _at + "attention.wo.weight", "n_embd, n_head * head_dim"),
        row("blk.{i}.attn_output.bias", _at + "attention.wo.bias", "n_embd", optional="bias"),
        row("blk.{i}.ffn_gate.weight", _at + "feed_forward.w1.weight", "n_ff, n_embd"),
        row("blk.{i}.ffn_up.weight", _at + "feed_forward.w3.weight", "n_ff, n_embd"),
        row("blk.{i}.ffn_down.weight", _at + "feed_forward.w2.weight", "n_embd, n_ff"),
    ),
    decoder={"rope": "pairs"},
    loader=Loader(refused=OUT_BIAS, needed=HEAD),
)

ARCHITECTURES = (INTERNLM2,)
