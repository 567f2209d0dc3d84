"""What attention keeps (`runtime.layers.attention`, `runtime.layers.runs`), in bytes a token."""

from __future__ import annotations

from llmconv.convert.decoders.facts import Attention
from llmconv.convert.reports.kept.counts import FULL, Counts, Piece

__all__ = ["attention", "runs"]


def attention(counts: Counts, piece: Piece) -> float:
    """What is projected, queries, keys, values, what it gives."""
    spec, width = piece.facts.attention, counts.width
    if spec.mla is not None:
        return _latent(counts, piece, spec) + _gate(counts, piece, spec)
    fed = counts.fed(piece, "attn_q", "attn_k", "attn_v", "attn_qkv")
    heads, open_ = spec.n_head, _in_the_open(counts, piece, spec)
    # Once for each head: a CPU's kernels know no groups, nor values that are not as long as keys.
    unequal = not open_ and spec.head_dim != spec.value_dim
    total = heads * (2 * spec.head_dim + spec.value_dim) * (FULL if unequal else width)
    # What attention gives is kept for what multiplies it, or by the kernel that made it.
    numbers = 0 if open_ and "attn_output" not in piece.shapes else heads * spec.value_dim
    if "attn_qkv" in piece.shapes and spec.rope is not None and heads == spec.n_head_kv:
        numbers += 2 * heads * spec.head_dim  # the values stay where they were projected, beside the unturned rest
    if spec.clamp:
        numbers += heads * spec.head_dim + spec.n_head_kv * (spec.head_dim + spec.value_dim)
    if spec.gated:  # queries stay where they were projected with their gates, which are opened and multiplied with
        numbers += heads * (spec.head_dim + 3 * spec.value_dim)
    bare = FULL * spec.head_dim * (heads + spec.n_head_kv) if spec.length_one else 0
    bare += counts.norm(spec.n_head_kv * spec.value_dim, spec.n_head_kv, bare=True) if spec.value_norm else 0
    sums = _weights(counts, spec) if open_ else FULL * heads * (counts.context if unequal else 1)
    return total + fed + width * numbers + bare + sums + _gate(counts, piece, spec)


def _in_the_open(counts: Counts, piece: Piece, spec: Attention) -> bool:
    """Whether no kernel computes attention as a whole (see `runtime.layers.attention.attend`)."""
    biased = spec.alibi is not None or spec.relative is not None
    return bool(spec.softmax_start or spec.softcap or biased or "attn_sinks" in piece.shapes)


def _weights(counts: Counts, spec: Attention) -> int:
    """What a token is to each, where it is computed in the open."""
    narrow = counts.width if counts.narrow else 0
    each = 2 * FULL + counts.width if spec.softmax_start else FULL + narrow
    each += counts.width if spec.softcap else 0
    return counts.context * spec.n_head * each


def _latent(counts: Counts, piece: Piece, spec: Attention) -> float:
    """Over latents, whose values are not as long as its keys, which a CPU's kernels don't know: float32 queries, keys
    and values for each head, what a token is to each, and the projections once for each sequence."""
    mla, heads = spec.mla, spec.n_head
    assert mla is not None
    rank, rope = mla.kv_rank, mla.rope_dims
    fed = counts.fed(piece, "attn_q", "attn_q_a", "attn_kv_a_mqa")
    fed += counts.width * (piece.rows("attn_q_a") + heads * (mla.nope_dims + rank + spec.value_dim))
    up = counts.width * heads * rank * (mla.nope_dims + spec.value_dim) / counts.context
    # Under autocast the open way is that of products, which take 16 bits.
    each = counts.width if _in_the_open(counts, piece, spec) else FULL
    sums = _weights(counts, spec) if _in_the_open(counts, piece, spec) else FULL * heads * counts.context
    unturned = rope if not counts.narrow else 0  # stays beside the latent that the norm keeps
    return fed + up + each * heads * (3 * rank + 2 * rope) + FULL * unturned + sums


def _gate(counts: Counts, piece: Piece, spec: Attention) -> float:
    """A gate on what attention gives: how far it is open, and what goes through it."""
    if "attn_gate" not in piece.shapes:
        return 0
    opened = piece.rows("attn_gate") * (counts.width if spec.gate == "sigmoid" else FULL + counts.width)
    copied = counts.fed(piece, "attn_gate") if counts.narrow else 0
    return copied + opened + counts.width * spec.n_head * spec.value_dim


def runs(counts: Counts, piece: Piece) -> float:
    """A window, and runs of tokens as one; one vector is key and value."""
    spec, width = piece.facts.attention, counts.width
    heads, size, rank = spec.n_head, spec.head_dim, piece.rows("attn_q_a")
    seen, made = float(counts.context), 0.0
    names = ["attn_q_a", "attn_kv"]
    if spec.runs is not None:
        seen += counts.context // spec.runs.size
        names += ["attn_compressor_kv", "attn_compressor_gate"]
        wide = piece.rows("attn_compressor_kv")
        made = 2 * FULL * wide + counts.norm(size) / spec.runs.size
    total = made + counts.fed(piece, *names) + width * rank
    total += counts.norm(heads * size, heads, bare=True)
    total += width * heads * size * (1 + 2 * seen / counts.context) + seen  # queries, keys twice; what is seen
    total += heads * seen * (FULL + (width if counts.narrow else 0))
    return total + width * (heads * size + piece.rows("attn_output_a"))
