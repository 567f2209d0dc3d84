"""Arcee: Llama whose MLP has no gate, and a squared ReLU."""

from __future__ import annotations

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.archs.parts import HEAD_DIM
from llmconv.convert.tables.architecture import HfName
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader

ARCEE = LLAMA.variant(
    "arcee",
    HfName("ArceeForCausalLM", "arcee"),
    drop=(*NOT_DENSE, "blk.{i}.ffn_gate.weight", "blk.{i}.ffn_gate.bias"),
    keys=HEAD_DIM,
    decoder={"activation": "relu2"},
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS)),
)

ARCHITECTURES = (ARCEE,)
