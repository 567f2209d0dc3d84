"""Kernels of stored integers, against loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmconv.convert.scaled import bits
from llmconv.formats.tensor import Tensor
from llmconv.quant import block
from llmconv.quant.kernels import codes

RNG = np.random.default_rng(0)


def words(*shape: int) -> Any:
    return RNG.integers(-(1 << 31), 1 << 31, shape, np.int32)


def nibble(word: Any, i: int) -> int:
    return int(word) >> (4 * i) & 15


@pytest.mark.parametrize(("k", "less"), [(24, 0), (24, 8), (19, 0), (19, 8)])
def test_along_rows(k: int, less: int) -> None:
    found = words(3, 3)
    got = bits.unpacked(found.view(np.uint8)[:, : -(-k // 2)], 4, k, less).view(np.int8)
    assert got.tolist() == [[nibble(row[j // 8], j % 8) - less for j in range(k)] for row in found]


@pytest.mark.parametrize("strip", [64, 16 << 20])
def test_down_and_across_columns(monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    """Also where a matrix is read in several strips."""
    monkeypatch.setattr(bits, "_STRIP_BYTES", strip)
    found = words(16, 150)
    tensor = Tensor.from_array("a", found)
    for start, stop in ((0, 150), (3, 4), (60, 70), (5, 5), (64, 128)):
        got = bits.unpacked(bits.columns(tensor, start, stop).view(np.uint8), 4, 128)
        assert got.tolist() == [[nibble(found[j // 8, i], j % 8) for j in range(128)] for i in range(start, stop)]
        places = np.array([0, 2, 4, 6, 1, 3, 5, 7], np.int32)
        got = bits.unpacked(bits.across(tensor, start, stop, places).view(np.uint8), 4, 16)
        want = np.empty(((stop - start) * 8, 16), np.uint8)
        for w, row in np.ndindex(stop - start, 16):
            for i in range(8):
                want[8 * w + places[i], row] = nibble(found[row, start + w], i)
        assert (got == want).all()
        assert (bits.columns(tensor, start, stop) == found[:, start:stop].T).all()


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0", "Q4_1", "Q5_1"])
def test_blocks_there_and_back(name: str) -> None:
    """The numbers of a type's own blocks, out of them and into the same bytes."""
    kind, width, affine = block.by_name(name), int(name[1]), name.endswith("1")
    raw = kind.encode(RNG.standard_normal((5, 96)).astype(np.float32))
    fields = raw.reshape(-1).view(kind.layout)
    half = 0 if affine or width == 8 else 1 << (width - 1)
    found = np.empty(5 * 96, np.uint8)
    codes.of_blocks(raw.reshape(-1), width, 4 if affine else 2, 0, 96, 96, found)
    values = found.view(np.int8 if width == 8 else np.uint8).reshape(-1, 32).astype(np.float32) - half
    scales = fields["d"].astype(np.float32)[:, None]
    want = values * scales + (fields["m"].astype(np.float32)[:, None] if affine else np.float32(0))
    assert (want.reshape(5, 96) == kind.decode(raw)).all()
    back, halves = np.empty(raw.size, np.uint8), fields["d"].view(np.int16).astype(np.int32)
    if affine:
        codes.to_affine(found, halves, fields["m"].view(np.int16).astype(np.int32), width, back)
    else:
        zeros = np.full(len(halves), half, np.int32)
        codes.to_blocks(found, 128 if width == 8 else 0, zeros, halves, width, back)
    assert (back == raw.reshape(-1)).all()


def test_floats() -> None:
    numbers = RNG.integers(0, 256, 96).astype(np.uint8)
    zeros, scales, biases = (RNG.standard_normal(3).astype(np.float32) for _ in range(3))
    out, none = np.empty(96, np.float32), np.empty(0, np.float32)
    for flip, bias in ((0, biases), (128, none)):
        own = numbers.view(np.int8 if flip else np.uint8).astype(np.float32)
        codes.to_floats(numbers, flip, 32, zeros, scales, bias, out)
        want = [(own[i] - zeros[i // 32]) * scales[i // 32] + (bias[i // 32] if bias.size else 0) for i in range(96)]
        assert out.tolist() == want
    table = RNG.standard_normal(16).astype(np.float32)
    codes.looked_up(numbers & 15, table, 32, scales, out)
    assert out.tolist() == [table[numbers[i] & 15] * scales[i // 32] for i in range(96)]
    packed = np.empty(48, np.uint8)
    codes.pack_along(numbers & 15, packed)
    assert packed.tolist() == [numbers[2 * i] & 15 | (numbers[2 * i + 1] & 15) << 4 for i in range(48)]


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0", "Q4_1", "Q5_1"])
@pytest.mark.parametrize("span", [32, 64, 96])
def test_words_into_blocks(name: str, span: int) -> None:
    """What a type decodes them to is what the words say under their groups' numbers; any other byte is a difference."""
    kind, width, affine = block.by_name(name), int(name[1]), name.endswith("1")
    found, groups = words(2, 24), 2 * 192 // span
    numbers = bits.unpacked(found.view(np.uint8), 4, 192).reshape(groups, span).astype(np.float32)
    scale, beside = (RNG.standard_normal(groups).astype(np.float16) for _ in range(2))
    zeros = RNG.integers(0, 9 if width > 4 else 1, groups, np.int32) + (0 if width > 4 or affine else 8)
    halves = np.empty(groups, np.int32)
    codes.half_bits(scale.astype(np.float32), halves)
    assert halves.tolist() == scale.view(np.uint16).tolist()
    none = np.empty(0, np.int32)
    given = span, none if affine else zeros, halves, beside.view(np.int16).astype(np.int32) if affine else none
    raw, differs = np.empty((2, kind.row_bytes(192)), np.uint8), np.ones(1, np.uint8)
    codes.words_to_blocks(found.reshape(-1), *given, width, raw.reshape(-1))
    d = scale.astype(np.float32)[:, None]
    want = numbers * d + beside.astype(np.float32)[:, None] if affine else (numbers - zeros[:, None]) * d
    assert (kind.decode(raw).reshape(groups, span) == want).all()
    codes.blocks_differ(raw.reshape(-1), width, found.reshape(-1), *given, differs)
    assert not differs[0]
    for byte in range(raw.size):
        spoiled = raw.reshape(-1).copy()
        spoiled[byte] ^= 1 << int(RNG.integers(8))
        codes.blocks_differ(spoiled, width, found.reshape(-1), *given, differs)
        assert differs[0]


def test_floats_in_order() -> None:
    numbers, order = RNG.integers(0, 256, (3, 48)).astype(np.uint8), RNG.permutation(48).astype(np.int32) // 12
    zeros, scales = (RNG.standard_normal((3, 4)).astype(np.float32) for _ in range(2))
    out = np.empty((3, 48), np.float32)
    for flip in (0, 128):
        own = numbers.view(np.int8 if flip else np.uint8).astype(np.float32)
        codes.to_floats_in_order(
            numbers.reshape(-1), flip, order, 4, zeros.reshape(-1), scales.reshape(-1), out.reshape(-1)
        )
        assert (out == (own - zeros[:, order]) * scales[:, order]).all()
