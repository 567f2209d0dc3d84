"""Damaged layers of codes and scales: a sentence that names the tensor, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_layers import awq, bitnet, four_bit_floats, gptq, mlx, numbers, words
from stored_models import in_memory

import llmconv

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
