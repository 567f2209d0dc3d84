"""A head of its own for a model whose head is its embedding, where an adapter changes one of the two.

PEFT trains a copy of the one and leaves the other as it was: written as one tensor, both would be changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmconv.convert import archs
from llmconv.convert.tables.config import normalized, read_config
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

__all__ = ["untied"]

_ENDS = re.compile(r"(\.base_layer|\.modules_to_save(\.\w+)?)*(\.weight|\.bias)?$")


def untied(
    checkpoint: Checkpoint, modules: Iterable[str], whole: Mapping[str, Tensor]
) -> tuple[Checkpoint, dict[str, Tensor]]:
    """The model with its head as a tensor of its own, where it is tied and the adapter changes it or the embedding;
    and `whole`, without the head where both were trained, or only saved, as one.

    modules: those that are adapted.   whole: the tensors that replace others, by name.
    """
    config, whole = read_config(checkpoint), dict(whole)
    arch = archs.by_hf(config) if config else None
    if arch is None or not arch.is_tied(normalized(config)):
        return checkpoint, whole
    rows = {row.gguf[0]: row.forms[0].patterns[0].removeprefix("{p}") for row in arch.rows}
    embedding, head = rows.get("token_embd.weight"), rows.get("output.weight")
    if embedding is None or head is None or head in checkpoint.tensors:
        return checkpoint, whole
    adapted = {f"{name}.weight" for name in modules}
    replaced = {f"{_ENDS.sub('', name)}.weight": name for name in whole}
    pairs = [next((n for n in {*adapted, *replaced} if f".{n}".endswith(f".{one}")), "") for one in (embedding, head)]
    if not any(pairs):
        return checkpoint, whole
    both = [whole[replaced[n]] for n in pairs if n in replaced and n not in adapted]
    if len(both) == 2 and both[0].shape == both[1].shape and both[0].blocks().tobytes() == both[1].blocks().tobytes():
        del whole[replaced[pairs[1]]]
        return checkpoint, whole
    name = next((n for n in checkpoint.tensors if f".{n}".endswith(f".{embedding}")), None)
    if name is None:
        return checkpoint, whole
    stated = json.dumps(_without_tie(config) | {"tie_word_embeddings": False}, indent=2, ensure_ascii=False).encode()
    own = checkpoint.but(
        f"the adapter changes one of {name} and {head}, which were tied: the model now has both",
        tensors={**checkpoint.tensors, head: checkpoint.tensors[name].renamed(head)},
        files={**checkpoint.files, "config.json": stated + b"\n"},
    )
    return own, whole


def _without_tie(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without a tie, in any of its parts."""
    said = {k: _without_tie(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    return said | {"tie_word_embeddings": False} if "tie_word_embeddings" in said else said
