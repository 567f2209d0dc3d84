"""One layer's scan: its tokens moved together where there is padding, its state taken from the cache and kept there."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from llmconv.runtime.cache import Step
from llmconv.runtime.pieces import LayerPieces
from llmconv.runtime.scans.delta import delta, kimi_delta
from llmconv.runtime.scans.lightning import lightning
from llmconv.runtime.scans.mamba import mamba
from llmconv.runtime.scans.mamba2 import mamba2
from llmconv.runtime.scans.past import Past, packed
from llmconv.runtime.scans.plamo2 import plamo2
from llmconv.runtime.scans.rwkv6 import rwkv6
from llmconv.runtime.scans.rwkv7 import rwkv7

__all__ = ["scan"]

_KINDS: dict[str, Callable[[LayerPieces, Tensor, Past], Tensor]] = {
    "mamba": mamba,
    "mamba2": mamba2,
    "plamo2": plamo2,
    "delta": delta,
    "kda": kimi_delta,
    "rwkv6": rwkv6,
    "rwkv7": rwkv7,
    "lightning": lightning,
}


def scan(block: LayerPieces, x: Tensor, step: Step) -> Tensor:
    """x: (B, T, dim), normed -> (B, T, dim)."""
    spec = block.spec.scan
    assert spec is not None
    past, mix = Past(block.index, step), _KINDS[spec.kind]
    return packed(x, step, lambda together: mix(block, together, past))
