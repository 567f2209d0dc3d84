"""Where people's own programs put hyper-parameters and vocabularies, and what they call them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llmconv.convert.layouts.base import Field

__all__ = [
    "ACTIVATIONS",
    "BOS",
    "EPSILON",
    "GUESSED",
    "OBJECTS",
    "activation",
    "guess",
    "heads_and_positions",
    "interleaved",
    "places",
    "recurrent_activation",
    "sizes",
    "turning",
    "vocabulary",
]

OBJECTS = (
    *(
        "",
        "config.",
        "metadata.",
        "cfg.",
        "hparams.",
        "hyperparameters.",
        "hyperParameters.",
        "hyperparams.",
        "hyper_parameters.",
        "params.",
    ),
    *(
        "model_args.",
        "model_config.",
        "modelConfig.",
        "args.",
        "settings.",
        "meta.",
        "gpt_config.",
        "model.",
        "model.config.",
    ),
    *("hyper.", "opts.", "options.", "gpt.", "gpt.config.", "transformer.config.", "hyperParams."),
    *("checkpoint.config.", "weights.config.", "state.config.", "architecture.", "arch."),
    *("config.model.", "config.model_args.", "config.gpt.", "cfg.model.", "hyper_parameters.config."),
    *("hyper_parameters.model.", "hparams.model."),
)


def places(*names: str, objects: tuple[str, ...] = OBJECTS) -> tuple[str, ...]:
    """Every name at the top of a document and in each object that people use for it."""
    return tuple(place + name for name in names for place in objects)


_HEADS = places("n_head", "nHead", "n_heads", "nHeads", "num_heads", "numHeads", "heads", "num_attention_heads", "H")
_LAYERS = places("n_layer", "nLayer", "n_layers", "nLayers", "num_layers", "numLayers", "layers", "n_blocks", "L")
_WIDTH = places(
    "n_embd", "nEmbd", "n_embed", "embed_dim", "embedDim", "embedding_dim", "emb_dim", "d_model", "dModel", "dim", "E"
)
_CONTEXT = places(
    *("block_size", "blockSize", "context_length", "contextLength", "context", "max_seq_len", "maxSeqLen", "seq_len"),
    *("seqLen", "context_size", "contextSize", "n_ctx", "max_len", "maxLen", "max_position_embeddings", "T"),
)
_VOCABULARY = places("vocab_size", "vocabSize", "n_vocab", "vocab", "V")
EPSILON = places(
    "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rms_norm_eps", "eps", "ln_eps", "norm_epsilon", "rms_eps"
)

ACTIVATIONS = {
    **dict.fromkeys(("relu", "ReLU", "RELU"), "relu"),
    **dict.fromkeys(("relu2", "relu_squared", "squared_relu", "relu^2", "ReLU2", "ReLU^2", "relu_sq"), "relu2"),
    **dict.fromkeys(("gelu", "GELU", "gelu_exact", "gelu_erf"), "gelu"),
    **dict.fromkeys(("gelu_tanh", "gelu_new", "new_gelu", "NewGELU", "gelu_pytorch_tanh", "gelu_approx"), "gelu_tanh"),
    **dict.fromkeys(("silu", "SiLU", "swish", "swiglu", "SwiGLU"), "silu"),
    "tanh": "tanh",
}
"""What programs call an activation -> what GGUFs of ours state."""


def activation() -> Field:
    """The MLP's activation, which few documents state."""
    names = (
        *("activation", "hidden_act", "act", "activation_function", "nonlinearity", "act_fn", "mlp_activation"),
        *("hidden_activation", "activation_type", "activation_fn", "act_type", "act_func", "ffn_activation", "mlp_act"),
    )
    return Field("hidden_activation", places(*names), "str", values=ACTIVATIONS, optional=True)


def recurrent_activation() -> Field:
    """What a layer without gates computes, where a document states it."""
    kinds = {**dict.fromkeys(("tanh", "Tanh"), "tanh"), **dict.fromkeys(("relu", "ReLU", "RELU"), "relu")}
    names = places("nonlinearity", "activation", "act", "activation_function", "hidden_activation")
    return Field("recurrent.activation", names, "str", values=kinds, optional=True)


def interleaved() -> Field:
    """Whether the numbers that rotary positions turn together are neighbours, which no weight shows."""
    names = ("rope_interleaved", "ropeInterleaved", "rope_interleave", "interleaved_rope", "interleaved")
    return Field("rope.interleaved", places(*names), "bool", optional=True)


_META = re.compile(r"(?<![a-z])(?:attention\W+wq|rms_?att(?:_?weight)?)(?![a-z])", re.IGNORECASE)
_HUGGING_FACE = re.compile(r"self_attn\W+q_proj")


def turning(own: dict[str, Any], paths: Sequence[str]) -> list[str]:
    """Which numbers of a head rotary positions turn together, as far as names tell: notes.

    Side by side in Meta's reference code and in llama2.c (`layers.0.attention.wq`, `rms_att_weight`), as far apart as
    half a head in transformers (`self_attn.q_proj`), for which the rows of wq and wk were moved.
    Source: meta-llama/llama, llama/model.py (`apply_rotary_emb`).
    """
    if "rope.interleaved" in own:
        return []
    own["rope.interleaved"] = any(_META.search(path) for path in paths)
    if own["rope.interleaved"]:
        return [
            "its names are those of Meta's Llama, so rotary pairs are taken as neighbours; if not, say "
            '"rope_interleaved": false in a file for --config'
        ]
    if any(_HUGGING_FACE.search(path) for path in paths):
        return []
    return [
        "it has no table of positions: rotary ones are taken, the halves of a head turning together; if its "
        'neighbours do, say "rope_interleaved": true in a file for --config'
    ]


def sizes() -> tuple[Field, ...]:
    """The sizes of a GPT whose parts are spelled: stated, or shown by its weights; all that say it must agree."""
    up, positions = "blk.0.ffn_up.weight", "position_embd.weight"
    return (
        Field("vocab_size", ("shape of token_embd.weight@0", *_VOCABULARY)),
        Field("context_length", (*_CONTEXT, f"shape of {positions}@0", f"shape of {positions}^row@1"), optional=True),
        Field("embedding_length", ("shape of token_embd.weight@1", *_WIDTH)),
        Field("block_count", ("count of blk.{}.", *_LAYERS)),
        Field("feed_forward_length", (f"shape of {up}@0", f"shape of {up}^T@1")),
        Field("attention.head_count", (*_HEADS, "count of blk.0.attn_q.{}.weight")),
    )  # fmt: skip


def vocabulary() -> tuple[str, ...]:
    """Paths of a list of tokens, a text of characters, or a map between tokens and numbers."""
    names = (
        *("uchars", "chars", "vocab", "vocabulary", "itos", "stoi", "tokens", "characters", "alphabet", "charset"),
        *("idx_to_char", "char_to_idx", "idx2char", "char2idx", "index_to_char", "char_to_index", "i2c", "c2i"),
    )
    return places(*names, objects=(*OBJECTS, "tokenizer.", "model.tokenizer.", "vocab.", "dataset.", "data."))


BOS = places("BOS", "bos", "bos_id", "bosId", "bos_token_id", "bosTokenId", "bos_index", "bos_idx", "bos_token")
"""The number of the token that begins a text."""

GUESSED = "nothing in the file says so"
"""How a note begins about an activation that was guessed."""


def guess(taken: str, otherwise: str) -> str:
    """What to say of an activation that nothing states."""
    return f"{GUESSED}: it is taken that {taken}; if not, say activation in a file for --config ({otherwise})"


def heads_and_positions(own: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """The keys of models whose keys and values have fewer heads, or whose heads are not as wide as the model."""
    heads, count = int(own["attention.head_count"]), type(own["attention.head_count"])
    q, k = (_rows_of(shapes, f"blk.0.attn_{x}.weight") for x in "qk")
    width = q // heads if q % heads == 0 else 0
    if width and q != int(own["embedding_length"]):
        own["attention.key_length"] = count(width)
    if width and k != q and k % width == 0:
        own["attention.head_count_kv"] = count(k // width)


def _rows_of(shapes: dict[str, tuple[int, ...]], name: str) -> int:
    """What a matrix gives, whichever way it stands; 0 when there is none."""
    turned = shapes.get(name + "^T")
    return turned[1] if turned is not None else shapes.get(name, (0,))[0]
