"""What a weight is multiplied with, one token at a time: the kernel for its rows, and the form of their input."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from llmconv.quant import integer_products
from llmconv.quant.kernels import one_token
from llmconv.runtime.linear import Stored

__all__ = ["TABLE", "Kind", "code", "kind_of"]

TABLE = np.dtype(np.int64)
"""Of tables of instructions."""


class Kind(NamedTuple):
    """product: the name of the kernel for rows of the weight.   form: of the one that makes an input ready (None: it is
    taken as it is)."""

    product: str
    form: str | None


_NUMBERS = {
    torch.float32: Kind("floats_f32", None),
    torch.bfloat16: Kind("floats_bf16", "round_brains"),
    torch.float16: Kind("floats_f16", "round_halves"),
}


def kind_of(module: Stored) -> Kind | None:
    """How a stored weight is multiplied with one input; None for types that have no such kernel."""
    type_ = module.block_type
    if type_ is None:
        return _NUMBERS.get(module.weight.dtype)
    if type_.name not in integer_products.TYPES:
        return None
    if module.activations == "int8":
        return Kind(f"bytes_{type_.name.lower()}", f"round_bytes_{type_.block_size}")
    return Kind(f"floats_{type_.name.lower()}", "round_floats")


def code(kernel: str) -> int:
    """The address of a kernel of `one_token`."""
    found: int = getattr(one_token, kernel).address(TABLE)
    return found
