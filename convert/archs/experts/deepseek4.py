"""DeepSeek V4: several streams of residuals, attention to runs of tokens made one, experts that the words choose.

Names are those of DeepSeek's own programs, of which transformers writes some otherwise.  Each layer sees a window;
`compress_ratios` says of how many tokens it makes one beside it (0: none, 4 with an indexer, 128).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, count_nextn, predicting, uncount_nextn
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Key, Row, keys, row
from llmconv.convert.tables.config import rope_keys
from llmconv.convert.tables.ops import Concat, Dims, Narrowed, Only, Stack, Transpose
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_attn, _ffn = _at + "attn.", _at + "ffn."

_LAYERS = 1 << 16  # as many as are looked at one by one

_KINDS = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}

_further = "i >= n_layer - n_nextn"


def _ratios(config: Mapping[str, Any], count: int) -> list[int]:
    """Of how many tokens each layer makes one: a list of its own, or by the layers' kinds."""
    if isinstance(stated := config.get("compress_ratios"), list):
        found = [int(n) for n in stated]
    else:
        kinds = config.get("layer_types")
        if not isinstance(kinds, list):
            usual = ("heavily_compressed_attention", "compressed_sparse_attention")
            kinds = [usual[i > 1 and i % 2] for i in range(count)]
        if unknown := [kind for kind in kinds if kind not in _KINDS]:
            raise Unsupported(f"config.json: layer_types has {unknown[0]!r:.60}; known: {', '.join(_KINDS)}")
        rates = config.get("compress_rates") or {}
        found = [int(rates.get(kind, _KINDS[kind])) for kind in kinds]
    if unknown := sorted(set(found) - set(_KINDS.values())):
        raise Unsupported(f"config.json: compress_ratios has {unknown[0]}; known: 0, 4, 128")
    return found + [0] * (count - len(found))


def _hashed(config: Mapping[str, Any]) -> int:
    """How many layers, the first ones, have experts that the words choose."""
    kinds = config.get("mlp_layer_types")
    if not isinstance(kinds, list):
        return int(config.get("num_hash_layers", 3))
    count = next((i for i, kind in enumerate(kinds) if kind != "hash_moe"), len(kinds))
    if "hash_moe" in kinds[count:]:
        raise Unsupported("config.json: mlp_layer_types has hash_moe behind another kind, which no GGUF can say")
    return count


def lists(own: dict[str, Any], config: Mapping[str, Any], head_dim: int) -> None:
    """Keys that are lists, or that config.json states in one of two ways."""
    count = min(int(own["block_count"]), _LAYERS)
    own["attention.compress_ratios"] = np.asarray(_ratios(config, count), np.int32)
    own["hash_layer_count"] = np.uint32(min(_hashed(config), count))
    rope = config.get("rope") or {}
    turning = config.get("qk_rope_head_dim")
    if turning is None:
        part = config.get("partial_rotary_factor")
        turning = int(head_dim * (64 / 512 if part is None else part))
    own["rope.dimension_count"] = np.uint32(turning)
    if isinstance(both := rope.get("compress"), Mapping):
        rope_keys(own, {"rope": both}, "config.json")
        own["attention.compress_rope_freq_base"] = np.float32(both["rope_theta"])
        own["rope.freq_base"] = np.float32(rope["main"]["rope_theta"])
    own.pop("rope.scaling.attn_factor", None)  # cos and sin are never scaled
    for name in ("swiglu_clamp_exp", "swiglu_clamp_shexp"):
        own[name] = np.full(count, config.get("swiglu_limit", 10.0), np.float32)


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if not own.get("nextn_predict_layers") or config.get("dspark_block_size"):  # whose layers are a draft of their own
        own.pop("nextn_predict_layers", None)
    count_nextn(own)
    lists(own, config, dims["head_dim"])
    own["embedding_length_out"] = np.uint32(dims["n_embd"] * dims["n_hc"])


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    uncount_nextn(config, dims)
    config.setdefault("num_nextn_predict_layers", 0)
    config["compress_ratios"] = [int(n) for n in own["attention.compress_ratios"]][: dims["n_layer"]]
    config["num_hash_layers"] = dims["n_hash"]
    config["qk_rope_head_dim"] = dims["n_rot"]
    config["swiglu_limit"] = float(np.ravel(own.get("swiglu_clamp_exp", 10.0))[0])
    if "rope_scaling" in config:
        config["rope_scaling"].pop("attention_factor", None)


KEYS = (
    *(key for key in COMMON if key.gguf not in ("attention.head_count_kv", "context_length")),
    *keys("""
        context_length                      u32   max_position_embeddings   1048576
        attention.head_count_kv             u32   num_key_value_heads       1
        attention.key_length                u32   head_dim                  512
        attention.value_length              u32   head_dim                  512
        attention.q_lora_rank               u32   q_lora_rank
        attention.sliding_window            u32   sliding_window            128
        attention.output_group_count        u32   o_groups                  8
        attention.output_lora_rank          u32   o_lora_rank               1024
        attention.compress_rope_freq_base   f32   compress_rope_theta       160000
        attention.indexer.head_count        u32   index_n_heads             64
        attention.indexer.key_length        u32   index_head_dim            128
        attention.indexer.top_k             u32   index_topk                512
        hyper_connection.count              u32   hc_mult                   4
        hyper_connection.sinkhorn_iterations u32  hc_sinkhorn_iters         20
        hyper_connection.epsilon            f32   hc_eps                    1e-6
        expert_count                        u32   n_routed_experts|num_local_experts
        expert_used_count                   u32   num_experts_per_tok
        expert_feed_forward_length          u32   moe_intermediate_size
        expert_shared_count                 u32   n_shared_experts          1
        expert_weights_scale                f32   routed_scaling_factor     1.5
        expert_weights_norm                 bool  norm_topk_prob            true
        nextn_predict_layers                u32   num_nextn_predict_layers
    """),
    Key(
        "expert_gating_func",
        ("scoring_func",),
        "u32",
        "sqrtsoftplus",
        {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4},
    ),
)


def _streams(where: str) -> tuple[Row, ...]:
    """Rows of what mixes the streams before and behind a block."""
    start = f"blk.{{i}}.hc_{where}_"
    return (
        row(start + "fn.weight", _at + f"hc_{where}_fn", "(2 + n_hc) * n_hc, n_hc * n_embd"),
        row(start + "base.weight", _at + f"hc_{where}_base", "(2 + n_hc) * n_hc"),
        row(start + "scale.weight", _at + f"hc_{where}_scale", "3"),
    )


def _compressor(gguf: str, theirs: str, width: str, size: str, when: str) -> tuple[Row, ...]:
    """Rows of what makes one of several tokens; width: of a token's part in it."""
    return (
        row(f"blk.{{i}}.{gguf}_kv.weight", _attn + theirs + "wkv.weight", f"{width}, n_embd", when=when),
        row(f"blk.{{i}}.{gguf}_gate.weight", _attn + theirs + "wgate.weight", f"{width}, n_embd", when=when),
        row(f"blk.{{i}}.{gguf}_ape.weight", _attn + theirs + "ape", f"ratio, {width}", when=when),
        row(f"blk.{{i}}.{gguf}_norm.weight", _attn + theirs + "norm.weight", size, when=when),
    )


def _expert(gguf: str, theirs: str, shape: str) -> tuple[Row, ...]:
    n_out, n_in = shape.split(", ")
    shared = shape.replace("n_ff_exp", "n_ff_shexp")
    return (
        row(
            f"blk.{{i}}.ffn_{gguf}_exps.weight",
            _ffn + f"experts.{{e}}.{theirs}.weight",
            f"n_expert, {n_out}, {n_in}",
            Stack(),
        ),
        row(f"blk.{{i}}.ffn_{gguf}_shexp.weight", _ffn + f"shared_experts.{theirs}.weight", shared),
    )


LAYER = (
    row("blk.{i}.attn_norm.weight", _at + "attn_norm.weight", "n_embd"),
    row("blk.{i}.ffn_norm.weight", _at + "ffn_norm.weight", "n_embd"),
    *_streams("attn"),
    *_streams("ffn"),
    row("blk.{i}.attn_sinks.weight", _attn + "attn_sink", "n_head"),
    row("blk.{i}.attn_q_a.weight", _attn + "wq_a.weight", "q_lora, n_embd"),
    row("blk.{i}.attn_q_a_norm.weight", _attn + "q_norm.weight", "q_lora"),
    row("blk.{i}.attn_q_b.weight", _attn + "wq_b.weight", "n_head * head_dim, q_lora"),
    row("blk.{i}.attn_kv.weight", _attn + "wkv.weight", "head_dim, n_embd"),
    row("blk.{i}.attn_kv_a_norm.weight", _attn + "kv_norm.weight", "head_dim", alt=(Form((_attn + "norm.weight",)),)),
    row("blk.{i}.attn_output_a.weight", _attn + "wo_a.weight", "o_groups * o_lora, n_head * head_dim // o_groups"),
    row("blk.{i}.attn_output_b.weight", _attn + "wo_b.weight", "n_embd, o_groups * o_lora"),
    row("blk.{i}.ffn_gate_inp.weight", _ffn + "gate.weight", "n_expert, n_embd"),
    *_expert("gate", "w1", "n_ff_exp, n_embd"),
    *_expert("down", "w2", "n_embd, n_ff_exp"),
    *_expert("up", "w3", "n_ff_exp, n_embd"),
)
"""The rows of any layer."""

_COMPRESSED = (
    *_compressor("attn_compressor", "compressor.", "(1 + (ratio == 4)) * head_dim", "head_dim", "ratio"),
    row("blk.{i}.indexer.proj.weight", _attn + "indexer.weights_proj.weight", "index_heads, n_embd", when="ratio == 4"),
    row(
        "blk.{i}.indexer.attn_q_b.weight",
        _attn + "indexer.wq_b.weight",
        "index_heads * index_dim, q_lora",
        when="ratio == 4",
    ),
    *_compressor("indexer_compressor", "indexer.compressor.", "2 * index_dim", "index_dim", "ratio == 4"),
)

_CHOICE = (
    row("blk.{i}.exp_probs_b.bias", _ffn + "gate.bias", "n_expert", when="i >= n_hash"),
    row("blk.{i}.exp_probs_b_vl.bias", _ffn + "gate.bias_vl", "n_expert", optional=True),
    row(
        "blk.{i}.ffn_gate_tid2eid.weight",
        _ffn + "gate.tid2eid",
        "n_vocab, n_expert_used",
        Narrowed(),
        when="i < n_hash",
    ),
)

CHOICE = _CHOICE[0]

_EH = (Only(0, Transpose()), Only(1, Transpose()), Concat(("n_embd", "n_embd")), Transpose())

_NEXTN = (
    row(
        "blk.{i}.nextn.eh_proj.weight",
        ("mtp.{m}.e_proj.weight", "mtp.{m}.h_proj.weight"),
        "n_embd, 2 * n_embd",
        *_EH,
        when=_further,
    ),
    row("blk.{i}.nextn.enorm.weight", "mtp.{m}.enorm.weight", "n_embd", when=_further),
    row("blk.{i}.nextn.hnorm.weight", "mtp.{m}.hnorm.weight", "n_embd", when=_further),
    row("blk.{i}.nextn.shared_head_norm.weight", "mtp.{m}.norm.weight", "n_embd", when=_further, optional=True),
)

HEAD = (
    row("output_hc_fn.weight", "{p}hc_head_fn", "n_hc, n_hc * n_embd", alt=(Form(("{p}hc_head.hc_fn",)),)),
    row("output_hc_base.weight", "{p}hc_head_base", "n_hc", alt=(Form(("{p}hc_head.hc_base",)),)),
    row("output_hc_scale.weight", "{p}hc_head_scale", "1", alt=(Form(("{p}hc_head.hc_scale",)),)),
)
"""Rows of what makes one of the streams at the end."""

DEEPSEEK4 = Architecture(
    "deepseek4",
    (HfName("DeepseekV4ForCausalLM", "deepseek_v4"),),
    keys=(*KEYS, *keys("vocab_size  u32  vocab_size")),
    rows=(
        row("token_embd.weight", "{p}embed.weight", "n_vocab, n_embd", alt=(Form(("{p}embed_tokens.weight",)),)),
        row("output_norm.weight", "{p}norm.weight", "n_embd"),
        row("output.weight", "{p}head.weight", "n_vocab, n_embd", alt=(Form(("head.weight",)),)),
        *HEAD,
        *predicting((*LAYER, *_COMPRESSED, *_CHOICE), further="mtp.{m}."),
        *_NEXTN,
    ),
    prefixes=("", "model."),
    kept=(r"mtp\.\d+\.hc_head_(fn|base|scale)", r"(model\.)?layers\.\d+\.ffn\.gate\.bias"),
    unplaced=(r"mtp\.\d+\..*",),
    alone={f"mtp.0.hc_head_{part}": f"output_hc_{part}.weight" for part in ("fn", "base", "scale")},
    finish=_finish,
    rebuild=_rebuild,
    decoder={"rope": "pairs", "clamp_first": True, "window_pattern": 0},
    reads="compress_ratios compress_rates layer_types mlp_layer_types num_hash_layers qk_rope_head_dim swiglu_limit"
    " partial_rotary_factor main compress",
    inert="compress_rope_theta qk_nope_head_dim kv_lora_rank v_head_dim expert_dtype scale_fmt topk_method max_seq_len"
    " num_experts dspark_block_size dspark_target_layer_ids dspark_noise_token_id dspark_markov_rank attention_bias",
    fixed={"mlp_bias": False, "norm_topk_prob": True},  # transformers makes the weights sum to one whatever is said
)

ARCHITECTURES = (DEEPSEEK4,)
