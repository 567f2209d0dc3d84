"""PLaMo 2: a scan of its own in every other layer; norms on both sides of the sublayers, as PLaMo 3's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.dense.plamo3 import PLAMO3
from llmconv.convert.archs.recurrent.parts import convolution, only
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Dims, NegativeExp

_mix = "{p}layers.layers.{i}.mixer."

_LAYERS = 1 << 16  # as many as are looked at one by one

_scan, _full = "not n_head_kv", "n_head_kv"

_rank = "64 + (n_embd // 16 - 64) * (n_embd // 16 > 64)"

_shared = tuple(
    r for r in PLAMO3.rows if "attn_qkv" not in r.gguf[0] and "_q_" not in r.gguf[0] and "_k_" not in r.gguf[0]
)


def _attending(config: Mapping[str, Any], n_layer: int) -> list[bool]:
    """Which layers have attention: one of every `mamba_step`, the last of a model with fewer layers than half of it."""
    step = int(config.get("mamba_step", 2))
    if not config.get("mamba_enabled", True):
        return [True] * n_layer
    if n_layer <= step // 2:
        return [i == n_layer - 1 for i in range(n_layer)]
    return [i % step == step // 2 for i in range(n_layer)]


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    full = _attending(config, min(dims["n_layer"], _LAYERS))
    # Heads are one number: how much of each turns llama.cpp takes from the first layer's, and never ends where it is 0.
    own["attention.head_count_kv"] = np.asarray([dims["n_head_kv"] * on for on in full], np.int32)
    own["ssm.inner_size"] = np.uint32(dims["dt_rank"] * dims["head_dim"])
    own["ssm.group_count"] = np.uint32(0)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    for name, key in (("num_attention_heads", "head_count"), ("num_key_value_heads", "head_count_kv")):
        config[name] = max(int(n) for n in np.atleast_1d(own[f"attention.{key}"]))
    full = [i for i, n in enumerate(np.atleast_1d(own["attention.head_count_kv"])) if n]
    count = dims["n_layer"]
    config["mamba_enabled"] = len(full) < count
    if len(full) > 1:
        config["mamba_step"] = full[1] - full[0]
    else:
        config["mamba_step"] = 2 * (count if full == [count - 1] else full[0] if full else 2)


PLAMO2 = Architecture(
    "plamo2",
    (HfName("Plamo2ForCausalLM", "plamo2"), HfName("PLaMo2ForCausalLM", "plamo2")),
    keys=keys("""
        vocab_size                        u32   vocab_size
        attention.head_count              u32   num_attention_heads         32
        attention.head_count_kv           u32   num_key_value_heads         4
        context_length                    u32   max_position_embeddings     2048
        embedding_length                  u32   hidden_size                 4096
        attention.key_length              u32   hidden_size_per_head        128
        attention.value_length            u32   hidden_size_per_head        128
        block_count                       u32   num_hidden_layers
        attention.layer_norm_rms_epsilon  f32   rms_norm_eps                1e-6
        rope.freq_base                    f32   rope_theta                  10000
        ssm.state_size                    u32   mamba_d_state               64
        ssm.conv_kernel                   u32   mamba_d_conv                4
        ssm.time_step_rank                u32   mamba_num_heads             64
        feed_forward_length               u32   intermediate_size           13312
    """),
    rows=(
        *(dataclasses.replace(r, when=_full) if "attn_output" in r.gguf[0] else r for r in _shared),
        *only(
            (
                row("blk.{i}.attn_qkv.weight", _mix + "qkv_proj.weight", "(n_head + 2 * n_head_kv) * head_dim, n_embd"),
                row("blk.{i}.attn_q_norm.weight", _mix + "q_weight", "n_head, head_dim"),
                row("blk.{i}.attn_k_norm.weight", _mix + "k_weight", "n_head_kv, head_dim"),
            ),
            _full,
        ),
        *only(
            (
                row("blk.{i}.ssm_in.weight", _mix + "in_proj.weight", "2 * d_inner, n_embd"),
                *convolution("blk.{i}.ssm_conv1d", _mix + "conv1d", "d_inner")[:1],
                row("blk.{i}.ssm_x.weight", _mix + "bcdt_proj.weight", f"{_rank} + 2 * d_state, d_inner"),
                row("blk.{i}.ssm_dt.weight", _mix + "dt_proj.weight", f"dt_rank, {_rank}"),
                row("blk.{i}.ssm_dt.bias", _mix + "dt_bias", "dt_rank"),
                row("blk.{i}.ssm_a", _mix + "A_log", "dt_rank", NegativeExp()),
                row("blk.{i}.ssm_d", _mix + "D", "dt_rank"),
                row("blk.{i}.ssm_dt_norm", _mix + "dt_norm_weight", _rank),
                row("blk.{i}.ssm_b_norm", _mix + "B_norm_weight", "d_state"),
                row("blk.{i}.ssm_c_norm", _mix + "C_norm_weight", "d_state"),
                row("blk.{i}.ssm_out.weight", _mix + "out_proj.weight", "n_embd, d_inner"),
            ),
            _scan,
        ),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"activation_key": ""},
    reads="mamba_step mamba_enabled",
    inert="mamba_chunk_size eval_attention_n_bit eval_mlp_n_bit fp8_accum_dtype use_cpu_initialization",
    fixed={"use_predefined_initial_state": False},
)

ARCHITECTURES = (PLAMO2,)
