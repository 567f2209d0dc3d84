"""microgpt: Karpathy's GPT in one file of plain Python (gist 8627fe009c40f57531cb18360106ce95, February 2026).

What it computes, read off the gist and its ports: token plus learned position embedding, RMSNorm; per layer RMSNorm,
attention over what came before (scaled by the square root of a head's size), residual, RMSNorm, an MLP with ReLU,
residual; then the head at once, without a norm.  No biases; norms have no weights; epsilon 1e-5.  The gist's first days
had squared ReLU.  Its grown-up variants have norms with weights (also before the head, none behind the embedding),
rotary positions (halves) instead of learned ones and a gated MLP with SiLU: then it is a Llama in all but name.
"""

from __future__ import annotations

from llmconv.convert.archs.small.gpt import APART, ENDS, HEAD, KEYS, MLP, OUT, RMS_EPSILON
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row

MICROGPT = Architecture(
    "microgpt",
    (HfName("MicroGptModel", "microgpt"),),
    keys=(*KEYS, *RMS_EPSILON, *keys("rope.freq_base  f32  rope_theta")),
    rows=(
        *ENDS,
        row("output_norm.weight", "{p}norm.weight", "n_embd", optional="norm_weights"),
        *HEAD[:1],
        row("blk.{i}.attn_norm.weight", "{p}layers.{i}.input_layernorm.weight", "n_embd", optional="norm_weights"),
        *APART[::2],
        *OUT[:1],
        row(
            "blk.{i}.ffn_norm.weight",
            "{p}layers.{i}.post_attention_layernorm.weight",
            "n_embd",
            optional="norm_weights",
        ),
        *MLP[::2],
    ),
    prefixes=("model.", ""),
    decoder={
        "norm": "rms",
        "weightless": ("token_embd_norm", "attn_norm", "ffn_norm"),
        "positions": "learned",
        "activation": "relu",
        "tokenizer": "documents",
    },
)

ARCHITECTURES = (MICROGPT,)
