"""Models of families that transformers lacks, made of a tiny model of another family: the same under other names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiny_models

KIN = {"exaone": "exaone", "chatglm": "chatglm"}
"""Model -> GGUF's name."""

Tensors = dict[str, Any]


def _cat(tensors: list[Any]) -> Any:
    import torch

    return torch.cat(tensors)


def renamed(tensors: Tensors, names: dict[str, str]) -> Tensors:
    """Pieces of names replaced, in this order."""
    out = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        out[name] = tensor
    return out


def joined(tensors: Tensors, names: tuple[str, ...], new: str) -> Tensors:
    """The tensors of these endings, of each layer, one behind the other under a new one."""
    out = {name: tensor for name, tensor in tensors.items() if not name.endswith(names)}
    for name in [name for name in tensors if name.endswith(names[0])]:
        start = name.removesuffix(names[0])
        out[start + new] = _cat([tensors[start + part] for part in names])
    return out


def _exaone(tensors: Tensors) -> Tensors:
    return renamed(
        tensors,
        {
            "model.embed_tokens": "transformer.wte",
            "model.norm": "transformer.ln_f",
            "model.layers.": "transformer.h.",
            "self_attn.": "attn.attention.",
            "o_proj": "out_proj",
            "input_layernorm": "ln_1",
            "post_attention_layernorm": "ln_2",
            "mlp.gate_proj": "mlp.c_fc_0",
            "mlp.up_proj": "mlp.c_fc_1",
            "mlp.down_proj": "mlp.c_proj",
        },
    )


def _chatglm(tensors: Tensors) -> Tensors:
    for part in ("weight", "bias"):
        ends = tuple(f"self_attn.{n}_proj.{part}" for n in "qkv")
        tensors = joined(tensors, ends, f"self_attention.query_key_value.{part}")
    return renamed(
        tensors,
        {
            "lm_head": "transformer.output_layer",
            "model.embed_tokens": "transformer.embedding.word_embeddings",
            "model.norm": "transformer.encoder.final_layernorm",
            "model.layers.": "transformer.encoder.layers.",
            "self_attn.o_proj": "self_attention.dense",
            "mlp.gate_up_proj": "mlp.dense_h_to_4h",
            "mlp.down_proj": "mlp.dense_4h_to_h",
        },
    )


_COMMON = {k: tiny_models.SMALL[k] for k in ("vocab_size", "hidden_size", "num_attention_heads")}
MODELS: dict[str, tuple[str, Callable[[Tensors], Tensors], dict[str, Any]]] = {
    "exaone": (
        "llama",
        _exaone,
        _COMMON
        | {
            "architectures": ["ExaoneForCausalLM"],
            "intermediate_size": 96,
            "num_layers": 2,
            "num_key_value_heads": 4,
            "layer_norm_epsilon": 1e-6,
        },
    ),
    "chatglm": (
        "glm",
        _chatglm,
        _COMMON
        | {
            "architectures": ["ChatGLMModel"],
            "ffn_hidden_size": 96,
            "num_layers": 2,
            "multi_query_group_num": 2,
            "kv_channels": 16,
            "padded_vocab_size": 96,
            "layernorm_epsilon": 1.5625e-07,
        },
    ),
}
"""Model -> (its kin among the tiny models, what its tensors are called, its configuration)."""
