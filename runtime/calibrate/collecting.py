"""Sums of squared inputs, collected while texts are run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor as Stored
from llmconv.quant.importance.sums import Sums, sums_of_tensors
from llmconv.runtime.calibrate.watching import matrices
from llmconv.runtime.checks import not_finite
from llmconv.runtime.linear import ExpertLinear
from llmconv.runtime.model import Model
from llmconv.runtime.reading import slots_of

__all__ = ["Collector", "coverage", "sums_of_tensors_exactly", "tensors_of", "write_gguf"]

_FEW = 32
"""An expert with fewer tokens says little of its columns."""


@dataclass
class Collector:
    """A `Watcher` that sums; the matrices of one input are summed once."""

    model: Model
    sums: Sums
    _last: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def __call__(self, name: str, x: Tensor, y: Tensor | None, part: int | None) -> None:
        last = self._last
        if last is None or last[0] is not x:
            squares = x.detach().reshape(-1, x.shape[-1]).float().square().sum(0)
            if not bool(squares.isfinite().all()):
                raise not_finite(self.model, f"the inputs of {name!r}", bool(squares.isnan().any()))
            last = self._last = x, squares.double().cpu()
        module = self.model.get_submodule(name.removesuffix(".weight"))
        stack = module.shape[0] if isinstance(module, ExpertLinear) else 1
        entry = self.sums.entries.get(name)
        if entry is None:
            self.sums.add(name, np.zeros((stack, x.shape[-1])), np.zeros(stack if name_of_experts(name) else 1))
            entry = self.sums.entries[name]
        tokens = x.numel() // x.shape[-1]
        entry.sums[part or 0] += last[1].numpy()
        if len(entry.counts) > 1 or not part:  # the heads of a latent projection share one count
            entry.counts[(part or 0) if len(entry.counts) > 1 else 0] += tokens

    def forget_input(self) -> None:
        """After a batch, whose tensors the memory of the next may take."""
        self._last = None


def name_of_experts(name: str) -> bool:
    """Whether a tensor stacks the matrices of experts, each of which sees tokens of its own."""
    return name.endswith(("_exps.weight", "_chexps.weight"))


def tensors_of(sums: Sums, dtype: Any = np.float32) -> Iterator[Stored]:
    """Those of the GGUF form."""
    for name, values in sums.arrays(dtype):
        yield Stored.from_array(name, values)


def write_gguf(path: Path, sums: Sums, *, force: bool) -> None:
    """The GGUF form; complete or not at all."""
    gguf_file.save(Checkpoint({t.name: t for t in tensors_of(sums)}, sums.metadata()), path, force=force)


def sums_of_tensors_exactly(opened: Checkpoint) -> Sums:
    """The float64 sums of what was kept of an interrupted run."""
    narrow = {n: Stored.from_array(n, t.numpy().astype(np.float32)) for n, t in opened.tensors.items()}
    found = sums_of_tensors(narrow, opened.metadata, opened.where)
    for name, entry in found.entries.items():
        entry.sums[...] = opened.tensors[f"{name}.in_sum2"].numpy().reshape(entry.sums.shape)
        entry.counts[...] = opened.tensors[f"{name}.counts"].numpy().reshape(entry.counts.shape)
    return found


def coverage(model: Model, sums: Sums, wanted: Sequence[str]) -> list[str]:
    """Sentences on the matrices and experts that no token, or only a few, went through."""
    notes, held = [], slots_of(model).keys()
    missing = [name for name in wanted if name not in sums.entries or not sums.entries[name].counts.any()]
    if missing:
        notes.append(f"no token went through {_some(missing)}: they have no importance weights")
    shapes = model.decoder.shapes.items()
    unrun = [n for n, s in shapes if n.startswith("blk.") and len(s) > 1 and n.endswith(".weight") and n not in held]
    if unrun:
        notes.append(f"{_some(unrun)} of the file are not run here: they have no importance weights")
    for name, entry in sorted(sums.entries.items()):
        few = [int(i) for i in np.flatnonzero(entry.counts < _FEW)]
        if len(entry.counts) > 1 and few and entry.counts.any():
            shown = ", ".join(f"{i}: {entry.counts[i]:.0f}" for i in few[:6]) + (", …" if len(few) > 6 else "")
            total = len(entry.counts)
            notes.append(f"{name}: {len(few)} of {total} experts saw fewer than {_FEW} tokens ({shown}); use more text")
    return notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def wanted(model: Model, output_too: bool) -> dict[str, Any]:
    """The modules whose inputs count: those of layers, as llama-imatrix takes them, and the head when asked for."""
    heads = {"output.weight", "token_embd.weight"} if output_too else set()
    return {n: m for n, m in matrices(model).items() if n.startswith("blk.") or n in heads}


def at_end(model: Model, hidden: Tensor, head: bool) -> None:
    """What comes after the layers, for what is watched; the logits of many tokens, if wanted at all, in pieces."""
    if head:
        for part in torch.split(hidden.flatten(0, 1), max(1, (1 << 24) // model.decoder.vocab_size)):
            model.head(part)
    if not bool(torch.isfinite(hidden.sum())):
        raise not_finite(model, "the last layer's outputs", bool(hidden.isnan().any()))
