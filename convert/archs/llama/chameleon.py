"""Chameleon: Llama with LayerNorms of queries and keys, and in its larger model norms behind the sublayers alone."""

from __future__ import annotations

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.tables.architecture import HfName, keys, row
from llmconv.convert.tables.loader import OUT_BIAS, Loader
from llmconv.convert.tables.ops import SwapColumns

_at = "{p}layers.{i}.self_attn."

_turned = SwapColumns(2, "head_dim // 2", 1)

CHAMELEON = LLAMA.variant(
    "chameleon",
    HfName("ChameleonForConditionalGeneration", "chameleon"),
    HfName("ChameleonForCausalLM", "chameleon"),
    keys=keys("swin_norm  bool  swin_norm  false"),
    rows=tuple(
        row(f"blk.{{i}}.attn_{part}_norm.{kind}", _at + f"{part}_norm.{kind}", f"{heads}, head_dim", _turned)
        for part, heads in (("q", "n_head"), ("k", "n_head_kv"))
        for kind in ("weight", "bias")
    ),
    drop=(*NOT_DENSE, "vocab_size", "rope.dimension_count", "attention.sliding_window"),
    decoder={"may_swap": True, "qk_layer_norm": 1e-5, "silent": (4, 8196)},
    loader=Loader(refused=OUT_BIAS),
    inert="vq_config vocabulary_map model_parallel_size",
)

ARCHITECTURES = (CHAMELEON,)
