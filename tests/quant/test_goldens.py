"""Every block type against the reference's own bytes, to the bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from llmconv.quant import by_name, names

GOLDEN = Path(__file__).parents[1] / "golden" / "ggml.npz"
ARRAYS = dict(np.load(GOLDEN))
TYPES = sorted(name.removesuffix(".decoded") for name in ARRAYS if name.endswith(".decoded"))
INPUTS, IMPORTANCE = ARRAYS["inputs"], ARRAYS["importance"]


def assert_same_blocks(block, got, expected):
    size = block.layout.itemsize
    different = np.argwhere((got.reshape(len(got), -1, size) != expected.reshape(len(got), -1, size)).any(2))
    assert not len(different), (
        f"{block.name}: {len(different)} blocks differ, first row {different[0][0]} block {different[0][1]}"
    )


def test_all_types_of_the_reference_are_registered():
    assert set(TYPES) <= set(names())
    assert len(TYPES) >= 27


@pytest.mark.parametrize("name", [t for t in TYPES if t in ARRAYS])
def test_encode(name):
    block = by_name(name)
    if not block.can_encode():
        pytest.skip(f"{name} is read only")
    assert_same_blocks(block, block.encode(INPUTS), ARRAYS[name])


@pytest.mark.parametrize("name", [t for t in TYPES if t + ".imatrix" in ARRAYS])
def test_encode_with_importance(name):
    block = by_name(name)
    if not block.can_encode():
        pytest.skip(f"{name} is read only")
    assert block.uses_importance
    assert_same_blocks(block, block.encode(INPUTS, IMPORTANCE), ARRAYS[name + ".imatrix"])


@pytest.mark.parametrize("name", [t for t in TYPES if t + ".imatrix" not in ARRAYS])
def test_importance_changes_nothing_where_the_reference_ignores_it(name):
    block = by_name(name)
    if not block.can_encode():
        pytest.skip(f"{name} is read only")
    assert not block.uses_importance
    assert_same_blocks(block, block.encode(INPUTS, IMPORTANCE), ARRAYS[name])


@pytest.mark.parametrize("name", TYPES)
def test_decode(name):
    block = by_name(name)
    blocks = ARRAYS[name] if name in ARRAYS else ARRAYS[name + ".imatrix"]
    values = np.empty(INPUTS.shape, np.float32)
    block.decode(blocks, values)
    assert hashlib.sha256(values.tobytes()).digest() == ARRAYS[name + ".decoded"].tobytes()


@pytest.mark.parametrize("name", TYPES)
def test_sizes(name):
    block = by_name(name)
    blocks = ARRAYS[name] if name in ARRAYS else ARRAYS[name + ".imatrix"]
    assert block.row_bytes(INPUTS.shape[1]) == blocks.shape[1]
    assert block.ggml_id is not None
