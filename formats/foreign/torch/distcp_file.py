"""Checkpoints of torch.distributed.checkpoint (FSDP, TorchTitan, accelerate), read without torch.

    FOLDER/.metadata        a pickle: the shape and pieces of each tensor, and where in which file each piece lies
    FOLDER/__0_0.distcp     pieces, one after another, each as torch.save writes a tensor

A piece is a block of a tensor: some of its rows, or of its columns, or both.  The pickle is read as data; its classes
are stood for by ones that keep what they are given.  Source: torch/distributed/checkpoint (metadata.py, filesystem.py).
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv.errors import BadFile, Unsupported, at, cut, more, shown
from llmconv.formats import guests, limits, side_files
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import regular_size
from llmconv.formats.foreign.mappings import chosen, keep_rest
from llmconv.formats.foreign.torch import torch_file
from llmconv.formats.format import Format
from llmconv.formats.moving import rows as moving
from llmconv.formats.source import Source
from llmconv.formats.tensor import Tensor

NAME = "distcp"
METADATA = ".metadata"

_FOLDERS = "pytorch_model_fsdp_*"
"""Where accelerate puts a model's pieces, in a folder with config.json."""
_KEPT = ("torch.distributed.checkpoint", "torch.distributed._shard", "pathlib", "torch.serialization", "torch")


def sniff(path: Path, head: bytes) -> bool:
    return _folder(path) is not None


def _folder(path: Path) -> Path | None:
    """The folder with `.metadata` of what was named: itself, one of its files, or accelerate's folder in it."""
    if not path.is_dir():
        path = path.parent if path.name == METADATA or path.suffix == ".distcp" else path
    candidates = [path, *(sorted(path.glob(_FOLDERS)) if path.is_dir() else ())]
    return next((p for p in candidates if (p / METADATA).is_file() and any(p.glob("*.distcp"))), None)


def open(path: Path, key: str | None = None) -> Checkpoint:
    """The model in a checkpoint, lazily; with config.json beside it, or above it, in Hugging Face's dialect.

    key: which of several mappings of tensors to take (see `formats.foreign.mappings`).
    """
    folder = _folder(path)
    assert folder is not None
    meta = _metadata(folder / METADATA)
    saved = _nested(meta, folder)
    inner = any(isinstance(v, dict) for v in saved.values())
    counts = [k for k, v in saved.items() if inner and isinstance(v, _Sharded) and not v.shape]  # of steps, of tokens
    found = chosen(
        {k: v for k, v in saved.items() if k not in counts}, lambda x: isinstance(x, _Sharded), at(folder), key
    )
    files = sorted(folder.glob("*.distcp"))
    out = Checkpoint(format=NAME, source=folder, dialect="plain", info={"shards": len(files)}, parts=files)
    sources: dict[str, Source] = {}
    for name, sharded in found.tensors.items():
        out.add(_tensor(name, sharded, folder, sources))
    keep_rest(out, found)
    out.notes += found.notes + (
        [f"left out, a number beside the model: {cut(counts[0])}{more(counts)}"] if counts else []
    )
    if (about := next((p for p in (folder, folder.parent) if (p / "config.json").is_file()), None)) is not None:
        out.dialect = "hf"
        out.files, notes = side_files.beside(about, folder)
        out.notes += notes
    return out


# ---------------------------------------------------------------------------------------------------- what is stated


@dataclass(frozen=True)
class _Piece:
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class _Sharded:
    """A tensor as the metadata states it."""

    shape: tuple[int, ...]
    pieces: tuple[_Piece, ...]


class _Kept:
    """What stands for an object of torch's: what it was made with, and its state."""

    def __init__(self, *made: Any):
        self.made = made

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


class _Reader(pickle.Unpickler):
    """A pickle machine that can build plain values and `_Kept`, and calls nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("torch", "Size"):
            return tuple
        if any(module == kept or module.startswith(f"{kept}.") for kept in _KEPT):
            return type(name, (_Kept,), {})
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which no metadata needs")


def _metadata(path: Path) -> _Kept:
    if regular_size(path) > limits.PICKLE_BYTES:
        raise BadFile(f"{at(path)}: is larger than {limits.PICKLE_BYTES:,} bytes, expected a checkpoint's metadata")
    try:
        found = _Reader(io.BytesIO(guests.whole(path))).load()
        if not isinstance(found.state_dict_metadata, dict) or not isinstance(found.storage_data, dict):
            raise ValueError("says nothing of tensors")
    except Exception as error:  # a pickle can fail in any way
        raise BadFile(f"{at(path)}: is no checkpoint's metadata ({cut(str(error), 120)}); save it again") from None
    assert isinstance(found, _Kept)
    return found


def _nested(meta: Any, folder: Path) -> dict[str, Any]:
    """The state as it was saved: {"model": {…}, "optimizer": {…}, …}, tensors as `_Sharded`."""
    where = at(folder / METADATA)
    places = meta.planner_data if isinstance(getattr(meta, "planner_data", None), dict) else {}
    out: dict[str, Any] = {}
    try:
        stored = {(index.fqn, tuple(getattr(index, "offset", None) or ())): s for index, s in meta.storage_data.items()}
        for name, entry in meta.state_dict_metadata.items():
            if not hasattr(entry, "chunks"):  # bytes: steps, random states
                continue
            keys = places.get(name, (name,))
            if not isinstance(keys, tuple) or not all(isinstance(k, str | int) for k in keys):
                raise ValueError(f"the place {keys!r}")
            inner = out
            for key in keys[:-1]:
                inner = inner.setdefault(str(key), {})
            inner[str(keys[-1])] = _sharded(str(name), entry, stored)
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise BadFile(f"{where}: states tensors in a way that is not read ({cut(str(error), 80)})") from None
    return out


def _sharded(name: str, entry: Any, stored: Mapping[Any, Any]) -> _Sharded:
    pieces = []
    for chunk in entry.chunks:
        offsets, sizes = _numbers(chunk.offsets), _numbers(chunk.sizes)
        if 0 in sizes:  # of a process that has no row of it
            continue
        lies = stored[name, offsets]
        if getattr(lies, "transform_descriptors", None):
            raise ValueError(f"{name}: packed by {lies.transform_descriptors!r}")
        file, (start, nbytes) = lies.relative_path, _numbers((lies.offset, lies.length))
        if not isinstance(file, str) or not file.endswith(".distcp") or Path(file).name != file:
            raise ValueError(f"the file {file!r}")
        pieces.append(_Piece(offsets, sizes, file, start, nbytes))
    return _Sharded(_numbers(entry.size), tuple(sorted(pieces, key=lambda p: p.offsets)))


def _numbers(values: Sequence[Any]) -> tuple[int, ...]:
    found = tuple(values)
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in found):
        raise ValueError(f"the numbers {found!r}")
    if len(found) > limits.MAX_DIMS:
        raise ValueError(f"{len(found)} dimensions")
    return found


# --------------------------------------------------------------------------------------------------------- the pieces


def _tensor(name: str, sharded: _Sharded, folder: Path, sources: dict[str, Source]) -> Tensor:
    """A whole tensor out of its pieces."""
    where = at(folder, f"tensor {cut(name)}")
    if limits.too_large(sharded.shape):
        raise BadFile(f"{where} has the shape {shown(sharded.shape)}, expected a tensor; save the checkpoint again")
    if sum(math.prod(p.sizes) for p in sharded.pieces) != math.prod(sharded.shape):
        raise BadFile(f"{where}: its {len(sharded.pieces)} pieces are not the whole of {shown(sharded.shape)}")
    if not sharded.pieces:
        raise Unsupported(f"{where} has no elements; no model needs it, save the checkpoint without it")
    rows = []
    for _, group in itertools.groupby(sharded.pieces, key=lambda p: p.offsets[:1]):
        across = list(group)
        read = [_piece(piece, name, folder, sources, where) for piece in across]
        height = across[0].sizes[:1]
        _check_tiles(across, (*height, *sharded.shape[1:]), where)
        if not sharded.shape:
            return read[0].renamed(name)
        rows.append(read[0] if len(read) == 1 else moving.beside(read, (*height, *sharded.shape[1:])))
    made = rows[0]
    if len(rows) > 1:
        joined = moving.beside if len(sharded.shape) == 1 else moving.join
        made = joined(rows, sharded.shape)
    return made.renamed(name)


def _check_tiles(pieces: Sequence[_Piece], shape: tuple[int, ...], where: str) -> None:
    """Refuse pieces that are cut otherwise than by rows and by columns, or that don't follow each other."""
    reached = 0
    for piece in pieces:
        before, last = piece.offsets[1:-1], piece.offsets[-1] if len(shape) > 1 else reached
        if any(before) or piece.sizes[:-1] != shape[:-1] * (len(shape) > 1) or last != reached:
            raise Unsupported(f"{where} is cut in a way that is not read here; save it in whole rows or columns")
        reached += piece.sizes[-1]
    if len(shape) > 1 and reached != shape[-1]:
        raise BadFile(f"{where}: a piece of it is missing; save the checkpoint again")


def _piece(piece: _Piece, name: str, folder: Path, sources: dict[str, Source], where: str) -> Tensor:
    path = folder / piece.file
    if not path.is_file():
        raise BadFile(f"{where}: its file {piece.file} is missing; copy the whole folder")
    source = sources.setdefault(piece.file, Source.of(path))
    made = torch_file.saved_tensor(source.window(piece.start, piece.nbytes), name)
    if made.shape != piece.sizes:
        raise BadFile(f"{where}: a piece has the shape {shown(made.shape)}, stated {shown(piece.sizes)}; save it again")
    return made


FORMAT = Format(name=NAME, dialect="program", sniff=sniff, open=open, keyed=True)
"""Read only."""
