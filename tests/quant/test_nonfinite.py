"""The check for weights that can't be converted."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from llmconv.quant.nonfinite import F16_MAX, first_nonfinite, first_overflow

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite_rows_have_none(dtype):
    extremes = [0.0, -0.0, float(ml_dtypes.finfo(dtype).max), float(ml_dtypes.finfo(dtype).min), 1e-7]
    rows = np.array(extremes * 40_000, dtype).reshape(4, -1)
    assert first_nonfinite(rows) is None
    assert first_nonfinite(rows[:0]) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 1, 65535, 65536, 131_071])
def test_the_first_is_found(dtype, value, index):
    rows = np.random.default_rng(0).standard_normal((2, 65536)).astype(dtype)
    rows.reshape(-1)[[index, -1]] = value
    assert first_nonfinite(rows) == index


@pytest.mark.parametrize("dtype", [np.float64, np.float32, ml_dtypes.bfloat16])
def test_beyond_float16(dtype):
    rows = np.full((2, 100), 60000, dtype)
    rows[1, 3] = -65504 if dtype != ml_dtypes.bfloat16 else -65280
    assert first_overflow(rows) is None
    rows[1, 7] = 65536
    rows[1, 5] = -65536
    assert first_overflow(rows) == 105
    assert first_overflow(rows, 65536.0) is None
    assert first_overflow(rows, 1.0) == 0


def test_limit_between_two_values():
    rows = np.array([[65536, 70000]], np.float32)
    assert first_overflow(rows, 69999.5) == 1
    assert first_overflow(rows.astype(ml_dtypes.bfloat16), F16_MAX) == 0
    assert first_overflow(np.array([[65504]], np.float16), 1e9) is None
