"""Experts of GGUFs of before April 2024, each in a tensor of its own, as later files have them: stacked."""

from __future__ import annotations

import re

from llmconv.errors import MissingTensor, Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.moving.rows import join
from llmconv.formats.tensor import Tensor

__all__ = ["stacked"]

_EXPERT = re.compile(r"(blk\.\d{1,5}\.ffn_(?:gate|up|down))\.(\d{1,4})\.weight")


def stacked(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with one tensor (experts, rows, columns) for those of a layer; itself where there are none."""
    found: dict[str, dict[int, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        if match := _EXPERT.fullmatch(name):
            found.setdefault(f"{match[1]}_exps.weight", {})[int(match[2])] = tensor
    if not found:
        return checkpoint
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        match = _EXPERT.fullmatch(name)
        to = f"{match[1]}_exps.weight" if match else name
        if to not in tensors:
            tensors[to] = _stack(to, found[to], checkpoint.where) if match else tensor
    note = "its experts lay each in a tensor of its own, as in old files; they are stacked"
    return checkpoint.but(note, tensors=tensors)


def _stack(name: str, experts: dict[int, Tensor], where: str) -> Tensor:
    missing = next((i for i in range(len(experts)) if i not in experts), None)
    if missing is not None:
        one = name.replace("_exps.weight", f".{missing}.weight")
        raise MissingTensor(where, one, "the layer has others; fetch the file again")
    parts = [experts[i] for i in range(len(experts))]
    first = parts[0]
    if any(part.shape != first.shape or part.type is not first.type for part in parts):
        raise Unsupported(f"{where}: experts of {name!r} differ in shape or type; convert the original model again")
    return join(parts, (len(parts), *first.shape)).renamed(name)
