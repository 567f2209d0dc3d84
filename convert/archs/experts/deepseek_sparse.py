"""DeepSeek V3.2 and GLM-5: DeepSeek V3 with an indexer that chooses the tokens which long texts are seen by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.experts.deepseek import DEEPSEEK2
from llmconv.convert.tables.architecture import HfName, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims
from llmconv.errors import Unsupported

_at = "{p}layers.{i}.self_attn.indexer."
INDEXER_KEYS = keys("""
    attention.indexer.head_count      u32   index_n_heads
    attention.indexer.key_length      u32   index_head_dim
    attention.indexer.top_k           u32   index_topk
""")


_further = "i >= n_layer - n_nextn"


def indexer(when: str, optional: bool = False) -> Any:
    """Rows of an indexer; it has a LayerNorm, whose epsilon is always 1e-6."""
    rows = (
        ("attn_q_b.weight", "wq_b.weight", "index_heads * index_dim, q_lora"),
        ("attn_k.weight", "wk.weight", "index_dim, n_embd"),
        ("k_norm.weight", "k_norm.weight", "index_dim"),
        ("k_norm.bias", "k_norm.bias", "index_dim"),
        ("proj.weight", "weights_proj.weight", "index_heads, n_embd"),
    )
    return tuple(
        row(f"blk.{{i}}.indexer.{ours}", _at + theirs, shape, when=when, optional=optional)
        for ours, theirs, shape in rows
    )


_ROWS = (*indexer(f"index_full and not ({_further})"), *indexer(_further, optional=True))
"""Layers for further tokens may have one."""


LATENT_QUERIES = Loader(refused=("blk.{i}.attn_q.weight",))
"""Queries come of a latent in all that llama.cpp loads."""


def _back_to(cls: str, model_type: str) -> Any:
    def rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
        assert DEEPSEEK2.rebuild is not None
        DEEPSEEK2.rebuild(config, own, dims)
        config.update(architectures=[cls], model_type=model_type)

    return rebuild


DEEPSEEK32 = DEEPSEEK2.variant(
    "deepseek32",
    HfName("DeepseekV32ForCausalLM", "deepseek_v32"),
    keys=INDEXER_KEYS,
    rebuild=_back_to("DeepseekV32ForCausalLM", "deepseek_v32"),
    inert="layer_types",
    loader=LATENT_QUERIES.more(Loader(needed=tuple(f"{r.gguf[0]} if {_further}" for r in indexer(_further)))),
).extended(_ROWS)


def kinds_of_indexers(config: Mapping[str, Any], count: int) -> list[bool]:
    """Which layers have an indexer of their own; the others see what that of an earlier layer chose."""
    stated = config.get("indexer_types") or config.get("index_topk_pattern")
    if stated is None:
        every, first = max(int(config.get("index_topk_freq", 1)), 1), int(config.get("index_skip_topk_offset", 2))
        return [max(i - first + 1, 0) % every == 0 for i in range(count)]
    if len(stated) < count or not set(stated) <= {"full", "shared", "F", "S"}:
        raise Unsupported(f"config.json: indexer_types is {stated!r:.60}, expected full or shared for each layer")
    return [kind in ("full", "F") for kind in stated[:count]]


def _finish_glm(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    assert DEEPSEEK2.finish is not None
    kinds = kinds_of_indexers(config, min(dims["n_layer"], 1 << 16))
    DEEPSEEK2.finish(own, config, dims)
    own["attention.indexer.types"] = np.asarray(kinds, np.bool_)


_back_to_glm = _back_to("GlmMoeDsaForCausalLM", "glm_moe_dsa")


def _rebuild_glm(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    _back_to_glm(config, own, dims)
    kinds = np.broadcast_to(own.get("attention.indexer.types", True), (dims["n_layer"] - dims["n_nextn"],))
    config["indexer_types"] = ["full" if on else "shared" for on in kinds]


GLM_DSA = DEEPSEEK2.variant(
    "glm-dsa",
    HfName("GlmMoeDsaForCausalLM", "glm_moe_dsa"),
    keys=INDEXER_KEYS,
    finish=_finish_glm,
    rebuild=_rebuild_glm,
    decoder={"latent_eps": 1e-6, "indexer_rope": "pairs"},
    reads="indexer_types index_topk_pattern index_topk_freq index_skip_topk_offset",
    inert="layer_types",
    loader=LATENT_QUERIES.more(Loader(pieces={"latent_eps": 0.0})),
).extended(_ROWS)

ARCHITECTURES = (DEEPSEEK32, GLM_DSA)
