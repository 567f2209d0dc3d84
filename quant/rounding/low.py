"""The grids of the microscaling types and of one and two bits a weight.  Layouts: ggml's `ggml-common.h`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.blocks.low import Q1_0, Q2_0
from llmconv.quant.blocks.microscaling import MXFP4, NVFP4
from llmconv.quant.blocks.ternary import TQ1_0, TQ2_0
from llmconv.quant.kernels.terms import rules
from llmconv.quant.kernels.terms.levels import E2M1
from llmconv.quant.rounding.bits import as_float, gathered, spread
from llmconv.quant.rounding.grid import Fields, Grid

__all__ = ["E4M3", "LOW"]

Blocks = NDArray[np.void]

_NIBBLES = np.lexsort((np.arange(16), E2M1))  # by value; of the two zeros the positive one first
_PLACES = np.argsort(_NIBBLES)
_TERNARY = np.array([-1, 0, 1], np.float32)


def _e4m3() -> NDArray[np.float32]:
    """Unsigned E4M3 by its byte, halved; what is no number is 0, as ggml decodes it."""
    byte = np.arange(128)
    exponent, mantissa = byte >> 3, byte & 7
    found = np.where(exponent > 0, np.ldexp(1 + mantissa / 8, exponent - 7), np.ldexp(mantissa / 8, -6)) / 2
    found[127] = 0
    return np.tile(found.astype(np.float32), 2)


_E4M3 = _e4m3()
E4M3 = _E4M3[1:127]
"""The scales of NVFP4, ascending, without 0."""


def _read_mxfp4(blocks: Blocks) -> Fields:
    scale = np.ldexp(np.float32(1), blocks["e"].astype(np.int32) - 128)
    return Fields(_PLACES[spread(blocks["qs"], 4, 16)], as_float(scale))


def _write_mxfp4(fields: Fields, out: Blocks) -> None:
    out["e"] = np.frexp(fields.scale)[1] + 127
    out["qs"] = gathered(_NIBBLES[fields.code], 4, 16)


def _read_nvfp4(blocks: Blocks) -> Fields:
    return Fields(_PLACES[spread(blocks["qs"].reshape(len(blocks), -1), 4, 8)], _E4M3[blocks["d"]])


def _write_nvfp4(fields: Fields, out: Blocks) -> None:
    out["d"] = np.searchsorted(_E4M3[:127], fields.scale)
    out["qs"] = gathered(_NIBBLES[fields.code], 4, 8).reshape(-1, 4, 8)


def _read_tq1(blocks: Blocks) -> Fields:
    """Digit n of a byte's base-3 number is n times shifted past it, and what comes out on top."""
    parts = []
    for packed, digits, run in ((blocks["qs"][:, :32], 5, 32), (blocks["qs"][:, 32:], 5, 16), (blocks["qh"], 4, 4)):
        powers = 3 ** np.arange(digits)
        shifted = (packed[:, None, :].astype(np.int32) * powers[None, :, None]) & 255
        parts.append(((shifted * 3) >> 8).reshape(-1, digits * run))
    return Fields(np.concatenate(parts, 1), as_float(blocks["d"]))


def _write_tq1(fields: Fields, out: Blocks) -> None:
    code = fields.code.astype(np.int32)
    powers = 3 ** np.arange(4, -1, -1)

    def packed(part: Any, digits: int, run: int) -> Any:
        number = (part.reshape(-1, digits, run) * powers[None, :digits, None]).sum(1)
        return -(-number * 256 // 243)

    out["qs"] = np.concatenate((packed(code[:, :160], 5, 32), packed(code[:, 160:240], 5, 16)), 1)
    out["qh"], out["d"] = packed(code[:, 240:], 4, 4), fields.scale


def _read_tq2(blocks: Blocks) -> Fields:
    return Fields(spread(blocks["qs"], 2, 32), as_float(blocks["d"]))


def _write_tq2(fields: Fields, out: Blocks) -> None:
    out["qs"], out["d"] = gathered(fields.code, 2, 32), fields.scale


def _read_q1(blocks: Blocks) -> Fields:
    return Fields(np.unpackbits(blocks["qs"], axis=1, bitorder="little"), as_float(blocks["d"]))


def _write_q1(fields: Fields, out: Blocks) -> None:
    out["qs"], out["d"] = np.packbits(fields.code.astype(np.uint8), axis=1, bitorder="little"), fields.scale


def _read_q2(blocks: Blocks) -> Fields:
    return Fields(spread(blocks["qs"], 2, 1), as_float(blocks["d"]))


def _write_q2(fields: Fields, out: Blocks) -> None:
    out["qs"], out["d"] = gathered(fields.code, 2, 1), fields.scale


_NONE, _ONE = (0, 0), (1, 1)

LOW = (
    Grid(MXFP4, 32, 32, E2M1[_NIBBLES], _ONE, _NONE, _read_mxfp4, _write_mxfp4, rule=rules.E8M0),
    Grid(NVFP4, 16, 16, E2M1[_NIBBLES], _ONE, _NONE, _read_nvfp4, _write_nvfp4, rule=rules.E4M3),
    Grid(TQ1_0, 256, 256, _TERNARY, _ONE, _NONE, _read_tq1, _write_tq1),
    Grid(TQ2_0, 256, 256, _TERNARY, _ONE, _NONE, _read_tq2, _write_tq2),
    Grid(Q1_0, 128, 128, _TERNARY[[0, 2]], _ONE, _NONE, _read_q1, _write_q1),
    Grid(Q2_0, 64, 64, np.arange(-1, 3, dtype=np.float32), _ONE, _NONE, _read_q2, _write_q2),
)
