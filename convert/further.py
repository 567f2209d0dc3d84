"""The layers of a GGUF that predict further tokens: left out, alone as a draft, or put back.

llama.cpp drafts with them (multi-token prediction).  Its converter writes them into the model's file, leaves them out
(`--no-mtp`), or writes them alone, beside what they share with the model (`--mtp`): its embedding, its last norm, its
head, and the keys of the whole.  So the two files together are the whole again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert import archs
from llmconv.convert.cards.general import size_label
from llmconv.convert.dialects import carried
from llmconv.convert.tables.keys import whole
from llmconv.convert.tables.storage import gguf_type
from llmconv.errors import BadFile, UsageError
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["alone", "count", "is_alone", "together", "without"]

_COUNT, _FURTHER, _SIZE = "block_count", "nextn_predict_layers", "general.size_label"
_NOT_BY_LAYER = (
    *("rope.dimension_sections", "scaled_by.", "classifier.", "target_layers", "attention.scale_layers"),
    "attention.compress_ratios",
)


def count(checkpoint: Checkpoint) -> int:
    """How many layers of a checkpoint in GGUF's dialect predict further tokens."""
    return _sizes(checkpoint)[2]


def is_alone(checkpoint: Checkpoint) -> bool:
    """Whether a GGUF holds such layers and none of the model's others."""
    _, layers, further = _sizes(checkpoint)
    found = {_layer(name) for name in checkpoint.tensors} - {None}
    return 0 < further < layers and bool(found) and min(n for n in found if n is not None) >= layers - further


def without(checkpoint: Checkpoint) -> Checkpoint:
    """The model without them, and without what its keys say of them."""
    arch, layers, further = _sizes(checkpoint)
    if is_alone(checkpoint):
        raise UsageError(f"{checkpoint.where}: holds its layers for further tokens alone; drop --no-mtp")
    if not further:
        return checkpoint.but("it has no layers for further tokens, so --no-mtp changed nothing")
    first = layers - further
    metadata: dict[str, Any] = {}
    for key, value in checkpoint.metadata.items():
        name = key.removeprefix(f"{arch}.")
        if name != _FURTHER:
            metadata[key] = np.uint32(first) if name == _COUNT else _cut(key, value, arch, layers, first)
    note = f"left out as asked, layers for further tokens: {further}"
    return _made(checkpoint, note, metadata, lambda layer: layer is None or layer < first)


def alone(checkpoint: Checkpoint) -> Checkpoint:
    """These layers, and what they share with the model; `UsageError` where there are none."""
    _, layers, further = _sizes(checkpoint)
    if not further:
        raise UsageError(
            f"{checkpoint.where}: has no layers for further tokens, so there is nothing for --mtp to write"
        )
    first = layers - further
    note = f"layers for further tokens alone: {further}; a draft for the model of the other {first}"
    made = _made(checkpoint, note, dict(checkpoint.metadata), lambda layer: layer is None or layer >= first)
    return _with_own_head(made)


def _with_own_head(draft: Checkpoint) -> Checkpoint:
    """The layers with what a model keeps of theirs beside its own, in the place of its own."""
    table = archs.by_gguf(str(draft.metadata.get("general.architecture", "")))
    if table is None or not table.alone:
        return draft
    kept = {tensor.name: tensor for tensor in carried.kept_tensors(draft.metadata, draft.where)}
    own = {new: kept[name].renamed(new) for name, new in table.alone.items() if name in kept}
    draft.tensors |= {name: tensor.astype(gguf_type(tensor)) for name, tensor in own.items() if name in draft.tensors}
    return draft


def together(trunk: Checkpoint, draft: Checkpoint) -> Checkpoint:
    """A model's GGUF with the layers of another file, which `alone` made of the same model."""
    arch, layers, further = _sizes(draft)
    if trunk.dialect != "gguf" or not is_alone(draft):
        raise UsageError(f"{draft.where}: holds no layers for further tokens alone; give a file that --mtp wrote")
    own, there, already = _sizes(trunk)
    if own != arch or already or there != layers - further:
        raise UsageError(
            f"{draft.where}: continues a {arch} model of {layers - further} layers, but {trunk.where} is "
            f"a {own} model of {there} with {already} for further tokens; give the model that it was made of"
        )
    keys = {k: v for k, v in draft.metadata.items() if k.startswith(f"{arch}.")}
    tensors = {**trunk.tensors, **{n: t for n, t in draft.tensors.items() if _layer(n) is not None}}
    exact = {k: v for k, v in draft.metadata.items() if k not in trunk.metadata}
    made = trunk.but(tensors=tensors, metadata={**trunk.metadata, **keys, **exact})
    made.parts = [*trunk.inputs(), *draft.inputs()]
    return made


def _sizes(checkpoint: Checkpoint) -> tuple[str, int, int]:
    """The architecture, how many layers its keys count, and how many of these predict further tokens."""
    arch = str(checkpoint.metadata.get("general.architecture", ""))
    try:
        layers, further = (whole(checkpoint.metadata.get(f"{arch}.{key}", 0)) for key in (_COUNT, _FURTHER))
    except TypeError:
        raise BadFile(f"{checkpoint.where}: key '{arch}.{_COUNT}' or '{arch}.{_FURTHER}' is no whole number") from None
    return arch, layers, further


def _layer(name: str) -> int | None:
    """The layer that a tensor is of."""
    kind, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if kind == "blk" and number.isdecimal() and len(number) < 9 else None


def _cut(key: str, value: Any, arch: str, layers: int, first: int) -> Any:
    """A key's value, one for each layer, without those of the last ones."""
    name = key.removeprefix(f"{arch}.")
    listed = isinstance(value, np.ndarray | list | tuple) and len(value) == layers
    return value[:first] if listed and name != key and not name.startswith(_NOT_BY_LAYER) else value


def _made(checkpoint: Checkpoint, note: str, metadata: Mapping[str, Any], wanted: Any) -> Checkpoint:
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if wanted(_layer(name))}
    made = checkpoint.but(note, tensors=tensors, metadata=dict(metadata))
    if metadata.get(_SIZE) == size_label(checkpoint):
        made.metadata[_SIZE] = size_label(made)
    return made
