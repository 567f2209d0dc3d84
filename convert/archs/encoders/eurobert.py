"""EuroBERT: a Llama that sees all tokens at once; Jina Embeddings 5 (nano) is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.archs.heads import rebuild
from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM, NORMS, attention, gated_mlp
from llmconv.convert.tables.architecture import Architecture, HfName
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["attention.causal"] = False
    own.setdefault("rope.scaling.type", "none")


EUROBERT = Architecture(
    "eurobert",
    (
        HfName("EuroBertModel", "eurobert"),
        HfName("EuroBertForMaskedLM", "eurobert"),
        HfName("JinaEmbeddingsV5Model", "jina_embeddings_v5"),
    ),
    keys=(*COMMON, *HEAD_DIM),
    rows=(*(r for r in EMBEDDINGS if r.gguf != ("output.weight",)), *NORMS, *attention(), *gated_mlp()),
    prefixes=("", "model."),
    kept=(r"lm_head\.bias",),
    fits=lambda config: "use_sliding_window" not in config,  # the larger Jina 5 is a Qwen 3
    finish=_finish,
    rebuild=rebuild,
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS)),
    decoder={"causal": False},
    inert="pretraining_tp classifier_pooling mask_token_id cls_token_id sep_token_id clip_qkv",
)

ARCHITECTURES = (EUROBERT,)
