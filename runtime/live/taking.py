"""A transformers model in memory, or a plain state dict, as a checkpoint: what its saved folder would open to.

Tensors are read off the device when they are written, slab by slab; nothing is copied before.  Settings and the
tokenizer go through the library's own `save_pretrained`, so that they say what the folder's files would.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from llmconv.convert.quantizing.quantize import Quantized, quantize
from llmconv.errors import BadFile, UsageError, cut, kind_of
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.side_files import WEIGHTS
from llmconv.formats.tensor import Tensor
from llmconv.quant.block import Bytes, by_name
from llmconv.runtime.live.adapters import Values, check, is_sharded, once, values_of
from llmconv.runtime.model import Model
from llmconv.runtime.save import NAMES, checkpoint_of

__all__ = ["from_torch", "save_gguf"]

_NAMELESS = (
    "there is no configuration of transformers': the tensors keep their own names; they can be quantized and converted "
    "back, but not run here or in llama.cpp; give config"
)


def from_torch(
    model: torch.nn.Module | Mapping[str, torch.Tensor],
    tokenizer: Any = None,
    *,
    config: Any = None,
    name: str | None = None,
) -> Checkpoint:
    """A model in memory as a checkpoint that `save`, `quantize` and the rest take; its memory must live as long.

    model: a transformers model on any device, a PEFT model (its active adapters are merged on the way), one of
        `llmconv.load`; or a state dict under the names of its architecture in transformers.
    tokenizer: transformers' or the `tokenizers` library's, or a folder with one; without it the vocabulary is missing.
    config: of a state dict, what config.json would hold: a dict, a transformers configuration, or a file.
    name: `general.name` of a GGUF; the last part of the name that it was loaded by when None.

    A model that is sharded over processes (FSDP) is gathered when this is called, its adapters merged, which every
    process has to do: the first gets it whole, in its own memory, the others a checkpoint without values.

    Raises `Unsupported` for what can't be read off by itself: weights that are quantized in memory, adapters that are
    no plain LoRA.
    """
    if isinstance(model, Model):
        return checkpoint_of(model)
    files: dict[str, Path | bytes] = {}
    if isinstance(model, torch.nn.Module):
        inner, values = values_of(model)
        if config is None and hasattr(getattr(inner, "config", None), "save_pretrained"):
            files |= _settings(inner)
            name = name or _last_part(getattr(inner.config, "_name_or_path", ""))
    elif isinstance(model, Mapping):
        wrong = next((n for n, v in model.items() if not isinstance(v, torch.Tensor)), None)
        if wrong is not None:
            raise UsageError(f"the state dict holds {cut(wrong)}, {kind_of(model[wrong])}; expected tensors alone")
        values = {str(n): (v, None) for n, v in model.items()}
        check(values)
    else:
        raise UsageError(f"from_torch takes a model or a state dict, not {kind_of(model)}")
    if config is not None:
        files["config.json"] = settings = _config(config)
        if isinstance(model, Mapping) and _is_tied(settings):
            values = once(values)
    files |= _tokenizer(tokenizer)
    out = Checkpoint(dialect="hf" if "config.json" in files else "plain", files=files, format="")
    out.info |= {"name": name} if name else {}
    out.notes += [] if "config.json" in files else [_NAMELESS]
    for tensor in sorted(_tensors(values), key=_order):
        out.add(tensor)
    return out


def save_gguf(
    model: torch.nn.Module | Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    type: str = "COPY",
    tokenizer: Any = None,
    *,
    config: Any = None,
    name: str | None = None,
    **options: Any,
) -> Quantized:
    """Write a model in memory as GGUF: `from_torch`, then `quantize` with its options.

    Of a model that is sharded over processes, every process calls it; the first writes, the others only plan.
    type: Q4_K_M, Q8_0, F16, ...; "COPY": the types that the weights have.
    """
    taken = from_torch(model, tokenizer, config=config, name=name)
    if isinstance(model, torch.nn.Module) and is_sharded(model) and torch.distributed.get_rank():
        options["dry_run"] = True
    return quantize(taken, path, type, **options)


def _order(tensor: Tensor) -> tuple[int, str]:
    """The order in which the safetensors library writes: the widest types first, then by name."""
    return -tensor.type.layout.itemsize, tensor.name


def _last_part(path: Any) -> str | None:
    return Path(path).name or None if isinstance(path, str) else None


def _tensors(values: Mapping[str, Values]) -> Iterable[Tensor]:
    for name, (value, change) in values.items():
        kind = NAMES.get(value.dtype)
        if kind is None:
            raise UsageError(f"no tensor type stores {cut(name)}, {value.dtype}; cast it first")
        yield _lazy(name, value, by_name(kind), change)


def _lazy(name: str, value: torch.Tensor, kind: Any, change: Callable[[], torch.Tensor] | None) -> Tensor:
    shape = tuple(value.shape)
    width = shape[-1] if shape else 1

    def read(start: int, stop: int) -> Bytes:
        with torch.no_grad():
            whole = value if change is None else change()
            part = whole.detach().reshape(-1, width)[start:stop].contiguous().cpu()
        return part.view(torch.uint8).numpy().reshape(stop - start, kind.row_bytes(width))

    return Tensor(name, shape, kind, read)


def _settings(model: Any) -> dict[str, bytes]:
    """config.json and generation_config.json, as `save_pretrained` writes them."""
    before = {key: getattr(model.config, key, None) for key in ("dtype", "architectures")}
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.config.dtype = str(model.dtype).removeprefix("torch.")
            model.config.architectures = [type(model).__name__.removeprefix("FSDP")]
            model.config.save_pretrained(folder)
        finally:
            for key, value in before.items():
                setattr(model.config, key, value)
        if getattr(model, "generation_config", None) is not None and model.can_generate():
            model.generation_config.save_pretrained(folder)
        return _small_files(Path(folder))


def _small_files(folder: Path) -> dict[str, bytes]:
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in WEIGHTS and p.name[0] != ".")
    fitting = (p for p in found if p.stat().st_size <= limits.SIDE_FILE_BYTES)
    return {str(p.relative_to(folder)): p.read_bytes() for p in fitting}


def _config(config: Any) -> bytes:
    if isinstance(config, str | os.PathLike):
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise BadFile(f"{path}: no such file, expected a config.json")
        return path.read_bytes()
    if hasattr(config, "to_json_string"):
        return str(config.to_json_string()).encode()
    if isinstance(config, Mapping):
        return json.dumps(dict(config), indent=2).encode()
    raise UsageError(f"config is {kind_of(config)}, expected a dict, a transformers configuration or a file")


def _is_tied(config: bytes) -> bool:
    try:
        found = json.loads(config)
    except (ValueError, RecursionError):  # which is said when it is read for the model
        return False
    return isinstance(found, dict) and found.get("tie_word_embeddings") is True


def _tokenizer(tokenizer: Any) -> dict[str, bytes]:
    """The files of a tokenizer."""
    if tokenizer is None:
        return {}
    if isinstance(tokenizer, str | os.PathLike):
        from llmconv.convert.vocab.read.folder import is_mine

        folder = Path(tokenizer)
        found = {n: data for n, data in _small_files(folder).items() if is_mine(n)} if folder.is_dir() else {}
        if not found:
            raise BadFile(f"{folder}: is no folder with a tokenizer's files")
        return found
    if hasattr(tokenizer, "save_pretrained"):
        with tempfile.TemporaryDirectory() as folder_name:
            tokenizer.save_pretrained(folder_name)
            return _small_files(Path(folder_name))
    if hasattr(tokenizer, "to_str"):
        return {"tokenizer.json": tokenizer.to_str().encode()}
    if re.match(r"(tokenizers|transformers)\b", type(tokenizer).__module__) is None:
        raise UsageError(f"tokenizer is {kind_of(tokenizer)}, expected transformers' or tokenizers', or a folder")
    raise UsageError(f"a {kind_of(tokenizer)} can't be saved; save it to a folder and name that")
