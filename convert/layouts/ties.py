"""A head that is the embedding: one matrix, at two places of a document or under two names in a checkpoint.

PyTorch's checkpoints have both names over one storage, JSON the same numbers twice.  A GGUF has the matrix once; a
document that is made of it has it at both places again, since both refer to one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmconv.formats.tensor import Tensor

__all__ = ["tied_head"]


def tied_head(names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str | None:
    """The path of a head that is the embedding: the same place of the file, or the same bytes at another.

    names: GGUF's name -> path.   A head that stands the other way round is no tie: its document has other bytes.
    """
    embedding, head = names.get("token_embd.weight"), names.get("output.weight")
    if embedding is None or head is None or "output.bias" in names:
        return None
    return head if _same(tensors[embedding], tensors[head]) else None


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.type is not b.type:
        return False
    if a.extent is not None and a.extent == b.extent:
        return True
    return all(np.array_equal(a.blocks(*part), b.blocks(*part)) for part in a.slabs())
