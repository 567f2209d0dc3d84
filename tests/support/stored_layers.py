"""Layers as other programs store them, packed by loops over the numbers; each with the values it stands for."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np

Arrays = dict[str, Any]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
NF4 = [-1, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1]


def words(numbers: Any, bits: int, width: int = 32) -> Any:
    """(n, k) numbers -> (n, words): one stream of bits a row, lowest first."""
    n, k = numbers.shape
    out = np.zeros((n, -(-k * bits // width)), object)
    for i in range(n):
        stream = sum(int(number) << (bits * j) for j, number in enumerate(numbers[i]))
        for w in range(out.shape[1]):
            out[i, w] = stream >> (width * w) & ((1 << width) - 1)
    return out.astype(np.uint32 if width == 32 else np.uint8)


def numbers(rng: Any, shape: tuple[int, int], bits: int, group: int, symmetric: bool) -> tuple[Any, Any, Any]:
    """Codes (n, k), float16 scales (n, groups) and zero points (n, groups)."""
    n, k = shape
    groups = -(-k // group)
    codes = rng.integers(0, 1 << bits, (n, k))
    scale = rng.uniform(0.001, 0.1, (n, groups)).astype(np.float16)
    zero = np.full((n, groups), 1 << (bits - 1)) if symmetric else rng.integers(1, 1 << bits, (n, groups))
    return codes, scale, zero


def values_of(codes: Any, scale: Any, zero: Any, group_of: Any) -> Any:
    """(code - zero) * scale, one by one."""
    out = np.empty(codes.shape, np.float32)
    for i in range(codes.shape[0]):
        for j in range(codes.shape[1]):
            g = group_of[j]
            out[i, j] = np.float32(int(codes[i, j]) - int(zero[i, g])) * np.float32(scale[i, g])
    return out


def gptq(
    stem: str, shape: tuple[int, int], seed: int = 0, bits: int = 4, group: int = 32, symmetric: bool = True,
    order: bool = False, v2: bool = False,
) -> tuple[Arrays, Any]:  # fmt: skip
    rng = np.random.default_rng(seed)
    codes, scale, zero = numbers(rng, shape, bits, group, symmetric)
    k = shape[1]
    group_of = rng.permutation(np.arange(k) // group) if order else np.arange(k) // group
    made = {
        f"{stem}.qweight": np.ascontiguousarray(words(codes, bits).T).view(np.int32),
        f"{stem}.qzeros": words((zero - (0 if v2 else 1)).T, bits).view(np.int32),
        f"{stem}.scales": np.ascontiguousarray(scale.T),
        f"{stem}.g_idx": group_of.astype(np.int32),
    }
    return made, values_of(codes, scale, zero, group_of)


def awq(
    stem: str, shape: tuple[int, int], seed: int = 0, group: int = 32, symmetric: bool = False, gemv: bool = False
) -> tuple[Arrays, Any]:
    codes, scale, zero = numbers(np.random.default_rng(seed), shape, 4, group, symmetric)
    want = values_of(codes, scale, zero, np.arange(shape[1]) // group)
    if gemv:
        wide = -(-scale.shape[1] // 8) * 8
        pad = ((0, 0), (0, wide - scale.shape[1]))
        return {
            f"{stem}.qweight": words(codes, 4).view(np.int32),
            f"{stem}.qzeros": words(np.pad(zero, pad), 4).view(np.int32),
            f"{stem}.scales": np.pad(scale, pad),
        }, want

    def shuffled(matrix: Any) -> Any:
        """Each eight columns in the order 0, 2, 4, 6, 1, 3, 5, 7."""
        out = matrix.copy()
        for j in range(matrix.shape[1]):
            out[:, j] = matrix[:, j // 8 * 8 + [0, 2, 4, 6, 1, 3, 5, 7][j % 8]]
        return words(out, 4).view(np.int32)

    return {
        f"{stem}.qweight": shuffled(codes.T),
        f"{stem}.qzeros": shuffled(zero.T),
        f"{stem}.scales": np.ascontiguousarray(scale.T),
    }, want


def mlx(stem: str, shape: tuple[int, int], seed: int = 0, bits: int = 4, group: int = 32) -> tuple[Arrays, Any]:
    rng = np.random.default_rng(seed)
    n, k = shape
    codes, scale, _ = numbers(rng, shape, bits, group, True)
    bias = rng.standard_normal(scale.shape).astype(np.float16)
    want = np.empty(shape, np.float32)
    for i in range(n):
        for j in range(k):
            product = np.float32(codes[i, j]) * np.float32(scale[i, j // group])
            want[i, j] = product + np.float32(bias[i, j // group])
    return {f"{stem}.weight": words(codes, bits), f"{stem}.scales": scale, f"{stem}.biases": bias}, want


def four_bit_floats(stem: str, shape: tuple[int, int], seed: int = 0, kind: str = "nvfp4") -> tuple[Arrays, Any]:
    """kind: nvfp4, modelopt, mxfp4, mlx (its mxfp4), deepseek (its)."""
    rng = np.random.default_rng(seed)
    (n, k), group = shape, 32 if kind in ("mxfp4", "mlx", "deepseek") else 16
    codes = rng.integers(0, 16, shape)
    packed = words(codes, 4, 8)
    exponent = rng.integers(118, 130, (n, k // group)).astype(np.uint8)
    small = rng.uniform(0.1, 400, (n, k // group)).astype(ml_dtypes.float8_e4m3fn)
    whole = np.float32(rng.uniform(100, 3000) if kind == "nvfp4" else rng.uniform(1e-4, 1e-2))
    want = np.empty(shape, np.float32)
    for i in range(n):
        for j in range(k):
            if group == 32:
                scale = np.float32(2.0 ** (int(exponent[i, j // 32]) - 127))
            elif kind == "nvfp4":
                scale = np.float32(small[i, j // 16]) / whole
            else:
                scale = np.float32(small[i, j // 16]) * whole
            want[i, j] = np.float32(E2M1[codes[i, j]]) * scale
    w = f"{stem}.weight"
    if kind == "nvfp4":
        return {f"{w}_packed": packed, f"{w}_scale": small, f"{w}_global_scale": np.array([whole])}, want
    if kind == "modelopt":
        return {w: packed, f"{w}_scale": small, f"{w}_scale_2": np.array(whole)}, want
    if kind == "mxfp4":
        return {f"{w}_packed": packed, f"{w}_scale": exponent}, want
    if kind == "deepseek":
        return {w: packed.view(np.int8), f"{stem}.scale": exponent.view(ml_dtypes.float8_e8m0fnu)}, want
    return {w: packed.view(np.uint32), f"{stem}.scales": exponent}, want


def bitsandbytes(
    stem: str, shape: tuple[int, int], seed: int = 0, block: int = 64, nested: bool = False, kind: str = "nf4"
) -> tuple[Arrays, Any]:
    rng = np.random.default_rng(seed)
    size = shape[0] * shape[1]
    codes = rng.integers(0, 16, size)
    table = np.array(NF4 if kind == "nf4" else E2M1, np.float32)
    count = -(-size // block)
    absmax = rng.uniform(0.01, 1, count).astype(np.float32)
    state: Any = {"quant_type": kind, "blocksize": block, "dtype": "float16", "shape": list(shape)}
    w = f"{stem}.weight"
    pairs = np.append(codes, 0) if size % 2 else codes
    made: Arrays = {w: (pairs[0::2] << 4 | pairs[1::2]).astype(np.uint8).reshape(-1, 1), f"{w}.quant_map": table}
    if nested:
        places = rng.integers(0, 256, count).astype(np.uint8)
        nested_table = rng.uniform(-1, 1, 256).astype(np.float32)
        over = rng.uniform(0.1, 1, -(-count // 4)).astype(np.float32)
        state |= {"nested_blocksize": 4, "nested_offset": 0.25, "nested_dtype": "float32"}
        absmax = np.array([nested_table[p] * over[i // 4] + np.float32(0.25) for i, p in enumerate(places)], np.float32)
        made |= {f"{w}.absmax": places, f"{w}.nested_absmax": over, f"{w}.nested_quant_map": nested_table}
    else:
        made[f"{w}.absmax"] = absmax
    made[f"{w}.quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    want = np.array([table[c] * absmax[i // block] for i, c in enumerate(codes)], np.float32).reshape(shape)
    return made, want


def hqq(
    stem: str, shape: tuple[int, int], seed: int = 0, bits: int = 4, group: int = 32, axis: int = 1
) -> tuple[Arrays, Any]:
    rng = np.random.default_rng(seed)
    n, k = shape
    groups = n * k // group
    down, across = (groups, group) if axis else (group, groups)
    codes = rng.integers(0, 1 << bits, (down, across))
    scale, zero = (rng.uniform(0.1, 3, groups).astype(np.float16) for _ in range(2))
    each = 10 if bits == 3 else 8 // bits
    rows = -(-down // each)
    packed = np.zeros((rows, across), np.int64)
    for r in range(down):
        for c in range(across):
            packed[r % rows, c] |= int(codes[r, c]) << (bits * (each - 1 - r // rows))
    want = np.empty(n * k, np.float32)
    for r in range(down):
        for c in range(across):
            g = r if axis else c
            want[r * across + c] = (np.float32(codes[r, c]) - np.float32(zero[g])) * np.float32(scale[g])
    over = (groups, 1) if axis else (1, groups)
    return {
        f"{stem}.W_q": packed.astype(np.int32 if bits == 3 else np.uint8),
        f"{stem}.scale": scale.reshape(over),
        f"{stem}.zero": zero.reshape(over),
        f"{stem}.shape": np.int64([n, k]),
        f"{stem}.nbits": np.array(bits, np.int32),
        f"{stem}.group_size": np.array(group, np.int32),
        f"{stem}.axis": np.array(axis, np.int32),
    }, want.reshape(n, k)


def bitnet(stem: str, shape: tuple[int, int], seed: int = 0, multiplies: bool = False) -> tuple[Arrays, Any]:
    rng = np.random.default_rng(seed)
    n, k = shape
    codes = rng.integers(-1, 2, shape)
    packed = np.zeros((n // 4, k), np.uint8)
    for r in range(n):
        for c in range(k):
            packed[r % (n // 4), c] |= int(codes[r, c] + 1) << (2 * (r // (n // 4)))
    scale = np.array([1.375], ml_dtypes.bfloat16)
    factor = np.float32(scale[0]) if multiplies else np.float32(1) / np.float32(scale[0])
    return {f"{stem}.weight": packed, f"{stem}.weight_scale": scale}, codes.astype(np.float32) * factor
