"""Every way of storing a layer that is read: a builder, and what config.json says beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from stored_layers import Arrays, awq, bitnet, bitsandbytes, four_bit_floats, gptq, hqq, mlx, numbers, words

E4M3 = ml_dtypes.float8_e4m3fn
CT = {"quant_method": "compressed-tensors"}


class Kind(NamedTuple):
    """stored: (stem, shape, seed) -> arrays and the values they stand for.   settings: quantization_config.   more: of
    config.json."""

    stored: Callable[[str, tuple[int, int], int], tuple[Arrays, Any]]
    settings: Any = None
    more: dict[str, Any] = {}


def packed(
    stem: str, shape: tuple[int, int], seed: int = 0, bits: int = 4, group: int = 32, symmetric: bool = True
) -> tuple[Arrays, Any]:
    """compressed-tensors' pack-quantized."""
    codes, scale, zero = numbers(np.random.default_rng(seed), shape, bits, group, symmetric)
    w = f"{stem}.weight"
    made = {f"{w}_packed": words(codes, bits).view(np.int32), f"{w}_scale": scale, f"{w}_shape": np.int64(shape)}
    if not symmetric:
        made[f"{w}_zero_point"] = np.ascontiguousarray(words(zero.T, bits).view(np.int32).T)
    wide = np.repeat(scale.astype(np.float32), group, 1)
    return made, (codes - np.repeat(zero, group, 1)).astype(np.float32) * wide


def eight_bits(
    stem: str, shape: tuple[int, int], seed: int = 0, dtype: Any = np.int8, names: tuple[str, str] = ("", "_scale"),
    block: int = 0,
) -> tuple[Arrays, Any]:  # fmt: skip
    """Integers or floats of eight bits; scales by row, or for squares of `block`."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-127, 128, shape).astype(dtype)
    down, across = (-(-shape[0] // block), -(-shape[1] // block)) if block else (shape[0], 1)
    scale = rng.uniform(0.001, 0.01, (down, across)).astype(np.float16).astype(np.float32)
    wide = np.repeat(np.repeat(scale, block, 0), block, 1)[: shape[0], : shape[1]] if block else scale
    return {f"{stem}.weight{names[0]}": codes, f"{stem}.weight{names[1]}": scale}, codes.astype(np.float32) * wide


def torchao(stem: str, shape: tuple[int, int], seed: int = 0) -> tuple[Arrays, Any]:
    made, want = eight_bits(stem, shape, seed)
    names = {f"{stem}._weight_qdata": "weight", f"{stem}._weight_scale": "weight_scale"}
    return {name: made[f"{stem}.{end}"] for name, end in names.items()}, want


def llm_int8(stem: str, shape: tuple[int, int], seed: int = 0) -> tuple[Arrays, Any]:
    rng = np.random.default_rng(seed)
    codes, largest = rng.integers(-127, 128, shape).astype(np.int8), rng.uniform(0.1, 2, shape[0]).astype(np.float32)
    want = codes.astype(np.float32) * largest[:, None] * np.float32(1 / 127)
    return {f"{stem}.weight": codes, f"{stem}.SCB": largest}, want


GPTQ, BNB = {"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes"}
KINDS: dict[str, Kind] = {
    "GPTQ, symmetric": Kind(gptq, GPTQ),
    "GPTQ v2": Kind(lambda *a: gptq(*a, v2=True), GPTQ | {"checkpoint_format": "gptq_v2"}),
    "GPTQ with zero points": Kind(lambda *a: gptq(*a, symmetric=False), GPTQ),
    "GPTQ with act-order": Kind(lambda *a: gptq(*a, order=True), GPTQ | {"desc_act": True}),
    "GPTQ in 2 bits": Kind(lambda *a: gptq(*a, bits=2), {"quant_method": "gptq", "bits": 2}),
    "GPTQ in 3 bits": Kind(lambda *a: gptq(*a, bits=3), {"quant_method": "gptq", "bits": 3}),
    "GPTQ in 8 bits": Kind(lambda *a: gptq(*a, bits=8), {"quant_method": "gptq", "bits": 8}),
    "AWQ": Kind(awq, {"quant_method": "awq"}),
    "AWQ gemv": Kind(lambda *a: awq(*a, gemv=True), {"quant_method": "awq", "version": "gemv", "group_size": 32}),
    "W4A16": Kind(packed, CT),
    "W4A16 with zero points": Kind(lambda *a: packed(*a, symmetric=False), CT),
    "W8A16": Kind(lambda *a: packed(*a, bits=8), CT),
    "INT8 (W8A8)": Kind(eight_bits, CT),
    "NVFP4": Kind(four_bit_floats, CT),
    "NVFP4 of ModelOpt": Kind(lambda *a: four_bit_floats(*a, kind="modelopt"), {"quant_method": "modelopt"}),
    "MXFP4": Kind(lambda *a: four_bit_floats(*a, kind="mxfp4"), CT),
    "MLX": Kind(mlx, None, {"quantization": {"bits": 4, "group_size": 32}}),
    "MLX in 5 bits": Kind(lambda *a: mlx(*a, bits=5), None, {"quantization": {"bits": 5, "group_size": 32}}),
    "MLX in 8 bits": Kind(lambda *a: mlx(*a, bits=8), None, {"quantization": {"bits": 8, "group_size": 32}}),
    "MLX in mxfp4": Kind(
        lambda *a: four_bit_floats(*a, kind="mlx"), None,
        {"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}},
    ),
    "FP8 by row": Kind(lambda *a: eight_bits(*a, dtype=E4M3), CT),
    "FP8 by block": Kind(
        lambda *a: eight_bits(*a, dtype=E4M3, names=("", "_scale_inv"), block=32),
        {"quant_method": "fp8", "weight_block_size": [32, 32]},
    ),
    "NF4": Kind(bitsandbytes, BNB),
    "NF4, nested": Kind(lambda *a: bitsandbytes(*a, nested=True), BNB),
    "FP4": Kind(lambda *a: bitsandbytes(*a, kind="fp4"), BNB),
    "LLM.int8": Kind(llm_int8, BNB),
    "HQQ": Kind(hqq, {"quant_method": "hqq"}),
    "torchao int8": Kind(torchao, {"quant_method": "torchao"}),
    "quanto int8": Kind(lambda *a: eight_bits(*a, names=("._data", "._scale")), {"quant_method": "quanto"}),
    "BitNet": Kind(bitnet, {"quant_method": "bitnet"}),
    "BitNet, multiplied": Kind(
        lambda *a: bitnet(*a, multiplies=True), {"quant_method": "bitnet", "linear_class": "autobitlinear"}
    ),
}  # fmt: skip
"""By the names that the docs have for them."""
