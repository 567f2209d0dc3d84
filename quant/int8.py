"""INT8 with one scale per output channel, as safetensors checkpoints store it (`compressed-tensors`).

A linear layer's `weight` [out, in] becomes 8-bit integers and `weight_scale` [out, 1], and
`weight ≈ integers * scale`.  The model's `config.json` says so in `quantization_config`, from which
transformers and vLLM know how to load it.  Two layouts of the same numbers:

`int-quantized`   `weight` is int8 [out, in].  The loaders also round the activations to int8, token by token,
                  when they run it (W8A8, vLLM's fastest path).
`pack-quantized`  `weight_packed` is int32 [out, ceil(in / 4)], four integers a word, lowest byte first, each
                  stored as `integer + 128`, with `weight_shape` int64 [2].  Activations stay floats (W8A16).

Source: the compressed-tensors package (`compressors/naive_quantized`, `compressors/pack_quantized`,
`quantization/quant_config.py`); its loaders were used to check both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llmconv.errors import UsageError

__all__ = ["LAYOUTS", "encode", "pack", "quantization_config", "unpack"]

LAYOUTS = ("int-quantized", "pack-quantized")

_SLAB = 1 << 20
"""Weights rounded at a time, so that the scratch memory stays small whatever the matrix."""


def encode(rows: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """Rows of weights -> integers and scales.

    rows: (n, k) float32, float16, bfloat16 or float64; finite.

    Returns (n, k) int8 in -127 … 127, rounded half to even, and (n, 1) scales: max|row| / 127, so that no
    weight is clipped and each is off by at most half a scale.  The scales are float16 or bfloat16 when the
    rows are (the loaders give the decoded weights the scales' dtype), else float32; they are rounded before
    the weights are divided by them.  A row of zeros has scale 1.
    """
    if rows.ndim != 2:
        raise UsageError(f"INT8 takes rows of shape (n, k), not {rows.shape}")
    n, k = rows.shape
    dtype = rows.dtype if rows.dtype in (np.float16, ml_dtypes.bfloat16) else np.dtype(np.float32)
    q = np.empty((n, k), np.int8)
    scale = np.ones((n, 1), dtype)
    if not k:
        return q, scale
    step = max(1, _SLAB // k)
    for start in range(0, n, step):
        slab = rows[start : start + step].astype(np.float32)
        amax = np.abs(slab).max(axis=1, keepdims=True)
        rounded = (amax / np.float32(127)).astype(dtype)
        if dtype.itemsize == 2:  # one step up where rounding down would clip (float16's subnormals are coarse)
            rounded.view(np.uint16)[...] += rounded.astype(np.float32) * np.float32(127.5) < amax
        rounded[rounded == 0] = 1
        scale[start : start + step] = rounded
        slab /= rounded.astype(np.float32)
        np.rint(slab, out=slab)
        np.clip(slab, -127, 127, out=slab)  # 127.5 scales round to 128
        q[start : start + step] = slab
    return q, scale


def pack(q: NDArray[np.int8]) -> NDArray[np.int32]:
    """(n, k) int8 -> (n, ceil(k / 4)) int32, the missing last integers as if their stored byte were 0."""
    n, k = q.shape
    stored = np.zeros((n, -(-k // 4) * 4), np.uint8)
    np.bitwise_xor(q.view(np.uint8), np.uint8(0x80), out=stored[:, :k])
    return stored.view("<i4").astype(np.int32, copy=False)


def unpack(packed: NDArray[np.int32], k: int) -> NDArray[np.int8]:
    """`pack` undone: (n, ceil(k / 4)) int32 -> (n, k) int8."""
    if packed.ndim != 2 or packed.shape[1] != -(-k // 4):
        raise UsageError(f"packed INT8 rows of {k} weights have {-(-k // 4)} words, not shape {packed.shape}")
    stored = np.ascontiguousarray(packed, "<i4").view(np.uint8)[:, :k]
    return (stored ^ np.uint8(0x80)).view(np.int8)


def quantization_config(layout: str = LAYOUTS[0], ignore: Sequence[str] = ("lm_head",)) -> dict[str, Any]:
    """What goes under `quantization_config` in `config.json`.

    ignore: names of linear modules that were left as they were.
    """
    _check_layout(layout)
    weights = _args(strategy="channel", dynamic=False)
    activations = _args(strategy="token", dynamic=True) if layout == "int-quantized" else None
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations,
        "output_activations": None,
        "format": layout,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _args(strategy: str, dynamic: bool) -> dict[str, Any]:
    return {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": strategy,
        "dynamic": dynamic,
        "group_size": None,
        "block_structure": None,
        "actorder": None,
        "observer": None,
        "observer_kwargs": {},
    }


def _check_layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise UsageError(f"unknown INT8 layout {layout!r}; choose {' or '.join(LAYOUTS)}")
