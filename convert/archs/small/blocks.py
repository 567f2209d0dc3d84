"""blocks: a JavaScript GPT, known by its files alone: pre-norm, causal, learned positions, biases throughout.

It has no norm before its head.
"""

from __future__ import annotations

from llmconv.convert.archs.small.gpt import APART, ENDS, HEAD, KEYS, LAYER_EPSILON, MLP, OUT, norm
from llmconv.convert.tables.architecture import Architecture, HfName

BLOCKS = Architecture(
    "blocks",
    (HfName("BlocksModel", "blocks"),),
    keys=(*KEYS, *LAYER_EPSILON),
    rows=(
        *ENDS,
        *HEAD,
        *norm("blk.{i}.attn_norm", "{p}layers.{i}.input_layernorm"),
        *APART,
        *OUT,
        *norm("blk.{i}.ffn_norm", "{p}layers.{i}.post_attention_layernorm"),
        *MLP[2:],
    ),
    prefixes=("model.", ""),
    decoder={"norm": "layer", "positions": "learned", "activation": "relu", "tokenizer": "word"},
)

ARCHITECTURES = (BLOCKS,)
