"""Llama 4: layers that see chunks of the text, and some without positions that see all of it; interleaved experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.archs.parts import HEAD_DIM, attention
from llmconv.convert.tables.architecture import HfName, keys, row
from llmconv.convert.tables.loader import OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, Split, Transpose
from llmconv.errors import Unsupported

_EVERY = 4  # layers, of which the last has no rotary positions
_CHUNK = 8192
_at = "{p}layers.{i}.feed_forward."
_sparse = "n_step and (i + 1) % n_step == 0"
_dense = f"not ({_sparse})"


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    n_layer, step = min(dims["n_layer"], 1 << 16), int(own["interleave_moe_layer_step"])
    every = config.get("no_rope_layer_interval") or _EVERY
    turning = config.get("no_rope_layers") or [(i + 1) % every != 0 for i in range(n_layer)]
    if len(turning) < n_layer:
        raise ValueError(f"fewer entries than the {n_layer} layers")
    turning = [bool(on) for on in turning[:n_layer]]
    chunk = config.get("attention_chunk_size", _CHUNK)
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        if all(kind == "full_attention" for kind in kinds[:n_layer]):
            chunk = None
        elif kinds[:n_layer] != ["chunked_attention" if on else "full_attention" for on in turning]:
            raise Unsupported(
                "config.json: layer_types are not chunked_attention where layers have rotary positions and "
                "full_attention elsewhere, which no GGUF can say"
            )
    if chunk is None:
        own["attention.sliding_window"] = np.uint32(0)
    if (chunk or 0) != _CHUNK:
        own["attention.chunk_size"] = np.uint32(chunk or 0)
    if turning != [(i + 1) % _EVERY != 0 for i in range(n_layer)]:
        own["rope.layers"] = np.asarray(turning, np.bool_)
    sparse = config.get("moe_layers")
    if isinstance(sparse, list) and sparse != (list(range(step - 1, n_layer, step)) if step else []):
        raise Unsupported("config.json: moe_layers are not every so many layers, which no GGUF can say")
    if bool(config.get("use_qk_norm", True)) != (dims["n_expert"] != 128):
        own["attention.qk_norm"] = bool(config.get("use_qk_norm", True))
    grows = config.get("attn_temperature_tuning", True)
    scale, length = float(config.get("attn_scale", 0.1)) if grows else 0.0, int(config.get("floor_scale", _CHUNK))
    if scale != 0.1:
        own["attention.temperature_scale"] = np.float32(scale)
    if length != _CHUNK:
        own["attention.temperature_length"] = np.uint32(length)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    chunk = int(own.get("attention.chunk_size", 0 if own.get("attention.sliding_window") == 0 else _CHUNK))
    config["attention_chunk_size"] = chunk or None
    if (turning := own.get("rope.layers")) is not None:
        config["no_rope_layers"] = [int(on) for on in turning]
    config["use_qk_norm"] = bool(own.get("attention.qk_norm", dims["n_expert"] != 128))
    scale = float(own.get("attention.temperature_scale", 0.1))
    config["attn_temperature_tuning"] = scale != 0
    config["attn_scale"] = float(str(np.float32(scale)))
    config["floor_scale"] = int(own.get("attention.temperature_length", _CHUNK))


LLAMA4 = LLAMA.variant(
    "llama4",
    HfName("Llama4ForCausalLM", "llama4_text"),
    HfName("Llama4ForConditionalGeneration", "llama4"),
    drop=NOT_DENSE,
    keys=(
        *HEAD_DIM,
        *keys("""
            feed_forward_length               u32   intermediate_size_mlp           16384
            expert_feed_forward_length        u32   intermediate_size               8192
            interleave_moe_layer_step         u32   interleave_moe_layer_step       1
            expert_count                      u32   num_local_experts               16
            expert_used_count                 u32   num_experts_per_tok             1
            rope.freq_base                    f32   rope_theta                      500000
            attention.layer_norm_rms_epsilon  f32   rms_norm_eps                    1e-5
        """),
    ),
    rows=(
        *attention(),
        row("blk.{i}.ffn_gate.weight", _at + "gate_proj.weight", "n_ff, n_embd", when=_dense),
        row("blk.{i}.ffn_up.weight", _at + "up_proj.weight", "n_ff, n_embd", when=_dense),
        row("blk.{i}.ffn_down.weight", _at + "down_proj.weight", "n_embd, n_ff", when=_dense),
        row("blk.{i}.ffn_gate_inp.weight", _at + "router.weight", "n_expert, n_embd", when=_sparse),
        row(
            ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_up_exps.weight"),
            _at + "experts.gate_up_proj",
            ("n_expert, n_ff_exp, n_embd", "n_expert, n_ff_exp, n_embd"),
            Transpose(),
            Split(("n_ff_exp", "n_ff_exp"), "n_expert", hf_stacked=True, gguf_stacked=True),
            when=_sparse,
        ),
        row(
            "blk.{i}.ffn_down_exps.weight",
            _at + "experts.down_proj",
            "n_expert, n_embd, n_ff_exp",
            Transpose(),
            when=_sparse,
        ),
        row("blk.{i}.ffn_gate_shexp.weight", _at + "shared_expert.gate_proj.weight", "n_ff_exp, n_embd", when=_sparse),
        row("blk.{i}.ffn_up_shexp.weight", _at + "shared_expert.up_proj.weight", "n_ff_exp, n_embd", when=_sparse),
        row("blk.{i}.ffn_down_shexp.weight", _at + "shared_expert.down_proj.weight", "n_embd, n_ff_exp", when=_sparse),
    ),
    finish=_finish,
    rebuild=_rebuild,
    prefixes=("model.", "language_model.model.", "model.language_model.", ""),
    decoder={
        "no_rope_every": _EVERY,
        "gating": "sigmoid",
        "normalize_experts": False,
        "chunk": _CHUNK,
        "length_one": True,
        "growth_without_rope": _CHUNK,
        "weighed_before": True,
    },
    reads="no_rope_layers no_rope_layer_interval layer_types attention_chunk_size moe_layers use_qk_norm attn_scale"
    " attn_temperature_tuning floor_scale",
    loader=Loader(
        refused=OUT_BIAS,
        unread=(
            *("attention.chunk_size", "attention.qk_norm"),
            *("attention.temperature_scale", "attention.temperature_length"),
        ),
        without=("attention.sliding_window",),
        wants={"n_expert": "experts"},
    ),
)

ARCHITECTURES = (LLAMA4,)
