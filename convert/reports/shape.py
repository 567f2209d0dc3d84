"""A model's shape: the names and sizes of its tensors, from a checkpoint, a config.json or a preset; no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmconv.convert import archs
from llmconv.convert.decoders import recurrent
from llmconv.convert.tables.config import normalized
from llmconv.convert.tables.presets import Preset
from llmconv.convert.towers import translate as towers
from llmconv.convert.translate import translate
from llmconv.errors import Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.quant.block import BlockType

__all__ = ["Shape", "shape_of"]


@dataclass(frozen=True)
class Shape:
    """A model without its weights: canonical tensor names and shapes, and the metadata that describes it.

    stored: type of each tensor where it exists, for a checkpoint; empty otherwise.
    source: the checkpoint, as it was opened; None for a shape alone.
    tower: of a multimodal folder, what its mmproj file would be; the other fields are the text model's.
    """

    name: str
    arch: str
    tensors: dict[str, tuple[int, ...]]
    metadata: Mapping[str, Any]
    tied: bool
    stored: dict[str, type[BlockType]]
    source: Checkpoint | None = None
    tower: Checkpoint | None = None

    def dim(self, name: str) -> int:
        """A dimension by name (n_layer, n_head_kv, …), the largest over layers; 0 when unknown."""
        if name == "n_vocab" and "token_embd.weight" in self.tensors:  # which few architectures have a key for
            return self.tensors["token_embd.weight"][0]
        arch = archs.by_gguf(self.arch)
        dims = arch.dims_of(self.metadata) if arch else {}
        value = dims.get(name, 0)
        return max(value, default=0) if isinstance(value, list) else int(value)


def _from_metadata(name: str, metadata: Mapping[str, Any], flags: Mapping[str, Any]) -> Shape:
    if metadata.get("general.architecture") == recurrent.ARCH:
        shapes = recurrent.shapes(metadata, bool(flags.get("one_hot")))
        return Shape(name, recurrent.ARCH, shapes, metadata, False, {})
    arch = archs.by_gguf(str(metadata.get("general.architecture")))
    if arch is None:
        raise Unsupported(
            f"{name}: no table for its architecture; give the checkpoint itself instead of its configuration"
        )
    tensors: dict[str, tuple[int, ...]] = {}
    dims = arch.dims_of(metadata)
    dims["n_vocab"] = dims["n_vocab"] or _vocab_size(flags)
    for slot in arch.slots(dims):
        if arch.expected(slot.row, flags):
            tensors |= dict(zip(slot.gguf, slot.shapes, strict=True))
    empty = next((f"{tensor} {list(dims)}" for tensor, dims in tensors.items() if min(dims, default=1) < 1), None)
    if empty:
        raise Unsupported(
            f"{name}: {arch.gguf} models need more sizes, without which {empty} is empty; give a config.json"
        )
    return Shape(name, arch.gguf, tensors, metadata, "output.weight" not in tensors, {})


def _vocab_size(config: Mapping[str, Any]) -> int:
    """What a configuration says of the vocabulary, for the many architectures whose GGUF keys do not."""
    value = config.get("vocab_size")
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def shape_of(source: Checkpoint | Preset | Mapping[str, Any], name: str = "model") -> Shape:
    """The shape of a checkpoint (any dialect), of a preset, or of a Hugging Face config.json as a mapping.

    `Unsupported` when a configuration's architecture has no table.
    """
    if isinstance(source, Checkpoint):
        text, tower = towers.halves(source)
        canonical = translate(text, "gguf")
        shapes = {n: t.shape for n, t in canonical.tensors.items()}
        stored = {n: t.type for n, t in canonical.tensors.items()}
        arch = str(canonical.metadata.get("general.architecture", ""))
        tied = "token_embd.weight" in shapes and "output.weight" not in shapes
        return Shape(name, arch, shapes, canonical.metadata, tied, stored, source, tower)
    if isinstance(source, Preset):
        return _from_metadata(source.name, source.metadata, source.config)
    table = archs.by_hf(source)
    if table is None:
        kind = source.get("model_type") or source.get("architectures")
        raise Unsupported(f"{name}: no table for the architecture {kind!r}; give the checkpoint itself instead")
    # Layers for further tokens are counted by nobody: configurations state them of models that come without them.
    flat = normalized({**source, "num_nextn_predict_layers": 0} if "num_nextn_predict_layers" in source else source)
    return _from_metadata(name, table.metadata(flat, name), flat)
