"""The ternary, microscaling, one- and two-bit, IQ4 and codebook types against ggml itself, on fresh rows."""

from __future__ import annotations

import ggml
import numpy as np
import pytest

from llmconv.quant import by_name

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(ggml.find() is None, reason=ggml.MISSING),
]

CODEBOOKS = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
OTHERS = ["Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "IQ4_NL", "IQ4_XS"]


def _rows(seed: int, wild: bool) -> np.ndarray:
    """Normal, heavy-tailed, tied, sparse, one-sided rows and rows of widely differing sizes.

    wild: any finite bit patterns too.  The reference stops the process on some of these in the codebook types.
    """
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((24, 1024)) * 0.02).astype(np.float32)
    rows[3:6] = rng.standard_t(2, (3, 1024))
    rows[6:9] = np.round(rows[6:9] * 200) / 16
    rows[9:12] *= rng.random((3, 1024)) < 0.05
    rows[12] = np.abs(rows[12])
    rows[13:16] *= np.float32(10) ** rng.uniform(-6, 6, (3, 1024)).astype(np.float32)
    rows[16:18] *= np.float32(10) ** rng.uniform(-12, 8, (2, 1)).astype(np.float32)
    if wild:
        rows[18:21] = rng.integers(0, 2**32, (3, 1024), np.uint32).view(np.float32)
        rows[21:] *= np.float32(10) ** rng.uniform(-43, 38, (3, 1)).astype(np.float32)
        rows[~np.isfinite(rows)] = 0
    return rows


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [*OTHERS, *CODEBOOKS])
def test_encode(name: str, seed: int) -> None:
    block, rows = by_name(name), _rows(seed, wild=name in OTHERS)
    given = (np.random.default_rng(seed).random(1024) ** 4 + 1e-3).astype(np.float32)
    for importance in (given, given * np.float32(1e-20), None):
        if importance is None and block.needs_importance:
            continue
        expected = ggml.encode(block.ggml_id, rows, importance)
        np.testing.assert_array_equal(block.encode(rows, importance), expected)
        np.testing.assert_array_equal(block.decode(expected), ggml.decode(block.ggml_id, expected))


@pytest.mark.parametrize("name", [*OTHERS, *CODEBOOKS])
def test_decode_of_any_bytes(name: str) -> None:
    block = by_name(name)
    blocks = np.random.default_rng(9).integers(0, 256, (16, block.row_bytes(1024))).astype(np.uint8)
    np.testing.assert_array_equal(block.decode(blocks), ggml.decode(block.ggml_id, blocks))
