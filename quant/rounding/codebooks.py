"""The grids of the codebook types (IQ1, IQ2, IQ3).  Layouts: `block_iq*` and `dequantize_row_iq*` in ggml.

A code says a weight's place among the levels: with signs, the level of place p is at `half + p`, its negative at
`half - 1 - p`; IQ1's place p is at 2 p where its shift is down, at 2 p + 1 where it is up.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import BlockType
from llmconv.quant.blocks import iq_tables
from llmconv.quant.blocks.iq import IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS
from llmconv.quant.kernels.terms import rules
from llmconv.quant.rounding.bits import as_float
from llmconv.quant.rounding.grid import Book, Fields, Grid

__all__ = ["CODEBOOKS"]

Blocks = NDArray[np.void]
Whole = NDArray[Any]

_SHIFT = 0.125


def _levels(name: str, unit: float) -> NDArray[np.float32]:
    """Ascending: with both signs, or IQ1's, each shifted down and up."""
    places = iq_tables.codebook(name).stands_for.astype(np.float32)
    if name.startswith("IQ1"):
        return (places[:, None] + np.array([-1 - _SHIFT, -1 + _SHIFT], np.float32)).reshape(-1)
    magnitudes = places * np.float32(unit)
    return np.concatenate((-magnitudes[::-1], magnitudes))


class _Entries:
    """A type's codebook: entries to codes and back."""

    def __init__(self, name: str):
        found = iq_tables.codebook(name)
        self.size = found.size
        self.places = found.levels().reshape(-1, found.size)
        self._powers = 1 << found.bits * np.arange(found.size)
        self._number = np.zeros(1 << found.bits * found.size, np.int32)
        self._number[found.entries] = np.arange(len(found.entries))
        self.half = int(self.places.max()) + 1

    def signed(self, entries: Whole, negative: Whole) -> Whole:
        """entries: (n, m).   negative: (n, m * size)."""
        places = self.places[entries].reshape(len(entries), -1).astype(np.int32)
        return np.where(negative, self.half - 1 - places, self.half + places)

    def unsigned(self, codes: Whole) -> tuple[Whole, Whole]:
        """The inverse of `signed`."""
        negative = codes < self.half
        return self._of(np.where(negative, self.half - 1 - codes, codes - self.half)), negative

    def shifted(self, entries: Whole, up: Whole) -> Whole:
        """up: (n, m), of each entry."""
        return (2 * self.places[entries].astype(np.int32) + up[..., None]).reshape(len(entries), -1)

    def unshifted(self, codes: Whole) -> tuple[Whole, Whole]:
        """The inverse of `shifted`."""
        return self._of(codes >> 1), codes[:, :: self.size] & 1

    def _of(self, places: Whole) -> Whole:
        numbers = (places.reshape(len(places), -1, self.size) * self._powers).sum(-1)
        found: Whole = self._number[numbers]
        return found


_entries = functools.cache(_Entries)


def _book(name: str, levels: NDArray[np.float32], sides: int, width: int) -> Book:
    places = _entries(name).places
    if sides == rules.SHIFTS:
        table = np.stack([levels[2 * places.T + up] for up in (0, 1)])
    else:
        table = levels[len(levels) // 2 :][places.T]
    return Book(np.ascontiguousarray(table, np.float32).reshape(-1), np.ascontiguousarray(places), sides, width)


def _negative(signs: Whole) -> Whole:
    """Bytes of signs (n, m) -> (n, 8 m)."""
    return np.unpackbits(np.ascontiguousarray(signs), axis=1, bitorder="little").astype(bool)


def _signs(negative: Whole) -> Whole:
    return np.packbits(negative, axis=1, bitorder="little")


def _bits_of(words: Whole, width: int, count: int) -> Whole:
    """(n, words) -> (n, words, count): the lowest first."""
    found: Whole = (words[..., None].astype(np.int64) >> width * np.arange(count)) & ((1 << width) - 1)
    return found


def _joined(parts: Whole, width: int) -> Whole:
    """The inverse of `_bits_of`."""
    found: Whole = (parts.astype(np.int64) << width * np.arange(parts.shape[-1])).sum(-1)
    return found


def _odd(level: Whole) -> Whole:
    """A stored scale -> its factor."""
    return 2 * level.astype(np.int32) + 1


def _level(fields: Fields) -> Whole:
    assert fields.factor is not None
    return (fields.factor - 1) >> 1


def _nibbles(packed: Whole) -> Whole:
    return _bits_of(packed, 4, 2).reshape(len(packed), -1)


def _in_nibbles(values: Whole) -> Whole:
    return _joined(values.reshape(len(values), -1, 2), 4)


def _word(levels: Whole, negative: Whole) -> Whole:
    """Four times seven signs and a scale, for 32 weights each."""
    seven = _signs(negative).reshape(len(levels), 8, 4) & 127
    found: Whole = _joined(seven, 7) | (levels.astype(np.int64) << 28)
    return found


def _from_word(words: Whole) -> tuple[Whole, Whole]:
    seven = _bits_of(words, 7, 4).reshape(len(words), -1)
    return words >> 28, _negative(rules.FULL_SIGNS[seven])


def _read_iq2_xxs(blocks: Blocks) -> Fields:
    parts = np.ascontiguousarray(blocks["qs"]).view(np.uint8).reshape(len(blocks), 8, 8)
    levels, negative = _from_word(np.ascontiguousarray(parts[..., 4:]).view("<u4")[..., 0])
    code = _entries("IQ2_XXS").signed(parts[..., :4].reshape(len(blocks), -1), negative)
    return Fields(code, as_float(blocks["d"]), _odd(levels))


def _write_iq2_xxs(fields: Fields, out: Blocks) -> None:
    entries, negative = _entries("IQ2_XXS").unsigned(fields.code)
    word = _word(_level(fields), negative).astype("<u4")
    parts = np.concatenate((entries.reshape(len(out), 8, 4).astype(np.uint8), word[..., None].view(np.uint8)), -1)
    out["d"], out["qs"] = fields.scale, parts.reshape(len(out), -1).view("<u2")


def _read_iq2_xs(blocks: Blocks) -> Fields:
    code = _entries("IQ2_XS").signed(blocks["qs"] & 511, _negative(rules.FULL_SIGNS[blocks["qs"] >> 9]))
    return Fields(code, as_float(blocks["d"]), _odd(_nibbles(blocks["scales"])))


def _write_iq2_xs(fields: Fields, out: Blocks) -> None:
    entries, negative = _entries("IQ2_XS").unsigned(fields.code)
    out["d"], out["qs"] = fields.scale, entries | ((_signs(negative).astype(np.int32) & 127) << 9)
    out["scales"] = _in_nibbles(_level(fields))


def _with_signs(name: str, high: int) -> tuple[Any, Any]:
    """IQ2_S and IQ3_S: signs apart, and `high` bits of each entry beside its lower eight."""

    def read(blocks: Blocks) -> Fields:
        entries = blocks["qs"] | (_bits_of(blocks["qh"], high, 8 // high).reshape(len(blocks), -1) << 8)
        code = _entries(name).signed(entries, _negative(blocks["signs"]))
        return Fields(code, as_float(blocks["d"]), _odd(_nibbles(blocks["scales"])))

    def write(fields: Fields, out: Blocks) -> None:
        entries, negative = _entries(name).unsigned(fields.code)
        out["d"], out["qs"], out["signs"] = fields.scale, entries & 255, _signs(negative)
        out["qh"] = _joined((entries >> 8).reshape(len(out), -1, 8 // high), high)
        out["scales"] = _in_nibbles(_level(fields))

    return read, write


def _read_iq3_xxs(blocks: Blocks) -> Fields:
    levels, negative = _from_word(blocks["scales_and_signs"])
    return Fields(_entries("IQ3_XXS").signed(blocks["qs"], negative), as_float(blocks["d"]), _odd(levels))


def _write_iq3_xxs(fields: Fields, out: Blocks) -> None:
    entries, negative = _entries("IQ3_XXS").unsigned(fields.code)
    out["d"], out["qs"], out["scales_and_signs"] = fields.scale, entries, _word(_level(fields), negative)


def _read_iq1_s(blocks: Blocks) -> Fields:
    words = blocks["qh"].astype(np.int64)
    entries = blocks["qs"] | (_bits_of(words, 3, 4).reshape(len(blocks), -1) << 8)
    code = _entries("IQ1_S").shifted(entries, np.repeat(1 - (words >> 15), 4, 1))
    return Fields(code, as_float(blocks["d"]), _odd((words >> 12) & 7))


def _write_iq1_s(fields: Fields, out: Blocks) -> None:
    entries, up = _entries("IQ1_S").unshifted(fields.code)
    high = _joined((entries >> 8).reshape(len(out), -1, 4), 3)
    out["d"], out["qs"] = fields.scale, entries & 255
    out["qh"] = high | (_level(fields).astype(np.int64) << 12) | ((1 - up[:, ::4].astype(np.int64)) << 15)


def _read_iq1_m(blocks: Blocks) -> Fields:
    nibbles = _nibbles(blocks["qh"])
    entries = blocks["qs"] | ((nibbles & 7) << 8)
    words = blocks["scales"]
    scale = _joined(words >> 12, 4).astype("<u2").view("<f2")
    code = _entries("IQ1_M").shifted(entries, 1 - (nibbles >> 3))
    return Fields(code, as_float(scale), _odd(_bits_of(words, 3, 4).reshape(len(blocks), -1)))


def _write_iq1_m(fields: Fields, out: Blocks) -> None:
    entries, up = _entries("IQ1_M").unshifted(fields.code)
    out["qs"], out["qh"] = entries & 255, _in_nibbles((entries >> 8) | ((1 - up) << 3))
    half = fields.scale.astype("<f2").view("<u2")
    out["scales"] = _joined(_level(fields).reshape(len(out), 4, 4), 3) | (_bits_of(half, 4, 4) << 12)


def _grid(kind: type[BlockType], block: int, unit: float, how: Any, sides: int, width: int) -> Grid:
    """unit: of the levels, in scales times factors.   how: to read and to write."""
    name, levels = kind.name, _levels(kind.name, unit)
    read, write = how
    most = 15 if sides == rules.SHIFTS else 31
    book = functools.cache(lambda: _book(name, levels, sides, width))
    return Grid(kind, block, 256, levels, (1, most), (0, 0), read, write, apart=2, book=book)


CODEBOOKS = (
    _grid(IQ2_XXS, 32, 1 / 8, (_read_iq2_xxs, _write_iq2_xxs), rules.EVEN_SIGNS, 8),
    _grid(IQ2_XS, 16, 1 / 8, (_read_iq2_xs, _write_iq2_xs), rules.EVEN_SIGNS, 8),
    _grid(IQ2_S, 16, 1 / 8, _with_signs("IQ2_S", 2), rules.ANY_SIGNS, 8),
    _grid(IQ3_XXS, 32, 1 / 4, (_read_iq3_xxs, _write_iq3_xxs), rules.EVEN_SIGNS, 8),
    _grid(IQ3_S, 32, 1, _with_signs("IQ3_S", 1), rules.ANY_SIGNS, 8),
    _grid(IQ1_S, 32, 1, (_read_iq1_s, _write_iq1_s), rules.SHIFTS, 32),
    _grid(IQ1_M, 16, 1, (_read_iq1_m, _write_iq1_m), rules.SHIFTS, 8),
)
