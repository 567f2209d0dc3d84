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
import functools
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

from llmconv.errors import BadFile, LlmconvError, Unsupported, at, cut, kind_of, more
from llmconv.formats import guests, limits, side_files
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import open_regular, regular_size
from llmconv.formats.foreign.mappings import Chosen, StrangePickle, chosen, keep_rest
from llmconv.formats.foreign.torch import torch_writing
from llmconv.formats.foreign.torch.pickle_file import NUMPY, Array as NumpyArray
from llmconv.formats.format import Format
from llmconv.formats.source import Source
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes

NAME = "torch"
WEIGHTS, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # the pickled magic number of the older format
_PART = re.compile(r"pytorch_model-\d{5}-of-\d{5}\.bin")
_OTHERWISE = re.compile(r"(?:hf_)?model(?:_\d+_\d+)?\.(?:pt|pth|bin)")
"""What programs call the weights beside a config.json of transformers: model.pt, torchtune's hf_model_0001_0.pt."""


def sniff(path: Path, head: bytes) -> bool:
    if path.is_dir():
        return (path / WEIGHTS).is_file() or (path / INDEX).is_file() or bool(_parts(path) or _otherwise(path))
    if path.name == INDEX:
        return head[:1] == b"{"
    return (head[:4] == b"PK\x03\x04" and b"/data.pkl" in head[:512]) or head.startswith(_LEGACY)


def open(path: Path, key: str | None = None) -> Checkpoint:
    """A file or a model folder.  Tensors stay in the files; `BadFile` for a pickle that is more than a state dict.

    key: which of several mappings of tensors in a training program's file to take (see `formats.foreign.mappings`).
    """
    beside = (path.parent / "config.json").is_file()
    weights = path.name == WEIGHTS or _PART.fullmatch(path.name)
    if path.name == INDEX or (beside and (weights or path in _otherwise(path.parent))):
        path = path.parent
    if not path.is_dir():
        checkpoint = Checkpoint(format=NAME, source=path, dialect="plain", info={"shards": 1}, parts=[path])
        read_file(checkpoint, path, key)
        return checkpoint
    listed = _weight_map(path / INDEX) if (path / INDEX).is_file() and not (path / WEIGHTS).is_file() else {}
    files = [path / name for name in sorted(set(listed.values()))] or _unlisted(path)
    checkpoint = Checkpoint(format=NAME, source=path, dialect="plain", info={"shards": len(files)}, parts=files)
    passed: dict[str, str] = {}
    for file in files:
        read_file(checkpoint, file, key, listed, passed)
        missing = next((n for n, f in listed.items() if f == file.name and n not in checkpoint.tensors), None)
        if missing is not None:
            raise BadFile(f"{at(path / INDEX)}: tensor {cut(missing)} should be in {file.name} but is not; fetch it")
    if listed and (extra := [n for n in checkpoint.tensors if n not in listed]):
        checkpoint.notes.append(f"{INDEX} does not list {cut(extra[0])}{more(extra)}; read all the same")
    checkpoint.notes += side_files.passed_by(INDEX, passed)
    checkpoint.notes += guests.beside(path, files, "pytorch_model*.bin")
    checkpoint.notes += side_files.others(path, "pytorch_model*.bin", *(file.name for file in files))
    checkpoint.files, notes = side_files.beside(path)
    if "config.json" in checkpoint.files:
        checkpoint.dialect = "hf"
    checkpoint.notes += notes
    return checkpoint


def _parts(folder: Path) -> list[Path]:
    """Files of a model folder that are named as parts of PyTorch weights."""
    return sorted(p for p in folder.glob("pytorch_model-*.bin") if _PART.fullmatch(p.name) and p.is_file())


def _otherwise(folder: Path) -> list[Path]:
    """Weights of a transformers model under another name, as zip files of PyTorch's."""
    found = [path for path in sorted(folder.iterdir()) if _OTHERWISE.fullmatch(path.name) and path.is_file()]
    config = folder / "config.json"
    if not found or not config.is_file() or regular_size(config) > limits.SIDE_FILE_BYTES:
        return []
    of_transformers = re.search(rb'"(?:model_type|architectures)"\s*:', config.read_bytes())
    return [path for path in found if _begins(path) == b"PK\x03\x04"] if of_transformers else []


def _begins(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(4)


def _unlisted(folder: Path) -> list[Path]:
    """The weights of a folder without an index: one file, or the parts, whose names say how many there are."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    found = _parts(folder)
    if not found:
        return _otherwise(folder)
    counts = sorted({p.name[-9:-4] for p in found})
    if len(counts) > 1:
        raise BadFile(f"{at(folder)}: holds parts of {counts[0]} and of {counts[1]} files; remove the others")
    count = int(counts[0])
    names = {p.name for p in found}
    wanted = (f"pytorch_model-{no:05d}-of-{count:05d}.bin" for no in range(1, count + 1))
    missing = next((name for name in wanted if name not in names), None)
    if missing is not None or len(found) != count:
        raise BadFile(f"{at(folder)}: its file {missing or found[0].name} is missing or one too many; fetch them again")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> the file that an index says it is in; all of them are there, beside it."""
    if regular_size(index) > limits.INDEX_BYTES:
        raise BadFile(f"{at(index)}: is larger than {limits.INDEX_BYTES:,} bytes, expected an index")
    try:
        found = json.loads(index.read_bytes())["weight_map"]
        names = list(dict.fromkeys(found.values()))
        if not names or not all(isinstance(n, str) and re.fullmatch(r"[\w][\w.+-]*", n) for n in names):
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise BadFile(f"{at(index)}: has no 'weight_map' of tensor names to files beside it; fetch it again") from None
    for name in names:
        if not (index.parent / name).is_file():
            raise BadFile(f"{at(index)}: its file {cut(name)} is missing; fetch it")
    return dict(found)


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
    "ComplexFloatStorage": plain.C64,
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
    "complex64": plain.C64,
    "float8_e4m3fn": plain.F8_E4M3,
    "float8_e5m2": plain.F8_E5M2,
}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Array:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > limits.MAX_DIMS:
        raise StrangePickle("holds a tensor without a storage or with other dimensions than strides")
    if not all(isinstance(n, int) and 0 <= n < limits.MAX_ELEMENTS for n in numbers) or limits.too_large(shape):
        raise StrangePickle(f"holds a tensor of shape {shape!r} with strides {strides!r}")
    return _Array(storage, offset, tuple(shape), tuple(strides))


def _tensor_v3(storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Any:
    if not isinstance(storage, _Storage) or not isinstance(dtype, _Kind) or dtype.type is None:
        raise StrangePickle("holds a tensor of an unknown dtype")
    size = storage.count * storage.kind.layout.itemsize // dtype.type.layout.itemsize
    return _tensor(_Storage(dtype.type, storage.key, size), offset, shape, strides)


class _Namespace(dict[str, Any]):
    """A configuration as argparse keeps it: the pickle sets its state."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


@functools.lru_cache(maxsize=64)
def _settings(module: str, name: str) -> type:
    """What stands for a class of somebody's own: fields and their values, as a dataclass of settings has them.

    `StrangePickle` as soon as it is called with anything, which a function would be, or holds modules or tensors.
    """
    asked = f"asks for {module}.{name}, which no state dict needs"

    class Settings(_Namespace):
        def __new__(cls, *given: Any) -> Any:
            if given:
                raise StrangePickle(asked)
            return super().__new__(cls)

        def __setstate__(self, state: Any) -> None:
            for part in state if isinstance(state, tuple) else (state,):  # two where it has slots
                super().__setstate__(part)
            if "_modules" in self or any(_is_array(value) for value in self.values()):
                raise StrangePickle(asked)

    Settings.__module__, Settings.__qualname__ = module, name
    return Settings


def _is_array(value: Any) -> bool:
    return isinstance(value, _Array) or (isinstance(value, NumpyArray) and value.numeric)


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    ("torch", "Size"): lambda values=(): tuple(values),
    ("argparse", "Namespace"): _Namespace,
    ("_codecs", "encode"): lambda text, _="latin1": str(text).encode("latin1"),
    **{("pathlib", name): lambda *parts: "/".join(parts) for name in ("PosixPath", "WindowsPath", "PurePosixPath")},
    **{(module, name): list for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
    ("collections", "defaultdict"): lambda *_: _Namespace(),
    ("collections", "Counter"): lambda counts=(): dict(counts),
    ("torch", "device"): lambda *parts: ":".join(map(str, parts)),
    **NUMPY,
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
        return _settings(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _Kind(type=kind), str() as key, str(), int() as count) if kind is not None and count >= 0:
                return _Storage(kind, key, count)
        raise StrangePickle(f"names the storage {cut(pid)}")


def read_file(
    checkpoint: Checkpoint,
    path: Path,
    key: str | None = None,
    listed: Mapping[str, str] | None = None,
    passed: dict[str, str] | None = None,
) -> None:
    """Add a file's tensors, and what else it holds.

    listed: the files of tensors by an index: those that it has elsewhere are passed by, their names put in `passed`.
    """
    listed, passed = listed or {}, {} if passed is None else passed
    tensors, found = _zipped(path, key) if _begins(path) == b"PK\x03\x04" else _legacy(path, key)
    for tensor in tensors:
        if listed.get(tensor.name, path.name) != path.name:
            passed[tensor.name] = path.name
            continue
        if tensor.name in checkpoint.tensors:
            raise BadFile(f"{at(path)}: tensor {tensor.name!r} is there twice; fetch the files again")
        checkpoint.add(tensor)
    keep_rest(checkpoint, found)
    checkpoint.notes += found.notes


@dataclass(frozen=True)
class _Archive:
    """The zip file that torch.save writes.   root: the folder in it."""

    source: Source
    root: str
    entries: dict[str, zipfile.ZipInfo]
    program: bytes

    def lazy(self, name: str, array: _Array | NumpyArray) -> Tensor:
        if isinstance(array, NumpyArray):
            assert array.value is not None
            return Tensor.from_array(name, array.value)
        where = f"data/{array.storage.key}"
        entry = self.entries.get(self.root + where)
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            raise BadFile(
                f"{at(self.source.path)}: tensor {cut(name)} has no stored bytes {cut(where)}; fetch it again"
            )
        return _lazy(self.source, name, array, entry)


def _archive(source: Source) -> _Archive:
    path = source.path
    try:
        with zipfile.ZipFile(source.opened()) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            listing = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(listing) != 1 or entries[listing[0]].file_size > limits.PICKLE_BYTES:
                raise BadFile(f"{at(path)}: has no data.pkl, expected a PyTorch checkpoint")
            root = listing[0].removesuffix("data.pkl")
            order = archive.read(root + "byteorder") if root + "byteorder" in entries else b"little"
            program = archive.read(listing[0])
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise BadFile(f"{at(path)}: is no whole zip file ({error}); fetch it again") from None
    if order != b"little":
        raise Unsupported(f"{at(path)}: is big-endian; save it again on a little-endian machine")
    return _Archive(source, root, entries, program)


def _zipped(path: Path, key: str | None) -> tuple[Iterator[Tensor], Chosen]:
    archive = _archive(Source.of(path))
    found = chosen(_loaded(path, archive.program), _is_array, at(path), key)
    return (archive.lazy(name, array) for name, array in found.tensors.items()), found


def saved_tensor(source: Source, name: str) -> Tensor:
    """The one tensor that torch.save wrote to a file, or a part of one; lazily, as any other."""
    archive = _archive(source)
    value = _loaded(source.path, archive.program)
    if not isinstance(value, _Array):
        raise BadFile(f"{at(source.path)}: tensor {cut(name)} is a {kind_of(value)} there; save the checkpoint again")
    return archive.lazy(name, value)


def _loaded(path: Path, program: bytes) -> Any:
    try:
        return _Reader(io.BytesIO(program)).load()
    except LlmconvError:
        raise
    except StrangePickle as error:
        raise BadFile(
            f"{at(path)}: its pickle {error}; only state dicts and settings are read, save model.state_dict() instead "
            "of the model"
        ) from None
    except Exception:  # a pickle can fail in any way
        raise BadFile(f"{at(path)}: its pickle can't be read, it is damaged or cut short; fetch it again") from None


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


def _legacy(path: Path, key: str | None) -> tuple[Iterator[Tensor], Chosen]:
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
    found = chosen(value, lambda x: isinstance(x, torch.Tensor), at(path), key)

    def tensors() -> Iterator[Tensor]:
        for name, tensor in found.tensors.items():
            kind = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
            if kind is None:
                raise Unsupported(f"{at(path)}: tensor {cut(name)} is {tensor.dtype}, which no tensor type stores")
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise BadFile(f"{at(path)}: tensor {cut(name)} has more elements than its storage; save it contiguous")
            raw = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
            assert kind.dtype is not None
            yield Tensor.from_array(name, raw.view(kind.dtype).reshape(tuple(tensor.shape)))

    return tensors(), found


FORMAT = Format(
    name=NAME,
    dialect="program",
    sniff=sniff,
    open=open,
    write=torch_writing.save,
    suffixes=(".pt", ".pth"),
    keyed=True,
)
