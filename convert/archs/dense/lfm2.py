"""LFM2, dense and with experts: short convolutions in most layers, attention in some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import choice_bias
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.config import has_class
from llmconv.convert.tables.loader import CHOICE, Loader
from llmconv.convert.tables.ops import Dims, Reshape, Stack
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_attn = _at + "self_attn."

_ff = _at + "feed_forward."

_KINDS = ("conv", "full_attention", "sliding_attention")


def _layers(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Heads of keys and values of each layer: none where it is a convolution."""
    kinds, n_layer = config.get("layer_types"), min(dims["n_layer"], 1 << 16)
    if not isinstance(kinds, list):
        full = config.get("full_attn_idxs") or []
        kinds = ["full_attention" if i in full else "conv" for i in range(n_layer)]
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        raise Unsupported(f"config.json: layer_types has {unknown[0]!r:.60}; known: {', '.join(_KINDS)}")
    heads = [0 if kind == "conv" else dims["n_head_kv"] for kind in kinds[:n_layer]]
    own["attention.head_count_kv"] = np.asarray(heads, np.int32)


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _layers(own, config, dims)
    if has_class(config, "Lfm2BidirectionalModel"):
        own["attention.causal"] = False
    if _decodes(config):
        own["attention.sliding_window"] = np.uint32(config["sliding_window"])
    if config.get("block_auto_adjust_ff_dim", True):  # two thirds, in multiples
        width = int(2 * dims["n_ff"] / 3)
        if (times := config.get("block_ffn_dim_multiplier", 1.0)) is not None:
            width = int(times * width)
        unit = int(config.get("block_multiple_of", 256))
        own["feed_forward_length"] = np.uint32(unit * ((width + unit - 1) // unit))


def _disputed(config: Mapping[str, Any]) -> list[str]:
    """transformers has no class that sees both sides."""
    name = "Lfm2BidirectionalModel"
    return [f"the class {name}"] if has_class(config, name) else []


def _decodes(config: Mapping[str, Any]) -> bool:
    """Whether it is the part of LFM2.5 Audio that makes sound of codes."""
    return has_class(config, "Lfm25AudioTokenizer")


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    heads = own.get("attention.head_count_kv")
    if isinstance(heads, np.ndarray | list | tuple):
        config["num_key_value_heads"] = max((int(n) for n in heads), default=0)
        config["layer_types"] = ["full_attention" if n else "conv" for n in heads]
    config["block_auto_adjust_ff_dim"] = False
    if own.get("attention.causal") is False:
        config["architectures"] = ["Lfm2BidirectionalModel"]
    if dims["n_backbone"]:
        config["architectures"] = ["Lfm25AudioTokenizer"]
        config["sliding_window"] = dims["window"]


def _mlp(when: str = "") -> Any:
    return (
        row("blk.{i}.ffn_gate.weight", _ff + "w1.weight", "n_ff, n_embd", when=when),
        row("blk.{i}.ffn_down.weight", _ff + "w2.weight", "n_embd, n_ff", when=when),
        row("blk.{i}.ffn_up.weight", _ff + "w3.weight", "n_ff, n_embd", when=when),
    )


_conv, _full = "not n_head_kv", "n_head_kv"

LFM2 = Architecture(
    "lfm2",
    (
        HfName("Lfm2ForCausalLM", "lfm2"),
        HfName("LFM2ForCausalLM", "lfm2"),
        HfName("Lfm2Model", "lfm2"),
        HfName("Lfm2BidirectionalModel", "lfm2"),
        HfName("Lfm25AudioTokenizer", "lfm2"),
    ),
    keys=keys("""
        block_count                       u32   num_hidden_layers
        context_length                    u32   max_position_embeddings
        embedding_length                  u32   hidden_size
        feed_forward_length               u32   block_ff_dim|intermediate_size
        attention.head_count              u32   num_attention_heads
        attention.head_count_kv           u32   num_key_value_heads       = n_head
        rope.freq_base                    f32   rope_theta                1000000
        attention.layer_norm_rms_epsilon  f32   norm_eps                  1e-5
        vocab_size                        u32   vocab_size
        shortconv.l_cache                 u32   conv_L_cache              3
        embedding_length_out              u32   output_size
    """),
    rows=(
        row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd"),
        row("token_embd_norm.weight", "{p}embedding_norm.weight", "n_embd"),
        row("output.weight", "lm_head.weight", "n_vocab, n_embd", optional="!tie_word_embeddings"),
        row("dense_2.weight", "lin.weight", "n_backbone, n_embd", when="n_backbone", optional=_decodes),
        row("dense_2.bias", "lin.bias", "n_backbone", when="n_backbone", optional=_decodes),
        row("blk.{i}.attn_norm.weight", _at + "operator_norm.weight", "n_embd"),
        row(
            "blk.{i}.shortconv.conv.weight",
            _at + "conv.conv.weight",
            "n_embd, n_conv",
            Reshape(("n_embd", 1, "n_conv"), ("n_embd", "n_conv")),
            when=_conv,
        ),
        row("blk.{i}.shortconv.in_proj.weight", _at + "conv.in_proj.weight", "3 * n_embd, n_embd", when=_conv),
        row("blk.{i}.shortconv.out_proj.weight", _at + "conv.out_proj.weight", "n_embd, n_embd", when=_conv),
        row("blk.{i}.attn_q.weight", _attn + "q_proj.weight", "n_head * head_dim, n_embd", when=_full),
        row("blk.{i}.attn_k.weight", _attn + "k_proj.weight", "n_head_kv * head_dim, n_embd", when=_full),
        row("blk.{i}.attn_v.weight", _attn + "v_proj.weight", "n_head_kv * head_dim, n_embd", when=_full),
        row("blk.{i}.attn_output.weight", _attn + "out_proj.weight", "n_embd, n_head * head_dim", when=_full),
        row("blk.{i}.attn_q_norm.weight", _attn + "q_layernorm.weight", "head_dim", when=_full),
        row("blk.{i}.attn_k_norm.weight", _attn + "k_layernorm.weight", "head_dim", when=_full),
        row("blk.{i}.ffn_norm.weight", _at + "ffn_norm.weight", "n_embd"),
        *_mlp(),
    ),
    prefixes=("model.", "", "language_model.model.", "model.language_model.", "lfm."),
    dropped=(r".*\.rotary_emb\.inv_freq", r"istft\.window"),
    unplaced=(r"emb\.emb\..*",),
    tied=True,
    finish=_finish,
    rebuild=_rebuild,
    dense={"dense_2": ("1_Dense", "", "embedding_length_out")},
    disputed=_disputed,
    decoder={"output_norm": "token_embd_norm", "activation_key": "", "window_pattern": 0},
    reads="layer_types full_attn_idxs block_auto_adjust_ff_dim block_ffn_dim_multiplier block_multiple_of"
    " intermediate_size sliding_window",
    inert="block_dim block_mlp_init_scale block_norm_eps block_out_init_scale block_use_swiglu"
    " block_use_xavier_init conv_dim conv_dim_out conv_use_xavier_init num_heads use_pos_enc theta",
    fixed={"conv_bias": False},
    loader=Loader(somewhere={"blk.{i}.shortconv.conv.weight": "a short convolution"}),
)

_when = "i >= n_dense"

LFM2_MOE = LFM2.variant(
    "lfm2moe",
    HfName("Lfm2MoeForCausalLM", "lfm2_moe"),
    drop=("dense_2.weight", "dense_2.bias", "embedding_length_out"),
    keys=keys("""
        feed_forward_length               u32   intermediate_size
        expert_count                      u32   num_experts
        expert_used_count                 u32   num_experts_per_tok
        expert_feed_forward_length        u32   moe_intermediate_size
        leading_dense_block_count         u32   num_dense_layers
    """),
    rows=(
        *_mlp("i < n_dense"),
        row("blk.{i}.ffn_gate_inp.weight", _ff + "gate.weight", "n_expert, n_embd", when=_when),
        row(
            "blk.{i}.ffn_gate_exps.weight",
            _ff + "experts.{e}.w1.weight",
            "n_expert, n_ff_exp, n_embd",
            Stack(),
            when=_when,
        ),
        row(
            "blk.{i}.ffn_down_exps.weight",
            _ff + "experts.{e}.w2.weight",
            "n_expert, n_embd, n_ff_exp",
            Stack(),
            when=_when,
        ),
        row(
            "blk.{i}.ffn_up_exps.weight",
            _ff + "experts.{e}.w3.weight",
            "n_expert, n_ff_exp, n_embd",
            Stack(),
            when=_when,
        ),
        choice_bias("feed_forward.expert_bias"),
    ),
    constants={"expert_gating_func": np.uint32(2)},
    finish=_layers,
    rebuild=_rebuild,
    decoder={"gating": "sigmoid", "normalize_experts": True, "window_pattern": None},  # llama.cpp gives it no window
    inert="num_local_experts",
    fixed={"norm_topk_prob": True, "routed_scaling_factor": 1.0, "use_expert_bias": (True, False)},
    loader=Loader(needed=CHOICE),
)

ARCHITECTURES = (LFM2, LFM2_MOE)
