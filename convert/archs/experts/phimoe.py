"""Phi-3.5-MoE: Phi 3's long contexts, LayerNorms, two experts a token, each weighed against its near rivals alone."""

from __future__ import annotations

from llmconv.convert.archs.gpt.phi import PHI3
from llmconv.convert.archs.parts import EXPERTS, attention, norm
from llmconv.convert.tables.architecture import HfName, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Stack

_at = "{p}layers.{i}."

_experts = _at + "block_sparse_moe."

PHIMOE = PHI3.variant(
    "phimoe",
    HfName("PhimoeForCausalLM", "phimoe"),
    HfName("PhiMoEForCausalLM", "phimoe"),
    keys=(*EXPERTS, *keys("attention.layer_norm_rms_epsilon  f32  rms_norm_eps  1e-5")),
    drop=("blk.{i}.attn_qkv.weight", "blk.{i}.ffn_up.weight", "blk.{i}.ffn_down.weight"),
    rows=(
        *norm("output_norm", "{p}norm"),
        row("output.bias", "lm_head.bias", "n_vocab", optional="lm_head_bias"),
        *norm("blk.{i}.attn_norm", _at + "input_layernorm"),
        *norm("blk.{i}.ffn_norm", _at + "post_attention_layernorm"),
        *attention(),
        row("blk.{i}.ffn_gate_inp.weight", _experts + "gate.weight", "n_expert, n_embd"),
        row("blk.{i}.ffn_gate_exps.weight", _experts + "experts.{e}.w1.weight", "n_expert, n_ff, n_embd", Stack()),
        row("blk.{i}.ffn_down_exps.weight", _experts + "experts.{e}.w2.weight", "n_expert, n_embd, n_ff", Stack()),
        row("blk.{i}.ffn_up_exps.weight", _experts + "experts.{e}.w3.weight", "n_expert, n_ff, n_embd", Stack()),
    ),
    decoder={"norm": "layer", "gating": "sparsemixer"},
    reads="router_jitter_noise",
    inert="input_jitter_noise",
    loader=Loader(pieces={"gating": "softmax", "normalize_experts": True}),
)

ARCHITECTURES = (PHIMOE,)
