"""Matrix products with weights as they are stored: float tensors, or blocks that are decoded as they are used.

A *stored weight* is a torch tensor and the `BlockType` of its bytes, or None when the tensor holds plain numbers:
(out, in) floats, or (out, row bytes) uint8.  On the CPU a quantized or narrower weight is decoded by rows into one
scratch tile that every product reuses, so that a model needs no more memory than its blocks; on CUDA see
`triton_kernels`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.quant import integer_products
from llmconv.quant.block import BlockType
from llmconv.runtime import decoding

__all__ = ["ACTIVATIONS", "TILE_BYTES", "dense", "embed", "forget_scratch", "matmul", "straight_through", "workers"]

ACTIVATIONS = ("float", "int8")
"""What the inputs of products with quantized weights may be: as they are, or rounded (see `quant.integer_products`)."""

TILE_BYTES = 1 << 20
"""Size of the scratch tile for a few tokens: it should stay in a core's own cache."""
PROMPT_TILE_BYTES = 16 << 20
"""The same for a prompt: each product packs all activations again, so that few large ones are faster (by a quarter)."""

_local = threading.local()
_pool: ThreadPoolExecutor | None = None


def _scratch(numbers: int) -> Tensor:
    """This thread's float32 scratch, of at least that many numbers."""
    found: Tensor | None = getattr(_local, "scratch", None)
    if found is None or found.numel() < numbers:
        with torch.inference_mode(False):  # it outlives this call, and a later one may be made in training
            found = _local.scratch = torch.empty(numbers)
    return found


def forget_scratch() -> None:
    """Give this thread's back."""
    _local.scratch = None


def workers() -> ThreadPoolExecutor:
    """As many threads as torch has, for what runs beside the calling one."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(torch.get_num_threads(), "llmconv-decode")
    return _pool


def _decode_rows(weight: Tensor, type: type[BlockType] | None, start: int, stop: int, out: Tensor) -> None:
    """Rows start..stop of a stored weight on the CPU into `out`, (stop - start, in) float32."""
    if type is None:
        out.copy_(weight[start:stop])
        return
    blocks, values = weight[start:stop].numpy(), out.numpy()

    def decode(first: int, last: int) -> None:
        type.decode(blocks[first:last], values[first:last])

    _split(decode, len(blocks), values.size)


def _split(work: Callable[[int, int], None], rows: int, size: int) -> None:
    """`work` on all rows, by ranges of them in as many threads as torch has; kernels release the interpreter's lock.

    size: about how many numbers are read or written; few are not worth a second thread.
    """
    threads = torch.get_num_threads()
    if threads == 1 or size < 1 << 16:
        work(0, rows)
        return
    step = -(-rows // (16 * threads)) * 16
    jobs = [workers().submit(work, a, min(a + step, rows)) for a in range(step, rows, step)]
    work(0, min(step, rows))
    for job in jobs:
        job.result()


def _tiled(x: Tensor, weight: Tensor, type: type[BlockType] | None) -> Tensor:
    """x (N, in) @ weight.T, weight on the CPU, through the scratch tile."""
    n_out, n_in = weight.shape[0], x.shape[1]
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide = _rounded(x, weight).to(exact)
    size = TILE_BYTES if x.shape[0] < 32 else max(TILE_BYTES, PROMPT_TILE_BYTES)
    out = torch.empty(n_out, x.shape[0], dtype=exact)  # transposed, so that a tile's results lie together
    across = wide.t()
    for rows, part in _tiles(weight, type, n_in, size):
        torch.mm(part.to(exact), across, out=out[rows])
    return out.t().to(x.dtype)


def _tiles(weight: Tensor, type: type[BlockType] | None, n_in: int, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a weight on the CPU with their numbers, as many at a time as `size` bytes hold, in one scratch tile."""
    n_out = weight.shape[0]
    count = max(1, min(n_out, size // (4 * n_in)))
    tile = _scratch(count * n_in)
    for start in range(0, n_out, count):
        stop = min(n_out, start + count)
        part = tile[: (stop - start) * n_in].view(stop - start, n_in)
        _decode_rows(weight, type, start, stop, part)
        yield slice(start, stop), part


def _returned(grad: Tensor, weight: Tensor, type: type[BlockType] | None) -> Tensor:
    """grad (..., out) @ weight, on the CPU through the scratch tile."""
    if weight.device.type != "cpu" or grad.dtype != torch.float32:
        return grad @ dense(weight, type, grad.dtype)
    flat = grad.reshape(-1, grad.shape[-1])
    n_in = _width(weight, type)
    out = torch.zeros(flat.shape[0], n_in)
    for rows, part in _tiles(weight, type, n_in, PROMPT_TILE_BYTES):
        out.addmm_(flat[:, rows], part)
    return out.view(*grad.shape[:-1], n_in)


def _in_integers(x: Tensor, weight: Tensor, type: type[BlockType]) -> Tensor:
    """x (N, in), rounded to bytes, @ weight.T on the CPU."""
    rounded = integer_products.round_inputs(x.detach().float().numpy(), type.block_size)
    out = torch.empty(x.shape[0], weight.shape[0])
    blocks, values = weight.numpy(), out.numpy()
    _split(lambda a, b: integer_products.multiply(rounded, type, blocks, values, a, b), len(blocks), weight.numel())
    return out.to(x.dtype)


_MOST_F16 = 65504.0
"""Beyond it float16 is infinite."""


def _rounded(x: Tensor, weight: Tensor) -> Tensor:
    """Inputs (N, in) as ggml and tensor cores give them to a float16 or bfloat16 weight: in its kind, for float32 sums.

    A token with a number that float16 can't hold stays as it is.
    """
    if x.dtype != torch.float32 or weight.dtype not in (torch.float16, torch.bfloat16):
        return x
    narrow = x.to(weight.dtype)
    if weight.dtype == torch.bfloat16 or not x.numel():
        return narrow
    low, high = (float(end) for end in x.aminmax())
    if low >= -_MOST_F16 and high <= _MOST_F16:
        return narrow
    return torch.where(x.abs().amax(-1, keepdim=True) <= _MOST_F16, narrow.float(), x)


def _width(weight: Tensor, type: type[BlockType] | None) -> int:
    """Numbers in a row of a stored weight."""
    width = weight.shape[-1]
    return width if type is None else width // type.layout.itemsize * type.block_size


def dense(weight: Tensor, type: type[BlockType] | None, dtype: torch.dtype) -> Tensor:
    """The whole weight as numbers: (..., in) of `dtype`, on its device."""
    if type is None:
        return weight.to(dtype)
    flat = weight.reshape(-1, weight.shape[-1])
    if weight.device.type != "cpu":
        values = decoding.decode(flat, type, dtype)
    else:
        values = torch.empty(flat.shape[0], _width(weight, type))
        _decode_rows(flat, type, 0, flat.shape[0], values)
        values = values.to(dtype)
    return values.view(*weight.shape[:-1], -1)


def matmul(x: Tensor, weight: Tensor, type: type[BlockType] | None = None, activations: str = "float") -> Tensor:
    """x (..., in) times a stored weight (out, in), transposed: (..., out), in x's dtype.

    activations: "int8" rounds x for the types in `quant.integer_products.TYPES`, on the CPU.
    Gradients flow to x always, and to the weight when it holds plain numbers.  The product is the same whether they are
    wanted or not: roundings of x count as x itself for them (Bengio et al. 2013, arXiv:1308.3432, "straight through").
    """
    if type is None and not _narrower(weight, x):
        return F.linear(x, weight.to(x.dtype))
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Product.apply(x, weight, type, activations)  # type: ignore[no-any-return,no-untyped-call]
    return _matmul(x, weight, type, activations)


def _narrower(weight: Tensor, x: Tensor) -> bool:
    """Whether plain numbers on the CPU are widened tile by tile rather than all at once."""
    return weight.device.type == "cpu" and weight.element_size() < x.element_size()


def _matmul(x: Tensor, weight: Tensor, type: type[BlockType] | None, activations: str) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    if weight.device.type != "cpu":
        assert type is not None
        out = decoding.matmul(flat, weight, type)
    elif activations == "int8" and type is not None and type.name in integer_products.TYPES:
        out = _in_integers(flat, weight, type)
    else:
        out = _tiled(flat, weight, type)
    return out.view(*x.shape[:-1], weight.shape[0])


class _Product(torch.autograd.Function):
    """A product through blocks or narrower numbers: no gradient for blocks, but one for what they multiply."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, type: type[BlockType] | None, activations: str) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        ctx.type = type
        return _matmul(x, weight, type, activations)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, *_ = ctx.needs_input_grad
        grad_x = _returned(grads[0], weight, ctx.type) if for_x else None
        if not for_weight:
            return grad_x, None, None, None
        flat_grad, flat = (t.reshape(-1, t.shape[-1]) for t in (grads[0], x))
        return grad_x, (flat_grad.t() @ flat).to(weight.dtype), None, None


def embed(ids: Tensor, weight: Tensor, type: type[BlockType] | None, dtype: torch.dtype) -> Tensor:
    """Rows `ids` of a stored weight: (*ids.shape, in) of `dtype`."""
    if type is None:
        return F.embedding(ids, weight).to(dtype)
    rows = weight.index_select(0, ids.flatten())
    return dense(rows, type, dtype).view(*ids.shape, -1)


def straight_through(weight: Tensor, type: type[BlockType]) -> Tensor:
    """Rows of numbers (n, in) as `type` rounds them, for whose gradients the rounding counts as nothing."""
    return _Rounding.apply(weight, type)  # type: ignore[no-any-return,no-untyped-call]


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, type: type[BlockType]) -> Tensor:
        rows = weight.detach().float().cpu().contiguous().numpy()
        values = type.decode(type.encode(rows)).astype("float32")
        return torch.from_numpy(values).to(device=weight.device, dtype=weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
