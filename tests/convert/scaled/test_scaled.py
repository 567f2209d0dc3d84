"""Scales are part of a weight: what is done to it is done to the product; what isn't read is called by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import llmconv
from llmconv import formats
from llmconv.convert.scaled.unpack import SCHEMES, refuse_parts, unpack
from llmconv.convert.scaled.unread import UNREAD
from llmconv.errors import BadFile, MissingTensor, UnknownTensor, Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain as plain_types

E4M3 = ml_dtypes.float8_e4m3fn
RNG = np.random.default_rng(0)
Arrays = dict[str, Any]

# A tiny Llama, its linear layers stored in any way.

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 1, "rms_norm_eps": 1e-5}
CONFIG |= SIZES | {"max_position_embeddings": 64, "tie_word_embeddings": False}
LINEAR = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32)}
LINEAR |= {"self_attn.o_proj": (32, 32), "mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64)}


def llama(stored: Callable[[str, Any], Arrays]) -> Arrays:
    rng = np.random.default_rng(1)
    made: Arrays = {"model.embed_tokens.weight": rng.standard_normal((40, 32)).astype(np.float32)}
    made |= {"lm_head.weight": made["model.embed_tokens.weight"] + 1, "model.norm.weight": np.ones(32, np.float32)}
    for i in range(2):
        for name, shape in LINEAR.items():
            made |= stored(f"model.layers.{i}.{name}", rng.standard_normal(shape).astype(np.float32) * np.float32(0.1))
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"model.layers.{i}.{name}.weight"] = np.ones(32, np.float32)
    return made


def folder(path: Path, arrays: Arrays, settings: Any = None, **more: Any) -> Path:
    path.mkdir()
    config = CONFIG | ({"quantization_config": settings} if settings is not None else {}) | more
    (path / "config.json").write_text(json.dumps(config))
    made = Checkpoint(dialect="plain")
    for name, array in arrays.items():
        made.add(Tensor.from_array(name, np.asarray(array)))
    formats.by_name("safetensors").save(made, path / "model.safetensors")
    return path


def plain(name: str, w: Any) -> Arrays:
    return {f"{name}.weight": w}


def fp8(name: str, w: Any, block: int = 16) -> Arrays:
    down, across = -(-w.shape[0] // block), -(-w.shape[1] // block)
    scale = np.empty((down, across), np.float32)
    codes = np.empty(w.shape, E4M3)
    for i in range(down):
        for j in range(across):
            at = np.s_[i * block : (i + 1) * block, j * block : (j + 1) * block]
            scale[i, j] = np.abs(w[at]).max() / 448
            codes[at] = (w[at] / scale[i, j]).astype(E4M3)
    return {f"{name}.weight": codes, f"{name}.weight_scale_inv": scale}


def int8_zeros(name: str, w: Any) -> Arrays:
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
    scale = (high - low) / 255
    zero = np.rint(-128 - low / scale)
    codes = np.clip(np.rint(w / scale + zero), -128, 127)
    return {
        f"{name}.weight": codes.astype(np.int8),
        f"{name}.weight_scale": scale.astype(ml_dtypes.bfloat16),
        f"{name}.weight_zero_point": zero.astype(np.int8),
    }


FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16]}
ASYMMETRIC = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"symmetric": False}}}}


def values_of(arrays: Arrays) -> Arrays:
    """The floats, by loops: each number less its zero point, times the scale that lies over it."""
    found: Arrays = {}
    for name, array in arrays.items():
        ends = [name + "_scale_inv", name + "_scale", name.removesuffix("weight") + "scale"]
        scale = next((arrays[end] for end in ends if end in arrays and end != name), None)
        if scale is None:
            if not name.endswith(("scale_inv", "scale", "zero_point")):
                found[name] = array.astype(np.float32)
            continue
        zero = arrays.get(name + "_zero_point")
        n, k = array.shape
        rows, columns = -(-n // scale.shape[0]), -(-k // scale.shape[1])
        out = np.empty((n, k), np.float32)
        for i in range(n):
            for j in range(k):
                value = np.float32(array[i, j]) - (np.float32(0) if zero is None else np.float32(zero[i, 0]))
                out[i, j] = value * np.float32(scale[i // rows, j // columns])
        found[name] = out
    return found


def deepseek(name: str, w: Any) -> Arrays:
    return {n.replace("weight_scale_inv", "scale"): a for n, a in fp8(name, w).items()}


STORED = {
    "fp8": (fp8, FP8),
    "fp8 as DeepSeek names it": (deepseek, FP8),
    "int8 with zero points": (int8_zeros, ASYMMETRIC),
}


@pytest.mark.parametrize("name", STORED)
def test_another_type_gets_the_products(tmp_path: Path, name: str) -> None:
    made, settings = STORED[name]
    arrays = llama(made)
    source, want = folder(tmp_path / "in", arrays, settings), values_of(arrays)
    result = llmconv.convert_file(source, tmp_path / "f32", outtype="f32", max_shard_size=20_000)
    assert len(list((tmp_path / "f32").glob("*.safetensors"))) > 2 and "read as F32" in result.notes[0]
    found = llmconv.open(tmp_path / "f32")
    assert {n: t.shape for n, t in found.tensors.items()} == {n: a.shape for n, a in want.items()}
    assert all((t.numpy() == want[n]).all() for n, t in found.tensors.items())
    assert "quantization_config" not in (tmp_path / "f32" / "config.json").read_text()
    llmconv.convert_file(source, tmp_path / "bf16", outtype="bf16")
    half = llmconv.open(tmp_path / "bf16").tensors
    assert all((half[n].numpy() == a.astype(ml_dtypes.bfloat16)).all() for n, a in want.items())
    # the same from the shards, from a lone file, to a GGUF, quantized
    floats = folder(tmp_path / "floats", want)
    for target, options in ({"a.gguf": {}, "b.gguf": {"outtype": "f16"}, "c.json": {"outtype": "f32"}}).items():
        llmconv.convert_file(source, tmp_path / target, **options)  # type: ignore[arg-type]
        llmconv.convert_file(floats, tmp_path / f"f-{target}", **options)  # type: ignore[arg-type]
        assert llmconv.verify(tmp_path / target, tmp_path / f"f-{target}").same
    llmconv.convert_file(source / "model.safetensors", tmp_path / "lone.safetensors", outtype="f32")
    assert llmconv.verify(tmp_path / "lone.safetensors", tmp_path / "f32").same
    for path in (source, floats):
        llmconv.quantize(path, tmp_path / f"{path.name}-q.gguf", "Q8_0")
    assert llmconv.verify(tmp_path / "in-q.gguf", tmp_path / "floats-q.gguf").same


def test_auto_stays_a_copy(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", llama(fp8), FP8)
    llmconv.convert_file(source, tmp_path / "copy")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()


def test_a_lone_file_of_codes_is_quantized_as_its_products(tmp_path: Path) -> None:
    arrays = {"a.weight": RNG.standard_normal((8, 64)).astype(E4M3), "a.weight_scale": np.full((8, 1), 3, np.float32)}
    for name, held in (("codes", arrays), ("floats", values_of(arrays))):
        llmconv.save(checkpoint(held, dialect="plain"), tmp_path / f"{name}.safetensors")
        llmconv.quantize(tmp_path / f"{name}.safetensors", tmp_path / f"{name}.gguf", "Q8_0")
    a, b = (llmconv.open(tmp_path / f"{name}.gguf").tensors["a.weight"] for name in ("codes", "floats"))
    assert a.type.name == "Q8_0" and (a.blocks() == b.blocks()).all()


# Shapes of scales.


def checkpoint(arrays: Arrays, settings: Any = None, dialect: str = "hf") -> Checkpoint:
    made = Checkpoint(dialect=dialect)
    for name, array in arrays.items():
        made.add(Tensor.from_array(name, np.asarray(array)))
    if dialect == "hf":
        config = CONFIG | ({} if settings is None else {"quantization_config": settings})
        made.files["config.json"] = json.dumps(config).encode()
    return made


@pytest.mark.parametrize(
    ("shape", "scale", "wide", "settings"),
    [
        ((6, 8), (), (), {}),
        ((6, 8), (1,), (1,), {}),
        ((6, 8), (1, 1), (1, 1), {}),
        ((6, 8), (6,), (6, 1), {}),
        ((6, 8), (6, 1), (6, 1), {}),
        ((6, 8), (1, 6), (6, 1), {}),  # one a row, laid flat
        ((6, 8), (1, 8), (1, 8), {}),  # one a column
        ((6, 8), (6, 4), "columns 2", {}),  # groups
        ((6, 9), (6, 3), "columns 4", {"group_size": 4}),  # the last one shorter
        ((3, 6, 8), (3,), (3, 1, 1), {}),
        ((3, 6, 8), (3, 1), (3, 1, 1), {}),
        ((3, 6, 8), (3, 1, 1), (3, 1, 1), {}),
        ((3, 6, 8), (3, 6), (3, 6, 1), {}),
        ((3, 6, 8), (3, 6, 1), (3, 6, 1), {}),
        ((3, 6, 8), (3, 1, 8), (3, 1, 8), {}),
        ((3, 6, 8), (1, 1, 1), (1, 1, 1), {}),
        ((3, 6, 8), (3, 2, 4), "block 3 2", {"weight_block_size": [3, 2]}),
        ((2, 8), (1, 2), "block 5 4", {"weight_block_size": [5, 4]}),  # as many as rows, but by block
    ],
    ids=str,
)
def test_shapes_of_scales(shape: Any, scale: Any, wide: Any, settings: Any) -> None:
    codes = RNG.standard_normal(shape).astype(E4M3)
    factors = RNG.uniform(0.5, 2, scale).astype(ml_dtypes.bfloat16)
    over = factors.astype(np.float32)
    if isinstance(wide, str):
        kind, *sizes = wide.split()
        rows, columns = (1, int(sizes[0])) if kind == "columns" else map(int, sizes)
        over = np.repeat(np.repeat(over, rows, -2), columns, -1)[..., : shape[-2], : shape[-1]]
    else:
        over = over.reshape(wide)
    found = unpack(checkpoint({"a.weight": codes, "a.weight_scale": factors}, settings)).tensors["a.weight"]
    want = codes.astype(np.float32) * over
    assert (found.numpy() == want).all() and found.shape == shape
    flat = want.reshape(-1, shape[-1])
    for start in range(found.n_rows - 1):
        assert (found.rows(start, start + 2) == flat[start : start + 2]).all()


@pytest.mark.parametrize(
    ("shape", "scale"),
    [((6, 6), (1, 6)), ((6, 8), (8, 6)), ((6, 8), (6, 3)), ((6, 8), (2, 3)), ((6, 8), (8,)), ((3, 6, 6), (3, 1, 6))],
    ids=str,
)
def test_scales_that_can_not_be_placed(shape: Any, scale: Any) -> None:
    """(1, n) over a square matrix among them: one a row, or one a column?  Nobody can tell."""
    arrays = {"a.weight": np.ones(shape, E4M3), "a.weight_scale": np.ones(scale, np.float32)}
    with pytest.raises(BadFile, match=r"'a.weight_scale' of shape .* does not scale 'a.weight'"):
        unpack(checkpoint(arrays))


# compressed-tensors' packed integers.


def packed(bits: int, group: int, zeros: bool, order: bool) -> tuple[Arrays, Any]:
    """A layer, and its values, by loops over the bits."""
    n, k = 10, 24
    codes = RNG.integers(-(1 << (bits - 1)), 1 << (bits - 1), (n, k))
    across = k // group
    scale = RNG.uniform(0.5, 2, (n, across)).astype(np.float32)
    zero = RNG.integers(-(1 << (bits - 1)), 1 << (bits - 1), (n, across))
    groups = RNG.permutation(np.arange(k) // group) if order else np.arange(k) // group

    def words(numbers: Any) -> Any:
        out = np.zeros((len(numbers), -(-numbers.shape[1] * bits // 32)), np.int64)
        for i, row in enumerate(numbers):
            for j, number in enumerate(row):
                bit = j * bits
                out[i, bit // 32] |= int(number + (1 << (bits - 1))) << (bit % 32)
        return out.astype(np.uint32).view(np.int32)

    made = {"a.weight_packed": words(codes), "a.weight_scale": scale, "a.weight_shape": np.int64([n, k])}
    want = np.empty((n, k), np.float32)
    for i in range(n):
        for j in range(k):
            taken = zero[i, groups[j]] if zeros else 0
            want[i, j] = np.float32(codes[i, j] - taken) * scale[i, groups[j]]
    if zeros:
        made["a.weight_zero_point"] = np.ascontiguousarray(words(zero.T).T)
    if order:
        made["a.weight_g_idx"] = groups.astype(np.int32)
    return made, want


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group", [24, 8, 4])
@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_packed_integers(bits: int, group: int, zeros: bool, order: bool) -> None:
    arrays, want = packed(bits, group, zeros, order)
    weights = {"num_bits": bits, "symmetric": not zeros}
    settings = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights}}}
    for given in (settings, None):
        made = unpack(checkpoint(arrays, given))
        assert list(made.tensors) == ["a.weight"] and (made.tensors["a.weight"].numpy() == want).all()


def test_a_stack_of_codes_without_its_scale_among_others(tmp_path: Path) -> None:
    """Experts in one tensor are called as nobody's scale is."""
    for kind in (E4M3, np.int8):
        stored: Arrays = {"a.gate_up_proj": np.ones((2, 8, 8), kind), "a.gate_up_proj_scale": np.ones((2, 8, 1), "f4")}
        stored["a.down_proj"] = np.ones((2, 8, 8), kind)
        checkpoint = Checkpoint({n: Tensor.from_array(n, x) for n, x in stored.items()}, dialect="plain")
        with pytest.raises(MissingTensor, match=r"a\.down_proj_scale"):
            unpack(checkpoint)


def test_packed_integers_that_lack_something() -> None:
    arrays, _ = packed(4, 8, False, False)
    asked = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"symmetric": False}}}}
    with pytest.raises(MissingTensor, match="weight_zero_point"):
        unpack(checkpoint(arrays, asked))
    for end in ("_scale", "_shape"):
        with pytest.raises(MissingTensor, match=f"'a.weight{end}' is missing"):
            unpack(checkpoint({n: a for n, a in arrays.items() if not n.endswith(end)}))
    wrong = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 3}}}}
    with pytest.raises(BadFile, match="in 3 bits"):
        unpack(checkpoint(arrays, wrong))
    with pytest.raises(BadFile, match="does not name a group"):
        unpack(checkpoint(arrays | {"a.weight_g_idx": np.full(24, 3, np.int32)}))


# What is missing, what is too much.


def test_a_scale_missing_among_others(tmp_path: Path) -> None:
    for gone in ("weight_scale_inv", "weight"):
        arrays = llama(fp8)
        del arrays[f"model.layers.1.mlp.up_proj.{gone}"]
        source = folder(tmp_path / gone, arrays, FP8)
        for to in ("o.gguf", "o.json"):
            with pytest.raises(MissingTensor) as error:
                llmconv.convert_file(source, tmp_path / to, strict=False)
            assert error.value.tensor == f"model.layers.1.mlp.up_proj.{gone}"
        with pytest.raises(MissingTensor):
            llmconv.convert_file(source, tmp_path / "folder", outtype="bf16")
    with pytest.raises(MissingTensor, match="weight_scale_inv' is missing"):
        unpack(checkpoint({"a.weight": np.ones((2, 2), E4M3)}, {"quant_method": "fp8"}))
    with pytest.raises(MissingTensor, match="_zero_point"):
        arrays = {n: a for n, a in llama(int8_zeros).items() if not n.endswith("zero_point")}
        unpack(checkpoint(arrays, ASYMMETRIC))
    assert not list(tmp_path.glob("o.*"))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.weight_scale_3",
        "model.layers.1.mlp.up_proj.zeros",
        "lm_head.bias",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.mlp.up_proj.bias_2",
        "language_model.lm_head.weight",
    ],
)
def test_no_part_of_a_kept_tensor_is_dropped(tmp_path: Path, name: str) -> None:
    arrays = llama(plain) | {name: np.ones((2, 2), np.float32)}
    source = folder(tmp_path / "in", arrays)
    for strict in (True, False):
        with pytest.raises(UnknownTensor) as error:
            llmconv.convert_file(source, tmp_path / "o.gguf", strict=strict)
        assert error.value.tensor == name and "--no-strict" not in str(error.value)


def test_what_may_be_left_out(tmp_path: Path) -> None:
    extra = ["model.vision.proj.weight", "model.layers.0.mlp.up_projection.weight", "model.normal.weight"]
    arrays = llama(fp8) | {n: np.ones((2, 2), np.float32) for n in extra}
    arrays |= {f"model.layers.0.self_attn.{n}": np.ones((), np.float32) for n in ("k_scale", "v_scale")}
    arrays["model.layers.0.self_attn.q_proj.input_scale"] = np.ones((), np.float32)
    source = folder(tmp_path / "in", arrays, FP8)
    result = llmconv.convert_file(source, tmp_path / "o.gguf", strict=False)
    assert sum("left out" in note for note in result.notes) == 3
    refuse_parts("x", ["a.gate_up"], ["a.gate.weight"])


def test_settings_in_a_part_of_the_configuration() -> None:
    made = checkpoint({"a.weight": np.ones((4, 4), E4M3), "a.weight_scale_inv": np.ones((2, 2), np.float32)})
    said = {"quant_method": "fp8", "weight_block_size": [2, 2]}
    made.files["config.json"] = json.dumps({"text_config": {"quantization_config": said, "x": 1}, "y": 2}).encode()
    found = unpack(made)
    assert found.tensors["a.weight"].type.name == "F32"
    assert json.loads(found.file("config.json") or b"") == {"text_config": {"x": 1}, "y": 2}


def test_settings_over_plain_floats(tmp_path: Path) -> None:
    for i, settings in enumerate(
        [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq", "bits": 4}, FP8, {"bits": 4}]
    ):
        source = folder(tmp_path / f"in{i}", llama(plain), settings)
        result = llmconv.convert_file(source, tmp_path / f"{i}.gguf")
        assert any("the weights are plain floats" in note for note in result.notes)
        llmconv.convert_file(tmp_path / f"{i}.gguf", tmp_path / f"back{i}")
        assert "quantization_config" not in json.loads((tmp_path / f"back{i}" / "config.json").read_text())
    llmconv.quantize(tmp_path / "in0", tmp_path / "int8", "INT8")
    assert (
        json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]["quant_method"]
        != "bitsandbytes"
    )
    with pytest.raises(Unsupported, match="is quantized already"):
        llmconv.quantize(folder(tmp_path / "fp8", llama(fp8), FP8), tmp_path / "again", "INT8")
    stale = folder(tmp_path / "key", llama(plain), quantization={"group_size": 64, "bits": 4})
    assert any("plain floats" in note for note in llmconv.convert_file(stale, tmp_path / "k.gguf").notes)
    with pytest.raises(BadFile, match="expected an object"):
        llmconv.convert_file(folder(tmp_path / "list", llama(plain), [1]), tmp_path / "l.gguf")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_scale_that_is_no_number_is_refused(tmp_path: Path, bad: float) -> None:
    arrays = llama(fp8)
    name = "model.layers.1.mlp.up_proj.weight_scale_inv"
    arrays[name] = np.full_like(arrays[name], bad)
    source = folder(tmp_path / "in", arrays, FP8)
    for to in ("o.gguf", "o.safetensors"):
        with pytest.raises(BadFile, match=f"{name}' has {bad} for a scale"):
            llmconv.convert_file(source, tmp_path / to, outtype="f32")
    assert not list(tmp_path.glob("o.*"))


def test_codes_without_scales_are_said(tmp_path: Path) -> None:
    arrays = {n: a for n, a in llama(fp8).items() if "scale" not in n}
    notes = llmconv.convert_file(folder(tmp_path / "in", arrays), tmp_path / "o.gguf").notes
    assert any("F8_E4M3 without scales, taken as they are" in note for note in notes)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rotation": "hadamard"}, "'rotation' transforms activations"),
        ({"transform_config": {"apply": [{"location": "input"}]}}, "'transform_config' transforms activations"),
        ({"transform_config": {"apply": [{"location": "weight_input"}]}}, ""),
        ({"transform_config": {}}, ""),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config says 'sparse-24-bitmask'"),
        ({"sparsity_config": {"format": "dense"}}, ""),
    ],
)
def test_settings_that_change_what_is_computed(tmp_path: Path, more: Any, words: str) -> None:
    source = folder(tmp_path / "in", llama(fp8), {**FP8, **more})
    if not words:
        llmconv.convert_file(source, tmp_path / "o.gguf")
        return
    with pytest.raises(Unsupported, match=words):
        llmconv.convert_file(source, tmp_path / "o.gguf", strict=False)


def test_a_gguf_of_codes_is_quantized_as_their_products(tmp_path: Path) -> None:
    """A lone file goes into a GGUF with codes and scales as they are."""
    source = folder(tmp_path / "in", llama(int8_zeros), ASYMMETRIC)
    (source / "model.safetensors").rename(tmp_path / "lone.safetensors")
    llmconv.convert_file(tmp_path / "lone.safetensors", tmp_path / "codes.gguf")
    result = llmconv.quantize(tmp_path / "codes.gguf", tmp_path / "q.gguf", "Q8_0")
    assert any("stored with scales" in note for note in result.notes)
    made = llmconv.open(tmp_path / "q.gguf").tensors
    assert not any("scale" in name for name in made)
    name = "model.layers.1.mlp.up_proj.weight"
    want = values_of(llama(int8_zeros))[name]
    np.testing.assert_allclose(made[name].astype(plain_types.F32).numpy(), want, atol=np.abs(want).max() / 100)


# Schemes that aren't read.

I32, U8 = np.zeros((4, 4), np.int32), np.zeros((4, 4), np.uint8)
F16 = np.ones((4, 4), np.float16)
FOREIGN: dict[str, tuple[Arrays, Any]] = {
    "EETQ": ({".weight": np.zeros((4, 4), np.int8), ".weight_scales": F16}, None),
    "AQLM": ({".codes": I32, ".codebooks": F16, ".scales": F16}, None),
    "EXL2": ({".q_weight": I32, ".q_scale": I32, ".q_scale_max": F16}, {"quant_method": "exl2"}),
    "EXL3": ({".trellis": np.zeros((4, 4), np.int16), ".suh": F16, ".svh": F16}, {"quant_method": "exl3"}),
    "torchao in 4 bits": (
        {"._weight_qdata": np.zeros((2, 2, 2, 4), np.int32), "._weight_scale_and_zero": F16},
        {"quant_method": "torchao"},
    ),
    "'vptq'": ({".indices": I32, ".centroids": F16}, {"quant_method": "vptq"}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_read_is_called_by_its_name(tmp_path: Path, name: str) -> None:
    parts, settings = FOREIGN[name]
    arrays = llama(lambda module, _: {module + end: array for end, array in parts.items()})
    called = name
    source = folder(tmp_path / "in", arrays, settings)
    for call in (
        lambda: llmconv.convert_file(source, tmp_path / "o.gguf"),
        lambda: llmconv.convert_file(source, tmp_path / "o.gguf", strict=False),
        lambda: llmconv.convert_file(source, tmp_path / "o", outtype="bf16"),
        lambda: llmconv.convert_file(source / "model.safetensors", tmp_path / "o.gguf"),
        lambda: llmconv.quantize(source, tmp_path / "o.gguf", "Q8_0"),
    ):
        with pytest.raises(Unsupported) as error:
            call()
        assert called in str(error.value) and len(str(error.value)) < 400
    assert not list(tmp_path.glob("o*"))
    llmconv.convert_file(source, tmp_path / "copy")  # but it can be copied
    assert (tmp_path / "copy" / "model.safetensors").stat().st_size == (source / "model.safetensors").stat().st_size


def test_every_scheme_is_tried() -> None:
    tried = " ".join(FOREIGN)
    assert set(UNREAD) < set(SCHEMES)
    for scheme in UNREAD:
        assert scheme.name in tried or scheme.name == "VPTQ"


# Adapters.


def test_an_adapter_is_merged_into_the_products(tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.q_proj"
    a, b = RNG.standard_normal((2, 32)).astype(np.float32), RNG.standard_normal((32, 2)).astype(np.float32)
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    names = [f"base_model.model.{module}.lora_{x}.weight" for x in "AB"]
    save_file(dict(zip(names, (a, b), strict=True)), lora / "adapter_model.safetensors")
    arrays = llama(fp8)
    source, want = folder(tmp_path / "in", arrays, FP8), values_of(arrays)
    floats = folder(tmp_path / "floats", want)
    for path in (source, floats):
        llmconv.convert_file(path, tmp_path / f"{path.name}.gguf", lora=lora)
        llmconv.convert_file(path, tmp_path / f"{path.name}-merged", lora=lora)
        llmconv.quantize(path, tmp_path / f"{path.name}-q.gguf", "Q8_0", lora=lora)
    for name in ("{}.gguf", "{}-merged", "{}-q.gguf"):
        assert llmconv.verify(*(tmp_path / name.format(x) for x in ("in", "floats"))).same
    found = llmconv.open(tmp_path / "in-merged").tensors[f"{module}.weight"].numpy()
    assert np.allclose(found, want[f"{module}.weight"] + b @ a, atol=1e-5)
