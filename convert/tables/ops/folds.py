"""Ops that make one tensor of several by arithmetic: their ways back need what was put in."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.tables.ops.base import Dims, Op, Parts, Size, evaluate
from llmconv.errors import Unsupported
from llmconv.formats.moving.rows import join
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes

__all__ = ["BatchNorm", "Beginnings", "Slabs", "ThroughMlp"]


@dataclass(frozen=True)
class BatchNorm(Op):
    """(weight, bias, mean, variance) of a batch norm, each of shape (n,) -> the (weight, bias) that do as much, F32:

        a = weight / sqrt(variance + eps),   b = bias - mean * a

    in single precision, each step rounded, as llama.cpp's converter has it.  `undo` gives a norm that does the same
    (mean 0, variance 1 - eps); which numbers there were is recorded, and put back where they still give these.
    """

    exact = False
    eps: float = 1e-5

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        weight, bias, *_ = parts
        return (
            _vector(weight, lambda: self._folded(parts)[0]),
            _vector(bias, lambda: self._folded(parts)[1]),
        )

    def _folded(self, parts: Parts) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        weight, bias, mean, variance = (part.numpy().astype(np.float32) for part in parts)
        with np.errstate(all="ignore"):
            a = weight / np.sqrt(variance + np.float32(self.eps))
            return a, bias - mean * a

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        weight, bias = parts
        n = weight.n_elements
        return (
            weight,
            bias,
            _vector(bias, lambda: np.zeros(n, np.float32)),
            _vector(bias, lambda: np.full(n, 1 - self.eps, np.float32)),
        )

    def all_lost(self, parts: Parts, dims: Dims) -> tuple[Any, ...]:
        """The bytes of each."""
        return tuple(np.array(part.blocks()).reshape(-1) for part in parts)

    def all_restored(self, parts: Parts, moved: Parts, records: tuple[Any, ...], dims: Dims) -> Parts:
        for part, record in zip(parts, records, strict=True):
            if not isinstance(record, np.ndarray) or record.dtype != np.uint8 or record.size != part.nbytes:
                return parts
        before = tuple(_holding(part, record) for part, record in zip(parts, records, strict=True))

        def choose(part: Tensor, old: Tensor) -> Tensor:
            def read(start: int, stop: int) -> Bytes:
                given = zip(self._folded(before), moved, strict=True)
                same = all(np.array_equal(now.view(np.uint32), then.numpy().view(np.uint32)) for now, then in given)
                return (old if same else part).read(start, stop)

            return dataclasses.replace(part, read=read, extent=None)

        return tuple(choose(part, old) for part, old in zip(parts, before, strict=True))


def _vector(like: Tensor, values: Any) -> Tensor:
    """A vector as long as another one, F32, of what a function gives."""

    def read(start: int, stop: int) -> Bytes:
        return np.ascontiguousarray(values(), np.float32).view(np.uint8).reshape(1, -1)[start:stop]

    return Tensor(like.name, like.shape, plain.F32, read)


def _holding(like: Tensor, data: NDArray[np.uint8]) -> Tensor:
    """A tensor of the same shape and type, of these bytes."""
    rows = data.reshape(like.n_rows, like.row_bytes)
    return dataclasses.replace(like, read=lambda start, stop: rows[start:stop], extent=None)


@dataclass(frozen=True)
class Slabs(Op):
    """The way back from a matrix that is the sum of `count` ones in a row: itself first, then zeros."""

    exact = False
    count: Size = 2

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        (whole,) = parts
        more = whole.row_bytes * (evaluate(self.count, dims) - 1)

        def read(start: int, stop: int) -> Bytes:
            return np.concatenate([whole.read(start, stop), np.zeros((stop - start, more), np.uint8)], axis=1)

        shape = (*whole.shape[:-1], whole.row_len * evaluate(self.count, dims))
        return (dataclasses.replace(whole, shape=shape, read=read, extent=None),)


@dataclass(frozen=True)
class Beginnings(Op):
    """(words, rows of vectors ..., a latent, a matrix) -> the words' vectors, those of the rows behind, and last what
    the matrix makes of the latent, all in the words' type.

    rows: how many rows there are, each a tensor of its own, of three dimensions.   latent: its width.   `undo` can't
    tell the latent and the matrix apart; they are recorded, and put back where they still give the last row.
    """

    exact = False
    rows: Size
    latent: Size

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        words, *rows, latent, matrix = parts
        behind = [
            row.reshaped((1, words.row_len)).astype(words.type) for row in (*rows, self._last(words, latent, matrix))
        ]
        return (join((words, *behind), (words.shape[0] + len(behind), words.row_len)),)

    def _last(self, words: Tensor, latent: Tensor, matrix: Tensor) -> Tensor:
        """In float64, rounded once: alike on every machine."""
        row = Tensor.shadow(words.name, (words.row_len,), words.type)
        return _vector(row, lambda: matrix.numpy().astype(np.float64) @ latent.numpy().astype(np.float64))

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        (whole,) = parts
        extra, width, dim = evaluate(self.rows, dims), evaluate(self.latent, dims), whole.shape[-1]
        n = whole.shape[0] - extra - 1

        def from_row(first: int) -> Any:
            return lambda start, stop: whole.read(first + start, first + stop)

        def gone(start: int, stop: int) -> Bytes:
            raise Unsupported(
                "the vector that begins a sound is one with the matrix before it in this GGUF, and only a file made "
                "here keeps both; convert the original"
            )

        return (
            dataclasses.replace(whole, shape=(n, dim), read=from_row(0), extent=None),
            *(dataclasses.replace(whole, shape=(1, 1, dim), read=from_row(n + i), extent=None) for i in range(extra)),
            Tensor("latent", (width,), plain.F32, gone),
            Tensor("matrix", (dim, width), plain.F32, gone),
        )

    def all_lost(self, parts: Parts, dims: Dims) -> tuple[Any, ...]:
        """The bytes of the latent and of the matrix."""
        kept = (np.array(part.blocks()).reshape(-1) for part in parts[-2:])
        return (*[None] * (len(parts) - 2), *kept)

    def all_restored(self, parts: Parts, moved: Parts, records: tuple[Any, ...], dims: Dims) -> Parts:
        (whole,) = moved
        for part, record in zip(parts[-2:], records[-2:], strict=True):
            if not isinstance(record, np.ndarray) or record.dtype != np.uint8 or record.size != part.nbytes:
                return parts
        latent, matrix = (_holding(part, record) for part, record in zip(parts[-2:], records[-2:], strict=True))
        n = whole.shape[0] - 1
        made = self._last(whole, latent, matrix).astype(parts[0].type)
        same = np.array_equal(made.blocks(), whole.astype(made.type).blocks(n, n + 1))
        return (*parts[:-2], latent, matrix) if same else parts


@dataclass(frozen=True)
class ThroughMlp(Op):
    """(words, w1, b1, w2, b2, others) -> what an MLP with SiLU makes of the words' vectors, the others' behind, F32.

    `undo` gives an MLP that does nothing, where `width`, the words' own, is twice the others': silu(x) - silu(-x) is x.
    What there was is recorded, and put back where it still gives these.   others: how many.
    """

    exact = False
    others: Size
    width: Size

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        words, others, n = parts[0], parts[-1], parts[0].shape[0]
        through = _mlp(parts[1:5])

        def read(start: int, stop: int) -> Bytes:
            rows = [through(words.rows(start, min(stop, n)))] if start < n else []
            rows += [others.rows(max(start - n, 0), stop - n).astype(np.float32)] if stop > n else []
            return np.ascontiguousarray(np.concatenate(rows), np.float32).view(np.uint8)

        return (Tensor(words.name, (n + others.shape[0], others.shape[1]), plain.F32, read),)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        (whole,) = parts
        count, wide, own = evaluate(self.others, dims), evaluate(self.width, dims), whole.shape[-1]
        n = whole.shape[0] - count

        def widened(start: int, stop: int) -> Bytes:
            if wide != 2 * own:
                raise Unsupported(
                    f"the words' vectors are {wide} wide in the folder that this GGUF was made of, and only its own "
                    "keys hold them; convert the original"
                )
            rows = whole.rows(start, stop).astype(np.float32)
            return np.concatenate([rows, np.zeros_like(rows)], 1).view(np.uint8)

        def behind(start: int, stop: int) -> Bytes:
            return whole.read(n + start, n + stop)

        def first(start: int, stop: int) -> Bytes:
            at = np.arange(start, stop)
            return _ones(at % own, wide, np.where(at < own, 1, -1)).view(np.uint8)

        def second(start: int, stop: int) -> Bytes:
            at = np.arange(start, stop)
            return (_ones(at, wide) - _ones(at + own, wide)).view(np.uint8)

        def none(size: int) -> Any:
            return lambda start, stop: np.zeros((stop - start, 4 * size), np.uint8)

        return (
            Tensor("words", (n, wide), plain.F32, widened),
            Tensor("w1", (wide, wide), plain.F32, first),
            Tensor("b1", (wide,), plain.F32, none(wide)),
            Tensor("w2", (own, wide), plain.F32, second),
            Tensor("b2", (own,), plain.F32, none(own)),
            dataclasses.replace(whole, shape=(count, own), read=behind, extent=None),
        )

    def all_lost(self, parts: Parts, dims: Dims) -> tuple[Any, ...]:
        """The bytes of all but the others."""
        return (*(np.array(part.blocks()).reshape(-1) for part in parts[:-1]), None)

    def all_restored(self, parts: Parts, moved: Parts, records: tuple[Any, ...], dims: Dims) -> Parts:
        for part, record in zip(parts[:-1], records, strict=False):
            if not isinstance(record, np.ndarray) or record.dtype != np.uint8 or record.size != part.nbytes:
                return parts
        before = tuple(_holding(part, record) for part, record in zip(parts[:-1], records, strict=False))
        through, (whole,) = _mlp(before[1:]), moved
        n = before[0].shape[0]
        for start in range(0, n, 4096):
            made, now = through(before[0].rows(start, min(start + 4096, n))), whole.rows(start, min(start + 4096, n))
            if not np.allclose(made, now, rtol=1e-5, atol=1e-5 * float(np.abs(now).max(initial=0))):
                return parts
        return (*before, parts[-1])


def _ones(columns: NDArray[Any], width: int, sign: Any = 1) -> NDArray[np.float32]:
    """Rows of `width` zeros and a one, times its sign, in these columns, where there are so many."""
    out, at = np.zeros((len(columns), width), np.float32), columns < width
    out[np.flatnonzero(at), columns[at]] = np.broadcast_to(sign, columns.shape)[at]
    return out


def _mlp(parts: Parts) -> Any:
    """What makes vectors of the model's width of those of words: in float64, rounded once, alike on every machine."""

    @functools.cache
    def weights() -> tuple[NDArray[np.float64], ...]:
        return tuple(part.numpy().astype(np.float64) for part in parts)

    def through(rows: NDArray[Any]) -> NDArray[np.float32]:
        first, bias, second, last = weights()
        x = rows.astype(np.float64) @ first.T + bias
        with np.errstate(over="ignore"):
            out: NDArray[np.float32] = ((x / (1 + np.exp(-x))) @ second.T + last).astype(np.float32)
        return out

    return through
