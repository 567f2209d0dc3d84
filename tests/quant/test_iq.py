"""The ternary, microscaling, one- and two-bit, IQ4 and codebook types beyond their golden bytes."""

from __future__ import annotations

import ctypes
import ctypes.util
import itertools

import ml_dtypes
import numpy as np
import pytest

from llmconv.errors import UsageError
from llmconv.quant import by_name
from llmconv.quant.blocks import iq_tables
from llmconv.quant.kernels.terms.levels import LOG2_ROUNDS_UP

GGUF = ["TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "IQ4_NL", "IQ4_XS"]
CODEBOOKS = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
LOW = ["Q1_0", "Q2_0"]
ALL = [*LOW, *GGUF, *CODEBOOKS]


def _rows(n: int, k: int = 512) -> np.ndarray:
    return (np.random.default_rng(n).standard_normal((n, k)) * 0.02).astype(np.float32)


def _importance(k: int = 512) -> np.ndarray:
    return (np.random.default_rng(k).random(k) ** 3 + 0.01).astype(np.float32)


@pytest.mark.parametrize("name", [*GGUF, *CODEBOOKS])
def test_any_bytes_decode_as_in_the_gguf_package(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    block = by_name(name)
    blocks = np.random.default_rng(1).integers(0, 256, (11, block.row_bytes(1024))).astype(np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(block.decode(blocks), expected)


@pytest.mark.parametrize("k", [256, 512])
@pytest.mark.parametrize("name", ALL)
def test_rows_do_not_depend_on_their_neighbours(name: str, k: int) -> None:
    """Whole groups of sixteen lanes, partial ones and single rows give the same bytes, with importance too."""
    block, rows = by_name(name), _rows(19, k)
    for importance in (None, _importance(k)):
        if importance is None and block.needs_importance:
            continue
        one_by_one = np.concatenate([block.encode(row[None], importance) for row in rows])
        np.testing.assert_array_equal(block.encode(rows, importance), one_by_one)
        np.testing.assert_array_equal(block.encode(rows[:16], importance), one_by_one[:16])


@pytest.mark.parametrize("name", ["IQ4_NL", "MXFP4", "NVFP4", "TQ1_0", "Q1_0", "Q2_0", "IQ3_S"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_widened_exactly(name: str, dtype: type) -> None:
    rows = _rows(5).astype(dtype)
    np.testing.assert_array_equal(by_name(name).encode(rows), by_name(name).encode(rows.astype(np.float32)))


@pytest.mark.parametrize("name", ALL)
def test_error_is_what_the_width_promises(name: str) -> None:
    """Root mean square error as a share of normal weights' own: a floor that any broken search would miss."""
    limits = {
        "Q1_0": 0.61, "Q2_0": 0.81, "TQ1_0": 0.91, "TQ2_0": 0.91, "MXFP4": 0.14, "NVFP4": 0.11, "IQ4_NL": 0.08,
        "IQ4_XS": 0.085, "IQ1_S": 0.57, "IQ1_M": 0.54, "IQ2_XXS": 0.42, "IQ2_XS": 0.38, "IQ2_S": 0.34,
        "IQ3_XXS": 0.24, "IQ3_S": 0.20,
    }  # fmt: skip
    block, rows = by_name(name), _rows(8)
    blocks = block.encode(rows, np.ones(512, np.float32))
    error = np.sqrt(np.mean((block.decode(blocks) - rows) ** 2)) / np.sqrt(np.mean(rows**2))
    assert 0.5 * limits[name] < error < limits[name]


@pytest.mark.parametrize("name", ALL)
def test_extreme_weights_encode_without_a_crash(name: str) -> None:
    rows = np.zeros((9, 512), np.float32)
    rows[1:] = np.ldexp(np.float32(1), np.random.default_rng(2).integers(-149, 128, (8, 512)))
    rows[2] = 3.4e38
    rows[3] = -1e-45
    rows[4, ::7], rows[5, ::5], rows[6] = np.nan, np.inf, np.nan  # refused upstream unless allowed by a flag
    block = by_name(name)
    blocks = block.encode(rows, _importance())
    assert blocks.shape == (9, block.row_bytes(512))
    assert block.decode(blocks).shape == rows.shape
    assert (np.abs(block.decode(blocks[:1])) == 0).all()


@pytest.mark.parametrize("name", ["IQ1_S", "IQ2_XXS", "IQ2_XS"])
def test_importance_is_asked_for(name: str) -> None:
    with pytest.raises(UsageError, match="importance matrix"):
        by_name(name).encode(_rows(1))


def test_mxfp4_exponent_rounds_as_the_c_library_log2f() -> None:
    found = ctypes.util.find_library("m")
    if found is None:
        pytest.skip("no C math library to compare with")
    log2f = ctypes.CDLL(found).log2f
    log2f.argtypes, log2f.restype = [ctypes.c_float], ctypes.c_float
    for exponent in range(-125, 127):
        limit = int(LOG2_ROUNDS_UP[exponent + 149])
        for mantissa in (0, limit - 1, min(limit, 0x7FFFFF), 0x7FFFFF):
            x = np.ldexp(np.float32(1 + mantissa / 2**23), exponent)
            code = by_name("MXFP4").encode(np.full((1, 32), x, np.float32))[0, 0]
            assert code == (int(np.floor(log2f(x))) + 125) & 255, (exponent, mantissa)


def test_iq4_tries_cross_one_middle_at_most() -> None:
    """What `_crossings` of the kernel builds on: 14/127 of a value is less than any gap it could span."""
    pytest.importorskip("numba")
    from llmconv.quant.kernels.iq4 import MIDDLES

    for top in np.concatenate([np.linspace(-150, 150, 30001), MIDDLES, np.nextafter(MIDDLES, 999)]):
        other = top * 134 / 120 if top < 0 else top * 120 / 134
        assert np.count_nonzero((top >= MIDDLES) & (other < MIDDLES)) <= 1


@pytest.mark.parametrize("name", CODEBOOKS)
def test_codebook_neighbours(name: str) -> None:
    tables = iq_tables.search(name)
    size, bits = (4, 3) if name.startswith("IQ3") else (8, 2)
    entries = tables.levels.reshape(-1, size).astype(int)
    numbers = entries @ (1 << bits * np.arange(size))
    np.testing.assert_array_equal(tables.entry[numbers], np.arange(len(entries)))
    assert len(np.unique(numbers)) == len(numbers)

    shells = {"IQ1_S": 3, "IQ1_M": 3, "IQ2_S": 1, "IQ3_S": 3}.get(name, 2)
    off = np.nonzero(tables.entry < -1)[0]
    for point in np.random.default_rng(0).choice(off, 40):
        place = -1 - tables.entry[point]
        start, stop = tables.first[place], tables.first[place + 1]
        listed = tables.entry[tables.numbers[start:stop]]
        levels = (point >> bits * np.arange(size)) & ((1 << bits) - 1)
        distance = ((entries - levels) ** 2).sum(1)
        near = np.unique(distance)[:shells]
        order = [i for d in near for i in np.nonzero(distance == d)[0]]
        assert listed.tolist() == order
    assert len(tables.numbers) == tables.first[-1] + 16


def test_every_level_combination_has_a_place() -> None:
    """A search may round to any point; a missing one would read past a table."""
    for name in CODEBOOKS:
        size, bits, count = (4, 3, 8) if name.startswith("IQ3") else (8, 2, 3)
        tables = iq_tables.search(name)
        points = np.array(list(itertools.product(range(count), repeat=size))) @ (1 << bits * np.arange(size))
        entry = tables.entry[points]
        assert (entry < len(tables.levels) // size).all()
        assert (-1 - entry[entry < 0] < len(tables.first) - 1).all()
        assert len(np.unique(entry)) == len(points)
