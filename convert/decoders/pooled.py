"""Tokens that a layer sees together: pools that an indexer chooses, and runs that are made one.

Names in GGUF, layer `i`:

    indexer.attn_q_b, .attn_k, .k_norm, .proj      an indexer of tokens' latents; indexer_compressor_gate, _ape say how
                                                   much of each token's key is in that of its pool (GLM 5 Next)
    indexer.q_proj, .k_proj, .q_norm, .k_norm      one whose pools have the mean of their tokens' keys (Qwen 4)
    attn_kv, attn_compressor_kv, _gate, _ape, _norm   one vector for key and value, and what makes one of those of a run
    indexer_compressor_..., indexer.attn_q_b, .proj   the same for the indexer that chooses runs (DeepSeek V4)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Pools", "Runs", "pools_of", "runs_of"]


@dataclass(frozen=True, slots=True)
class Pools:
    """Of longer texts a token sees `used` whole pools of `size` tokens, and those behind the last whole one.

    weighed: each number of a pool's key is a weighted mean (GLM 5 Next), not a plain one.   heads of `dims` numbers
    choose.   own: the layer has an indexer; others see what that of an earlier layer chose.
    """

    heads: int
    dims: int
    size: int
    used: int
    weighed: bool
    own: bool = True


@dataclass(frozen=True, slots=True)
class Runs:
    """Beside its window a token sees runs of `size` tokens, each as one.

    overlapping: a run's vector is made of the run before, too.   used: so many of them, which `heads` heads of `dims`
    numbers choose; 0: all.
    """

    size: int
    overlapping: bool
    used: int = 0
    heads: int = 0
    dims: int = 0


_KEY = "attention.indexer."


def pools_of(read: Any, i: int) -> Pools | None:
    """The pools of layer `i`, by a file's keys and shapes, which must agree; None where it has none.

    read: a reader of `decoders.reader`.
    """
    weighed = read.count(f"{_KEY}kpool", 0)
    size = weighed or _ratio(read, i)
    latent, plain = f"blk.{i}.attn_kv_a_mqa.weight", f"blk.{i}.attn_q.weight"
    if size < 1 or (latent if weighed else plain) not in read.shapes:
        return None
    heads, dims = read.count(f"{_KEY}head_count", least=1), read.count(f"{_KEY}key_length", least=1)
    used = read.count(f"{_KEY}top_k", least=1) // size
    if not used:
        raise read.bad(f"key '{read.arch}.{_KEY}top_k'", f"is fewer than the {size} tokens of a pool")
    if not weighed:
        for name, rows in (("q_proj", heads * dims), ("k_proj", dims)):
            _rows(read, f"blk.{i}.indexer.{name}.weight", rows, heads, dims)
        return Pools(heads, dims, size, used, weighed=False)
    if read.flag(f"{_KEY}kpool_select_tail", True) is False:
        raise read.bad(f"key '{read.arch}.{_KEY}kpool_select_tail'", "is false, which leaves a text's start nothing")
    own = f"blk.{i}.indexer.attn_q_b.weight" in read.shapes
    if own:
        for name, rows in (("attn_q_b", heads * dims), ("attn_k", dims), ("proj", heads)):
            _rows(read, f"blk.{i}.indexer.{name}.weight", rows, heads, dims)
        _rows(read, f"blk.{i}.indexer_compressor_gate.weight", dims, heads, dims)
        _same(read, f"blk.{i}.indexer_compressor_ape.weight", (size, dims))
    return Pools(heads, dims, size, used, weighed=True, own=own)


def runs_of(read: Any, i: int, n_head: int, head_dim: int) -> Runs | None:
    """The runs of layer `i`, whose keys are its values; None where it sees a window alone."""
    start, groups = f"blk.{i}.attn_", read.count("attention.output_group_count", 1, 1)
    rank = read.shape(f"{start}q_a.weight", 2)[0]
    if n_head % groups:
        raise read.bad(f"key '{read.arch}.attention.output_group_count'", f"is {groups}, but there are {n_head} heads")
    _same(read, f"{start}q_b.weight", (n_head * head_dim, rank))
    read.expect(f"{start}kv.weight", head_dim, "one head")
    rows, width = read.shape(f"{start}output_a.weight", 2)
    if width != n_head * head_dim // groups or rows % groups:
        raise read.bad(
            f"tensor '{start}output_a.weight'", f"has shape {[rows, width]}, which {groups} groups don't have"
        )
    if (size := _ratio(read, i)) < 1:
        return None
    overlapping = _makes_one(read, f"{start}compressor", size, head_dim)
    if f"blk.{i}.indexer.attn_q_b.weight" not in read.shapes:
        return Runs(size, overlapping)
    heads, dims = read.count(f"{_KEY}head_count", least=1), read.count(f"{_KEY}key_length", least=1)
    for name, rows in (("attn_q_b", heads * dims), ("proj", heads)):
        _rows(read, f"blk.{i}.indexer.{name}.weight", rows, heads, dims)
    if _makes_one(read, f"blk.{i}.indexer_compressor", size, dims) != overlapping:
        raise read.bad(f"tensor 'blk.{i}.indexer_compressor_kv.weight'", "overlaps as attention's does not")
    return Runs(size, overlapping, read.count(f"{_KEY}top_k", least=1), heads, dims)


def _makes_one(read: Any, start: str, size: int, dims: int) -> bool:
    """Whether what makes one of a run looks at the run before, too."""
    width = read.shape(f"{start}_kv.weight", 2)[0]
    if width not in (dims, 2 * dims):
        raise read.bad(f"tensor '{start}_kv.weight'", f"has {width} rows, expected {dims} or twice as many")
    read.expect(f"{start}_gate.weight", width, "as many as its values have")
    _same(read, f"{start}_ape.weight", (size, width))
    _same(read, f"{start}_norm.weight", (dims,))
    return bool(width != dims)


def _ratio(read: Any, i: int) -> int:
    """How many tokens a layer makes one of."""
    return int(read.per_layer("attention.compress_ratios", i + 1, 0)[i])


def _rows(read: Any, name: str, rows: int, heads: int, dims: int) -> None:
    read.shape(name, 2)
    read.expect(name, rows, f"{heads} heads of {dims}")


def _same(read: Any, name: str, shape: tuple[int, ...]) -> None:
    if (found := read.shape(name)) != shape:
        raise read.bad(f"tensor '{name}'", f"has shape {list(found)}, expected {list(shape)}")
