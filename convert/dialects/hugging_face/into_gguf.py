"""A model folder's tensors and config.json to GGUF's, by the tables of `convert.archs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmconv.convert import archs, vocab
from llmconv.convert.cards.general import folder_name, general as general_keys
from llmconv.convert.dialects import carried, own_names
from llmconv.convert.dialects.hugging_face import (
    absent,
    dense,
    disguise,
    foreign_keys,
    fused,
    pooling,
    reranker,
    strangers,
    target,
)
from llmconv.convert.dialects.hugging_face.beyond import beyond_llama_cpp
from llmconv.convert.dialects.hugging_face.contradictions import contradictions
from llmconv.convert.dialects.hugging_face.present import as_present, matches, never_said, unknown_tensors
from llmconv.convert.dialects.hugging_face.words import words_of
from llmconv.convert.dialects.scales import unfolded
from llmconv.convert.scaled.unpack import refuse_parts, unpack
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import normalized, read_config, text_config, usable
from llmconv.convert.tables.rows import Told, at_layer, forward, prefix_of
from llmconv.convert.tables.scalars import scalar_keys
from llmconv.convert.tables.settings import ignored_by_transformers, unaccounted
from llmconv.convert.tables.storage import gguf_type
from llmconv.convert.towers import untold, which
from llmconv.errors import BadFile, cut, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import images

__all__ = ["to_gguf"]


def to_gguf(
    checkpoint: Checkpoint, *, strict: bool = True, pre: str | None = None, layout: str | None = None, **options: Any
) -> Checkpoint:
    """A Hugging Face model -> GGUF's names, shapes and keys, lazily.

    strict: refuse tensors that the architecture's table does not know; else they are left out, and a note says so.
    pre: the name of the pre-tokenizer, where it is not recognised.
    layout: "plain" keeps the tensors' own names, as for an architecture without a table.
    `BadFile` for a missing tensor or one whose shape contradicts the configuration.  Notes are in `notes`.
    """
    checkpoint = unpack(checkpoint)
    config = read_config(checkpoint)
    checkpoint, count = which.text_half(checkpoint) if layout != "plain" else (checkpoint, 0)
    if count:
        checkpoint = checkpoint.but(f"left out, {count} tensors of its tower: llmconv convert --mmproj writes them")
    arch = archs.by_hf(config) if config else None
    if arch is None or layout == "plain":
        out = own_names.to_gguf(checkpoint, strict=strict, pre=pre, layout=layout, **options)
        is_image = out.metadata["general.architecture"] in images.KEPT  # which says so itself
        return out.but(_own_names_kept(config, arch)) if config and not is_image else out
    where, flat = checkpoint.where, arch.completed(target.with_target(normalized(config), checkpoint))
    names = disguise.plain_names(arch, checkpoint.tensors, arch.is_tied(flat))
    tensors = {plain_name: checkpoint.tensors[name] for name, plain_name in names.items()}
    flat = as_present(flat, tensors)
    _check_words(arch, flat, where)
    notes = _unknown_settings(arch, config)
    metadata = arch.metadata(flat, f"{where}: config.json")
    dims = arch.dims_of(metadata)
    dims["n_vocab"] = dims["n_vocab"] or _number(flat.get("vocab_size"))
    out = checkpoint.derived("gguf")
    _make(out, arch, flat, dims)
    taken = _take(out, arch, tensors, dims, config.get("model_type") or arch.gguf)
    extra = [name for name in tensors if name not in taken.used]
    without_place = {n: tensors[n] for n in extra if matches(arch.kept, n)}
    from_a_gguf = strangers.carried_names(checkpoint.metadata, where) - set(out.tensors)
    for name in extra:
        if name in from_a_gguf:
            out.add(tensors[name])
    extra = [name for name in extra if name not in without_place and name not in from_a_gguf]
    parts_of = (n for n in extra if not matches((*arch.dropped, *arch.unplaced), n))
    refuse_parts(where, parts_of, taken.used, head=any("output.weight" in row.gguf for row in arch.rows))
    original = {plain_name: name for name, plain_name in names.items()}
    notes += _left_out(where, arch, config, [original[name] for name in extra], strict)
    with usable(flat, f"{where}: config.json"):
        lacking = absent.absent(arch, flat, dims, out.tensors)
        surplus = absent.denied(arch, flat, dims, out.tensors)
    outside = config.get("tie_word_embeddings") is True  # which transformers goes by, whatever a text model's says
    notes += absent.said(lacking, surplus, headless=outside or bool(dims["n_cls"]))
    out.tensors = unfolded(fused.together(out.tensors, checkpoint.metadata, where), where, arch.scales)
    pooled, said = pooling.keys_of(checkpoint, arch.gguf)
    behind = dense.taken(checkpoint, arch)
    out.tensors |= behind.tensors
    notes += [*said, *behind.notes, *_computed_here(arch, without_place)]
    general, said = general_keys(checkpoint, config, out)
    notes += said
    out.metadata = general | metadata | out.metadata | pooled | behind.keys
    if folder := folder_name(checkpoint):
        out.metadata[own_keys.NAME] = folder
    out.metadata |= _vocabulary(checkpoint, config, pre, notes, where, arch) | never_said(checkpoint)
    notes += reranker.added(arch, out, checkpoint, config)
    out.metadata |= _own_keys(arch, tensors, names, taken) | absent.kept(lacking, surplus) | target.keep(checkpoint)
    foreign_keys.put_back(out.metadata, checkpoint.metadata, where)
    _check_vocabulary(out.metadata, dims, notes, where)
    carried.keep_metadata(out.metadata, checkpoint.metadata)
    carried.keep_tensors(out.metadata, without_place)
    out.metadata |= {own_keys.HEAD + name: np.frombuffer(head, np.uint8) for name, head in behind.heads.items()}
    notes += carried.keep_files(out.metadata, checkpoint, set(behind.heads))
    out.notes += [*notes, *contradictions(config, out.tensors), *beyond_llama_cpp(arch, out, flat)]
    return out


def _own_names_kept(config: Mapping[str, Any], arch: Architecture | None) -> str:
    """The note of a model that is written under its own names."""
    classes = config.get("architectures")
    kind = classes[0] if isinstance(classes, list) and classes else config.get("model_type")
    why = "as asked" if arch else f"{kind or 'the model'} is no architecture known here"
    return (
        f"{why}: the tensors keep their own names; the model can be quantized and converted back, but not run here or "
        "in llama.cpp"
    )


def _make(out: Checkpoint, arch: Architecture, config: dict[str, Any], dims: Mapping[str, Any]) -> None:
    """Add the tensors that a GGUF has and a folder's configuration says."""
    for made in arch.made:
        with usable(config, f"{out.where}: config.json"):
            values = made.make(config, at_layer(dims, 0))
        if values is not None:
            out.add(Tensor.from_array(made.gguf, np.ascontiguousarray(values, np.float32)))


@dataclass
class _Taken:
    """What a table's rows took of a folder: from under which prefix, which tensors, which rows in another than their
    first form, and what the arithmetic of an op loses (keys of our own)."""

    prefix: str
    used: set[str] = field(default_factory=set)
    forms: dict[str, int] = field(default_factory=dict)
    exact: dict[str, Any] = field(default_factory=dict)


def _take(
    out: Checkpoint, arch: Architecture, tensors: Mapping[str, Tensor], dims: Mapping[str, Any], kind: str
) -> _Taken:
    """Add the tensors of all rows of the table, each made of what the folder has, and the keys of lone numbers."""
    why = f"a {kind} model of this config.json needs it; --layout plain converts any tensors under their own names"
    told = Told(out.where, "by config.json", why)
    taken = _Taken(prefix_of(arch.prefixes, arch.rows, dims, tensors))
    keys, numbers = scalar_keys(arch.scalars, tensors, dims, taken.prefix, told)
    out.metadata = keys
    taken.used.update(tensor.name for tensor in numbers)
    for moved in forward(arch.slots(dims), tensors, told, taken.prefix):
        if moved.form:
            taken.forms[moved.slot.row.gguf[0]] = moved.form
        taken.used.update(moved.names)
        taken.exact |= {own_keys.EXACT + name: record for name, record in moved.lost.items()}
        for part in moved.parts:
            out.add(part.astype(gguf_type(part)))
    return taken


def _own_keys(
    arch: Architecture, tensors: Mapping[str, Tensor], names: Mapping[str, str], taken: _Taken
) -> dict[str, Any]:
    """What it takes to write the folder's tensors again as they were: types, names, prefix, forms."""
    used = {n: t for n, t in tensors.items() if n in taken.used}
    own: dict[str, Any] = {own_keys.DTYPES: carried.keep_dtypes(used)}
    disguise.keep_names(own, {name: new for name, new in names.items() if new in used})
    if taken.prefix != arch.prefixes[0]:
        own[own_keys.PREFIX] = taken.prefix
    if taken.forms:
        own[own_keys.FORMS] = json.dumps(taken.forms, separators=(",", ":"))
    return own | taken.exact


def _left_out(where: str, arch: Architecture, config: Mapping[str, Any], extra: list[str], strict: bool) -> list[str]:
    """Notes about tensors that are not converted; `BadFile` in strict mode for those that the table does not drop.

    A tower of which no table is known here is left out in either: without it, the text model computes the same.
    """
    derived = [n for n in extra if matches(arch.dropped, n)]
    unplaced = [n for n in extra if matches(arch.unplaced, n)]
    known = {*derived, *unplaced}
    tower = untold.of_a_tower(config, (n for n in extra if n not in known))
    known.update(tower)
    unknown = [n for n in extra if n not in known]
    if unknown and strict:
        raise unknown_tensors(where, arch, unknown)
    notes = [untold.left_out(tower)] if tower else []
    notes += [f"left out, unknown to {arch.gguf}: {n}" for n in unknown]
    if unplaced:
        notes.append(f"left out, for which no GGUF of {arch.gguf} has a place: {unplaced[0]}{more(unplaced)}")
    if derived:
        notes.append(f"left out, computed from the configuration: {derived[0]}{more(derived)}")
    return notes


def _computed_here(arch: Architecture, kept: Mapping[str, Tensor]) -> list[str]:
    """A note about tensors that travel along and are computed with here alone."""
    found = [name for name in kept if matches(arch.computed, name)]
    return [f"llama.cpp computes without {cut(found[0])}{more(found)}"] if found else []


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


_WORDS = {"true", "false", "null"}


def _check_words(arch: Architecture, config: Mapping[str, Any], where: str) -> None:
    """`BadFile` for a setting that is a word between quotes: the text "false" would count as true."""
    for name in sorted(arch.settings | {"tie_word_embeddings"}):
        value = config.get(name)
        if isinstance(value, str) and value.lower() in _WORDS:
            raise BadFile(f"{where}: config.json: {name} is the text {value!r}; write it without quotes")


def _unknown_settings(arch: Architecture, config: Mapping[str, Any]) -> list[str]:
    """A note about settings that this program does not compute with."""
    notes = ignored_by_transformers(arch, config)
    if _window_of_nothing(arch, text_config(config)):
        notes.append("config.json: sliding_window is 0, with which no token would see any: computed without a window")
    if found := unaccounted(arch, config):
        some = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        notes.append(
            f"config.json: no effect here has {some}; if it changes what the model computes, results will differ"
        )
    return notes


def _window_of_nothing(arch: Architecture, config: Mapping[str, Any]) -> bool:
    """Whether windows are switched on and 0 tokens wide, which transformers takes by the letter."""
    known = {"sliding_window", "use_sliding_window"} & arch.settings
    off = "use_sliding_window" in known and not config.get("use_sliding_window")
    return "sliding_window" in known and config.get("sliding_window") == 0 and not off


def _vocabulary(
    checkpoint: Checkpoint, config: dict[str, Any], pre: str | None, notes: list[str], where: str, arch: Architecture
) -> dict[str, Any]:
    try:
        found = words_of(arch, checkpoint, config, pre)
    except BadFile as error:
        raise (error if str(error).startswith(where) else BadFile(f"{where}: {error}")) from None
    if found is None:
        return {}
    notes += [*found.notes, *found.twice()]
    keys: dict[str, Any] = vocab.to_gguf(found)
    return keys


def _check_vocabulary(metadata: Mapping[str, Any], dims: Mapping[str, Any], notes: list[str], where: str) -> None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        notes.append("no tokenizer files: the GGUF has weights only")
    elif dims["n_vocab"] and len(tokens) > dims["n_vocab"]:
        raise BadFile(
            f"{where}: the vocabulary has {len(tokens)} tokens, more than the embedding's {dims['n_vocab']} rows"
        )
