"""Rows of weights laid sixteen abreast: what one input is multiplied with.

Of sixteen rows each field of a block stands sixteen times, row after row: what is w bytes at byte o of a block is 16 w
bytes at byte 16 o of sixteen of them.  So a vector holds the same four weights' bytes, or the scale, of each row: a
lane is a row, sums need not cross lanes, an input's number meets sixteen weights at once, and memory is read in one
stream.  Of rows as they lie each vector would need its scale by itself and two or three shuffles.  Rows are filled up
with zeros to a multiple of sixteen.
"""

from llmconv.quant.kernels.compiling.build import inner
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import get_u16
from llmconv.quant.kernels.vectors.memory import store_u16, store_word
from llmconv.quant.kernels.vectors.sums import load_word


@inner
def _field(source, target, abreast, alone, row_bytes, lanes, width, back):
    """One field of a block, of `width` bytes, of so many rows."""
    for lane in range(lanes):
        start, to = alone + lane * row_bytes, abreast + lane * width
        if back:
            start, to = to, start
        if width == 4:
            store_word(target, to, load_word(source, start))
        elif width == 2:
            store_u16(target, to, get_u16(source, start))
        else:
            target[to] = source[start]


@inner
def lay_rows(source, target, rows, row_bytes, size, narrow, leading, trailing, back):
    """Rows of blocks of `size` bytes abreast, or back.

    narrow: how wide the fields in the first `leading` bytes of a block are.   trailing: bytes at its end in fields of
    two.   All others are taken as four bytes wide.
    """
    for row in range(0, rows, LANES):
        lanes = min(LANES, rows - row)
        for block in range(row * row_bytes, (row + 1) * row_bytes, size):
            byte = 0
            while byte < size:
                width = narrow if byte < leading else 4 if byte < size - trailing else 2
                abreast = row * row_bytes + LANES * (block - row * row_bytes + byte)
                _field(source, target, abreast, block + byte, row_bytes, lanes, width, back)
                byte += width
