"""PLaMo 2's scan: Mamba 2's heads, with steps, B and C made of the convolved input as Mamba 1 makes them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from llmconv.runtime.layers.mlp import activation
from llmconv.runtime.pieces import LayerPieces
from llmconv.runtime.scans.mamba2 import state_space
from llmconv.runtime.scans.past import Past, wide

__all__ = ["plamo2"]


def plamo2(block: LayerPieces, x: Tensor, past: Past) -> Tensor:
    """x: (B, T, dim) -> (B, T, dim).  Each head's gate stands before its input."""
    spec, kind = block.spec.scan, wide(x)
    assert spec is not None
    gate, inner = block.ssm_in(x).reshape(*x.shape[:2], spec.heads, 2, spec.head_dim).unbind(-2)
    inner = activation(spec.activation)(past.convolve(inner.flatten(2), block.ssm_conv1d.weight, None))
    b, c, dt = block.ssm_x(inner).split((spec.state, spec.state, spec.rank), -1)
    dt = past.real(F.softplus(block.ssm_dt(block.ssm_dt_norm(dt)).to(kind)))
    b, c = (norm(part).to(kind)[:, :, None] for norm, part in ((block.ssm_b_norm, b), (block.ssm_c_norm, c)))
    heads = inner.to(kind).reshape(*x.shape[:2], spec.heads, spec.head_dim)
    state = past.state(spec.heads, spec.head_dim, spec.state, like=x)
    out, state = state_space(heads, dt, block.ssm_a.to(kind), b, c, state)
    past.keep(state)
    past.end()
    out = (out + heads * block.ssm_d.to(kind)[:, None]) * F.silu(gate.to(kind))
    made: Tensor = block.ssm_out(out.flatten(2).to(x.dtype))
    return made
