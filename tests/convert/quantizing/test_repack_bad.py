"""Damaged layers of codes and scales: a sentence that names the tensor, and nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_kinds import E4M3, KINDS
from stored_layers import awq, bitnet, four_bit_floats, gptq, mlx, numbers, words
from stored_models import in_memory

import llmconv
from llmconv.convert.scaled.exact import Carried, carried
from llmconv.convert.scaled.unpack import unpack

CT = {"quant_method": "compressed-tensors"}


def packed(bits: int, group: int, symmetric: bool = True) -> tuple[dict[str, Any], Any]:
    """compressed-tensors' pack-quantized."""
    codes, scale, _ = numbers(np.random.default_rng(bits), (32, 512), bits, group, symmetric)
    made = {"a.weight_packed": words(codes, bits).view(np.int32), "a.weight_scale": scale}
    return made | {"a.weight_shape": np.int64([32, 512])}, None


def spoiled(made: tuple[dict[str, Any], Any], **changes: Any) -> dict[str, Any]:
    """A layer's tensors with some changed, by their endings: a function of the old one, an array, or None for none."""
    arrays = dict(made[0])
    for end, change in changes.items():
        name = next((n for n in arrays if n.rpartition(".")[2] == end), f"a.{end}")
        arrays[name] = change(arrays[name]) if callable(change) else change
    return {name: array for name, array in arrays.items() if array is not None}


def zeros_as_numbers(value: int) -> dict[str, Any]:
    made = dict(packed(4, 32, False)[0])
    made["a.weight_zero_point"] = np.full((32, 16), value, np.int8)
    return made


GPTQ, AWQ = {"quant_method": "gptq", "bits": 4}, {"quant_method": "awq"}
SHAPE = (32, 256)
MXFP4 = four_bit_floats("a", SHAPE, kind="mxfp4")


def less(array: Any) -> Any:
    return array[:-1]


BAD: dict[str, tuple[dict[str, Any], Any, str]] = {
    "as floats too": (spoiled(gptq("a", SHAPE), weight=np.ones(SHAPE, np.float16)), GPTQ,
                      "'?a.weight'? is stored twice"),
    "GPTQ and packed": (gptq("a", SHAPE)[0] | packed(4, 32)[0], CT, "'?a.weight'? is stored twice"),
    "packed and MLX": (packed(4, 32)[0] | mlx("a", SHAPE)[0], CT, "a.weight'? is stored twice"),
    "a column in a group too many": (spoiled(gptq("a", SHAPE), g_idx=lambda g: np.append(3, g[1:])), GPTQ,
                                     "a.g_idx'? puts 31 columns into group 0, expected 32"),
    "a group that there is not": (spoiled(gptq("a", SHAPE), g_idx=lambda g: g + 1), GPTQ, "a.g_idx'? does not name"),
    "a negative group": (spoiled(gptq("a", SHAPE), g_idx=lambda g: g - 1), GPTQ, "a.g_idx'? does not name"),
    "columns without a group": (spoiled(gptq("a", SHAPE), g_idx=lambda g: g[:-32]), GPTQ, "a.qweight'? of shape"),
    "no scales": (spoiled(gptq("a", SHAPE), scales=None), GPTQ, r"a\.scales"),
    "no zero points": (spoiled(gptq("a", SHAPE), qzeros=None), GPTQ, r"a\.qzeros"),
    "AWQ without scales": (spoiled(awq("a", SHAPE), scales=None), AWQ, r"a\.scales"),
    "packed without scales": (spoiled(packed(4, 32), weight_scale=None), CT, r"a\.weight_scale"),
    "packed without a shape": (spoiled(packed(4, 32), weight_shape=None), CT, r"a\.weight_shape"),
    "NVFP4 without its factor": (spoiled(four_bit_floats("a", SHAPE), weight_global_scale=None), CT,
                                 r"a\.weight_global_scale"),
    "MLX without scales": (spoiled(mlx("a", SHAPE), scales=None), {"bits": 4, "group_size": 32}, "a.weight'? is U32"),
    "BitNet without a scale": (spoiled(bitnet("a", SHAPE), weight_scale=None), {"quant_method": "bitnet"}, "a.weight"),
    "groups that don't divide": (spoiled(gptq("a", SHAPE), scales=less, qzeros=less, g_idx=None), GPTQ,
                                 "7 groups of scales don't divide the 256 columns of '?a.weight"),
    "AWQ, groups that don't divide": (spoiled(awq("a", SHAPE), scales=less, qzeros=less), AWQ,
                                      "7 groups of scales don't divide the 256 columns of '?a.weight"),
    "packed, groups that don't divide": (spoiled(packed(4, 32), weight_scale=lambda s: s[:, :-1]), CT,
                                         "a.weight_scale'? of shape"),
    "MXFP4, groups that don't divide": (spoiled(MXFP4, weight_scale=lambda s: s[:, 1:]), CT, "a.weight_scale'? of"),
    "a zero point of 8": (zeros_as_numbers(8), CT, "a.weight_zero_point'? has zero points from 8 to 8, expected -8"),
    "a zero point of -9": (zeros_as_numbers(-9), CT, "a.weight_zero_point'? has zero points from -9 to -9"),
    "rows of scales": (spoiled(gptq("a", SHAPE), scales=lambda s: s[:, :-1]), GPTQ, "a.qweight'? of shape"),
    "words of 16 bits": (spoiled(gptq("a", SHAPE), qweight=lambda w: w.astype(np.int16)), GPTQ, "a.qweight"),
    "no order, though there is one": (spoiled(gptq("a", SHAPE), g_idx=None), GPTQ | {"desc_act": True},
                                      r"a\.g_idx'? is missing"),
    "an order of floats": (spoiled(gptq("a", SHAPE), g_idx=lambda g: g + np.float32(0.5)), GPTQ, "a.g_idx'? is F64"),
    "an order without its layer": (gptq("a", SHAPE)[0] | {"b.g_idx": np.zeros(256, np.int32)}, GPTQ, r"b\.qweight"),
    "zero points without their layer": (gptq("a", SHAPE)[0] | {"b.qzeros": np.zeros((8, 4), np.int32)}, GPTQ,
                                        r"b\.qweight"),
    "a method that nobody knows": (gptq("a", SHAPE)[0], {"quant_method": "spqr"}, "is quantized with '?spqr"),
    "AWQ's groups in parts": (awq("a", SHAPE)[0], AWQ | {"group_size": 33}, "groups of 33 don't divide the 256"),
    "a shape of floats": (spoiled(packed(4, 32), weight_shape=np.float32([32, 512])), CT, "a.weight_shape'? is no sh"),
    "integers for scales": (spoiled(gptq("a", SHAPE), scales=lambda s: s.astype(np.int32)), GPTQ, "a.scales'? is I32"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_damaged(tmp_path: Path, name: str) -> None:
    """One sentence that names the tensor, whatever it is to become; nothing is written."""
    arrays, settings, match = BAD[name]
    for kind, end in (("REPACK", "o.gguf"), ("W4A16", "o")):
        with pytest.raises(llmconv.LlmconvError, match=match) as caught:
            llmconv.quantize(in_memory(arrays, settings), tmp_path / end, kind)
        assert not list(tmp_path.iterdir()) and len(str(caught.value)) < 320 and "\n" not in str(caught.value)


def mutations(array: Any, turn: int) -> Iterator[Any]:
    """What could be there in the place of a tensor; None is nothing.   turn: every second type, from that on."""
    yield None
    if array.ndim and array.shape[0] > 1:
        yield from (array[:-1], array[: len(array) // 2], np.concatenate([array, array[:1]]), array[:0])
    if array.ndim > 1 and array.shape[1] > 1:
        yield from (array[:, :-1].copy(), np.concatenate([array, array[:, :1]], 1), array.T.copy(), array.reshape(-1))
        yield array[None]
    yield array.reshape(-1)[:1].reshape(())
    types = (np.int16, np.int64, np.uint8, np.int32, np.float64, np.float16, np.float32, bool, E4M3)
    for dtype in types[turn % 2 :: 2]:
        if dtype != array.dtype:
            with np.errstate(all="ignore"):
                yield array.astype(dtype)
    if array.dtype.kind in "iu":
        yield from (np.full_like(array, end) for end in (0, np.iinfo(array.dtype).max, np.iinfo(array.dtype).min))
        yield np.frombuffer(np.random.default_rng(0).bytes(array.nbytes), array.dtype).reshape(array.shape)
    else:
        yield from (np.full_like(array, number) for number in (np.nan, np.inf, 0, -1))


SETTINGS: list[tuple[str, Any]] = [
    *(("bits", value) for value in (0, -1, 3.5, "4", 1 << 40, None, True, 5, [4])),
    *(("group_size", value) for value in (0, -2, "x", 7, 10**9, None, [32], 2.5)),
    *(("quant_method", value) for value in ("nonsense", [], None, 5, "", "awq", "gptq", "bitsandbytes")),
    *(("weight_block_size", value) for value in ("x", [0, 0], [1], [-1, 2], 5, [1 << 30, 1])),
    *(("config_groups", value) for value in ([], 5, {"a": 5}, {"a": {"weights": 5}})),
    ("config_groups", {"a": {"weights": {"num_bits": 3}}}),
    ("version", 5), ("version", "gemv_fast"), ("checkpoint_format", []), ("checkpoint_format", "marlin"), ("mode", "x"),
    ("mode", []), ("dynamic", {"a": 1}), ("quant_config", 5), ("quant_config", {"weight_quant_params": 7}),
]  # fmt: skip


def tried(arrays: dict[str, Any], settings: Any, more: dict[str, Any]) -> None:
    """Read and carried, or an error of ours."""
    ways: list[Any] = []
    try:
        found = unpack(in_memory(arrays, settings, **more), lambda c: ways.append(carried(c)) or c.floats()).tensors
        with np.errstate(all="ignore"):
            for tensor in found.values():
                tensor.rows(0, min(3, tensor.n_rows))
            for way in ways:
                if isinstance(way, Carried):
                    way.tensor().blocks(0, min(3, way.tensor().n_rows))
    except llmconv.LlmconvError as error:
        assert "\n" not in str(error) and len(str(error)) < 320


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_whatever_is_in_a_layer(name: str) -> None:
    """No traceback, for any tensor of it that is another, and any setting."""
    kind = KINDS[name]
    good = dict(kind.stored("a", (32, 64), 0)[0])
    for i, (key, array) in enumerate(good.items(), list(KINDS).index(name)):
        for other in mutations(array, i):
            tried({n: a for n, a in (good | {key: other}).items() if a is not None}, kind.settings, kind.more)
    for setting, value in SETTINGS:
        more = {"quantization": kind.more["quantization"] | {setting: value}} if kind.more else {}
        tried(good, None if kind.settings is None else kind.settings | {setting: value}, more)


WORSE: dict[str, tuple[str, str, Any, str]] = {
    "zero points without rows": ("W4A16 with zero points", "a.weight_zero_point", lambda z: z[:0], "zero points of"),
    "one zero point": ("W4A16 with zero points", "a.weight_zero_point", lambda z: z[:1, :1][0], "zero points of"),
    "no weights": ("BitNet", "a.weight", lambda w: w[:0], "a.weight(_scale)?'? holds no weights"),
    "a number for a weight": ("INT8 (W8A8)", "a.weight", lambda w: w[0, 0].reshape(()), "a.weight'? is one number"),
    "a global scale of 0": ("NVFP4", "a.weight_global_scale", lambda g: g * 0, "a.weight_global_scale'? is 0"),
    "no global scale": ("NVFP4 of ModelOpt", "a.weight_scale_2", lambda g: g * np.nan, "a.weight_scale_2'? is nan"),
    "biases that are bytes": ("MLX", "a.biases", lambda b: b.astype(np.uint8), "a.scales'? is F16"),
    "exponents that are floats": ("MLX in mxfp4", "a.scales", lambda s: s.astype(np.float16), "a.scales'? is F16"),
    "no biases": ("MLX", "a.biases", lambda b: None, r"a\.biases'? is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", WORSE)
def test_what_was_a_traceback_once(name: str) -> None:
    which, key, change, match = WORSE[name]
    kind = KINDS[which]
    arrays = dict(kind.stored("a", (32, 64), 0)[0])
    arrays[key] = change(arrays[key])
    with pytest.raises(llmconv.LlmconvError, match=match):
        unpack(in_memory({n: a for n, a in arrays.items() if a is not None}, kind.settings, **kind.more))


def test_int8_of_what_is_quantized_is_refused(tmp_path: Path) -> None:
    for name in ("MLX", "GPTQ, symmetric"):
        kind = KINDS[name]
        model = in_memory(dict(kind.stored("a", (32, 64), 0)[0]), kind.settings, **kind.more)
        with pytest.raises(llmconv.LlmconvError, match="is quantized already"):
            llmconv.quantize(model, tmp_path / "o", "INT8")
    assert not list(tmp_path.iterdir())


def test_an_order_that_is_not_used() -> None:
    """compressed-tensors makes it of -1 and leaves it so where columns are in order."""
    arrays = dict(packed(4, 32)[0])
    want = unpack(in_memory(arrays, CT)).tensors["a.weight"].numpy()
    arrays["a.weight_g_idx"] = np.full(512, -1, np.int32)
    assert np.array_equal(unpack(in_memory(arrays, CT)).tensors["a.weight"].numpy(), want)


def test_more_than_the_bits_that_are_said() -> None:
    arrays = {"a.weight": np.full((32, 64), 100, np.int8), "a.weight_scale": np.ones((32, 1), np.float32)}
    settings = CT | {"config_groups": {"g": {"weights": {"num_bits": 4}}}}
    found = unpack(in_memory(arrays, settings)).tensors["a.weight"]
    with pytest.raises(llmconv.LlmconvError, match=r"a\.weight'? has numbers from 100 to 100, expected -8 to 7"):
        found.numpy()


@pytest.mark.parametrize("way", ["MLX", "W4A16"])
def test_no_folder_has_weights_that_are_no_numbers(tmp_path: Path, way: str) -> None:
    """A layer of which a scale is no number can't be carried, and is not written in floats either, unless asked for."""
    arrays = gptq("a", SHAPE)[0] | gptq("b", SHAPE)[0]
    arrays["b.scales"] = arrays["b.scales"] * np.float16(np.nan)
    with pytest.raises(llmconv.LlmconvError, match=r"'?b\.weight'?(: row 0 has a nan| are not in the one)"):
        llmconv.quantize(in_memory(arrays, GPTQ, model_type="x", architectures=["X"]), tmp_path / "o", way)
    assert not list(tmp_path.iterdir())
