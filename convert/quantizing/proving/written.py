"""A file is proved while it is written: each slab of rows is read back and compared by the thread that has just written
it.  What it was made of is in the processor's cache then, the disk is busy, and the file has no name yet.

The header is read again, as whoever opens the file will, before the weights are written: what is compared lies where it
says.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import numpy as np

from llmconv.convert.quantizing.plan import PlannedTensor
from llmconv.convert.quantizing.proving.by_codes import Same, both, same
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.unpack import unpack
from llmconv.errors import LlmconvError, at, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.sharing.team import current
from llmconv.formats.source import read_back
from llmconv.formats.tensor import Tensor
from llmconv.formats.writing.outputs import Output
from llmconv.formats.writing.target import Proving, Told
from llmconv.progress import Meter

__all__ = ["PROOF", "Pair", "Proof", "in_bits", "of_folder", "of_gguf"]

PROOF = "repacked, every weight equal"
_SLAB, _DECODED = 1 << 20, 1 << 18  # weights


@dataclasses.dataclass(frozen=True)
class Pair:
    """What a file says of a weight, and what it must say.

    tensor: the weight, for its name and size.
    same: says of rows whether both have the same numbers and scales; a False says nothing, nor does a None.
    floats: gives the file's weight and the one that it must be, both to be decoded.
    """

    tensor: Tensor
    same: Same | None
    floats: Callable[[], tuple[Tensor, Tensor]]

    def compare(self, start: int, stop: int) -> None:
        """Raises `LlmconvError` at the first weight of rows start..stop that differs."""
        if self.same is not None and self.same(start, stop):
            return
        step = max(1, _DECODED // max(1, self.tensor.row_len))
        for low in range(start, stop, step):
            self._compare_floats(low, min(stop, low + step))

    def _compare_floats(self, start: int, stop: int) -> None:
        written, want = self.floats()
        if written.type is want.type and np.array_equal(written.blocks(start, stop), want.blocks(start, stop)):
            return
        expected = want.rows(start, stop)
        got = written.rows(start, stop).astype(expected.dtype, copy=False)  # of a grid, in its floats' own type
        if not np.array_equal(got, expected) and not np.array_equal(got, expected, equal_nan=True):
            at = int(np.flatnonzero((got != expected).reshape(-1))[0])
            raise LlmconvError(
                f"tensor {cut(self.tensor.name)}: weight {start * self.tensor.row_len + at} reads "
                f"{got.reshape(-1)[at]} from the written {written.type.name}, expected {expected.reshape(-1)[at]}; "
                "nothing was written, report this as a bug"
            )


class Proof:
    """Tensors that are compared as they are written, and how much of each was."""

    def __init__(self) -> None:
        self._pairs: dict[str, Pair] = {}
        self._done: deque[tuple[str, int]] = deque()  # names and rows

    def add(self, name: str, pair: Pair) -> None:
        """A weight that is to be proved.   name: of the tensor that is told of."""
        self._pairs[name] = pair

    def of(self, name: str) -> Told | None:
        """What is to be told of rows of that tensor, by the thread that wrote them; None where nothing is compared."""
        return functools.partial(self._compare, name) if name in self._pairs else None

    def _compare(self, name: str, start: int, stop: int) -> None:
        self._pairs[name].compare(start, stop)
        self._done.append((name, stop - start))

    def rest(self, jobs: int, meter: Callable[[int], Meter]) -> None:
        """Compare what an earlier run had written.   meter: of so many bytes."""
        done = {name for name, _ in self._done}
        left = {name: pair.tensor for name, pair in self._pairs.items() if name not in done}
        if not left:
            return

        def slabs() -> Iterator[tuple[str, int, int]]:
            for name, tensor in left.items():
                step = max(1, _SLAB // max(1, tensor.row_len))
                for start in range(0, tensor.n_rows, step):
                    yield name, start, min(tensor.n_rows, start + step)

        def compare(slab: tuple[str, int, int]) -> tuple[str, int]:
            name, start, stop = slab
            self._compare(name, start, stop)
            return name, (stop - start) * left[name].row_bytes

        told = meter(sum(tensor.nbytes for tensor in left.values()))
        with ThreadPoolExecutor(jobs) as pool:
            try:
                for name, nbytes in pool.map(compare, slabs()):
                    told(nbytes, name)
            finally:
                pool.shutdown(cancel_futures=True)

    def require(self) -> None:
        """Raises `LlmconvError` unless all rows were compared, each once; of several processes, each has its own."""
        if current() is not None:
            return
        rows: Counter[str] = Counter()
        for name, count in self._done:
            rows[name] += count
        for name, pair in self._pairs.items():
            if rows[name] != pair.tensor.n_rows:
                raise LlmconvError(
                    f"tensor {cut(name)}: {rows[name]:,} rows were compared, expected {pair.tensor.n_rows:,}; nothing "
                    "was written, report this as a bug"
                )


def of_gguf(out: Output, planned: Iterable[PlannedTensor]) -> dict[str, Tensor]:
    """The tensors of a GGUF that is being written, by its header; `LlmconvError` where that says other than planned."""
    opened = gguf_file.open_alone(out.temporary)
    found: dict[str, Tensor] = {}
    for tensor in planned:
        there = opened.tensors.pop(tensor.name, None)
        said = there and (there.type, there.row_len, there.nbytes, there.extent and there.extent.offset)
        if there is None or said != (tensor.choice.type, tensor.source.row_len, tensor.nbytes, tensor.offset):
            _differs(out, tensor.name)
        found[tensor.name] = read_back(there, out.file.fileno())
    for name in opened.tensors:
        _differs(out, name)
    return found


def of_folder(proof: Proof, model: Checkpoint, wants: Mapping[str, Tensor], stored: Mapping[str, Coded]) -> Proving:
    """The proof of a folder's layers, each of which is told of by the tensor that holds its numbers.

    wants: what they must say: floats, or blocks.   stored: the codes that some of them are of.
    """
    packed = ((f"{name.removesuffix('.weight')}.weight_packed", name) for name in wants)
    holds = {name: next(n for n in names if n in model.tensors) for name, names in zip(wants, packed, strict=True)}

    def begin(written: Checkpoint) -> Callable[[str], Told | None]:
        layers: dict[str, Coded] = {}

        def coded(layer: Coded) -> Tensor:
            layers[layer.weight] = layer
            return layer.floats()

        found = unpack(model.but(tensors=written.tensors), coded).tensors
        for name, want in wants.items():
            records = both(layers[name], stored.get(name, want)) if name in layers else None
            floats = functools.partial(lambda *pair: pair, found[name], want)
            proof.add(holds[name], Pair(want, None if records is None else same(*records), floats))
        return proof.of

    return Proving(frozenset(holds.values()), begin, proof.require)


def _differs(out: Output, name: str) -> NoReturn:
    raise LlmconvError(
        f"{at(out.path)}: the header that was written says other of tensor {cut(name)} than was planned; nothing was "
        "written, report this as a bug"
    )


def in_bits(found: Iterable[int]) -> str:
    """For people: "4 bits, ", "4 and 8 bits, ", or nothing."""
    each = sorted(set(found))
    return f"{' and '.join(map(str, each))} bits, " if each else ""
