"""What `-t REPACK`, `-t W4A16` and the like write: loaded by llama.cpp, by compressed-tensors and by MLX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from llama_cpp_logits import logits
from stored_layers import awq, four_bit_floats, gptq, mlx
from stored_models import folder, llama

import llmconv
import llmconv.convert.tables.config
from llmconv.convert.scaled.unpack import unpack

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

CT = {"quant_method": "compressed-tensors"}
IDS = [1, 5, 9, 33, 7, 12, 3, 8, 21, 2]


def stored(path: Path, way: Any, settings: Any) -> Path:
    """A Llama whose layers are stored that way, its weights small enough for logits of a usual size."""

    def layer(stem: str, shape: tuple[int, int]) -> dict[str, Any]:
        arrays: dict[str, Any] = dict(way(stem, shape, len(stem))[0])
        for name, array in arrays.items():
            if array.dtype == np.float16:
                arrays[name] = (array * np.float16(0.25)).astype(np.float16)
            elif name.endswith("weight_scale") and array.dtype == np.uint8:
                arrays[name] = array - np.uint8(6)
        return arrays

    return folder(path, llama(layer), settings)


@pytest.mark.parametrize(
    ("way", "settings", "kind"),
    [
        (gptq, {"quant_method": "gptq"}, "Q4_0"),
        (awq, {"quant_method": "awq"}, "Q5_0"),
        (mlx, None, "Q4_1"),
        (lambda *a: four_bit_floats(*a, kind="mxfp4"), CT, "MXFP4"),
        (lambda *a: four_bit_floats(*a, kind="modelopt"), {"quant_method": "modelopt"}, "NVFP4"),
    ],
)
def test_llama_cpp_computes_the_same(tmp_path: Path, way: Any, settings: Any, kind: str) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    source = stored(tmp_path / "in", way, settings)
    llmconv.quantize(source, tmp_path / "a.gguf", "REPACK")
    gguf = llmconv.open(tmp_path / "a.gguf")
    assert gguf.tensors["blk.0.ffn_up.weight"].type.name == kind
    with torch.no_grad():
        expected = llmconv.load(source, "cpu", "f32")(torch.tensor([IDS]))[0].numpy()
    found = logits(gguf, IDS, tmp_path / "b.gguf")
    assert found is not None
    assert np.abs(found - expected).max() <= 3e-2 * np.abs(expected).max()  # it rounds its inputs to eight bits


def test_awq_as_q4_1_in_llama_cpp_and_as_floats_in_transformers(tmp_path: Path) -> None:
    """With sums rounded to float16 a GGUF computes what transformers does with the weights that AWQ stands for."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    source = stored(tmp_path / "in", awq, {"quant_method": "awq"})
    result = llmconv.quantize(source, tmp_path / "a.gguf", "REPACK", round_sums=True)
    assert any("rounded to float16" in note for note in result.notes)
    gguf = llmconv.open(tmp_path / "a.gguf")
    assert {gguf.tensors[f"blk.1.{n}.weight"].type.name for n in ("attn_v", "ffn_down")} == {"Q4_1"}
    llmconv.convert_file(source, tmp_path / "f32", outtype="f32")
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "f32", dtype=torch.float32)
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    found = logits(gguf, IDS, tmp_path / "b.gguf")
    assert found is not None and np.abs(found - expected).max() <= 3e-2 * np.abs(expected).max()
    with torch.no_grad():  # the sums' rounding alone, without that of llama.cpp's inputs
        ours = llmconv.load(tmp_path / "a.gguf", "cpu", "f32")(torch.tensor([IDS]))[0].numpy()
    assert np.abs(ours - expected).max() <= 2e-3 * np.abs(expected).max()


def decompressed(path: Path) -> dict[str, Any]:
    """A folder's layers as compressed-tensors reads them."""
    library = pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import BaseCompressor

    settings = library.quantization.QuantizationConfig.model_validate(
        llmconv.convert.tables.config.read_config(llmconv.open(path))["quantization_config"]
    )
    arrays = {n: torch_of(t) for n, t in llmconv.open(path / "model.safetensors").tensors.items()}
    out = {}
    for scheme in settings.config_groups.values():
        own = BaseCompressor.get_value_from_registry(scheme.format)
        for module in {n.rpartition(".")[0] for n in arrays if n.endswith("_scale")}:
            parts = {n.rpartition(".")[2]: t for n, t in arrays.items() if n.startswith(f"{module}.")}
            if scheme.targets != ["Linear"] and module not in scheme.targets:
                continue
            out[f"{module}.weight"] = own.decompress(parts, scheme)["weight"].float().numpy()
    return out


def torch_of(tensor: Any) -> Any:
    array = np.array(tensor.numpy())
    if tensor.type.name == "F8_E4M3":
        return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
    if tensor.type.name == "BF16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@pytest.mark.parametrize(
    "options",
    [
        {"type": "W4A16"}, {"type": "W4A16", "group_size": 64}, {"type": "W4A16_ASYM"},
        {"type": "W4A16_ASYM", "group_size": 64}, {"type": "NVFP4A16"}, {"type": "MXFP4A16"}, {"type": "FP8_DYNAMIC"},
        {"type": "FP8_BLOCK"},
    ],
)  # fmt: skip
def test_compressed_tensors_reads_what_we_write(tmp_path: Path, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    source = folder(
        tmp_path / "in",
        llama(lambda stem, shape: {f"{stem}.weight": rng.standard_normal(shape).astype(np.float16)}),
    )
    llmconv.quantize(source, tmp_path / "out", **options)
    found, want = decompressed(tmp_path / "out"), unpack(llmconv.open(tmp_path / "out")).tensors
    assert len(found) == (2 if options["type"] == "FP8_BLOCK" else 14)
    for name, values in found.items():
        assert np.allclose(values, want[name].numpy(), rtol=2**-7, atol=1e-6), name  # products in 16 bits


@pytest.mark.parametrize(("way", "settings"), [(gptq, "gptq"), (awq, "awq")])
def test_compressed_tensors_reads_what_we_carry(tmp_path: Path, way: Any, settings: str) -> None:
    source = stored(tmp_path / "in", way, {"quant_method": settings})
    llmconv.quantize(source, tmp_path / "out", "W4A16_ASYM")
    found, want = decompressed(tmp_path / "out"), unpack(llmconv.open(source)).tensors
    for name, values in found.items():
        assert np.allclose(values, want[name].numpy(), rtol=2**-10, atol=1e-6), name


@pytest.mark.parametrize(
    ("kind", "by"),
    [(kind, "") for kind in ("W4A16", "W4A16_ASYM", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "MXFP4A16")]
    + [("W4A16", "Q8_0"), ("W4A16_ASYM", "Q8_0")],
)
def test_transformers_loads_what_we_write(tmp_path: Path, kind: str, by: str) -> None:
    """W4A16_ASYM only while its weights are decoded: as they are, compressed-tensors 0.20 makes room for zero points
    that are not packed (it packs those of weights, not those of the empty model), and writes them packed itself.
    Layers of eight bits have none.   by: the GGUF's type that it is made of."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    rng = np.random.default_rng(3)
    source = folder(
        tmp_path / "in",
        llama(lambda stem, shape: {f"{stem}.weight": (rng.standard_normal(shape) * 0.1).astype(np.float16)}),
    )
    if by:
        llmconv.quantize(source, tmp_path / "a.gguf", by, pure=True)
        source = tmp_path / "a.gguf"
    llmconv.quantize(source, tmp_path / "out", kind)
    with torch.no_grad():
        how: dict[str, Any] = {"dtype": torch.bfloat16 if kind.endswith("FP4A16") else torch.float32}
        if kind == "W4A16_ASYM" and not by:
            how["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", **how)
        found = model(torch.tensor([IDS])).logits[0].float().numpy()
        expected = llmconv.load(tmp_path / "out", "cpu", "f32")(torch.tensor([IDS]))[0].numpy()
    rounded = 0.1 if kind.startswith("FP8") else 3e-2  # FP8's inputs are rounded too, others compute in bfloat16
    assert np.abs(found - expected).max() <= rounded * np.abs(expected).max()


@pytest.mark.parametrize("way", ["floats", "floats by 64", "Q4_0", "Q5_0", "Q8_0", "Q4_1", "Q5_1", "GPTQ", "MLX"])
def test_mlx_reads_what_we_write(tmp_path: Path, way: str) -> None:
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    rng = np.random.default_rng(3)
    source: Path
    if way in ("GPTQ", "MLX"):
        source = stored(tmp_path / "in", *((gptq, {"quant_method": "gptq"}) if way == "GPTQ" else (mlx, None)))
    else:
        source = folder(
            tmp_path / "in",
            llama(lambda stem, shape: {f"{stem}.weight": rng.standard_normal(shape).astype(np.float16)}),
        )
        if way.startswith("Q"):
            llmconv.quantize(source, tmp_path / "a.gguf", way, pure=True, output_tensor_type="F16")
            source = tmp_path / "a.gguf"
    llmconv.quantize(source, tmp_path / "out", "MLX", group_size=64 if "64" in way else None)
    settings = llmconv.convert.tables.config.read_config(llmconv.open(tmp_path / "out"))["quantization"]
    made = mx.load(str(tmp_path / "out" / "model.safetensors"))
    want = unpack(llmconv.open(tmp_path / "out")).tensors
    for stem in ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"):
        scales, biases = (made[f"{stem}.{end}"].astype(mx.float32) for end in ("scales", "biases"))
        got = mx.dequantize(made[f"{stem}.weight"], scales, biases, settings["group_size"], settings["bits"])
        assert np.allclose(np.array(got), want[f"{stem}.weight"].numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_writes_the_same_tensors(tmp_path: Path, symmetric: bool) -> None:
    """Of a layer with our integers: the same names, types, shapes and bytes."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    source = stored(tmp_path / "in", gptq if symmetric else awq, {"quant_method": "gptq" if symmetric else "awq"})
    llmconv.quantize(source, tmp_path / "out", "W4A16" if symmetric else "W4A16_ASYM")
    config = llmconv.convert.tables.config.read_config(llmconv.open(tmp_path / "out"))["quantization_config"]
    (scheme,) = QuantizationConfig.model_validate(config).config_groups.values()
    own = BaseCompressor.get_value_from_registry("pack-quantized")
    stem = "model.layers.0.self_attn.k_proj."
    arrays = {n: torch_of(t) for n, t in llmconv.open(tmp_path / "out" / "model.safetensors").tensors.items()}
    ours = {n.removeprefix(stem): t for n, t in arrays.items() if n.startswith(stem)}
    theirs = own.compress(own.decompress(dict(ours), scheme) | {"weight_scale": ours["weight_scale"]}, scheme)
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == ours[name].dtype and torch.equal(tensor, ours[name]), name


@pytest.mark.parametrize("kind", ["mxfp4", "nvfp4"])
def test_mlx_reads_small_floats(tmp_path: Path, kind: str) -> None:
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    rng = np.random.default_rng(3)
    floats = llama(lambda stem, shape: {f"{stem}.weight": rng.standard_normal(shape).astype(np.float32)})
    llmconv.quantize(folder(tmp_path / "in", floats), tmp_path / "a.gguf", kind, pure=True, token_embedding_type="F16",
                     output_tensor_type="F16")  # fmt: skip
    assert "every weight equal" in llmconv.quantize(tmp_path / "a.gguf", tmp_path / "out", "MLX").output.proof
    made = mx.load(str(tmp_path / "out" / "model.safetensors"))
    want = unpack(llmconv.open(tmp_path / "out")).tensors
    for stem in ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"):
        got = mx.dequantize(made[f"{stem}.weight"], made[f"{stem}.scales"], mode=kind, dtype=mx.float32)
        assert np.array_equal(np.array(got), want[f"{stem}.weight"].numpy())


@pytest.mark.parametrize("kind", ["MLX2", "MLX3", "MLX", "MLX5", "MLX6", "MLX8", "MLX_MXFP4"])
def test_floats_are_rounded_as_well_as_by_mlx(tmp_path: Path, kind: str) -> None:
    """MLX reads our numbers as we do, and they are no farther from the weights than those that it makes itself."""
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    rng = np.random.default_rng(5)
    floats = llama(lambda stem, shape: {f"{stem}.weight": rng.standard_normal(shape).astype(np.float32)})
    group = None if kind in ("MLX", "MLX_MXFP4") else 64
    made = llmconv.quantize(folder(tmp_path / "in", floats), tmp_path / "out", kind, group_size=group)
    assert made.written
    settings = llmconv.convert.tables.config.read_config(llmconv.open(tmp_path / "out"))["quantization"]
    arrays = mx.load(str(tmp_path / "out" / "model.safetensors"))
    want = unpack(llmconv.open(tmp_path / "out")).tensors
    for stem in ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"):
        x = floats[f"{stem}.weight"]
        if kind == "MLX_MXFP4":
            assert settings["mode"] == "mxfp4"
            got = mx.dequantize(arrays[f"{stem}.weight"], arrays[f"{stem}.scales"], mode="mxfp4", dtype=mx.float32)
            theirs = mx.dequantize(*mx.quantize(mx.array(x), mode="mxfp4"), mode="mxfp4", dtype=mx.float32)
            assert np.array_equal(np.array(got), want[f"{stem}.weight"].numpy())
        else:
            how = {"group_size": settings["group_size"], "bits": settings["bits"]}
            assert how["bits"] == int(kind[3:] or 4)
            scales, biases = (arrays[f"{stem}.{end}"].astype(mx.float32) for end in ("scales", "biases"))
            got = mx.dequantize(arrays[f"{stem}.weight"], scales, biases, **how)
            theirs = mx.dequantize(*mx.quantize(mx.array(x), **how), **how)
            assert np.allclose(np.array(got), want[f"{stem}.weight"].numpy(), rtol=1e-6, atol=1e-6)
        off, their_off = (float(np.square(np.array(y) - x).mean()) for y in (got, theirs))
        assert off <= 1.01 * their_off


@pytest.mark.parametrize("name", ["llama", "qwen2-moe", "qwen3-moe", "mellum", "mixtral"])
def test_mlx_lm_loads_and_computes_the_same(tmp_path: Path, name: str) -> None:
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    utils = pytest.importorskip("mlx_lm.utils", reason="mlx-lm is not installed")
    mx.set_default_device(mx.cpu)
    tiny_models.build(name, tmp_path / "in")
    llmconv.quantize(tmp_path / "in", tmp_path / "out", "MLX", group_size=32)
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())  # in which mlx-lm looks for older names than transformers 5 writes
    rope = config.get("rope_parameters", {})
    rope = rope.get("full_attention", rope)
    old = {"num_experts": config.get("num_local_experts"), "rope_theta": rope.get("rope_theta"), "rope_scaling": None}
    path.write_text(json.dumps({**old, **config}))
    model, _ = utils.load_model(tmp_path / "out")
    model.set_dtype(mx.float32)
    ids = [1, 5, 9, 13, 17, 3, 2, 8]
    got = np.array(model(mx.array([ids])))[0]
    want = llmconv.load(tmp_path / "out", "cpu", "f32")(torch.tensor([ids]))[0].detach().numpy()
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
