"""Seed-OSS: Llama with biases of q, k and v; GGUF calls the norm before its MLP post_attention_norm."""

from __future__ import annotations

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM, attention, gated_mlp
from llmconv.convert.tables.architecture import Architecture, HfName, row
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader

_at = "{p}layers.{i}."

SEED_OSS = Architecture(
    "seed_oss",
    (HfName("SeedOssForCausalLM", "seed_oss"),),
    keys=(*COMMON, *HEAD_DIM),
    rows=(
        *EMBEDDINGS,
        row("blk.{i}.attn_norm.weight", _at + "input_layernorm.weight", "n_embd"),
        row("blk.{i}.post_attention_norm.weight", _at + "post_attention_layernorm.weight", "n_embd"),
        *attention(bias="attention_bias=true", out_bias="attention_out_bias"),
        *gated_mlp(),
    ),
    decoder={"mlp_norm": "post_attention_norm"},
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS)),
)

ARCHITECTURES = (SEED_OSS,)
