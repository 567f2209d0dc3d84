"""A PEFT adapter as a GGUF of its own, and back: llama.cpp's `--lora`, as its `convert_lora_to_gguf` writes it.

A weight's change B A has the weight's names and order of rows: what the base's table does to the rows of W is done to
those of B, experts are stacked on both sides, and A (r, in) is the same for all that B is split into.  For the
embedding A lies turned.  llama.cpp multiplies by alpha / r, the r of each tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmconv import formats
from llmconv.convert import archs, cards
from llmconv.convert.dialects import carried
from llmconv.convert.dialects.typed_keys import decode_keys, encode_keys
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import normalized, read_config
from llmconv.convert.tables.ops import Inverse, Op, Parts, Split, Stack, SwapRows, Transpose
from llmconv.convert.tables.rows import Slot
from llmconv.convert.writing.peft import PREFIX, check_config, parted, scale_of
from llmconv.errors import BadFile, Unsupported, UsageError, WrongShape, cut, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.quant.filetypes import QUANTIZATION_VERSION

__all__ = ["between", "check_model", "from_gguf", "is_adapter", "keys_of_base", "to_gguf"]

CONFIG = "adapter_config.json"
ALPHA = "adapter.lora.alpha"
A, B = ".lora_a", ".lora_b"


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Whether it is a PEFT adapter's folder, or a GGUF made of one."""
    if checkpoint.dialect == "gguf":
        return checkpoint.metadata.get("general.type") == "adapter"
    return CONFIG in checkpoint.files and "config.json" not in checkpoint.files


def check_model(checkpoint: Checkpoint) -> None:
    """`Unsupported` for an adapter where a model is expected."""
    if is_adapter(checkpoint):
        raise Unsupported(f"{checkpoint.where}: is an adapter, no model; use its base, converted with --lora ADAPTER")


def keys_of_base(base: Path) -> dict[str, Any]:
    """The keys of a GGUF of the base model: of a GGUF, or of a folder of which config.json is enough."""
    config = base / "config.json"
    if not config.is_file():
        opened = formats.open(base)
        if opened.dialect != "gguf":
            raise BadFile(f"{opened.where}: is no base of an adapter; give its model folder or a GGUF of it")
        return dict(opened.metadata)
    settings = read_config(Checkpoint(files={"config.json": config}, source=base))
    flat, arch = normalized(settings), archs.by_hf(settings)
    if arch is None:
        raise Unsupported(f"{base}: config.json names no architecture known here, so its adapters can't be converted")
    return arch.metadata(flat, f"{base}: config.json") | {"vocab_size": np.uint32(flat.get("vocab_size") or 0)}


def between(checkpoint: Checkpoint, format: str, base: Path | None) -> Checkpoint:
    """An adapter on its way into a format: a folder's as a GGUF of its base's names, a GGUF's as a folder's.

    Anything else stays as it is, and so does a folder of which nothing says what its base is.  `UsageError` for a base
    that a model is given.
    """
    if not is_adapter(checkpoint):
        if base is not None:
            raise UsageError(f"{checkpoint.where}: is no adapter, so it has no base; leave --base out")
        return checkpoint
    if format == "gguf" and checkpoint.dialect != "gguf":
        base = base or _stated_base(checkpoint)
        return checkpoint if base is None else to_gguf(checkpoint, keys_of_base(base))
    if format == "safetensors" and checkpoint.dialect == "gguf":
        return from_gguf(checkpoint, None if base is None else keys_of_base(base))
    return checkpoint


def _stated_base(adapter: Checkpoint) -> Path | None:
    """The folder that adapter_config.json names, where it is one on this machine."""
    try:
        path = Path(json.loads(adapter.file(CONFIG) or b"")["base_model_name_or_path"])
        return path if (path / "config.json").is_file() else None
    except (ValueError, LookupError, TypeError, OSError, RecursionError):
        return None


def to_gguf(adapter: Checkpoint, base: Mapping[str, Any]) -> Checkpoint:
    """An adapter's folder -> a GGUF; base: the keys of the model that it was trained on (see `keys_of_base`).

    `BadFile` where it does not fit the base, `Unsupported` for what the GGUF has no place for: DoRA, tensors trained
    whole, products scaled differently, one of several layers that are one tensor in a GGUF.
    """
    where, table = adapter.where, _Table(base)
    try:
        config = json.loads(adapter.file(CONFIG) or b"")
    except (ValueError, RecursionError):
        raise BadFile(f"{where}: {CONFIG} is no JSON; fetch it again") from None
    check_config(config, where)
    parts, whole = parted(adapter)
    if whole:
        raise Unsupported(f"{where}: {cut(next(iter(whole)))} was trained whole; an adapter's GGUF has no place for it")
    out = adapter.derived("gguf")
    used: set[str] = set()
    prefix, forms = table.prefix({f"{module}.weight" for module in parts}), {}
    for slot in table.slots():
        found = _form_of(slot, prefix, parts, where)
        if found is None:
            continue
        number, modules = found
        if number:
            forms[slot.row.gguf[0]] = number
        used.update(modules)
        pairs = [_pair(parts[m], m, where) for m in modules]
        _check(slot, number, pairs, modules, where)
        for tensor in _forward(slot, number, pairs, where):
            out.add(tensor)
    if strange := [m for m in parts if m not in used]:
        raise BadFile(
            f"{where}: adapts {cut(strange[0])}{more(strange)}, which its base has no place for; give the model that "
            "it was trained on"
        )
    out.metadata = {"general.architecture": table.arch.gguf, "general.type": "adapter", "adapter.type": "lora"}
    name = None if adapter.source is None else adapter.source.resolve().name
    size = -sum(b.shape[-2] * a.shape[-1] * (b.n_elements // (b.shape[-2] * b.shape[-1])) for a, b in _pairs(out))
    about, notes = cards.keys_of(adapter, {}, name, size)
    out.metadata |= about | {ALPHA: _alpha(config, parts, Path(where))}
    out.metadata["general.quantization_version"] = np.uint32(QUANTIZATION_VERSION)
    out.metadata |= _own_keys(adapter, parts, table, prefix, forms)
    out.notes += notes + carried.keep_files(out.metadata, adapter)
    return out


class _Table:
    """The base's architecture and dimensions."""

    def __init__(self, keys: Mapping[str, Any]):
        name = keys.get("general.architecture")
        arch = archs.by_gguf(name) if isinstance(name, str) else None
        if arch is None:
            raise Unsupported(f"adapters of {cut(name)} models can't be converted: there is no table of it here")
        self.arch: Architecture = arch
        self.keys = {k: v for k, v in keys.items() if k.startswith(f"{arch.gguf}.") or k == "general.architecture"}
        self.dims = arch.dims_of(keys)

    def slots(self) -> Iterator[Slot]:
        """The rows of matrices."""
        return (slot for slot in self.arch.slots(self.dims) if len(slot.shapes[0]) > 1)

    def prefix(self, names: set[str]) -> str:
        """The prefix under which most of the modules are."""
        slots = list(self.slots())
        return max(
            self.arch.prefixes,
            key=lambda p: sum(n in names for s in slots for f in range(len(s.row.forms)) for n in s.names(f, p)),
        )


def _form_of(slot: Slot, prefix: str, parts: Mapping[str, Any], where: str) -> tuple[int, list[str]] | None:
    """The form of a row in which the adapter has it, and the modules; None where it does not change it."""
    for number in range(len(slot.row.forms)):
        modules = [name.removesuffix(".weight") for name in slot.names(number, prefix)]
        there = [m for m in modules if m in parts]
        if there and len(there) < len(modules):
            lacking = next(m for m in modules if m not in parts)
            raise Unsupported(
                f"{where}: adapts {cut(there[0])} and not {cut(lacking)}, which are one tensor in a GGUF; merge it "
                "with --lora instead"
            )
        if there:
            return number, modules
    return None


def _pair(found: Mapping[str, Tensor], module: str, where: str) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) of a module."""
    if "magnitude_vector" in found or "B.bias" in found:
        raise Unsupported(f"{where}: {cut(module)} has a DoRA magnitude or a bias; merge it with --lora instead")
    down, up = (found.get(k) or found.get(f"embedding_{k}") for k in ("A", "B"))
    if down is None or up is None:
        raise BadFile(f"{where}: module {cut(module)} lacks lora_A or lora_B; fetch the adapter again")
    for tensor in (down, up):
        if len(tensor.shape) != 2 or not tensor.type.is_float:
            raise Unsupported(f"{where}: tensor {cut(tensor.name)} has shape {tensor.shape}; expected a linear layer's")
    return down, up


def _check(slot: Slot, number: int, pairs: list[tuple[Tensor, Tensor]], modules: list[str], where: str) -> None:
    """`WrongShape` where a product is not of the weight's shape."""
    turned = any(isinstance(op, Transpose) for op in slot.row.forms[number].ops) or _is_embedding(slot)
    for (down, up), want in zip(pairs, slot.shadows(number), strict=True):
        if up.shape[1] != down.shape[0]:
            raise WrongShape(where, up.name, up.shape, (up.shape[0], down.shape[0]), f"by {cut(down.name)}")
        shape = (up.shape[0], down.shape[1])
        if 0 not in want.shape and (shape[::-1] if turned else shape) != want.shape:
            raise WrongShape(where, up.name, shape, want.shape, "by its base")


def _is_embedding(slot: Slot) -> bool:
    return slot.gguf[0] == "token_embd.weight"


def _forward(slot: Slot, number: int, pairs: list[tuple[Tensor, Tensor]], where: str) -> Iterator[Tensor]:
    """The tensors of a GGUF for a row."""
    downs, ups = tuple(a for a, _ in pairs), tuple(b for _, b in pairs)
    for op in slot.row.forms[number].ops:
        if isinstance(op, Stack):
            downs, ups = op.apply(downs, slot.dims), op.apply(ups, slot.dims)
        elif _of_rows(op, where):
            _same(downs, slot, where)
            ups = op.apply(ups, slot.dims)
            downs = downs[:1] * len(ups) if len(ups) != len(downs) else downs
    for name, down, up in zip(slot.gguf, downs, ups, strict=True):
        turned = Transpose().apply((down,), slot.dims)[0] if _is_embedding(slot) else down
        yield turned.renamed(name + A)
        yield up.renamed(name + B)


def _of_rows(op: Op, where: str) -> bool:
    """Whether an op moves rows, so that it is B's alone; `Unsupported` for one that has no meaning for a product."""
    if isinstance(op, Transpose):  # of a layer that stores its weight turned; the product does not
        return False
    if isinstance(op, Inverse | Split | SwapRows):
        return True
    raise Unsupported(f"{where}: adapts a tensor whose values change on the way to GGUF; merge it with --lora instead")


def _same(downs: Parts, slot: Slot, where: str) -> None:
    """`Unsupported` where layers that are one tensor in a GGUF have an A each."""
    first = downs[0].blocks().tobytes() if len(downs) > 1 else b""
    if any(down.blocks().tobytes() != first for down in downs[1:]):
        raise Unsupported(f"{where}: {slot.gguf[0]} is several layers with an A each; merge it with --lora instead")


def _alpha(config: Mapping[str, Any], parts: Mapping[str, Any], folder: Path) -> np.float32:
    """What all products' scales are, times their ranks."""
    found = {np.float32(rank * scale) for rank, scale in (scale_of(config, m, folder) for m in parts)}
    if len(found) != 1:
        raise Unsupported(
            f"{folder}: its products are scaled differently, which an adapter's GGUF can't say; merge it with --lora"
        )
    return found.pop()


def _own_keys(
    adapter: Checkpoint, parts: Mapping[str, Any], table: _Table, prefix: str, forms: Mapping[str, int]
) -> dict[str, Any]:
    """What it takes to write the folder again."""
    used = {t.name: t for found in parts.values() for t in found.values()}
    names = {_theirs(m, kind): t.name for m, found in parts.items() for kind, t in found.items()}
    own: dict[str, Any] = {
        own_keys.ADAPTER: json.dumps(encode_keys(table.keys | {"n_vocab": np.uint32(table.dims["n_vocab"])})),
        own_keys.DTYPES: carried.keep_dtypes(used),
        own_keys.PREFIX: prefix,
    }
    if forms:
        own[own_keys.FORMS] = json.dumps(forms)
    if other := {n: theirs for n, theirs in names.items() if n != theirs}:
        own[own_keys.NAMES] = json.dumps(other)
    carried.keep_metadata(own, adapter.metadata)
    return own


def _theirs(module: str, kind: str) -> str:
    """The usual name of a module's A or B in PEFT's files."""
    return f"{PREFIX}{module}.lora_{kind}" + ("" if kind.startswith("embedding") else ".weight")


def _pairs(gguf: Checkpoint) -> Iterator[tuple[Tensor, Tensor]]:
    for name, tensor in gguf.tensors.items():
        if name.endswith(A) and (up := gguf.tensors.get(name.removesuffix(A) + B)) is not None:
            yield tensor, up


def from_gguf(adapter: Checkpoint, base: Mapping[str, Any] | None = None) -> Checkpoint:
    """An adapter's GGUF -> PEFT's folder, lazily; the inverse of `to_gguf`.

    base: the keys of a GGUF of the base model; None: those that a GGUF of ours keeps, else `UsageError`.
    """
    metadata, where = adapter.metadata, adapter.where
    kept = carried.kept_json(metadata, own_keys.ADAPTER, where)
    if base is None and not kept:
        raise UsageError(f"{where}: does not say which model it is for; give that (--base)")
    keys = dict(base) if base is not None else decode_keys(kept, where)
    table = _Table(keys)
    table.dims["n_vocab"] = table.dims["n_vocab"] or int(keys.get("n_vocab", 0))
    forms, names = (carried.kept_json(metadata, key, where) for key in (own_keys.FORMS, own_keys.NAMES))
    dtypes = carried.kept_dtypes(carried.kept_json(metadata, own_keys.DTYPES, where), where)
    prefix = metadata.get(own_keys.PREFIX, table.arch.prefixes[0])
    out = adapter.derived("hf")
    out.metadata = carried.kept_metadata(metadata, where)
    used, ranks, changed = set[str](), dict[str, int](), list[Slot]()
    for slot in table.slots():
        there = [n for n in slot.gguf if n + A in adapter.tensors and n + B in adapter.tensors]
        if not there:
            continue
        if len(there) < len(slot.gguf):
            raise Unsupported(f"{where}: adapts {cut(there[0])} alone, of tensors that are one in a model folder")
        number = forms.get(slot.row.gguf[0], 0)
        number = number if isinstance(number, int) and 0 <= number < len(slot.row.forms) else 0
        downs, ups = _backward(slot, number, adapter, where)
        changed.append(slot)
        used.update(n + part for n in there for part in (A, B))
        modules = [n.removesuffix(".weight") for n in slot.names(number, str(prefix))]
        for module, down, up in zip(modules, downs, ups, strict=True):
            ranks[module] = up.shape[-1]
            for kind, tensor in (("A", down), ("B", up)):
                name = _theirs(module, f"embedding_{kind}" if _is_embedding(slot) else kind)
                name = str(names.get(name, name))
                wanted = carried.dtype_of(name, *dtypes)
                out.add((tensor if wanted is None else tensor.astype(wanted)).renamed(name))
    if strange := [n for n in adapter.tensors if n not in used]:
        raise BadFile(f"{where}: has tensor {cut(strange[0])}{more(strange)}, which its base has no place for")
    out.files = dict(carried.kept_files(metadata))
    if CONFIG not in out.files:
        turned = any(isinstance(op, Transpose) for slot in changed for op in slot.row.forms[0].ops)
        out.files[CONFIG] = _config(metadata, ranks, turned, where)
        out.files |= cards.files_of(metadata, out.files)
    return out


def _backward(slot: Slot, number: int, adapter: Checkpoint, where: str) -> tuple[Parts, Parts]:
    """A and B of a folder's modules, of a row's tensors in a GGUF."""
    found = [tuple(adapter.tensors[n + part] for n in slot.gguf) for part in (A, B)]
    downs, ups = (tuple(t if t.type.is_plain() else t.astype(plain.F32) for t in parts) for parts in found)
    if _is_embedding(slot):
        downs = Transpose().apply(downs, slot.dims)
    for op in reversed(slot.row.forms[number].ops):
        if isinstance(op, Stack):
            downs, ups = op.undo(downs, slot.dims), op.undo(ups, slot.dims)
        elif _of_rows(op, where):
            _same(downs, slot, where)
            ups = op.undo(ups, slot.dims)
            downs = downs[:1] * len(ups) if len(ups) != len(downs) else downs
    return downs, ups


def _config(metadata: Mapping[str, Any], ranks: Mapping[str, int], turned: bool, where: str) -> bytes:
    """An adapter_config.json for a GGUF of somebody else's."""
    alpha = metadata.get(ALPHA)
    if not isinstance(alpha, float | np.floating) or not np.isfinite(alpha):
        raise BadFile(f"{where}: key {ALPHA!r} is {cut(alpha)}, expected a number")
    value = float(alpha)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(metadata.get("general.base_model.0.repo_url", "")) or None,
        "r": max(ranks.values(), default=8),
        "lora_alpha": int(value) if value == int(value) else value,
        "target_modules": sorted({module.rpartition(".")[2] for module in ranks}),
        "bias": "none",
        "fan_in_fan_out": turned,
    }
    if len(set(ranks.values())) > 1:  # all names whole: one may end as another does
        config["rank_pattern"] = {module.replace(".", r"\."): rank for module, rank in ranks.items()}
    return json.dumps(config, indent=2).encode() + b"\n"
