"""The parts that a decoder is assembled from: one module a tensor, or a weight with its bias, under GGUF's names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from llmconv.convert.decoders.facts import Decoder, Layer
from llmconv.errors import Unsupported
from llmconv.quant.block import BlockType
from llmconv.runtime.layers.norms import Norm
from llmconv.runtime.layers.switch import Lora, Switched
from llmconv.runtime.linear import Embedding, ExpertLinear, Linear

__all__ = ["END_VECTORS", "LayerPieces", "Pieces", "Types", "grouped", "piece"]

Types = Mapping[str, type[BlockType] | torch.dtype]
"""How each tensor is stored: blocks of a type, or plain numbers; absent: float32."""

LINEAR = (
    *(
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_qkv",
        "attn_output",
        "attn_gate",
        "attn_q_a",
        "attn_q_b",
        "attn_kv_a_mqa",
        "attn_kv_b",
    ),
    *("ffn_up", "ffn_gate", "ffn_down", "ffn_gate_inp"),
    *("ffn_up_shexp", "ffn_gate_shexp", "ffn_down_shexp", "ffn_gate_inp_shexp"),
    *("ffn_latent_down", "ffn_latent_up"),  # around experts
    *("in_proj", "out_proj"),  # of a short convolution
    *("ssm_in", "ssm_x", "ssm_dt", "ssm_out", "ssm_ba", "ssm_alpha", "ssm_beta"),
    *("ssm_f_a", "ssm_f_b", "ssm_g_a", "ssm_g_b"),
    *("per_layer_model_proj", "inp_gate", "proj"),  # of vectors for each layer
    *("altup_router", "altup_correct_coef", "altup_predict_coef", "laurel_l", "laurel_r"),
    *(f"time_mix_{name}" for name in ("receptance", "key", "value", "gate", "output", "decay_w1", "decay_w2")),
    *(f"time_mix_{letter}{part}" for letter in "wavg" for part in "12"),
    *("channel_mix_key", "channel_mix_value", "channel_mix_receptance"),
    *("q_proj", "k_proj"),  # of an indexer
    *(f"hc_{block}_{part}" for block in ("attn", "ffn") for part in ("fn", "down", "up", "inject")),  # of streams
    *("attn_kv", "attn_output_a", "attn_output_b", "attn_compressor_kv", "attn_compressor_gate"),  # of runs
    *("indexer_compressor_kv", "indexer_compressor_gate", "ple_key", "ple_value"),
    *("ssm_g", "ffn_routed_down", "ffn_routed_up"),
)
EXPERTS = (
    *("ffn_up_chexps", "ffn_gate_chexps", "ffn_down_chexps"),
    *("ffn_up_exps", "ffn_gate_exps", "ffn_down_exps", "ffn_gate_up_exps", "attn_k_b", "attn_v_b"),
    *("altup_proj", "altup_unembd_proj", "time_mix_w2"),
)
ENDS = ("token_embd_in", "output_in", "dense_2", "dense_3", "output_hc_fn", "output_hc_down", "output_hc_up")
NORMS = (
    *("attn_norm", "attn_norm_2", "ffn_norm", "post_attention_norm", "post_ffw_norm", "attn_output_norm"),
    *("layer_output_norm", "attn_q_norm", "attn_k_norm", "attn_q_a_norm", "attn_kv_a_norm"),
    *("attn_sub_norm", "ffn_sub_norm", "ffn_norm_exps", "ssm_norm", "ssm_dt_norm", "ssm_b_norm", "ssm_c_norm"),
    *("hc_norm", "attn_compressor_norm", "indexer_compressor_norm", "ffn_routed_norm"),
    *("length_one", "attn_v_norm", "router_norm", "pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"),
    *("post_norm", "per_layer_proj_norm", "altup_router_norm", "laurel_post_norm", "q_norm", "k_norm"),
)
VECTORS = ("attn_sinks", "exp_probs_b", "conv", "ssm_conv1d", "ssm_a", "ssm_d", *(f"ssm_conv1d_{p}" for p in "qkv"))
VECTORS += ("layer_output_scale", "altup_correct_scale", "attn_rel_b", "ffn_exps_out")
VECTORS += ("channel_mix_lerp_k", "channel_mix_lerp_r", "attn_res_score", "ffn_res_score", "ple_conv1d")
VECTORS += tuple(f"hc_{block}_{part}" for block in ("attn", "ffn") for part in ("base", "scale", "norm"))
VECTORS += ("attn_compressor_ape", "indexer_compressor_ape", *(f"ple_norm_{part}" for part in ("key", "query", "conv")))
END_VECTORS = ("output_hc_base", "output_hc_scale", "output_hc_norm", "output_res_score")
TABLES = ("ffn_gate_tid2eid",)
VECTORS += tuple(
    f"time_mix_{name}"
    for name in ("lerp_x", "lerp_fused", "decay", "first", "w0", "a0", "v0", "k_k", "k_a", "r_k", "ln")
)
CLASSIFIER = "cls"
"""The layer in front of a classifier's `cls.output`, with its norm, `cls.norm`."""
# What no text is computed with: derived tables, layers for further tokens, matrices for the tokens of an image.
_DERIVED = re.compile(
    r"blk\.\d+\.(attn_rot_embd|rope_freqs)\.weight|blk\.\d+\.nextn\..*|blk\.\d+\.vis_.*|blk\.\d+\.indexer\..*|rope_factors_.*|rope_freqs\..*"
    r"|blk\.\d+\.exp_probs_b_vl\..*"
)


class Pieces(nn.Module):
    """Modules under GGUF's names as attributes, None where the model has no such tensor."""

    def __getattr__(self, name: str) -> Any:  # the type checker cannot see registered modules otherwise
        return super().__getattr__(name)


class LayerPieces(Pieces):
    """What attention and MLP find in a layer: its number, what it is made of, and its modules."""

    index: int
    spec: Layer

    def __init__(self) -> None:
        super().__init__()
        for name in (*LINEAR, *EXPERTS, *NORMS, *VECTORS, *TABLES, "shortconv", "indexer"):
            self.register_module(name, None)


class _Vector(nn.Module):
    """A lone tensor under its own name."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=dtype)))


class _Table(nn.Module):
    """Whole numbers."""

    weight: torch.Tensor

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int32))


def grouped(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """Piece name -> {"weight": shape, "bias": shape} for the tensors that start with `prefix` (no deeper ones)."""
    out: dict[str, dict[str, tuple[int, ...]]] = {}
    for full, shape in shapes.items():
        if full.startswith(prefix) and not _DERIVED.fullmatch(full):
            name, _, part = full[len(prefix) :].rpartition(".")
            if not name:
                name, part = part, ""  # a lone tensor (Hy3's exp_probs_b)
            if "." not in name:
                out.setdefault(name, {})[part] = shape
    return out


def piece(name: str, parts: Mapping[str, tuple[int, ...]], decoder: Decoder, types: Types, full: str) -> nn.Module:
    """The module for one tensor or a weight with its bias."""
    if "scale" in parts:  # Gemma 4's, of what a router reads and of what its experts give; Talkie's, of a sublayer
        made = piece(name, {k: v for k, v in parts.items() if k != "scale"}, decoder, types, full)
        if isinstance(made, Linear):
            made.scaled = name in ("attn_output", "ffn_down")
        made.register_parameter("scale", nn.Parameter(torch.zeros(parts["scale"])))
        return made
    if "lora_a" in parts:
        return _with_adapters(parts, types, full)
    shape, bias = parts.get("weight"), parts.get("bias")
    kind, dtype = _stored(types, f"{full}.weight")
    if name in TABLES and shape is not None:
        return _Table(shape)
    if name in (*VECTORS, *END_VECTORS) or (name == "ssm_dt" and shape is None):
        return _Vector(parts, dtype if shape is not None else torch.float32)
    if name in NORMS and set(parts) == {""}:
        return Norm(decoder.norm, parts[""], bare=True)
    if shape is not None and set(parts) <= {"weight", "bias"}:
        if name in ("token_embd", "position_embd", "token_types", "per_layer_token_embd"):
            return Embedding(shape, kind, None, dtype)
        if name in NORMS or name in ("token_embd_norm", "output_norm", "norm"):
            spec, latents = decoder.norm, ("attn_q_a_norm", "attn_kv_a_norm", "attn_norm_2")
            if decoder.behind_eps is not None and name in ("post_attention_norm", "post_ffw_norm"):
                spec = dataclasses.replace(spec, eps=decoder.behind_eps)
            if decoder.qk_norm is not None and name in ("attn_q_norm", "attn_k_norm"):
                spec = decoder.qk_norm
            if decoder.latent_eps is not None and name in latents:
                spec = dataclasses.replace(spec, eps=decoder.latent_eps)
            return Norm(spec, shape, bias is not None, dtype)
        if (name in LINEAR or name in (CLASSIFIER, "output", *ENDS)) and len(shape) == 2:
            return Linear(shape, kind, bias, dtype)
        if name == "ffn_gate_inp_shexp":  # one row, stored as a vector
            return Linear((1, *shape), kind, bias, dtype)
        if name in EXPERTS and len(shape) == 3:
            return ExpertLinear(shape, kind, bias, dtype)
    raise Unsupported(
        f"tensor '{full}' of shape {list(shape or bias or ())} has no place in the {decoder.arch} decoder known here, "
        "so running the model without it would be wrong; it can be converted all the same"
    )


def _stored(types: Types, full: str) -> tuple[type[BlockType] | None, torch.dtype]:
    """The blocks that a tensor is kept in, or the kind of its numbers."""
    stored = types.get(full, torch.float32)
    return (None, stored) if isinstance(stored, torch.dtype) else (stored, torch.float32)


def _with_adapters(parts: Mapping[str, tuple[int, ...]], types: Types, full: str) -> nn.Module:
    """A matrix with the adapters that tokens turn on, or these alone (Granite Switch)."""

    def stack(part: str) -> ExpertLinear:
        kind, dtype = _stored(types, f"{full}.{part}")
        return ExpertLinear(parts[part], kind, None, dtype)

    lora = Lora(stack("lora_a"), stack("lora_b"))
    if "weight" not in parts:
        return lora
    kind, dtype = _stored(types, f"{full}.weight")
    return Switched(parts["weight"], kind, parts.get("bias"), dtype, lora)
