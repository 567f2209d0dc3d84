"""The layers of a model folder of small numbers: where their codes and scales come from.

A GGUF's blocks and a folder's stored layers give their numbers as they are; floats are rounded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.grid import Grid
from llmconv.convert.scaled.kept import remembered
from llmconv.convert.scaled.ordered import settled
from llmconv.errors import Unsupported, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import block
from llmconv.quant.block import BlockType, Bytes
from llmconv.quant.kernels import codes as kernels

__all__ = [
    *("BLOCKS", "FLOATS", "TERNARY"),
    *("Layer", "SmallFloats", "moved", "of_blocks", "of_coded", "of_ternary", "rounded", "small_floats"),
]

Rows = Callable[[int, int], NDArray[Any]]
"""What belongs to rows start..stop."""

BLOCKS = {"Q4_0": (4, 8), "Q5_0": (5, 16), "Q8_0": (8, 128), "Q4_1": (4, None), "Q5_1": (5, None)}
"""Bits of a block type's codes, and the one that stands for 0; None: a sum stands beside the scale."""
TERNARY, FLOATS = ("TQ1_0", "TQ2_0"), ("MXFP4", "NVFP4")
_MLX_BITS = (2, 3, 4, 5, 6, 8)
_SLAB = 1 << 20
_KEPT_BYTES = 64 << 20


@dataclass(frozen=True)
class Layer:
    """A weight as small integers: (code - zero) * scale, or code * scale + bias.

    weight, shape: as a float model has it.   kind: what it was, in a word.
    want: the weight in floats, which its numbers must say; None where they were rounded from others.
    bits: of a code; codes: (rows, k) uint8, none over `top`.   group: columns that share the others.
    scale, bias: (rows, k / group) float32.   zero: one for all, or (rows, k / group).
    words: the codes as `Coded.words`, where they are four bits and stored so; (rows, k / 8).
    """

    weight: str
    shape: tuple[int, ...]
    kind: str
    want: Tensor | None
    bits: int
    codes: Rows
    group: int
    scale: Rows
    zero: int | Rows = 0
    bias: Rows | None = None
    top: int = 255
    words: Rows | None = None

    @property
    def n_rows(self) -> int:
        return int(np.prod(self.shape[:-1]))

    def slabs(self) -> Iterator[tuple[int, int]]:
        step = max(1, _SLAB // max(1, self.shape[-1]))
        return ((start, min(self.n_rows, start + step)) for start in range(0, self.n_rows, step))

    def shared(self) -> list[Rows]:
        """What a group shares."""
        return [numbers for numbers in (self.scale, self.zero, self.bias) if callable(numbers)]

    def agrees(self, group: int) -> bool:
        """Whether all numbers of each group of so many columns are one."""
        if group == self.group:
            return True
        if group % self.group or self.shape[-1] % group:
            return False
        for slab in self.slabs():
            for numbers in self.shared():
                own = numbers(*slab).reshape(slab[1] - slab[0], -1, group // self.group)
                if (own != own[:, :, :1]).any():
                    return False
        return True

    def in_groups(self, rows: Rows, group: int) -> Rows:
        """Numbers that this layer's groups share, one for each group of another size, which must be possible."""
        if group >= self.group:
            return lambda start, stop: rows(start, stop)[:, :: group // self.group]
        return lambda start, stop: np.repeat(rows(start, stop), self.group // group, axis=1)

    def symmetric(self) -> bool:
        """Whether all zero points are the middle."""
        if self.bias is not None:
            return False
        middle = 1 << (self.bits - 1)
        if isinstance(self.zero, int):
            return self.zero == middle
        return all(bool((self.zero(*slab) == middle).all()) for slab in self.slabs())


@dataclass(frozen=True)
class SmallFloats:
    """A weight as floats of four bits under scales of a byte.   blocks: in one of `FLOATS`.   want: as of `Layer`."""

    blocks: Tensor
    kind: str
    want: Tensor | None

    @property
    def group(self) -> int:
        return 16 if self.blocks.type.name == "NVFP4" else 32


_OPAQUE: dict[BlockClass, BlockClass] = {}


def _opaque(kind: BlockClass) -> BlockClass:
    """A type of the same bytes that translating takes for numbers of another kind than floats: it leaves them alone."""
    if kind in _OPAQUE:
        return _OPAQUE[kind]

    class Opaque(BlockType):
        block_size, layout, dtype, is_float = kind.block_size, kind.layout, kind.layout, False

        @classmethod
        def decode(cls, blocks: Bytes, out: Any = None) -> Any:
            raise Unsupported(f"{kind.name}'s columns are moved on the way to a folder, and a block's can't be")

    Opaque.name = kind.name
    _OPAQUE[kind] = Opaque
    return Opaque


def moved(
    checkpoint: Checkpoint, kinds: frozenset[str], bare: Mapping[str, Any], to_hf: Callable[[Checkpoint], Checkpoint]
) -> dict[str, Tensor]:
    """The tensors of these block types under a folder's names, in blocks as they are: their rows in its order.

    bare: the metadata, without the types that tensors had once.
    """
    tensors, found = dict(checkpoint.tensors), {}
    for name, tensor in tensors.items():
        if tensor.type.name in kinds:
            found[_opaque(tensor.type)] = tensor.type
            tensors[name] = Tensor(name, tensor.shape, _opaque(tensor.type), tensor.read)
    if not found:
        return {}
    there = to_hf(checkpoint.but(tensors=tensors, metadata=bare)).tensors
    return {n: Tensor(n, t.shape, found[t.type], remembered(t.read)) for n, t in there.items() if t.type in found}


class _Kept:
    """Scales and sums of blocks, those of the last tensors: whether they agree, are whole, ... is asked one by one."""

    def __init__(self) -> None:
        self._found: OrderedDict[int, tuple[Tensor, NDArray[np.void]]] = OrderedDict()
        self._lock = threading.Lock()

    def fields(self, tensor: Tensor, start: int, stop: int) -> NDArray[np.void]:
        """Those of rows start..stop: (rows, blocks), with the fields d and m, of float32 where they are kept."""
        layout = tensor.type.layout
        names = [name for name in layout.names or () if layout[name] == np.float16]
        own = np.dtype([(name, "<f4") for name in names])
        if tensor.n_elements // tensor.type.block_size * own.itemsize > _KEPT_BYTES:
            return np.ascontiguousarray(tensor.blocks(start, stop)).view(layout)
        with self._lock:
            found = self._found.pop(id(tensor), None) or (tensor, self._read(tensor, names, own))
            self._found[id(tensor)] = found
            while sum(fields.nbytes for _, fields in self._found.values()) > _KEPT_BYTES:
                self._found.popitem(last=False)
        return found[1][start:stop]

    @staticmethod
    def _read(tensor: Tensor, names: list[str], own: np.dtype[Any]) -> NDArray[np.void]:
        out = np.empty((tensor.n_rows, tensor.row_len // tensor.type.block_size), own)
        for start, stop in tensor.slabs(_SLAB):
            blocks = np.ascontiguousarray(tensor.blocks(start, stop)).view(tensor.type.layout)
            for name in names:
                out[name][start:stop] = blocks[name]
        return out


_kept = _Kept()


def of_blocks(tensor: Tensor, exact: bool = True) -> Layer:
    """A layer of a tensor in one of `BLOCKS`.   exact: whether its numbers are the model's own."""
    width, zero = BLOCKS[tensor.type.name]
    fields, k = 2 if zero is not None else 4, tensor.row_len

    def codes(start: int, stop: int) -> NDArray[np.uint8]:
        out = np.empty((stop - start, k), np.uint8)
        raw = np.ascontiguousarray(tensor.blocks(start, stop)).reshape(-1)
        kernels.of_blocks(raw, width, fields, 128 if width == 8 else 0, k, k, out.reshape(-1))
        return out

    def field(name: str) -> Rows:
        return lambda start, stop: _kept.fields(tensor, start, stop)[name].astype(np.float32, copy=False)

    want = tensor if exact else None
    bias = None if zero is not None else field("m")
    kind = tensor.type.name if exact else "rounded from floats"
    return Layer(tensor.name, tensor.shape, kind, want, width, codes, 32, field("d"), zero or 0, bias)


def of_ternary(tensor: Tensor) -> Layer:
    """A layer of a tensor in one of `TERNARY`: two bits, of which 1 stands for 0."""
    from llmconv.quant.rounding.families import GRIDS  # makes the tables of the codebook types

    grid = GRIDS[tensor.type.name]

    def codes(start: int, stop: int) -> NDArray[np.uint8]:
        return grid.unpack(tensor.blocks(start, stop)).code.astype(np.uint8)

    def scale(start: int, stop: int) -> NDArray[np.float32]:
        layout = tensor.type.layout
        return np.ascontiguousarray(tensor.blocks(start, stop)).view(layout)["d"].astype(np.float32)

    return Layer(tensor.name, tensor.shape, tensor.type.name, tensor, 2, codes, 256, scale, 1)


def small_floats(tensor: Tensor) -> tuple[Rows, Rows]:
    """Of a tensor in one of `FLOATS`, its numbers, two in a byte in order, and the bytes of its scales."""
    kind, k, small = tensor.type, tensor.row_len, tensor.type.name == "NVFP4"
    half = 8 if small else 16

    def fields(start: int, stop: int) -> NDArray[Any]:
        return np.ascontiguousarray(tensor.blocks(start, stop)).view(kind.layout)

    def packed(start: int, stop: int) -> Bytes:
        pairs = fields(start, stop)["qs"].reshape(stop - start, k // (2 * half), half)
        codes = np.concatenate([pairs & 15, pairs >> 4], axis=-1).reshape(stop - start, k)
        pairs = codes[:, 0::2] | codes[:, 1::2] << np.uint8(4)
        return np.ascontiguousarray(pairs, np.uint8)

    def scales(start: int, stop: int) -> Bytes:
        own = fields(start, stop)["d" if small else "e"]
        return np.ascontiguousarray(own.reshape(stop - start, -1))

    return packed, scales


def of_coded(coded: Coded, any_bits: bool = False) -> Layer | str:
    """A stored layer's own integers, or why they can't be carried.

    any_bits: in as few bits as MLX can pack them in; else four, or eight.
    """
    coded = settled(coded)
    k, scale, zero = coded.shape[-1], coded.scale, coded.zero
    span = coded.high - coded.low
    bits = next(b for b in _MLX_BITS if span < 1 << b and (any_bits or b in (4, 8)))
    if coded.table is not None or not isinstance(scale, Grid) or len(coded.shape) != 2:
        return "floats of few bits, or scales of another kind"
    if scale.order is not None:
        return "columns out of their groups' order (act-order)"
    if any(given is not None for given in (coded.factor, coded.divisor, coded.after)):
        return "a factor over its scales"
    if coded.bias is not None and coded.low:
        return "sums beside codes that have a sign"
    group = scale.columns if scale.values.row_len > 1 else k
    if not group or k % group or group * scale.values.row_len != k:
        return f"groups of {group} in rows of {k}"
    shift = -coded.low if any_bits else (1 << (bits - 1)) if coded.low < 0 else 0
    if isinstance(zero, int) and coded.low == 0 and not any_bits:
        shift = (1 << (bits - 1)) - zero if coded.bias is None else 0
    if coded.low + shift < 0 or coded.high + shift >= 1 << bits:
        return f"integers from {coded.low} to {coded.high}"
    flip = np.uint8(shift)

    def codes(start: int, stop: int) -> NDArray[np.uint8]:
        found = np.ascontiguousarray(coded.codes(start, stop)).view(np.uint8)
        return found + flip if flip else found

    def shared(grid: Any) -> Rows:
        across = scale.values.row_len

        def read(start: int, stop: int) -> NDArray[np.float32]:
            return np.broadcast_to(grid.by_group(start, stop), (stop - start, across))

        return read

    for grid in (zero, coded.bias):
        same = isinstance(grid, int | None) or (isinstance(grid, Grid) and grid.columns == scale.columns)
        if not same:
            return "zero points that lie otherwise than the scales"
    zeros = shared(zero)
    own: int | Rows = zero + shift if isinstance(zero, int) else lambda a, b: zeros(a, b) + np.float32(shift)
    bias = None if coded.bias is None else shared(coded.bias)
    made = Layer(
        coded.weight, coded.shape, f"of {coded.high - coded.low + 1} codes", coded.floats(), bits, codes, group,
        shared(scale), own, bias, coded.high + shift, coded.words if bits == 4 and coded.low + shift == 0 else None,
    )  # fmt: skip
    numbers = [] if isinstance(zero, int) else [made.zero]
    for rows in numbers:
        assert callable(rows)
        for slab in made.slabs():
            z = rows(*slab)
            if (np.rint(z) != z).any() or z.min(initial=0) < 0 or z.max(initial=0) >= 1 << bits:
                return "zero points that are no codes"
    return made


def rounded(tensor: Tensor, group: int, kind: str, bits: int = 4) -> Layer:
    """A layer of floats, rounded to four bits, or for MLX to others, as a kind of folder has them.

    W4A16: to -8 … 7 steps of an eighth of the largest weight; W4A16_ASYM: to sixteen steps from the least weight to the
    largest, 0 among them; MLX: to sixteen steps from the least on, wherever 0 is; in 2 or 3 bits also with 0 among them
    and the larger end exact, as MLX rounds, where that is nearer to a group's weights.
    """
    mlx = kind.startswith("MLX")
    if group == 32 and kind != "W4A16_ASYM" and bits in (4, 5):
        return of_blocks(tensor.astype(block.by_name(f"Q{bits}_1" if mlx else "Q4_0")), exact=False)
    k, top = tensor.row_len, (1 << bits) - 1

    def found(start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        """Codes, scales, and zero points or biases."""
        x = tensor.rows(start, stop).astype(np.float32).reshape(stop - start, k // group, group)
        low, high = x.min(-1), x.max(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            if kind == "W4A16":
                largest = np.where(-low > high, low, high)
                scale = _half(largest / np.float32(-8), tensor.name)
                other = np.full(scale.shape, 8, np.float32)
            elif kind == "W4A16_ASYM":
                low, high = np.minimum(low, 0), np.maximum(high, 0)
                scale = _half((high - low) / np.float32(15), tensor.name)
                other = np.nan_to_num(np.clip(np.rint(-low / scale), 0, 15))
            else:
                scale, other = _half((high - low) / np.float32(top), tensor.name), _half(low, tensor.name)
                if bits < 4:
                    scale, other = _about_zero(x, scale, other, top, tensor.name)
                x = x - other[..., None]
            steps = np.nan_to_num(np.rint(x / scale[..., None]), nan=0, posinf=0, neginf=0)
        codes = np.clip(steps if mlx else steps + other[..., None], 0, top).astype(np.uint8)
        return codes.reshape(stop - start, k), scale, other

    def other(start: int, stop: int) -> NDArray[np.float32]:
        return found(start, stop)[2]

    zero: int | Rows = other if kind == "W4A16_ASYM" else 8 if kind == "W4A16" else 0
    return Layer(
        tensor.name, tensor.shape, "rounded from floats", None, bits, lambda a, b: found(a, b)[0], group,
        lambda a, b: found(a, b)[1], zero, other if mlx else None,
    )  # fmt: skip


def _about_zero(
    x: NDArray[np.float32], scale: NDArray[np.float32], low: NDArray[np.float32], top: int, name: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and biases of groups (n, groups, weights): those given, or such that the end farther from 0 is said
    exactly and so is 0, where the sum of squares is less."""
    least, most = x.min(-1), x.max(-1)
    end = np.where(np.abs(least) > np.abs(most), least, most)
    step = np.where(end < 0, scale, -scale)
    steps = np.rint(end / step)
    other = _half(np.nan_to_num(np.where(steps == 0, step, end / steps)), name), _half(end, name)

    def off(scale: NDArray[np.float32], bias: NDArray[np.float32]) -> NDArray[np.float32]:
        whole = np.clip(np.nan_to_num(np.rint((x - bias[..., None]) / scale[..., None])), 0, top)
        squares: NDArray[np.float32] = np.square(whole * scale[..., None] + bias[..., None] - x).sum(-1)
        return squares

    nearer = off(*other) < off(scale, low)
    return np.where(nearer, other[0], scale), np.where(nearer, other[1], low)


def _half(x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        found: NDArray[np.float32] = x.astype(np.float16).astype(np.float32)
    if not np.isfinite(found).all():
        raise Unsupported(f"tensor {cut(name)} has weights whose scale float16 can't say; choose FP8_DYNAMIC")
    return found
