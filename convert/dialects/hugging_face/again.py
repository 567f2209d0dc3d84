"""What a GGUF made of a folder would say, so that kept files say what was edited of the GGUF since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert import cards, vocab
from llmconv.convert.dialects.hugging_face import dense, disguise, edited, pooling, target
from llmconv.convert.dialects.hugging_face.present import as_present, never_said
from llmconv.convert.dialects.hugging_face.words import words_of
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import normalized, read_config
from llmconv.convert.tables.rows import Told, prefix_of
from llmconv.convert.tables.scalars import scalar_keys
from llmconv.errors import LlmconvError
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["as_edited", "general_again"]


_GIVEN = ("tokenizer.chat_template", *(f"tokenizer.ggml.{name}" for name in ("bos", "eos", "pad", "unk", "add_")))
"""How the tokenizer's keys begin that people take out."""


def as_edited(arch: Architecture, metadata: Mapping[str, Any], out: Checkpoint, notes: list[str]) -> dict[str, Any]:
    """Make kept files say what was edited in the GGUF since; the keys that a GGUF made of the folder would have."""

    pre = metadata.get("tokenizer.ggml.pre")  # a name that is often given by hand, for files that don't show it
    pre = pre if isinstance(pre, str) else None

    def reread(files: Mapping[str, Any]) -> dict[str, Any]:
        return _again(arch, out.but(files={**out.files, **files}), pre)

    plainly = again = _again(arch, out, notes=notes)
    if again.get("tokenizer.ggml.pre", "") != pre:
        again = reread({})
    before = dict(out.files)
    notes += edited.otherwise_split(metadata, plainly)
    if own_keys.CONFIG in metadata:
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
    if out.files != before:
        plainly = _again(arch, out)
    if own_keys.CONFIG in metadata:
        still = {key: value for key, value in plainly.items() if key in again}
        notes += edited.gone(metadata, still, (f"{arch.gguf}.", *_GIVEN))
    return plainly


def general_again(metadata: Mapping[str, Any], out: Checkpoint, parameters: int, notes: list[str]) -> Mapping[str, Any]:
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


def _again(
    arch: Architecture, folder: Checkpoint, pre: str | None = None, notes: list[str] | None = None
) -> dict[str, Any]:
    """The keys that a GGUF made of this folder would have, without those of the file and of our own."""
    config = read_config(folder)
    try:
        keys = arch.metadata(as_present(target.with_target(normalized(config), folder), folder.tensors), "")
        keys |= pooling.keys_of(folder, arch.gguf)[0] | dense.taken(folder, arch).keys
        keys |= _scalars(arch, folder, config, keys)
        found = words_of(arch, folder, config, pre)
        keys |= never_said(folder)
        return keys if found is None else keys | vocab.to_gguf(found, files=False)
    except LlmconvError as error:
        if notes is not None:
            notes.append(f"no GGUF can be made of this folder again: {error}")
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
