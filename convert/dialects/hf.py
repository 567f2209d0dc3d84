"""Hugging Face's dialect: a model folder's tensors and config.json <-> GGUF's, by the tables of `convert.archs`.

Both directions are lazy and exact.  What GGUF has no place for goes into keys of our own (see `carried`); a GGUF
from somebody else has none of them, and its config.json is rebuilt from its keys.  An architecture without a table
keeps its own names (`convert.dialects.own_names`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmconv.convert import archs, cards, vocab
from llmconv.convert.cards.general import folder_name, general as general_keys
from llmconv.convert.dialects import carried, own_names
from llmconv.convert.dialects.hugging_face import absent, disguise, edited, foreign_keys, fused, pooling, strangers
from llmconv.convert.dialects.hugging_face.beyond import beyond_llama_cpp
from llmconv.convert.dialects.hugging_face.contradictions import contradictions
from llmconv.convert.dialects.scales import folded, scales_of, unfolded
from llmconv.convert.scaled.unpack import refuse_parts, unpack
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import Settings, normalized, read_config, text_config, usable
from llmconv.convert.tables.ops import evaluate
from llmconv.convert.tables.rows import Slot, Told, at_layer, backward, forward, prefix_of
from llmconv.convert.tables.scalars import scalar_keys, scalar_tensors
from llmconv.convert.tables.settings import unaccounted
from llmconv.convert.tables.storage import gguf_type
from llmconv.convert.towers import translate as towers
from llmconv.errors import BadFile, LlmconvError, UnknownTensor, Unsupported, WrongShape, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["from_gguf", "to_gguf"]


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
    checkpoint, count = towers.text_half(checkpoint) if layout != "plain" else (checkpoint, 0)
    if count:
        checkpoint = checkpoint.but(f"left out, {count} tensors of its tower: llmconv convert --mmproj writes them")
    arch = archs.by_hf(config) if config else None
    if arch is None or layout == "plain":
        out = own_names.to_gguf(checkpoint, strict=strict, pre=pre, **options)
        return out.but(_own_names_kept(config, arch)) if config else out
    where, flat = checkpoint.where, normalized(config)
    names = disguise.plain_names(arch, checkpoint.tensors, arch.is_tied(flat))
    tensors = {plain_name: checkpoint.tensors[name] for name, plain_name in names.items()}
    flat = _as_present(flat, tensors)
    _check_words(arch, flat, where)
    notes = _unknown_settings(arch, config)
    metadata = arch.metadata(flat, f"{where}: config.json")
    dims = arch.dims_of(metadata)
    dims["n_vocab"] = dims["n_vocab"] or _number(flat.get("vocab_size"))
    out = checkpoint.derived("gguf")
    _make(out, arch, flat, dims)
    taken = _take(out, arch, tensors, dims, config.get("model_type") or arch.gguf)
    extra = [name for name in tensors if name not in taken.used]
    without_place = {n: tensors[n] for n in extra if _matches(arch.kept, n)}
    from_a_gguf = strangers.carried_names(checkpoint.metadata, where) - set(out.tensors)
    for name in extra:
        if name in from_a_gguf:
            out.add(tensors[name])
    extra = [name for name in extra if name not in without_place and name not in from_a_gguf]
    parts_of = (n for n in extra if not _matches(arch.dropped, n))
    refuse_parts(where, parts_of, taken.used, head=any("output.weight" in row.gguf for row in arch.rows))
    original = {plain_name: name for name, plain_name in names.items()}
    notes += _left_out(where, arch, [original[name] for name in extra], strict)
    with usable(flat, f"{where}: config.json"):
        lacking = absent.absent(arch, flat, dims, out.tensors)
    notes += absent.said(lacking)
    out.tensors = unfolded(fused.together(out.tensors, checkpoint.metadata, where), where, arch.scales)
    pooled, said = pooling.keys_of(checkpoint, arch.gguf)
    notes += said
    general, said = general_keys(checkpoint, config, out)
    notes += said
    out.metadata = general | metadata | out.metadata | pooled
    if folder := folder_name(checkpoint):
        out.metadata[own_keys.NAME] = folder
    out.metadata |= _vocabulary(checkpoint, config, pre, notes, where)
    out.metadata |= _own_keys(arch, tensors, names, taken) | absent.kept(lacking)
    foreign_keys.put_back(out.metadata, checkpoint.metadata, where)
    _check_vocabulary(out.metadata, dims, notes, where)
    carried.keep_metadata(out.metadata, checkpoint.metadata)
    carried.keep_tensors(out.metadata, without_place)
    notes += carried.keep_files(out.metadata, checkpoint)
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


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def from_gguf(checkpoint: Checkpoint, *, strict: bool = True, **options: Any) -> Checkpoint:
    """GGUF -> a Hugging Face model folder's tensors and files, lazily; the inverse of `to_gguf`.

    Quantized tensors are decoded to the type that the model had (a note says what that rounds), or to F32.
    """
    where, name = checkpoint.where, checkpoint.metadata.get("general.architecture")
    if towers.is_known(checkpoint):
        return towers.from_gguf(checkpoint, strict=strict)
    arch = archs.by_gguf(name) if isinstance(name, str) else None
    if arch is None or own_keys.is_plain(checkpoint.metadata):
        return own_names.from_gguf(checkpoint, strict=strict, **options)
    metadata = arch.modern(checkpoint.metadata)
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
    out.metadata = carried.kept_metadata(metadata, where)
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
        raise _unknown(where, arch, extra)
    notes += [f"left out, unknown to {arch.gguf}: {n}" for n in extra]
    others = [n for n in strange if n not in extra]
    for tensor in strangers.carry(checkpoint.tensors, others):
        out.add(tensor)
    notes += [*strangers.keep_list(out.metadata, others, set(scales)), *fused.keep_list(out.metadata, given.fused)]
    out.files = dict(_files(arch, checkpoint, dims, given.rows, out, notes))
    _check_made(arch, checkpoint, out, dims)
    notes += carried.about_kept_files(metadata, out.files)
    unmade = {made.gguf for made in arch.made if made.gguf not in checkpoint.tensors}
    notes += _without_absent(arch, metadata, dims, given.used - unmade, out)
    pooled, said = pooling.files_of(metadata, out, arch.gguf)
    out.files |= pooled
    notes += said
    again = _as_edited(arch, metadata, out, notes)
    if own_keys.CONFIG not in metadata:  # else the folder comes back as it was
        out.files |= cards.files_of(metadata, out.files)
    if again:
        again |= _about(metadata, out, checkpoint.n_elements, notes)
    unmapped, said = foreign_keys.keep(metadata, again, arch.gguf)
    out.metadata |= unmapped
    out.notes += [*notes, *said]
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


def _left_out(where: str, arch: Architecture, extra: list[str], strict: bool) -> list[str]:
    """Notes about tensors that are not converted; `BadFile` in strict mode for those that the table does not drop."""
    derived = [n for n in extra if _matches(arch.dropped, n)]
    known = set(derived)
    unknown = [n for n in extra if n not in known]
    if unknown and strict:
        raise _unknown(where, arch, unknown)
    notes = [f"left out, unknown to {arch.gguf}: {n}" for n in unknown]
    if derived:
        notes.append(f"left out, computed from the configuration: {derived[0]}{more(derived)}")
    return notes


def _unknown(where: str, arch: Architecture, names: list[str]) -> UnknownTensor:
    why = f"is none that a {arch.gguf} model has; --no-strict leaves such tensors out"
    return UnknownTensor(where, names, why)


def _as_many_rows(metadata: dict[str, Any], key: str, rows: int) -> list[str]:
    """Let a key say how many tokens the embedding has; a note where it said otherwise."""
    stated = metadata.get(key)
    if stated is None or np.array_equal(stated, rows):
        return []
    metadata[key] = np.uint32(rows)
    return [f"{key} is {stated!s:.30}, but token_embd.weight has {rows} rows: config.json says {rows}"]


def _without_absent(
    arch: Architecture, metadata: Mapping[str, Any], dims: Mapping[str, Any], names: set[str], out: Checkpoint
) -> list[str]:
    """Make a kept config.json say what was taken out of the GGUF since; notes.   names: of the GGUF's tensors."""
    if own_keys.CONFIG not in metadata:
        return []
    config = normalized(read_config(out))
    with usable(config, f"{out.where}: config.json"):
        lacking = absent.absent(arch, config, dims, names)
        here = at_layer(dims, 0)
        made = [made.gguf for made in arch.made if made.gguf not in names and made.make(config, here) is not None]
        if made:
            lacking.setdefault("", []).extend(made)
        return edited.without(arch, out.files, lacking, metadata)


def _as_edited(arch: Architecture, metadata: Mapping[str, Any], out: Checkpoint, notes: list[str]) -> dict[str, Any]:
    """Make kept files say what was edited in the GGUF since; the keys that a GGUF made of the folder would have."""

    pre = metadata.get("tokenizer.ggml.pre")  # a name that is often given by hand, for files that don't show it
    pre = pre if isinstance(pre, str) else None

    def reread(files: Mapping[str, Any]) -> dict[str, Any]:
        return _again(arch, out.but(files={**out.files, **files}), pre)

    plainly = again = _again(arch, out)
    if again.get("tokenizer.ggml.pre", "") != pre:
        again = reread({})
    before = dict(out.files)
    notes += edited.otherwise_split(metadata, plainly)
    if own_keys.CONFIG in metadata:
        notes += edited.gone(metadata, again, (f"{arch.gguf}.", "tokenizer.chat_template"))
        notes += edited.configured(arch, metadata, out.files, again, reread)
    found = vocab.from_gguf(metadata)
    if found is not None and found.files and again:
        notes += edited.with_ids(out.files, found, again)
        kept = set(found.files)
        files, said = vocab.agreeing(
            found, metadata, again, lambda files: _again(arch, out.but(files=_swapped(out, kept, files)))
        )
        out.files = _swapped(out, kept, files)
        notes += said
    return plainly if out.files == before else _again(arch, out)


def _about(metadata: Mapping[str, Any], out: Checkpoint, parameters: int, notes: list[str]) -> Mapping[str, Any]:
    """The general keys that a GGUF made of this folder would have; kept files say what was edited of them."""
    folder = metadata.get(own_keys.NAME)
    folder = folder if isinstance(folder, str) else None

    def general() -> Mapping[str, Any]:
        return cards.keys_of(out, read_config(out), folder, parameters)[0]

    if own_keys.CONFIG not in metadata:
        return general()
    found, said = cards.agreeing(metadata, out.files, general)
    notes += said
    return found


def _swapped(out: Checkpoint, kept: set[str], files: Mapping[str, bytes]) -> dict[str, Any]:
    """A folder's files with others for those of its tokenizer."""
    return {**{name: data for name, data in out.files.items() if name not in kept}, **files}


def _again(arch: Architecture, folder: Checkpoint, pre: str | None = None) -> dict[str, Any]:
    """The keys that a GGUF made of this folder would have, without those of the file and of our own."""
    config = read_config(folder)
    try:
        keys = arch.metadata(_as_present(normalized(config), folder.tensors), "")
        keys |= pooling.keys_of(folder, arch.gguf)[0]
        keys |= _scalars(arch, folder, config, keys)
        found = vocab.from_files(folder.files, config, pre=pre)
        return keys if found is None else keys | vocab.to_gguf(found, files=False)
    except LlmconvError:
        return {}  # then all that the GGUF says is kept


def _scalars(
    arch: Architecture, folder: Checkpoint, config: Mapping[str, Any], keys: Mapping[str, Any]
) -> dict[str, Any]:
    """The keys that a folder's lone numbers say."""
    if not arch.scalars:
        return {}
    names = disguise.plain_names(arch, folder.tensors, arch.is_tied(config))
    tensors, dims = {plain_name: folder.tensors[name] for name, plain_name in names.items()}, arch.dims_of(keys)
    prefix = prefix_of(arch.prefixes, arch.rows, dims, tensors)
    return scalar_keys(arch.scalars, tensors, dims, prefix, Told(folder.where, "", ""))[0]


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _as_present(config: dict[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without layers for further tokens, which it states of many models that come without them."""
    first = f"layers.{config.get('num_hidden_layers')}."
    if config.get("num_nextn_predict_layers") and not any(first in name for name in tensors):
        return Settings({**config, "num_nextn_predict_layers": 0})
    further = {  # what Qwen, and behind "model." MiMo, call them
        name.partition("mtp.layers.")[2].split(".")[0]
        for name in tensors
        if name.startswith(("mtp.layers.", "model.mtp.layers."))
    }
    if further or config.get("mtp_num_hidden_layers"):
        return Settings({**config, "mtp_num_hidden_layers": len(further)})
    return config


_WORDS = {"true", "false", "null"}


def _check_words(arch: Architecture, config: Mapping[str, Any], where: str) -> None:
    """`BadFile` for a setting that is a word between quotes: the text "false" would count as true."""
    for name in sorted(arch.settings | {"tie_word_embeddings"}):
        value = config.get(name)
        if isinstance(value, str) and value.lower() in _WORDS:
            raise BadFile(f"{where}: config.json: {name} is the text {value!r}; write it without quotes")


def _unknown_settings(arch: Architecture, config: Mapping[str, Any]) -> list[str]:
    """A note about settings that this program does not compute with."""
    notes = [
        f"config.json: {name} is followed, as in the model's own code; transformers ignores it"
        for name in arch.disputed(text_config(config))
    ]
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
    checkpoint: Checkpoint, config: dict[str, Any], pre: str | None, notes: list[str], where: str
) -> dict[str, Any]:
    flat = {**config, **{k: v for k, v in normalized(config).items() if k == "vocab_size"}}
    try:
        found = vocab.from_files(checkpoint.files, flat, pre=pre)
    except BadFile as error:
        raise BadFile(f"{where}: {error}") from None
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


def _files(
    arch: Architecture,
    checkpoint: Checkpoint,
    dims: Mapping[str, Any],
    present: set[tuple[tuple[str, ...], str]],
    out: Checkpoint,
    notes: list[str],
) -> Iterator[tuple[str, bytes]]:
    """The model folder's files: the vocabulary's, then those that were kept, and a config.json."""
    files = carried.kept_files(checkpoint.metadata)
    found = vocab.from_gguf(checkpoint.metadata)
    if found is not None:
        found.tokens = list(found.tokens)  # a GGUF's are made anew each time that they are asked for
        try:
            yield from vocab.to_files(found).items()
            notes += [*found.notes, *found.twice()]
        except Unsupported as error:
            notes.append(f"no tokenizer files are written, the vocabulary's keys are kept as they are: {error}")
    if "config.json" not in files:
        files["config.json"] = _rebuilt(arch, checkpoint, dims, present, out)
    yield from files.items()


def _rebuilt(
    arch: Architecture,
    checkpoint: Checkpoint,
    dims: Mapping[str, Any],
    present: set[tuple[tuple[str, ...], str]],
    out: Checkpoint,
) -> bytes:
    """A config.json for a GGUF that was not made from one by us."""
    sized = {f"{arch.gguf}.vocab_size": np.uint32(dims["n_vocab"])} | dict(checkpoint.metadata)
    config = arch.config(sized, checkpoint.tensors)
    config["vocab_size"] = dims["n_vocab"]
    config["tie_word_embeddings"] = "output.weight" not in checkpoint.tensors
    there: dict[str, bool] = {}  # whether any of the rows that a flag stands for is there
    for table_row in arch.rows:
        flag = table_row.optional
        if isinstance(flag, str) and not flag.endswith("tie_word_embeddings"):
            there[flag] = there.get(flag, False) or (table_row.gguf, table_row.when) in present
    config |= {f.lstrip("!").partition("=")[0]: not yes if f.startswith("!") else yes for f, yes in there.items()}
    for made in arch.made:
        if made.gguf in checkpoint.tensors:
            with usable(config, f"{checkpoint.where}: tensor {made.gguf!r}"):
                made.read(checkpoint.tensors[made.gguf].numpy(), config)
    sizes: Counter[str] = Counter()
    for tensor in out.tensors.values():
        sizes[tensor.type.name] += tensor.nbytes
    torch_names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
    config["torch_dtype"] = torch_names.get(sizes.most_common(1)[0][0] if sizes else "F32", "float32")
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        value = checkpoint.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is not None or f"{name}_token_id" not in config:
            config[f"{name}_token_id"] = None if value is None else int(value)
    return json.dumps(config, indent=2).encode() + b"\n"
