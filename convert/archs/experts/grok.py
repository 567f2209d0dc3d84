"""Grok 1 and 2: a dense feed-forward beside the experts, scores capped, norms on both sides of the sublayers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, EXPERTS, HEAD_DIM
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Row, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims, Op, Stack

_own = "transformer.decoder_layer.{i}."  # of Grok 1, as it was first published

_at = "{p}layers.{i}."

_q, _kv = "n_head * head_dim", "n_head_kv * head_dim"


def _named(gguf: str, hf: str, own: str, shape: str, *ops: Op, **options: Any) -> Row:
    """A row under Grok 2's and Grok 1's names."""
    return row(gguf, hf, shape, *ops, alt=(Form((own,), ops),), **options)


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    size = int(config.get("head_dim") or dims["n_embd"] // dims["n_head"])
    own["attention.output_scale"] = np.float32(config.get("attn_output_multiplier", size**-0.5))
    if "head_dim" not in config:
        for key in ("attention.key_length", "attention.value_length"):
            own.pop(key, None)
    if config.get("rope_type") in ("yarn", "original"):  # the second was a slip of the first
        own["rope.scaling.type"], own["rope.scaling.factor"] = "yarn", np.float32(config["scaling_factor"])
        own["rope.scaling.original_context_length"] = np.uint32(config["original_max_position_embeddings"])
        for name, key in (("extrapolation_factor", "ext"), ("attn_factor", "attn")):
            own[f"rope.scaling.yarn_{key}_factor"] = np.float32(config[name])
        for name in ("beta_fast", "beta_slow"):
            own[f"rope.scaling.yarn_{name}"] = np.float32(config[name])


GROK = Architecture(
    "grok",
    (HfName("GrokForCausalLM", "grok"), HfName("Grok1ForCausalLM", "grok-1"), HfName("Grok1ForCausalLM", "git")),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *EXPERTS,
        *keys("""
            expert_feed_forward_length        u32   moe_intermediate_size
            attn_logit_softcapping            f32   attn_logit_softcapping        30
            router_logit_softcapping          f32   router_logit_softcapping      30
            final_logit_softcapping           f32   final_logit_softcapping
            attention.temperature_length      u32   attn_temperature_len
            embedding_scale                   f32   embedding_multiplier_scale    1
            logit_scale                       f32   output_multiplier_scale       1
        """),
    ),
    rows=(
        row(
            "token_embd.weight",
            "{p}embed_tokens.weight",
            "n_vocab, n_embd",
            alt=(Form(("transformer.in_out_embed.weight",)),),
        ),
        row("output_norm.weight", "{p}norm.weight", "n_embd", alt=(Form(("transformer.rms_norm.weight",)),)),
        row("output.weight", "lm_head.weight", "n_vocab, n_embd", optional="!tie_word_embeddings"),
        _named("blk.{i}.attn_norm.weight", _at + "pre_attn_norm.weight", _own + "rms_norm.weight", "n_embd"),
        _named(
            "blk.{i}.attn_q.weight",
            _at + "self_attn.q_proj.weight",
            _own + "multi_head_attention.query.weight",
            f"{_q}, n_embd",
        ),
        _named(
            "blk.{i}.attn_k.weight",
            _at + "self_attn.k_proj.weight",
            _own + "multi_head_attention.key.weight",
            f"{_kv}, n_embd",
        ),
        _named(
            "blk.{i}.attn_v.weight",
            _at + "self_attn.v_proj.weight",
            _own + "multi_head_attention.value.weight",
            f"{_kv}, n_embd",
        ),
        _named(
            "blk.{i}.attn_output.weight",
            _at + "self_attn.o_proj.weight",
            _own + "multi_head_attention.linear.weight",
            f"n_embd, {_q}",
        ),
        _named("blk.{i}.attn_output_norm.weight", _at + "post_attn_norm.weight", _own + "rms_norm_1.weight", "n_embd"),
        _named("blk.{i}.ffn_norm.weight", _at + "pre_moe_norm.weight", _own + "rms_norm_2.weight", "n_embd"),
        row("blk.{i}.ffn_gate.weight", _at + "mlp.gate_proj.weight", "n_ff, n_embd", optional=True),
        row("blk.{i}.ffn_up.weight", _at + "mlp.up_proj.weight", "n_ff, n_embd", optional=True),
        row("blk.{i}.ffn_down.weight", _at + "mlp.down_proj.weight", "n_embd, n_ff", optional=True),
        _named(
            "blk.{i}.ffn_gate_inp.weight",
            _at + "block_sparse_moe.gate.weight",
            _own + "router.weight",
            "n_expert, n_embd",
        ),
        *(
            _named(
                f"blk.{{i}}.ffn_{kind}_exps.weight",
                f"{_at}block_sparse_moe.experts.{{e}}.{new}.weight",
                f"{_own}moe.{{e}}.{old}.weight",
                shape,
                Stack(),
            )
            for kind, new, old, shape in (
                ("gate", "w1", "linear", "n_expert, n_ff_exp, n_embd"),
                ("down", "w2", "linear_1", "n_expert, n_embd, n_ff_exp"),
                ("up", "w3", "linear_v", "n_expert, n_ff_exp, n_embd"),
            )
        ),
        row("blk.{i}.post_ffw_norm.weight", _at + "post_moe_norm.weight", "n_embd", optional=lambda c: "head_dim" in c),
        row(
            "blk.{i}.layer_output_norm.weight",
            _own + "rms_norm_3.weight",
            "n_embd",
            optional=lambda c: "head_dim" not in c,
        ),
    ),
    finish=_finish,
    loader=Loader(needed=("blk.{i}.post_ffw_norm.weight",)),
    decoder={
        "activation": "gelu_tanh",
        "activation_key": "",
        "beside": 0.5**0.5,
        "normalize_experts": True,
        "norms_inside": True,
        "attention_softcap": 30.0,
    },
    reads="attn_output_multiplier rope_type scaling_factor original_max_position_embeddings extrapolation_factor"
    " attn_factor beta_fast beta_slow",
    inert="interleaved residual_moe block_type hidden_act norm_head",
)

ARCHITECTURES = (GROK,)
