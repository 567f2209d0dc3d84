"""The feed-forward part of a layer, described: dense or of experts."""

from __future__ import annotations

import math

from llmconv.convert.decoders.facts import Experts, Mlp
from llmconv.convert.decoders.shared import Shared

__all__ = ["mlp_of"]

_SITU = (("", 4.0), ("linear_", 25.0))
_GATINGS = {1: "softmax", 2: "sigmoid", 3: "softmax_weight", 4: "sqrtsoftplus"}


def mlp_of(shared: Shared, i: int) -> Mlp:
    read, start = shared.read, f"blk.{i}.ffn_"
    if f"{start}gate_inp.weight" in read.shapes:
        gate = "apart" if f"{start}gate_exps.weight" in read.shapes else "fused"
        if gate == "fused" and f"{start}gate_up_exps.weight" not in read.shapes:
            gate = "none"
        beside = shared.pieces.get("beside", 0.0) if f"{start}up.weight" in read.shapes else 0.0
        apart = f"blk.{i}.pre_ffw_norm_2.weight" in read.shapes
        return Mlp(shared.activation, gate, _experts(shared, i), beside, apart, numbers=_numbers(shared, i))
    if f"blk.{i}.channel_mix_key.weight" in read.shapes:
        ff = read.shape(f"blk.{i}.channel_mix_key.weight", 2)[0]
        if read.shape(f"blk.{i}.channel_mix_value.weight", 2) != (shared.dim, ff):
            raise read.bad(f"tensor 'blk.{i}.channel_mix_value.weight'", f"has another shape than {[shared.dim, ff]}")
        return Mlp("relu2", "none", shifted=True)
    ff, up = read.shape(f"{start}down.weight", 2)[1], read.shape(f"{start}up.weight", 2)[0]
    if f"{start}gate.weight" in read.shapes:
        read.expect(f"{start}gate.weight", ff, "as many as ffn_down has columns")
        gate = "apart"
    else:
        gate = _fused(shared, i) if up == 2 * ff else "none"
    fused = gate in ("fused", "behind")
    read.expect(f"{start}up.weight", 2 * ff if fused else ff, "as many as ffn_down has columns")
    activation = shared.pieces.get("gated_activation", shared.activation) if gate == "apart" else shared.activation
    clamp = read.of_layer("swiglu_clamp_shexp", i) if shared.pieces.get("dense_clamped") else 0.0
    return Mlp(activation, gate, cut=_cut(shared, i), numbers=_numbers(shared, i), clamp=clamp)


def _fused(shared: Shared, i: int) -> str:
    """Where the gate is in a matrix of gate and up: before it, or behind."""
    name = shared.pieces.get("gate_behind")
    return "behind" if name and f"blk.{i}.{name}.weight" in shared.read.shapes else "fused"


def _cut(shared: Shared, i: int) -> float | None:
    key = "activation_sparsity_scale"
    if shared.read.get(key) is None:
        return 1.6448536 if i < shared.pieces.get("cut_layers", 0) else None
    found = shared.read.of_layer(key, i)
    return found if math.isfinite(found) else None  # minus infinity: nothing


def _numbers(shared: Shared, i: int) -> tuple[float, ...]:
    if shared.activation == "situ":
        return tuple(shared.read.number(f"activation.situ_{name}beta", usual) for name, usual in _SITU)
    if shared.activation != "xielu":
        return ()
    return tuple(shared.read.of_layer("", i, f"xielu.{name}") for name in ("alpha_p", "alpha_n", "beta", "eps"))


def _experts(shared: Shared, i: int) -> Experts:
    read, pieces = shared.read, shared.pieces
    count = read.shape(f"blk.{i}.ffn_gate_inp.weight", 2)[0]
    used = read.per_layer("expert_used_count", i + 1, 0)[i]
    if used < 1:
        raise read.bad(f"key '{read.arch}.expert_used_count'", f"is {used} for layer {i}, expected at least 1")
    if used > count:
        raise read.bad(f"key '{read.arch}.expert_used_count'", f"is {used}, but there are {count} experts")
    number = read.count("expert_gating_func", 0)
    gating = _GATINGS.get(number) if number else pieces.get("gating", "softmax")
    if not number and "gating" not in pieces and f"blk.{i}.exp_probs_b.bias" in read.shapes:
        gating = "sigmoid"  # the bias that steers the choice came with sigmoid scores (DeepSeek-V3)
    if gating is None:
        raise read.bad(f"key '{read.arch}.expert_gating_func'", f"is {number}, expected 1, 2, 3 or 4")
    normalize = read.flag("expert_weights_norm")
    if normalize is None:
        normalize = read.config.get("norm_topk_prob", pieces.get("normalize_experts", False))
    groups = read.count("expert_group_count", 1) or 1
    if count % groups:
        raise read.bad(f"key '{read.arch}.expert_group_count'", f"is {groups}, but there are {count} experts")
    return Experts(
        count=count,
        used=used,
        gating=gating,
        normalize=bool(normalize),
        scale=read.optional("expert_weights_scale") or 1.0,
        groups=groups,
        group_by=min(pieces.get("group_by", 2 if gating == "sigmoid" else 1), count // groups),
        groups_used=read.count("expert_group_used_count", groups) or groups,
        jitter=float(read.config.get("router_jitter_noise") or 0.01) if gating == "sparsemixer" else 0.0,
        softcap=read.optional("router_logit_softcapping") if pieces.get("router_capped") else None,
        clamp=read.of_layer("swiglu_clamp_exp", i),
        shared_clamp=read.of_layer("swiglu_clamp_shexp", i),
        clamp_first=bool(pieces.get("clamp_first", False)),
        router_first=bool(pieces.get("router_first", False)),
        shared_average=bool(pieces.get("shared_average", False)),
        weighed_before=bool(pieces.get("weighed_before", False)),
        told=f"blk.{i}.ffn_gate_tid2eid.weight" in read.shapes,
        together=_together(shared, i, count),
        chained=bool(pieces.get("chained_experts", False)),
        small_scale=read.number("expert_group_scale", 0.0),
    )


def _together(shared: Shared, i: int, count: int) -> int:
    """How many experts share a small one; 0 where there are none."""
    read = shared.read
    if (name := f"blk.{i}.ffn_down_chexps.weight") not in read.shapes:
        return 0
    group = read.count("experts_per_group", least=1)
    if read.shape(name, 3)[0] * group != count:
        raise read.bad(f"tensor '{name}'", f"has {read.shape(name)[0]} matrices for {count} experts, {group} to each")
    return group
