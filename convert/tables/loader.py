"""`Loader`: where llama.cpp's loader computes less than a GGUF of a family says, as its sources have it.

A file may say things for which llama.cpp has no code: its loader leaves a key unread, fixes a value, or refuses a
tensor that it has no place for.  What is listed here becomes a note when such a model is converted
(`convert.dialects.beyond`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from llmconv.convert.tables.pieces import Pieces

__all__ = ["NOBODY_READS", "Loader"]

NOBODY_READS = (
    "hidden_activation",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_truncate",
    "rope.layers",
    "residual_after_norm",
    "moe_layers",
)
"""Keys that no loader of the families here reads."""


@dataclass(frozen=True)
class Loader:
    """What llama.cpp does with a family's GGUF.

    exists: False: it has no such architecture at all.
    unread: keys, without the architecture's name, that it does not look at.
    windows_at: the only number of layers at which it has windows; 0: any.
    refused: tensors that it has no place for; a file with one is not loaded.
    pieces: what it computes where that is not what the table's `decoder` says.
    """

    exists: bool = True
    unread: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    windows_at: int | None = None
    pieces: Pieces = field(default_factory=Pieces)

    def more(self, other: Loader) -> Loader:
        """Both together."""
        return dataclasses.replace(
            self,
            exists=self.exists and other.exists,
            unread=(*self.unread, *other.unread),
            refused=(*self.refused, *other.refused),
            windows_at=self.windows_at if other.windows_at is None else other.windows_at,
            pieces={**self.pieces, **other.pieces},
        )


MLP_BIASES = ("blk.{i}.ffn_gate.bias", "blk.{i}.ffn_up.bias", "blk.{i}.ffn_down.bias")
OUT_BIAS = ("blk.{i}.attn_output.bias",)
