"""Models stored as fp8 or int8 with scales are read as the floats they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from int8_layers import decode, layer_tensors

from llmconv import formats
from llmconv.convert.quantizing.quantize import quantize
from llmconv.convert.scaled.unpack import unpack
from llmconv.errors import BadFile, Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import int8

E4M3 = ml_dtypes.float8_e4m3fn
RNG = np.random.default_rng(0)


def checkpoint(arrays: dict[str, Any], settings: dict[str, Any] | None = None) -> Checkpoint:
    made = Checkpoint(dialect="hf")
    for name, array in arrays.items():
        made.add(Tensor.from_array(name, np.asarray(array)))
    config = {"model_type": "x"} | ({"quantization_config": settings} if settings else {})
    made.files["config.json"] = json.dumps(config).encode()
    return made


def fp8(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(E4M3)


@pytest.mark.parametrize("shape", [(300, 200), (256, 128), (1, 129), (2, 150, 130)])
def test_fp8_by_block(shape: tuple[int, ...]) -> None:
    *lead, n, k = shape
    weight = fp8(*shape)
    scale = RNG.uniform(0.5, 2, (*lead, -(-n // 128), -(-k // 128))).astype(np.float32)
    made = unpack(checkpoint({"a.weight": weight, "a.weight_scale_inv": scale}, {"quant_method": "fp8"}))
    wide = np.repeat(np.repeat(scale, 128, -2), 128, -1)[..., :n, :k]
    found = made.tensors["a.weight"]
    assert list(made.tensors) == ["a.weight"] and found.type.name == "F32"
    assert (found.numpy() == weight.astype(np.float32) * wide).all()
    rows = found.n_rows
    assert (found.rows(rows // 3, rows) == found.rows()[rows // 3 :]).all()
    assert "quantization_config" not in json.loads(made.file("config.json") or b"")
    assert "read as F32" in made.notes[0]


def test_fp8_block_size_comes_from_the_configuration() -> None:
    weight, scale = fp8(64, 96), np.full((2, 2), 3, np.float32)
    settings = {"quant_method": "fp8", "weight_block_size": [32, 64]}
    made = unpack(checkpoint({"a.weight": weight, "a.weight_scale_inv": scale}, settings))
    assert (made.tensors["a.weight"].numpy() == weight.astype(np.float32) * 3).all()
    bad: Any
    for bad in ([0, 1], [1], "x", [1.5, 2]):
        with pytest.raises(BadFile, match="weight_block_size"):
            unpack(checkpoint({"a.weight": weight}, {"quant_method": "fp8", "weight_block_size": bad}))


@pytest.mark.parametrize("shape", [(8, 1), (8,), (1,), ()])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_fp8_by_row_or_tensor(shape: tuple[int, ...], dtype: Any) -> None:
    weight, scale = fp8(8, 16), RNG.uniform(0.5, 2, shape).astype(dtype)
    extra = {"a.input_scale": np.float32([1]), "a.k_scale": np.float32([1]), "a.bias": np.zeros(8, np.float32)}
    made = unpack(checkpoint({"a.weight": weight, "a.weight_scale": scale, **extra}))
    expected = weight.astype(np.float32) * scale.astype(np.float32).reshape(-1, 1)
    assert (made.tensors["a.weight"].numpy() == expected).all()
    assert list(made.tensors) == ["a.weight", "a.bias"]
    assert any("2 scales of activations or caches" in note for note in made.notes)


@pytest.mark.parametrize("layout", int8.LAYOUTS)
def test_int8_as_we_write_it(layout: str) -> None:
    rows = RNG.standard_normal((12, 18)).astype(np.float32)
    made = unpack(checkpoint(layer_tensors("a", rows, layout), {"quant_method": "compressed-tensors"}))
    assert (made.tensors["a.weight"].numpy() == decode(*int8.encode(rows))).all()
    assert list(made.tensors) == ["a.weight"]


def test_what_is_not_packed_stays() -> None:
    plain = checkpoint({"a.weight": np.zeros((2, 2), np.float32), "a.weight_scale": np.float32([1])})
    assert unpack(plain) is plain


def test_bad_pairs_and_unknown_methods() -> None:
    with pytest.raises(BadFile, match=r"of shape \[3, 3\] does not scale 'a.weight' of shape \[8, 16\]"):
        unpack(checkpoint({"a.weight": fp8(8, 16), "a.weight_scale": np.ones((3, 3), np.float32)}))
    with pytest.raises(BadFile, match="expected floats"):
        unpack(checkpoint({"a.weight": fp8(8, 16), "a.weight_scale": np.ones(1, np.int32)}))
    three_bits = {"a.weight_packed": np.zeros((8, 3), np.int32), "a.weight_scale": np.ones((8, 1), np.float32)}
    with pytest.raises(BadFile, match="only INT8"):
        unpack(checkpoint(three_bits | {"a.weight_shape": np.int64([8, 16])}))
    with pytest.raises(Unsupported, match="quantized with 'newq'"):
        unpack(checkpoint({"a.codes": np.zeros((2, 2), np.int32)}, {"quant_method": "newq"}))


def test_an_fp8_folder_is_quantized_as_its_floats_are(shared: Path, tmp_path: Path) -> None:
    source = formats.open(shared / "stories260K" / "hf")
    config = json.loads(source.file("config.json") or b"")
    stored, floats = (Checkpoint(dialect="hf", metadata={"format": "pt"}) for _ in range(2))
    for name, tensor in source.tensors.items():
        values = tensor.numpy()
        if "proj" not in name:
            stored.add(tensor)
            floats.add(tensor)
            continue
        scale = np.full((-(-values.shape[0] // 32), -(-values.shape[1] // 32)), np.abs(values).max() / 448, np.float32)
        small = (values / scale[0, 0]).astype(E4M3)
        stored.add(Tensor.from_array(name, small))
        stored.add(Tensor.from_array(f"{name}_scale_inv", scale))
        floats.add(Tensor.from_array(name, small.astype(np.float32) * scale[0, 0]))
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    for made, name, text in (
        (stored, "fp8", config | {"quantization_config": settings}),
        (floats, "f32", config),
    ):
        made.files["config.json"] = json.dumps(text).encode()
        formats.by_name("safetensors").save(made, tmp_path / name)
        quantize(tmp_path / name, tmp_path / f"{name}.gguf", "Q4_0")
    a, b = (formats.open(tmp_path / f"{name}.gguf").tensors for name in ("fp8", "f32"))
    assert all((t.blocks() == b[name].blocks()).all() for name, t in a.items())
    quantize(shared / "stories260K" / "hf", tmp_path / "int8", "INT8")
    quantize(tmp_path / "int8", tmp_path / "int8.gguf", "Q8_0")
