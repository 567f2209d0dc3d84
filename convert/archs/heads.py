"""Classification heads of encoders: rerankers give one number a pair of texts, classifiers one for each label.

GGUF has a layer in front (`cls`), which is a pooler or a "dense" one, and a projection (`cls.output`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.tables.architecture import row
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.rows import Form
from llmconv.convert.tables.scores import labels, relabelled

__all__ = ["CLASSIFIER", "labels", "rebuild"]

_DISTIL = "token_types.weight"

CLASSIFIER = tuple(
    line
    for part, shape, out in (("weight", "n_embd, n_embd", "n_cls, n_embd"), ("bias", "n_embd", "n_cls"))
    for line in (
        row(
            f"cls.{part}",
            "{p}" + f"pooler.dense.{part}",
            shape,
            when="n_cls",
            optional=lambda config: True,
            alt=(Form((f"classifier.dense.{part}",)), Form((f"pre_classifier.{part}",), without=_DISTIL)),
        ),
        row(
            f"cls.output.{part}",
            f"classifier.{part}",
            out,
            when="n_cls",
            optional=lambda config: True,
            alt=(Form((f"classifier.out_proj.{part}",)),),
        ),
    )
)
"""Rows of BERT's, RoBERTa's and DistilBERT's heads; a GGUF of somebody else's may have but the projection."""


def rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    """The way back of `labels`; a padding token, which classes of encoders need, in case the vocabulary names none."""
    config["pad_token_id"] = 0
    relabelled(config, own)
