"""Products with blocks on devices that the numpy kernels can't reach: Triton's kernels on CUDA, torch operations else.

`DECODERS` has the types whose weights stay quantized there; anything else is decoded when it is loaded.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.quant import torch_gpu
from llmconv.quant.block import BlockType

__all__ = ["DECODERS", "decode", "decode_plain", "matmul", "triton_runs"]

MATVEC_TOKENS = 4
"""Up to so many tokens a fused product reads the blocks once a token; beyond, decoding once is cheaper."""
_SLAB = 1 << 24
"""Weights decoded at a time by torch operations, which need some ten bytes a weight meanwhile."""


def _halves(block: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of (n, size) blocks, as (n, 1) float32."""
    return block[:, at : at + 2].contiguous().view(torch.float16).float()


def _six_bits(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales and minimums of (n, 12) bytes (ggml's `get_scale_min_k4`): two (n, 8) float32."""
    low, middle, high = scales[:, :4], scales[:, 4:8], scales[:, 8:]
    scale = torch.cat((low & 63, (high & 15) | ((low >> 6) << 4)), 1)
    minimum = torch.cat((middle & 63, (high >> 4) | ((middle >> 6) << 4)), 1)
    return scale.float(), minimum.float()


def _q5_k(block: Tensor) -> Tensor:
    """(n, 176) bytes -> (n, 256) float32."""
    n = block.shape[0]
    scale, minimum = _six_bits(block[:, 4:16])
    high, low = block[:, None, 16:48], block[:, 48:].view(n, 4, 32)
    nibbles = torch.stack((low & 15, low >> 4), 2).view(n, 8, 32)
    bits = (high >> torch.arange(8, device=block.device, dtype=torch.uint8)[:, None]) & 1
    values = (nibbles | (bits << 4)).float()
    d, dmin = _halves(block, 0), _halves(block, 2)
    return ((d * scale)[:, :, None] * values - (dmin * minimum)[:, :, None]).view(n, 256)


def _iq4_xs(block: Tensor) -> Tensor:
    """(n, 136) bytes -> (n, 256) float32."""
    from llmconv.quant.kernels.iq4 import VALUES

    n, device = block.shape[0], block.device
    table = torch.from_numpy(VALUES).to(device)
    high = block[:, 2].int() | (block[:, 3].int() << 8)
    low = torch.stack((block[:, 4:8] & 15, block[:, 4:8] >> 4), 2).view(n, 8).int()
    steps = torch.arange(8, device=device, dtype=torch.int32) * 2
    scale = (low | (((high[:, None] >> steps) & 3) << 4)) - 32
    packed = block[:, 8:].view(n, 8, 16)
    values = table[torch.cat((packed & 15, packed >> 4), 2).int()]
    return ((_halves(block, 0) * scale)[:, :, None] * values).view(n, 256)


def _by_room(name: str) -> Callable[[Tensor], Tensor]:
    return lambda block: torch_gpu.decode(block, name)


DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: _by_room(name) for name in torch_gpu.TYPES},
    "Q5_K": _q5_k,
    "IQ4_XS": _iq4_xs,
}
"""Type name -> (n, block bytes) uint8 to (n, block size) float32, in torch operations."""


@functools.cache
def triton_runs() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def decode_plain(rows: Tensor, type: type[BlockType], dtype: torch.dtype) -> Tensor:
    """(N, row bytes) uint8 -> (N, in) of `dtype`, by torch operations, slab by slab."""
    size, width = type.layout.itemsize, type.block_size
    blocks = rows.reshape(-1, size)
    out = torch.empty(blocks.shape[0], width, dtype=dtype, device=rows.device)
    for start in range(0, len(blocks), _SLAB // width):
        part = blocks[start : start + _SLAB // width]
        out[start : start + len(part)] = DECODERS[type.name](part)
    return out.view(rows.shape[0], -1)


def decode(rows: Tensor, type: type[BlockType], dtype: torch.dtype) -> Tensor:
    """(N, row bytes) uint8 -> (N, in) of `dtype`, by the fastest way that there is."""
    if rows.device.type == "cuda" and triton_runs():
        from llmconv.runtime import triton_kernels

        if type.name in triton_kernels.PARTS:
            return triton_kernels.decode(rows, type, dtype)
    return decode_plain(rows, type, dtype)


def matmul(x: Tensor, weight: Tensor, type: type[BlockType]) -> Tensor:
    """x (N, in) times blocks (out, row bytes), transposed: (N, out)."""
    if x.shape[0] <= MATVEC_TOKENS and x.device.type == "cuda" and triton_runs():
        from llmconv.runtime import triton_kernels

        if type.name in triton_kernels.PARTS:
            return triton_kernels.matvec(x, weight, type)
    return F.linear(x, decode(weight, type, x.dtype))
