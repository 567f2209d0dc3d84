"""PyTorch checkpoints (.bin, .pt, .pth), read without torch and without running what is in them.

Since PyTorch 1.6 a checkpoint is a zip file: `data.pkl`, a pickle of the state dict in which each tensor names a
storage, and `data/KEY`, the storages' bytes, uncompressed.  A pickle is a program; the reader here knows the dozen
names that a state dict needs, calls nothing else, and refuses a file that asks for more.  The storages stay in the file
and are read like any other tensor.  The older format (no zip) is read through torch with `weights_only`, where
torch is there.  Layout: torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.errors import BadFile, LlmconvError, Unsupported, at
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import open_regular, regular_size
from llmconv.formats.format import Format
from llmconv.formats.source import Source
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes

NAME = "torch"
WEIGHTS, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # the pickled magic number of the older format
_PICKLE_BYTES = 256 << 20
_SIDE_FILES = (".json", ".txt", ".model", ".jinja", ".md", ".py")


def sniff(path: Path, head: bytes) -> bool:
    if path.is_dir():
        return (path / WEIGHTS).is_file() or (path / INDEX).is_file()
    return (head[:4] == b"PK\x03\x04" and b"/data.pkl" in head[:512]) or head.startswith(_LEGACY)


def open(path: Path) -> Checkpoint:
    """A file or a model folder.  Tensors stay in the files; `BadFile` for a pickle that is more than a state dict."""
    path = Path(path)
    if path.name == WEIGHTS and (path.parent / "config.json").is_file():
        path = path.parent
    if not path.is_dir():
        checkpoint = Checkpoint(format=NAME, source=path, dialect="plain", info={"shards": 1}, parts=[path])
        _read(checkpoint, path)
        return checkpoint
    files = _shards(path / INDEX) if (path / INDEX).is_file() else [path / WEIGHTS]
    checkpoint = Checkpoint(format=NAME, source=path, dialect="plain", info={"shards": len(files)}, parts=files)
    for file in files:
        _read(checkpoint, file)
    for entry in sorted(path.iterdir(), key=lambda p: p.name):
        wanted = entry.suffix in _SIDE_FILES and not entry.name.endswith(".index.json") and entry.is_file()
        if wanted and regular_size(entry) <= limits.SIDE_FILE_BYTES:
            checkpoint.files[entry.name] = entry
    if "config.json" in checkpoint.files:
        checkpoint.dialect = "hf"
    return checkpoint


def _shards(index: Path) -> list[Path]:
    if regular_size(index) > limits.INDEX_BYTES:
        raise BadFile(f"{at(index)}: is larger than {limits.INDEX_BYTES:,} bytes, expected an index")
    try:
        names = list(dict.fromkeys(json.loads(index.read_bytes())["weight_map"].values()))
        if not all(isinstance(n, str) and re.fullmatch(r"[\w][\w.+-]*", n) for n in names):
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise BadFile(f"{at(index)}: has no 'weight_map' of tensor names to files beside it; fetch it again") from None
    for name in names:
        if not (index.parent / name).is_file():
            raise BadFile(f"{at(index)}: its file {name} is missing; fetch it")
    return [index.parent / name for name in sorted(names)]


# ------------------------------------------------------------------------------------------------------- the pickle


@dataclass(frozen=True)
class _Kind:
    """A storage class of torch, named in the pickle."""

    type: BlockClass | None


@dataclass(frozen=True)
class _Storage:
    kind: BlockClass
    key: str
    count: int


@dataclass(frozen=True)
class _Array:
    """A tensor as the pickle states it, nothing read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_KINDS: dict[str, BlockClass] = {
    "DoubleStorage": plain.F64,
    "FloatStorage": plain.F32,
    "HalfStorage": plain.F16,
    "BFloat16Storage": plain.BF16,
    "LongStorage": plain.I64,
    "IntStorage": plain.I32,
    "ShortStorage": plain.I16,
    "CharStorage": plain.I8,
    "ByteStorage": plain.U8,
    "BoolStorage": plain.BOOL,
}
_DTYPES: dict[str, BlockClass] = {
    "float64": plain.F64,
    "float32": plain.F32,
    "float16": plain.F16,
    "bfloat16": plain.BF16,
    "int64": plain.I64,
    "int32": plain.I32,
    "int16": plain.I16,
    "int8": plain.I8,
    "uint8": plain.U8,
    "bool": plain.BOOL,
    "float8_e4m3fn": plain.F8_E4M3,
    "float8_e5m2": plain.F8_E5M2,
}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Array:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > limits.MAX_DIMS:
        raise pickle.UnpicklingError("a tensor without a storage or with other dimensions than strides")
    if not all(isinstance(n, int) and 0 <= n < limits.MAX_ELEMENTS for n in numbers) or limits.too_large(shape):
        raise pickle.UnpicklingError(f"a tensor of shape {shape!r} with strides {strides!r}")
    return _Array(storage, offset, tuple(shape), tuple(strides))


def _tensor_v3(storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Any:
    if not isinstance(storage, _Storage) or not isinstance(dtype, _Kind) or dtype.type is None:
        raise pickle.UnpicklingError("a tensor of an unknown dtype")
    size = storage.count * storage.kind.layout.itemsize // dtype.type.layout.itemsize
    return _tensor(_Storage(dtype.type, storage.key, size), offset, shape, strides)


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    ("torch", "Size"): lambda values=(): tuple(values),
}


class _Reader(pickle.Unpickler):
    """A pickle machine that can build dictionaries, numbers, texts and `_Array`s, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CALLS:
            return _CALLS[module, name]
        if module in ("torch", "torch.storage") and name in _KINDS:
            return _Kind(_KINDS[name])
        if module in ("torch", "torch.storage") and name in ("UntypedStorage", "TypedStorage"):
            return _Kind(plain.U8)
        if module == "torch" and name in _DTYPES:
            return _Kind(_DTYPES[name])
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which no state dict needs")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _Kind(type=kind), str() as key, str(), int() as count) if kind is not None and count >= 0:
                return _Storage(kind, key, count)
        raise pickle.UnpicklingError(f"names the storage {pid!r}")


def _read(checkpoint: Checkpoint, path: Path) -> None:
    """Add a file's tensors."""
    with open_regular(path) as file:
        head = file.read(4)
    for name, tensor in _zipped(checkpoint, path) if head == b"PK\x03\x04" else _legacy(path):
        if name in checkpoint.tensors:
            raise BadFile(f"{at(path)}: tensor {name!r} is there twice; fetch the files again")
        checkpoint.add(tensor)


REST = "checkpoint.rest"
"""The metadata key of what a training program's file holds besides its tensors, as JSON."""


def _rest(value: Any) -> Any:
    """The value without its tensors, as JSON has it; maps whose keys are no texts as {"$items": [[key, value]]}."""
    if isinstance(value, Mapping):
        kept = [(k, v) for k, x in value.items() if (v := _rest(x)) is not None]
        if value and not kept:
            return None
        return dict(kept) if all(isinstance(k, str) for k, _ in kept) else {"$items": [[k, v] for k, v in kept]}
    if isinstance(value, list | tuple):
        return [_rest(x) for x in value]
    return value if isinstance(value, bool | int | float | str) else None


def _zipped(checkpoint: Checkpoint, path: Path) -> Iterator[tuple[str, Tensor]]:
    source = Source.of(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            listing = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(listing) != 1 or entries[listing[0]].file_size > _PICKLE_BYTES:
                raise BadFile(f"{at(path)}: has no data.pkl, expected a PyTorch checkpoint")
            root = listing[0].removesuffix("data.pkl")
            order = archive.read(root + "byteorder") if root + "byteorder" in entries else b"little"
            program = archive.read(listing[0])
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise BadFile(f"{at(path)}: is no whole zip file ({error}); fetch it again") from None
    if order != b"little":
        raise Unsupported(f"{at(path)}: is big-endian; save it again on a little-endian machine")
    value = _loaded(path, program)
    if (rest := _rest(value)) is not None:
        checkpoint.metadata[REST] = json.dumps(rest, ensure_ascii=False)
    for name, array in _state_dict(path, value):
        entry = entries.get(f"{root}data/{array.storage.key}")
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            raise BadFile(f"{at(path)}: tensor {name!r} has no stored bytes data/{array.storage.key}; fetch it again")
        yield name, _lazy(source, name, array, entry)


def _loaded(path: Path, program: bytes) -> Any:
    try:
        return _Reader(io.BytesIO(program)).load()
    except LlmconvError:
        raise
    except Exception as error:  # a pickle can fail in any way
        raise BadFile(f"{at(path)}: its pickle {error}; only state dicts are read, convert it to safetensors") from None


_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "model_state")


def _state_dict(path: Path, value: Any) -> list[tuple[str, _Array]]:
    """The tensors of a state dict, or of the one inside a training checkpoint."""
    for name in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(name), Mapping):
            value = value[name]
            break
    found = [(k, v) for k, v in value.items() if isinstance(v, _Array)] if isinstance(value, Mapping) else []
    if not found or not all(isinstance(k, str) and len(k) <= limits.MAX_NAME_BYTES for k, _ in found):
        raise BadFile(f"{at(path)}: holds no state dict, expected names and tensors (or 'model', 'state_dict')")
    return found


def _lazy(source: Source, name: str, array: _Array, entry: zipfile.ZipInfo) -> Tensor:
    kind, size = array.storage.kind, array.storage.kind.layout.itemsize
    if array.storage.count * size > entry.file_size:
        raise BadFile(
            f"{at(source.path)}: tensor {name!r} needs {array.storage.count * size:,} bytes of storage "
            f"{array.storage.key}, found {entry.file_size:,}; fetch it again"
        )
    empty = 0 in array.shape
    last = array.offset + sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True))
    if not empty and last >= array.storage.count:
        raise BadFile(f"{at(source.path)}: tensor {name!r} reaches beyond its storage; fetch it again")
    if not empty and math.prod(array.shape) > array.storage.count:
        raise BadFile(f"{at(source.path)}: tensor {name!r} has more elements than its storage; save it contiguous")
    header = source.read(entry.header_offset, 30)
    skip = 30 + int.from_bytes(header[26:28].tobytes(), "little") + int.from_bytes(header[28:30].tobytes(), "little")
    start = entry.header_offset + skip
    if start + entry.file_size > source.size:
        raise BadFile(f"{at(source.path)}: tensor {name!r} lies beyond the file's end; fetch it again")
    contiguous = tuple(math.prod(array.shape[i + 1 :]) for i in range(len(array.shape)))
    strides_fit = all(n == 1 or s == c for n, s, c in zip(array.shape, array.strides, contiguous, strict=True))
    if empty or strides_fit:
        return source.tensor(name, array.shape, kind, start + array.offset * size)

    def read(first: int, stop: int) -> Bytes:  # a transposed or sliced view: its storage is read whole
        dtype = kind.dtype
        assert dtype is not None
        stored = source.read(start, array.storage.count * size).view(dtype)[array.offset :]
        view = np.lib.stride_tricks.as_strided(stored, array.shape, tuple(s * size for s in array.strides))
        rows = np.ascontiguousarray(view).reshape(-1, array.shape[-1])[first:stop]
        return np.ascontiguousarray(rows).view(np.uint8)

    return Tensor(name, array.shape, kind, read)


def _legacy(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The format before PyTorch 1.6, through torch itself."""
    try:
        import torch
    except ImportError:
        raise Unsupported(
            f"{at(path)}: is in PyTorch's format of before 1.6, which needs torch to be read; pip install torch"
        ) from None
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadFile(f"{at(path)}: is no PyTorch state dict ({reason})") from None
    for name in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(name), Mapping):
            value = value[name]
            break
    for name, tensor in value.items() if isinstance(value, Mapping) else ():
        if isinstance(tensor, torch.Tensor):
            kind = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
            if kind is None:
                raise Unsupported(f"{at(path)}: tensor {name!r} is {tensor.dtype}, which no tensor type stores")
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise BadFile(f"{at(path)}: tensor {name!r} has more elements than its storage; save it contiguous")
            raw = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
            assert kind.dtype is not None
            yield name, Tensor.from_array(name, raw.view(kind.dtype).reshape(tuple(tensor.shape)))


FORMAT = Format(name=NAME, dialect="hf", sniff=sniff, open=open)
