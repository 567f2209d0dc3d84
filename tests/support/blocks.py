"""Random rows as blocks of the types that models keep on a device, and the values in them."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmconv.quant.block import by_name

KEPT = ("Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "MXFP4")


def blocks_of(name: str, rows: int = 5, blocks: int = 6) -> tuple[Any, Any]:
    """Rows of random weights with a scale per row, encoded; and their decoded values."""
    kind = by_name(name)
    rng = np.random.default_rng(len(name))
    width = max(kind.block_size, 256) * blocks
    values = rng.standard_normal((rows, width), np.float32) * rng.lognormal(0, 3, (rows, 1)).astype(np.float32)
    encoded = kind.encode(values)
    return encoded, kind.decode(encoded)
