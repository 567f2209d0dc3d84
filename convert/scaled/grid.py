"""Scales and zero points: which weights share one, and the floats that stored numbers stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.coded import Numbers
from llmconv.errors import BadFile, cut, shown
from llmconv.formats.tensor import Tensor

if TYPE_CHECKING:
    from llmconv.convert.scaled.scheme import Settings

__all__ = ["Grid", "fitted"]

_BLOCK = (128, 128)
"""What shares a scale where scales are by block and nobody says of which size (DeepSeek-V3)."""


@dataclass(frozen=True)
class Grid(Numbers):
    """Numbers that rectangles of a weight's matrices share.

    values: (matrices * down, across).   n, k: rows and columns of a matrix of weights.
    rows, columns: of weights that share a number.   stacked: whether each matrix has numbers of its own.
    order: the column of `values` for each column of weights, where they do not follow each other.
    """

    values: Tensor
    n: int
    k: int
    rows: int
    columns: int
    stacked: bool = True
    order: NDArray[np.intp] | None = None

    def for_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """The number for each weight of rows start..stop: (rows, k), or (rows, 1) where a row has but one."""
        own = self.by_group(start, stop)
        if self.order is not None:
            return own[:, self.order]
        return own if own.shape[1] == 1 else np.repeat(own, self.columns, axis=1)[:, : self.k]

    def span(self, k: int) -> int:
        across = self.values.row_len
        if self.order is not None or (across > 1 and across * self.columns != k):
            return 0
        return k if across == 1 else self.columns

    def by_group(self, start: int, stop: int) -> NDArray[np.float32]:
        """The numbers of rows start..stop, one a group: (rows, across)."""
        matrix, row = np.divmod(np.arange(start, stop), self.n)
        place = row // self.rows + (matrix * -(-self.n // self.rows) if self.stacked else 0)
        if not place.size:
            return np.empty((0, self.values.row_len), np.float32)
        low = int(place.min())
        own: NDArray[np.float32] = self.values.rows(low, int(place.max()) + 1).astype(np.float32)
        if not np.isfinite(own).all():
            odd = own[~np.isfinite(own)][0]
            raise BadFile(f"tensor {cut(self.values.name)} has {odd} for a scale, expected a number; fetch it again")
        found: NDArray[np.float32] = own[place - low]
        return found


def fitted(weight: str, shape: tuple[int, ...], numbers: Tensor, settings: Settings) -> Grid:
    """How `numbers` (scales or zero points) lie over a weight of that shape; `BadFile` when they don't.

    One for all; one a matrix of a stack; one a row, (n, 1) or (n,) or (1, n); one a column, (1, k); one for each block
    of `weight_block_size`; one for each group of columns of a row.
    """
    *lead, n, k = shape if len(shape) > 1 else (1, *shape)
    matrices, found = math.prod(lead), numbers.shape
    ways = {  # shape of the numbers -> rows and columns that share one, whether matrices differ
        (*lead, n, 1): (1, k, True),
        (*lead, n): (1, k, True),
        (*lead, 1, 1): (n, k, True),
        (*lead, 1): (n, k, True),
        tuple(lead): (n, k, True),
        (1,) * len(found): (n, k, False),
    }
    stated = settings.block()
    if stated or found not in ways:
        rows, columns = stated or _BLOCK
        ways.setdefault((*lead, -(-n // rows), -(-k // columns)), (min(rows, n), min(columns, k), True))
    columns = _group(found, n, k, settings) if found[:-1] == (*lead, n) else 0
    if columns:
        ways.setdefault((*lead, n, found[-1]), (1, columns, True))
    if found not in ways and found[:-1] == (*lead, 1):
        ways |= _lines(found, n, k)
    if found not in ways:
        raise BadFile(
            f"{settings.where}: tensor {cut(numbers.name)} of shape {shown(found)} does not scale {cut(weight)} of "
            f"shape {shown(shape)}; expected one scale, one a row, or one for each block of {stated or _BLOCK}"
        )
    rows, columns, stacked = ways[found]
    down, across = -(-n // rows), -(-k // columns)
    return Grid(numbers.reshaped(((matrices if stacked else 1) * down, across)), n, k, rows, columns, stacked)


def _group(found: tuple[int, ...], n: int, k: int, settings: Settings) -> int:
    """Columns that share a number where a row has several; 0 when that can't be."""
    across, stated = found[-1], settings.group()
    if across < 2:
        return 0
    if stated is not None:
        return stated if -(-k // stated) == across else 0
    return 0 if k % across else k // across


def _lines(found: tuple[int, ...], n: int, k: int) -> dict[tuple[int, ...], tuple[int, int, bool]]:
    """(1, n) and (1, k): one a row, laid flat, or one a column; nobody can tell when a matrix is square."""
    if n == k:
        return {}
    return {found: (1, k, True)} if found[-1] == n else {found: (n, 1, True)} if found[-1] == k else {}
