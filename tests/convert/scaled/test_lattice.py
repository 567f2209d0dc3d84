"""Floats that lie on a block type's grid return to it, bit for bit where their own rounding allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from stored_models import folder, llama

import llmconv
from llmconv.convert.scaled.lattice import GRIDS, encoder, grid_of
from llmconv.formats.tensor import Tensor
from llmconv.quant import block
from llmconv.quant.rounding.families import GRIDS as GRIDS_OF
from llmconv.quant.rounding.grid import Codes

BF16 = ml_dtypes.bfloat16


DOCS = Path(__file__).parents[3] / "docs" / "quantize.md"
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": BF16}


def decoded(kind: Any, dtype: Any) -> tuple[Any, Any]:
    """Blocks of random weights, and what they decode to in a type of floats."""
    raw = kind.encode(np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32))
    return raw, kind.decode(raw).astype(dtype)


def table() -> dict[tuple[str, str], float]:
    """Of the docs: type, floats -> the share of blocks that come back to the same bytes."""
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| type | from F32 | from F16"))
    found: dict[tuple[str, str], float] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return found
        names, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for name in names.split(", "):
            for dtype, cell in zip(DTYPES, cells, strict=True):
                found[name, dtype] = 1.0 if cell == "all" else float(cell.split()[0]) / 100
    return found


@pytest.mark.parametrize("name", [*GRIDS, "TQ1_0"])
def test_a_model_decoded_comes_back_to_its_blocks(name: str) -> None:
    """So many of them as the docs say to the same bytes; and every weight."""
    kind, said = block.by_name(name), table()
    for dtype in DTYPES:
        raw, values = decoded(kind, DTYPES[dtype])
        again = encoder(kind)(values)
        same = (again == raw).reshape(-1, kind.layout.itemsize).all(axis=1).mean()
        assert abs(same - said[name, dtype]) < 0.006, (dtype, same)
        assert np.array_equal(kind.decode(again).astype(values.dtype), values)
        assert grid_of(Tensor.from_array("a", values), "TQ1_0" if name == "TQ1_0" else "TQ2_0") is kind


@pytest.mark.parametrize("name", [*GRIDS, "TQ1_0"])
def test_weights_with_outliers_come_back(name: str) -> None:
    """An outlier takes the largest factor with few codes, so that its step is not seen."""
    kind, rng = block.by_name(name), np.random.default_rng(5)
    raw = kind.encode((rng.standard_t(3, (48, 512)) * 0.02).astype(np.float32))
    for dtype in DTYPES.values():
        values = kind.decode(raw).astype(dtype)
        assert np.array_equal(kind.decode(encoder(kind)(values)).astype(dtype), values)


def test_possible_scales_are_those_of_the_blocks() -> None:
    """Superblocks of which one sub-block has two codes only, and none its lowest."""
    rng, grid = np.random.default_rng(6), GRIDS_OF["Q2_K"]
    factor, shift = rng.integers(1, 16, (40, 16)), rng.integers(1, 16, (40, 16))
    code = rng.integers(0, 4, (40, 256))
    code[:, :16] = rng.choice([1, 3], (40, 16))
    factor[:, 0] = 15
    scale, low = rng.uniform(0.01, 0.1, (2, 40, 1)).astype(np.float16).astype(np.float32)
    rows = grid.values(Codes(code.astype(np.int32), scale, factor.astype(np.int32), low, shift.astype(np.int32)))
    kind = grid.type
    assert np.array_equal(kind.decode(encoder(kind)(rows)), rows)


def test_the_docs_speak_of_every_grid() -> None:
    assert {name for name, _ in table()} == {*GRIDS, "TQ1_0"}


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
