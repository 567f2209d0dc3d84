"""docs/quantize.md says what becomes what, exactly or not: every cell of its table is tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_kinds import KINDS
from stored_models import folder, llama

import llmconv
from llmconv.convert.scaled.unpack import unpack
from llmconv.errors import Unsupported

DOCS = Path(__file__).parents[3] / "docs" / "quantize.md"
WIDE = ("GGUF TQ1_0", "GGUF TQ2_0", "GGUF Q4_K")  # of which rows must be whole blocks of 256


def table() -> dict[str, dict[str, str]]:
    """Of the docs: from -> to -> what is said."""
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| from \\ to | GGUF"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    end = next(i for i, row in enumerate(rows) if len(row) == 1)
    head = [cell.split()[-1].strip("(`)") for cell in rows[0][1:]]
    return {name: dict(zip(head, row[1:], strict=True)) for row in rows[2:end] for name in row[0].split("; ")}


def source(path: Path, name: str) -> Path:
    """A model of one layer, of that row."""
    rng, seeds = np.random.default_rng(0), iter(range(99))
    kind = KINDS.get(name)

    def layer(stem: str, shape: tuple[int, int]) -> dict[str, Any]:
        if "layers.1." in stem:
            return {}
        if kind is not None:
            return dict(kind.stored(stem, shape, next(seeds))[0])
        shape = (shape[0], 256) if name in WIDE else shape
        return {f"{stem}.weight": rng.standard_normal(shape).astype(np.float16)}

    arrays = {n: a for n, a in llama(layer).items() if "layers.1." not in n}
    more: dict[str, Any] = {"num_hidden_layers": 1}
    if name in WIDE:
        more |= {"hidden_size": 256, "intermediate_size": 256, "head_dim": 128}
        arrays = {n: np.resize(a, wider(n, a.shape)) for n, a in arrays.items()}
    made = folder(path / "in", arrays, kind and kind.settings, **more, **(kind.more if kind else {}))
    if not name.startswith("GGUF"):
        return made
    llmconv.quantize(made, path / "a.gguf", name.removeprefix("GGUF "), pure=True, token_embedding_type="F16",
                     output_tensor_type="F16")  # fmt: skip
    return path / "a.gguf"


def wider(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor in a model of 256 columns everywhere, two heads of 128 and one for keys and values."""
    if "proj" in name:
        return 128 if name.split(".")[-2] in ("k_proj", "v_proj") else 256, 256
    return (256,) if len(shape) == 1 else (shape[0], 256)


def measure(kind: str, want: Any, got: Any) -> float:
    """How far off the weights are at most, as the docs count it."""
    off = np.abs(got.astype(np.float64) - want)
    if kind.startswith("FP8"):
        return float((off / np.maximum(np.abs(want), 2.0**-6 * np.abs(want).max())).max())
    group = want.shape[1] if kind == "INT8" else 16 if kind.startswith("NVFP4") else 32
    parts, off = want.reshape(-1, group), off.reshape(-1, group).max(axis=1)
    if kind in ("W4A16_ASYM", "MLX"):
        return float((off / (parts.max(axis=1) - parts.min(axis=1))).max())
    return float((off / np.abs(parts).max(axis=1)).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", table())
def test_the_table_is_true(tmp_path: Path, name: str) -> None:
    model = source(tmp_path, name)
    floats, cells = unpack(llmconv.open(model)).tensors, table()[name]
    if cells["FP8_DYNAMIC"].startswith("refused"):  # by the same line for both
        assert cells.pop("FP8_BLOCK").startswith("refused")
    for kind, cell in cells.items():
        target = tmp_path / (f"o-{kind}" + (".gguf" if kind == "REPACK" else ""))
        if cell.startswith("refused") and kind != "REPACK":
            with pytest.raises(Unsupported):
                llmconv.quantize(model, target, kind)
            assert not target.exists()
            continue
        result = llmconv.quantize(model, target, kind)
        if kind == "REPACK":
            types = {t.type for t in result.output.tensors if t.name == "blk.0.ffn_up.weight"}
            assert any("no type says" in note for note in result.notes) is cell.startswith("refused")
            assert not cell.startswith("exact") or types == {cell.partition(": ")[2]}
            continue
        again = unpack(llmconv.open(target)).tensors
        assert bool(result.output.proof) is cell.startswith("exact")
        if name.startswith("GGUF"):
            continue
        pairs = [(t.numpy(), again[n].numpy()) for n, t in floats.items() if "proj.weight" in n]
        if cell.startswith("exact"):
            assert all(np.allclose(a, b, rtol=3e-7 if "NVFP4" in kind else 0, atol=0) for a, b in pairs)
        else:
            low, high = (int(number) for number in cell.partition(": ")[2].split("/"))
            worst = max(measure(kind, a.astype(np.float64), b) for a, b in pairs)
            assert low / high / 4 < worst <= low / high * 1.01, (kind, worst)


def test_the_table_speaks_of_everything() -> None:
    said = table()
    assert {name for name in said if not name.startswith("GGUF")} == {*KINDS, "floats"}
    folders = {"W4A16", "W4A16_ASYM", "MLX", "NVFP4A16", "MXFP4A16", "INT8", "FP8_DYNAMIC", "FP8_BLOCK"}
    assert set(said["floats"]) == {"REPACK", *folders}
