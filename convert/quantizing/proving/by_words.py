"""Whether weights say the same, compared as they lie: words or codes with blocks, and words with words.

What is true of records (`by_codes`) is true here: the same integers, scales and sums are compared, but none is unpacked
into memory first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.quantizing.folder_layers import BLOCKS
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.exact import are_said, bits_of, most_groups, spread
from llmconv.convert.scaled.grid import Grid
from llmconv.convert.scaled.kept import in_chunks
from llmconv.convert.scaled.ordered import settled
from llmconv.errors import Unsupported
from llmconv.formats.tensor import Tensor
from llmconv.quant.kernels import codes as kernels

__all__ = ["Same", "compared", "require_exact", "zeros_of"]

_EXACT_BITS = np.uint32(0xFF)
"""Of a float32, those that are 0 in a number of 16 significant bits."""
_HALF = np.dtype(np.float16)
_NONE = np.empty(0, np.int32)

Floats = NDArray[np.float32]
Same = Callable[[int, int], bool]


def compared(one: Coded | Tensor, other: Coded | Tensor) -> Same | None:
    """What says of rows start..stop whether both have the same integers, scales and sums; None where nothing does.

    It may raise `Unsupported`, and, as a False, that says nothing of the weights.
    """
    words = [settled(given) if isinstance(given, Coded) else given for given in (one, other)]
    coded = [given for given in words if isinstance(given, Coded) and _in_blocks(given)]
    blocks = [given for given in words if isinstance(given, Tensor) and given.type.name in BLOCKS]
    if len(coded) == 2 and all(given.words is not None for given in coded):
        return _words_with_words(*coded)
    if len(coded) == len(blocks) == 1:
        return _blocks_with_codes(blocks[0], coded[0])
    return None


def _in_blocks(coded: Coded) -> bool:
    """Whether a layer's codes are integers under numbers that whole blocks share."""
    shared = [numbers for numbers in (coded.scale, coded.zero, coded.bias) if not isinstance(numbers, int | None)]
    k = coded.shape[-1]
    whole = all(isinstance(n, Grid) and n.span(k) and n.span(k) % 32 == 0 for n in shared)
    return bool(shared) and whole and coded.table is None and coded.after is None


def _blocks_with_codes(tensor: Tensor, coded: Coded) -> Same | None:
    k, (width, middle) = coded.shape[-1], BLOCKS[tensor.type.name]
    bias, words = coded.bias, coded.words
    if tensor.shape != coded.shape or (middle is None and bias is None) or (bias is not None and coded.low):
        return None
    groups = most_groups(coded) if words is not None else k // 32
    least = np.float32(coded.low if words is not None else 0)

    def shared(start: int, stop: int) -> tuple[NDArray[np.int32], ...]:
        """The bits of scales, and zero points as words have them, or the bits of sums."""
        d = coded.by_group(start, stop)
        beside = None if middle is not None or bias is None else bias.by_group(start, stop)
        if not are_said(d, _HALF) or not (beside is None or are_said(beside, _HALF)):
            raise Unsupported("scales or sums that float16 can't say")
        if beside is not None:
            return bits_of(d, groups), bits_of(beside, groups)
        return bits_of(d, groups), spread(_points(coded, d, start, stop) - least, groups)

    numbers = in_chunks(shared, coded.shape)

    def same(start: int, stop: int) -> bool:
        scales, beside = numbers(start, stop)
        zeros, sums = (_NONE, beside) if middle is None else (beside, _NONE)
        raw, found = np.ascontiguousarray(tensor.blocks(start, stop)).reshape(-1), np.zeros(1, np.uint8)
        if words is not None:
            given = words(start, stop).reshape(-1)
            kernels.blocks_differ(raw, width, given, k // groups, zeros, scales, sums, found)
        else:
            codes = np.ascontiguousarray(coded.codes(start, stop))
            flip, bytes_ = 128 if codes.dtype == np.int8 else 0, codes.view(np.uint8).reshape(-1)
            kernels.blocks_differ_from_codes(raw, width, bytes_, flip, zeros, scales, sums, found)
        return not found[0]

    return same


def _words_with_words(one: Coded, other: Coded) -> Same | None:
    groups = max(most_groups(one), most_groups(other))
    if one.shape != other.shape or any(groups % most_groups(c) or (c.bias is not None and c.low) for c in (one, other)):
        return None
    summed = one.bias is not None and other.bias is not None

    def numbers(coded: Coded) -> Callable[[int, int], tuple[Floats, ...]]:
        """Scales; and sums, or zero points as words have them."""

        def shared(start: int, stop: int) -> tuple[Floats, ...]:
            d = coded.by_group(start, stop)
            if summed and coded.bias is not None:
                beside = coded.bias.by_group(start, stop)
            else:
                beside = _points(coded, d, start, stop) - np.float32(coded.low)
            return _in_groups(d, groups), _in_groups(beside, groups)

        return in_chunks(shared, coded.shape)

    ours, theirs, words, others = numbers(one), numbers(other), one.words, other.words
    assert words is not None and others is not None

    def same(start: int, stop: int) -> bool:
        found = np.zeros(1, np.uint8)
        if not all((a == b).all() for a, b in zip(ours(start, stop), theirs(start, stop), strict=True)):
            return False
        kernels.differ(words(start, stop).reshape(-1), others(start, stop).reshape(-1), found)
        return not found[0]

    return same


def _in_groups(numbers: Floats, groups: int) -> Floats:
    """(rows, 1), or fewer groups, or as many -> flat, one for each group."""
    return np.repeat(numbers, groups // numbers.shape[1], axis=1).reshape(-1)


def _points(coded: Coded, d: Floats, start: int, stop: int) -> Floats:
    """The zero points of rows start..stop: (rows, 1) or (rows, groups) whole numbers."""
    if coded.bias is not None:
        return zeros_of(d, coded.bias.by_group(start, stop))
    if isinstance(coded.zero, int):
        return np.full((stop - start, 1), coded.zero, np.float32)
    z = coded.zero.by_group(start, stop)
    if (np.rint(z) != z).any() or np.abs(z).max(initial=0) > 1 << 15:
        raise Unsupported("zero points that are no integers")
    return z


def zeros_of(d: Floats, m: Floats) -> Floats:
    """The zero points that say what sums say; see `by_codes` for why.   Raises `Unsupported` where none do."""
    with np.errstate(all="ignore"):
        z: Floats = np.nan_to_num(np.rint(-m / d), posinf=1e9, neginf=1e9)
    require_exact(d, float(z.min(initial=0)), float(z.max(initial=0)))
    if (z * d != -m).any():
        raise Unsupported("sums that are no whole scales")
    return z


def require_exact(d: Floats, *zeros: float) -> None:
    """Raises `Unsupported` where products of codes or zero points with a scale could be rounded."""
    if max(map(abs, zeros)) > 255 or (np.ascontiguousarray(d).view(np.uint32) & _EXACT_BITS).any():
        raise Unsupported("products that may be rounded")
