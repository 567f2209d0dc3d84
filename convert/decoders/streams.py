"""Several streams of residuals between the layers, of which each block is given one that is made of all.

Names in GGUF, layer `i`, before attention (`attn`) and before the feed-forward (`ffn`), of S streams:

    hc_attn_fn, _base, _scale    what says how much of each stream a block is given, and how much of what it gives goes
                                 into each: S numbers each; S x S more where streams mix (DeepSeek V4, arXiv:2512.24880)
    hc_attn_norm, _down, _up     Qwen 4's: streams are normed, and each number of each is weighed
    hc_attn_inject               how much of what the block gives goes into each
    attn_res_score               Kimi K3's: one stream goes on, and a block looks back at those that ended

`output_hc_...` and `output_res_score` make one of the streams for the head; without them it is their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Streams", "streams_of"]


@dataclass(frozen=True, slots=True)
class Streams:
    """kind: "mixed", "apart" (streams don't mix: HY V4), "weighed" (Qwen 4) or "back" (Kimi K3).

    count: how many begin.   eps, rounds: of making the mixing matrix doubly stochastic.   magnitude: the most of what a
    block gives that goes into a stream.   every: after so many layers a stream ends and another begins.
    """

    kind: str
    count: int
    eps: float = 0.0
    rounds: int = 0
    magnitude: float = 2.0
    every: int = 0


def streams_of(read: Any, layers: int, dim: int) -> Streams | None:
    """The streams by a file's keys and shapes, which must agree; None where there is one.

    read: a reader of `decoders.reader`.
    """
    if "blk.0.attn_res_score.weight" in read.shapes:
        scores = [f"blk.{i}.{part}_res_score.weight" for i in range(layers) for part in ("attn", "ffn")]
        _expect(read, dict.fromkeys((*scores, "output_res_score.weight"), (dim,)))
        return Streams("back", 1, every=read.count("attn_res.block_size", least=1))
    count = read.count("hyper_connection.count", 0)
    if not count:
        return None
    blocks = [f"blk.{i}.hc_{part}" for i in range(layers) for part in ("attn", "ffn")]
    if "blk.0.hc_attn_down.weight" in read.shapes:
        rank = read.shape("blk.0.hc_attn_down.weight", 2)[0]
        mixing = {"norm": (count * dim,), "down": (rank, count * dim), "up": (count * dim, rank)}
        for start in (*blocks, "output_hc"):
            _expect(read, {f"{start}_{part}.weight": shape for part, shape in mixing.items()})
        _expect(read, {f"{start}_inject.weight": (count, count * dim) for start in blocks})
        return Streams("weighed", count)
    rows = read.shape("blk.0.hc_attn_fn.weight", 2)[0]
    if rows not in (2 * count, (2 + count) * count):
        raise read.bad("tensor 'blk.0.hc_attn_fn.weight'", f"has {rows} rows, which {count} streams don't have")
    mixed = rows != 2 * count
    for start in blocks:
        _expect(read, _weighing(start, rows, 3 if mixed else 2, count * dim))
    if "output_hc_fn.weight" in read.shapes:
        _expect(read, _weighing("output_hc", count, 1, count * dim))
    eps = read.number("hyper_connection.epsilon", 1e-6)
    if not mixed:
        return Streams("apart", count, eps, magnitude=read.number("hyper_connection.magnitude", 2.0))
    return Streams("mixed", count, eps, read.count("hyper_connection.sinkhorn_iterations", least=1))


def _weighing(start: str, rows: int, scales: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{start}_fn.weight": (rows, width), f"{start}_base.weight": (rows,), f"{start}_scale.weight": (scales,)}


def _expect(read: Any, wanted: dict[str, tuple[int, ...]]) -> None:
    for name, shape in wanted.items():
        if (found := read.shape(name)) != shape:
            raise read.bad(f"tensor '{name}'", f"has shape {list(found)}, expected {list(shape)}")
