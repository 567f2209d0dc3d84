"""Mamba 1 and Falcon Mamba, Mamba 2: scans alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import HEAD
from llmconv.convert.archs.recurrent.parts import NO_LIMIT, dual_scan, selective_scan
from llmconv.convert.tables.architecture import Architecture, Form, HfName, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims

_at = "{p}layers.{i}."

_KEYS = """
    context_length                    u32   -                                 1048576
    embedding_length                  u32   hidden_size|d_model
    feed_forward_length               u32   -                                 0
    attention.head_count              u32   -                                 0
    block_count                       u32   num_hidden_layers|n_layer
    ssm.conv_kernel                   u32   conv_kernel|d_conv                4
    attention.layer_norm_rms_epsilon  f32   layer_norm_epsilon|rms_norm_eps   1e-5
"""

_ENDS = (
    row(
        "token_embd.weight",
        "{p}embeddings.weight",
        "n_vocab, n_embd",
        alt=(Form(("{p}embedding.weight",)),),
    ),
    row("output_norm.weight", "{p}norm_f.weight", "n_embd"),
    HEAD,
    row("blk.{i}.attn_norm.weight", _at + "norm.weight", "n_embd"),
)

_INERT = (
    "expand residual_in_fp32 rescale_prenorm_residual time_step_scale time_step_min time_step_max time_step_floor"
    " time_step_init_scheme use_mambapy use_associative_scan use_falcon_mambapy fused_add_norm rms_norm"
    " d_intermediate attn_layer_idx attn_cfg ssm_cfg pad_vocab_size_multiple"
)


def _inner(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Rows of padded vocabularies; the width inside, by what it is made of where that is stated."""
    if many := int(config.get("pad_vocab_size_multiple") or 0):
        own["vocab_size"] = np.uint32(-(-int(config["vocab_size"]) // many) * many)
    if (times := config.get("expand")) is not None:
        own["ssm.inner_size"] = np.uint32(int(times * dims["n_embd"]))


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _inner(own, config, dims)
    rank = config.get("time_step_rank", config.get("dt_rank", "auto"))
    own["ssm.time_step_rank"] = np.uint32(-(-dims["n_embd"] // 16) if rank == "auto" else rank)
    falcon = config.get("model_type") == "falcon_mamba"
    own["ssm.dt_b_c_rms"] = falcon
    if falcon:
        own["ssm.dt_b_c_rms_epsilon"] = np.float32(config.get("mixer_rms_eps", 1e-6))


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["time_step_rank"] = dims["dt_rank"]
    config["expand"] = dims["d_inner"] // dims["n_embd"]
    if own.get("ssm.dt_b_c_rms"):
        config |= {"architectures": ["FalconMambaForCausalLM"], "model_type": "falcon_mamba"}
        config["mixer_rms_eps"] = float(str(np.float32(own.get("ssm.dt_b_c_rms_epsilon", 1e-6))))


MAMBA = Architecture(
    "mamba",
    (
        HfName("MambaForCausalLM", "mamba"),
        HfName("MambaLMHeadModel", "mamba"),
        HfName("FalconMambaForCausalLM", "falcon_mamba"),
    ),
    keys=keys(
        _KEYS
        + """
        ssm.inner_size                    u32   intermediate_size|d_inner         = 2 * n_embd
        ssm.state_size                    u32   state_size|d_state                16
        """
    ),
    rows=(*_ENDS, *selective_scan(_at + "mixer.")),
    prefixes=("backbone.", "model.backbone.", ""),
    tied=True,
    finish=_finish,
    rebuild=_rebuild,
    decoder={"positions": "none"},
    reads="time_step_rank dt_rank mixer_rms_eps",
    inert=_INERT,
    loader=Loader(
        unread=("ssm.dt_b_c_rms_epsilon",),
        pieces={"scan_norms_by_model": True},
        refused=("blk.{i}.ssm_in.bias", "blk.{i}.ssm_out.bias"),
        needed=("blk.{i}.ssm_conv1d.bias",),
        wants={"d_inner == 2 * n_embd": "twice as many numbers in a scan as in a token's vector"},
    ),
)


def _finish2(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _inner(own, config, dims)
    inner = int(own["ssm.inner_size"])
    own["ssm.time_step_rank"] = np.uint32(inner // int(config.get("head_dim", 64)))


def _rebuild2(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["expand"] = dims["d_inner"] // dims["n_embd"]
    config["num_heads"] = dims["dt_rank"]
    config["head_dim"] = dims["d_inner"] // dims["dt_rank"]


MAMBA2 = MAMBA.variant(
    "mamba2",
    HfName("Mamba2ForCausalLM", "mamba2"),
    keys=keys("""
        ssm.state_size                    u32   state_size|d_state                128
        ssm.group_count                   u32   n_groups                          1
    """),
    rows=dual_scan(_at + "mixer."),
    drop=("blk.{i}.ssm_x.weight", "blk.{i}.ssm_dt.weight"),
    tied=False,
    finish=_finish2,
    rebuild=_rebuild2,
    reads="head_dim",
    inert="num_heads time_step_rank chunk_size norm_before_gate",
    fixed={"time_step_limit": NO_LIMIT},
    loader=Loader(
        without=("d_inner == 2 * n_embd",),
        wants={"d_inner == 2 * n_embd": "twice as many numbers in a scan as in a token's vector"},
    ),
)

ARCHITECTURES = (MAMBA, MAMBA2)
