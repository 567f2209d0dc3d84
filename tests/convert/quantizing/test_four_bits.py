"""`-t W4A16` and `-t MLX`: a GGUF's integers as other programs load them, and back to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_layers import awq, four_bit_floats, gptq, mlx
from stored_models import LINEAR, folder, llama

import llmconv
from llmconv.convert.scaled.unpack import unpack
from llmconv.errors import Unsupported, UsageError


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
    source, _ = stored_folder(tmp_path / "in", lambda *a: gptq(*a, group=64), {"quant_method": "gptq"})
    llmconv.quantize(source, tmp_path / "a.gguf", "REPACK")
    llmconv.quantize(tmp_path / "a.gguf", tmp_path / way, way)
    shape = llmconv.open(tmp_path / way / "model.safetensors").tensors
    end = "scales" if way == "MLX" else "weight_scale"
    assert shape[f"model.layers.0.mlp.down_proj.{end}"].shape == (64, 2)
    llmconv.quantize(tmp_path / way, tmp_path / "b.gguf", "REPACK")
    assert llmconv.verify(tmp_path / "a.gguf", tmp_path / "b.gguf").same
    assert len(LINEAR) == 7


CT = {"quant_method": "compressed-tensors"}
FOLDERS: dict[str, tuple[Any, Any, dict[str, str]]] = {  # source -> target: "" where exact, else why not
    "GPTQ": (gptq, {"quant_method": "gptq"}, {"W4A16": "", "W4A16_ASYM": "", "MLX": ""}),
    "GPTQ, act-order": (lambda *a: gptq(*a, order=True), {"quant_method": "gptq"},
                        {"W4A16": "act-order", "W4A16_ASYM": "act-order", "MLX": "act-order"}),
    "GPTQ, 8 bits": (lambda *a: gptq(*a, bits=8), {"quant_method": "gptq"}, {"W4A16": "", "MLX": ""}),
    "GPTQ, 3 bits": (lambda *a: gptq(*a, bits=3), {"quant_method": "gptq"}, {"W4A16_ASYM": ""}),
    "AWQ": (awq, {"quant_method": "awq"}, {"W4A16": "zero points", "W4A16_ASYM": "", "MLX": "float16 can't say"}),
    "MLX": (mlx, None, {"W4A16": "sums that are no", "W4A16_ASYM": "sums that are no", "MLX": ""}),
    "NVFP4": (lambda *a: four_bit_floats(*a, kind="modelopt"), {"quant_method": "modelopt"},
              {"NVFP4A16": "", "MXFP4A16": "no layer", "W4A16": "floats of few bits", "FP8_DYNAMIC": "no layer"}),
    "MXFP4": (lambda *a: four_bit_floats(*a, kind="mxfp4"), CT, {"MXFP4A16": "", "NVFP4A16": "no layer"}),
}  # fmt: skip


def stored_folder(path: Path, stored: Any, settings: Any) -> tuple[Path, dict[str, Any]]:
    """A folder, and the values of its layers."""
    wants: dict[str, Any] = {}

    def layer(stem: str, shape: tuple[int, int]) -> dict[str, Any]:
        made, wants[f"{stem}.weight"] = stored(stem, shape, len(wants))
        return dict(made)

    return folder(path, llama(layer), settings), wants


@pytest.mark.parametrize(("name", "way"), [(n, w) for n, (*_, ways) in FOLDERS.items() for w in ways])
def test_a_folder_becomes_another(tmp_path: Path, name: str, way: str) -> None:
    """Number for number, which the end of the run says; or refused, nothing written."""
    stored, settings, ways = FOLDERS[name]
    source, wants = stored_folder(tmp_path / "in", stored, settings)
    if ways[way]:
        with pytest.raises(Unsupported, match=ways[way]):
            llmconv.quantize(source, tmp_path / "out", way)
        assert not (tmp_path / "out").exists()
        return
    result = llmconv.quantize(source, tmp_path / "out", way)
    assert "every weight equal" in result.output.proof
    found = unpack(llmconv.open(tmp_path / "out")).tensors
    for weight, want in wants.items():
        got = found[weight].numpy()
        if way == "NVFP4A16":  # its inverse is stored
            assert np.allclose(got, want, rtol=3e-7, atol=0)
        else:
            assert np.array_equal(got, want), weight


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("way", ["W4A16", "W4A16_ASYM", "MLX"])
def test_floats_in_groups(tmp_path: Path, way: str, group: int) -> None:
    """By loops: the largest weight is -8 steps, or sixteen steps from the least to the largest."""
    result = llmconv.quantize(floats(tmp_path / "in"), tmp_path / "out", way, group_size=group)
    assert not result.output.proof
    stem = "model.layers.1.mlp.down_proj.weight"
    found = unpack(llmconv.open(tmp_path / "out")).tensors[stem].numpy()
    x = llmconv.open(tmp_path / "in").tensors[stem].numpy().astype(np.float32)
    for i, g in np.ndindex(4, 128 // group):
        part, got = x[i, group * g : group * (g + 1)], found[i, group * g : group * (g + 1)]
        if way == "W4A16":
            step = np.float32(np.float16(part[np.abs(part).argmax()] / np.float32(-8)))
            assert np.abs(got - np.clip(part / step, -8, 7) * step).max() <= abs(step) * 0.5001
        else:
            assert np.abs(got - part).max() <= (part.max() - part.min()) / 15 * 0.51
    with pytest.raises(UsageError, match="expected 32, 64 or 128"):
        llmconv.quantize(tmp_path / "in", tmp_path / "no", way, group_size=48)


@pytest.mark.parametrize("way", ["NVFP4A16", "MXFP4A16", "FP8_DYNAMIC", "FP8_BLOCK"])
def test_floats_of_few_bits(tmp_path: Path, way: str) -> None:
    source = floats(tmp_path / "in")
    llmconv.quantize(source, tmp_path / "out", way)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["type"] == "float"
    assert len(config["ignore"]) == (13 if way == "FP8_BLOCK" else 1)  # rows of 64, which are no blocks of 128
    found, x = unpack(llmconv.open(tmp_path / "out")).tensors, llmconv.open(source).tensors
    bound = 2.0**-4 if way.startswith("FP8") else 0.25  # of a block's largest weight
    for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        want, got = x[name].numpy().astype(np.float32), found[name].numpy()
        assert got.shape == want.shape and (got != want).any()
        assert (np.abs(got - want) <= np.abs(want) * bound + np.abs(want).max() * (0.2 if bound > 0.1 else 2e-3)).all()
    if way.startswith("FP8"):
        stored = llmconv.open(tmp_path / "out" / "model.safetensors").tensors["model.layers.1.mlp.down_proj.weight"]
        assert np.abs(stored.numpy().astype(np.float32)).max() == 448


def test_a_factor_beside_nvfp4_becomes_the_global_scale(tmp_path: Path) -> None:
    source, wants = stored_folder(tmp_path / "in", lambda *a: four_bit_floats(*a, kind="modelopt"),
                                  {"quant_method": "modelopt"})  # fmt: skip
    llmconv.quantize(source, tmp_path / "a.gguf", "REPACK")
    llmconv.quantize(tmp_path / "a.gguf", tmp_path / "out", "NVFP4A16")
    found = unpack(llmconv.open(tmp_path / "out")).tensors
    for name, want in wants.items():
        assert np.allclose(found[name].numpy(), want, rtol=4e-7, atol=0), name


@pytest.mark.parametrize(("kind", "way"), [("NVFP4", "NVFP4A16"), ("MXFP4", "MXFP4A16")])
def test_a_gguf_of_small_floats_there_and_back(tmp_path: Path, kind: str, way: str) -> None:
    llmconv.quantize(floats(tmp_path / "in"), tmp_path / "a.gguf", kind, pure=True, token_embedding_type="F16",
                     output_tensor_type="F16")  # fmt: skip
    assert "every weight equal" in llmconv.quantize(tmp_path / "a.gguf", tmp_path / "out", way).output.proof
    llmconv.quantize(tmp_path / "out", tmp_path / "b.gguf", "REPACK")
    a, b = (llmconv.open(tmp_path / name).tensors for name in ("a.gguf", "b.gguf"))
    for name, tensor in a.items():
        assert tensor.type is b[name].type and np.array_equal(tensor.numpy(), b[name].numpy()), name


def test_embeddings_are_integers_for_mlx_alone(tmp_path: Path) -> None:
    llmconv.quantize(floats(tmp_path / "in"), tmp_path / "a.gguf", "Q4_0", pure=True)
    for way, there in (("W4A16", False), ("MLX", True)):
        llmconv.quantize(tmp_path / "a.gguf", tmp_path / way, way)
        names = llmconv.open(tmp_path / way / "model.safetensors").tensors
        assert ("model.embed_tokens.weight" in names) and ("model.embed_tokens.scales" in names) is there
        assert ("lm_head.scales" in names) is there and "model.embed_tokens.weight_packed" not in names


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
    assert np.array_equal(unpack(read).tensors[stem].numpy(), want)


def test_what_can_not_be_written(tmp_path: Path) -> None:
    bare = llmconv.Checkpoint(dialect="plain")
    bare.add(llmconv.Tensor.from_array("a.weight", np.ones((64, 64), np.float32)))
    with pytest.raises(Unsupported, match=r"needs a config\.json"):
        llmconv.quantize(bare, tmp_path / "o", "W4A16")


def test_layers_that_a_server_joins_share_a_global_scale(tmp_path: Path) -> None:
    """Of floats: q, k and v one, gate and up one, by their largest weight; a note says where carried ones differ."""
    sizes = {"q_proj": 1, "k_proj": 5, "v_proj": 0.1, "gate_proj": 2, "up_proj": 3}
    rng = np.random.default_rng(0)

    def layer(stem: str, shape: tuple[int, int]) -> dict[str, Any]:
        own = sizes.get(stem.rpartition(".")[2], 1.0)
        return {f"{stem}.weight": (rng.standard_normal(shape) * own).astype(np.float32)}

    arrays = llama(layer, np.float32)
    made = llmconv.quantize(folder(tmp_path / "in", arrays), tmp_path / "out", "NVFP4A16")
    assert not any("vLLM joins" in note for note in made.notes)
    found = llmconv.open(tmp_path / "out").tensors
    for joined in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("o_proj",), ("down_proj",)):
        stems = [f"model.layers.1.{name}" for name in LINEAR if name.partition(".")[2] in joined]
        assert len(stems) == len(joined)
        scales = {float(found[f"{stem}.weight_global_scale"].numpy().reshape(-1)[0]) for stem in stems}
        largest = max(float(np.abs(arrays[f"{stem}.weight"]).max()) for stem in stems)
        assert scales == {float(np.float32(6 * 448 / largest))}
    carried, _ = stored_folder(
        tmp_path / "stored", lambda *a: four_bit_floats(*a, kind="modelopt"), {"quant_method": "modelopt"}
    )
    made = llmconv.quantize(carried, tmp_path / "carried", "NVFP4A16")
    assert any("4 sets of layers that vLLM joins" in note and "global scales" in note for note in made.notes)
