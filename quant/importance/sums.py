"""What an importance matrix is made of: of each matrix the sums of its squared inputs, and how many were counted.

Sums of several texts, or of several files, are added.  The two containers and what is in them are
llama-imatrix's (tools/imatrix/imatrix.cpp in llama.cpp): GGUF keeps sums and counts as they are, the older .dat only
mean times calls, a call being a chunk of text.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import BadFile, UsageError, cut, shown
from llmconv.quant.imatrix import COUNTS, SUMS, Stored, dat_entries, dat_tail, from_tensors

__all__ = ["Entry", "Sums", "sums_of_dat", "sums_of_tensors"]

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """One tensor.   sums: (matrices, columns) float64.   counts: (matrices,) or (1,) for all, tokens each has seen."""

    sums: Doubles
    counts: Doubles

    @property
    def unseen(self) -> list[int]:
        """The matrices of a stack that no token went through."""
        return np.flatnonzero(self.counts == 0).tolist()

    def means(self) -> Doubles:
        """Mean squares (matrices, columns), 0 where nothing was seen."""
        return np.divide(self.sums, self.counts[:, None], out=np.zeros_like(self.sums), where=self.counts[:, None] > 0)


@dataclass
class Sums:
    """Entries by tensor name.

    chunks: pieces of text counted.   chunk_size: tokens in one.   datasets: the texts' names.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    chunks: int = 0
    chunk_size: int = 0
    datasets: Sequence[str] = ()

    def add(self, name: str, sums: Doubles, counts: Doubles) -> None:
        """Add to an entry; a count for all matrices is spread where the other has one for each.  `ValueError`."""
        old = self.entries.get(name)
        if old is None:
            self.entries[name] = Entry(np.array(sums, np.float64), np.array(counts, np.float64))
            return
        spread = len(old.counts) == len(counts) or 1 in (len(old.counts), len(counts))
        if old.sums.size != sums.size or not spread:
            raise ValueError(f"{cut(name)} has sums of {shown(sums.shape)}, before {shown(old.sums.shape)}")
        shape = old.sums.shape if len(old.sums) >= len(sums) else sums.shape
        self.entries[name] = Entry(old.sums.reshape(shape) + sums.reshape(shape), old.counts + counts)

    def merge(self, other: Sums, where: str) -> None:
        """Add another matrix of the same model; `BadFile` when it is of another one.   where: its file."""
        if self.entries and other.entries and not self.entries.keys() & other.entries.keys():
            raise BadFile(
                f"{where}: has no tensor of the others, such as {cut(min(self.entries))}; it is another model's"
            )
        for name, entry in other.entries.items():
            good = np.isfinite(entry.sums).all() and (entry.sums >= 0).all()
            if not good or not np.isfinite(entry.counts).all() or (entry.counts < 0).any():
                raise BadFile(f"{where}: sums of {cut(name)} are negative or no numbers; compute the matrix again")
            try:
                self.add(name, entry.sums, entry.counts)
            except ValueError as error:
                raise BadFile(f"{where}: {error}; it belongs to another model") from None
        self.chunk_size = self.chunk_size or other.chunk_size
        self.chunks += other.chunks
        self.datasets = [*self.datasets, *other.datasets]

    def check(self) -> None:
        """`UsageError` where nothing was counted at all."""
        if not any(entry.counts.any() for entry in self.entries.values()):
            raise UsageError("no token went through any matrix, so there is nothing to write; give a text")

    def metadata(self) -> dict[str, Any]:
        """The keys of the GGUF form."""
        return {
            "general.type": "imatrix",
            "imatrix.datasets": list(self.datasets),
            "imatrix.chunk_count": np.uint32(self.chunks),
            "imatrix.chunk_size": np.uint32(self.chunk_size),
        }

    def arrays(self, dtype: Any = np.float32) -> Iterator[tuple[str, NDArray[Any]]]:
        """The tensors of the GGUF form: by name, sums (matrices, columns) and then counts (matrices, 1)."""
        for name in sorted(self.entries):
            entry = self.entries[name]
            yield name + SUMS, entry.sums.reshape(len(entry.counts), -1).astype(dtype)
            yield name + COUNTS, entry.counts[:, None].astype(dtype)

    def dat(self) -> bytes:
        """The older form; entries that saw nothing are left out, matrices that saw nothing of others get ones."""
        size = max(1, self.chunk_size)
        named = [(name, self.entries[name]) for name in sorted(self.entries) if self.entries[name].counts.any()]
        out = [struct.pack("<i", len(named))]
        for name, entry in named:
            calls = int(-(-entry.counts.max() // size))
            sums = entry.sums.reshape(len(entry.counts), -1).astype(np.float32)
            counts = entry.counts[:, None].astype(np.float32)
            means = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0) * np.float32(calls)
            raw = name.encode()
            out.append(struct.pack("<i", len(raw)) + raw + struct.pack("<ii", calls, sums.size))
            out.append(means.astype("<f4").tobytes())
        dataset = (self.datasets[-1] if self.datasets else "").encode()
        return b"".join([*out, struct.pack("<ii", self.chunks, len(dataset)), dataset])


def sums_of_tensors(tensors: Mapping[str, Stored], metadata: Mapping[str, Any], where: str) -> Sums:
    """From an opened GGUF, checked as `from_tensors` does."""
    known = from_tensors(tensors, metadata, where)
    found = Sums({}, known.chunks, int(metadata["imatrix.chunk_size"]), tuple(known.datasets))
    for name in known.entries:
        counts = tensors[name + COUNTS].numpy().reshape(-1)
        found.add(name, tensors[name + SUMS].numpy().reshape(len(counts), -1), counts)
    return found


def sums_of_dat(data: bytes, where: str, chunk_size: int) -> Sums:
    """From the bytes of a .dat: what it holds times a chunk's tokens, as the reference takes it."""
    reader, found = dat_entries(data, where)
    sums = Sums({}, 0, chunk_size)
    for name, calls, values in found:
        sums.add(name, values[None].astype(np.float64) * chunk_size, np.full(1, max(1, calls) * chunk_size, np.float64))
    sums.chunks, sums.datasets = dat_tail(reader)
    return sums
