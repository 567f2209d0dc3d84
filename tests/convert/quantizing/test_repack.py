"""`-t REPACK`: integers and scales go into GGUF's blocks as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from stored_layers import awq, bitnet, bitsandbytes, four_bit_floats, gptq, mlx, numbers, words
from stored_models import folder, in_memory, llama

import llmconv
from llmconv.convert.scaled.exact import Carried, carried
from llmconv.convert.scaled.unpack import unpack
from llmconv.errors import UsageError

GEMV = {"quant_method": "awq", "version": "gemv", "group_size": 64}
CT = {"quant_method": "compressed-tensors"}


def found(made: tuple[dict[str, Any], Any], settings: Any = None, **more: Any) -> Carried | str:
    """How a layer is carried."""
    ways: list[Carried | str] = []

    def look(coded: Any) -> Any:
        ways.append(carried(coded))
        return coded.floats()

    unpack(in_memory(made[0], settings, **more), look)
    return ways[0]


def packed(bits: int, group: int, symmetric: bool = True, dtype: Any = np.float16) -> tuple[dict[str, Any], Any]:
    """compressed-tensors' pack-quantized, with its values."""
    codes, scale, zero = numbers(np.random.default_rng(bits), (32, 512), bits, group, symmetric)
    scale = scale.astype(dtype)
    made = {"a.weight_packed": words(codes, bits).view(np.int32), "a.weight_scale": scale}
    made |= {"a.weight_shape": np.int64([32, 512])}
    if not symmetric:
        made["a.weight_zero_point"] = np.ascontiguousarray(words(zero.T, bits).view(np.int32).T)
    wide = np.repeat(scale.astype(np.float32), group, 1)
    return made, (codes - np.repeat(zero, group, 1)).astype(np.float32) * wide


CARRIED: dict[str, tuple[Any, Any, str]] = {
    "GPTQ, 4 bits by 128": (gptq("a", (32, 256), group=128), {"quant_method": "gptq"}, "Q4_0"),
    "GPTQ, asymmetric": (gptq("a", (32, 256), group=64, symmetric=False), {"quant_method": "gptq"}, "Q5_0"),
    "GPTQ, 2 bits": (gptq("a", (32, 256), bits=2), {"quant_method": "gptq"}, "Q4_0"),
    "GPTQ, 3 bits": (gptq("a", (32, 256), bits=3), {"quant_method": "gptq"}, "Q4_0"),
    "GPTQ, 3 bits, asymmetric": (gptq("a", (32, 256), bits=3, symmetric=False), {"quant_method": "gptq"}, "Q4_0"),
    "GPTQ, 8 bits": (gptq("a", (32, 256), bits=8), {"quant_method": "gptq"}, "Q8_0"),
    "AWQ": (awq("a", (32, 256), group=128), {"quant_method": "awq"}, "Q5_0"),
    "AWQ gemv": (awq("a", (32, 256), group=64, gemv=True), GEMV, "Q5_0"),
    "W4A16": (packed(4, 128), CT, "Q4_0"),
    "W4A16 by channel": (packed(4, 512), CT, "Q4_0"),
    "W4A16, asymmetric": (packed(4, 32, False), CT, "Q5_0"),
    "W8A16": (packed(8, 512), CT, "Q8_0"),
    "MXFP4": (four_bit_floats("a", (32, 256), kind="mxfp4"), CT, "MXFP4"),
    "NVFP4": (four_bit_floats("a", (32, 256)), CT, "NVFP4"),
    "MLX": (mlx("a", (32, 256)), None, "Q4_1"),
    "MLX in 5 bits": (mlx("a", (32, 256), bits=5), None, "Q5_1"),
    "MLX in mxfp4": (four_bit_floats("a", (32, 256), kind="mlx"), None, "MXFP4"),
    "BitNet": (bitnet("a", (32, 256), multiplies=True),
               {"quant_method": "bitnet", "linear_class": "autobitlinear"}, "TQ2_0"),
}  # fmt: skip


@pytest.mark.parametrize("name", CARRIED)
def test_the_smallest_type_says_the_same_numbers(name: str) -> None:
    made, settings, kind = CARRIED[name]
    more = {"quantization": {"bits": 5, "group_size": 32}} if name == "MLX in 5 bits" else {}
    layer = found(made, settings, **more)
    assert isinstance(layer, Carried) and layer.type.name == kind
    for other in (kind, *layer.alike):
        tensor = layer.tensor(llmconv.quant.by_name(other))
        want = made[1] if layer.factor is None else layer.floats().numpy()
        assert np.array_equal(tensor.numpy(), want)
        assert np.array_equal(tensor.rows(3, 9), want[3:9]) and tensor.rows(2, 2).shape == (0, want.shape[1])


def test_mlx_biases_that_are_zero_points() -> None:
    """A bias of -8 scales is the zero point of Q4_0."""
    arrays, _ = mlx("a", (32, 256), bits=4)
    arrays["a.biases"] = -8 * arrays["a.scales"]
    layer = found((arrays, None), quantization={"bits": 4, "group_size": 32})
    assert isinstance(layer, Carried) and layer.type.name == "Q4_0"


@pytest.mark.parametrize("name", ["AWQ", "AWQ gemv", "GPTQ, asymmetric", "W4A16, asymmetric"])
def test_sums_that_are_rounded(name: str) -> None:
    """Q4_1 in the place of Q5_0: a weight is off by what float16 rounds of -zero * scale."""
    made, settings, _ = CARRIED[name]
    layers: list[Any] = []
    unpack(in_memory(made[0], settings), lambda c: layers.append((c, carried(c, round_sums=True))) or c.floats())
    ((coded, layer),) = layers
    assert layer.type.name == "Q4_1" and 0 < layer.rounded <= 16 * 2.0**-11
    got, want = layer.tensor().numpy(), made[1]
    assert np.array_equal(got, layer.floats().numpy()) and (got != want).any()
    scale = np.broadcast_to(coded.scales(0, len(want)), want.shape)
    assert np.isclose((np.abs(got.astype(np.float64) - want) / scale).max(), layer.rounded, rtol=1e-2, atol=1e-5)
    again = carried(coded)
    assert isinstance(again, Carried) and again.type.name == "Q5_0" and again.rounded == 0


def test_sums_of_a_model(tmp_path: Path) -> None:
    source, _ = models(tmp_path, awq, {"quant_method": "awq"})
    result = llmconv.quantize(source, tmp_path / "o.gguf", "REPACK", round_sums=True, provenance=True)
    assert any("rounded to float16, by at most 0.00" in note for note in result.notes)
    assert "every weight equal" in result.output.proof
    assert "sums" in llmconv.open(tmp_path / "o.gguf").metadata["llmconv.provenance"]
    with pytest.raises(UsageError, match="round_sums is for"):
        llmconv.quantize(source, tmp_path / "p.gguf", "Q8_0", round_sums=True)


def test_blocks_by_hand() -> None:
    """Q4_0: a float16 scale, then number j in the low half of byte j and number j + 16 in its high half."""
    arrays, _ = gptq("a", (32, 64), group=64)
    stored = arrays["a.qweight"].view(np.uint32)
    codes = np.array([[int(stored[j // 8, i]) >> (4 * (j % 8)) & 15 for j in range(64)] for i in range(32)])
    layer = found((arrays, None), {"quant_method": "gptq"})
    assert isinstance(layer, Carried)
    raw = layer.tensor().blocks()
    for i in range(32):
        for b in range(2):
            block = raw[i, 18 * b : 18 * b + 18]
            assert block[:2].view(np.float16)[0] == arrays["a.scales"][0, i]
            for j in range(16):
                assert block[2 + j] == codes[i, 32 * b + j] | codes[i, 32 * b + j + 16] << 4


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "act-order": (gptq("a", (32, 256), order=True), {"quant_method": "gptq"}, "act-order"),
    "NF4": (bitsandbytes("a", (32, 256)), {"quant_method": "bitsandbytes"}, "of another kind"),
    "float32 scales": (packed(4, 128, dtype=np.float32), CT, "4 bits"),
    "MLX in 8 bits": (mlx("a", (32, 256), bits=8), None, "more than 5 bits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_type_says(name: str) -> None:
    made, settings, why = REFUSED[name]
    if name == "float32 scales":
        made, why = (made[0] | {"a.weight_scale": made[0]["a.weight_scale"] * np.float32(1.0001)}, None), "float16"
    more = {"quantization": {"bits": 8, "group_size": 32}} if name == "MLX in 8 bits" else {}
    layer = found(made, settings, **more)
    assert isinstance(layer, str) and why in layer


def models(path: Path, stored: Any, settings: Any) -> tuple[Path, Path]:
    """The same model stored and in F32."""
    wants: dict[str, Any] = {}

    def layer(stem: str, shape: tuple[int, int]) -> dict[str, Any]:
        made, wants[f"{stem}.weight"] = stored(stem, shape, len(wants))
        return dict(made)

    source = folder(path / "in", llama(layer), settings)
    return source, folder(path / "f32", llama(lambda stem, _: {f"{stem}.weight": wants[f"{stem}.weight"]}))


@pytest.mark.parametrize(
    ("stored", "settings", "kind"),
    [(gptq, {"quant_method": "gptq"}, "Q4_0"), (awq, {"quant_method": "awq"}, "Q5_0"), (mlx, None, "Q4_1"),
     (lambda *a: four_bit_floats(*a, kind="mxfp4"), CT, "MXFP4")],
)  # fmt: skip
def test_a_model_through_all_of_it(tmp_path: Path, stored: Any, settings: Any, kind: str) -> None:
    """With the rows of q and k in GGUF's order, and back."""
    source, floats = models(tmp_path, stored, settings)
    planned = llmconv.quantize(source, tmp_path / "o.gguf", "REPACK", dry_run=True)
    assert not (tmp_path / "o.gguf").exists() and not planned.output.proof
    result = llmconv.quantize(source, tmp_path / "o.gguf", "auto")
    assert {t.type for t in result.output.tensors if "attn_" in t.name and "norm" not in t.name} == {kind}
    assert result.output.size == planned.output.size == (tmp_path / "o.gguf").stat().st_size
    assert "every weight equal" in result.output.proof
    llmconv.convert_file(floats, tmp_path / "want.gguf")
    a, b = (llmconv.open(tmp_path / name).tensors for name in ("o.gguf", "want.gguf"))
    assert a.keys() == b.keys() and all(np.array_equal(t.numpy(), b[n].numpy()) for n, t in a.items())
    llmconv.convert_file(tmp_path / "o.gguf", tmp_path / "back")
    assert llmconv.verify(tmp_path / "back", floats).same


def test_nvfp4_keeps_its_factor_beside_it(tmp_path: Path) -> None:
    source, floats = models(tmp_path, lambda *a: four_bit_floats(*a, kind="modelopt"), {"quant_method": "modelopt"})
    llmconv.quantize(source, tmp_path / "o.gguf", "REPACK")
    tensors = llmconv.open(tmp_path / "o.gguf").tensors
    assert tensors["blk.1.ffn_up.weight"].type.name == "NVFP4" and tensors["blk.1.ffn_up.scale"].shape == (1,)
    llmconv.convert_file(floats, tmp_path / "want.gguf")
    want = llmconv.open(tmp_path / "want.gguf").tensors
    for name in ("blk.0.attn_q", "blk.1.attn_output", "blk.0.ffn_down"):
        value = tensors[f"{name}.weight"].numpy() * tensors[f"{name}.scale"].numpy()
        assert np.allclose(value, want[f"{name}.weight"].numpy(), rtol=3e-7, atol=0)


def test_what_falls_back(tmp_path: Path) -> None:
    source, _ = models(tmp_path, bitsandbytes, {"quant_method": "bitsandbytes"})
    result = llmconv.quantize(source, tmp_path / "o.gguf", "REPACK")
    assert {t.type for t in result.output.tensors} == {"F32", "F16"} and any("14 weights" in n for n in result.notes)
    result = llmconv.quantize(source, tmp_path / "p.gguf", "REPACK", fallback="Q8_0")
    assert {t.type for t in result.output.tensors} == {"F32", "F16", "Q8_0"} and "others rounded" in result.output.proof
    text = run("quantize", source, "-t", "REPACK", "-o", tmp_path / "q.gguf", "--fallback", "Q8_0").out
    assert "every weight equal" in text


def test_what_does_not_go_with_it(tmp_path: Path) -> None:
    source, _ = models(tmp_path, gptq, {"quant_method": "gptq"})
    for options in ({"pure": True}, {"tensor_types": ["a=Q8_0"]}, {"prune_layers": [0]}):
        with pytest.raises(UsageError, match="does not go with REPACK"):
            llmconv.quantize(source, tmp_path / "o.gguf", "REPACK", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="decides every type"):
        llmconv.quantize(source, tmp_path, ["REPACK", "Q8_0"])
    with pytest.raises(UsageError, match="fallback"):
        llmconv.quantize(source, tmp_path / "o.gguf", "Q8_0", fallback="Q8_0")


@pytest.mark.parametrize(
    ("stored", "settings", "fallback"), [(gptq, "gptq", None), (bitsandbytes, "bitsandbytes", "Q8_0")]
)
def test_a_certificate(tmp_path: Path, stored: Any, settings: str, fallback: str | None) -> None:
    source, _ = models(tmp_path, stored, {"quant_method": settings})
    llmconv.quantize(source, tmp_path / "o.gguf", "REPACK", provenance=True, fallback=fallback)
    found = llmconv.verify_provenance(tmp_path / "o.gguf", source)
    assert found.ok and (found.recorded["rounding"] == "none") is (fallback is None)
    (tmp_path / "two").mkdir()
    other, _ = models(tmp_path / "two", lambda *a: stored(a[0], a[1], a[2] + 1), {"quant_method": settings})
    assert not llmconv.verify_provenance(tmp_path / "o.gguf", other).ok


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    source, _ = models(tmp_path, gptq, {"quant_method": "gptq"})
    llmconv.quantize(source, tmp_path / "whole.gguf", "REPACK")
    seen: list[str] = []

    def stop(step: llmconv.Step) -> None:
        seen.append(step.item)
        if len(seen) == 6:
            raise llmconv.Cancelled

    with pytest.raises(llmconv.Cancelled):
        llmconv.quantize(source, tmp_path / "o.gguf", "REPACK", resumable=True, jobs=1, progress=stop)
    assert (tmp_path / "o.gguf.partial").exists() and not (tmp_path / "o.gguf").exists()
    steps: list[llmconv.Step] = []
    made = llmconv.quantize(source, tmp_path / "o.gguf", "REPACK", resumable=True, progress=steps.append)
    assert steps[0].item == "already done" and "every weight equal" in made.output.proof
    assert (tmp_path / "o.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("name", ["GPTQ, 4 bits by 128", "AWQ", "MXFP4", "BitNet"])
def test_grids_of_a_folder(tmp_path: Path, name: str) -> None:
    made, settings, kind = CARRIED[name]
    model = in_memory(made[0] | {"b.weight": np.random.default_rng(0).standard_normal((8, 64))}, settings)
    found = {g.name: (g.stored, g.grid) for g in llmconv.grids(model)}
    assert found["a.weight"] == ("scaled", kind) and found["b.weight"] == ("floats", "")


def test_act_order_of_down_projections_is_folded(tmp_path: Path) -> None:
    """Their columns in order, the rows of what goes in with them: the same sums in another order."""
    seen: dict[str, Any] = {}

    def stored(stem: str, shape: tuple[int, int], seed: int) -> Any:
        made, seen[stem] = gptq(stem, shape, seed, group=32, order="down" in stem)
        seen[f"{stem} groups"] = made[f"{stem}.g_idx"]
        return made, seen[stem]

    source, _ = models(tmp_path, stored, {"quant_method": "gptq"})
    result = llmconv.quantize(source, tmp_path / "o.gguf", "REPACK")
    assert any("columns of 2 down projections" in note for note in result.notes)
    assert "every weight equal" in result.output.proof and {t.type for t in result.output.tensors} == {
        "F32",
        "F16",
        "Q4_0",
    }
    tensors = llmconv.open(tmp_path / "o.gguf").tensors
    for i in range(2):
        gate, up, down = (seen[f"model.layers.{i}.mlp.{x}_proj"].astype(np.float64) for x in ("gate", "up", "down"))
        x = np.random.default_rng(0).standard_normal(64)
        want = down @ ((up @ x) * np.tanh(gate @ x))
        gate, up, down = (tensors[f"blk.{i}.ffn_{n}.weight"].numpy().astype(np.float64) for n in ("gate", "up", "down"))
        assert np.allclose(down @ ((up @ x) * np.tanh(gate @ x)), want, rtol=1e-12)
        order = np.argsort(seen[f"model.layers.{i}.mlp.down_proj groups"], kind="stable")
        assert np.array_equal(down, seen[f"model.layers.{i}.mlp.down_proj"][:, order])
    llmconv.quantize(source, tmp_path / "p.gguf", "REPACK", provenance=True)  # certifies the same weights
    assert llmconv.verify_provenance(tmp_path / "p.gguf", source).ok
    assert llmconv.open(tmp_path / "p.gguf").tensors["blk.0.ffn_down.weight"].type.name == "F32"


def test_grids_for_people_and_programs(tmp_path: Path) -> None:
    source, _ = models(tmp_path, lambda *a: gptq(*a, order=True), {"quant_method": "gptq"})
    text = run("inspect", source, "--grids").out
    assert "act-order" in text and "none" in text
    rows = json.loads(run("inspect", source, "--grids", "--json").out)["result"]["grids"]
    assert {row["stored"] for row in rows} == {"scaled", "floats"} and all(row["grid"] == "" for row in rows)


def test_a_wrong_byte_is_found_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmconv.convert.scaled import exact

    true = exact._PACKERS["Q4_0"]

    def wrong(coded: Any, kind: Any) -> Any:
        read = true(coded, kind)

        def spoiled(start: int, stop: int) -> Any:
            out = read(start, stop)
            out[-1:, -1] ^= 16
            return out

        return spoiled

    monkeypatch.setitem(exact._PACKERS, "Q4_0", wrong)
    source, _ = models(tmp_path, gptq, {"quant_method": "gptq"})
    with pytest.raises(llmconv.LlmconvError, match=r"reads .* from the written Q4_0, expected"):
        llmconv.quantize(source, tmp_path / "o.gguf", "REPACK")
    assert not list(tmp_path.glob("o*"))


@pytest.mark.parametrize("kind", ["W4A16", "MLX"])
def test_a_wrong_byte_of_a_folder_is_found_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from llmconv.convert.quantizing import four_bits

    true = four_bits._packed_words

    def wrong(layer: Any, bits: int) -> Any:
        read = true(layer, bits)

        def spoiled(start: int, stop: int) -> Any:
            out = np.array(read(start, stop))
            out[-1:, -1] ^= 16
            return out

        return spoiled

    monkeypatch.setattr(four_bits, "_packed_words", wrong)
    source, _ = models(tmp_path, gptq, {"quant_method": "gptq"})
    with pytest.raises(llmconv.LlmconvError, match=r"reads .* from the written F32, expected .*; nothing was written"):
        llmconv.quantize(source, tmp_path / "o", kind)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("kind", ["REPACK", "W4A16"])
def test_a_header_that_says_otherwise_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What is compared lies where the header says: a tensor in another's place reads as other weights."""
    from llmconv.formats import safetensors_file
    from llmconv.formats.gguf import gguf_file

    for module in (safetensors_file, gguf_file):
        true = module.open_alone

        def exchanged(path: Path, true: Any = true) -> Any:
            found = true(path)
            if path.suffix == ".tmp":
                ends = (".gate_proj.weight_packed", ".up_proj.weight_packed", "ffn_gate.weight", "ffn_up.weight")
                one, other = (t for n, t in found.tensors.items() if ".0." in n and n.endswith(ends))
                found.tensors[one.name], found.tensors[other.name] = other.renamed(one.name), one.renamed(other.name)
            return found

        monkeypatch.setattr(module, "open_alone", exchanged)
    source, _ = models(tmp_path, gptq, {"quant_method": "gptq"})
    with pytest.raises(llmconv.LlmconvError, match="nothing was written"):
        llmconv.quantize(source, tmp_path / "o", kind)
    assert not (tmp_path / "o").exists()
