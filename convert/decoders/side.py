"""The side of a model that is run: of one with an encoder and a decoder, the encoder, which gives texts' vectors."""

from __future__ import annotations

from llmconv.convert import archs
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["alone"]

_OTHER = "dec."


def alone(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint (GGUF's dialect) with the tensors of that side under the names that other models' have."""
    name = checkpoint.metadata.get("general.architecture")
    arch = archs.by_gguf(name) if isinstance(name, str) else None
    side = arch.decoder.get("side") if arch is not None else None
    start = f"{side}."
    if side is None or not any(name.startswith(start) for name in checkpoint.tensors):
        return checkpoint
    both = any(name.startswith(_OTHER) for name in checkpoint.tensors)
    out = checkpoint.but(tensors={})
    for name, tensor in checkpoint.tensors.items():
        if name.startswith(_OTHER) or (both and name == "output.weight"):
            continue
        out.add(tensor.renamed(name.removeprefix(start).replace(".attn_o.", ".attn_output.")))
    return out
