"""A GGUF to a model folder's tensors and files, by the tables of `convert.archs`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmconv.convert import archs, cards, further
from llmconv.convert.dialects import carried, own_names
from llmconv.convert.dialects.hugging_face import (
    absent,
    dense,
    disguise,
    edited,
    foreign_keys,
    fused,
    pooling,
    reranker,
    strangers,
    target,
)
from llmconv.convert.dialects.hugging_face.again import as_edited, general_again
from llmconv.convert.dialects.hugging_face.beyond import of_others, otherwise_in_a_folder, otherwise_in_llama_cpp
from llmconv.convert.dialects.hugging_face.folder_files import folder_files
from llmconv.convert.dialects.hugging_face.present import as_present, unknown_tensors
from llmconv.convert.dialects.ones import with_ones
from llmconv.convert.dialects.scales import folded, scales_of
from llmconv.convert.scaled.unpack import refuse_parts
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import normalized, read_config, usable
from llmconv.convert.tables.ops import evaluate
from llmconv.convert.tables.rows import Slot, Told, at_layer, backward
from llmconv.convert.tables.scalars import scalar_tensors
from llmconv.convert.tables.settings import ignored_by_transformers
from llmconv.convert.towers import translate as towers, which
from llmconv.errors import BadFile, Unsupported, WrongShape, about, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["from_gguf"]


def from_gguf(checkpoint: Checkpoint, *, strict: bool = True, **options: Any) -> Checkpoint:
    """GGUF -> a Hugging Face model folder's tensors and files, lazily; the inverse of `to_gguf`.

    Quantized tensors are decoded to the type that the model had (a note says what that rounds), or to F32.
    """
    where, name = checkpoint.where, checkpoint.metadata.get("general.architecture")
    if which.is_known(checkpoint):
        return towers.from_gguf(checkpoint, strict=strict)
    arch = archs.by_gguf(name) if isinstance(name, str) else None
    if arch is None or own_keys.is_plain(checkpoint.metadata):
        return own_names.from_gguf(checkpoint, strict=strict, **options)
    if further.is_alone(checkpoint):
        raise Unsupported(
            f"{where}: holds a model's layers for further tokens alone, which are no model folder; convert the model's "
            "own GGUF, with this one as --mtp FILE"
        )
    checkpoint = reranker.without(with_ones(checkpoint))
    metadata = arch.modern(checkpoint.metadata)
    with about(checkpoint.source):
        arch.check_keys(metadata)
    told = arch.told(checkpoint.tensors, arch.dims_of(metadata))
    metadata = {f"{arch.gguf}.{key}": value for key, value in told.items()} | dict(metadata)
    notes: list[str] = []
    checkpoint = checkpoint.but(metadata=metadata)
    dims = arch.dims_of(metadata)
    embeddings = checkpoint.tensors.get("token_embd.weight")
    if embeddings is not None and embeddings.shape:
        dims["n_vocab"] = embeddings.shape[0]
        notes += _as_many_rows(metadata, f"{arch.gguf}.vocab_size", embeddings.shape[0])
    out = checkpoint.derived("hf")
    out.info |= target.kept(metadata)
    out.metadata = carried.kept_metadata(metadata, where)
    layers, behind, new = dense.given(checkpoint, arch)
    checkpoint = checkpoint.but(tensors={n: t for n, t in checkpoint.tensors.items() if n not in behind})
    given = _give(out, arch, checkpoint, dims)
    for tensor in carried.kept_tensors(metadata, where):
        out.add(tensor)
    notes += [f"{n} tensors decoded from {a} are rounded to {b}" for (a, b), n in given.rounded.items()]
    if scales := scales_of(checkpoint.tensors, arch.scales):
        first = list(scales)
        notes.append(f"multiplied into its weight: {first[0]}{more(first)}")
    strange = [n for n in checkpoint.tensors if n not in given.used]
    extra = [n for n in strange if strangers.changes_the_result(n)]
    refuse_parts(where, extra, given.used)
    if extra and strict:
        raise unknown_tensors(where, arch, extra)
    notes += [f"left out, unknown to {arch.gguf}: {n}" for n in extra]
    others = [n for n in strange if n not in extra]
    for tensor in strangers.carry(checkpoint.tensors, others):
        out.add(tensor)
    notes += [*strangers.keep_list(out.metadata, others, set(scales)), *fused.keep_list(out.metadata, given.fused)]
    out.files = {**dict(folder_files(arch, checkpoint, dims, given.rows, out, notes)), **layers}
    _check_made(arch, checkpoint, out, dims)
    notes += carried.about_kept_files(metadata, out.files)
    unmade = {made.gguf for made in arch.made if made.gguf not in checkpoint.tensors}
    notes += _as_flagged(arch, metadata, dims, given.used - unmade, out)
    pooled, said = pooling.files_of(metadata, out, arch, new)
    out.files |= pooled
    notes += said
    again = as_edited(arch, metadata, out, notes)
    if own_keys.CONFIG not in metadata:  # else the folder comes back as it was
        out.files |= cards.files_of(metadata, out.files)
        notes += ignored_by_transformers(arch, read_config(out))
    if again:
        again |= general_again(metadata, out, checkpoint.n_elements, notes)
    ours = of_others(checkpoint)
    notes += otherwise_in_a_folder(checkpoint, ours, again)
    unmapped, said = foreign_keys.keep(metadata, again, arch.gguf)
    out.metadata |= unmapped
    out.notes += [*notes, *said, *(n for n in otherwise_in_llama_cpp(checkpoint, ours) if n not in out.notes)]
    return out


def _check_made(arch: Architecture, checkpoint: Checkpoint, out: Checkpoint, dims: Mapping[str, Any]) -> None:
    """`BadFile` for a tensor that a folder's configuration has to say, and none does."""
    made = [made for made in arch.made if made.gguf in checkpoint.tensors]
    config = normalized(read_config(out)) if made else {}
    for each in made:
        values, here = checkpoint.tensors[each.gguf].numpy(), at_layer(dims, 0)
        if values.shape != (here["n_rot"] // 2,):
            raise WrongShape(checkpoint.where, each.gguf, values.shape, (here["n_rot"] // 2,), "by its keys")
        with usable(config, f"{checkpoint.where}: config.json"):
            said = each.make(config, here)
        if said is None or np.shape(said) != values.shape or not np.allclose(said, values, rtol=1e-4):
            raise BadFile(
                f"{checkpoint.where}: tensor {each.gguf!r} has values that no config.json of a {arch.gguf} model says; "
                "a GGUF keeps them, a model folder has no place for them"
            )


@dataclass
class _Given:
    """What a table's rows gave of a GGUF: which tensors they took, and which of these they took apart, the rows that
    are there, and how many tensors were decoded from one type and rounded to another."""

    used: set[str]
    fused: list[str] = field(default_factory=list)
    rows: set[tuple[tuple[str, ...], str]] = field(default_factory=set)
    rounded: Counter[tuple[str, str]] = field(default_factory=Counter)


def _give(out: Checkpoint, arch: Architecture, checkpoint: Checkpoint, dims: Mapping[str, Any]) -> _Given:
    """Add the folder's tensors of all rows of the table, in the types, forms and under the names that are kept."""
    metadata, where = checkpoint.metadata, checkpoint.where
    dtypes = carried.kept_dtypes(carried.kept_json(metadata, own_keys.DTYPES, where), where)
    forms = carried.kept_json(metadata, own_keys.FORMS, where)
    original = disguise.kept_names(metadata, where)
    tensors, split = fused.apart(arch.slots(dims), folded(checkpoint.tensors, where, arch.scales), where)
    prefix = metadata.get(own_keys.PREFIX, arch.prefixes[0])
    if not isinstance(prefix, str) or prefix not in arch.prefixes:
        raise BadFile(
            f"{where}: {own_keys.PREFIX} is {prefix!r:.60}, expected one of {', '.join(map(repr, arch.prefixes))}"
        )
    given = _Given({*(made.gguf for made in arch.made), *split}, split)
    for tensor in scalar_tensors(arch.scalars, metadata, dims, prefix):
        kind = carried.dtype_of(tensor.name, *dtypes)
        tensor = tensor.astype(kind) if kind is not None and kind.is_float else tensor
        out.add(tensor.renamed(disguise.original_name(tensor.name, original)))
    for moved in backward(
        arch.slots(dims),
        tensors,
        Told(where, "by its keys", f"a {arch.gguf} model of these keys needs it"),
        prefix,
        form_of=lambda slot: _form(slot, forms, tensors, where),
        type_of=lambda name: carried.dtype_of(name, *dtypes),
        lost={k.removeprefix(own_keys.EXACT): v for k, v in metadata.items() if k.startswith(own_keys.EXACT)},
    ):
        given.used.update(moved.names)
        given.rows.add((moved.slot.row.gguf, moved.slot.row.when))
        form = moved.slot.row.forms[moved.form]
        if form.backward:
            given.fused += moved.names
        stored = checkpoint.tensors.get(moved.names[0], tensors[moved.names[0]]).type
        for tensor in moved.parts:
            if not stored.is_plain() and form.stored_as is None and tensor.type not in (plain.F32, stored):
                given.rounded[stored.name, tensor.type.name] += 1
            out.add(tensor.renamed(disguise.original_name(tensor.name, original)))
    return given


def _as_many_rows(metadata: dict[str, Any], key: str, rows: int) -> list[str]:
    """Let a key say how many tokens the embedding has; a note where it said otherwise."""
    stated = metadata.get(key)
    if stated is None or np.array_equal(stated, rows):
        return []
    metadata[key] = np.uint32(rows)
    return [f"{key} is {stated!s:.30}, but token_embd.weight has {rows} rows: config.json says {rows}"]


def _as_flagged(
    arch: Architecture, metadata: Mapping[str, Any], dims: Mapping[str, Any], names: set[str], out: Checkpoint
) -> list[str]:
    """Make a kept config.json say what was taken out of the GGUF since, or put into it; notes.   names: its tensors."""
    if own_keys.CONFIG not in metadata:
        return []
    config = as_present(normalized(read_config(out)), out.tensors)
    with usable(config, f"{out.where}: config.json"):
        lacking = absent.absent(arch, config, dims, names)
        here = at_layer(dims, 0)
        made = [made.gguf for made in arch.made if made.gguf not in names and made.make(config, here) is not None]
        if made:
            lacking.setdefault("", []).extend(made)
        surplus = absent.denied(arch, config, dims, names)
        return edited.flagged(arch, out.files, lacking, surplus, metadata)


def _form(slot: Slot, forms: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> int:
    """The form in which a row is written: the one on record, else the first that the GGUF fits."""
    stored, number = {tensors[name].type for name in slot.gguf}, 0
    for i, form in enumerate(slot.row.forms):
        if (
            form.beside.replace("{i}", str(slot.dims["i"])) in tensors
            or (form.without and form.without not in tensors)
            or (form.where and evaluate(form.where, slot.dims))
        ):
            number = i
        elif number == i and form.stored_as is not None and stored != {form.stored_as}:
            number = min(i + 1, len(slot.row.forms) - 1)
    number = forms.get(slot.row.gguf[0], number)
    if not isinstance(number, int) or not 0 <= number < len(slot.row.forms):
        raise BadFile(
            f"{where}: {own_keys.FORMS} says {number!r} for {slot.row.gguf[0]!r}; remove the key to use the usual"
        )
    return number
