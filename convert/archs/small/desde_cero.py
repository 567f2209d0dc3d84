"""transformer-desde-cero: the one-block MiniGPT of a course in numpy, which exports itself to JSON for a web page.

Embedding plus interleaved sinusoidal positions (not stored); causal attention without biases, residual, LayerNorm;
ReLU block with biases, residual, LayerNorm (epsilon 1e-5); a head with a bias.  As its page computes it (model.mjs).
A text begins with <BOS>.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmconv.convert.archs.small.gpt import APART, ENDS, HEAD, KEYS, LAYER_EPSILON, MLP, OUT
from llmconv.convert.tables.architecture import Architecture, HfName, row


def _norm(gguf: str, hf: str) -> Any:
    at = f"{{p}}layers.{{i}}.{hf}"
    return (
        row(f"blk.{{i}}.{gguf}.weight", f"{at}.weight", "n_embd"),
        row(f"blk.{{i}}.{gguf}.bias", f"{at}.bias", "n_embd"),
    )


CONSTANTS = {
    "attention.causal": True,
    "attention.layer_norm_epsilon": np.float32(1e-5),
    "hidden_activation": "relu",
    "position_embedding": "sinusoidal-interleaved",
}

DESDE_CERO = Architecture(
    "transformer-desde-cero",
    (HfName("TransformerDesdeCeroModel", "transformer-desde-cero"),),
    keys=(*KEYS, *LAYER_EPSILON),
    rows=(
        ENDS[0],
        *HEAD,
        *APART[::2],
        *OUT[:1],
        *_norm("attn_output_norm", "self_attn_layer_norm"),
        *MLP[2:],
        *_norm("layer_output_norm", "final_layer_norm"),
    ),
    prefixes=("model.", ""),
    constants=CONSTANTS,
    decoder={
        "norm": "layer",
        "positions": "sinusoidal",
        "activation": "relu",
        "initial": "xavier",
        "tokenizer": "word",
    },
)

ARCHITECTURES = (DESDE_CERO,)
