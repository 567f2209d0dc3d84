"""The grids of the legacy and the K types, and the table of all.  Layouts: ggml's `ggml-common.h`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.blocks.iq4 import IQ4_NL, IQ4_XS
from llmconv.quant.blocks.k import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from llmconv.quant.blocks.q32 import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from llmconv.quant.kernels.terms.levels import IQ4
from llmconv.quant.rounding.bits import as_float, gathered, spread
from llmconv.quant.rounding.codebooks import CODEBOOKS
from llmconv.quant.rounding.grid import Fields, Grid
from llmconv.quant.rounding.low import LOW

__all__ = ["GRIDS"]

Blocks = NDArray[np.void]
Whole = NDArray[Any]


def _range(low: int, high: int) -> NDArray[np.float32]:
    return np.arange(low, high + 1, dtype=np.float32)


# Blocks of 32: nibbles, a fifth bit, a scale, perhaps a minimum.


def _small(width: int, affine: bool) -> tuple[Callable[[Blocks], Fields], Callable[[Fields, Blocks], None]]:
    def read(blocks: Blocks) -> Fields:
        code = spread(blocks["qs"], 4, 16).astype(np.int32)
        if width == 5:
            code |= np.unpackbits(blocks["qh"], axis=1, bitorder="little").astype(np.int32) << 4
        return Fields(code, as_float(blocks["d"]), minimum=-as_float(blocks["m"]) if affine else None)

    def write(fields: Fields, out: Blocks) -> None:
        out["d"], out["qs"] = fields.scale, gathered(fields.code & 15, 4, 16)
        if affine and fields.minimum is not None:
            out["m"] = -fields.minimum
        if width == 5:
            out["qh"] = np.packbits((fields.code >> 4).astype(np.uint8), axis=1, bitorder="little")

    return read, write


def _read_q8(blocks: Blocks) -> Fields:
    return Fields(blocks["qs"].astype(np.int32) + 128, as_float(blocks["d"]))


def _write_q8(fields: Fields, out: Blocks) -> None:
    out["d"], out["qs"] = fields.scale, (fields.code - 128).astype(np.int8)


def _read_iq4_nl(blocks: Blocks) -> Fields:
    return Fields(spread(blocks["qs"], 4, 16), as_float(blocks["d"]))


def _write_iq4_nl(fields: Fields, out: Blocks) -> None:
    out["d"], out["qs"] = fields.scale, gathered(fields.code, 4, 16)


# Super-blocks of 256.


def _read_q2(blocks: Blocks) -> Fields:
    both = blocks["scales"].astype(np.int32)
    return Fields(spread(blocks["qs"], 2, 32), as_float(blocks["d"]), both & 15, as_float(blocks["dmin"]), both >> 4)


def _write_q2(fields: Fields, out: Blocks) -> None:
    assert fields.factor is not None and fields.shift is not None
    out["d"], out["dmin"], out["qs"] = fields.scale, fields.minimum, gathered(fields.code, 2, 32)
    out["scales"] = fields.factor | (fields.shift << 4)


def _read_q3(blocks: Blocks) -> Fields:
    high = spread(blocks["hmask"], 1, 32).astype(np.int32)
    packed = blocks["scales"].astype(np.int32)
    low = np.concatenate((packed[:, :8] & 15, packed[:, :8] >> 4), 1)
    top = ((packed[:, None, 8:] >> np.array([0, 2, 4, 6]).reshape(1, 4, 1)) & 3).reshape(len(blocks), 16)
    factor = (low | (top << 4)) - 32
    return Fields(spread(blocks["qs"], 2, 32) + 4 * high, as_float(blocks["d"]), factor)


def _write_q3(fields: Fields, out: Blocks) -> None:
    assert fields.factor is not None
    out["d"], out["qs"] = fields.scale, gathered(fields.code & 3, 2, 32)
    out["hmask"] = gathered(fields.code >> 2, 1, 32)
    six = (fields.factor + 32).astype(np.uint8)
    top = (six >> 4).reshape(len(out), 4, 4)
    out["scales"][:, :8] = (six[:, :8] & 15) | ((six[:, 8:] & 15) << 4)
    out["scales"][:, 8:] = top[:, 0] | (top[:, 1] << 2) | (top[:, 2] << 4) | (top[:, 3] << 6)


def _read_six_bits(packed: Whole) -> tuple[Whole, Whole]:
    """Factors and shifts (n, 8) of Q4_K and Q5_K's twelve bytes."""
    p = packed.astype(np.int32)
    factor = np.concatenate((p[:, :4] & 63, (p[:, 8:] & 15) | ((p[:, :4] >> 6) << 4)), 1)
    shift = np.concatenate((p[:, 4:8] & 63, (p[:, 8:] >> 4) | ((p[:, 4:8] >> 6) << 4)), 1)
    return factor, shift


def _six_bits(factor: Whole, shift: Whole) -> Whole:
    f, s = factor.astype(np.uint8), shift.astype(np.uint8)
    parts = (f[:, :4] | ((f[:, 4:] >> 4) << 6), s[:, :4] | ((s[:, 4:] >> 4) << 6))
    return np.concatenate((*parts, (f[:, 4:] & 15) | ((s[:, 4:] & 15) << 4)), 1)


def _k45(width: int) -> tuple[Callable[[Blocks], Fields], Callable[[Fields, Blocks], None]]:
    def read(blocks: Blocks) -> Fields:
        code = spread(blocks["qs"], 4, 32).astype(np.int32)
        if width == 5:
            code += spread(blocks["qh"], 1, 32).astype(np.int32) << 4
        factor, shift = _read_six_bits(blocks["scales"])
        return Fields(code, as_float(blocks["d"]), factor, as_float(blocks["dmin"]), shift)

    def write(fields: Fields, out: Blocks) -> None:
        assert fields.factor is not None and fields.shift is not None
        out["d"], out["dmin"] = fields.scale, fields.minimum
        out["scales"], out["qs"] = _six_bits(fields.factor, fields.shift), gathered(fields.code & 15, 4, 32)
        if width == 5:
            out["qh"] = gathered(fields.code >> 4, 1, 32)

    return read, write


def _read_q6(blocks: Blocks) -> Fields:
    low = spread(blocks["ql"], 4, 64).astype(np.int32)
    high = spread(blocks["qh"], 2, 32).astype(np.int32)
    return Fields(low | (high << 4), as_float(blocks["d"]), blocks["scales"])


def _write_q6(fields: Fields, out: Blocks) -> None:
    out["d"], out["scales"] = fields.scale, fields.factor
    out["ql"], out["qh"] = gathered(fields.code & 15, 4, 64), gathered(fields.code >> 4, 2, 32)


def _read_iq4_xs(blocks: Blocks) -> Fields:
    n = len(blocks)
    low = np.stack((blocks["scales_l"] & 15, blocks["scales_l"] >> 4), -1).reshape(n, 8).astype(np.int32)
    high = (blocks["scales_h"][:, None].astype(np.int32) >> (2 * np.arange(8))) & 3
    return Fields(spread(blocks["qs"].reshape(n, -1), 4, 16), as_float(blocks["d"]), (low | (high << 4)) - 32)


def _write_iq4_xs(fields: Fields, out: Blocks) -> None:
    assert fields.factor is not None
    six = fields.factor + 32
    out["d"], out["qs"] = fields.scale, gathered(fields.code, 4, 16).reshape(-1, 8, 16)
    out["scales_l"] = ((six[:, 0::2] & 15) | ((six[:, 1::2] & 15) << 4)).astype(np.uint8)
    out["scales_h"] = ((six >> 4) << (2 * np.arange(8))).sum(1).astype(np.uint16)


_NONE, _ALONE, _ONE = (0, 0), (1, 1), (1, 1)

GRIDS = {
    grid.type.name: grid
    for grid in (
        Grid(Q4_0, 32, 32, _range(-8, 7), _ONE, _NONE, *_small(4, False)),
        Grid(Q4_1, 32, 32, _range(0, 15), _ONE, _ALONE, *_small(4, True)),
        Grid(Q5_0, 32, 32, _range(-16, 15), _ONE, _NONE, *_small(5, False)),
        Grid(Q5_1, 32, 32, _range(0, 31), _ONE, _ALONE, *_small(5, True)),
        Grid(Q8_0, 32, 32, _range(-128, 127), _ONE, _NONE, _read_q8, _write_q8),
        Grid(Q2_K, 16, 256, _range(0, 3), (0, 15), (0, 15), _read_q2, _write_q2),
        Grid(Q3_K, 16, 256, _range(-4, 3), (-32, 31), _NONE, _read_q3, _write_q3),
        Grid(Q4_K, 32, 256, _range(0, 15), (0, 63), (0, 63), *_k45(4)),
        Grid(Q5_K, 32, 256, _range(0, 31), (0, 63), (0, 63), *_k45(5)),
        Grid(Q6_K, 16, 256, _range(-32, 31), (-128, 127), _NONE, _read_q6, _write_q6),
        Grid(IQ4_NL, 32, 32, IQ4, _ONE, _NONE, _read_iq4_nl, _write_iq4_nl),
        Grid(IQ4_XS, 32, 256, IQ4, (-32, 31), _NONE, _read_iq4_xs, _write_iq4_xs),
        *LOW,
        *CODEBOOKS,
    )
}
"""By the type's name."""
