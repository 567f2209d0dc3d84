"""A document piece by piece, so that nothing as large as a tensor is ever held: its numbers, its bytes compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.formats.files import open_regular
from llmconv.formats.tensor import Tensor
from llmconv.progress import Meter

__all__ = ["numbers_of", "same_bytes"]

_PIECE = 1 << 16
_SLAB_BYTES = 1 << 20


def numbers_of(
    tensor: Tensor, shape: tuple[int, ...], dtype: type[np.floating[Any]], meter: Meter | None
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The values of a tensor that stands in a document as `shape`, in order: (where they begin, those values).

    No piece crosses the end of a row; a row of more than 65,536 is cut.
    """
    row_len = shape[-1]
    for start, stop in tensor.slabs(_SLAB_BYTES):
        values = tensor.rows(start, stop).astype(dtype).reshape(-1)
        first, at = start * tensor.row_len, 0
        while at < values.size:
            end = min(values.size, at + _PIECE, at + row_len - (first + at) % row_len)
            yield first + at, values[at:end]
            at = end
        if meter is not None:
            meter((stop - start) * tensor.row_bytes, tensor.name)


class _Enough(Exception):
    """Ends a comparison."""


def same_bytes(path: Path, render: Callable[[Callable[[bytes], Any]], Any], first: int | None) -> bool:
    """Whether `render` gives the bytes of a file (its `first` bytes, None: all), which is read again."""
    done = 0
    with open_regular(path) as file:

        def compare(piece: bytes) -> None:
            nonlocal done
            wanted = piece if first is None else piece[: first - done]
            if file.read(len(wanted)) != wanted:
                raise _Enough
            done += len(piece)
            if first is not None and done >= first:
                raise _Enough

        try:
            render(compare)
        except _Enough:
            return first is not None and done >= first
        return not file.read(1)
