"""Every block type against ggml's own library on fresh random rows.  Needs llama-cpp-python: `pytest -m peer`."""

from __future__ import annotations

import secrets
from types import ModuleType

import ggml as peer
import numpy as np
import pytest

from llmconv.quant import types

pytestmark = pytest.mark.peer

SHARED_TYPES = [t for t in types() if t.ggml_id is not None and t.is_float and t.name not in ("F32", "F64")]
SCALES = {
    "trained": lambda rng, shape: rng.standard_normal(shape) * 0.02,
    "heavy-tailed": lambda rng, shape: rng.standard_t(2, shape),
    "log-normal": lambda rng, shape: np.exp(rng.normal(-5, 4, shape)) * rng.choice([-1, 1], shape),
    "tied": lambda rng, shape: rng.integers(-3, 4, shape) * 0.25,
    "every scale": lambda rng, shape: rng.standard_normal(shape) * 10.0 ** rng.integers(-44, 15, (shape[0], 1)),
    "positive": lambda rng, shape: np.abs(rng.standard_normal(shape)) + 3,
    "negative": lambda rng, shape: -np.abs(rng.standard_normal(shape)),
    "sparse, signed zeros": lambda rng, shape: (
        np.where(rng.random(shape) < 0.95, 0, rng.standard_normal(shape)) * rng.choice([-1, 1], shape)
    ),
    "steps": lambda rng, shape: np.repeat(rng.standard_normal((shape[0], shape[1] // 16)), 16, 1),
}
FOURTH_POWERS = {"IQ2_S", "IQ3_XXS", "IQ3_S"}
"""Without importance their errors are of the order of x^4; where that is infinite the reference ends the process."""
WEIGHTS = {
    "none": lambda rng, k: None,
    "even": lambda rng, k: rng.random(k),
    "sparse": lambda rng, k: np.where(rng.random(k) < 0.5, 0, rng.random(k)),
    "skewed": lambda rng, k: np.exp(rng.normal(0, 3, k)),
}


@pytest.fixture(scope="module")
def ggml() -> ModuleType:
    if peer.find() is None:
        pytest.skip(peer.MISSING)
    return peer


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("block", SHARED_TYPES, ids=lambda t: t.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_same_bytes(ggml, block, scale, weights):
    if not block.can_encode():
        pytest.skip(f"{block.name} is read only")
    seed = secrets.randbits(32)
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 34)), 256 * int(rng.integers(1, 5))
    rows = SCALES[scale](rng, (n, k)).astype(np.float32)
    importance = WEIGHTS[weights](rng, k)
    if importance is not None:
        importance = importance.astype(np.float32)
    elif block.needs_importance:
        pytest.skip(f"{block.name} needs importance")
    elif block.name in FOURTH_POWERS:
        rows = np.where(np.abs(rows).max(1, keepdims=True) > 1e8, rows * np.float32(1e-20), rows)
    got, expected = block.encode(rows, importance), ggml.encode(block.ggml_id, rows, importance)
    assert np.array_equal(got, expected), f"seed {seed}: {np.count_nonzero((got != expected).any(1))} of {n} rows"


@pytest.mark.parametrize("block", SHARED_TYPES, ids=lambda t: t.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_same_values(ggml, block):
    """Random bytes are valid blocks; a NaN scale may come out as any NaN."""
    seed = secrets.randbits(32)
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (9, block.row_bytes(1024)), dtype=np.uint8)
    got = np.empty((9, 1024), np.float32)
    block.decode(blocks, got)
    expected = ggml.decode(block.ggml_id, blocks)
    different = (got.view(np.uint32) != expected.view(np.uint32)) & ~(np.isnan(got) & np.isnan(expected))
    assert not different.any(), f"seed {seed}: {np.argwhere(different)[:3].tolist()}"
