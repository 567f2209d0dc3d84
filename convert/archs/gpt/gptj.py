"""GPT-J."""

from __future__ import annotations

from llmconv.convert.archs.parts import GPT_KEYS, HEAD, linear, norm
from llmconv.convert.tables.architecture import Architecture, HfName, Key, row
from llmconv.convert.tables.loader import Loader

_at = "{p}h.{i}."

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
    decoder={"rope": "pairs", "parallel": True, "activation": "gelu_tanh", "activation_key": "activation_function"},
    inert="rotary n_ctx scale_attn_weights",
    loader=Loader(exists=False),
)

ARCHITECTURES = (GPTJ,)
