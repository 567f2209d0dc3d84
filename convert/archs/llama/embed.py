"""Llama that sees all tokens at once, for embeddings (Llama-Embed-Nemotron)."""

from __future__ import annotations

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.archs.parts import HEAD_DIM
from llmconv.convert.tables.architecture import HfName

LLAMA_EMBED = LLAMA.variant(
    "llama-embed",
    HfName("LlamaBidirectionalModel", "llama_bidirec"),
    drop=(*NOT_DENSE, "output.weight"),
    keys=HEAD_DIM,
    prefixes=("", "model."),
    constants={"attention.causal": False},  # which llama.cpp does not know by the name
    decoder={"causal": False},
    inert="is_causal pooling",
)

ARCHITECTURES = (LLAMA_EMBED,)
