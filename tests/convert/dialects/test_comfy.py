"""Image models for ComfyUI-GGUF: names, types and shapes as its tool writes them, and back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from commands import run
from image_models import MODELS, written

import llmconv
from llmconv.convert.dialects import comfy
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import images

BF16 = ml_dtypes.bfloat16


@pytest.mark.parametrize(("name", "prefix"), [*((name, "") for name in MODELS), ("flux", "model.diffusion_model.")])
def test_there_and_back(tmp_path: Path, name: str, prefix: str) -> None:
    arrays = written(tmp_path / "x.safetensors", name, prefix=prefix)
    result = llmconv.convert_file(tmp_path / "x.safetensors", tmp_path / "x.gguf")
    assert any(f"a {name} model, laid out as ComfyUI-GGUF reads it" in note for note in result.notes)
    gguf = llmconv.open(tmp_path / "x.gguf")
    assert gguf.metadata["general.architecture"] == name
    assert set(gguf.tensors) == {n.removeprefix(prefix) for n in arrays}
    for n, values in arrays.items():
        tensor = gguf.tensors[n.removeprefix(prefix)]
        shape = gguf.metadata.get(comfy.SHAPE + tensor.name, tensor.shape)
        assert np.array_equal(tensor.numpy().reshape(shape).astype(np.float32), values.astype(np.float32)), n
        precise = name == "wan" and n.endswith("modulation")
        small = values.ndim == 1 or values.size <= 1024 or values.ndim > 4 or precise
        assert tensor.type.name == ("F32" if small else "BF16"), n
    llmconv.convert_file(tmp_path / "x.gguf", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.float8_e4m3fn])
def test_other_types_come_back(tmp_path: Path, dtype: object) -> None:
    written(tmp_path / "x.safetensors", "flux", dtype)
    llmconv.convert_file(tmp_path / "x.safetensors", tmp_path / "x.gguf")
    llmconv.convert_file(tmp_path / "x.gguf", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()


def test_shapes_are_those_that_its_loader_reads(tmp_path: Path) -> None:
    """As loader.py does: the numbers of a float tensor, viewed in the shape that a key of int32 states."""
    gguf = pytest.importorskip("gguf")
    arrays = written(tmp_path / "x.safetensors", "wan")
    llmconv.convert_file(tmp_path / "x.safetensors", tmp_path / "x.gguf")
    run("quantize", tmp_path / "x.gguf", tmp_path / "q.gguf", "--type", "Q8_0")
    for path in (tmp_path / "x.gguf", tmp_path / "q.gguf"):
        reader = gguf.GGUFReader(path)
        for tensor in reader.tensors:
            field = reader.get_field(comfy.SHAPE + tensor.name)
            shape = tuple(int(n) for n in reversed(tensor.shape))
            if field is not None:
                assert list(field.types) == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
                shape = tuple(int(field.parts[part][0]) for part in field.data)
            assert shape == arrays[tensor.name].shape, tensor.name
            if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
                assert np.array_equal(tensor.data.reshape(shape), arrays[tensor.name].astype(np.float32))


def test_quantized_as_its_tool_chooses(tmp_path: Path) -> None:
    for name, expected in (
        ("flux", {"double_blocks.0.img_attn.proj.weight": "Q4_K", "double_blocks.0.img_attn.qkv.weight": "Q5_K",
                  "img_in.weight": "BF16", "final_layer.linear.weight": "BF16", "tiny.weight": "F16"}),
        ("wan", {"blocks.0.self_attn.v.weight": "Q6_K", "blocks.0.ffn.2.weight": "Q6_K", "head.modulation": "F32",
                 "text_embedding.2.weight": "BF16", "patch_embedding.weight": "F32"}),
        ("lumina2", {"layers.0.attention.qkv.weight": "Q5_K", "layers.0.feed_forward.w2.weight": "Q6_K",
                     "context_refiner.0.attention.qkv.weight": "BF16"}),
    ):  # fmt: skip
        written(tmp_path / f"{name}.safetensors", name)
        assert (
            run("quantize", tmp_path / f"{name}.safetensors", tmp_path / f"{name}.gguf", "--type", "Q4_K_M").code == 0
        )
        made = llmconv.open(tmp_path / f"{name}.gguf").tensors
        assert {n: made[n].type.name for n in expected} == expected
        llmconv.convert_file(tmp_path / f"{name}.gguf", tmp_path / f"{name}-again.safetensors")
        back = llmconv.open(tmp_path / f"{name}-again.safetensors").tensors
        assert {n: t.shape for n, t in back.items()} == MODELS[name]


def test_values_of_the_first_layers_get_more(tmp_path: Path) -> None:
    roles = [images.role_of(name) for name in ("blocks.0.attn.to_v.weight", "x.experts.1.w2.weight", "x.to_q.weight")]
    assert roles == ["values", "down", ""]
    assert [images.preferred("values", "Q3_K_M", n) for n in range(3)] == ["Q5_K", "Q5_K", "Q4_K"]
    assert images.preferred("values", "Q8_0", 0) is None


def test_a_diffusers_folder(tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    written(folder / "diffusion_pytorch_model.safetensors", "qwen_image")
    (folder / "config.json").write_text(
        json.dumps({"_class_name": "QwenImageTransformer2DModel", "_diffusers_version": "0.35.0"})
    )
    result = llmconv.convert_file(folder, tmp_path / "x.gguf")
    assert llmconv.open(tmp_path / "x.gguf").metadata["general.architecture"] == "qwen_image"
    assert not any("no architecture known" in note for note in result.notes)
    llmconv.convert_file(tmp_path / "x.gguf", tmp_path / "again")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == files


def test_names_that_it_does_not_take_are_said(tmp_path: Path) -> None:
    made = Checkpoint(dialect="plain")
    made.add(Tensor.from_array("transformer_blocks.0.attn.norm_added_k.weight", np.ones(64, np.float32)))
    llmconv.save(made, tmp_path / "x.safetensors")
    notes = llmconv.convert_file(tmp_path / "x.safetensors", tmp_path / "x.gguf").notes
    assert any("a Flux model under diffusers' names, which ComfyUI-GGUF does not take" in note for note in notes)
    found = comfy.find({"first_stage_model.x", *("model.diffusion_model." + n for n in MODELS["flux"])})
    assert (
        found is not None
        and found.family is not None
        and any("there are other tensors" in note for note in found.notes)
    )
