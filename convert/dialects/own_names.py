"""Nobody's dialect: a lone safetensors file, or a model whose architecture has no table.  Names stay as they are.

A GGUF made so has `llmconv.layout` "plain" and everything else the model carried in keys of our own; a safetensors
made from somebody's GGUF has all of its keys, with their exact types, in its metadata.  Both come back whole.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from llmconv.convert import archs, vocab
from llmconv.convert.dialects import carried, comfy
from llmconv.convert.dialects.diffusers import single_file
from llmconv.convert.dialects.hugging_face import foreign_keys
from llmconv.convert.dialects.typed_keys import decode_keys, encode_keys
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.config import read_config
from llmconv.convert.vocab.model import same_value
from llmconv.errors import BadFile, LlmconvError, cut, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.safetensors_header import DTYPES
from llmconv.formats.tensor import BlockClass, Tensor, folded
from llmconv.quant import plain

__all__ = ["UNSAID", "from_gguf", "to_gguf"]

_OURS = {*foreign_keys.OF_THE_FILE, "general.name"}
"""General keys that `to_gguf` and quantizing set."""

# Types that GGUF does not have -> the narrowest of its types that holds all their values.
_HELD_BY: dict[BlockClass, BlockClass] = {
    plain.BOOL: plain.I8,
    plain.U8: plain.I16,
    plain.U16: plain.I32,
    plain.U32: plain.I64,
    plain.F8_E4M3: plain.BF16,
    plain.F8_E5M2: plain.BF16,
    plain.F8_E8M0: plain.BF16,
    plain.F8_E4M3FNUZ: plain.BF16,
    plain.F8_E5M2FNUZ: plain.BF16,
}
_HALVES = (plain.BF16, plain.F16)
"""What image models may have in F32 (`comfy`)."""


def to_gguf(checkpoint: Checkpoint, *, layout: str | None = None, **_: Any) -> Checkpoint:
    """Any tensors -> GGUF under their own names; those that diffusers has of an image model, unless `layout` is
    "plain", under the names of its single file."""
    checkpoint, renamed = single_file.as_single_file(checkpoint) if layout != "plain" else (checkpoint, {})
    where = checkpoint.where
    out = checkpoint.derived("gguf")
    image = comfy.find(checkpoint.tensors)
    prefix = "" if image is None else image.prefix
    shapes: dict[str, list[int]] = {}
    bits: dict[str, list[Any]] = {}
    for name, tensor in checkpoint.tensors.items():
        tensor, shape = tensor.renamed(name.removeprefix(prefix)), tensor.shape
        if image is not None and image.family is not None:
            kind, stored = comfy.stored_as(image.family, tensor.name, tensor)
            tensor = tensor.astype(kind).reshaped(stored)
        if not tensor.shape or folded(tensor) is not tensor or tensor.shape != shape or shape[:-1][:1] == (1,):
            shapes[name] = list(shape)
            tensor = folded(tensor) if tensor.shape else tensor.reshaped((1,))
        if tensor.type.ggml_id is not None:
            out.add(tensor)
        elif tensor.type in _HELD_BY:
            out.add(tensor.astype(_HELD_BY[tensor.type]))
        else:
            bits[name] = [tensor.type.name, list(tensor.shape)]
            out.add(_as_bits(tensor))
    text = checkpoint.metadata.get(own_keys.GGUF_METADATA)
    if text is not None:
        out.metadata = decode_keys(
            carried.kept_json({own_keys.GGUF_METADATA: text}, own_keys.GGUF_METADATA, where), where
        )
        return out
    arch = image.family.arch if image is not None and image.family is not None else _architecture(checkpoint)
    out.metadata = {"general.architecture": arch, "general.type": "model"}
    if checkpoint.source is not None:
        out.metadata["general.name"] = checkpoint.source.stem or checkpoint.source.name
    out.metadata |= {own_keys.LAYOUT: own_keys.PLAIN} | _vocabulary(checkpoint)
    out.metadata[own_keys.DTYPES] = carried.keep_dtypes({n: t for n, t in checkpoint.tensors.items() if n not in bits})
    for key, record in ((own_keys.SHAPES, shapes), (own_keys.BITS, bits)):
        if record:
            out.metadata[key] = json.dumps(record)
    if image is not None:
        out.notes += image.notes
        if image.family is not None:
            out.metadata |= comfy.shape_keys({name.removeprefix(prefix): shape for name, shape in shapes.items()})
        if prefix:
            out.metadata[own_keys.PREFIX] = prefix
    out.metadata |= renamed
    out.metadata[own_keys.SAFETENSORS_METADATA] = json.dumps(checkpoint.metadata, ensure_ascii=False)
    notes = carried.keep_files(out.metadata, checkpoint)
    if "adapter_config.json" in checkpoint.files:
        notes.append(
            "this is a PEFT adapter, not a model: --base MODEL makes a GGUF adapter of it, converting its base with "
            "--lora merges it in"
        )
    elif image is None and "config.json" not in checkpoint.files and checkpoint.format not in ("", "gguf"):
        notes.append(
            "there is no config.json: the tensors keep their own names; they can be quantized and converted back, but "
            "not run here or in llama.cpp"
        )
    out.notes += notes
    return out


def _as_bits(tensor: Tensor) -> Tensor:
    """The same bytes as whole numbers (U64 and C64 as I64, the types of less than a byte as I8)."""
    kind: BlockClass = plain.I64 if tensor.type.layout.itemsize == 8 else plain.I8
    shape = (*tensor.shape[:-1], tensor.row_bytes // kind.layout.itemsize)
    return dataclasses.replace(tensor, type=kind, shape=shape)


def _from_bits(tensor: Tensor, record: Any, where: str) -> Tensor:
    """The way back of `_as_bits`."""
    try:
        kind, shape = DTYPES[record[0]], tuple(record[1])
        made = dataclasses.replace(tensor, type=kind, shape=shape)
        if _as_bits(made).shape == tensor.shape and tensor.type is _as_bits(made).type:
            return made
    except (LlmconvError, LookupError, TypeError, ValueError):
        pass
    raise BadFile(
        f"{where}: {own_keys.BITS} does not describe tensor {tensor.name!r}; remove the key to keep its numbers"
    )


def _in_shape(tensor: Tensor, shape: Any, where: str) -> Tensor:
    """In the shape that it had where GGUF has none such; it keeps the number of its elements."""
    if isinstance(shape, list) and all(type(n) is int for n in shape) and math.prod(shape) == tensor.n_elements:
        return tensor.reshaped(tuple(shape))
    raise BadFile(f"{where}: {own_keys.SHAPES} does not describe tensor {tensor.name!r}; remove the key")


def _architecture(checkpoint: Checkpoint) -> str:
    kind = read_config(checkpoint).get("model_type")
    return kind if isinstance(kind, str) and re.fullmatch(r"[a-z0-9_-]{1,64}", kind) else "plain"


def _vocabulary(checkpoint: Checkpoint) -> dict[str, Any]:
    if not checkpoint.files:
        return {}
    try:
        found = vocab.from_files(checkpoint.files, read_config(checkpoint))
    except LlmconvError:
        return {}  # its files are kept whole all the same
    return vocab.to_gguf(found) if found is not None else {}


def from_gguf(checkpoint: Checkpoint, **_: Any) -> Checkpoint:
    """The way back; a GGUF that `to_gguf` did not make keeps its keys in the metadata."""
    metadata, where = checkpoint.metadata, checkpoint.where
    out = checkpoint.derived("plain")
    if own_keys.SAFETENSORS_METADATA not in metadata:
        out.tensors = dict(checkpoint.tensors)
        out.metadata = {"format": "pt", own_keys.GGUF_METADATA: json.dumps(encode_keys(metadata), ensure_ascii=False)}
        out.notes += _without_a_table(metadata.get("general.architecture"))
        return out
    texts = carried.kept_json(metadata, own_keys.SAFETENSORS_METADATA, where)
    if not all(isinstance(v, str) for v in texts.values()):
        raise BadFile(f"{where}: {own_keys.SAFETENSORS_METADATA} is no map of texts; remove the key")
    out.metadata = texts
    default, exceptions = carried.kept_dtypes(carried.kept_json(metadata, own_keys.DTYPES, where), where)
    shapes, bits = (carried.kept_json(metadata, key, where) for key in (own_keys.SHAPES, own_keys.BITS))
    rounded: Counter[tuple[str, str]] = Counter()
    prefix = metadata.get(own_keys.PREFIX, "")
    prefix = prefix if isinstance(prefix, str) else ""
    for tensor in checkpoint.tensors.values():
        name = prefix + tensor.name
        tensor = tensor.renamed(name)
        if name in bits:
            tensor = _from_bits(tensor, bits[name], where)
        wanted = None if name in bits else carried.dtype_of(name, default, exceptions)
        if wanted is not None and wanted.is_float and wanted.is_plain() and not tensor.type.is_plain():
            if wanted not in (plain.F32, plain.F64):
                rounded[tensor.type.name, wanted.name] += 1
            tensor = tensor.astype(wanted)  # quantized since: what reads such a model knows no block types
        elif wanted is not None and tensor.type is (plain.F32 if wanted in _HALVES else _HELD_BY.get(wanted)):
            tensor = tensor.astype(wanted)  # stored in a type that holds all its values
        if name in shapes:
            tensor = _in_shape(tensor, shapes[name], where)
        out.add(tensor)
    out = single_file.as_folder(out, metadata)
    notes = [f"{n} tensors decoded from {a} are rounded to {b}" for (a, b), n in rounded.items()]
    out.notes += notes
    out.files = {**carried.kept_files(metadata), **_tokenizer(checkpoint, out.notes)}
    out.notes += carried.about_kept_files(metadata, out.files)
    out.notes += _unsaid(metadata, out)
    if "config.json" in out.files:
        out.dialect = "hf"
    return out


def _without_a_table(name: Any) -> list[str]:
    """The note of somebody's GGUF whose tensors keep their own names, because nobody knows what they are."""
    if isinstance(name, str) and archs.by_gguf(name) is not None:
        return []
    why = f"{cut(name)} is no architecture known here" if name is not None else "the file names no architecture"
    return [f"{why}: the tensors keep their own names, and no config.json is written"]


UNSAID = "the files do not say what"
"""How the note about edited keys begins."""


def _unsaid(metadata: Mapping[str, Any], out: Checkpoint) -> list[str]:
    """A note about keys that were edited since the GGUF was made: nothing that it keeps says them."""
    again = _vocabulary(out)
    spoken = [k for k in {**metadata, **again} if k.startswith("tokenizer.")]
    spoken += [k for k in metadata if k.startswith("general.") and k not in _OURS]
    names = [k for k in spoken if not same_value(metadata.get(k), again.get(k))]
    return [f"{UNSAID} {cut(names[0])}{more(names)} of the GGUF says; edit them too"] if names else []


def _tokenizer(checkpoint: Checkpoint, notes: list[str]) -> dict[str, bytes]:
    """The tokenizer files that the vocabulary gives back (what was kept as a file stays as it was)."""
    try:
        found = vocab.from_gguf(checkpoint.metadata)
        if found is None:
            return {}
        files = vocab.to_files(found)
    except LlmconvError as error:
        notes.append(f"no tokenizer files are written, the vocabulary's keys are kept as they are: {error}")
        return {}
    notes += found.notes
    return files
