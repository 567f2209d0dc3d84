"""The tensors of diffusers' folder of an image model as those of its single file, and back bit for bit.

A model is converted where one of the tables has every name and ComfyUI-GGUF knows what they become; else it keeps its
names, and a note says which stands in the way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmconv.convert.dialects import carried, comfy
from llmconv.convert.dialects.diffusers.lines import Place, Table
from llmconv.convert.dialects.diffusers.tables import TABLES
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.ops import Exchanged
from llmconv.convert.tables.ops.base import like, rows_of
from llmconv.errors import BadFile, LlmconvError, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.moving.rows import join, take
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name, plain

__all__ = ["as_folder", "as_single_file"]

_LAYER = re.compile(r"\.\d+\.")
_HALVES = Exchanged(2, 0, 1)
_ENOUGH = 0.8
"""The share of names that a table has, of a model that it is of though it does not have all."""


def as_single_file(checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, Any]]:
    """The model under its single file's names, and the keys that say how it goes back; as it is, with a note, where
    that can't be."""
    tensors = checkpoint.tensors
    table = None if own_keys.GGUF_METADATA in checkpoint.metadata else _table(tensors)
    if table is None:  # or a GGUF had these names
        return checkpoint, {}
    if (problem := _problem(table, tensors)) is not None:
        return checkpoint.but(f"it keeps diffusers' names, which ComfyUI-GGUF does not take: {problem}"), {}
    made: dict[str, Tensor] = {}
    rows: dict[str, list[int]] = {}
    types: dict[str, str] = {}
    for name in tensors:
        place = _known(table, name)
        if place.single in made:
            continue
        parts = [tensors[part] for part in place.parts]
        if len({part.type for part in parts}) > 1:
            types |= {part.name: part.type.name for part in parts}
            parts = [part.astype(plain.F32) for part in parts]
        if len(parts) > 1:
            rows[place.single] = [rows_of(part).n_rows for part in parts]
        made[place.single] = _joined(parts, _swapped(place, tensors)).renamed(place.single)
    kept: dict[str, Any] = {own_keys.DIFFUSERS: table.name}
    if rows:
        kept[own_keys.DIFFUSERS_ROWS] = json.dumps(_by_pattern(rows), separators=(",", ":"))
    if types:
        kept[own_keys.DIFFUSERS_TYPES] = json.dumps(types, separators=(",", ":"))
    if list(tensors) != _usual(tensors.values()):
        kept[own_keys.DIFFUSERS_ORDER] = list(tensors)
    return checkpoint.but(tensors=made), kept


def as_folder(checkpoint: Checkpoint, metadata: Mapping[str, Any]) -> Checkpoint:
    """The way back, of a model whose GGUF has the keys; a tensor that was put into the GGUF since keeps its name."""
    name = metadata.get(own_keys.DIFFUSERS)
    if name is None:
        return checkpoint
    table = next((t for t in TABLES if t.name == name), None)
    if table is None:
        known = ", ".join(t.name for t in TABLES)
        raise BadFile(f"{checkpoint.where}: {own_keys.DIFFUSERS} is {cut(name)}, expected one of {known}")
    rows, types = (
        carried.kept_json(metadata, key, checkpoint.where)
        for key in (own_keys.DIFFUSERS_ROWS, own_keys.DIFFUSERS_TYPES)
    )
    places = {name: table.of_single(name) for name in checkpoint.tensors}
    names = {part for place in places.values() if place is not None for part in place.parts}
    made: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        place = places[name]
        if place is None:
            made[name] = tensor
            continue
        whole = _exchanged(tensor) if _swapped(place, names) else tensor
        sizes = rows.get(name, rows.get(_LAYER.sub(".{}.", name)))
        for part in _split(whole, place, sizes, checkpoint.where):
            made[part.name] = _typed(part, types, checkpoint.where)
    order = metadata.get(own_keys.DIFFUSERS_ORDER)
    order = _usual(made.values()) if not isinstance(order, Sequence) else [n for n in order if n in made]
    rest = [n for n in made if n not in set(order)]
    return checkpoint.but(tensors={name: made[name] for name in (*order, *rest)})


def _table(tensors: Mapping[str, Tensor]) -> Table | None:
    """The table that has most of the names."""
    found = comfy.find(tensors)
    if found is not None and found.family is not None:
        return None
    shares = [(sum(table.of_part(name) is not None for name in tensors), table) for table in TABLES]
    count, table = max(shares, key=lambda share: share[0])
    return table if tensors and count >= _ENOUGH * len(tensors) else None


def _known(table: Table, name: str) -> Place:
    place = table.of_part(name)
    assert place is not None
    return place


def _problem(table: Table, tensors: Mapping[str, Tensor]) -> str | None:
    """Why a model can't be put under its single file's names."""
    for name in tensors:
        place = table.of_part(name)
        if place is None:
            return f"tensor {cut(name)} is none known here of a {table.name} model"
        missing = [part for part in place.parts if part not in tensors]
        if missing:
            return f"tensor {cut(missing[0])} is missing, which is joined with {cut(name)}"
        parts = [tensors[part] for part in place.parts]
        if not _joinable(parts) or (_swapped(place, tensors) and rows_of(parts[0]).n_rows % 2):
            return f"tensor {cut(name)} has another shape or type than it needs"
    single = {_known(table, name).single for name in tensors}
    found = comfy.find(single)
    return None if found is not None and found.family is not None else "it does not have all of the model's tensors"


def _joinable(parts: Sequence[Tensor]) -> bool:
    if len(parts) == 1:
        return True
    alike = len({(len(part.shape), rows_of(part).row_len) for part in parts}) == 1 and len(parts[0].shape) in (1, 2)
    return alike and (len({part.type for part in parts}) == 1 or all(part.type.is_float for part in parts))


def _swapped(place: Place, names: Iterable[str]) -> bool:
    return place.line.swapped and not (place.line.unless and place.fill(place.line.unless) in names)


def _exchanged(tensor: Tensor) -> Tensor:
    return like(_HALVES.apply((rows_of(tensor),), {})[0], tensor)


def _joined(parts: Sequence[Tensor], swapped: bool) -> Tensor:
    if len(parts) > 1:
        rows = [rows_of(part) for part in parts]
        return like(join(rows, (sum(part.n_rows for part in rows), rows[0].row_len)), parts[0])
    return _exchanged(parts[0]) if swapped else parts[0]


def _split(whole: Tensor, place: Place, sizes: Any, where: str) -> list[Tensor]:
    names = place.parts
    if len(names) == 1:
        return [whole.renamed(names[0])]
    rows = rows_of(whole)
    right = isinstance(sizes, list) and all(type(n) is int and n > 0 for n in sizes) and sum(sizes) == rows.n_rows
    if not right or len(sizes) != len(names):
        raise BadFile(
            f"{where}: {own_keys.DIFFUSERS_ROWS} does not describe tensor {whole.name!r}; convert the original again"
        )
    out, start = [], 0
    for name, size in zip(names, sizes, strict=True):
        out.append(like(take(rows, start, size, (size, rows.row_len)), whole).renamed(name))
        start += size
    return out


def _typed(part: Tensor, types: Mapping[str, Any], where: str) -> Tensor:
    """In the type that it had, where it was joined with others of another."""
    if part.name not in types:
        return part
    try:
        return part.astype(by_name(types[part.name]))
    except (LlmconvError, TypeError, AttributeError):
        raise BadFile(f"{where}: {own_keys.DIFFUSERS_TYPES} names an unknown type of {cut(part.name)}") from None


def _by_pattern(rows: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """One entry for all layers, where they agree."""
    out: dict[str, list[int]] = {}
    for name, sizes in rows.items():
        pattern = _LAYER.sub(".{}.", name)
        out[pattern if out.setdefault(pattern, sizes) == sizes else name] = sizes
    return out


def _usual(tensors: Iterable[Tensor]) -> list[str]:
    """The order in which the safetensors library writes them: the wider types first, then by name."""
    by = {t.name: (-t.type.layout.itemsize if t.type.is_plain() else 0, t.name) for t in tensors}
    return sorted(by, key=by.__getitem__)
