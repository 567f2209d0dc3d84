"""Triton kernels over blocks: decoding, and decoding fused with the matrix-vector product of token generation.

A type is one function here that gives the weights of a *plane*: a block's bytes hold one or two weights each, and a
plane takes one of each byte, so that neighbouring lanes read neighbouring bytes.  `PARTS` is the one place to add a
type. Layouts: see the types in `quant/`.  `TRITON_INTERPRET=1` runs them on the CPU.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# Triton code: its values are vectors of the GPU, not Python objects.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmconv.quant.block import BlockType
from llmconv.quant.kernels.terms.levels import E2M1, IQ4

__all__ = ["PARTS", "decode", "matvec"]


@triton.jit
def _half(block, at: tl.constexpr):
    """The float16 at byte `at` of each block, as float32."""
    return tl.load((block + at).to(tl.pointer_type(tl.float16))).to(tl.float32)


@triton.jit
def _byte(pointer):
    return tl.load(pointer).to(tl.int32)


@triton.jit
def _nibble(byte, plane: tl.constexpr):
    return (byte >> (4 * plane)) & 15


@triton.jit
def _q8_0(block, i, table, plane: tl.constexpr):
    quant = tl.load(block + 2 + i).to(tl.int8, bitcast=True).to(tl.float32)
    return _half(block, 0) * quant, i


@triton.jit
def _q4_0(block, i, table, plane: tl.constexpr):
    quant = _nibble(_byte(block + 2 + i), plane) - 8
    return _half(block, 0) * quant.to(tl.float32), i + 16 * plane


@triton.jit
def _mxfp4(block, i, table, plane: tl.constexpr):
    # The table holds doubled values, so the scale is 2^(e - 128): by its bits, a subnormal for the smallest two.
    e = _byte(block)
    bits = tl.where(e < 2, (1 << 21) << e, (e - 1) << 23)
    value = tl.load(table + _nibble(_byte(block + 1 + i), plane))
    return bits.to(tl.float32, bitcast=True) * value, i + 16 * plane


@triton.jit
def _scale_min(block, at: tl.constexpr, sub):
    """The 6-bit scale and minimum of sub-block `sub` (ggml's `get_scale_min_k4`)."""
    first, second = _byte(block + at + sub % 4), _byte(block + at + 4 + sub % 4)
    third = _byte(block + at + 8 + sub % 4)
    scale = tl.where(sub < 4, first & 63, (third & 15) | ((first >> 6) << 4))
    minimum = tl.where(sub < 4, second & 63, (third >> 4) | ((second >> 6) << 4))
    return scale.to(tl.float32), minimum.to(tl.float32)


@triton.jit
def _q4_k(block, i, table, plane: tl.constexpr):
    sub = i // 32 * 2 + plane
    scale, minimum = _scale_min(block, 4, sub)
    quant = _nibble(_byte(block + 16 + i), plane).to(tl.float32)
    return _half(block, 0) * scale * quant - _half(block, 2) * minimum, sub * 32 + i % 32


@triton.jit
def _q5_k(block, i, table, plane: tl.constexpr):
    sub = i // 32 * 2 + plane
    scale, minimum = _scale_min(block, 4, sub)
    high = (_byte(block + 16 + i % 32) >> sub) & 1
    quant = (_nibble(_byte(block + 48 + i), plane) | (high << 4)).to(tl.float32)
    return _half(block, 0) * scale * quant - _half(block, 2) * minimum, sub * 32 + i % 32


@triton.jit
def _q6_k(block, i, table, plane: tl.constexpr):
    half, rest = i // 64, i % 64
    position = 128 * half + 64 * plane + rest
    high = (_byte(block + 128 + 32 * half + rest % 32) >> (2 * (rest // 32 + 2 * plane))) & 3
    quant = (_nibble(_byte(block + i), plane) | (high << 4)) - 32
    scale = tl.load(block + 192 + position // 16).to(tl.int8, bitcast=True).to(tl.float32)
    return _half(block, 208) * scale * quant.to(tl.float32), position


@triton.jit
def _iq4_xs(block, i, table, plane: tl.constexpr):
    sub = i // 16
    high = _byte(block + 2) | (_byte(block + 3) << 8)
    low = (_byte(block + 4 + sub // 2) >> (4 * (sub % 2))) & 15
    scale = (low | (((high >> (2 * sub)) & 3) << 4)) - 32
    value = tl.load(table + _nibble(_byte(block + 8 + i), plane))
    return _half(block, 0) * scale.to(tl.float32) * value, sub * 32 + 16 * plane + i % 16


@dataclass(frozen=True)
class Part:
    """fn(block pointers, lane, table, plane) -> (weights, positions in the block), `lanes` x `planes` a block."""

    fn: Any
    lanes: int
    planes: int
    table: Any = None


PARTS: dict[str, Part] = {
    "Q8_0": Part(_q8_0, 32, 1),
    "Q4_0": Part(_q4_0, 16, 2),
    "MXFP4": Part(_mxfp4, 16, 2, E2M1),
    "Q4_K": Part(_q4_k, 128, 2),
    "Q5_K": Part(_q5_k, 128, 2),
    "Q6_K": Part(_q6_k, 128, 2),
    "IQ4_XS": Part(_iq4_xs, 128, 2, IQ4),
}


@triton.jit
def _decode(
    blocks, out, table, count, fn: tl.constexpr, size: tl.constexpr, width: tl.constexpr,
    lanes: tl.constexpr, planes: tl.constexpr, many: tl.constexpr,
):  # fmt: skip
    """`many` blocks of `size` bytes a program."""
    lane = tl.arange(0, many * lanes)
    number = (tl.program_id(0) * many + lane // lanes).to(tl.int64)
    inside = number < count
    block = blocks + tl.where(inside, number, 0) * size
    for plane in tl.static_range(planes):
        weight, position = fn(block, lane % lanes, table, plane)
        tl.store(out + number * width + position, weight.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _matvec(
    x, blocks, out, table, n_out, n_in, fn: tl.constexpr, size: tl.constexpr, width: tl.constexpr,
    lanes: tl.constexpr, planes: tl.constexpr, many: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """`rows` outputs of one token a program; `many` blocks of each row at a time."""
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    token = tl.program_id(1).to(tl.int64)
    per_row = n_in // width
    lane = tl.arange(0, many * lanes)
    start = blocks + tl.where(row < n_out, row, 0).to(tl.int64)[:, None] * per_row * size
    sums = tl.zeros((rows, many * lanes), tl.float32)
    for first in range(0, per_row, many):
        number = first + lane // lanes
        inside = number < per_row
        number = tl.where(inside, number, 0)
        block = start + number[None, :] * size
        for plane in tl.static_range(planes):
            weight, position = fn(block, (lane % lanes)[None, :], table, plane)
            given = tl.load(x + token * n_in + (number[None, :] * width + position), mask=inside[None, :], other=0.0)
            sums += weight * given.to(tl.float32)
    total = tl.sum(sums, 1)
    tl.store(out + token * n_out + row, total.to(out.dtype.element_ty), mask=row < n_out)


_tables: dict[tuple[str, torch.device], Tensor] = {}


def _table(name: str, device: torch.device) -> Tensor:
    """The values that indices stand for, on the device; something, for types without."""
    values = PARTS[name].table
    key = (name if values is not None else "", device)
    if key not in _tables:
        numbers = [0.0] if values is None else [float(v) for v in values]
        _tables[key] = torch.tensor(numbers, dtype=torch.float32, device=device)
    return _tables[key]


def _launch(type: type[BlockType], lanes: int) -> dict[str, Any]:
    part = PARTS[type.name]
    return {
        "fn": part.fn,
        "size": type.layout.itemsize,
        "width": type.block_size,
        "lanes": part.lanes,
        "planes": part.planes,
        "many": max(1, lanes // part.lanes),
    }


def decode(rows: Tensor, type: type[BlockType], dtype: torch.dtype) -> Tensor:
    """(N, row bytes) uint8 -> (N, in) of `dtype`."""
    rows = rows.contiguous()
    count = rows.numel() // type.layout.itemsize
    out = torch.empty(rows.shape[0], count // max(1, rows.shape[0]) * type.block_size, dtype=dtype, device=rows.device)
    options = _launch(type, 512)
    if count:
        _decode[(triton.cdiv(count, options["many"]),)](rows, out, _table(type.name, rows.device), count, **options)
    return out


def matvec(x: Tensor, weight: Tensor, type: type[BlockType]) -> Tensor:
    """x (N, in) times blocks (out, row bytes), transposed, for few N: (N, out) in x's dtype; sums are float32."""
    x, weight = x.contiguous(), weight.contiguous()
    n_out = weight.shape[0]
    out = torch.empty(x.shape[0], n_out, dtype=x.dtype, device=x.device)
    options, rows = _launch(type, 128), 4
    grid = (triton.cdiv(n_out, rows), x.shape[0])
    _matvec[grid](x, weight, out, _table(type.name, x.device), n_out, x.shape[1], rows=rows, num_warps=4, **options)
    return out
