"""What `quantize` will write, before it writes anything: every tensor's type and place, the exact bytes of the header.

Metadata, order and padding are those of llama-quantize (llama_model_quantize_impl in src/llama-quant.cpp), so that
whole files are equal: keys keep their order, `general.quantization_version` and `general.file_type` move to the end,
then overrides, the importance matrix's keys and the new block count; tensors go by layer and name.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.tables import own_keys
from llmconv.errors import BadFile, Unsupported, UsageError, at, cut, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor
from llmconv.quant.filetypes import COPY, QUANTIZATION_VERSION, FileType, guessed_number
from llmconv.quant.recipe import Choice, Model, Options, assign, order

if TYPE_CHECKING:
    from llmconv.quant.imatrix import Importance

__all__ = ["FilePlan", "Plan", "PlannedTensor", "Recipe", "cuts", "make_plan", "parse_override"]

_OVERRIDE_BYTES = 127  # the reference's fixed buffers


@dataclass(frozen=True)
class Recipe(Options):
    """What is wanted of the output: how types are chosen (`Options`), and

    matrix: importance weights.  matrix_file: their file's name, as it is recorded.
    overrides: keys to set.  prune_layers: layers to leave out.  keep_split: as many files as the source has.
    split_max_size: bytes of tensors in a file at most, 0 for one file.  cuts: names of sources that begin another.
    allow_requantize: tensors that are quantized already may become another type.
    calibrated: tensors will be rounded by what a text says of them, which counts as importance.
    """

    matrix: Importance | None = None
    matrix_file: str = ""
    overrides: Sequence[tuple[str, Any]] = ()
    prune_layers: Sequence[int] = ()
    keep_split: bool = False
    split_max_size: int = 0
    cuts: Container[str] = ()
    allow_requantize: bool = False
    calibrated: bool = False


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the output.

    source: as it is read.  name, shape: as they are written.  offset: from the start of the file.
    importance: (matrices, row length), or None.
    """

    source: Tensor
    name: str
    shape: tuple[int, ...]
    choice: Choice
    offset: int
    importance: NDArray[np.float32] | None

    @property
    def nbytes(self) -> int:
        return self.source.n_rows * self.choice.type.row_bytes(self.source.row_len)

    @property
    def changes(self) -> bool:
        return self.choice.type is not self.source.type


@dataclass(frozen=True)
class FilePlan:
    """One file: its name, the bytes before the data, its exact size, its tensors in order."""

    path: Path
    head: bytes
    size: int
    tensors: Sequence[PlannedTensor]


@dataclass(frozen=True)
class Plan:
    """One output, in one file or as many as its source had (`keep_split`).  warnings: sentences for people."""

    file_type: FileType
    files: Sequence[FilePlan]
    warnings: Sequence[str]
    needs_importance: str = ""
    """A tensor that can't be written for want of importance weights, or nothing."""

    @property
    def tensors(self) -> list[PlannedTensor]:
        return [t for f in self.files for t in f.tensors]

    @property
    def size(self) -> int:
        return sum(f.size for f in self.files)


def parse_override(text: str) -> tuple[str, Any]:
    """`KEY=TYPE:VALUE` as a key and a metadata value, typed as the reference does: int as uint32 of its magnitude."""
    key, found, typed = text.partition("=")
    kind, colon, value = typed.partition(":")
    if not found or not colon or not key or len(key.encode()) > _OVERRIDE_BYTES:
        raise UsageError(f"override {text!r} is not KEY=TYPE:VALUE; write for example llama.context_length=int:4096")
    try:
        match kind:
            case "int":
                return key, np.uint32(abs(int(value)) & 0xFFFFFFFF)
            case "float":
                return key, np.float32(float(value))
            case "bool" if value in ("true", "false"):
                return key, value == "true"
            case "str" if len(value.encode()) <= _OVERRIDE_BYTES:
                return key, value
    except (ValueError, OverflowError):
        pass
    raise UsageError(
        f"override {text!r}: {value!r} is not a value of type {kind!r}; the types are int, float, bool (true or false) "
        f"and str (up to {_OVERRIDE_BYTES} bytes)"
    )


def make_plan(checkpoint: Checkpoint, file_type: FileType, path: Path, recipe: Recipe) -> Plan:
    """Plan one output of a checkpoint in the dialect "gguf".  Nothing is read or written.

    Raises `Unsupported` for a tensor that may not or can't become the type chosen.
    """
    tensors = _ordered(checkpoint, recipe.keep_split)
    metadata = _metadata(checkpoint.metadata, tensors, file_type, recipe)
    model = Model.of(metadata, own_keys.is_plain(metadata))
    names, kept_layers = _names(order(checkpoint.tensors), recipe.prune_layers)
    sources = [(t, names[t.name]) for t in tensors if names[t.name] is not None]
    if recipe.prune_layers:
        _put(metadata, f"{model.arch}.block_count", np.uint32(kept_layers))
    shaped = [dataclasses.replace(t, name=str(name), shape=_shape(t.shape)) for t, name in sources]
    has_importance = recipe.matrix is not None and bool(recipe.matrix.entries)
    known = has_importance or recipe.calibrated
    choices = assign(shaped, model, file_type, dataclasses.replace(recipe, importance=known))
    warnings = _strange_entries(recipe, checkpoint.tensors) if has_importance else []
    planned: list[tuple[Tensor, PlannedTensor]] = []
    needing = ""
    for (source, _), tensor, choice in zip(sources, shaped, choices, strict=True):
        importance = None
        if choice.type is not source.type:
            _check(source, choice, recipe)
            importance = _importance(source, tensor.shape, recipe.matrix if has_importance else None, warnings)
            lacking = not recipe.calibrated and (importance is None or not importance.any(axis=1).all())
            if lacking and (choice.needs_importance or choice.type.needs_importance):
                needing = needing or f"tensor {tensor.name!r} as {choice.type.name}"
            if choice.wanted is not choice.type:
                warnings.append(
                    f"tensor {tensor.name!r} has rows of {tensor.row_len}, not whole blocks of {choice.wanted.name}: "
                    f"{choice.type.name} instead"
                )
        planned.append((tensor, PlannedTensor(source, tensor.name, tensor.shape, choice, 0, importance)))
    if file_type is not COPY and all(
        choice.type is source.type for (source, _), choice in zip(sources, choices, strict=True)
    ):
        warnings.append(f"nothing was quantized: every tensor has the type that {file_type.name} gives it already")
    files = _files(metadata, _grouped(planned, recipe), path, recipe.keep_split)
    return Plan(file_type, files, warnings, needing)


def _ordered(checkpoint: Checkpoint, keep_split: bool) -> list[Tensor]:
    tensors = checkpoint.tensors
    if not keep_split:
        return [tensors[name] for name in order(tensors)]
    if any(t.extent is None for t in tensors.values()) or checkpoint.format != "gguf":
        raise UsageError("--keep-split takes a (split) GGUF of native byte order; leave it out for other sources")
    return sorted(tensors.values(), key=lambda t: (t.extent.path, t.extent.offset) if t.extent else ())


def _put(metadata: dict[str, Any], key: str, value: Any) -> None:
    """Set a key as the reference's writer does: it moves to the end."""
    metadata.pop(key, None)
    metadata[key] = value


def _metadata(
    source: Mapping[str, Any], tensors: Sequence[Tensor], file_type: FileType, recipe: Recipe
) -> dict[str, Any]:
    metadata = dict(source)
    number = _own_number(source, tensors) if file_type is COPY else file_type.number
    _put(metadata, "general.quantization_version", np.uint32(QUANTIZATION_VERSION))
    _put(metadata, "general.file_type", np.uint32(number))
    for key, value in recipe.overrides:
        _put(metadata, key, value)
    importance = recipe.matrix
    if importance is not None and importance.entries:
        _put(metadata, "quantize.imatrix.file", _cut(recipe.matrix_file))
        if importance.datasets:
            _put(metadata, "quantize.imatrix.dataset", _cut(importance.datasets[0]))
        _put(metadata, "quantize.imatrix.entries_count", np.uint32(len(importance.entries)))
        if importance.chunks > 0:
            _put(metadata, "quantize.imatrix.chunks_count", np.uint32(importance.chunks & 0xFFFFFFFF))
    return metadata


def _cut(text: str) -> str:
    return text.encode("utf-8", "replace")[:_OVERRIDE_BYTES].decode("utf-8", "ignore")


def _own_number(metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> int:
    """`general.file_type` of a file that is only copied: its own, else that of its most frequent tensor type."""
    own = metadata.get("general.file_type")
    if isinstance(own, int | np.integer):
        return int(own)
    counts: Counter[str] = Counter()
    most = ""
    for tensor in tensors:
        counts[tensor.type.name] += 1
        if not most or counts[tensor.type.name] > counts[most]:
            most = tensor.type.name
    return guessed_number(most)


_LAYER = re.compile(r"blk\.(\d+)\.", re.ASCII)


def _names(names: Sequence[str], prune: Sequence[int]) -> tuple[dict[str, str | None], int]:
    """The new name of each tensor (None: left out) when layers are taken out and the rest move up; the layers left."""
    if not prune:
        return {name: name for name in names}, 0
    moved: dict[int, int | None] = {}
    result: dict[str, str | None] = {}
    following = 0
    for name in names:
        found = _LAYER.search(name)
        if not found:
            result[name] = name
            continue
        layer = int(found[1])
        if layer not in moved:
            moved[layer] = None if layer in prune else following
            following += layer not in prune
        new = moved[layer]
        result[name] = None if new is None else f"{name[: found.start(1)]}{new}{name[found.end(1) :]}"
    unknown = sorted(set(prune) - set(moved))
    if unknown:
        raise UsageError(f"--prune-layers names layer {unknown[0]}, but the model has {len(moved)} layers, from 0 on")
    return result, following


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without leading ones, as ggml counts dimensions."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape or (1,)


def _check(source: Tensor, choice: Choice, recipe: Recipe) -> None:
    name, kind = source.name, choice.type
    if not kind.can_encode() or kind.ggml_id is None:
        raise Unsupported(f"tensor {name!r}: {kind.name} can be read but not written; choose another type")
    kind.row_bytes(source.row_len)
    if not source.type.is_plain() and not recipe.allow_requantize:
        raise Unsupported(
            f"tensor {name!r} is quantized already, to {source.type.name}, and would lose more as {kind.name}; start "
            "from an unquantized model, or use --allow-requantize"
        )


def _strange_entries(recipe: Recipe, tensors: Container[str]) -> list[str]:
    """A note about entries of the importance matrix for tensors that are not there; `BadFile` when all are such."""
    assert recipe.matrix is not None
    strange = [name for name in recipe.matrix.entries if name not in tensors]
    if not strange:
        return []
    if len(strange) == len(recipe.matrix.entries):
        what = f"has no entry of this model's tensors, but {cut(strange[0])}{more(strange)}"
        raise BadFile(f"the importance matrix {at(recipe.matrix_file)} {what}; it belongs to another model")
    return [f"the importance matrix has entries of tensors that are not there: {cut(strange[0])}{more(strange)}"]


def _importance(
    source: Tensor, shape: tuple[int, ...], importance: Importance | None, warnings: list[str]
) -> NDArray[np.float32] | None:
    """The tensor's weights as (matrices, row length); None, with a warning, where there are none.

    A matrix whose weights are all zeros counts as one without; see `Target.importance`.
    """
    if importance is None:
        return None
    values = importance.entries.get(source.name)
    if values is None:
        warnings.append(f"tensor {source.name!r} has no importance weights")
        return None
    matrices = shape[-3] if len(shape) > 2 else 1
    if len(values) != matrices * shape[-1]:
        sentence = f"tensor {source.name!r} has {len(values)} importance weights, expected {matrices} x {shape[-1]}"
        if source.name not in ("token_embd.weight", "per_layer_token_embd.weight"):
            raise BadFile(f"{sentence}; the matrix belongs to another model")
        warnings.append(sentence)
        return None
    found = values.reshape(matrices, shape[-1])
    found = np.where(found < _NEXT_TO_NOTHING, np.float32(0), found)
    zero = np.flatnonzero(~found.any(axis=1))
    if zero.size:  # nothing went through it while the matrix was made: that says nothing about its weights
        which = "" if matrices == 1 else f" for {zero.size} of {matrices} matrices (the first is {zero[0]})"
        warnings.append(f"tensor {source.name!r} has importance weights of zeros alone{which}: it counts as without")
    if never := importance.unseen.get(source.name):
        which = f"{never} of {matrices} matrices" if matrices > 1 else "it"
        warnings.append(f"tensor {source.name!r}: no token went through {which}, whose weights count alike")
    if blind := _columns_without(found):
        warnings.append(
            f"tensor {source.name!r} has importance weights of 0 for {blind:,} of {found.size:,} columns, whole blocks "
            "of them: nothing says what to round there to, and much of it becomes 0"
        )
    return found if zero.size < matrices else None


_NEXT_TO_NOTHING = np.float32(1e-30)
"""Importance weights below this vanish in products of float32: they count as zeros."""
_BLOCK = 16  # columns of the smallest blocks that have a scale of their own


def _columns_without(importance: NDArray[np.float32]) -> int:
    """Columns without importance that stand in whole blocks of such, in matrices that have importance elsewhere."""
    whole = importance.shape[1] // _BLOCK * _BLOCK
    some = importance[importance.any(axis=1)][:, :whole].reshape(-1, _BLOCK)
    return int(_BLOCK * (~some.any(axis=1)).sum())


def cuts(plans: Sequence[Plan], most: int) -> frozenset[str]:
    """Source names of the tensors that begin another file, so that none has more than so many bytes of tensors.

    plans: of one model in several types, which are cut at the same tensors, to be written part by part in one read.
    """
    found, sizes = set(), [0] * len(plans)
    for row in zip(*(plan.tensors for plan in plans), strict=True):
        grown = [size + tensor.nbytes for size, tensor in zip(sizes, row, strict=True)]
        if any(sizes) and max(grown) > most:
            found.add(row[0].source.name)
            grown = [tensor.nbytes for tensor in row]
        sizes = grown
    return frozenset(found)


_Pair: TypeAlias = tuple[Tensor, PlannedTensor]


def _grouped(planned: Sequence[_Pair], recipe: Recipe) -> list[list[_Pair]]:
    """The tensors of each file."""
    if recipe.keep_split:
        by_file: dict[Path | None, list[_Pair]] = {}
        for pair in planned:
            extent = pair[1].source.extent
            by_file.setdefault(extent.path if extent else None, []).append(pair)
        return list(by_file.values()) or [[]]
    groups: list[list[_Pair]] = [[]]
    for pair in planned:
        if groups[-1] and pair[1].source.name in recipe.cuts:
            groups.append([])
        groups[-1].append(pair)
    return groups


def _files(metadata: dict[str, Any], groups: Sequence[Sequence[_Pair]], path: Path, keep_split: bool) -> list[FilePlan]:
    count, tensors_in_all = len(groups), sum(map(len, groups))
    files = []
    for i, group in enumerate(groups):
        keys = dict(metadata) if i == 0 else {}
        if i and "general.alignment" in metadata:
            keys["general.alignment"] = metadata["general.alignment"]  # each part is read by itself
        if count > 1:
            _put(keys, gguf_file.SPLIT_NO, np.uint16(i))
            _put(keys, gguf_file.SPLIT_COUNT, np.uint16(count))
            _put(keys, gguf_file.SPLIT_TENSORS, np.int32(tensors_in_all))
        part = Checkpoint(metadata=keys)
        for tensor, plan in group:
            part.add(Tensor.shadow(tensor.name, tensor.shape, plan.choice.type))
        head, offsets, size = gguf_file.header(part)
        tensors = [dataclasses.replace(plan, offset=o) for (_, plan), o in zip(group, offsets, strict=True)]
        stem = path.name.removesuffix(".gguf")
        name = path.with_name(gguf_file.shard_name(stem, i, count)) if keep_split or count > 1 else path
        files.append(FilePlan(name, head, size, tensors))
    return files
