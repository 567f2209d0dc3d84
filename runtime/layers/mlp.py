"""The feed-forward half of a block: plain, gated, or a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.convert.decoders.facts import Experts, Mlp
from llmconv.errors import Unsupported
from llmconv.runtime.pieces import LayerPieces

__all__ = ["ACTIVATIONS", "Mixture", "activation", "dense_and_experts", "feed_forward"]


def _swiglu_oai(gate: Tensor, up: Tensor) -> Tensor:
    """gpt-oss: gate clamped from above, up on both sides, and the up branch shifted by one."""
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "tanh": torch.tanh,
    "identity": lambda x: x,
}
"""Activation by name; "swiglu_oai" joins gate and up in its own way."""


def _xielu(x: Tensor, numbers: tuple[float, ...]) -> Tensor:
    """xIELU (arXiv:2411.13010), as transformers computes it: softplus keeps what was learned above zero."""
    up, down, beta, eps = (torch.tensor(n, dtype=x.dtype, device=x.device) for n in numbers)
    low = (torch.expm1(torch.minimum(x, eps)) - x) * (beta + F.softplus(down))
    return torch.where(x > 0, F.softplus(up) * x * x, low) + beta * x


def _situ(gate: Tensor, up: Tensor, numbers: tuple[float, ...]) -> Tensor:
    """Kimi K3's: SiLU with its gate bounded, times what is bounded too."""
    bound, linear = numbers
    gate = bound * torch.tanh(gate / bound) * torch.sigmoid(gate)
    return gate * (linear * torch.tanh(up / linear) if linear > 0 else up)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation called `name`; `Unsupported` names the known ones."""
    found = ACTIVATIONS.get(name)
    if found is None:
        known = ", ".join((*ACTIVATIONS, "swiglu_oai", "xielu"))
        raise Unsupported(f"the activation {name!r} is not known to the runtime; known: {known}")
    return found


def _join(spec: Mlp, gate: Tensor | None, up: Tensor, clamp: float = 0.0) -> Tensor:
    """What goes into the down projection.   clamp: of the gate, behind its activation or before, and of `up`."""
    name = spec.activation
    if name == "swiglu_oai" and gate is not None:
        return _swiglu_oai(gate, up)
    if name == "xielu":
        return _xielu(up, spec.numbers)
    if name == "situ" and gate is not None:
        return _situ(gate, up, spec.numbers)
    if gate is None:
        return activation(name)(up)
    if clamp and (spec.clamp or (spec.experts is not None and spec.experts.clamp_first)):
        gate = gate.clamp(max=clamp)
    if spec.cut is not None:
        gate = _cut(gate, spec.cut)
    opened = activation(name)(gate)
    return opened.clamp(max=clamp) * up.clamp(-clamp, clamp) if clamp else opened * up


def _cut(gate: Tensor, deviations: float) -> Tensor:
    """What is above the mean by so many standard deviations, less that; zeros elsewhere (Gemma 3n)."""
    return F.relu(gate - gate.mean(-1, keepdim=True) - gate.std(-1, keepdim=True, unbiased=False) * deviations)


def dense_and_experts(block: LayerPieces, x: Tensor) -> Tensor:
    """x: (B, T, dim), not normed -> (B, T, dim): a dense feed-forward and experts beside each other, each with norms of
    its own; the router reads x at length one, each number times its own factor (Gemma 4)."""
    spec = block.spec.mlp
    assert spec is not None and spec.experts is not None
    dense = block.post_ffw_norm_1(_dense(block, spec, block.ffn_norm(x)))
    routed = block.router_norm(x) * block.ffn_gate_inp.scale.to(x.dtype) * x.shape[-1] ** -0.5
    out: Tensor = dense + block.post_ffw_norm_2(_all(Mixture(block, block.pre_ffw_norm_2(x), x, routed)))
    return out


def feed_forward(block: LayerPieces, x: Tensor, entered: Tensor, tokens: Tensor | None = None) -> Tensor:
    """x: (B, T, dim), normed -> (B, T, dim).   entered, tokens: see `Mixture`."""
    spec = block.spec.mlp
    assert spec is not None
    if spec.experts is None:
        return _dense(block, spec, x)
    return _all(Mixture(block, x, entered, tokens=tokens))


def _all(mixture: Mixture) -> Tensor:
    for expert in mixture.used:
        mixture.add(expert)
    return mixture.result()


def _dense(block: LayerPieces, spec: Mlp, x: Tensor) -> Tensor:
    gate, up = None, block.ffn_up(x)
    if block.ffn_gate is not None:
        gate = block.ffn_gate(x)
    elif spec.gate == "fused":
        gate, up = up.chunk(2, -1)
    elif spec.gate == "behind":
        up, gate = up.chunk(2, -1)
    inner = _join(spec, gate, up, spec.clamp)
    del gate, up  # of many tokens that is much
    if block.ffn_sub_norm is not None:
        inner = block.ffn_sub_norm(inner)
    out: Tensor = block.ffn_down(inner)
    return out


def _route(block: LayerPieces, experts: Experts, x: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    """For tokens (N, dim): weights (N, used), in float32 or better, and experts (N, used).   tokens: (B, T) ids."""
    logits = block.ffn_gate_inp(x)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if experts.softcap is not None:
        logits = experts.softcap * torch.tanh(logits / experts.softcap)
    if experts.gating == "sigmoid":
        scores = logits.sigmoid()
    elif experts.gating == "softmax":
        scores = logits.softmax(-1)
    elif experts.gating == "sqrtsoftplus":
        scores = F.softplus(logits).sqrt()
    else:
        scores = logits
    if experts.gating == "sparsemixer":
        return _sparse_mixer(logits, experts)
    choice = scores
    if block.exp_probs_b is not None:
        bias = block.exp_probs_b
        choice = choice + (bias if isinstance(bias, Tensor) else bias.bias).to(choice.dtype)
    if experts.groups > 1:
        grouped = choice.unflatten(-1, (experts.groups, -1))
        best = grouped.topk(experts.group_by, -1).values.sum(-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, best.topk(experts.groups_used, -1).indices, True)
        choice = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2)
    if experts.told and tokens is not None:
        chosen = block.ffn_gate_tid2eid.weight[tokens.flatten()].long()
    else:
        chosen = choice.topk(experts.used, -1).indices
    weights = scores.gather(-1, chosen)
    if experts.gating == "softmax_weight":
        weights = weights.softmax(-1)
    if experts.normalize:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20)
    if (each := getattr(block.ffn_down_exps, "scale", None)) is not None:
        weights = weights * each[chosen].to(weights.dtype)
    return weights * experts.scale, chosen


def _sparse_mixer(logits: Tensor, experts: Experts) -> tuple[Tensor, Tensor]:
    """One expert after the other, each weighed by a softmax over those that come near it (arXiv:2409.12136)."""
    weights, chosen, left = [], [], logits
    for _ in range(experts.used):
        best, index = left.max(-1, keepdim=True)
        far = (best - logits) / logits.abs().maximum(best) > 2 * experts.jitter
        weights.append(left.masked_fill(far, float("-inf")).softmax(-1).gather(-1, index))
        chosen.append(index)
        left = left.scatter(-1, index, float("-inf"))
    return torch.cat(weights, -1), torch.cat(chosen, -1)


class Mixture:
    """A mixture of experts over some tokens, one expert after the other.

    x: (B, T, dim), normed.   entered: what came into the layer, which some routers read.   routed: what the router
    reads, where it is neither.   tokens: their ids, (B, T), where a table says their experts.   used: the experts that
    any of the tokens goes to, each of which is to be added, in rising order.
    """

    def __init__(
        self,
        block: LayerPieces,
        x: Tensor,
        entered: Tensor,
        routed: Tensor | None = None,
        tokens: Tensor | None = None,
    ):
        spec = block.spec.mlp
        assert spec is not None and spec.experts is not None
        self.block, self.spec, self.experts, self.x = block, spec, spec.experts, x
        inner = x if block.ffn_norm_exps is None else block.ffn_norm_exps(entered)
        if routed is None:
            routed = entered if self.experts.router_first else inner
        weights, chosen = _route(block, self.experts, routed.flatten(0, -2), tokens)
        self._weights, self._inner = weights.flatten(), inner
        self._flat = inner.flatten(0, -2)  # (N, dim)
        self._small = _Small(block, spec, weights, chosen, routed) if self.experts.together else None
        narrow = block.ffn_latent_down if block.ffn_routed_down is None else block.ffn_routed_down
        if narrow is not None:
            self._flat = narrow(self._flat)
        self._out = torch.zeros_like(self._flat)
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.experts.count)
        self._slots = dict(enumerate(torch.split(order, counts.tolist())))  # flat positions in (N, used)
        self.used = [expert for expert, slots in self._slots.items() if len(slots)]

    def add(self, expert: int) -> None:
        """What one expert makes of its tokens."""
        slots = self._slots[expert]
        tokens = slots // self.experts.used
        x, weights = self._flat[tokens], self._weights[slots, None].to(self._flat.dtype)
        if self.experts.weighed_before:
            weighted = _expert(self.block, self.spec, expert, x * weights)
        else:
            inner = _expert(self.block, self.spec, expert, x)
            weighted = inner * weights.to(inner.dtype)
        self._out.index_add_(0, tokens, weighted.to(self._out.dtype))  # autocast makes `inner` narrower

    def result(self) -> Tensor:
        """(B, T, dim), with what shared experts and an MLP beside them add."""
        out = self._out if self.block.ffn_routed_norm is None else self.block.ffn_routed_norm(self._out)
        widen = self.block.ffn_latent_up if self.block.ffn_routed_up is None else self.block.ffn_routed_up
        out = out if widen is None else widen(out)
        if self._small is not None:
            out = out + self._small.made(out if self.experts.chained else self._flat) * self.experts.small_scale
        out = out.view_as(self._inner)
        if self.block.ffn_exps_out is not None:
            out = out + self.block.ffn_exps_out.bias.to(out.dtype)
        if self.block.ffn_up_shexp is not None:
            out = out + _shared_expert(self.block, self.spec, self._inner)
            out = out / 2 if self.experts.shared_average else out
        return (out + _dense(self.block, self.spec, self.x)) * self.spec.beside if self.spec.beside else out


class _Small:
    """Small experts that neighbouring ones share (GroveMoE): each goes where one of its own goes, by that one's weight.

    llama.cpp's ("chained") are those of the first of their own, weighed anew by the experts of their own numbers.
    """

    def __init__(self, block: LayerPieces, spec: Mlp, weights: Tensor, chosen: Tensor, routed: Tensor):
        experts = spec.experts
        assert experts is not None
        self._block, self._spec = block, spec
        self._weights, self._chosen = weights, chosen // experts.together
        if experts.chained:
            self._chosen = self._chosen[:, : experts.count // experts.together]
            scores = block.ffn_gate_inp(routed.flatten(0, -2)).float().softmax(-1).gather(-1, self._chosen)
            self._weights = scores / scores.sum(-1, keepdim=True)

    def made(self, x: Tensor) -> Tensor:
        """(N, dim) -> (N, dim)."""
        block, out = self._block, torch.zeros_like(x)
        for expert in torch.unique(self._chosen).tolist():
            weights = torch.where(self._chosen == expert, self._weights, 0.0).sum(-1, keepdim=True)
            at = weights[:, 0].nonzero()[:, 0]
            inner = _join(self._spec, block.ffn_gate_chexps(x[at], expert), block.ffn_up_chexps(x[at], expert))
            out.index_add_(0, at, block.ffn_down_chexps(inner, expert) * weights[at].to(x.dtype))
        return out


def _expert(block: LayerPieces, spec: Mlp, expert: int, x: Tensor) -> Tensor:
    gate: Tensor | None = None
    if spec.gate == "fused":
        gate, up = block.ffn_gate_up_exps(x, expert).chunk(2, -1)
    else:
        up = block.ffn_up_exps(x, expert)
        gate = None if block.ffn_gate_exps is None else block.ffn_gate_exps(x, expert)
    clamp = 0.0 if spec.experts is None else spec.experts.clamp
    out: Tensor = block.ffn_down_exps(_join(spec, gate, up, clamp), expert)
    return out


def _shared_expert(block: LayerPieces, spec: Mlp, x: Tensor) -> Tensor:
    gate, up = None, block.ffn_up_shexp(x)
    if block.ffn_gate_shexp is not None:
        gate = block.ffn_gate_shexp(x)
    elif up.shape[-1] == 2 * block.ffn_down_shexp.shape[1]:  # both in one matrix
        gate, up = up.chunk(2, -1)
    clamp = 0.0 if spec.experts is None else spec.experts.shared_clamp
    out: Tensor = block.ffn_down_shexp(_join(spec, gate, up, clamp))
    if block.ffn_gate_inp_shexp is not None:
        out = out * torch.sigmoid(block.ffn_gate_inp_shexp(x))
    return out
