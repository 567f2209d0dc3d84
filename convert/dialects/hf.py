"""Hugging Face's dialect: a model folder's tensors and config.json <-> GGUF's, by the tables of `convert.archs`.

Both directions are lazy and exact.  What GGUF has no place for goes into keys of our own (see `carried`); a GGUF
from somebody else has none of them, and its config.json is rebuilt from its keys.  An architecture without a table
keeps its own names (`convert.dialects.own_names`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llmconv.convert import archs, vocab
from llmconv.convert.dialects import carried, foreign_keys
from llmconv.convert.scaled.unpack import refuse_parts, unpack
from llmconv.convert.tables.architecture import Architecture, Slot
from llmconv.convert.tables.config import normalized, usable
from llmconv.convert.tables.matching import (
    check_shapes,
    check_types,
    find,
    first_missing,
    left_out,
    more,
    prefix_of,
    shown,
)
from llmconv.convert.tables.ops import PackMxfp4, Shift
from llmconv.errors import BadFile, LlmconvError, Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import plain

__all__ = ["from_gguf", "read_config", "to_gguf"]

# general.file_type by the type of most weights (llama.cpp's llama_ftype).
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "MXFP4": 38}


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json of a model folder, parsed; {} when there is none."""
    data = checkpoint.file("config.json")
    if data is None:
        return {}
    try:
        config = json.loads(data, object_pairs_hook=_once)
        if isinstance(config, dict):
            return config
    except KeyError as error:
        raise BadFile(f"{checkpoint.where}: config.json has the key {error.args[0]!r} twice; remove one") from None
    except (ValueError, RecursionError):
        pass
    raise BadFile(f"{checkpoint.where}: config.json is not a JSON object; repair or replace it")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as an object; `KeyError` for a key that is there twice, of which one would be believed."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise KeyError(Counter(k for k, _ in pairs).most_common(1)[0][0])
    return found


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
    arch = archs.by_hf(config) if config else None
    if arch is None or layout == "plain":
        from llmconv.convert.dialects import own_names

        out = own_names.to_gguf(checkpoint, strict=strict, pre=pre, **options)
        if config:
            classes = config.get("architectures")
            kind = classes[0] if isinstance(classes, list) and classes else config.get("model_type")
            why = "as asked" if arch else f"{kind or 'the model'} is no architecture known here"
            note = (
                f"{why}: the tensors keep their own names; the model can be quantized and converted back, but not run "
                "here or in llama.cpp"
            )
            out.notes.append(note)
        return out
    where, flat = checkpoint.where, normalized(config)
    notes: list[str] = []
    metadata = arch.metadata(flat, f"{where}: config.json")
    dims = arch.dims_of(metadata)
    dims["n_vocab"] = dims["n_vocab"] or _number(flat.get("vocab_size"))
    prefix = prefix_of(arch, dims, checkpoint.tensors)
    forms: dict[str, int] = {}
    exact: dict[str, Any] = {}
    used: set[str] = set()
    out = checkpoint.derived("gguf")
    for made in arch.made:
        with usable(flat, f"{where}: config.json"):
            values = made.make(flat, arch.layer(dims, 0))
        if values is not None:
            out.add(Tensor.from_array(made.gguf, np.ascontiguousarray(values, np.float32)))
    for slot in arch.slots(dims):
        found = find(slot, prefix, checkpoint.tensors)
        if found is None:
            if slot.row.optional is False:
                raise BadFile(
                    f"{where}: tensor {first_missing(slot, prefix, checkpoint.tensors)!r} is missing; "
                    f"a {config.get('model_type') or arch.gguf} model of this config.json needs it; "
                    "--layout plain converts any tensors under their own names"
                )
            continue
        form, names = found
        if form:
            forms[slot.row.gguf[0]] = form
        used.update(names)
        parts = tuple(checkpoint.tensors[name] for name in names)
        check_shapes(where, slot, form, parts)
        check_types(where, slot, form, parts)
        for op in slot.row.forms[form].ops:
            if isinstance(op, Shift):
                for name, part in zip(names, parts, strict=True):
                    values = carried.exact_values(op, part)
                    if values is not None:
                        exact[carried.EXACT + name] = values
            parts = op.apply(parts, slot.dims)
        for name, part in zip(slot.gguf, parts, strict=True):
            out.add(part.renamed(name).astype(carried.gguf_type(name, part)))
    extra = [name for name in checkpoint.tensors if name not in used]
    without_place = {n: checkpoint.tensors[n] for n in extra if any(re.fullmatch(pattern, n) for pattern in arch.kept)}
    extra = [name for name in extra if name not in without_place]
    parts_of = (n for n in extra if not any(re.fullmatch(pattern, n) for pattern in arch.dropped))
    refuse_parts(where, parts_of, used, head=any("output.weight" in row.gguf for row in arch.rows))
    notes += [*left_out(where, arch, extra, strict), *_beyond_gguf(arch, flat)]
    out.metadata = _general(checkpoint, out) | metadata
    own: dict[str, Any] = {
        carried.DTYPES: carried.keep_dtypes({n: t for n, t in checkpoint.tensors.items() if n in used})
    }
    if prefix != arch.prefixes[0]:
        own[carried.PREFIX] = prefix
    if forms:
        own[carried.FORMS] = json.dumps(forms, separators=(",", ":"))
    out.metadata |= _vocabulary(checkpoint, config, dims, pre, notes, where)
    out.metadata |= own | exact
    foreign_keys.put_back(out.metadata, checkpoint.metadata.get(foreign_keys.KEYS), where)
    _check_vocabulary(out.metadata, dims, notes, where)
    carried.keep_metadata(out.metadata, checkpoint.metadata)
    carried.keep_tensors(out.metadata, without_place)
    notes += [f"{name} is not kept (too big or not text)" for name in carried.keep_files(out.metadata, checkpoint)]
    out.notes += notes
    return out


def from_gguf(checkpoint: Checkpoint, *, strict: bool = True, **options: Any) -> Checkpoint:
    """GGUF -> a Hugging Face model folder's tensors and files, lazily; the inverse of `to_gguf`.

    Quantized tensors are decoded to the type that the model had (a note says what that rounds), or to F32.
    """
    metadata, where = checkpoint.metadata, checkpoint.where
    name = metadata.get("general.architecture")
    arch = archs.by_gguf(name) if isinstance(name, str) else None
    if arch is None or metadata.get("llmconv.layout") == "plain":
        from llmconv.convert.dialects import own_names

        return own_names.from_gguf(checkpoint, strict=strict, **options)
    dims = arch.dims_of(metadata)
    embeddings = checkpoint.tensors.get("token_embd.weight")
    if embeddings is not None and embeddings.shape:
        dims["n_vocab"] = embeddings.shape[0]
    dtypes = carried.kept_dtypes(carried.kept_json(metadata, carried.DTYPES, where), where)
    forms = carried.kept_json(metadata, carried.FORMS, where)
    prefix = metadata.get(carried.PREFIX, arch.prefixes[0])
    if not isinstance(prefix, str) or prefix not in arch.prefixes:
        raise BadFile(
            f"{where}: {carried.PREFIX} is {prefix!r:.60}, expected one of {', '.join(map(repr, arch.prefixes))}"
        )
    used: set[str] = {made.gguf for made in arch.made}
    rounded: Counter[tuple[str, str]] = Counter()
    out = checkpoint.derived("hf")
    out.metadata = carried.kept_metadata(metadata, where)
    present: set[str] = set()
    for slot in arch.slots(dims):
        missing = [n for n in slot.gguf if n not in checkpoint.tensors]
        if missing:
            if slot.row.optional is False or len(missing) < len(slot.gguf):
                raise BadFile(f"{where}: tensor {missing[0]!r} is missing; a {arch.gguf} model of these keys needs it")
            continue
        used.update(slot.gguf)
        present.update(slot.row.gguf)
        parts = tuple(checkpoint.tensors[n] for n in slot.gguf)
        for part, shape in zip(parts, slot.shapes, strict=True):
            if part.shape != shape:
                raise BadFile(f"{where}: tensor {part.name!r} has shape {shown(part.shape)}, expected {shown(shape)}")
        form = _form(slot, forms, checkpoint.tensors, where)
        for tensor in _undone(slot, form, prefix, parts, dtypes, metadata):
            if not parts[0].type.is_plain() and tensor.type not in (plain.F32, parts[0].type):
                rounded[parts[0].type.name, tensor.type.name] += 1
            out.add(tensor)
    for tensor in carried.kept_tensors(metadata, where):
        out.add(tensor)
    notes = [f"{n} tensors decoded from {a} are rounded to {b}" for (a, b), n in rounded.items()]
    extra = [n for n in checkpoint.tensors if n not in used]
    refuse_parts(where, extra, used)
    if extra and strict:
        raise BadFile(
            f"{where}: tensor {extra[0]!r}{more(extra)} is none that a {arch.gguf} model has; "
            "--no-strict leaves such tensors out"
        )
    notes += [f"left out, unknown to {arch.gguf}: {n}" for n in extra]
    out.files = dict(_files(arch, checkpoint, dims, present, out, notes))
    lost, said = foreign_keys.keep(metadata, _again(arch, out), arch.gguf)
    out.metadata |= lost
    out.notes += [*notes, *said]
    return out


def _again(arch: Architecture, folder: Checkpoint) -> dict[str, Any]:
    """The keys that a GGUF made of this folder would have, without those of the file and of our own."""
    config = read_config(folder)
    try:
        keys = arch.metadata(normalized(config), "")
        found = vocab.from_files(folder.files, config)
        return keys if found is None else keys | found.keys()
    except LlmconvError:
        return {}  # then all that the GGUF says is kept


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _beyond_gguf(arch: Architecture, config: Mapping[str, Any]) -> list[str]:
    """What a model does that GGUF has no key for, so that only this program, which keeps config.json, will do it."""
    notes = []
    if (config.get("rope") or {}).get("rope_type") == "dynamic":
        notes.append("beyond its context its rotary positions are scaled dynamically, which llama.cpp will not do")
    vocab_size = arch.decoder.get("head_norm_vocab")
    if vocab_size is not None and (config.get("vocab_size") == vocab_size or "z_loss_weight" in config):
        notes.append("Baichuan 2 scales the rows of its head to length 1, which llama.cpp will not do")
    return notes


def _general(source: Checkpoint, out: Checkpoint) -> dict[str, Any]:
    """The general keys: name, type and what most weights are stored in."""
    sizes: Counter[str] = Counter()
    for tensor in out.tensors.values():
        sizes[tensor.type.name] += tensor.nbytes if len(tensor.shape) > 1 else 0
    main = "MXFP4" if "MXFP4" in sizes else sizes.most_common(1)[0][0] if sizes else "F32"
    total = out.n_elements
    experts = [t for t in out.tensors.values() if "_exps." in t.name and len(t.shape) == 3]
    count = experts[0].shape[0] if experts else 0
    if count:  # "8x7B": as large as the model with one of its experts
        total -= sum(t.n_elements for t in experts) * (count - 1) // count
    general: dict[str, Any] = {"general.architecture": "", "general.type": "model"}
    if source.source is not None:
        general["general.name"] = (
            source.source.resolve().stem if source.source.is_file() else source.source.resolve().name
        )
    general["general.size_label"] = (f"{count}x" if count else "") + _rounded(total)
    general["general.file_type"] = np.uint32(_FILE_TYPES.get(main, 0))
    general["general.quantization_version"] = np.uint32(2)
    return general


def _rounded(count: int) -> str:
    """A parameter count of at least two digits, as names of models give it: 1.1B, 8.0B, 70B, 260K."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= scale or letter == "K":
            value = count / scale
            return f"{value:.{max(2 - len(str(round(value)).lstrip('0')), 0)}f}{letter}"
    raise AssertionError


def _vocabulary(
    checkpoint: Checkpoint,
    config: dict[str, Any],
    dims: Mapping[str, Any],
    pre: str | None,
    notes: list[str],
    where: str,
) -> dict[str, Any]:
    flat = {**config, **{k: v for k, v in normalized(config).items() if k == "vocab_size"}}
    try:
        found = vocab.from_files(checkpoint.files, flat, pre=pre)
    except BadFile as error:
        raise BadFile(f"{where}: {error}") from None
    if found is None:
        return {}
    notes += [*found.notes, *found.twice()]
    keys: dict[str, Any] = found.to_gguf()
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
    repacked = tensors[slot.gguf[0]].type.name == "MXFP4"
    number = 0
    for i, form in enumerate(slot.row.forms):
        if form.beside.replace("{i}", str(slot.dims["i"])) in tensors:
            number = i
        elif number == i and not repacked and any(isinstance(op, PackMxfp4) for op in form.ops):
            number = min(i + 1, len(slot.row.forms) - 1)
    number = forms.get(slot.row.gguf[0], number)
    if not isinstance(number, int) or not 0 <= number < len(slot.row.forms):
        raise BadFile(
            f"{where}: {carried.FORMS} says {number!r} for {slot.row.gguf[0]!r}; remove the key to use the usual"
        )
    return number


def _undone(
    slot: Slot,
    form: int,
    prefix: str,
    parts: tuple[Tensor, ...],
    dtypes: tuple[BlockClass | None, dict[str, BlockClass]],
    metadata: Mapping[str, Any],
) -> Iterator[Tensor]:
    """One row's GGUF tensors -> its Hugging Face tensors, in the types that they had."""
    names = slot.hf(form, prefix)
    ops = slot.row.forms[form].ops
    if not any(isinstance(op, PackMxfp4) for op in ops):
        parts = tuple(p if p.type.is_plain() else p.astype(plain.F32) for p in parts)
    shifted: Tensor | None = None
    for op in reversed(ops):
        if isinstance(op, Shift):
            shifted = parts[0]
        parts = op.undo(parts, slot.dims)
    for name, part in zip(names, parts, strict=True):
        wanted = carried.dtype_of(name, *dtypes)
        if wanted is not None and wanted.is_float and part.type.is_float and wanted.can_encode():
            part = part.astype(wanted)
        shift = next((op for op in ops if isinstance(op, Shift)), None)
        if shift is not None and shifted is not None and carried.EXACT + name in metadata:
            part = carried.restore_exactly(part, shift, shifted, metadata[carried.EXACT + name])
        yield part.renamed(name)


def _files(
    arch: Architecture,
    checkpoint: Checkpoint,
    dims: Mapping[str, Any],
    present: set[str],
    out: Checkpoint,
    notes: list[str],
) -> Iterator[tuple[str, bytes]]:
    """The model folder's files: the vocabulary's, then those that were kept, and a config.json."""
    files = carried.kept_files(checkpoint.metadata)
    found = vocab.from_gguf(checkpoint.metadata)
    if found is not None:
        try:
            yield from found.to_files().items()
            notes += found.twice()
        except Unsupported as error:
            notes.append(f"no tokenizer files are written, the vocabulary's keys are kept as they are: {error}")
    if "config.json" not in files:
        files["config.json"] = _rebuilt(arch, checkpoint, dims, present, out)
    yield from files.items()


def _rebuilt(
    arch: Architecture, checkpoint: Checkpoint, dims: Mapping[str, Any], present: set[str], out: Checkpoint
) -> bytes:
    """A config.json for a GGUF that was not made from one by us."""
    config = arch.config(checkpoint.metadata)
    config["vocab_size"] = dims["n_vocab"]
    config["tie_word_embeddings"] = "output.weight" not in checkpoint.tensors
    for table_row in arch.rows:
        flag = table_row.optional
        if isinstance(flag, str) and not flag.endswith("tie_word_embeddings"):
            there = table_row.gguf[0] in present
            config[flag.lstrip("!").partition("=")[0]] = not there if flag.startswith("!") else there
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
        config[f"{name}_token_id"] = None if value is None else int(value)
    return json.dumps(config, indent=2).encode() + b"\n"
