"""What config.json says beside the usual: read right, refused by name, or said in a note."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from stored_kinds import E4M3, KINDS, eight_bits, packed
from stored_layers import awq, bitsandbytes, four_bit_floats, gptq, hqq, mlx
from stored_models import LINEAR, folder, in_memory, llama

import llmconv
from llmconv.convert.scaled.unpack import unpack

SHAPE = (64, 128)
GPTQ = {"quant_method": "gptq", "bits": 4}
CT, BNB = {"quant_method": "compressed-tensors"}, {"quant_method": "bitsandbytes", "load_in_4bit": True}
PLAIN = np.arange(64 * 128, dtype=np.float16).reshape(64, 128)
E8M0 = ml_dtypes.float8_e8m0fnu


def joined(*layers: tuple[dict[str, Any], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Layers a, b, ...: their tensors, and what they stand for."""
    arrays: dict[str, Any] = {}
    for made, _ in layers:
        arrays |= made
    return arrays, {f"{'abcd'[i]}.weight": want for i, (_, want) in enumerate(layers)}


def plain(stem: str) -> tuple[dict[str, Any], Any]:
    return {f"{stem}.weight": PLAIN}, PLAIN


def fp8(stem: str, n: int, k: int, scale_type: Any, block: int = 128) -> tuple[dict[str, Any], Any]:
    """Scales by block, in any type; the last blocks may be cut."""
    made, _ = eight_bits(stem, (n, k), 3, E4M3, ("", "_scale_inv"), block)
    name = f"{stem}.weight_scale_inv"
    scale = made[name].astype(scale_type)
    wide = np.repeat(np.repeat(scale.astype(np.float32), block, 0), block, 1)[:n, :k]
    return made | {name: scale}, made[f"{stem}.weight"].astype(np.float32) * wide


def int4(stem: str) -> tuple[dict[str, Any], Any]:
    """torchao's, in its plain format."""
    rng = np.random.default_rng(4)
    codes, scale, zero = rng.integers(-8, 8, SHAPE), rng.uniform(0.01, 0.1, (4, 64)), rng.uniform(-1, 1, (4, 64))
    scale, zero = scale.astype(ml_dtypes.bfloat16), zero.astype(ml_dtypes.bfloat16)
    packed_ = ((codes[:, ::2] & 15) | (codes[:, 1::2] << 4)).astype(np.int8)
    wide = [np.repeat(x.astype(np.float32).T, 32, 1) for x in (scale, zero)]
    made = {"qdata": packed_, "scale": scale, "zero_point": zero}
    return {f"{stem}._weight_{n}": a for n, a in made.items()}, codes.astype(np.float32) * wide[0] + wide[1]


def quanto(stem: str, bits: int, n: int, k: int, group: int = 32, whole: bool = False) -> tuple[dict[str, Any], Any]:
    """A byte holds numbers of groups that are far apart.   whole: its shifts are integers."""
    rng, count, each = np.random.default_rng(bits), n * k // group, 8 // bits
    codes = rng.integers(0, 1 << bits, (count, group))
    rows = -(-count // each)
    packed_ = np.zeros((rows, group), np.uint8)
    for r in range(count):
        packed_[r % rows] |= (codes[r] << (bits * (r // rows))).astype(np.uint8)
    scale = rng.uniform(0.01, 0.1, (count, 1)).astype(np.float16)
    shift = rng.integers(0, 1 << bits, (count, 1)).astype(np.int8) if whole else (scale * 3).astype(np.float16)
    wide, off = scale.astype(np.float32), shift.astype(np.float32)
    want = (codes - off).astype(np.float32) * wide if whole else codes.astype(np.float32) * wide - off
    made = {f"{stem}.weight._data._data": packed_, f"{stem}.weight._scale": scale, f"{stem}.weight._shift": shift}
    return made, want.reshape(n, k)


QUANTO = {"quant_method": "quanto", "weights": "int4"}
READ: dict[str, tuple[tuple[dict[str, Any], dict[str, Any]], Any, dict[str, Any]]] = {
    "AutoRound, bits by layer": (
        joined(gptq("a", SHAPE), gptq("b", SHAPE, bits=8), plain("c")),
        {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_gptq",
         "extra_config": {"b": {"bits": 8}, "c": {"bits": 16, "data_type": "float"}}}, {},
    ),
    "AutoRound, by patterns": (
        joined(gptq("a", SHAPE), gptq("b", SHAPE, bits=2, group=64)),
        {"quant_method": "auto-round", "bits": 4, "group_size": 32, "extra_config": {".*b": {"bits": 2}}}, {},
    ),
    "GPTQModel's rules": (
        joined(gptq("a", SHAPE), gptq("b", SHAPE, bits=8, group=64), plain("c")),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {"+:b": {"bits": 8}, "-:c": {}}}, {},
    ),
    "AWQ, modules left": (
        joined(awq("a", SHAPE), plain("b")),
        {"quant_method": "awq", "version": "exllama", "modules_to_not_convert": ["b"]}, {},
    ),
    "bitsandbytes, modules skipped": (
        joined(KINDS["NF4"].stored("a", SHAPE, 0), plain("b")), BNB | {"llm_int8_skip_modules": ["b"]}, {},
    ),
    "MLX, by module": (
        joined(mlx("a", SHAPE), mlx("b", SHAPE, bits=8, group=64), plain("c")), None,
        {"quantization": {"bits": 4, "group_size": 32, "b": {"bits": 8, "group_size": 64}, "c": False}},
    ),
    "mixed formats": (
        joined(packed("a", SHAPE), eight_bits("b", SHAPE, dtype=E4M3), four_bit_floats("c", SHAPE), plain("d")),
        CT | {"format": "mixed-precision", "ignore": ["d"], "config_groups": {
            "g0": {"targets": ["a"], "format": "pack-quantized", "weights": {"num_bits": 4, "type": "int"}},
            "g1": {"targets": ["b"], "format": "float-quantized", "weights": {"num_bits": 8, "type": "float"}},
            "g2": {"targets": ["c"], "format": "nvfp4-pack-quantized", "weights": {"num_bits": 4, "type": "float"}}}},
        {},
    ),
    "groups by pattern": (
        joined(packed("a", SHAPE), packed("b", SHAPE, symmetric=False), packed("c", SHAPE, bits=8, group=64)),
        CT | {"config_groups": {
            "g0": {"targets": ["re:^[ad]$"], "weights": {"num_bits": 4, "group_size": 32, "symmetric": True}},
            "g1": {"targets": ["c"], "weights": {"num_bits": 8, "group_size": 64, "symmetric": True}},
            "g2": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32, "symmetric": False}}}}, {},
    ),
    "GPTQ, a shorter last group": (joined(gptq("a", (64, 64), group=48)), GPTQ | {"group_size": 48}, {}),
    "GPTQ, a shorter last group in act-order": (
        joined(gptq("a", (64, 64), group=48, order=True)), GPTQ | {"group_size": 48, "desc_act": True}, {},
    ),
    "scales in bfloat16": (
        joined(fp8("a", 64, 128, ml_dtypes.bfloat16, 32)), {"quant_method": "fp8", "weight_block_size": [32, 32]}, {},
    ),
    "scales that are exponents": (
        joined(fp8("a", 64, 128, E8M0, 32)), {"quant_method": "fp8", "weight_block_size": [32, 32]}, {},
    ),
    "ragged blocks": (
        joined(fp8("a", 200, 150, np.float32)), {"quant_method": "fp8", "weight_block_size": [128, 128]}, {},
    ),
    "HQQ by columns": (joined(hqq("a", SHAPE, axis=0)), {"quant_method": "hqq"}, {}),
    "torchao in 4 bits": (joined(int4("a")), {"quant_method": "torchao"}, {}),
    "quanto in 4 bits": (joined(quanto("a", 4, 96, 64)), QUANTO, {}),
    "quanto in 2 bits": (joined(quanto("a", 2, 96, 64)), QUANTO, {}),
    "quanto in whole shifts": (joined(quanto("a", 4, 30, 64, whole=True)), QUANTO, {}),
    "quanto's floats": (
        joined(eight_bits("a", SHAPE, dtype=E4M3, names=("._data", "._scale"))),
        {"quant_method": "quanto", "weights": "float8"}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_read(name: str) -> None:
    (arrays, wants), settings, more = READ[name]
    found = unpack(in_memory(arrays, settings, **more)).tensors
    assert set(found) == set(wants)
    assert all(np.array_equal(found[n].numpy(), want.astype(found[n].numpy().dtype)) for n, want in wants.items())


def auto_round(path: Path) -> tuple[Path, Path]:
    """(a folder of AutoRound's whose layers differ in bits, groups and symmetry by rules, the same in floats)"""
    wants: dict[str, Any] = {}

    def layer(stem: str, shape: tuple[int, int]) -> dict[str, Any]:
        how = {"down_proj": (8, 32, True), "up_proj": (3, 32, False), "k_proj": (2, 64, False)}
        bits, group, symmetric = how.get(stem.rpartition(".")[2], (4, 32, True))
        if stem.endswith("v_proj"):
            made, want = plain(stem)
            made, want = {n: np.resize(a, shape) for n, a in made.items()}, np.resize(want, shape)
        else:
            made, want = gptq(stem, shape, len(wants), bits, group, symmetric)
        wants[f"{stem}.weight"] = want
        return dict(made)

    rules = {
        ".*down_proj": {"bits": 8}, ".*up_proj": {"bits": 3, "sym": False},
        ".*k_proj": {"bits": 2, "group_size": 64, "sym": False},
        **{f"model.layers.{i}.self_attn.v_proj": {"bits": 16, "data_type": "fp"} for i in (0, 1)},
    }  # fmt: skip
    said = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "extra_config": rules}
    stored = folder(path / "in", llama(layer), said | {"packing_format": "auto_round:auto_gptq"})
    return stored, folder(path / "f32", llama(lambda stem, _: {f"{stem}.weight": wants[f"{stem}.weight"]}))


@pytest.mark.parametrize("to", ["GGUF", "F32", "REPACK", "W4A16", "W4A16_ASYM", "MLX"])
def test_autoround_s_mixed_bits(tmp_path: Path, to: str) -> None:
    stored, want = auto_round(tmp_path)
    if to == "GGUF":
        llmconv.convert_file(stored, made := tmp_path / "m.gguf")
    elif to == "F32":
        llmconv.convert_file(stored, made := tmp_path / "copy", outtype="f32")
        assert "quantization_config" not in json.loads((made / "config.json").read_text())
    else:
        llmconv.quantize(stored, made := tmp_path / "m", to)
    assert llmconv.verify(made, want).same


REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "2:4 in Marlin's order": (
        {"a.weight_packed": np.zeros((8, 64), np.int32), "a.scale_packed": np.ones((2, 64), np.float16),
         "a.meta": np.zeros((64, 8), np.int16)}, CT | {"format": "marlin-24"}, "format says '?marlin-24"),
    "2:4 in a group": (
        packed("a", SHAPE)[0], CT | {"config_groups": {"g": {"format": "marlin-24"}}},
        "config_groups says '?marlin-24"),
    "2:4 by bits": (
        {"a.weight.compressed": np.zeros((64, 64), np.float16), "a.weight.bitmask": np.zeros((64, 16), np.uint8)},
        CT | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config says '?sparse-24-bitmask"),
    "rotations": (packed("a", SHAPE)[0], CT | {"transform_config": {"config_groups": {"R4": {"apply": [
        {"location": "input"}]}}}}, "transform_config'? transforms activations"),
    "AWQ for gemv_fast": (awq("a", SHAPE)[0], {"quant_method": "awq", "version": "gemv_fast"}, "version '?gemv_fast"),
    "AWQ in Marlin's order": (awq("a", SHAPE)[0], {"quant_method": "awq", "version": "marlin"}, "version '?marlin"),
    "GPTQ in Marlin's order": (gptq("a", SHAPE)[0], {"quant_method": "gptq", "checkpoint_format": "marlin"}, "marlin"),
    "torchao in 4 bits": (
        {"a._weight_qdata": np.zeros((8, 4, 32, 4), np.int32),
         "a._weight_scale_and_zero": np.ones((4, 64, 2), np.float16)},
        {"quant_method": "torchao"}, "torchao in 4 bits"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    arrays, settings, match = REFUSED[name]
    with pytest.raises(llmconv.Unsupported, match=match) as caught:
        unpack(in_memory(arrays, settings))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


TWO_STATES = {"a.weight.quant_state.bitsandbytes__fp4": np.zeros(9, np.uint8)}
UNSYMMETRIC = {"weights": {"num_bits": 4, "symmetric": False}}
DAMAGED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "no zero points in one of two groups": (
        packed("a", SHAPE)[0] | packed("b", SHAPE)[0],
        CT | {"config_groups": {"g0": {"targets": ["a"]}, "g1": UNSYMMETRIC | {"targets": ["re:.*b"]}}},
        "'b.weight_zero_point' is missing"),
    "two states of a weight": (bitsandbytes("a", SHAPE)[0] | TWO_STATES, BNB, "nf4.* and .*fp4.* both say"),
    "an order with a longer last group": (
        gptq("a", (64, 64), group=48)[0] | {"a.g_idx": np.int32([0] * 16 + [1] * 48)}, GPTQ | {"group_size": 48},
        "puts 16 columns into group 0, expected 48"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told_by_the_tensor(name: str) -> None:
    arrays, settings, match = DAMAGED[name]
    with pytest.raises(llmconv.BadFile, match=match) as caught:
        unpack(in_memory(arrays, settings))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("target", ["re:((a+)+)+$", "re:(", "re:" + "a?" * 400])
def test_patterns_that_are_none(target: str) -> None:
    """Nobody waits for them, and none of them is believed."""
    groups = {"g0": {"targets": [target], "weights": {"num_bits": 8}}, "g1": {"targets": ["b"]}}
    arrays, want = packed("a" * 40, SHAPE)
    found = unpack(in_memory(arrays, CT | {"config_groups": groups}))
    assert np.array_equal(found.tensors["a" * 40 + ".weight"].numpy(), want)


def test_scales_of_the_cache_are_said() -> None:
    """`kv_cache_scheme`: whoever runs the model in floats has no use for them."""
    arrays, want = packed("model.layers.0.self_attn.k_proj", SHAPE)
    arrays |= {f"model.layers.0.self_attn.{x}_scale": np.ones(1, np.float32) for x in "kv"}
    found = unpack(in_memory(arrays, CT | {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}))
    assert np.array_equal(found.tensors["model.layers.0.self_attn.k_proj.weight"].numpy(), want)
    assert len(found.tensors) == 1 and any("2 scales of activations or caches" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["REPACK", "W4A16"])
def test_a_head_in_four_bits(tmp_path: Path, kind: str) -> None:
    """GPTQ with `lm_head: true`: a GGUF has it as it is; a folder for servers, which read no such head, in floats."""
    made, want = gptq("lm_head", (40, 64))
    arrays = {n: a for n, a in whole().items() if n != "lm_head.weight"} | made
    source = folder(tmp_path / "in", arrays, {"quant_method": "gptq", "bits": 4, "lm_head": True})
    target = tmp_path / ("o.gguf" if kind == "REPACK" else "o")
    result = llmconv.quantize(source, target, kind)
    found = llmconv.open(target).tensors["output.weight" if kind == "REPACK" else "lm_head.weight"]
    assert "every weight equal" in result.output.proof and np.array_equal(found.numpy(), want)
    assert (found.type.name == "Q4_0") is (kind == "REPACK")


BESIDE: dict[str, tuple[dict[str, Any], str]] = {
    "scales without codes": ({"model.layers.1.self_attn.x.scales": np.ones((2, 64), np.float16)}, r"x\.qweight"),
    "zero points without codes": ({"model.layers.1.mlp.x.qzeros": np.ones((2, 8), np.int32)}, r"x\.qweight"),
    "a bias too short": ({"model.layers.1.self_attn.q_proj.bias": np.ones(63, np.float16)}, r"shape \[63\], .* \[64\]"),
    "a bias in two": ({"model.layers.1.mlp.up_proj.bias": np.ones((2, 64), np.float16)}, r"\[2, 64\], .* \[128\]"),
}  # fmt: skip


@functools.cache
def whole() -> dict[str, Any]:
    one = {shape: dict(gptq("x", shape)[0]) for shape in set(LINEAR.values())}
    return llama(lambda stem, shape: {n.replace("x", stem, 1): array for n, array in one[shape].items()})


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("kind", ["W4A16", "REPACK"])
def test_what_stands_beside_a_layer(tmp_path: Path, kind: str, name: str) -> None:
    more, match = BESIDE[name]
    arrays = whole() | more
    with pytest.raises(llmconv.BadFile, match=match):
        llmconv.quantize(in_memory(arrays, {"quant_method": "gptq", "bits": 4}), tmp_path / "o", kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["W4A16", "FP8_DYNAMIC", "INT8"])
@pytest.mark.parametrize("gone", [True, False])
def test_a_folder_of_floats_must_be_whole(tmp_path: Path, kind: str, gone: bool) -> None:
    arrays = llama(lambda stem, shape: {f"{stem}.weight": np.ones(shape, np.float16)})
    name = "model.layers.1.mlp.up_proj.weight"
    if gone:
        del arrays[name]
    else:
        arrays[name] = np.ones((127, 64), np.float16)
    with pytest.raises(llmconv.BadFile, match="up_proj"):
        llmconv.quantize(in_memory(arrays), tmp_path / "o", kind)
    assert not list(tmp_path.iterdir())
