"""One layer of a decoder, described."""

from __future__ import annotations

import dataclasses

from llmconv.convert.decoders.attention import attention_of
from llmconv.convert.decoders.facts import Attention, Layer
from llmconv.convert.decoders.mlp import mlp_of
from llmconv.convert.decoders.scans import Scan, lightning_of, scan_of
from llmconv.convert.decoders.shared import Shared

__all__ = ["layer_of"]


def layer_of(shared: Shared, i: int) -> Layer:
    mlp_norm = str(shared.pieces.get("mlp_norm", "ffn_norm"))
    after = shared.read.flag("norm_before") is False
    residual = shared.read.flag("residual_after_norm", shared.pieces.get("residual_after_norm")) is True
    every = shared.read.count("rescale_every_n_layers", 0)
    mixers, scan = _mixers(shared, i)
    attends = "attention" in mixers or "runs" in mixers
    attention = attention_of(shared, i) if attends else _none(shared)
    mlp = mlp_of(shared, i) if _has_mlp(shared, i, mixers) else None
    if shared.parallel and (mlp is None or not attends):
        raise shared.read.bad(f"layer {i}", "has no feed-forward beside attention, which are said to be parallel")
    if shared.pieces.get("single") and not mixers:
        mlp_norm = "attn_norm"
    return Layer(
        attention,
        mlp,
        shared.parallel,
        mlp_norm,
        after,
        mixers,
        scan,
        norms_inside=bool(shared.pieces.get("norms_inside", False)),
        residual_after_norm=residual,
        stream=shared.read.count("altup.active_idx", 0),
        skips=bool(shared.pieces.get("skips_embedding", False)),
        swapped=bool(shared.pieces.get("may_swap")) and shared.read.flag("swin_norm") is True,
        normed_again=bool(shared.pieces.get("normed_again", False)),
        halved=bool(every) and (i + 1) % every == 0,
    )


def _mixers(shared: Shared, i: int) -> tuple[tuple[str, ...], Scan | None]:
    """What mixes tokens in a layer, and its scan."""
    shapes, scan = shared.read.shapes, scan_of(shared.read, i, bool(shared.pieces.get("scan_norms_by_model")))
    if shared.pieces.get("lightning") and f"blk.{i}.attn_qkv.weight" in shapes:
        scan = lightning_of(shared.read, i, shared.heads[i], shared.n)
    if scan is not None and scan.kind == "delta":
        gate = shared.read.text("ssm.output_gate", shared.pieces.get("delta_gate", "silu"))
        scan = dataclasses.replace(scan, gate=str(gate))
    if scan is not None and shared.pieces.get("activation_key", "hidden_act") == "hidden_act":
        scan = dataclasses.replace(scan, activation=shared.activation)
    attends = any(f"blk.{i}.attn_{name}.weight" in shapes for name in ("q", "kv_a_mqa"))
    if f"blk.{i}.shortconv.conv.weight" in shapes:
        return ("convolution",), None
    if shared.pieces.get("may_skip") and f"blk.{i}.attn_k.weight" not in shapes:
        return (("linear",) if f"blk.{i}.attn_output.weight" in shapes else ()), None
    if f"blk.{i}.attn_kv.weight" in shapes:
        return ("runs",), None
    if scan is not None:
        attends = attends and scan.kind != "kda"
        return (("scan", "attention") if attends else ("scan",)), scan
    return (() if shared.pieces.get("single") and not attends else ("attention",)), None


def _has_mlp(shared: Shared, i: int, mixers: tuple[str, ...]) -> bool:
    """A layer without one is known of scans, and of families whose layers are one thing each or may lack some."""
    names = ("ffn_down", "ffn_gate_inp", "channel_mix_key")
    there = any(f"blk.{i}.{name}.weight" in shared.read.shapes for name in names)
    if shared.pieces.get("may_skip"):
        return there
    return there or not mixers or not ("scan" in mixers or shared.pieces.get("single"))


def _none(shared: Shared) -> Attention:
    """What a cache must know of a layer without attention: a convolution's is that of one head."""
    causal = bool(shared.read.flag("attention.causal", shared.pieces.get("causal", True)))
    return Attention(n_head=1, n_head_kv=1, head_dim=shared.dim, value_dim=1, scale=1.0, causal=causal)
