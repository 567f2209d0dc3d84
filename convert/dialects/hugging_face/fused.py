"""Tensors of a GGUF that somebody fused (`attn_qkv` where the table has `attn_q`, `attn_k`, `attn_v`), taken apart.

llama.cpp's loader takes either, and its converter makes either (`--fuse-qkv`, `--fuse-gate-up-exps`); the model folder
lists what was fused, so that a GGUF made of it is as it was.  DeepSeek's `attn_kv_b`, as older releases have it,
becomes the two matrices of newer ones.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmconv.convert.dialects import carried
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.ops import Split
from llmconv.convert.tables.rows import Slot
from llmconv.errors import BadFile, WrongShape
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["apart", "keep_list", "together"]

_PARTS = {
    "attn_qkv.weight": ("attn_q.weight", "attn_k.weight", "attn_v.weight"),
    "attn_qkv.bias": ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
    "ffn_gate_up_exps.weight": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    "attn_kv_b.weight": ("attn_k_b.weight", "attn_v_b.weight"),
}
_OLDER = "attn_kv_b.weight"
_NAME = re.compile(rf"(blk\.\d{{1,9}}\.)({'|'.join(map(re.escape, _PARTS))})")


def _parts_of(name: str) -> tuple[str, ...]:
    found = _NAME.fullmatch(name)
    return tuple(found[1] + part for part in _PARTS[found[2]]) if found else ()


def apart(places: Iterable[Slot], tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors with those that no row of the table knows split into those that one does; the names of the split."""
    fused = {name: parts for name in tensors if (parts := _parts_of(name))}
    if not fused:
        return dict(tensors), []
    shapes: dict[str, tuple[int, ...]] = {}
    slots: dict[str, Slot] = {}
    last = max(int(name.split(".")[1]) for name in fused)  # of a damaged file, which may claim any number of layers
    for slot in itertools.takewhile(lambda slot: slot.dims["i"] <= last, places):
        shapes |= dict(zip(slot.gguf, slot.shapes, strict=True))
        slots |= dict.fromkeys(slot.gguf, slot)
    split = {
        name: parts
        for name, parts in fused.items()
        if name not in shapes and all(part in shapes and part not in tensors for part in parts)
    }
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = split.get(name, ())
        if not parts:
            out[name] = tensor
        elif name.endswith(_OLDER):
            out |= _older(tensor, slots[parts[0]], where)
        else:
            out |= _split(tensor, parts, [shapes[part] for part in parts], where)
    return out, list(split)


def _split(tensor: Tensor, parts: tuple[str, ...], shapes: list[tuple[int, ...]], where: str) -> dict[str, Tensor]:
    """Rows of one part after rows of another, of each expert by itself."""
    stacked = len(shapes[0]) == 3
    sizes = tuple(shape[1 if stacked else 0] for shape in shapes)
    whole = (shapes[0][0], sum(sizes), shapes[0][2]) if stacked else (sum(sizes), *shapes[0][1:])
    if tensor.shape != whole:
        raise WrongShape(where, tensor.name, tensor.shape, whole, "by its keys")
    made = Split(sizes, whole[0] if stacked else 1, gguf_stacked=stacked).apply((tensor,), {})
    return {name: part.renamed(name).reshaped(shape) for name, part, shape in zip(parts, made, shapes, strict=True)}


def _older(tensor: Tensor, slot: Slot, where: str) -> dict[str, Tensor]:
    """The matrix that a model folder has, made into the two of newer releases as a folder's is."""
    (wanted,) = slot.shadows(0)
    if tensor.shape != wanted.shape:
        raise WrongShape(where, tensor.name, tensor.shape, wanted.shape, "by its keys")
    parts: tuple[Tensor, ...] = (tensor if tensor.type.is_plain() else tensor.astype(plain.F32),)
    for op in slot.row.forms[0].ops:
        parts = op.apply(parts, slot.dims)
    return {name: part.renamed(name) for name, part in zip(slot.gguf, parts, strict=True)}


def keep_list(metadata: dict[str, Any], names: list[str]) -> list[str]:
    """List the split tensors in the folder's metadata; notes about those that stay apart."""
    older = [name for name in names if name.endswith(_OLDER)]
    if again := [name for name in names if name not in older]:
        metadata[own_keys.GGUF_FUSED] = json.dumps({"names": again}, separators=(",", ":"))
    if not older:
        return []
    return ["attn_kv_b is the matrix of older releases of llama.cpp; a GGUF made again has the two of newer ones"]


def together(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The tensors with those that the folder's metadata lists fused again, where their types allow it."""
    names = carried.kept_json(metadata, own_keys.GGUF_FUSED, where).get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadFile(f"{where}: {own_keys.GGUF_FUSED} is no list of names; remove the key")
    first = {parts[0]: (name, parts) for name in names if (parts := _parts_of(name)) and name not in tensors}
    out: dict[str, Tensor] = {}
    taken: set[str] = set()
    for name, tensor in tensors.items():
        whole, parts = first.get(name, ("", ()))
        pieces = [tensors[part] for part in parts if part in tensors]
        if pieces and len(pieces) == len(parts) and len({_kind(piece) for piece in pieces}) == 1:
            taken.update(parts)
            out[whole] = _join(whole, pieces)
        elif name not in taken:
            out[name] = tensor
    return out


def _kind(part: Tensor) -> tuple[Any, ...]:
    """What parts of one tensor have in common."""
    return part.type, part.shape[:-2], *(part.shape[-1:] if len(part.shape) > 1 else ())


def _join(name: str, parts: list[Tensor]) -> Tensor:
    shapes = [part.shape for part in parts]
    stacked = len(shapes[0]) == 3
    sizes = tuple(shape[1 if stacked else 0] for shape in shapes)
    (made,) = Split(sizes, shapes[0][0] if stacked else 1, hf_stacked=stacked).undo(tuple(parts), {})
    return made.renamed(name)
