"""Writing PyTorch checkpoints: a zip of a pickle, in which each tensor names a storage, and the storages' bytes.

The pickle is made here, opcode by opcode, so that torch is not needed: plain data, and calls of
`torch._utils._rebuild_tensor_v2` on storages.  Tensors that are one stay one.  Layout: torch/serialization.py.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv.errors import Unsupported, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign.trees import tree_of
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.formats.writing.outputs import Outputs
from llmconv.progress import Meter
from llmconv.quant import plain

__all__ = ["save"]

_ROOT = "archive/"
_ALIGNED = 64
_STORAGES: dict[BlockClass, str] = {
    plain.F64: "DoubleStorage",
    plain.F32: "FloatStorage",
    plain.F16: "HalfStorage",
    plain.BF16: "BFloat16Storage",
    plain.I64: "LongStorage",
    plain.I32: "IntStorage",
    plain.I16: "ShortStorage",
    plain.I8: "CharStorage",
    plain.U8: "ByteStorage",
    plain.BOOL: "BoolStorage",
    plain.C64: "ComplexFloatStorage",
}
_MACHINE: Any = pickle._Pickler  # in Python: the one whose opcodes can be chosen


@dataclass(frozen=True)
class _Global:
    """Something of a module's, by name: nothing is imported."""

    module: str
    name: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    count: int


class _Writer(_MACHINE):  # type: ignore[misc]
    dispatch = dict(_MACHINE.dispatch)

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, 2)
        self.storages: list[Tensor] = []
        self._keys: dict[int, _Storage] = {}

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return ("storage", _Global("torch", obj.kind), obj.key, "cpu", obj.count)
        return None

    def _global(self, obj: _Global) -> None:
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    def _tensor(self, tensor: Tensor) -> None:
        kind = _STORAGES.get(tensor.type)
        if kind is None:
            raise Unsupported(f"tensor {cut(tensor.name)} is {tensor.type.name}, which .pt has no storage for here")
        if id(tensor.read) not in self._keys:
            self._keys[id(tensor.read)] = _Storage(kind, str(len(self.storages)), tensor.n_elements)
            self.storages.append(tensor)
        shape = tensor.shape
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        storage = self._keys[id(tensor.read)]
        self.save(_Global("torch._utils", "_rebuild_tensor_v2"))
        self.save((storage, 0, shape, strides, False, OrderedDict()))
        self.write(pickle.REDUCE)

    dispatch[_Global] = _global
    dispatch[Tensor] = _tensor


def save(
    checkpoint: Checkpoint, path: Path, *, force: bool = False, jobs: int | None = None, meter: Meter | None = None
) -> list[Path]:
    """Write what `torch.load` reads (with `weights_only`, too); `Unsupported` for a type that no storage holds."""
    program = io.BytesIO()
    writer = _Writer(program)
    writer.dump(tree_of(checkpoint))
    total = len(program.getvalue()) + sum(tensor.nbytes for tensor in writer.storages)
    with (
        Outputs({path: total}, force=force, inputs=checkpoint.inputs()) as outputs,
        outputs.open(path) as out,
        zipfile.ZipFile(out.file, "w") as archive,
    ):
        _entry(archive, "data.pkl", program.getvalue())
        _entry(archive, "byteorder", b"little")
        for key, tensor in enumerate(writer.storages):
            with archive.open(_info(archive, f"data/{key}"), "w", force_zip64=True) as file:
                for start, stop in tensor.slabs():
                    file.write(tensor.read(start, stop).tobytes())
                    if meter is not None:
                        meter((stop - start) * tensor.row_bytes, tensor.name)
        _entry(archive, "version", b"3\n")
    return [path]


def _entry(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    with archive.open(_info(archive, name), "w", force_zip64=True) as file:
        file.write(data)


def _info(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """An entry whose bytes begin at a multiple of 64, as torch maps them."""
    info = zipfile.ZipInfo(_ROOT + name)
    zip64 = 20
    begin = archive.fp.tell() + 30 + len(info.filename) + zip64 + 4  # type: ignore[union-attr]
    room = -begin % _ALIGNED
    info.extra = struct.pack("<HH", 0x4246, room) + b"Z" * room
    return info
