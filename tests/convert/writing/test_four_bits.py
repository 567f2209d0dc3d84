"""`-t W4A16` and `-t MLX`: a GGUF's integers as other programs load them, and back to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_models import LINEAR, folder, llama

import llmconv
from llmconv.errors import Unsupported


def floats(path: Path) -> Path:
    rng = np.random.default_rng(3)
    return folder(path, llama(lambda stem, shape: {f"{stem}.weight": rng.standard_normal(shape).astype(np.float16)}))


@pytest.mark.parametrize("way", ["W4A16", "MLX"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q5_0", "Q4_1", "Q5_1"])
def test_a_gguf_there_and_back(tmp_path: Path, kind: str, way: str) -> None:
    llmconv.quantize(floats(tmp_path / "in"), tmp_path / "a.gguf", kind, pure=True, token_embedding_type="F16",
                     output_tensor_type="F16")  # fmt: skip
    if way == "W4A16" and kind.endswith("1"):
        with pytest.raises(Unsupported, match="no layer that W4A16 says exactly"):
            llmconv.quantize(tmp_path / "a.gguf", tmp_path / "folder", way)
        return
    made = llmconv.quantize(tmp_path / "a.gguf", tmp_path / "folder", way)
    assert made.written
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    if way == "MLX":
        bits = {"Q4": 4, "Q5": 5, "Q8": 8}[kind[:2]]
        assert config["quantization"] == {"group_size": 32, "bits": bits, "mode": "affine"}
    else:
        weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
        assert (weights["num_bits"], weights["group_size"]) == (4 if kind == "Q4_0" else 8, 32)
        assert config["quantization_config"]["ignore"] == ["lm_head"]
    llmconv.quantize(tmp_path / "folder", tmp_path / "b.gguf", "REPACK")
    a, b = (llmconv.open(tmp_path / name).tensors for name in ("a.gguf", "b.gguf"))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert np.array_equal(tensor.numpy(), b[name].numpy()), name
        if not (kind == "Q5_0" and way == "W4A16"):
            assert tensor.type is b[name].type and (tensor.blocks() == b[name].blocks()).all(), name


def test_floats_are_rounded_as_the_block_types_round_them(tmp_path: Path) -> None:
    source = floats(tmp_path / "in")
    for way, kind in (("W4A16", "Q4_0"), ("MLX", "Q4_1")):
        llmconv.quantize(source, tmp_path / way, way)
        llmconv.quantize(source, tmp_path / f"{kind}.gguf", kind, pure=True, token_embedding_type="F16",
                         output_tensor_type="F16")  # fmt: skip
        llmconv.quantize(tmp_path / way, tmp_path / f"{way}.gguf", "REPACK")
        a, b = (llmconv.open(tmp_path / f"{name}.gguf").tensors for name in (kind, way))
        assert all((t.blocks() == b[n].blocks()).all() for n, t in a.items())


@pytest.mark.parametrize("way", ["W4A16", "MLX"])
def test_groups_of_128_where_scales_agree(tmp_path: Path, way: str) -> None:
    from stored_layers import gptq

    one = lambda stem, shape: gptq(stem, shape, len(stem), group=64)[0]  # noqa: E731
    source = folder(tmp_path / "in", llama(one), {"quant_method": "gptq", "bits": 4, "group_size": 64})
    llmconv.quantize(source, tmp_path / "a.gguf", "REPACK")
    llmconv.quantize(tmp_path / "a.gguf", tmp_path / way, way)
    shape = llmconv.open(tmp_path / way / "model.safetensors").tensors
    end = "scales" if way == "MLX" else "weight_scale"
    assert shape[f"model.layers.0.mlp.down_proj.{end}"].shape == (64, 2)
    llmconv.quantize(tmp_path / way, tmp_path / "b.gguf", "REPACK")
    assert llmconv.verify(tmp_path / "a.gguf", tmp_path / "b.gguf").same
    assert len(LINEAR) == 7


def test_words_by_loops(tmp_path: Path) -> None:
    """compressed-tensors: eight numbers of four bits in a word, lowest first, each plus 8."""
    llmconv.quantize(floats(tmp_path / "in"), tmp_path / "out", "W4A16")
    found = llmconv.open(tmp_path / "out" / "model.safetensors").tensors
    stem = "model.layers.1.mlp.up_proj.weight"
    words, scale = found[f"{stem}_packed"].numpy().view(np.uint32), found[f"{stem}_scale"].numpy().astype(np.float32)
    read: Any = llmconv.open(tmp_path / "out")
    want = np.empty((128, 64), np.float32)
    for i in range(128):
        for j in range(64):
            want[i, j] = np.float32(int(words[i, j // 8] >> (4 * (j % 8)) & 15) - 8) * scale[i, j // 32]
    from llmconv.convert.scaled.unpack import unpack

    assert np.array_equal(unpack(read).tensors[stem].numpy(), want)


def test_what_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"needs a config\.json"):
        llmconv.quantize(llmconv.Checkpoint(dialect="plain"), tmp_path / "o", "W4A16")
