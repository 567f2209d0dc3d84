"""GPT-2."""

from __future__ import annotations

from llmconv.convert.archs.parts import GPT_KEYS, HEAD, linear, norm
from llmconv.convert.tables.architecture import Architecture, HfName, row
from llmconv.convert.tables.ops import Transpose

_at = "{p}h.{i}."

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
    decoder={"positions": "learned", "activation": "gelu_tanh", "conv1d": True},
)

ARCHITECTURES = (GPT2,)
