"""A decoder's layers and its ends, counted."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property

from llmconv.convert.decoders.facts import Decoder
from llmconv.convert.reports.kept import attention, mlp, scans, streams
from llmconv.convert.reports.kept.counts import FULL, Counts, Piece

__all__ = ["Kept"]

_MIXERS: dict[str, Callable[[Counts, Piece], float]] = {
    "attention": attention.attention,
    "runs": attention.runs,
    "convolution": scans.convolution,
    "scan": scans.scan,
    "linear": scans.linear,
}
_OWN = ("hc_", "ple_", "ssm_norm", "indexer", "attn_compressor", "ffn_routed")
"""Tensors whose norms are counted where they are used."""


class Kept:
    """Bytes that autograd keeps, of `batch` sequences of `context` tokens, computed in numbers of `width` bytes."""

    def __init__(self, decoder: Decoder, batch: int, context: int, width: int, dropout: bool):
        self.decoder, self.dropout = decoder, dropout
        self.counts = Counts(decoder, batch * context, context, width)

    @cached_property
    def pieces(self) -> list[Piece]:
        found: dict[int, dict[str, tuple[int, ...]]] = defaultdict(dict)
        for name, dims in self.decoder.shapes.items():
            if name.startswith("blk.") and not name.endswith(".bias"):
                number, own = name.removeprefix("blk.").split(".", 1)
                found[int(number)][own.removesuffix(".weight")] = dims
        return [Piece(i, facts, found[i]) for i, facts in enumerate(self.decoder.layers)]

    @property
    def entering(self) -> int:
        """What goes into a layer: all streams of it."""
        many = self.decoder.streams.count if self.decoder.streams is not None else 1
        many += self.decoder.shapes.get("altup_proj.weight", (0,))[0]
        return FULL * self.counts.tokens * many * self.counts.dim

    def ends(self) -> int:
        """Before the first block and after the last, logits left out."""
        decoder, counts, shapes = self.decoder, self.counts, self.decoder.shapes
        names = [n for n in ("token_embd_norm", "output_norm") if f"{n}.weight" in shapes or n in decoder.weightless]
        total: float = sum(counts.norm(counts.dim, bare=f"{name}.weight" not in shapes) for name in names)
        total += 8 + counts.width * shapes.get("token_embd.weight", (0, counts.dim))[1]
        total += FULL * counts.dim if self.dropout else 0
        total += counts.width * decoder.vocab_size if decoder.final_softcap is not None else 0
        total += self._beside()
        head = "token_embd.weight" if decoder.tied else "output.weight"
        return int(counts.tokens * total) + counts.copies(dims for name, dims in shapes.items() if name == head)

    def _beside(self) -> float:
        """The ends of streams, of AltUp, and of vectors for each layer."""
        counts, shapes = self.counts, self.decoder.shapes
        total = streams.merged(counts, shapes.get("output_hc_down.weight", (0, 0))[0])
        if "altup_proj.weight" in shapes:
            others = shapes["altup_proj.weight"][0]
            total += counts.dim * (2 * others * (FULL + counts.width) + FULL * (others + 1))
        if "per_layer_model_proj.weight" in shapes:
            total += counts.width * counts.dim + 2 * FULL * shapes["per_layer_model_proj.weight"][0] + 8
        return total

    def copies(self, piece: Piece) -> int:
        """The 16-bit copies of a layer's matrices, but those that no text goes through."""
        return self.counts.copies(dims for name, dims in piece.shapes.items() if not name.startswith("vis_"))

    def block(self, piece: Piece) -> int:
        """One layer, its copies left out."""
        counts, spec = self.counts, piece.facts
        total = self._norms(piece) + mlp.mlp(counts, piece)
        total += sum(_MIXERS[name](counts, piece) for name in spec.mixers)
        beside = (streams.streams, streams.ngrams, streams.altup, streams.layer_vectors, _learned)
        total += sum(count(counts, piece) for count in beside)
        if self.dropout:  # what each of the two dropouts multiplied with
            total += 2 * counts.width * counts.dim
        return int(counts.tokens * total)

    def _norms(self, piece: Piece) -> int:
        counts, spec = self.counts, piece.facts.attention
        heads = {"attn_q_norm": spec.n_head, "attn_k_norm": spec.n_head_kv}
        total = 0
        for name, dims in piece.shapes.items():
            if "norm" in name and not name.startswith(_OWN):
                many = heads.get(name, 0)
                rows = many if many and (len(dims) > 1 or dims[0] <= spec.head_dim) else 1
                total += counts.norm(many * spec.head_dim or math.prod(dims), rows, apart=len(dims) > 1)
        for name in self.decoder.weightless:
            if name not in piece.shapes and not (name == "ffn_norm" and piece.facts.parallel):
                if name in heads:
                    total += counts.norm(heads[name] * spec.head_dim, heads[name], bare=True)
                elif name in ("attn_norm", "ffn_norm"):
                    total += counts.norm(counts.dim, bare=True)
        return total


def _learned(counts: Counts, piece: Piece) -> int:
    """What matrices give that a learned number is multiplied with, and what adapters in them are given."""
    total = 0
    for name, dims in piece.shapes.items():
        whole, _, kind = name.rpartition(".")
        if kind == "scale" and len(piece.shapes.get(whole, ())) == 2:
            total += counts.width * piece.rows(whole)
        elif kind == "lora_a":
            total += counts.width * (dims[-1] + dims[-2])
    return total
