"""docs/quantize.md says what becomes what, exactly or not: every cell of its table is tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_layers import awq, bitsandbytes, four_bit_floats, gptq, mlx
from stored_models import folder, llama

import llmconv
from llmconv.convert.scaled.unpack import unpack
from llmconv.errors import Unsupported

DOCS = Path(__file__).parents[3] / "docs" / "quantize.md"
CT = {"quant_method": "compressed-tensors"}
STORED: dict[str, tuple[Any, Any]] = {
    "GPTQ, W4A16, symmetric": (gptq, {"quant_method": "gptq"}),
    "GPTQ in 8 bits": (lambda *a: gptq(*a, bits=8), {"quant_method": "gptq"}),
    "AWQ, GPTQ with zero points": (awq, {"quant_method": "awq"}),
    "GPTQ with act-order": (lambda *a: gptq(*a, order=True), {"quant_method": "gptq"}),
    "MLX": (mlx, None),
    "NVFP4 folder": (lambda *a: four_bit_floats(*a, kind="nvfp4"), CT),
    "MXFP4 folder": (lambda *a: four_bit_floats(*a, kind="mxfp4"), CT),
    "bitsandbytes": (bitsandbytes, {"quant_method": "bitsandbytes"}),
    "floats": (lambda stem, shape, seed: ({f"{stem}.weight": values(shape, seed)}, values(shape, seed)), None),
}


def values(shape: tuple[int, int], seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def table() -> dict[str, dict[str, str]]:
    """Of the docs: from -> to -> what is said."""
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| from \\ to | GGUF"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    end = next(i for i, row in enumerate(rows) if len(row) == 1)
    head = [cell.split()[-1].strip("(`)") for cell in rows[0][1:]]
    return {row[0]: dict(zip(head, row[1:], strict=True)) for row in rows[2:end]}


def source(path: Path, name: str) -> Path:
    """A model of that row."""
    stored, settings = STORED["floats"] if name.startswith("GGUF") else STORED[name]
    seeds = iter(range(99))
    made = folder(path / "in", llama(lambda stem, shape: dict(stored(stem, shape, next(seeds))[0])), settings)
    if not name.startswith("GGUF"):
        return made
    kind = name.split()[1].strip(",")
    llmconv.quantize(made, path / "a.gguf", kind, pure=True, token_embedding_type="F16", output_tensor_type="F16")
    return path / "a.gguf"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in table() if name != "GGUF Q4_K"])
def test_the_table_is_true(tmp_path: Path, name: str) -> None:
    said = table()[name]
    model = source(tmp_path, name)
    floats = unpack(llmconv.open(model)).tensors
    for kind, cell in said.items():
        target = tmp_path / (f"o-{kind}" + (".gguf" if kind == "REPACK" else ""))
        if cell == "itself":
            continue
        if cell.startswith("refused") and kind != "REPACK":
            with pytest.raises(Unsupported):
                llmconv.quantize(model, target, kind)
            assert not target.exists()
            continue
        result = llmconv.quantize(model, target, kind)
        types = {t.type for t in result.output.tensors if "ffn_up.weight" in t.name}
        if kind == "REPACK":
            reason = any("no type says" in note for note in result.notes)
            assert reason is cell.startswith("refused")
            if cell.startswith("exact"):
                assert types == {cell.partition(": ")[2]}
            continue
        if cell.startswith("exact"):
            assert "every weight equal" in result.output.proof
        else:
            assert cell.startswith("rounds") and not result.output.proof
        again = unpack(llmconv.open(target)).tensors
        exact = [np.array_equal(t.numpy(), again[n].numpy()) for n, t in floats.items() if "proj" in n]
        if not name.startswith("GGUF"):
            assert all(exact) if cell.startswith("exact") else not any(exact), kind


def test_the_table_speaks_of_everything() -> None:
    said = table()
    assert {name for name in said if not name.startswith("GGUF")} == set(STORED)
    assert set(said["floats"]) == {"REPACK", "W4A16", "W4A16_ASYM", "MLX", "NVFP4A16", "MXFP4A16"}
