"""Operations between the tensors of a Hugging Face model and those of a GGUF: each has `apply` and an exact `undo`.

An op takes and gives tuples of lazy tensors, so that one op may split, join or stack.  Most move whole rows, and a row
is a row whatever its block type, so they work on quantized tensors too; `Transpose` and `Shift` need plain values
and say so.  Sizes are expressions over the model's dimensions ("n_head * head_dim"), evaluated when the op is applied.
"""

from __future__ import annotations

from llmconv.convert.tables.ops.base import Dims, Op, Parts, Size, evaluate
from llmconv.convert.tables.ops.folds import BatchNorm, Beginnings, Slabs, ThroughMlp
from llmconv.convert.tables.ops.joins import Chunks, Concat, Inverse, Only, Split, Stack, Twice
from llmconv.convert.tables.ops.numbers import (
    Backwards,
    Exp,
    Narrowed,
    NegativeExp,
    Offsets,
    PackMxfp4,
    Product,
    Rounds,
    Shift,
    Softplus,
)
from llmconv.convert.tables.ops.rows import ByAxis, Exchanged, PartHalves, SwapColumns, SwapRows, Unpaired, rope_halves
from llmconv.convert.tables.ops.shapes import Led, Padded, Reshape, Tail, Transpose

__all__ = [
    "Backwards",
    "Beginnings",
    "BatchNorm",
    "ByAxis",
    "Chunks",
    "Concat",
    "Dims",
    "Exchanged",
    "Exp",
    "Inverse",
    "Led",
    "Narrowed",
    "NegativeExp",
    "Offsets",
    "Only",
    "Op",
    "PackMxfp4",
    "Padded",
    "PartHalves",
    "Parts",
    "Product",
    "Reshape",
    "Rounds",
    "Shift",
    "Size",
    "Slabs",
    "Softplus",
    "Split",
    "Stack",
    "SwapColumns",
    "SwapRows",
    "Tail",
    "ThroughMlp",
    "Transpose",
    "Twice",
    "Unpaired",
    "evaluate",
    "rope_halves",
]
