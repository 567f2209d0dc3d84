"""Floats that lie on a block type's grid return to it, bit for bit where their own rounding allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from stored_models import folder, llama

import llmconv
from llmconv.convert.scaled.lattice import encoder, grid_of
from llmconv.formats.tensor import Tensor
from llmconv.quant import block

BF16 = ml_dtypes.bfloat16


def decoded(kind: Any, dtype: Any) -> tuple[Any, Any]:
    """Blocks of random weights, and what they decode to in a type of floats."""
    raw = kind.encode(np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32))
    return raw, kind.decode(raw).astype(dtype)


SAME = {  # share of blocks that come back to the same bytes
    "F32": {"TQ2_0": 1, "MXFP4": 1, "Q4_0": 1, "NVFP4": 1, "Q4_K": 1, "Q4_1": 1, "Q5_0": 1, "Q6_K": 0.5, "Q8_0": 1},
    "F16": {"TQ2_0": 1, "MXFP4": 1, "Q4_0": 1, "NVFP4": 1, "Q5_0": 1},
    "BF16": {"TQ2_0": 0, "MXFP4": 1, "NVFP4": 1},  # ternary, under scales that bfloat16 rounded
}
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": BF16}


@pytest.mark.parametrize(("dtype", "name"), [(d, n) for d, kinds in SAME.items() for n in kinds])
def test_a_model_decoded_comes_back_to_its_blocks(dtype: str, name: str) -> None:
    kind = block.by_name(name)
    raw, values = decoded(kind, DTYPES[dtype])
    assert grid_of(Tensor.from_array("a", values)) is kind
    same = (encoder(kind)(values) == raw).reshape(-1, kind.layout.itemsize).all(axis=1).mean()
    assert same >= SAME[dtype][name]


@pytest.mark.parametrize(("dtype", "name"), [(d, n) for d in DTYPES for n in ("Q4_0", "Q8_0") if n not in SAME[d]])
def test_what_the_floats_rounding_does_not_allow(dtype: str, name: str) -> None:
    """Scales of 11 bits and products of 15 or 18 are not to be had from 8 or 11."""
    _, values = decoded(block.by_name(name), DTYPES[dtype])
    assert grid_of(Tensor.from_array("a", values)) is None


def test_blocks_without_a_largest_code() -> None:
    """Trained for Q4_0: scales are what they are, and many blocks have no -8."""
    rng = np.random.default_rng(1)
    for top in range(1, 8):
        codes = np.clip(rng.integers(-top, top + 1, (16, 8, 32)), -top, top)
        codes[..., 0] = top
        codes[..., 1] = top - 1 if top > 1 else 1
        scale = rng.uniform(0.01, 0.1, (16, 8, 1)).astype(np.float16).astype(np.float32)
        values = (codes * scale).astype(np.float32).reshape(16, 256)
        kind = grid_of(Tensor.from_array("a", values))
        assert kind is not None and kind.name in ("Q4_0", "TQ2_0")
        assert np.array_equal(kind.decode(encoder(kind)(values)), values)


def test_random_weights_and_zeros_lie_on_none() -> None:
    rng = np.random.default_rng(2)
    for values in (rng.standard_normal((64, 512)).astype(np.float16), np.zeros((4, 256), np.float32)):
        assert grid_of(Tensor.from_array("a", values)) is None
    spoiled = decoded(block.by_name("Q4_0"), np.float32)[1]
    spoiled[-1, -1] += np.float32(1e-6)
    assert grid_of(Tensor.from_array("a", spoiled)) is None


@pytest.mark.parametrize("name", ["Q4_0", "MXFP4", "Q8_0"])
def test_a_folder_of_floats_is_repacked(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(3)
    made = llama(lambda stem, shape: {f"{stem}.weight": rng.standard_normal(shape).astype(np.float32)}, np.float32)
    llmconv.quantize(folder(tmp_path / "in", made), tmp_path / "a.gguf", name, pure=True)
    llmconv.convert_file(tmp_path / "a.gguf", tmp_path / "floats", outtype="f32")
    result = llmconv.quantize(tmp_path / "floats", tmp_path / "b.gguf", "REPACK")
    assert (
        any(f"lie on the grid of {name}" in note for note in result.notes)
        and "every weight equal" in result.output.proof
    )
    a, b = (llmconv.open(tmp_path / n).tensors for n in ("a.gguf", "b.gguf"))
    assert all(t.type is b[n].type and (t.blocks() == b[n].blocks()).all() for n, t in a.items())
