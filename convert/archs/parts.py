"""Rows and keys that many families share, under the names that transformers gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Form, Key, Row, keys, row
from llmconv.convert.tables.config import text_config
from llmconv.convert.tables.ops import Dims, Shift, Split, Stack, Transpose, rope_halves
from llmconv.convert.tables.rows import Optional
from llmconv.errors import Unsupported

COMMON = keys("""
    block_count                       u32   num_hidden_layers
    context_length                    u32   max_position_embeddings
    embedding_length                  u32   hidden_size
    feed_forward_length               u32   intermediate_size
    attention.head_count              u32   num_attention_heads
    attention.head_count_kv           u32   num_key_value_heads         = n_head
    rope.freq_base                    f32   rope_theta                  10000
    attention.layer_norm_rms_epsilon  f32   rms_norm_eps                1e-6
""")
"""The keys of most models since Llama."""

COMMON_BUT_EPSILON = tuple(key for key in COMMON if key.gguf != "attention.layer_norm_rms_epsilon")
"""Those of models with LayerNorms."""

HEAD_DIM = keys("""
    attention.key_length              u32   head_dim                    = n_embd // n_head
    attention.value_length            u32   head_dim                    = n_embd // n_head
""")

EXPERTS = keys("""
    expert_count                      u32   num_local_experts|num_experts|n_routed_experts
    expert_used_count                 u32   num_experts_per_tok|num_experts_per_token|top_k_experts
""")


def sigmoid_experts(
    *,
    count: str = "n_routed_experts",
    shared: str = "n_shared_experts",
    scale: str = "routed_scaling_factor",
    norm: str = "norm_topk_prob",
) -> tuple[Key, ...]:
    """The keys of the families whose experts are scored as DeepSeek V3's are, by what they call them."""
    return (
        *keys(f"""
            expert_count                      u32   {count}|num_local_experts
            expert_used_count                 u32   num_experts_per_tok
            expert_feed_forward_length        u32   moe_intermediate_size
            expert_shared_count               u32   {shared}
            expert_weights_scale              f32   {scale}
            expert_weights_norm               bool  {norm}
            expert_group_count                u32   n_group
            expert_group_used_count           u32   topk_group
        """),
        Key("expert_gating_func", ("scoring_func",), "u32", "sigmoid", {"softmax": 1, "sigmoid": 2}),
    )


HEAD = row("output.weight", "lm_head.weight", "n_vocab, n_embd", optional="!tie_word_embeddings")

EMBEDDINGS = (
    row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd"),
    row("output_norm.weight", "{p}norm.weight", "n_embd"),
    HEAD,
)

NORMS = (
    row("blk.{i}.attn_norm.weight", "{p}layers.{i}.input_layernorm.weight", "n_embd"),
    row("blk.{i}.ffn_norm.weight", "{p}layers.{i}.post_attention_layernorm.weight", "n_embd"),
)


def attention(
    *, bias: bool | str = "attention_bias", out_bias: bool | str | None = None, permuted: bool = False
) -> Any:
    """Rows of q, k, v and the output projection; `permuted` for GGUFs that keep rotary pairs side by side."""
    q = (rope_halves("n_head"),) if permuted else ()
    k = (rope_halves("n_head_kv"),) if permuted else ()
    at = "{p}layers.{i}.self_attn."
    return (
        row("blk.{i}.attn_q.weight", at + "q_proj.weight", "n_head * head_dim, n_embd", *q),
        row("blk.{i}.attn_k.weight", at + "k_proj.weight", "n_head_kv * head_dim, n_embd", *k),
        row("blk.{i}.attn_v.weight", at + "v_proj.weight", "n_head_kv * head_dim_v, n_embd"),
        row("blk.{i}.attn_output.weight", at + "o_proj.weight", "n_embd, n_head * head_dim_v"),
        row("blk.{i}.attn_q.bias", at + "q_proj.bias", "n_head * head_dim", *q, optional=bias),
        row("blk.{i}.attn_k.bias", at + "k_proj.bias", "n_head_kv * head_dim", *k, optional=bias),
        row("blk.{i}.attn_v.bias", at + "v_proj.bias", "n_head_kv * head_dim_v", optional=bias),
        row("blk.{i}.attn_output.bias", at + "o_proj.bias", "n_embd", optional=bias if out_bias is None else out_bias),
    )


def gated_mlp(when: str = "") -> Any:
    """Rows of a gate, up, down block, with the biases that few models have."""
    at = "{p}layers.{i}.mlp."
    return (
        row("blk.{i}.ffn_gate.weight", at + "gate_proj.weight", "n_ff, n_embd", when=when),
        row("blk.{i}.ffn_up.weight", at + "up_proj.weight", "n_ff, n_embd", when=when),
        row("blk.{i}.ffn_down.weight", at + "down_proj.weight", "n_embd, n_ff", when=when),
        row("blk.{i}.ffn_gate.bias", at + "gate_proj.bias", "n_ff", when=when, optional="mlp_bias"),
        row("blk.{i}.ffn_up.bias", at + "up_proj.bias", "n_ff", when=when, optional="mlp_bias"),
        row("blk.{i}.ffn_down.bias", at + "down_proj.bias", "n_embd", when=when, optional="mlp_bias"),
    )


_at = "{p}layers.{i}."

QK_NORMS = (
    row("blk.{i}.attn_q_norm.weight", _at + "self_attn.q_norm.weight", "head_dim"),
    row("blk.{i}.attn_k_norm.weight", _at + "self_attn.k_norm.weight", "head_dim"),
)


def experts(at: str = "mlp.", where: str = "i >= n_dense") -> tuple[Row, ...]:
    """Rows of a router and its experts, which files keep apart, and some releases of transformers and MLX stack.

    where: an expression; the layers that have experts.
    """
    when = f"n_expert and {where}"
    one, all_of_them, mlx = (_at + at + name for name in ("experts.{e}.", "experts.", "switch_mlp."))
    return (
        row("blk.{i}.ffn_gate_inp.weight", _at + at + "gate.weight", "n_expert, n_embd", when=when),
        row(
            ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_up_exps.weight"),
            (one + "gate_proj.weight", one + "up_proj.weight"),
            ("n_expert, n_ff_exp, n_embd", "n_expert, n_ff_exp, n_embd"),
            Stack(2),
            when=when,
            alt=(
                Form(
                    (all_of_them + "gate_up_proj",),
                    (Split(("n_ff_exp", "n_ff_exp"), "n_expert", hf_stacked=True, gguf_stacked=True),),
                ),
                Form((mlx + "gate_proj.weight", mlx + "up_proj.weight")),
            ),
        ),
        row(
            "blk.{i}.ffn_down_exps.weight",
            one + "down_proj.weight",
            "n_expert, n_embd, n_ff_exp",
            Stack(),
            when=when,
            alt=(Form((all_of_them + "down_proj",)), Form((mlx + "down_proj.weight",))),
        ),
    )


def shared_experts(at: str = "mlp.shared_experts.", where: str = "i >= n_dense") -> tuple[Row, ...]:
    """Rows of the experts that every token goes through, which are one gated block.

    where: an expression; the layers that have them.
    """
    when = f"n_ff_shexp and {where}"
    return (
        row("blk.{i}.ffn_gate_shexp.weight", _at + at + "gate_proj.weight", "n_ff_shexp, n_embd", when=when),
        row("blk.{i}.ffn_up_shexp.weight", _at + at + "up_proj.weight", "n_ff_shexp, n_embd", when=when),
        row("blk.{i}.ffn_down_shexp.weight", _at + at + "down_proj.weight", "n_embd, n_ff_shexp", when=when),
    )


def choice_bias(
    hf: str = "mlp.gate.e_score_correction_bias", where: str = "i >= n_dense", gguf: str = "exp_probs_b.bias"
) -> Row:
    """The row of the bias that steers which experts are chosen, and is in none of their weights."""
    return row("blk.{i}." + gguf, _at + hf, "n_expert", when=f"n_expert and {where}", optional=True)


_nextn = "i >= n_layer - n_nextn"

NEXTN = (
    row("blk.{i}.nextn.eh_proj.weight", _at + "eh_proj.weight", "n_embd, 2 * n_embd", when=_nextn),
    row("blk.{i}.nextn.enorm.weight", _at + "enorm.weight", "n_embd", when=_nextn),
    row("blk.{i}.nextn.hnorm.weight", _at + "hnorm.weight", "n_embd", when=_nextn),
    row(
        "blk.{i}.nextn.embed_tokens.weight",
        _at + "embed_tokens.weight",
        "n_vocab, n_embd",
        when=_nextn,
        optional=True,
    ),
    row(
        "blk.{i}.nextn.shared_head_head.weight",
        _at + "shared_head.head.weight",
        "n_vocab, n_embd",
        when=_nextn,
        optional=True,
    ),
    row(
        "blk.{i}.nextn.shared_head_norm.weight",
        _at + "shared_head.norm.weight",
        "n_embd",
        when=_nextn,
        optional=True,
    ),
)
"""What the layers that predict further tokens have beside those of any layer; nothing here computes with them."""


def predicting(rows: Iterable[Row], at: str = "{p}layers.{i}.", further: str = "mtp.layers.{m}.") -> tuple[Row, ...]:
    """The rows of a layer, and the same again for layers for further tokens, whose names begin with `further`."""
    out = []
    for each in rows:
        forms = tuple(
            dataclasses.replace(form, patterns=tuple(p.replace(at, further) for p in form.patterns))
            for form in each.forms
        )
        for when, own in (("i < n_layer - n_nextn", each.forms), ("i >= n_layer - n_nextn", forms)):
            out.append(dataclasses.replace(each, forms=own, when=f"{when} and ({each.when})" if each.when else when))
    return tuple(out)


def count_nextn(own: dict[str, Any]) -> None:
    """GGUF counts the layers for further tokens among its blocks."""
    own["block_count"] = np.uint32(own["block_count"] + own.get("nextn_predict_layers", 0))


def uncount_nextn(config: dict[str, Any], dims: Dims) -> None:
    """The way back of `count_nextn`."""
    config["num_hidden_layers"] = dims["n_layer"] - dims["n_nextn"]
    if dims["n_nextn"]:
        config["num_nextn_predict_layers"] = dims["n_nextn"]


def shifted(rows: tuple[Row, ...], end: str = "_norm.weight") -> tuple[Row, ...]:
    """The norms' weights among the rows, whose names end so, with a Shift."""
    return tuple(
        dataclasses.replace(r, forms=tuple(dataclasses.replace(f, ops=(Shift(),)) for f in r.forms))
        if r.gguf[0].endswith(end)
        else r
        for r in rows
    )


# Where the older names of transformers differ from the later ones, both are listed.
GPT_KEYS = keys("""
    block_count                     u32   n_layer|num_hidden_layers
    context_length                  u32   n_positions|n_ctx|max_position_embeddings
    embedding_length                u32   n_embd|hidden_size
    feed_forward_length             u32   n_inner|intermediate_size       = 4 * n_embd
    attention.head_count            u32   n_head|num_attention_heads
    attention.layer_norm_epsilon    f32   layer_norm_epsilon|layer_norm_eps   1e-5
""")


def norm(gguf: str, hf: str, when: str = "", optional: Optional = False) -> Any:
    """Rows of a LayerNorm: weight and bias."""
    return (
        row(gguf + ".weight", hf + ".weight", "n_embd", when=when, optional=optional),
        row(gguf + ".bias", hf + ".bias", "n_embd", when=when, optional=optional),
    )


LAYER_NORMS = (
    EMBEDDINGS[0],
    *norm("output_norm", "{p}norm"),
    HEAD,
    *norm("blk.{i}.attn_norm", _at + "input_layernorm"),
)
"""Embeddings and the norm before attention where norms are LayerNorms."""


def linear(gguf: str, hf: str, n_out: str, n_in: str, *ops: Any, bias: bool | str = False) -> Any:
    """Rows of a linear layer with a bias; GPT-2's Conv1D needs a Transpose of the weight."""
    moves = tuple(op for op in ops if not isinstance(op, Transpose))
    return (
        row(gguf + ".weight", hf + ".weight", f"{n_out}, {n_in}", *ops),
        row(gguf + ".bias", hf + ".bias", n_out, *moves, optional=bias),
    )


def each_layer(own: Mapping[str, Any], key: str) -> list[int]:
    """A setting that GGUF states for each layer, or once for all."""
    return [int(n) for n in np.atleast_1d(own.get(key, 0))]


def check_text_model(config: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """`Unsupported` where the text model inside a multimodal configuration is of none of these types."""
    inner = text_config(config)
    kind = inner.get("model_type") if inner is not config else None
    if kind not in (None, *known):
        raise Unsupported(
            f"config.json: the text model is {kind!r:.60}, known inside {config.get('model_type')}: {', '.join(known)}"
            "; --layout plain converts any tensors under their own names"
        )
