"""What feed-forwards keep (`runtime.layers.mlp`, `.channel_mix`), in bytes a token; of experts, those that a token is
sent to."""

from __future__ import annotations

from llmconv.convert.decoders.facts import Mlp
from llmconv.convert.reports.kept.counts import FULL, Counts, Piece

__all__ = ["mlp"]


def mlp(counts: Counts, piece: Piece) -> float:
    spec, shapes = piece.facts.mlp, piece.shapes
    if spec is None:
        return 0
    if spec.shifted:
        return counts.width * (5 * counts.dim + 2 * piece.rows("channel_mix_key"))
    total = _experts(counts, piece, spec) if spec.experts is not None else 0.0
    if "ffn_down" in shapes and (spec.experts is None or spec.beside or spec.apart):
        fed = counts.fed(piece, "ffn_up", "ffn_gate")
        if not counts.narrow and piece.facts.parallel and "ffn_norm" not in shapes:
            fed = 0  # it is what attention gets
        total += fed + counts.width * _inner(piece, spec, "", spec.clamp) * shapes["ffn_down"][-1]
    return total


def _experts(counts: Counts, piece: Piece, spec: Mlp) -> float:
    experts, shapes, width = spec.experts, piece.shapes, counts.width
    assert experts is not None
    dim, down = counts.dim, shapes["ffn_down_exps"]  # what experts read may be narrower than the layers
    names = ("ffn_gate_inp", "ffn_up_shexp", "ffn_gate_shexp", "ffn_gate_inp_shexp", "ffn_routed_down")
    total = float(counts.fed(piece, *names, "ffn_latent_down"))
    if down[-2] != dim:
        total += width * down[-2] + counts.norm(down[-2]) * ("ffn_routed_norm" in shapes)
    each = float(counts.fed(piece, "ffn_up_exps", "ffn_gate_exps", "ffn_gate_up_exps", numbers=down[-2]))
    each += width * (_inner(piece, spec, "_exps", experts.clamp) * down[-1] + down[-2])  # and the result, to be weighed
    total += experts.used * (each + FULL * down[-2] + 32) + FULL * experts.count
    if "ffn_down_shexp" in shapes:
        total += width * _inner(piece, spec, "_shexp", experts.shared_clamp) * shapes["ffn_down_shexp"][-1]
        total += width * dim if "ffn_gate_inp_shexp" in shapes else 0
    if "ffn_down_chexps" in shapes:
        small = counts.fed(piece, "ffn_up_chexps", "ffn_gate_chexps") + 2 * width * dim
        total += experts.used * (small + 4 * width * shapes["ffn_down_chexps"][-1])
    return total


def _inner(piece: Piece, spec: Mlp, kind: str, clamp: float) -> float:
    """How often the numbers between an MLP's matrices are kept, on their way through the activation."""
    up = piece.shapes.get(f"ffn_up{kind}", (0, 0))
    gated = any(f"{name}{kind}" in piece.shapes for name in ("ffn_gate", "ffn_gate_up"))
    gated = gated or up[-2] == 2 * piece.shapes[f"ffn_down{kind}"][-1]
    first = spec.clamp or (spec.experts is not None and spec.experts.clamp_first)
    match spec.activation:
        case "swiglu_oai":
            return 7
        case "situ":
            return 7
        case "xielu":
            return 4.25
        case activation if not gated:
            return 1 if activation == "relu" else 2
    return 4 + (2 if spec.cut is not None and not kind else 0) + ((3 if first else 2) if clamp else 0)
