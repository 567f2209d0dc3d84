"""ONNX models: their initializers, in the file or beside it (external data).  Read only, through the optional onnx.

Types and fields: onnx.proto's TensorProto.  Numbers are in `raw_data`, little-endian, or in the field of their kind
(16 bits and less as int32_data); two 4-bit numbers share a byte, the first one low.  They become whole bytes here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llmconv.errors import BadFile, MissingExtra, Unsupported, at, cut, more
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import regular_size
from llmconv.formats.format import Format
from llmconv.formats.source import Source
from llmconv.formats.tensor import BlockClass, Tensor, type_of_dtype
from llmconv.quant import plain
from llmconv.quant.block import Bytes

NAME = "onnx"

# TensorProto.DataType -> numpy's type of the stored items, and the field that holds them where raw_data does not.
_TYPES: dict[int, tuple[Any, str]] = {
    1: (np.float32, "float_data"),
    2: (np.uint8, "int32_data"),
    3: (np.int8, "int32_data"),
    4: (np.uint16, "int32_data"),
    5: (np.int16, "int32_data"),
    6: (np.int32, "int32_data"),
    7: (np.int64, "int64_data"),
    9: (np.bool_, "int32_data"),
    10: (np.float16, "int32_data"),
    11: (np.float64, "double_data"),
    12: (np.uint32, "uint64_data"),
    13: (np.uint64, "uint64_data"),
    14: (np.complex64, "float_data"),
    16: (ml_dtypes.bfloat16, "int32_data"),
    17: (ml_dtypes.float8_e4m3fn, "int32_data"),
    18: (ml_dtypes.float8_e4m3fnuz, "int32_data"),
    19: (ml_dtypes.float8_e5m2, "int32_data"),
    20: (ml_dtypes.float8_e5m2fnuz, "int32_data"),
}
_HALF_BYTES: dict[int, BlockClass] = {21: plain.U8, 22: plain.I8}
"""UINT4 and INT4 -> the type whose numbers they become."""
_BITS = (10, 16, 17, 18, 19, 20)
"""Types whose items are in int32_data by their bits."""
_AFTER_VERSION = b"\x12\x1a\x22\x28\x32\x3a\x42\x72"


def sniff(path: Path, head: bytes) -> bool:
    """Protobuf has no signature: field 1, a small version, and the key of one of ModelProto's next fields."""
    version = len(head) > 2 and head[0] == 8 and 0 < head[1] < 32 and head[2:3] in _AFTER_VERSION
    return version or (path.suffix == ".onnx" and not path.is_dir() and head[:1] in b"\x08\x12\x1a\x22\x2a\x32\x3a\x42")


def open(path: Path) -> Checkpoint:
    """The initializers under their names; `MissingExtra` without onnx.  The graph itself is not kept."""
    if regular_size(path) > limits.ONNX_BYTES:
        raise BadFile(f"{at(path)}: is larger than {limits.ONNX_BYTES:,} bytes, expected an ONNX model")
    source = Source.of(path)
    model = _model(path, source)
    out = Checkpoint(format=NAME, source=path, dialect="plain")
    for proto in model.graph.initializer:
        if not proto.name or proto.name in out.tensors or len(proto.name) > limits.MAX_NAME_BYTES:
            raise BadFile(
                f"{at(path)}: has an initializer without a name of its own ({cut(proto.name)}); save it again"
            )
        out.add(_tensor(proto, path))
    sparse = len(model.graph.sparse_initializer)
    if sparse:
        raise Unsupported(f"{at(path)}: has {sparse} sparse initializers, which are not read; save them dense")
    if not out.tensors:
        raise BadFile(f"{at(path)}: holds no initializers, so there is nothing to convert")
    halves = [p.name for p in model.graph.initializer if p.data_type in _HALF_BYTES]
    if halves:
        out.notes.append(f"tensor {cut(halves[0])}{more(halves)} of 4 bits takes a byte for each number")
    inside = sum(len(a.g.initializer) for node in model.graph.node for a in node.attribute)
    constants = sum(node.op_type == "Constant" for node in model.graph.node)
    out.notes.append(
        f"the weights are kept, the graph of {len(model.graph.node):,} nodes is not"
        + (f", nor are {constants + inside:,} constants in it" if constants + inside else "")
    )
    out.metadata = _metadata(model)
    out.parts = [path, *{t.extent.path for t in out.tensors.values() if t.extent is not None}]
    return out


def _model(path: Path, source: Source) -> Any:
    try:
        import onnx
    except ImportError:
        raise MissingExtra(f"{at(path)}: reading ONNX", "onnx", "onnx") from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(source.read(0, source.size).tobytes())
    except Exception as error:  # protobuf's own kind, which moved from version to version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:80]
        raise BadFile(f"{at(path)}: is no whole ONNX model ({reason}); fetch it again") from None
    return model


def _metadata(model: Any) -> dict[str, Any]:
    stated: dict[str, Any] = {
        "onnx.ir_version": str(model.ir_version),
        "onnx.producer": f"{model.producer_name} {model.producer_version}".strip(),
        "onnx.opsets": ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import),
        "onnx.graph": model.graph.name,
    }
    stated |= {f"onnx.metadata.{p.key}": p.value for p in model.metadata_props}
    return {key: value for key, value in stated.items() if value}


def _tensor(proto: Any, path: Path) -> Tensor:
    where = f"{at(path)}: initializer {cut(proto.name)}"
    shape, half = tuple(proto.dims), _HALF_BYTES.get(proto.data_type)
    if any(n < 0 for n in shape) or len(shape) > limits.MAX_DIMS or limits.too_large(shape):
        raise BadFile(f"{where} has shape {cut(list(shape))}, which no tensor has; the file is damaged")
    if half is None and proto.data_type not in _TYPES:
        raise Unsupported(f"{where} is of ONNX's type {proto.data_type}, which no tensor type stores")
    dtype: np.dtype[Any] = np.dtype(np.uint8 if half else _TYPES[proto.data_type][0])
    count = math.prod(shape)
    needed = -(-count // 2) if half else count * dtype.itemsize
    if proto.data_location == 1:
        return _external(proto, path, needed, shape, dtype)
    raw = bytes(proto.raw_data) if proto.HasField("raw_data") else _fields(proto, dtype, needed, where)
    if len(raw) != needed:
        raise BadFile(f"{where} has {len(raw):,} bytes, expected {needed:,} by its shape and type; the file is damaged")
    values = np.frombuffer(raw, dtype.newbyteorder("<") if dtype.itemsize > 1 and dtype.kind != "V" else dtype)
    return Tensor.from_array(proto.name, (_unpacked(values, count, half) if half else values).reshape(shape))


def _fields(proto: Any, dtype: np.dtype[Any], needed: int, where: str) -> bytes:
    """The numbers of the field of their kind, as bytes."""
    if proto.data_type in _HALF_BYTES:
        field: Iterable[Any] = proto.int32_data
        values: NDArray[Any] = np.array(field, np.int64)
        items = np.dtype(np.uint8)
    else:
        field = getattr(proto, _TYPES[proto.data_type][1])
        values = np.array(field)
        items = np.dtype(f"u{dtype.itemsize}") if proto.data_type in _BITS else dtype
    if dtype.kind == "c":
        return np.array(field, "<f4").tobytes()
    with np.errstate(all="ignore"):
        cast = values.astype(items)
    if values.dtype.kind in "iu" and not np.array_equal(cast.astype(values.dtype), values):
        raise BadFile(f"{where} holds numbers that its type can't hold; the file is damaged")
    return cast.tobytes() if values.size else b""


def _unpacked(values: NDArray[Any], count: int, kind: BlockClass) -> NDArray[Any]:
    """The 4-bit numbers in the bytes, one a byte."""
    both = np.stack([values & 15, values >> 4], axis=-1).reshape(-1)[:count]
    return both if kind is plain.U8 else ((both ^ 8).astype(np.int8) - np.int8(8))


def _external(proto: Any, path: Path, needed: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """A tensor whose bytes lie in a file beside the model."""
    where = f"{at(path)}: initializer {cut(proto.name)}"
    stated = {entry.key: entry.value for entry in proto.external_data}
    name = stated.get("location", "")
    parts = Path(name).parts
    if not name or "\0" in name or "\\" in name or Path(name).is_absolute() or ".." in parts:
        raise BadFile(f"{where} names the file {cut(name)}, expected one in the model's own folder; it is not followed")
    beside = path.parent / name
    if not beside.is_file():
        raise BadFile(f"{where}: its file {cut(name)} is missing in the model's folder; fetch it")
    try:
        offset, length = int(stated.get("offset", "0") or 0), int(stated.get("length", needed) or 0)
    except ValueError:
        raise BadFile(f"{where} states no numbers as its place in {cut(name)}; the file is damaged") from None
    source = Source.of(beside)
    if length != needed or offset < 0 or offset + needed > source.size:
        raise BadFile(
            f"{where} lies at {offset:,} with {length:,} bytes in {cut(name)} of {source.size:,}, expected {needed:,}"
        )
    half = _HALF_BYTES.get(proto.data_type)
    if half is None:
        return source.tensor(proto.name, shape, type_of_dtype(dtype), offset)
    count, row = math.prod(shape), shape[-1] if shape else 1

    def read(start: int, stop: int) -> Bytes:
        assert half is not None
        first, last = start * row // 2, -(-stop * row // 2)
        data = source.read(offset + first, last - first)
        numbers = _unpacked(data, min(count - 2 * first, 2 * data.size), half)[start * row - 2 * first :]
        return np.ascontiguousarray(numbers[: (stop - start) * row]).view(np.uint8).reshape(stop - start, row)

    return Tensor(proto.name, shape, half, read)


FORMAT = Format(name=NAME, dialect="plain", sniff=sniff, open=open)
