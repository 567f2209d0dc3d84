"""The head of a language model that scores texts or sorts them: transformers' `...ForSequenceClassification`.

It is a matrix, `score.weight`, over the last token; GGUF's `cls.output`, as llama.cpp's converter calls that of Qwen3's
rerankers.  Encoders have heads of their own (`convert.archs.heads`); the labels are the same.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.keys import LABELS
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.rows import Row, row
from llmconv.errors import BadFile

__all__ = [
    "CLASS",
    "IN_LLAMA_CPP",
    "NAME",
    "POOLING",
    "RANK",
    "SCORE",
    "keys",
    "labels",
    "rebuilt",
    "relabelled",
    "says_no_words",
    "scored",
]

CLASS = "ForSequenceClassification"
NAME = "cls.output.weight"
SCORE = row(NAME, "score.weight", "n_cls, n_embd", when="n_cls", optional=lambda config: True)
POOLING = "pooling_type"
RANK = np.uint32(4)
"""llama.h's number for a model that ranks: its scores, not its vectors."""
IN_LLAMA_CPP = ("qwen3", "qwen3vl")
"""The families whose head llama.cpp loads."""
_OF_WORDS = ("ForCausalLM", "LMHeadModel")
"""How the classes of models end that say words."""


def scored(rows: tuple[Row, ...], classes: Iterable[str], causal: bool) -> tuple[Row, ...]:
    """A table's rows, with the head where the family's models may have one.   classes: of transformers."""
    others = tuple(r for r in rows if r is not SCORE)
    may = causal and any(name.endswith(_OF_WORDS) for name in classes)
    return (*others, SCORE) if may and not any(NAME in r.gguf for r in others) else others


def keys(own: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Add the keys of such a model, where the configuration is one's."""
    labels(own, config)
    if LABELS in own:
        own[POOLING] = RANK


def labels(own: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Add the labels' key, where the model is a classifier; transformers' names where config.json has none."""
    classes = config.get("architectures")
    if not isinstance(classes, list) or not any(str(c).endswith(CLASS) for c in classes):
        return
    found = config.get("id2label")
    if not isinstance(found, Mapping):
        count = config.get("num_labels", 2)
        found = {n: f"LABEL_{n}" for n in range(count if isinstance(count, int) and 0 < count < 10000 else 2)}
    try:
        own[LABELS] = [str(found[key]) for key in sorted(found, key=int)]
    except ValueError:
        raise BadFile("config.json: id2label has keys that are no numbers; correct it") from None


def relabelled(config: dict[str, Any], own: Mapping[str, Any]) -> None:
    """The way back of `labels`."""
    if LABELS in own:
        config["id2label"] = {str(n): str(label) for n, label in enumerate(own[LABELS])}
        config["label2id"] = {str(label): n for n, label in enumerate(own[LABELS])}


def rebuilt(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    """The way back of `keys`: a configuration of the family's model that scores."""
    cls = str(config["architectures"][0])
    ending = next((end for end in _OF_WORDS if cls.endswith(end)), "")
    if dims.get("n_cls") and ending:
        config["architectures"] = [cls.removesuffix(ending) + CLASS]
        relabelled(config, own)


def says_no_words(config: Mapping[str, Any], tensors: Container[str]) -> bool:
    """Whether a GGUF is of a model that only scores: its folder's class has this head instead of the usual."""
    classes = config.get("architectures")
    ranks = isinstance(classes, list) and any(str(name).endswith(CLASS) for name in classes)
    return ranks and NAME in tensors and "output.weight" not in tensors
