"""A table of n-grams: rows that a token and those before it choose by a hash, added to a layer's streams (Qwen 4).

Names in GGUF: per_layer_token_embd is the table; at its layer ple_key, ple_value, ple_norm_..., ple_conv1d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Ngrams", "ngrams_of"]


@dataclass(frozen=True, slots=True)
class Ngrams:
    """layer: that adds them.   longest: of the n-grams.   heads: how many rows each length chooses.   end: the token
    before which no n-gram begins.   multipliers: of the hash.   offsets, sizes: of each head's part of the table.
    """

    layer: int
    longest: int
    heads: int
    end: int
    multipliers: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def ngrams_of(read: Any, dim: int, streams: int) -> Ngrams | None:
    """The table by a file's keys and shapes, which must agree; None where there is none.

    read: a reader of `decoders.reader`.
    """
    layers = read.get("ple.layers")
    if layers is None or not len(listed := np.ravel(layers)):
        return None
    layer = int(listed[0])
    longest, heads = read.count("ple.ngram_size", least=2), read.count("ple.heads_per_ngram", least=1)
    chosen = (longest - 1) * heads
    numbers = {
        name: _whole(read, f"ple.{name}", count)
        for name, count in (("layer_multipliers", longest), ("head_offsets", chosen), ("head_vocab_sizes", chosen))
    }
    rows, width = read.shape("per_layer_token_embd.weight", 2)
    ends = [at + size for at, size in zip(numbers["head_offsets"], numbers["head_vocab_sizes"], strict=True)]
    if max(ends) > rows or min(numbers["head_vocab_sizes"]) < 1 or min(numbers["head_offsets"]) < 0:
        raise read.bad("tensor 'per_layer_token_embd.weight'", f"has {rows} rows, fewer than its heads choose from")
    start, whole = f"blk.{layer}.ple_", streams * dim
    wanted: dict[str, tuple[int, ...]] = {"key": (whole, chosen * width), "value": (dim, chosen * width)}
    wanted |= {f"norm_{part}": (whole,) for part in ("key", "query", "conv")}
    wanted["conv1d"] = (whole, read.count("ple.conv_kernel", least=1))
    for name, shape in wanted.items():
        if (found := read.shape(f"{start}{name}.weight")) != shape:
            raise read.bad(f"tensor '{start}{name}.weight'", f"has shape {list(found)}, expected {list(shape)}")
    end = read.count("ple.eos_token_id")
    return Ngrams(
        layer, longest, heads, end, numbers["layer_multipliers"], numbers["head_offsets"], numbers["head_vocab_sizes"]
    )


def _whole(read: Any, key: str, count: int) -> tuple[int, ...]:
    found = read.get(key)
    try:
        numbers = tuple(int(n) for n in np.ravel(found))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) < count or not all(-(1 << 63) <= n < 1 << 63 for n in numbers):
        raise read.bad(f"key '{read.arch}.{key}'", f"has no {count} whole numbers")
    return numbers[:count]
