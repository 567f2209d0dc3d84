"""keras-gpt: a transformer made of Keras's layers, as its file lists them (see `convert.layouts.keras_gpt`).

Everything is optional but attention and an MLP in each block: norms stand before the sublayers (attn_norm, ffn_norm),
behind their sums (attn_output_norm, layer_output_norm), behind the embedding, before the head, or nowhere.  No
transformers class exists.
"""

from __future__ import annotations

from typing import Any

from llmconv.convert.archs.small.gpt import APART, ENDS, HEAD, KEYS, LAYER_EPSILON, MLP, linear
from llmconv.convert.tables.architecture import Architecture, HfName, row


def _norm(gguf: str, hf: str) -> Any:
    """Rows of a norm that a model may have.   hf: also the flag of its config."""
    at = f"{{p}}{'layers.{i}.' if 'blk' in gguf else ''}{hf}"
    return tuple(row(f"{gguf}.{part}", f"{at}.{part}", "n_embd", optional=hf) for part in ("weight", "bias"))


_OUT = linear(
    "blk.{i}.attn_output", "{p}layers.{i}.self_attn.o_proj", "n_embd", "n_head * head_dim", optional="output_projection"
)
KERAS_GPT = Architecture(
    "keras-gpt",
    (HfName("KerasGptModel", "keras-gpt"),),
    keys=(*KEYS, *LAYER_EPSILON),
    rows=(
        *ENDS,
        *_norm("token_embd_norm", "embed_norm"),
        *_norm("output_norm", "norm"),
        *HEAD,
        *_norm("blk.{i}.attn_norm", "input_layernorm"),
        *APART,
        *_OUT,
        *_norm("blk.{i}.attn_output_norm", "post_attention_norm"),
        *_norm("blk.{i}.ffn_norm", "pre_mlp_layernorm"),
        *MLP,
        *_norm("blk.{i}.layer_output_norm", "post_mlp_norm"),
    ),
    prefixes=("model.", ""),
    decoder={"norm": "layer", "positions": "none", "activation": "relu", "no_end": True, "tokenizer": "word"},
)

ARCHITECTURES = (KERAS_GPT,)
