"""What vLLM's loader asks of a folder: docs/quantize.md has the list, here a loader of its kind asks it.

It makes room for each layer's tensors from config.json alone, joins layers, cuts them for two GPUs, and lets nothing be
left over.  Source: vLLM's `compressed_tensors` (`get_scheme_dict`, `find_matched_target`, the schemes' `create_weights`).
"""  # noqa: E501

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_kinds import E4M3
from stored_models import folder

import llmconv
from llmconv.convert.quantizing.joined import ignored, ragged, uncut, unequal_experts
from llmconv.convert.tables.config import read_config

DOCS = Path(__file__).parents[3] / "docs" / "quantize.md"
SHAPES = {"self_attn.q_proj": (256, 256), "self_attn.k_proj": (128, 256), "self_attn.v_proj": (128, 256),
          "self_attn.o_proj": (256, 256), "mlp.gate_proj": (256, 256), "mlp.up_proj": (256, 256),
          "mlp.down_proj": (256, 256)}  # fmt: skip
JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj"), "o_proj": ("o_proj",),
          "down_proj": ("down_proj",)}  # fmt: skip
CUT_ALONG_INPUTS = ("o_proj", "down_proj")
HALVES = ("F16", "BF16")
SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 128}


def bits(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).integers(-(1 << 31), 1 << 31, shape, np.int32)


def halves(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).uniform(0.01, 0.1, shape).astype(np.float16)


def gptq(stem: str, n: int, k: int) -> dict[str, Any]:
    zeros = np.full((k // 128, n // 8), 0x77777777, np.int32)
    return {"qweight": bits(k // 8, n), "qzeros": zeros, "scales": halves(k // 128, n)}


def awq(stem: str, n: int, k: int) -> dict[str, Any]:
    return {"qweight": bits(k, n // 8), "qzeros": bits(k // 128, n // 8), "scales": halves(k // 128, n)}


def w8a16(stem: str, n: int, k: int) -> dict[str, Any]:
    return {"weight_packed": bits(n, k // 4), "weight_scale": halves(n, 2), "weight_shape": np.int64([n, k])}


def nvfp4(stem: str, n: int, k: int) -> dict[str, Any]:
    made = {"weight_packed": bits(n, k // 8).view(np.uint8), "weight_global_scale": np.float32([100])}
    return made | {"weight_scale": (bits(n, k // 64).view(np.uint8) & 63).view(E4M3)}


def mxfp4(stem: str, n: int, k: int) -> dict[str, Any]:
    return {"weight_packed": bits(n, k // 8).view(np.uint8), "weight_scale": np.full((n, k // 32), 120, np.uint8)}


def partly_mlx(stem: str, n: int, k: int) -> dict[str, Any]:
    if "mlp" not in stem:
        return gptq(stem, n, k)
    return {"weight": bits(n, k // 8).view(np.uint32), "scales": halves(n, k // 64), "biases": halves(k // 64, n).T}


def model(path: Path, way: Any = None, settings: Any = None, **more: Any) -> Path:
    rng = np.random.default_rng(0)

    def layer(stem: str, shape: tuple[int, int]) -> dict[str, Any]:
        if way is None:
            return {f"{stem}.weight": (rng.standard_normal(shape) * 0.1).astype(np.float16)}
        return {f"{stem}.{end}": array for end, array in way(stem, *shape).items()}

    made: dict[str, Any] = {n: rng.standard_normal((40, 256)).astype(np.float16)
                            for n in ("model.embed_tokens.weight", "lm_head.weight")}  # fmt: skip
    for name, shape in SHAPES.items():
        made |= layer(f"model.layers.0.{name}", shape)
    norms = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")
    made |= {f"{name}.weight": np.ones(256, np.float16) for name in norms}
    return folder(path, made, settings, **SIZES, **more)


def matches(name: str, target: str) -> bool:
    return bool(re.match(target[3:], name)) if target.startswith("re:") else target in (name, "Linear")


def scheme_of(name: str, settings: dict[str, Any]) -> Any:
    """The group that a module belongs to; None where it is left alone.   A module in neither is an error there."""
    if any(matches(name, target) for target in settings["ignore"]):
        return None
    found = [g for g in settings["config_groups"].values() if any(matches(name, t) for t in g["targets"])]
    assert found, f"no scheme for {name}"
    return found[0]


def room(group: dict[str, Any], n: int, k: int, dtypes: tuple[str, ...]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """The tensors of a layer: types that are taken, and shape."""
    weights, form = group["weights"], group["format"]
    if form == "pack-quantized":
        each, size = 32 // weights["num_bits"], weights["group_size"]
        assert weights["num_bits"] in (4, 8) and size in (32, 64, 128) and weights["actorder"] is None
        assert weights["symmetric"] or weights["num_bits"] == 4  # kernels know no zero points beside eight bits
        made = {"weight_packed": (("I32",), (n, k // each)), "weight_scale": (dtypes, (n, k // size)),
                "weight_shape": (("I64",), (2,))}  # fmt: skip
        if not weights["symmetric"]:
            made["weight_zero_point"] = ("I32",), (n // each, k // size)
        return made
    if form == "int-quantized":
        assert weights["strategy"] == "channel" and group["input_activations"]["strategy"] == "token"
        assert weights["symmetric"] and group["input_activations"]["dynamic"] is True
        return {"weight": (("I8",), (n, k)), "weight_scale": (("F32", *dtypes), (n, 1))}
    if form == "float-quantized":
        assert weights["type"] == "float" and weights["symmetric"] and not weights["dynamic"]
        assert group["input_activations"]["dynamic"] is True
        sides = weights.get("block_structure") or (1, k)
        return {"weight": (("F8_E4M3",), (n, k)),
                "weight_scale": (("F32",), (-(-n // sides[0]), -(-k // sides[1])))}  # fmt: skip
    assert weights["type"] == "float" and weights["num_bits"] == 4 and group["input_activations"] is None
    small = form == "nvfp4-pack-quantized"
    assert (weights["strategy"], weights["group_size"]) == (("tensor_group", 16) if small else ("group", 32))
    scale = (("F8_E4M3",), (n, k // 16)) if small else (("U8",), (n, k // 32))
    made = {"weight_packed": (("U8",), (n, k // 2)), "weight_scale": scale}
    return made | ({"weight_global_scale": (("F32",), (1,))} if small else {})


def loaded(path: Path, ranks: int = 2) -> None:
    """Everything is there, of its type and shape, alike where layers are joined, and whole where they are cut."""
    found = dict(llmconv.open(path / "model.safetensors").tensors)
    settings = read_config(llmconv.open(path))["quantization_config"]
    assert settings["quant_method"] == "compressed-tensors" and settings["quantization_status"] == "compressed"
    assert all(group["format"] for group in settings["config_groups"].values()) and "lm_head" in settings["ignore"]
    assert not settings["kv_cache_scheme"] and "sparsity_config" not in settings
    for joined, parts in JOINED.items():
        names = [f"model.layers.0.{name}" for name in SHAPES if name.rpartition(".")[2] in parts]
        schemes = [scheme_of(name, settings) for name in names]
        assert all(scheme == schemes[0] for scheme in schemes), joined
        for name, scheme in zip(names, schemes, strict=True):
            n, k = SHAPES[name.removeprefix("model.layers.0.")]
            wanted = {"weight": (HALVES, (n, k))} if scheme is None else room(scheme, n, k, HALVES)
            for end, (types, shape) in wanted.items():
                tensor = found.pop(f"{name}.{end}")
                assert tensor.type.name in types and tensor.shape == shape, (name, end, tensor)
                if len(shape) == 2 and shape[1 if joined in CUT_ALONG_INPUTS else 0] > 1:
                    assert shape[1 if joined in CUT_ALONG_INPUTS else 0] % ranks == 0, (name, end, shape)
            if scheme is not None and joined in CUT_ALONG_INPUTS:
                assert k // ranks % (scheme["weights"].get("group_size") or 1) == 0
            if scheme is not None and (sides := scheme["weights"].get("block_structure")):
                assert k // ranks % sides[1] == 0 and (name == names[-1] or n % sides[0] == 0)
    assert not [name for name in found if "proj" in name], "tensors that nothing takes"


CT = {"quant_method": "compressed-tensors"}
WAYS: dict[str, tuple[Any, Any, str]] = {
    **{f"floats as {kind}": (None, None, kind)
       for kind in ("W4A16", "W4A16_ASYM", "INT8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "MXFP4A16")},
    "GPTQ": (gptq, {"quant_method": "gptq"}, "W4A16"),
    "AWQ": (awq, {"quant_method": "awq"}, "W4A16_ASYM"),
    "W8A16": (w8a16, CT, "W4A16_ASYM"),
    "NVFP4": (nvfp4, CT, "NVFP4A16"),
    "MXFP4": (mxfp4, CT, "MXFP4A16"),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_names_types_and_shapes(tmp_path: Path, name: str) -> None:
    way, settings, kind = WAYS[name]
    llmconv.quantize(model(tmp_path / "in", way, settings), tmp_path / "out", kind)
    loaded(tmp_path / "out")


def test_layers_of_several_widths(tmp_path: Path) -> None:
    """Each module has a scheme, or is ignored; joined ones that differ are said."""
    source = model(tmp_path / "in")
    for rule, alike in (("attn_(q|k|v)=Q8_0", True), ("attn_v=Q8_0", False)):
        llmconv.quantize(source, tmp_path / "a.gguf", "Q4_0", pure=True, tensor_types=[rule], force=True)
        made = llmconv.quantize(tmp_path / "a.gguf", tmp_path / "out", "W4A16", force=True)
        assert any("vLLM joins" in note for note in made.notes) is not alike
        if alike:
            loaded(tmp_path / "out")
        else:
            with pytest.raises(AssertionError):
                loaded(tmp_path / "out")


def test_a_layer_left_in_floats_is_ignored(tmp_path: Path) -> None:
    """MLX's sums are no zero points."""

    made = llmconv.quantize(model(tmp_path / "in", partly_mlx), tmp_path / "out", "W4A16")
    ignore = read_config(llmconv.open(tmp_path / "out"))["quantization_config"]["ignore"]
    assert {f"model.layers.0.{n}" for n in SHAPES if "mlp" in n} | {"lm_head"} == set(ignore)
    assert not any("vLLM joins" in note for note in made.notes)


def test_experts() -> None:
    """Those of a layer are one module there, known by the names of its parts."""
    alike = {f"a.experts.{i}.{p}.weight": (4, 32) for i in range(2) for p in ("gate_proj", "up_proj", "down_proj")}
    assert not unequal_experts(alike, "bits")
    assert "experts of 1 layers" in unequal_experts(alike | {"a.experts.1.down_proj.weight": (8, 32)}, "bits")[0]
    (pattern,) = ignored(["model.layers.0.mlp.experts.gate_up_proj"], ["model.layers.0.mlp.shared_experts.up_proj"])
    ignore = {"ignore": [pattern], "config_groups": {"g": {"targets": ["Linear"]}}}
    assert (
        scheme_of("model.layers.0.mlp.experts", ignore) is scheme_of("model.layers.9.mlp.experts.0.w1", ignore) is None
    )
    assert scheme_of("model.layers.0.mlp.shared_experts.up_proj", ignore) is not None
    assert not ignored(["model.layers.0.mlp.experts.gate_up_proj"], ["model.layers.1.mlp.experts.0.up_proj.weight"])


def test_what_can_not_be_cut_is_said() -> None:
    assert not uncut({"a.mlp.down_proj.weight": (256, 128), "a.mlp.up_proj.weight": (64, 64)})
    assert "64 columns in groups of 64" in uncut({"a.self_attn.o_proj.weight": (64, 64)})[0]
    assert not ragged({"a.q_proj.weight": 256, "a.v_proj.weight": 64}, 128)
    assert "multiples of 128" in ragged({"a.q_proj.weight": 256, "a.k_proj.weight": 64}, 128)[0]


def test_the_docs_name_these_tests() -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| vLLM's loader asks"))
    named = set()
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        named |= set(re.findall(r"`(test_\w+)`", line))
    assert named and named <= set(globals())
    assert named >= {n for n in globals() if n.startswith("test_")} - {"test_the_docs_name_these_tests"}


@pytest.mark.parametrize("keys", [(), ("torch_dtype",), ("dtype",), ("dtype", "torch_dtype")])
def test_the_type_of_the_scales_is_said_once(tmp_path: Path, keys: tuple[str, ...]) -> None:
    """transformers and vLLM believe `dtype` before `torch_dtype`, and read the scales in it."""
    source = model(tmp_path / "in", **dict.fromkeys(keys, "bfloat16"))
    llmconv.quantize(source, tmp_path / "out", "W4A16")
    written = llmconv.open(tmp_path / "out")
    said = {key: value for key, value in read_config(written).items() if "dtype" in key}
    assert said == dict.fromkeys(keys or ("torch_dtype",), "float16")
    assert written.tensors["model.layers.0.mlp.up_proj.weight_scale"].type.name == "F16"
