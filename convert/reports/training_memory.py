"""What training a model takes on each device, from its shape alone: weights, gradients, optimizer, activations.

Activations are counted as torch's autograd keeps them for the backward pass of this program's decoder, see `kept`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from llmconv.convert.decoders.describe import describe
from llmconv.convert.decoders.facts import Decoder
from llmconv.convert.reports.kept import Kept
from llmconv.convert.reports.shape import Shape
from llmconv.errors import LlmconvError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.show import Shown

__all__ = ["PARTS", "TrainingMemory", "training_memory"]


PARTS = ("weights", "gradients", "optimizer", "gathered", "activations", "workspace")
"""What the memory consists of."""


@dataclass(frozen=True)
class TrainingMemory(Shown):
    """Bytes per device to train: weights, gradients, optimizer states, activations, workspace, their total.

    devices: over how many the first three are sharded (FSDP2); batch, context: of one device's step.
    gathered: what is whole for a moment where they are: two blocks, one's gradients, and the ends with theirs.
    activations: what is kept from the forward pass for the backward one.   workspace: what is there for a moment: the
    gradients of the logits, or a block that is computed once more.
    """

    devices: int
    batch: int
    context: int
    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        return sum(getattr(self, part) for part in PARTS)


def training_memory(
    shape: Shape,
    *,
    batch: int = 1,
    context: int = 0,
    devices: int = 1,
    optimizer_bytes: int = 8,
    activation_bytes: int = 2,
    checkpointing: bool = False,
    dropout: bool = False,
) -> TrainingMemory:
    """Memory to train a model of this shape with float32 weights, per device.

    optimizer_bytes: of what the optimizer keeps of a weight (8: AdamW's two float32 moments).  activation_bytes: of a
    number that the model computes (2: bfloat16 or float16 under autocast).  checkpointing: blocks are computed again
    instead of kept.
    """
    context = context or min(shape.dim("n_ctx") or 1024, 4096)
    decoder = _decoder(shape)
    trained = {name: dims for name, dims in shape.tensors.items() if _is_trained(decoder, name)}
    share = -(-sum(math.prod(dims) for dims in trained.values()) // devices)
    logits = batch * context * shape.dim("n_vocab")
    workspace = 8 * logits  # the gradients of the logarithms and of the logits
    kept = 4 * logits  # the logarithms of the probabilities
    if decoder is not None:
        count = Kept(decoder, batch, context, activation_bytes, dropout)
        blocks = [count.block(piece) for piece in count.pieces]
        copies = [count.copies(piece) for piece in count.pieces]
        goings = decoder.passes / max(1, len(blocks))  # each has its own results, and all have one copy
        kept += count.ends()
        if checkpointing:
            kept += round(goings * len(blocks) * count.entering)
            inner = activation_bytes * batch * context * shape.dim("n_ff")  # the gradient of its widest numbers
            again = max(map(sum, zip(blocks, copies, strict=True)), default=0) - count.entering  # which is kept already
            workspace = max(workspace, again + inner)
        else:
            kept += round(goings * sum(blocks)) + sum(copies)
    gathered = _gathered(trained) if devices > 1 else 0
    return TrainingMemory(
        devices, batch, context, 4 * share, 4 * share, optimizer_bytes * share, gathered, kept, workspace
    )


def _decoder(shape: Shape) -> Decoder | None:
    """What is computed; None of what is not run here, so not trained."""
    made = Checkpoint(metadata=dict(shape.metadata), dialect="gguf")
    for name, dims in shape.tensors.items():
        made.add(Tensor.shadow(name, dims, plain.F32))
    try:
        return describe(made)
    except LlmconvError:
        return None


def _is_trained(decoder: Decoder | None, name: str) -> bool:
    """Whether a tensor is the model's: one of a layer for further tokens is not run."""
    found = re.match(r"blk\.(\d{1,9})\.", name)
    return decoder is None or found is None or decoder.recurrent is not None or int(found[1]) < len(decoder.layers)


def _gathered(tensors: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes that `fully_shard`, over each block and then the rest, has whole at once, in float32: a block runs while
    the next is fetched, on the way back its gradients are there too, and the rest stays from its use to its gradients.
    """
    blocks, ends = defaultdict[str, int](int), 0
    for name, dims in tensors.items():
        found = re.match(r"blk\.(\d{1,9})\.", name)
        if found:
            blocks[found[1]] += math.prod(dims)
        else:
            ends += math.prod(dims)
    return 4 * (3 * max(blocks.values(), default=0) + 2 * ends)
