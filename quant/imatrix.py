"""Importance matrices: how much each column of a weight matrix matters, measured over a text.

A quantizer with importance weights minimises sum(importance * error²) of a row.  A file holds, for each matrix, the sum
over tokens of the squared inputs of each column, and how many tokens were counted; their quotient is the importance.

Two containers exist.  GGUF (`NAME.in_sum2` and `NAME.counts`, one count for each expert) is opened by `formats` and
read here by `from_tensors`; the older .dat by `from_dat`.  Both follow llama.cpp's loader (common/imatrix-loader.cpp)
and its use in llama-quantize, operation by operation, so that the weights are the same floats.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import BadFile, UsageError, cut
from llmconv.quant.block import BlockType

__all__ = ["MAX_ENTRIES", "Importance", "Stored", "dat_entries", "dat_tail", "from_dat", "from_tensors"]

MAX_ENTRIES = 1 << 20
"""Matrices in a file."""
MAX_NAME_BYTES = 65_535
_LARGEST = np.float32(1e30)
"""A mean of squared inputs; no model's come near."""
SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Importance:
    """Importance weights by tensor name.

    entries: name -> float32, one weight a column; for stacked experts, one expert after another.
    chunks: pieces of text that were counted, 0 when the file does not say.
    datasets: the names of the texts.   unseen: name -> how many of its matrices no token went through; ones stand
    for the weights of those, as in llama-quantize.
    """

    entries: Mapping[str, NDArray[np.float32]]
    chunks: int = 0
    datasets: Sequence[str] = field(default_factory=tuple)
    unseen: Mapping[str, int] = field(default_factory=dict)

    def filtered(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Importance:
        """Only entries whose name contains one of `include`, or none of `exclude`; giving both is an error."""
        if include and exclude:
            raise UsageError("--include-weights and --exclude-weights exclude each other; give one of them")
        kept = {
            name: values
            for name, values in self.entries.items()
            if (not include or any(part in name for part in include)) and not any(part in name for part in exclude)
        }
        return replace(self, entries=kept)

    def check(self, where: str) -> None:
        """`BadFile` when a weight is negative, infinite, not a number, or so large that sums of products overflow."""
        for name, values in self.entries.items():
            good = (values <= _LARGEST) & (values >= 0)
            if not good.all():
                i = int(np.argmin(good))
                raise BadFile(f"{where}: importance of {name!r} at {i} is {values[i]}; compute the matrix again")


class Stored(Protocol):
    """What is needed of a tensor in the GGUF form (`formats.Tensor` has it)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> type[BlockType]: ...
    def numpy(self) -> NDArray[Any]: ...


def from_tensors(tensors: Mapping[str, Stored], metadata: Mapping[str, Any], where: str) -> Importance:
    """From an opened GGUF: pairs `NAME.in_sum2` (experts, columns) and `NAME.counts` (experts, 1), both F32.

    where: begins messages (the file).  Raises `BadFile` for a tensor without its other half, counts that do not
    divide the sums or are not finite, or missing `imatrix.*` keys.
    """
    keys = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
    missing = [key for key in keys if key not in metadata]
    if missing:
        raise BadFile(f"{where}: key {missing[0]!r} is missing; it is no importance matrix")
    datasets = metadata[keys[0]]
    if isinstance(datasets, str) or not all(isinstance(name, str) for name in datasets):
        raise BadFile(f"{where}: key {keys[0]!r} is {type(datasets).__name__}, expected an array of strings")
    names = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
    names += [name.removesuffix(COUNTS) for name in tensors if name.endswith(COUNTS)]
    if not names:
        raise BadFile(f"{where}: holds no tensor NAME{SUMS}; it is no importance matrix")
    entries, unseen = {}, {}
    for name in dict.fromkeys(names):
        sums, counts = tensors.get(name + SUMS), tensors.get(name + COUNTS)
        if sums is None or counts is None:
            raise BadFile(f"{where}: {name!r} has only one of {SUMS} and {COUNTS}; compute the matrix again")
        if sums.type.name != "F32" or counts.type.name != "F32":
            raise BadFile(f"{where}: sums and counts of {name!r} are not F32; compute the matrix again")
        entries[name], never = _normalised(
            sums.numpy().reshape(-1), counts.numpy().reshape(-1), f"{where}: {cut(name)}"
        )
        if never:
            unseen[name] = never
    return Importance(entries, _whole(metadata[keys[1]], f"{where}: key {keys[1]!r}"), tuple(datasets), unseen)


def _normalised(sums: NDArray[np.float32], counts: NDArray[np.float32], what: str) -> tuple[NDArray[np.float32], int]:
    """The weights of all matrices, and how many of those saw no token."""
    if not len(counts) or not len(sums) or len(sums) % len(counts):
        raise BadFile(f"{what} has {len(sums)} sums and {len(counts)} counts; compute the matrix again")
    if not np.isfinite(counts).all() or counts.max() > 2**62 or counts.min() < 0:
        raise BadFile(f"{what} has a count that is no number of tokens; compute the matrix again")
    whole = np.trunc(counts.astype(np.float64) + np.copysign(0.5, counts)).astype(np.float32)  # C's lround
    values = np.ones((len(counts), len(sums) // len(counts)), np.float32)  # an expert that was never used
    with np.errstate(over="ignore", invalid="ignore"):
        np.divide(sums.reshape(values.shape), whole[:, None], out=values, where=whole[:, None] > 0)
    return values.reshape(-1), int((whole == 0).sum())


def _whole(value: Any, what: str) -> int:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise BadFile(f"{what} is {value!r}, expected a whole number")


class _Reader:
    """A position in the bytes of a .dat file."""

    def __init__(self, data: bytes | memoryview, where: str):
        self.data, self.where, self.pos = memoryview(data), where, 0

    def take(self, size: int, what: str) -> memoryview:
        if size < 0 or self.pos + size > len(self.data):
            raise BadFile(
                f"{self.where}: {what} needs {size:,} bytes at {self.pos:,} but the file ends at {len(self.data):,}; "
                "it is cut short or no importance matrix"
            )
        self.pos += size
        return self.data[self.pos - size : self.pos]

    def int32(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])

    def text(self, what: str) -> str:
        size = self.int32(f"the length of {what}")
        if not 0 <= size <= MAX_NAME_BYTES:
            raise BadFile(f"{self.where}: {what} is {size:,} bytes long, expected at most {MAX_NAME_BYTES:,}")
        try:
            return bytes(self.take(size, what)).split(b"\0", 1)[0].decode()
        except UnicodeDecodeError:
            raise BadFile(f"{self.where}: {what} is not valid UTF-8; it is no importance matrix") from None

    @property
    def left(self) -> int:
        return len(self.data) - self.pos


def from_dat(data: bytes | memoryview, where: str) -> Importance:
    """From the bytes of a .dat file, little-endian.

    Layout: int32 entries; each an int32 length and its name, int32 calls, int32 n, n float32 (sums); then, in newer
    ones, int32 chunks and the data set's name.  Raises `BadFile` when a number exceeds the bytes that are there.
    """
    reader, found = dat_entries(data, where)
    entries = {name: sums / np.float32(calls) if calls > 0 else sums for name, calls, sums in found}
    chunks, datasets = dat_tail(reader)
    return Importance(entries, chunks, tuple(datasets))


def dat_entries(data: bytes | memoryview, where: str) -> tuple[_Reader, list[tuple[str, int, NDArray[np.float32]]]]:
    """The entries of a .dat file: name, calls, sums; and a reader behind them."""
    reader = _Reader(data, where)
    n = reader.int32("the number of entries")
    if not 0 < n <= min(MAX_ENTRIES, reader.left // 16 + 1):
        raise BadFile(f"{where}: claims {n:,} entries in {len(reader.data):,} bytes; it is no importance matrix")
    entries: dict[str, tuple[str, int, NDArray[np.float32]]] = {}
    for i in range(n):
        name = reader.text(f"entry {i}'s name")
        calls, count = reader.int32(f"{name!r}'s calls"), reader.int32(f"{name!r}'s number of values")
        if count < 1 or calls < 0:
            what = f"{count} values of {calls} calls"
            raise BadFile(f"{where}: {name!r} has {what}, expected at least one value; compute the matrix again")
        if name in entries:
            raise BadFile(f"{where}: {name!r} is there twice; the file is damaged")
        sums = np.frombuffer(reader.take(4 * count, f"{name!r}'s values"), "<f4").astype(np.float32)
        entries[name] = name, calls, sums
    return reader, list(entries.values())


def dat_tail(reader: _Reader) -> tuple[int, list[str]]:
    """What newer .dat files have behind the entries: chunks, and the data set's name."""
    chunks, datasets = 0, []
    if reader.left >= 4:
        chunks = reader.int32("the number of chunks")
        if reader.left >= 4:
            dataset = reader.text("the data set's name")
            datasets = [dataset] if dataset else []
    return max(0, chunks), datasets
