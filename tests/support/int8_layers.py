"""INT8 layers as files hold them, and what their numbers stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.quant import int8


def decode(q: NDArray[np.int8], scale: NDArray[Any]) -> NDArray[np.float32]:
    return q.astype(np.float32) * scale.astype(np.float32)


def layer_tensors(name: str, rows: NDArray[Any], layout: str) -> dict[str, NDArray[Any]]:
    """One linear layer's tensors by their names in the file; `name` is the module's, without `.weight`."""
    q, scale = int8.encode(rows)
    if layout == "int-quantized":
        return {f"{name}.weight": q, f"{name}.weight_scale": scale}
    shape = np.array(rows.shape, np.int64)
    return {f"{name}.weight_packed": int8.pack(q), f"{name}.weight_scale": scale, f"{name}.weight_shape": shape}
