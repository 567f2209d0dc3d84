"""A multimodal folder's tower <-> an mmproj file, and a folder's two halves.

What GGUF has no place for is kept as in the text model's file: types, names in other spellings, values that an op
rounds, tensors that llama.cpp leaves out.  config.json and what prepares pictures are kept too.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from llmconv.convert import archs, towers
from llmconv.convert.cards.general import folder_name, general
from llmconv.convert.dialects import carried
from llmconv.convert.dialects.hugging_face import disguise
from llmconv.convert.dialects.ones import in_shapes, shapes_of
from llmconv.convert.scaled.unpack import refuse_parts, unpack
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.config import read_config, text_config
from llmconv.convert.tables.rows import Moved, Slot, Told, backward, forward
from llmconv.convert.tables.storage import gguf_type, is_typical
from llmconv.convert.tables.tower import CLIP, Side, Tower
from llmconv.convert.towers.which import text_half, tower_half, tower_of
from llmconv.errors import BadFile, UnknownTensor, Unsupported, UsageError, cut, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant.filetypes import number_of

__all__ = [
    "from_gguf",
    "halves",
    "to_gguf",
    "together",
]

SMALL = 64 << 10
"""Bytes of a tensor without a place that is kept among the keys; a larger one is a tensor under its own name."""
_LONGEST = 63
"""Bytes of a tensor's name that llama.cpp can hold; a kept one with a longer name gets a number in letters."""
_SHORT = "kept."
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def to_gguf(folder: Checkpoint, *, strict: bool = True) -> Checkpoint:
    """A multimodal folder -> its mmproj file, lazily; `tensors` of the text model are passed over.

    strict: refuse tensors of the tower that its table does not know; else they are left out, and a note says so.
    """
    whole = unpack(folder)
    half = tower_half(whole)
    tower = towers.by_config(read_config(half))
    assert tower is not None
    config, where = read_config(half), half.where
    names = {name: tower.spelled(name) for name in half.tensors}
    tensors = {new: half.tensors[name] for name, new in names.items()}
    out, used, notes = half.derived("gguf"), set[str](), []
    exact: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    for side in [side for side in tower.sides if side.is_in(config, half)]:
        settings = side.settings(config, half)
        found = side.table.metadata(settings, f"{where}: config.json: {side.at}".rstrip(": "))
        dims = side.dims(found, side.theirs(found, tensors))
        keys |= {key: value for key, value in found.items() if key != "general.architecture"}
        places = side.slots(found, dims, {name: tensor.shape for name, tensor in tensors.items()})
        for moved in forward(places, tensors, _told(where, tower), ""):
            used.update(moved.names)
            exact |= {own_keys.EXACT + name: record for name, record in moved.lost.items()}
            _add(out, moved, tower.projector)
        for tensor in side.made(whole, settings):
            out.add(tensor.astype(gguf_type(tensor, tower.projector)))
        notes += [*_unprepared(side, found, where), *_alone(side, half)]
    for side in [side for side in tower.sides if not side.is_in(config, half)]:
        notes += _alone(side, half)
    extra = [name for name in tensors if name not in used]
    kept = {name: tensors[name] for name in extra if _matches(tower.kept, name)}
    derived = [name for name in extra if _matches(tower.dropped, name)]
    unknown = [name for name in extra if name not in kept and name not in derived]
    refuse_parts(where, unknown, used)
    notes += _left_out(where, tower, {new: name for name, new in names.items()}, unknown, derived, strict)
    brief = _brief(kept)
    used.update(_keep(out, exact, kept, brief))
    about, said = general(half, config, out, "mmproj")
    types = Counter(t.type.name for t in out.tensors.values() if is_typical(t, tower.projector))
    about["general.file_type"] = np.uint32(number_of(types.most_common(1)[0][0] if types else "F32") or 0)
    out.metadata = about | {"general.architecture": CLIP} | keys
    if name := folder_name(half):
        out.metadata[own_keys.NAME] = name
    known = {name: new for name, new in names.items() if new in used}
    out.metadata[own_keys.DTYPES] = carried.keep_dtypes({new: tensors[new] for new in known.values()})
    disguise.keep_names(out.metadata, known, {brief[new]: name for name, new in known.items() if new in brief})
    out.metadata |= exact
    prepared = {name: half.files[name] for name in ("config.json", *_PROCESSORS) if name in half.files}
    notes += carried.keep_files(out.metadata, half.but(files=prepared))
    out.notes += [*said, *notes]
    return out


def halves(folder: Checkpoint, *, strict: bool = True) -> tuple[Checkpoint, Checkpoint | None]:
    """A multimodal folder's text model, and its tower in GGUF's names; any other checkpoint and None."""
    if tower_of(folder) is None:
        return folder, None
    return text_half(folder)[0], to_gguf(folder, strict=strict)


def _told(where: str, tower: Tower) -> Told:
    return Told(where, "by config.json", f"the tower of a {tower.model_type} model of this config.json needs it")


def _add(out: Checkpoint, moved: Moved, projector: str) -> None:
    for part in moved.parts:
        out.add(part.astype(gguf_type(part, projector)))


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _brief(names: Iterable[str]) -> dict[str, str]:
    """Names that llama.cpp can hold in place of longer ones: letters, as digits would be taken for a layer's."""
    letters = map("".join, itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=3))
    return {name: _SHORT + next(letters) for name in names if len(name.encode()) > _LONGEST}


def _keep(out: Checkpoint, own: dict[str, Any], kept: Mapping[str, Tensor], brief: Mapping[str, str]) -> Iterator[str]:
    """Put tensors that llama.cpp leaves out among the keys, or beside the others under their own names."""
    small = {name: tensor for name, tensor in kept.items() if tensor.nbytes <= SMALL or not tensor.shape}
    carried.keep_tensors(own, small)
    for name, tensor in kept.items():
        if name not in small:
            out.add(tensor.renamed(brief.get(name, name)))
        yield name


def _left_out(
    where: str, tower: Tower, names: Mapping[str, str], unknown: list[str], derived: list[str], strict: bool
) -> list[str]:
    """Notes on tensors that are not converted; `UnknownTensor` in strict mode for those that no table drops."""
    if unknown and strict:
        why = f"is none that the tower of a {tower.model_type} model has; --no-strict leaves such tensors out"
        raise UnknownTensor(where, [names[name] for name in unknown], why)
    notes = [f"left out, unknown to {tower.projector}: {names[name]}" for name in unknown]
    if derived:
        notes.append(f"left out, computed from the configuration: {names[derived[0]]}{more(derived)}")
    return notes


def _unprepared(side: Side, keys: Mapping[str, Any], where: str) -> list[str]:
    """A note where a folder does not say how pictures are prepared."""
    wanted = [key.gguf for key in side.table.keys if key.gguf.startswith("image_m") or key.gguf == "image_std"]
    if all(f"{side.table.gguf}.{name}" in keys for name in wanted):
        return []
    return ["no preprocessor_config.json says image_mean and image_std; llama.cpp loads no vision tower without them"]


def _alone(side: Side, folder: Checkpoint) -> list[str]:
    """A note where a folder within, whose tensors the mmproj file should hold too, is not there."""
    if not side.beside or side.within(folder) is not None:
        return []
    return [f"no folder {side.beside} lies within, another model's, which llama.cpp needs for sounds"]


def from_gguf(checkpoint: Checkpoint, *, strict: bool = True, config: Mapping[str, Any] | None = None) -> Checkpoint:
    """An mmproj file -> the tower's tensors and files of a model folder, lazily; the inverse of `to_gguf`.

    config: config.json of the whole model, where it is known.
    """
    metadata, where = checkpoint.metadata, checkpoint.where
    files = carried.kept_files(metadata)
    kept = read_config(checkpoint.but(files=files)) if "config.json" in files else None
    tower = towers.by_config(kept or config or {})
    if tower is None or not set(towers.projectors(metadata)) & {tower.projector, *tower.projectors}:
        tower = towers.by_gguf(metadata, checkpoint.tensors)
    if tower is None:
        named = ", ".join(towers.projectors(metadata)) or "none"
        raise Unsupported(
            f"{where}: is an mmproj file whose projector ({named:.60}) is not known here; llmconv convert FILE "
            "NAME.safetensors keeps its own names"
        )
    out = checkpoint.derived("hf")
    out.metadata = {"format": "pt"}
    dtypes = carried.kept_dtypes(carried.kept_json(metadata, own_keys.DTYPES, where), where)
    original = disguise.kept_names(metadata, where)
    told = Told(where, "by its keys", f"an mmproj file of {tower.projector} needs it")
    rounded: Counter[tuple[str, str]] = Counter()
    used: set[str] = set()
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    lost = {k.removeprefix(own_keys.EXACT): v for k, v in metadata.items() if k.startswith(own_keys.EXACT)}
    for side in [side for side in tower.sides if side.is_said(metadata)]:
        slots = list(side.slots(metadata, side.dims(metadata, shapes), shapes))
        for moved in backward(
            slots,
            in_shapes(checkpoint, shapes_of(slots)).tensors,
            told,
            form_of=lambda slot: _form(slot, checkpoint.tensors),
            type_of=lambda name: carried.dtype_of(name, *dtypes),
            lost=lost,
        ):
            used.update(moved.names)
            stored = checkpoint.tensors[moved.names[0]].type
            for tensor in moved.parts:
                if not stored.is_plain() and tensor.type.name != "F32":
                    rounded[stored.name, tensor.type.name] += 1
                out.add(tensor.renamed(disguise.original_name(tensor.name, original)))
    for tensor in carried.kept_tensors(metadata, where):
        out.add(tensor.renamed(disguise.original_name(tensor.name, original)))
    out.notes += _others(out, checkpoint, tower, used, strict, original)
    out.notes += [f"{n} tensors decoded from {a} are rounded to {b}" for (a, b), n in rounded.items()]
    out.files = {name: data for name, data in files.items() if name == "config.json" or name in _PROCESSORS}
    if kept is None and not tower.unsaid:
        out.files |= _rebuilt(tower, checkpoint)
    if own_keys.DTYPES not in metadata:
        tensors = {_begun(name, tower.written): tensor for name, tensor in out.tensors.items()}
        out.tensors = {name: tensor.renamed(name) for name, tensor in tensors.items()}
    return out


def _begun(name: str, starts: tuple[tuple[str, str], ...]) -> str:
    """A name with another beginning, the first that fits."""
    return next((new + name.removeprefix(old) for old, new in starts if name.startswith(old)), name)


def _form(slot: Slot, tensors: Mapping[str, Tensor]) -> int:
    """The first form of a row that a GGUF fits."""
    forms = slot.row.forms
    return next((i for i, form in enumerate(forms) if not form.beside or form.beside in tensors), 0)


def _others(
    out: Checkpoint,
    checkpoint: Checkpoint,
    tower: Tower,
    used: set[str],
    strict: bool,
    original: Mapping[str, str],
) -> list[str]:
    """Carry what bears a folder's name already; notes on the rest, `UnknownTensor` for it in strict mode."""
    rest = [name for name in checkpoint.tensors if name not in used]
    beside = [name for name in rest if name.startswith(_SHORT)]
    for name in [name for name in rest if name.startswith(tower.starts) or (name in beside and name in original)]:
        out.add(checkpoint.tensors[name].renamed(disguise.original_name(name, original)))
    made = ("v.token_embd.img_break", "a.position_embd.weight")  # of the text model's table, or of the configuration
    rest = [name for name in rest if not name.startswith((*tower.starts, *made, _SHORT))]
    within = [name for name in rest if name.startswith(tower.made)]
    rest = [name for name in rest if name not in within]
    if rest and strict:
        why = f"is none that a tower of {tower.projector} has; --no-strict leaves such tensors out"
        raise UnknownTensor(checkpoint.where, rest, why)
    notes = [f"left out, unknown to {tower.projector}: {name}" for name in rest]
    if unnamed := [name for name in beside if name not in original]:
        notes.append(f"left out, no key says what it is of: {unnamed[0]}{more(unnamed)}")
    if within:
        folders = ", ".join(side.beside for side in tower.sides if side.beside)
        notes.append(
            f"left out, made of another model's folder ({folders}), which is to be copied: {within[0]}{more(within)}"
        )
    return notes


def _rebuilt(tower: Tower, checkpoint: Checkpoint) -> dict[str, bytes]:
    """config.json and preprocessor_config.json, as far as the keys of somebody else's file go, without a text model."""
    config: dict[str, Any] = {"architectures": [tower.classes[0]], "model_type": tower.model_type}
    prepared: dict[str, Any] = {}
    for side in [side for side in tower.sides if side.is_said(checkpoint.metadata)]:
        dims = side.dims(checkpoint.metadata, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
        measured = {name: str(dims[name]) for name in side.measured}
        found = dataclasses.replace(side.table, dims=measured).config(checkpoint.metadata)
        found.pop("text", None)
        outer, processor = found.pop("outer", {}), found.pop("processor", {})
        found = {k: v for k, v in found.items() if k != "architectures" and v != ""}
        config |= outer
        if side.at:
            *steps, last = side.at.split(".")
            place = config
            for step in steps:
                place = place.setdefault(step, {})
            place[last] = found
        else:
            config |= found
        prepared |= processor
    files = {"config.json": json.dumps(config, indent=2).encode() + b"\n"}
    if prepared:
        files["preprocessor_config.json"] = json.dumps(prepared, indent=2).encode() + b"\n"
    return files


def together(text: Checkpoint, tower: Checkpoint, *, rebuilt: bool = False, strict: bool = True) -> Checkpoint:
    """Two halves in Hugging Face's names and an mmproj file -> the whole folder.

    text: the text model's half, a folder.   tower: the mmproj file.
    rebuilt: whether the text model's GGUF said nothing of a folder, so that config.json was made of its keys.
    """
    config = read_config(text)
    half = from_gguf(tower, strict=strict, config=config)
    known = towers.by_config(config)
    shared = [name for name in half.tensors if name in text.tensors and known is not None and known.shares(name)]
    twice = [name for name in half.tensors if name in text.tensors and name not in shared]
    if twice:
        raise UsageError(
            f"{tower.where}: holds {twice[0]!r}{more(twice)}, and so does {text.where}; they are no halves"
        )
    out = text.but(*half.notes)
    if rebuilt and not (known is not None and known.unsaid):
        outer = read_config(half)
        whole = towers.by_config(outer)
        if whole is None:
            raise Unsupported(f"{tower.where}: its config.json names no class known here; remove {own_keys.CONFIG}")
        out = _inside(out, whole, config, outer)
    out.tensors |= half.tensors
    for name, data in half.files.items():
        out.files.setdefault(name, data)
    _check_pair(out, tower, config)
    _check_width(out, tower)
    return out


def _inside(text: Checkpoint, tower: Tower, config: Mapping[str, Any], outer: Mapping[str, Any]) -> Checkpoint:
    """A text model's folder as the one inside a multimodal class: its names, and its settings in `text_config`."""
    named = {name: _begun(name, tower.text) for name in text.tensors}
    tensors = {named[name]: tensor.renamed(named[name]) for name, tensor in text.tensors.items()}
    config = dict(config)
    outer = tower.agree(dict(outer), config)
    made = {k: v for k, v in outer.items() if k not in ("architectures", "model_type")}
    whole: dict[str, Any] = {"architectures": outer["architectures"], "model_type": outer["model_type"]}
    settings = {**made.pop(tower.inner, {}), **{k: v for k, v in config.items() if k != "architectures"}}
    if isinstance(thinker := made.get("thinker_config"), Mapping):
        whole |= made | {"thinker_config": {**thinker, "text_config": settings}}
    elif tower.flat:
        whole = {**settings, **whole, **made}
    else:
        whole |= {tower.inner: settings, "tie_word_embeddings": config.get("tie_word_embeddings", False), **made}
    data = json.dumps(whole, indent=2).encode() + b"\n"
    return text.but(tensors=tensors, files={**text.files, "config.json": data})


_SIZES = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "patch_size")


def _check_pair(folder: Checkpoint, tower: Checkpoint, text: Mapping[str, Any]) -> None:
    """`BadFile` where the tower is none of the class that the folder's config.json names, or one of other sizes.

    text: the text model's own configuration.
    """
    config = read_config(folder)
    whole, inner, outer = towers.by_config(config), archs.by_hf(text), archs.by_hf(config)
    named = towers.projectors(tower.metadata)
    ours = {whole.projector, *whole.projectors} if whole is not None else set()
    another = f"{tower.where}: is another model's mmproj file"
    if not ours & set(named):
        kind = next(iter(config.get("architectures") or ()), "the text model's class")
        raise BadFile(f"{another}: its projector ({', '.join(named):.60}) is none of {cut(kind)}; give the model's own")
    if inner is not None and outer is not None and inner.gguf != outer.gguf:
        raise BadFile(
            f"{another}: beside it belongs a model of {outer.gguf}, not of {inner.gguf}; give the model's own"
        )
    for side in whole.sides if whole is not None else ():
        if side.beside or not side.is_said(tower.metadata) or not side.is_in(config, folder):
            continue
        said = side.table.metadata(side.settings(config, folder), f"{folder.where}: config.json")
        for name in _SIZES:
            key = f"{side.table.gguf}.{name}"
            if key in said and key in tower.metadata and not np.array_equal(said[key], tower.metadata[key]):
                raise BadFile(
                    f"{another}: its {key} is {tower.metadata[key]!s:.40}, by config.json {said[key]!s:.40}; give the "
                    "model's own"
                )


def _check_width(folder: Checkpoint, tower: Checkpoint) -> None:
    """`BadFile` where a tower gives vectors of another width than the text model takes."""
    config = read_config(folder)
    wide = {**config, **text_config(config)}.get("hidden_size")
    for kind in ("vision", "audio"):
        said = tower.metadata.get(f"clip.{kind}.projection_dim")
        if said is not None and isinstance(wide, int) and int(said) != wide:
            raise BadFile(
                f"{tower.where}: gives vectors of {int(said)} numbers, the text model takes {wide}; it is another "
                "model's mmproj file"
            )
