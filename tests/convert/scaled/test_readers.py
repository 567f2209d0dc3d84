"""Other programs' quantized layers are read as the values they stand for, whichever rows are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from stored_layers import awq, bitnet, bitsandbytes, four_bit_floats, gptq, hqq, mlx
from stored_models import LINEAR, folder, in_memory, llama

import llmconv
from llmconv.convert.scaled.unpack import unpack
from llmconv.errors import BadFile, MissingTensor, Unsupported

E4M3 = ml_dtypes.float8_e4m3fn
GPTQ: dict[str, Any] = {"quant_method": "gptq"}
CT: dict[str, Any] = {"quant_method": "compressed-tensors"}
BNB: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def check(made: tuple[dict[str, Any], Any], settings: Any = None, **more: Any) -> None:
    """The layer alone is read as its values, in any slice of rows."""
    arrays, want = made
    found = unpack(in_memory(arrays, settings, **more))
    assert list(found.tensors) == ["a.weight"]
    tensor = found.tensors["a.weight"]
    assert tensor.shape == want.shape and np.array_equal(tensor.numpy(), want)
    n = want.shape[0]
    for start, stop in ((0, 1), (1, n), (n // 3, n // 3 + 4), (n - 1, n), (3, 3)):
        assert np.array_equal(tensor.rows(start, stop), want[start:stop])
    assert b"quant" not in (found.file("config.json") or b"")


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits: int, group: int, symmetric: bool, order: bool, v2: bool) -> None:
    made = gptq("a", (32, 128), bits, bits, group, symmetric, order, v2)
    settings = GPTQ | {"bits": bits, "group_size": group} | ({"checkpoint_format": "gptq_v2"} if v2 else {})
    check(made, settings)
    if not v2:
        arrays = {name: array for name, array in made[0].items() if order or not name.endswith("g_idx")}
        check((arrays, made[1]), None if order or bits not in (8,) else GPTQ)


def test_gptq_zero_points_that_wrap() -> None:
    """A zero point of 0 is stored as the largest number; programs add one and keep the bits."""
    arrays, _ = gptq("a", (32, 32), v2=True, symmetric=False)
    arrays["a.qzeros"] = np.full_like(arrays["a.qzeros"], -1)
    found = unpack(in_memory(arrays, GPTQ)).tensors["a.weight"].numpy()
    assert (found >= 0).all() and found.max() > 0


@pytest.mark.parametrize(
    ("v2", "said"),
    [(True, {"sym": True}), (True, {}), (False, {"checkpoint_format": "gptq_v2", "sym": True})],
)
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_gptq_in_the_other_way_than_said(bits: int, v2: bool, said: dict[str, Any]) -> None:
    arrays, want = gptq("a", (32, 64), bits, bits, v2=v2)
    found = unpack(in_memory(arrays, GPTQ | {"bits": bits} | said))
    assert np.array_equal(found.tensors["a.weight"].numpy(), want)
    assert "1 of them have zero points of symmetric codes in the other of GPTQ's two ways" in found.notes[-1]


def test_gptq_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    wants = {}

    def stored(stem: str, shape: tuple[int, int]) -> dict[str, Any]:
        made, wants[stem] = gptq(stem, shape, len(wants), v2=True)
        return made

    source = folder(tmp_path / "in", llama(stored))
    (source / "quantize_config.json").write_text(json.dumps({"bits": 4, "checkpoint_format": "gptq_v2"}))
    llmconv.convert_file(source, tmp_path / "out", outtype="f32")
    found = llmconv.open(tmp_path / "out")
    assert all(np.array_equal(found.tensors[f"{stem}.weight"].numpy(), want) for stem, want in wants.items())
    assert not (tmp_path / "out" / "quantize_config.json").exists()
    (source / "quantize_config.json").write_text("[")
    with pytest.raises(BadFile, match=r"quantize_config\.json is no JSON"):
        llmconv.convert_file(source, tmp_path / "o.gguf")


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("version", ["gemm", "gemv", None])
def test_awq(version: str | None, group: int) -> None:
    made = awq("a", (24, 128), group, group, gemv=version == "gemv")
    if version is None:
        check(made)
    else:
        check(made, {"quant_method": "awq", "version": version, "bits": 4, "group_size": group, "zero_point": True})
        check(made, {"quant_method": "awq", "version": version, "w_bit": 4, "q_group_size": group})


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx(bits: int, group: int) -> None:
    made = mlx("a", (9, 256), bits, bits, group)
    check(made, quantization={"group_size": group, "bits": bits})
    check(made, quantization={"group_size": 64, "bits": 4, "a": {"group_size": group, "bits": bits}})
    if bits == 4:
        check(made)


def test_mlx_settings_of_a_module_under_another_prefix() -> None:
    """Both readings fit the shapes: 4 bits in groups of 64, and 8 in groups of 32."""
    stem = "language_model.model.layers.3.mlp.up_proj"
    arrays, want = mlx(stem, (8, 128), 1, 8, 32)
    own = {"model.language_model.layers.3.mlp.up_proj": {"group_size": 32, "bits": 8}}
    found = unpack(in_memory(arrays, quantization={"group_size": 64, "bits": 4} | own))
    assert np.array_equal(found.tensors[f"{stem}.weight"].numpy(), want)


@pytest.mark.parametrize("kind", ["nvfp4", "modelopt", "mxfp4", "mlx", "deepseek"])
def test_four_bit_floats(kind: str) -> None:
    settings = {"nvfp4": CT, "mxfp4": CT, "modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}.get(kind)
    more = {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}} if kind == "mlx" else {}
    made = four_bit_floats("a", (10, 64), 3, kind)
    check(made, settings, **more)
    check(made)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(16, 128), (9, 24), (7, 33)])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes(kind: str, shape: tuple[int, int], nested: bool) -> None:
    check(bitsandbytes("a", shape, 5, 64, nested, kind), BNB)


def test_llm_int8() -> None:
    rng = np.random.default_rng(0)
    codes, largest = rng.integers(-127, 128, (6, 32)).astype(np.int8), rng.uniform(0.1, 2, 6).astype(np.float32)
    arrays = {"a.weight": codes, "a.SCB": largest, "a.weight_format": np.array(0, np.uint8)}
    want = codes.astype(np.float32) * largest[:, None] * np.float32(1 / 127)
    check((arrays, want), {"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(Unsupported, match="order of a GPU's kernel"):
        unpack(in_memory(arrays | {"a.weight_format": np.array(1, np.uint8)}))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_hqq(bits: int, axis: int) -> None:
    arrays, want = hqq("a", (12, 64), bits, bits, 16, axis)
    check((arrays, want), {"quant_method": "hqq"})
    fewer = {name: array for name, array in arrays.items() if not name.endswith(("nbits", "group_size", "axis"))}
    said = {"weight_quant_params": {"nbits": bits, "group_size": 16, "axis": axis}}
    check((fewer, want), {"quant_method": "hqq", "quant_config": said})
    with pytest.raises(BadFile, match="does not hold weights"):
        unpack(in_memory(arrays | {"a.shape": np.int64([12, 32])}))


def test_bitnet() -> None:
    settings = {"quant_method": "bitnet"}
    check(bitnet("a", (16, 24)), settings)
    check(bitnet("a", (16, 24), multiplies=True), settings | {"linear_class": "autobitlinear"})
    arrays, _ = bitnet("a", (16, 24))
    with pytest.raises(BadFile, match="holds a 3"):
        unpack(in_memory(arrays | {"a.weight": np.full((4, 24), 255, np.uint8)}, settings)).tensors["a.weight"].rows()


@pytest.mark.parametrize("dtype", [np.int8, E4M3])
def test_numbers_of_eight_bits_under_other_names(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(-9, 9, (6, 64)).astype(dtype), rng.uniform(1, 2, (6, 1)).astype(np.float32)
    want, wide = codes.astype(np.float32) * scale, codes.astype(np.float32)
    check(
        ({"a.weight._data": codes, "a.weight._scale": scale, "a.input_scale": np.ones(())}, want),
        {"quant_method": "quanto"},
    )
    check(({"a._weight_qdata": codes, "a._weight_scale": scale}, want), {"quant_method": "torchao"})
    one = np.float32(0.5)
    check(({"a.weight": codes, "a.qscale_weight": np.array(one), "a.qscale_act": np.array(one)}, wide * one))
    powers = rng.integers(120, 130, (6, 2)).astype(np.uint8)
    mx = np.repeat(np.float32(2) ** (powers.astype(np.float32) - 127), 32, 1)
    check(({"a.weight": codes, "a.weight_scale": powers}, wide * mx))
    if dtype is np.int8:
        zero = rng.integers(-3, 3, (6, 1)).astype(np.int8)
        arrays = {"a._weight_qdata": codes, "a._weight_scale": scale, "a._weight_zero_point": zero}
        check((arrays, (wide - zero) * scale), {"quant_method": "torchao"})


def test_a_whole_model_in_each(tmp_path: Path) -> None:
    """A folder of any of them becomes the GGUF that its floats become."""
    ways = {
        "gptq": (gptq, GPTQ),
        "awq": (awq, {"quant_method": "awq"}),
        "nvfp4": (four_bit_floats, CT),
        "nf4": (bitsandbytes, BNB),
        "mlx": (mlx, None),
        "hqq": (hqq, {"quant_method": "hqq"}),
        "bitnet": (bitnet, {"quant_method": "bitnet"}),
    }
    for name, (stored, settings) in ways.items():
        wants: dict[str, Any] = {}

        def layer(stem: str, shape: tuple[int, int], stored: Any = stored, wants: Any = wants) -> dict[str, Any]:
            made, wants[f"{stem}.weight"] = stored(stem, shape, len(wants))
            return dict(made)

        source = folder(tmp_path / name, llama(layer), settings)
        assert len(wants) == 2 * len(LINEAR)
        floats = folder(
            tmp_path / f"{name}-f32", llama(lambda stem, _, w=wants: {f"{stem}.weight": w[f"{stem}.weight"]})
        )
        for path in (source, floats):
            llmconv.quantize(path, path.with_suffix(".gguf"), "Q8_0")
        a, b = (llmconv.open(path.with_suffix(".gguf")).tensors for path in (source, floats))
        assert all(np.array_equal(t.blocks(), b[n].blocks()) for n, t in a.items())


THREE = {"a.scales": np.ones((3, 32), np.float16), "a.qzeros": np.zeros((3, 4), np.int32), "a.g_idx": None}
FAULTS: dict[str, tuple[Any, Any, str]] = {
    "gptq: a group that is none": (gptq, {"a.g_idx": np.full(64, 2, np.int32)}, "does not name a group"),
    "gptq: g_idx of another length": (gptq, {"a.g_idx": np.zeros(30, np.int32)}, "does not go with"),
    "gptq: too few scales": (gptq, THREE, "3 groups"),
    "gptq: other zero points": (gptq, {"a.qzeros": np.zeros((2, 3), np.int32)}, "does not go with"),
    "gptq: no scales": (gptq, {"a.scales": None}, "'a.scales' is missing"),
    "gptq: no zero points": (gptq, {"a.qzeros": None}, "'a.qzeros' is missing"),
    "gptq: integers for scales": (gptq, {"a.scales": np.ones((2, 32), np.int32)}, "expected floats"),
    "awq: other scales": (awq, {"a.scales": np.ones((2, 24), np.float16)}, "does not go with"),
    "awq: gemv without a group": (lambda *a: awq(*a, gemv=True), {}, "says no group_size"),
    "mlx: other biases": (mlx, {"a.biases": np.ones((32, 1), np.float16)}, "does not go with"),
    "nvfp4: other scales": (four_bit_floats, {"a.weight_scale": np.ones((32, 3), E4M3)}, "does not scale"),
    "nvfp4: no global scale": (four_bit_floats, {"a.weight_global_scale": None}, "_global_scale' is missing"),
    "bitsandbytes: no state": (bitsandbytes, {"a.weight.quant_state.bitsandbytes__nf4": None}, "is missing"),
    "bitsandbytes: no JSON": (bitsandbytes, {"a.weight.quant_state.bitsandbytes__nf4": np.zeros(3, np.uint8)}, "JSON"),
    "bitsandbytes: too few maxima": (bitsandbytes, {"a.weight.absmax": np.ones(3, np.float32)}, "has 3 numbers"),
    "bitsandbytes: a short table": (bitsandbytes, {"a.weight.quant_map": np.ones(8, np.float32)}, "expected 16"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_by_the_tensor(name: str) -> None:
    stored, changed, sentence = FAULTS[name]
    arrays, _ = stored("a", (32, 64))
    for key, value in changed.items():
        if value is None:
            del arrays[key]
        else:
            arrays[key] = value.astype(ml_dtypes.float8_e4m3fn) if value.dtype == np.float32 else value
    methods = {gptq: GPTQ | {"group_size": 32}, awq: {"quant_method": "awq"}, four_bit_floats: CT, bitsandbytes: BNB}
    with pytest.raises((BadFile, MissingTensor), match=sentence) as error:
        unpack(
            in_memory(
                arrays, methods.get(stored, {"quant_method": "awq", "version": "gemv"} if "gemv" in name else None)
            )
        )
    assert "'a." in str(error.value) and len(str(error.value)) < 320
