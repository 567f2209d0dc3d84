"""What goes beside the layers keeps: several streams of residuals, n-grams, AltUp, vectors for each layer
(`runtime.layers` has a file of each name), in bytes a token."""

from __future__ import annotations

from llmconv.convert.decoders.streams import Streams
from llmconv.convert.reports.kept.counts import FULL, Counts, Piece

__all__ = ["altup", "layer_vectors", "merged", "ngrams", "streams"]


def streams(counts: Counts, piece: Piece) -> float:
    """What makes one of several streams, and what goes back into them, before attention and before the MLP."""
    spec = counts.decoder.streams
    if spec is None:
        return 0
    if spec.kind == "back":
        first = 1 + -(-piece.index // spec.every)
        return sum(_one(counts, spec, n) for n in (first, first + (piece.index % spec.every == 0)))
    back = (counts.width if counts.narrow and spec.kind == "mixed" else FULL) * counts.dim
    mixing = 0
    if spec.kind == "mixed":
        mixing = FULL * (spec.count**2 * 2 * (1 + spec.rounds) + 2 * spec.count * spec.rounds)
        mixing += counts.width * spec.count * counts.dim if counts.narrow else 0
    rank = piece.rows("hc_attn_down")
    return 2 * (_one(counts, spec, spec.count, rank, injected=True) + back + mixing + FULL * 8 * spec.count)


def merged(counts: Counts, rank: int) -> float:
    """What makes one of the streams for the head.   rank: of the matrices that weigh them."""
    spec = counts.decoder.streams
    if spec is None:
        return 0
    if spec.kind == "back":
        return _one(counts, spec, 1 + -(-len(counts.decoder.layers) // spec.every))
    return _one(counts, spec, spec.count, rank)


def _one(counts: Counts, spec: Streams, count: int, rank: int = 0, injected: bool = False) -> float:
    """One made of `count` streams."""
    numbers = count * counts.dim
    if spec.kind == "back":
        return 2 * FULL * numbers + 2 * FULL * count
    if spec.kind != "weighed":
        return FULL * numbers + counts.width * numbers
    flat = FULL * numbers + (counts.width * numbers * (2 if injected else 1) if counts.narrow else 0)
    return 2 * FULL * numbers + flat + counts.width * (numbers + 2 * rank)


def ngrams(counts: Counts, piece: Piece) -> float:
    spec, many = counts.decoder.ngrams, counts.decoder.streams
    if spec is None or many is None or spec.layer != piece.index:
        return 0
    numbers, found = many.count * counts.dim, piece.shapes["ple_key"][-1]
    chosen = (spec.longest - 1) * spec.heads
    fed = counts.fed(piece, "ple_key", "ple_value", numbers=found)
    return fed + FULL * (8 * numbers + counts.dim) + 2 * counts.width * numbers + 8 * chosen


def altup(counts: Counts, piece: Piece) -> float:
    """Streams of which one is computed, beside what its norms are counted for; and Laurel."""
    if "altup_router" not in piece.shapes:
        return 0
    count, dim, width = piece.rows("altup_router"), counts.dim, counts.width
    kept = FULL * dim * (3 * count + 1)  # what is mixed, predicted and corrected, as a whole
    routed = 2 * width * (dim + 3 * count) + FULL * count**2
    laurel = width * piece.rows("laurel_l") + (counts.fed(piece, "laurel_l") if counts.narrow else 0)
    return kept + routed + laurel


def layer_vectors(counts: Counts, piece: Piece) -> float:
    if "inp_gate" not in piece.shapes:
        return 0
    return counts.width * (counts.dim + 3 * piece.rows("inp_gate"))
