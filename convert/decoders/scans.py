"""What stands in the place of attention and has a state that goes from token to token: selective scans, delta rules.

Names in GGUF, layer `i`:

    ssm_in                what the layer projects its input to
    ssm_conv1d            (channels, length): a causal convolution of each channel
    ssm_x, ssm_dt         Mamba 1: what makes steps, B and C of the convolved input; the steps' own projection
    ssm_a, ssm_d          the rates of decay, below zero; what passes by the scan
    ssm_norm, ssm_out     the norm before the last projection, and that projection
    attn_qkv, attn_gate   delta rule: queries, keys and values; what its results are gated by
    ssm_ba                delta rule: what says how much is learned and forgotten, by heads that share keys
    ssm_f_a, ssm_f_b      Kimi's: what says how much every number of a head forgets
    ssm_g_a, ssm_g_b      Kimi's: what its results are gated by
    ssm_beta, ssm_alpha   the same in two matrices, heads in another order (Qwen 3.5)
    time_mix_...          RWKV's (see `runtime.scans.rwkv6`, `rwkv7`), with channel_mix_... in the feed-forward's place
    attn_qkv, attn_gate, attn_norm_2   lightning attention: what goes in, gates and norms what comes out

Mamba 1: arXiv:2312.00752; Mamba 2: arXiv:2405.21060; gated delta rule: arXiv:2412.06464.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Scan", "lightning_of", "scan_of"]


@dataclass(frozen=True, slots=True)
class Scan:
    """One layer's scan.

    kind: "mamba", "mamba2", "plamo2", "delta", "kda", "rwkv6", "rwkv7" or "lightning".   inner: numbers that go through
    it, in `heads` heads.   state: numbers of state for each of them.   groups: how many B and C (keys and queries) the
    heads share.   rank: of the steps' projection.   norm_eps: of norms without weights of steps, B and C (Falcon
    Mamba), of each head's norm in RWKV, of keys and queries of a delta rule; 0: there are none.
    """

    kind: str
    inner: int
    heads: int
    groups: int
    state: int
    rank: int = 0
    norm_eps: float = 0.0
    activation: str = "silu"
    """Behind the convolution."""
    norm_first: bool = False
    """The norm behind a Mamba 2 stands before the gate, not behind it."""
    tiled: bool = False
    """Heads that share keys and queries are not next to each other: head h has those of h modulo `groups`."""
    floor: float = 0.0
    """Not 0: the logarithm of a decay lies between 0 and this (Ling 3, Kimi K3)."""
    gate: str = "silu"
    """What opens the gate on a delta rule's results: "silu" or "sigmoid" (Qwen 4)."""
    slope: float = 0.0
    """How much of ALiBi's slopes a layer's heads forget by (lightning attention)."""

    @property
    def head_dim(self) -> int:
        return self.inner // self.heads


def scan_of(read: Any, i: int, by_model: bool = False) -> Scan | None:
    """The scan of layer `i` by the file's keys and shapes, which must agree; None where it has none.

    read: a reader of `decoders.reader`.   by_model: norms inside have the model's epsilon, where the file says none.
    """
    start = f"blk.{i}.ssm_"
    if f"blk.{i}.time_mix_receptance.weight" in read.shapes:
        return _rwkv(read, i)
    if f"{start}x.weight" in read.shapes and len(read.shape(f"{start}a")) == 1:
        return _plamo(read, start)
    if f"{start}x.weight" in read.shapes:
        return _selective(read, start, by_model)
    if f"{start}ba.weight" in read.shapes or f"{start}alpha.weight" in read.shapes:
        return _delta(read, i, by_model)
    if f"{start}f_a.weight" in read.shapes:
        return _kimi(read, i, by_model)
    if f"{start}in.weight" in read.shapes:
        return _dual(read, start)
    return None


def _selective(read: Any, start: str, by_model: bool) -> Scan:
    inner, state = read.shape(f"{start}a", 2)
    rank = read.shape(f"{start}dt.weight", 2)[1]
    read.expect(f"{start}in.weight", 2 * inner, f"twice the {inner} of ssm_a")
    read.expect(f"{start}x.weight", rank + 2 * state, f"{rank} + 2 * {state}")
    _whole(read, start, inner, inner)
    usual = read.number("attention.layer_norm_rms_epsilon", 1e-5) if by_model else 1e-6
    norm_eps = read.number("ssm.dt_b_c_rms_epsilon", usual) if read.flag("ssm.dt_b_c_rms", False) else 0.0
    return Scan("mamba", inner, inner, 1, state, rank, norm_eps)


def _dual(read: Any, start: str) -> Scan:
    heads, inner = read.shape(f"{start}a", 2)[0], read.shape(f"{start}out.weight", 2)[1]
    state, groups = read.count("ssm.state_size", least=1), read.count("ssm.group_count", 1, 1)
    if inner % heads or heads % groups or inner % groups:
        raise read.bad(f"tensor '{start}a'", f"has {heads} heads, which do not divide {inner} in {groups} groups")
    channels = inner + 2 * groups * state
    read.expect(f"{start}in.weight", inner + channels + heads, f"{inner} + {channels} + {heads} heads")
    _whole(read, start, inner, channels)
    return Scan("mamba2", inner, heads, groups, state, norm_first=bool(read.flag("ssm.norm_before_gate", False)))


def _plamo(read: Any, start: str) -> Scan:
    heads, inner = read.shape(f"{start}a", 1)[0], read.shape(f"{start}out.weight", 2)[1]
    state, rank = read.count("ssm.state_size", least=1), read.shape(f"{start}dt.weight", 2)[1]
    if not heads or inner % heads:
        raise read.bad(f"tensor '{start}a'", f"has {heads} heads, which do not divide {inner}")
    read.expect(f"{start}in.weight", 2 * inner, f"twice the {inner} columns of ssm_out")
    read.expect(f"{start}x.weight", rank + 2 * state, f"{rank} + 2 * {state}")
    read.expect(f"{start}dt.weight", heads, "one for each head")
    _whole(read, start, inner, inner)
    for part, size in (("dt", rank), ("b", state), ("c", state)):
        if (found := read.shape(f"{start}{part}_norm", 1)) != (size,):
            raise read.bad(f"tensor '{start}{part}_norm'", f"has shape {list(found)}, expected {[size]}")
    return Scan("plamo2", inner, heads, 1, state, rank)


def _unit_eps(read: Any, by_model: bool) -> float:
    """The epsilon where keys and queries are scaled to length 1; the usual ones of models are no other than 1e-6."""
    found: float = read.number("attention.layer_norm_rms_epsilon", 1e-6) if by_model else 1e-6
    return found if found > 1e-5 * 1.01 else 1e-6


def _delta(read: Any, i: int, by_model: bool) -> Scan:
    start = f"blk.{i}.ssm_"
    heads, inner = read.shape(f"{start}a", 1)[0], read.shape(f"{start}out.weight", 2)[1]
    state, groups = read.count("ssm.state_size", least=1), read.count("ssm.group_count", least=1)
    if inner % heads or heads % groups:
        raise read.bad(f"tensor '{start}a'", f"has {heads} heads, which do not divide {inner} in {groups} groups")
    channels = inner + 2 * groups * state
    read.expect(f"blk.{i}.attn_qkv.weight", channels, f"{inner} + 2 * {groups} heads of {state}")
    read.expect(f"blk.{i}.attn_gate.weight", inner, "as many as ssm_out has columns")
    read.expect(f"{start}ba.weight", 2 * heads, f"two for each of {heads} heads")
    for name in ("alpha", "beta"):
        read.expect(f"{start}{name}.weight", heads, "one for each head")
    _whole(read, start, inner, channels)
    eps = _unit_eps(read, by_model)
    return Scan("delta", inner, heads, groups, state, norm_eps=eps, tiled=f"{start}alpha.weight" in read.shapes)


def _kimi(read: Any, i: int, by_model: bool) -> Scan:
    start, floor = f"blk.{i}.ssm_", read.number("kda.gate_lower_bound", 0.0)
    if last := f"{start}f_b.weight" if f"{start}f_b.weight" in read.shapes else "":
        inner, state = read.shape(last, 2)
        read.expect(f"{start}f_a.weight", state, "as many as ssm_f_b has columns")
    else:
        last = f"{start}f_a.weight"
        inner, state = read.shape(last, 2)[0], read.shape(f"{start}norm.weight", 1)[0]
        read.expect(f"{start}g_a.weight", inner, "as many as ssm_f_a has")
        if (floor := read.number("kda.gate_lower_bound", -5.0)) >= 0:
            raise read.bad(f"key '{read.arch}.kda.gate_lower_bound'", f"is {floor:g}, expected a number below 0")
        if read.flag("kda.safe_gate", True) is False:
            raise read.bad(f"key '{read.arch}.kda.safe_gate'", "is false, and only gates with a lower bound are run")
    if floor > 0:
        raise read.bad(f"key '{read.arch}.kda.gate_lower_bound'", f"is {floor:g}, expected a number below 0")
    if not state or inner % state:
        raise read.bad(f"tensor '{last}'", f"has {inner} rows, which are no heads of {state}")
    read.expect(f"{start}beta.weight", inner // state, f"one for each head of {state}")
    for part in "qkv":
        read.expect(f"blk.{i}.attn_{part}.weight", inner, "as many as ssm_f_b has")
        if len(found := read.shape(f"{start}conv1d_{part}.weight")) < 2 or inner not in found:
            raise read.bad(f"tensor '{start}conv1d_{part}.weight'", f"has shape {list(found)}, expected {inner} rows")
    heads = inner // state
    return Scan("kda", inner, heads, heads, state, norm_eps=_unit_eps(read, by_model), floor=floor)


def _rwkv(read: Any, i: int) -> Scan:
    start = f"blk.{i}.time_mix_"
    inner, dim = read.shape(f"{start}receptance.weight", 2)
    state, seven = read.count("wkv.head_size", 64, 1), f"{start}k_k.weight" in read.shapes
    if inner % state:
        raise read.bad(f"key '{read.arch}.wkv.head_size'", f"is {state}, but there are {inner} numbers, not a multiple")
    heads, own = inner // state, read.shape(f"{start}key.weight", 2)[0]
    groups = own // state
    if own % state or not groups or heads % groups:
        raise read.bad(f"tensor '{start}key.weight'", f"has {own} rows, which {heads} heads of {state} can't share")
    read.expect(f"{start}value.weight", own, "as many as time_mix_key has")
    read.expect(f"{start}output.weight", dim, "the model's width")
    shares, parts = read.shape(f"{start}lerp_fused.weight", 4), (6 if seven else 5)
    if shares not in ((parts, 1, 1, dim), (5, 1, 1, dim)):
        raise read.bad(f"tensor '{start}lerp_fused.weight'", f"has shape {list(shares)}, expected {[parts, 1, 1, dim]}")
    if (f"{start}ln.weight" in read.shapes) != (f"{start}ln.bias" in read.shapes):
        raise read.bad(f"tensor '{start}ln'", "has a weight or a bias alone, and needs both")
    if not seven:
        read.shape(f"{start}w2.weight", 3)
        eps = 1e-5 * float(read.config.get("head_size_divisor") or 8) ** 2
        return Scan("rwkv6", inner, heads, groups, state, norm_eps=eps)
    if (shares[0] == 6) != (f"{start}g1.weight" in read.shapes):
        raise read.bad(f"tensor '{start}lerp_fused.weight'", f"has shape {list(shares)}, which its gate is not for")
    read.expect(f"{start}w2.weight", inner, "as many as time_mix_receptance has")
    own_eps = read.get("attention.layer_norm_epsilon") is not None
    eps = state * read.number("attention.layer_norm_epsilon") if own_eps else 64e-5
    return Scan("rwkv7", inner, heads, heads, state, norm_eps=eps)


def lightning_of(read: Any, i: int, heads: int, layers: int) -> Scan:
    """Lightning attention of layer `i` of `layers`."""
    start = f"blk.{i}.attn_"
    inner = read.shape(f"{start}gate.weight", 2)[0]
    if not heads or inner % heads:
        raise read.bad(f"tensor '{start}gate.weight'", f"has {inner} rows, which are no {heads} heads")
    read.expect(f"{start}qkv.weight", 3 * inner, "three times as many as attn_gate has")
    if (found := read.shape(f"{start}norm_2.weight", 1)) != (inner,):
        raise read.bad(f"tensor '{start}norm_2.weight'", f"has shape {list(found)}, expected {[inner]}")
    slope = 1 - i / (layers - 1 + 1e-5) + 1e-5
    return Scan("lightning", inner, heads, heads, inner // heads, slope=slope)


def _whole(read: Any, start: str, inner: int, channels: int) -> None:
    """Whether the convolution and the last projection are of these widths."""
    read.expect(f"{start}conv1d.weight", channels, "a row for each channel")
    read.shape(f"{start}conv1d.weight", 2)
    if read.shape(f"{start}out.weight", 2)[1] != inner:
        raise read.bad(f"tensor '{start}out.weight'", f"has rows of {read.shape(f'{start}out.weight')[1]}, not {inner}")
