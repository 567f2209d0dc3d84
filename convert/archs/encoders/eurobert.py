"""EuroBERT: a Llama that sees all tokens at once; Jina Embeddings 5 (nano) is one.

Its classifier has a layer in front, a GELU behind it; it pools before them (the first token, the mean), or else takes
the mean of what the labels get at each token ("late", which no key of GGUF says: `classifier.pools_scores`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.heads import labels, rebuild
from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM, NORMS, attention, gated_mlp
from llmconv.convert.tables.architecture import Architecture, HfName, row
from llmconv.convert.tables.keys import LABELS
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.rows import Row
from llmconv.errors import BadFile, cut

_POOLING, _LATE = "classifier.pooling_type", "classifier.pools_scores"
_NUMBERS = {"mean": 1, "bos": 2}  # llama.h's `llama_pooling_type`


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["attention.causal"] = False
    own.setdefault("rope.scaling.type", "none")
    labels(own, config)
    if LABELS not in own:
        return
    stated = config.get("classifier_pooling", "late")
    if stated == "late":
        own[_LATE] = True
    elif stated in _NUMBERS:
        own[_POOLING] = np.uint32(_NUMBERS[stated])
    else:
        raise BadFile(f"config.json: classifier_pooling is {cut(stated)}, expected bos, mean or late")


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    rebuild(config, own, dims)
    number = own.get(_POOLING)
    config["classifier_pooling"] = next((name for name, n in _NUMBERS.items() if n == number), "late")


def _head(gguf: str, theirs: str, shape: str) -> tuple[Row, ...]:
    return tuple(
        row(f"{gguf}.{part}", f"{theirs}.{part}", size, when="n_cls", optional=lambda config: True)
        for part, size in (("weight", shape), ("bias", shape.split(",")[0]))
    )


EUROBERT = Architecture(
    "eurobert",
    (
        HfName("EuroBertModel", "eurobert"),
        HfName("EuroBertForMaskedLM", "eurobert"),
        HfName("JinaEmbeddingsV5Model", "jina_embeddings_v5"),
        HfName("EuroBertForSequenceClassification", "eurobert", "n_cls and not without_cls"),
    ),
    keys=(*COMMON, *HEAD_DIM),
    rows=(
        *(r for r in EMBEDDINGS if r.gguf != ("output.weight",)),
        *NORMS,
        *attention(),
        *gated_mlp(),
        *_head("cls", "dense", "n_embd, n_embd"),
        *_head("cls.output", "classifier", "n_cls, n_embd"),
    ),
    prefixes=("", "model."),
    kept=(r"lm_head\.bias",),
    fits=lambda config: "use_sliding_window" not in config,  # the larger Jina 5 is a Qwen 3
    finish=_finish,
    rebuild=_rebuild,
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS, "cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias")),
    decoder={"causal": False},
    reads="architectures id2label classifier_pooling",
    inert="pretraining_tp num_labels label2id problem_type mask_token_id cls_token_id sep_token_id clip_qkv",
)

ARCHITECTURES = (EUROBERT,)
