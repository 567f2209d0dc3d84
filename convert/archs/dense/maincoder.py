"""Maincoder: Llama with neighbouring rotary pairs, and norms of queries and keys behind the rotation."""

from __future__ import annotations

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM, NORMS, QK_NORMS, attention, gated_mlp
from llmconv.convert.tables.architecture import Architecture, HfName, keys
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader

MAINCODER = Architecture(
    "maincoder",
    (HfName("MaincoderForCausalLM", "maincoder"),),
    keys=(*COMMON, *HEAD_DIM, *keys("rope.dimension_count  u32  head_dim  = n_embd // n_head")),
    rows=(*EMBEDDINGS, *NORMS, *attention(), *QK_NORMS, *gated_mlp()),
    decoder={"rope": "pairs", "qk_norm_after_rope": True},
    fixed={"use_qk_norm": True},
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS)),
)

ARCHITECTURES = (MAINCODER,)
