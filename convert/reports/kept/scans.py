"""What scans and convolutions keep (`runtime.scans`, `runtime.layers.convolution`), about, in bytes a token: float32
whatever is computed in."""

from __future__ import annotations

from llmconv.convert.decoders.scans import Scan
from llmconv.convert.reports.kept.counts import FULL, Counts, Piece

__all__ = ["convolution", "linear", "scan"]

_COARSE, _FINE = 64, 16  # tokens of a chunk, as `runtime.scans` has them


def convolution(counts: Counts, piece: Piece) -> float:
    return 8 * counts.width * counts.dim


def linear(counts: Counts, piece: Piece) -> float:
    return counts.width * counts.dim


def scan(counts: Counts, piece: Piece) -> float:
    spec = piece.facts.scan
    assert spec is not None
    match spec.kind:
        case "mamba":  # the state after every token
            return counts.width * (counts.dim + 8 * spec.inner) + FULL * 6 * spec.inner * spec.state
        case "mamba2":
            return _mamba2(counts, spec)
        case "plamo2":
            return _plamo2(counts, spec)
        case "delta":
            return _delta(counts, piece, spec)
        case "kda":
            times = 4 * _FINE + 27 + spec.state // _FINE
            return counts.width * counts.dim + FULL * spec.inner * times
        case "lightning":
            return _lightning(counts, spec)
        case _:
            return _rwkv(counts, spec)


def _mamba2(counts: Counts, spec: Scan) -> float:
    width, inner = counts.width, spec.inner
    channels = inner + 2 * spec.groups * spec.state
    gate = inner if counts.narrow else inner + channels + spec.heads  # which stays where it was projected
    outside = width * (counts.dim + 2 * channels + inner) + FULL * (channels + 2 * spec.heads + gate + 2 * inner)
    return outside + _state_space(counts, spec)


def _plamo2(counts: Counts, spec: Scan) -> float:
    width, inner, parts = counts.width, spec.inner, spec.rank + 2 * spec.state
    outside = width * (counts.dim + 4 * inner + parts) + FULL * (4 * inner + 2 * spec.heads)
    return outside + 2 * FULL * parts + _state_space(counts, spec)


def _state_space(counts: Counts, spec: Scan) -> float:
    """What each token of a chunk is to each, and a state for each chunk; products take 16 bits under autocast."""
    width, (length, times) = counts.width, counts.chunked(_COARSE)
    among = spec.heads * length * (FULL + 2 * width)
    # B and C once for each head, twice more as 16-bit copies; so is what is new.
    shared = (4 if counts.narrow else 2) * width * spec.heads * spec.state
    new = spec.inner * (3 * width + (FULL if counts.narrow else 0)) + 3 * FULL * spec.heads
    states = spec.inner * spec.state * (FULL + width) / length
    return times * (among + shared + new + states)


def _delta(counts: Counts, piece: Piece, spec: Scan) -> float:
    width, inner, keys = counts.width, spec.inner, spec.heads * spec.state
    channels = inner + 2 * spec.groups * spec.state
    fed = counts.fed(piece, "attn_qkv", "attn_gate", "ssm_ba", "ssm_alpha", "ssm_beta")
    outside = fed + width * (2 * channels + inner) + FULL * (channels + 3 * inner + 3 * spec.heads)
    length, times = counts.chunked(_COARSE)
    chunks = counts.context // length > 1
    within = 6 * spec.heads * length + 10 * keys + (4 if chunks else 3) * inner + keys * spec.head_dim / length
    return outside + counts.norm(inner, spec.heads) + FULL * times * within


def _lightning(counts: Counts, spec: Scan) -> float:
    length, inner, heads = min(_COARSE, counts.context), spec.inner, spec.heads
    return counts.width * counts.dim + FULL * (2 * heads * length + inner * (12 + 2 * inner // heads // length))


def _rwkv(counts: Counts, spec: Scan) -> float:
    """What each token of a chunk is to each, for every number of a key."""
    size = spec.state
    if spec.kind == "rwkv7":
        return FULL * spec.inner * (8 * _FINE + 39 + size // _FINE)
    return FULL * spec.inner * (2 * _FINE + 22 + 6 * size // _FINE + 5 * _FINE // size)
