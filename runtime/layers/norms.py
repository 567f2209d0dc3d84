"""Layer and RMS normalisation, with or without weight and bias, in float32 or better whatever the model computes in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmconv.convert.decoders.facts import Norm as NormSpec

__all__ = ["Norm"]


class Norm(nn.Module):
    """`spec.kind` "layer": (x - mean) / sqrt(var + eps); "rms": x / sqrt(mean(x²) + eps); then weight and bias.

    shape: of the weight, (dim,) or, for a norm per head, (heads, head_dim); None for a weightless norm.
    bare: whether its tensor's name has no ".weight" (Falcon-H1, PLaMo).
    The last dimension is normalised.  bfloat16 and float16 inputs are widened for it, as every reference does.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        spec: NormSpec,
        shape: tuple[int, ...] | None = None,
        bias: bool = False,
        dtype: torch.dtype = torch.float32,
        bare: bool = False,
    ):
        super().__init__()
        self.bare = bare
        self.kind, self.eps = spec.kind, spec.eps
        self.weight = None if shape is None else nn.Parameter(torch.ones(shape, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(shape, dtype=dtype)) if bias and shape is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> the same shape and dtype."""
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if weight is not None and weight.dtype != wide.dtype:
            weight = weight.to(wide.dtype)
        if bias is not None and bias.dtype != wide.dtype:
            bias = bias.to(wide.dtype)
        size = wide.shape[-1:]
        flat = weight if weight is None or weight.dim() == 1 else None
        if self.kind == "rms":
            out = F.rms_norm(wide, size, flat, self.eps)
        else:
            out = F.layer_norm(wide, size, flat, bias if flat is not None else None, self.eps)
        if flat is None and weight is not None:  # one weight row per head
            out = out * weight
        if bias is not None and (self.kind == "rms" or flat is None):
            out = out + bias
        return out.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.kind}, eps={self.eps:g}"
