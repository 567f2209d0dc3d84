"""A fresh model: a checkpoint whose weights are drawn when they are read, from the seed and the tensors' names."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert import archs
from llmconv.convert.decoders.recurrent import ARCH
from llmconv.convert.reports.shape import shape_of
from llmconv.convert.tables.presets import Preset, check_heads, preset
from llmconv.convert.vocab import Vocab, to_gguf
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes
from llmconv.runtime.training.config import TrainConfig

__all__ = ["fresh_checkpoint", "resized"]

_CHUNK = 256  # rows drawn at a time, so that any slice of a tensor is the same numbers


def resized(base: Preset, config: TrainConfig, n_vocab: int) -> Preset:
    """The preset with the configuration's own sizes, and the vocabulary that was made."""
    keys = dict(base.keys) | {"vocab_size": n_vocab}
    for name, key in (
        ("dim", "embedding_length"),
        ("layers", "block_count"),
        ("heads", "attention.head_count"),
        ("ffn", "feed_forward_length"),
    ):
        if (value := getattr(config, name)) and key in keys:
            keys[key] = value
    if config.heads and "attention.head_count_kv" in keys:
        keys["attention.head_count_kv"] = min(config.heads, int(keys["attention.head_count_kv"]))
    if config.dim and not config.ffn:
        keys["feed_forward_length"] = round(
            base.keys["feed_forward_length"] / base.keys["embedding_length"] * config.dim
        )
    if base.arch == ARCH:
        return dataclasses.replace(base, keys=keys)
    dim, heads = keys["embedding_length"], keys["attention.head_count"]
    check_heads(dim, heads, keys.get("attention.head_count_kv", heads))
    if "rope.dimension_count" in keys:
        keys["rope.dimension_count"] = dim // heads
    if config.context > keys["context_length"]:
        keys["context_length"] = config.context
    return dataclasses.replace(base, keys=keys)


def fresh_checkpoint(config: TrainConfig, vocab: Vocab) -> Checkpoint:
    """A model of `config.preset`'s shape with weights as GPT-2 starts: normal, 0.02 wide, what writes into the residual
    narrower by sqrt(2 x layers), norms one, biases zero.  Post-norm simple-llm ones start as Xavier's, as they must.
    """
    shape = resized(preset(config.preset), config, len(vocab))
    described, initial = _typed(shape.metadata), "xavier"
    if shape.arch != ARCH:
        table = archs.by_gguf(shape.arch)
        assert table is not None
        # Through the table's own way from a configuration, so that every key is there that a converted model has.
        described, initial = table.metadata(table.config(described)), table.decoder.get("initial", "gpt2")
    metadata = described | {"general.name": config.preset} | to_gguf(vocab)
    out = Checkpoint(metadata=metadata, dialect="gguf")
    n_layer = int(shape.keys["block_count"])
    for name, dims in shape_of(shape).tensors.items():
        out.add(_drawn(name, dims, _width(name, dims, n_layer, initial), config.seed))
    return out


def _typed(metadata: dict[str, Any]) -> dict[str, Any]:
    """Python numbers as GGUF types them."""
    typed = {int: np.uint32, float: np.float32}
    return {k: typed[type(v)](v) if type(v) in typed else v for k, v in metadata.items()}


def _width(name: str, dims: tuple[int, ...], n_layer: int, kind: str) -> float | None:
    """Standard deviation of a tensor's first values; None for constants (norm weights one, biases zero)."""
    if len(dims) < 2 or "norm" in name:
        return None
    if kind == "xavier":
        return 0.1 if "embd" in name else math.sqrt(2 / (dims[0] + dims[1]))
    residual = re.search(r"(attn_output|ffn_down)", name)
    return 0.02 / math.sqrt(2 * n_layer) if residual else 0.02


def _drawn(name: str, dims: tuple[int, ...], width: float | None, seed: int) -> Tensor:
    row = dims[-1]
    if width is None:
        value = np.float32(1 if name.endswith("norm.weight") else 0)

        def constant(start: int, stop: int) -> Bytes:
            return np.full((stop - start, row), value).view(np.uint8)

        return Tensor(name, dims, plain.F32, constant)
    key = int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16], "little")

    def draw(chunk: int) -> NDArray[np.float32]:
        rng = np.random.Generator(np.random.Philox(key=key, counter=chunk << 64))
        return rng.standard_normal((_CHUNK, row), np.float32) * np.float32(width)

    def read(start: int, stop: int) -> Bytes:
        first, last = start // _CHUNK, -(-stop // _CHUNK)
        if stop <= start:
            return np.empty((0, 4 * row), np.uint8)
        rows = np.concatenate([draw(chunk) for chunk in range(first, last)])
        return np.ascontiguousarray(rows[start - first * _CHUNK : stop - first * _CHUNK]).view(np.uint8)

    return Tensor(name, dims, plain.F32, read)
