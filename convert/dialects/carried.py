"""What GGUF has no place for, kept in keys of our own, so that a Hugging Face model comes back as it was."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np

from llmconv.convert import archs
from llmconv.convert.tables import own_keys
from llmconv.errors import BadFile, LlmconvError, cut, more
from llmconv.formats import side_files
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import by_name

__all__ = [
    "with_kept",
    "about_kept_files",
    "keep_dtypes",
    "dtype_of",
    "keep_files",
    "keep_metadata",
    "keep_tensors",
    "kept_dtypes",
    "kept_files",
    "kept_json",
    "kept_metadata",
    "kept_tensors",
]

FILE_BYTES = 32 << 20
"""A text file above this size is not kept (a vocabulary keeps its own files)."""

_LAYER = re.compile(r"\.(\d+)\.")
_NAMES = {"config.json": own_keys.CONFIG, "generation_config.json": own_keys.GENERATION_CONFIG}
_NOT_KEPT = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = {"tokenizer.json": "tokenizer.huggingface.json"}  # where the vocabulary may have put it


def keep_files(metadata: dict[str, Any], checkpoint: Checkpoint, without: Set[str] = frozenset()) -> list[str]:
    """Put the folder's small text files into the metadata; notes of those that were left out.

    without: files that the GGUF has otherwise.
    """
    notes: list[str] = []
    for name in checkpoint.files:
        keys = (own_keys.FILE + name, own_keys.CUT_FILE + name, _WHOLE.get(name))
        if name in _NOT_KEPT or name in without or any(key in metadata for key in keys):
            continue  # the vocabulary keeps its own
        data = checkpoint.file(name) or b""
        try:
            if len(data) > FILE_BYTES:
                raise ValueError
            metadata[_NAMES.get(name, own_keys.FILE + name)] = data.decode("utf-8")
        except ValueError:
            if "/" in name and len(data) <= FILE_BYTES:  # a module of the model: layers behind it, or their vocabulary
                metadata[own_keys.FILE + name] = np.frombuffer(data, np.uint8)
            else:
                notes.append(f"{name} is not kept (too big or not text)")
    return notes


def kept_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """The files that `keep_files` put there.  Only plain names: nothing that would lead out of a folder."""
    out = {}
    for name, key in _NAMES.items():
        if isinstance(text := metadata.get(key), str):
            out[name] = text.encode()
    for key, data in metadata.items():
        name = key.removeprefix(own_keys.FILE)
        if not key.startswith(own_keys.FILE) or not side_files.is_name(name):
            continue
        if isinstance(data, str):
            out[name] = data.encode()
        elif "/" in name and isinstance(data, np.ndarray) and data.dtype == np.uint8:
            out[name] = data.tobytes()
    return out


def about_kept_files(metadata: Mapping[str, Any], files: Iterable[str]) -> list[str]:
    """Notes about the kept files: program text among them, and names under which nothing is written."""
    names = (key.removeprefix(own_keys.FILE) for key in metadata if key.startswith(own_keys.FILE))
    left = [name for name in names if not side_files.is_name(name)]
    notes = [f"a kept file is left out, its name is none for a file: {cut(left[0])}{more(left)}"] if left else []
    return notes + side_files.programs(files)


def kept_json(metadata: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    """The JSON object under one of our keys, {} when there is none."""
    text = metadata.get(key)
    if text is None:
        return {}
    try:
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    except (TypeError, ValueError, RecursionError):
        pass
    raise BadFile(f"{source}: {key} is no JSON object; remove the key to convert by the model's other keys")


def keep_dtypes(tensors: Mapping[str, Tensor]) -> str:
    """The types of a model's tensors in few words: the most common, and the exceptions by name, `{}` for any layer.

    Block types, which no folder stores, count as the F32 that they decode to.
    """
    types = {name: tensor.type.name if tensor.type.is_plain() else "F32" for name, tensor in tensors.items()}
    sizes: Counter[str] = Counter()
    patterns: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        sizes[types[name]] += tensor.nbytes
        patterns.setdefault(_LAYER.sub(".{}.", name), set()).add(types[name])
    default = sizes.most_common(1)[0][0] if sizes else "F32"
    out: dict[str, Any] = {"default": default}
    for name, kind in types.items():
        if kind != default:
            pattern = _LAYER.sub(".{}.", name)
            entry = out.setdefault(kind, [])
            wanted = pattern if len(patterns[pattern]) == 1 else name
            if wanted not in entry[-50:]:
                entry.append(wanted)
    for kind, names in out.items():
        if kind != "default":
            out[kind] = list(dict.fromkeys(names))
    return json.dumps(out, separators=(",", ":"))


def kept_dtypes(record: Mapping[str, Any], source: str) -> tuple[BlockClass | None, dict[str, BlockClass]]:
    """The way back of `keep_dtypes`: the default, and type by name or pattern."""
    try:
        default = by_name(record["default"]) if "default" in record else None
        return default, {name: by_name(kind) for kind, names in record.items() if kind != "default" for name in names}
    except (LlmconvError, TypeError, AttributeError):
        raise BadFile(
            f"{source}: {own_keys.DTYPES} names unknown types; remove the key to keep the stored ones"
        ) from None


def dtype_of(name: str, default: BlockClass | None, exceptions: Mapping[str, BlockClass]) -> BlockClass | None:
    """The type that a tensor had, None when unknown."""
    return exceptions.get(name) or exceptions.get(_LAYER.sub(".{}.", name)) or default


_USUAL = {"format": "pt"}
"""What transformers writes into the metadata of its weights."""


def keep_metadata(metadata: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Put the safetensors metadata of the folder into the GGUF's, where it says more than usual."""
    texts = {k: v for k, v in own.items() if isinstance(v, str) and not k.startswith(own_keys.OWN)}
    if texts and texts != _USUAL:
        metadata[own_keys.WEIGHTS_METADATA] = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))


def kept_metadata(metadata: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The way back of `keep_metadata`."""
    texts = kept_json(metadata, own_keys.WEIGHTS_METADATA, source)
    if not all(isinstance(v, str) for v in texts.values()):
        raise BadFile(f"{source}: {own_keys.WEIGHTS_METADATA} is no map of texts; remove the key")
    return texts or dict(_USUAL)


def keep_tensors(metadata: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put whole (small) tensors into the metadata: a list of names, types and shapes, and their bytes."""
    if not tensors:
        return
    listing = {name: [t.type.name, list(t.shape)] for name, t in tensors.items()}
    metadata[own_keys.TENSORS] = json.dumps(listing, separators=(",", ":"))
    for name, tensor in tensors.items():
        metadata[own_keys.TENSOR + name] = np.ascontiguousarray(tensor.blocks()).reshape(-1)


def kept_tensors(metadata: Mapping[str, Any], source: str) -> Iterator[Tensor]:
    """The way back of `keep_tensors`."""
    for name, entry in kept_json(metadata, own_keys.TENSORS, source).items():
        data = metadata.get(own_keys.TENSOR + name)
        try:
            kind, shape = by_name(entry[0]), tuple(int(n) for n in entry[1])
            assert kind.dtype is not None and isinstance(data, np.ndarray) and data.dtype == np.uint8
            array = data.view(kind.dtype).reshape(shape)
        except (LlmconvError, AssertionError, TypeError, ValueError, IndexError, KeyError):
            raise BadFile(
                f"{source}: {own_keys.TENSORS} does not describe {own_keys.TENSOR}{name}; remove both keys"
            ) from None
        yield Tensor.from_array(name, array)


def with_kept(checkpoint: Checkpoint) -> Checkpoint:
    """A GGUF with those of its kept tensors that are computed with among its own (`Architecture.computed`)."""
    arch = archs.by_gguf(str(checkpoint.metadata.get("general.architecture")))
    if arch is None or not arch.computed or own_keys.TENSORS not in checkpoint.metadata:
        return checkpoint
    out = checkpoint.but(tensors=dict(checkpoint.tensors))
    for tensor in kept_tensors(checkpoint.metadata, checkpoint.where):
        for pattern, name in arch.computed.items():
            if match := re.fullmatch(pattern, tensor.name):
                out.add(tensor.renamed(name.format(match[1])))
    return out
