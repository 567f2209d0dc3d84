"""A decoder as a table of instructions for one token: see `quant.kernels.terms.steps`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmconv.convert.decoders.facts import Rope
from llmconv.quant.abreast import ROWS
from llmconv.quant.kernels.terms import steps
from llmconv.runtime.cache import Cache
from llmconv.runtime.layers.norms import Norm
from llmconv.runtime.linear import Stored
from llmconv.runtime.model import Block, Model
from llmconv.runtime.stepping.inputs import TABLE, code, kind_of

__all__ = ["Table"]

LEAST_CHUNK = 1 << 13
"""Weights in a chunk of a product, at least: about a microsecond's work."""
CHUNKS_A_THREAD = 8


class Table:
    """The instructions of a model over a cache, and the memory that they work in.

    instructions: (n + 1, WIDTH) int64, the last one behind the end.   x: (dim,) float32, to be filled with what the
    first layer is given.   logits: (vocab,) float32, what the head's product gives.
    """

    def __init__(self, model: Model, cache: Cache, threads: int):
        self._threads, self._kept = threads, list[Any]()
        self._rows: list[list[int]] = []
        self._turns: dict[Rope, tuple[int, int]] = {}
        self._widest = max(m.shape[-1] for m in model.modules() if isinstance(m, Stored))
        self._buffers: dict[str, int] = {}
        self.capacity = min(layer[0].shape[2] for layer in cache.layers if layer is not None)
        self._model, self._cache = model, cache
        decoder = model.decoder
        self.x, self.logits = np.zeros(decoder.dim, np.float32), np.zeros(decoder.vocab_size, np.float32)
        self._put(steps.START)
        for block in model.blk:
            assert isinstance(block, Block)
            self._layer(block)
        normed = self._normed(getattr(model, decoder.output_norm), _at(self.x), decoder.dim)
        head = model.token_embd if model.output is None else model.output
        self._products(normed, (head, _at(self.logits)))
        self._put(steps.START)
        self.instructions: NDArray[np.int64] = np.array(self._rows, TABLE)

    def _put(self, how: int, kernel: str = "", fields: Mapping[int, int] = MappingProxyType({})) -> None:
        row = [0] * steps.WIDTH
        row[steps.HOW], row[steps.CODE] = how, code(kernel) if kernel else 0
        for field, value in fields.items():
            row[field] = value
        self._rows.append(row)

    def _room(self, use: str, numbers: int) -> int:
        """The address of float32 that all layers use; as many as the first of them asks for."""
        key = f"{use} {numbers}"
        if key not in self._buffers:
            room = np.zeros(numbers + 64, np.float32)
            self._kept.append(room)
            self._buffers[key] = _at(room)
        return self._buffers[key]

    def _layer(self, block: Block) -> None:
        spec, dim, x = block.spec, self._model.decoder.dim, _at(self.x)
        attended = self._attention(block, self._normed(block.attn_norm, x, dim))
        made = self._room("made", dim)
        self._products(attended, (block.attn_output, made))
        mlp_norm = getattr(block, spec.mlp_norm)
        if block.post_attention_norm is not None and block.post_attention_norm is not mlp_norm:
            self._norm(block.post_attention_norm, made, made, dim)
        self._add(block, made)
        if spec.mlp is None:
            return
        self._products(self._mlp(block, self._normed(mlp_norm, x, dim)), (block.ffn_down, made))
        if block.post_ffw_norm is not None:
            self._norm(block.post_ffw_norm, made, made, dim)
        self._add(block, made)

    def _add(self, block: Block, made: int) -> None:
        fields = {steps.SOURCE: made, steps.TARGET: _at(self.x), steps.COUNT: self.x.size}
        self._put(steps.ALONE, "add", fields | {steps.FACTOR: _bits(block.residual_scale)})

    def _attention(self, block: Block, normed: int) -> int:
        """Where its heads' results are."""
        spec = block.spec.attention
        sizes = (spec.n_head * spec.head_dim, spec.n_head_kv * spec.head_dim, spec.n_head_kv * spec.value_dim)
        query = self._room("qkv", sum(sizes))
        key, value = query + 4 * sizes[0], query + 4 * (sizes[0] + sizes[1])
        if block.attn_qkv is not None:
            self._products(normed, (block.attn_qkv, query))
        else:
            self._products(normed, (block.attn_q, query), (block.attn_k, key), (block.attn_v, value))
        for norm, at, heads in ((block.attn_q_norm, query, spec.n_head), (block.attn_k_norm, key, spec.n_head_kv)):
            if norm is not None:
                whole = norm.weight is not None and norm.weight.shape[0] != spec.head_dim
                size = heads * spec.head_dim if whole else spec.head_dim
                self._norm(norm, at, at, size, heads * spec.head_dim // size)
        if spec.rope is not None:
            self._rotate(spec.rope, query, spec.n_head, spec.head_dim)
            self._rotate(spec.rope, key, spec.n_head_kv, spec.head_dim)
        stored = self._cache.layers[block.index]
        assert stored is not None
        self._kept.append(stored)
        kept = {
            steps.KEYS: stored[0].data_ptr(),
            steps.VALUES_KEPT: stored[1].data_ptr(),
            steps.HEADS_KEPT: spec.n_head_kv,
            steps.HEAD: spec.head_dim,
            steps.VALUE_HEAD: spec.value_dim,
            steps.CAPACITY: stored[0].shape[2],
        }
        self._put(steps.ALONE, "keep", kept | {steps.QUERY: key, steps.ATTENDED: value})
        out = self._room("attended", spec.n_head * spec.value_dim)
        how = {steps.CHUNKS: spec.n_head, steps.HEAD_COUNT: spec.n_head, steps.QUERY: query, steps.ATTENDED: out}
        how |= {steps.WINDOW: spec.window or 0, steps.SCALE: _bits(spec.scale)}
        scores = self._room("scores", spec.n_head * (stored[0].shape[2] + 15))
        self._put(steps.HEADS, "attend", kept | how | {steps.SCORES: scores})
        return out

    def _rotate(self, rope: Rope, at: int, heads: int, size: int) -> None:
        if rope not in self._turns:
            step = self._model.step(torch.zeros(1, self.capacity, dtype=torch.long))
            tables = [table.contiguous() for table in step.rope(rope)]
            self._kept.append(tables)
            self._turns[rope] = tables[0].data_ptr(), tables[1].data_ptr()
        cosines, sines = self._turns[rope]
        fields = {steps.TARGET: at, steps.COUNT: heads, steps.SIZE: size, steps.FACTOR: rope.dims}
        kernel = "rotate_neighbours" if rope.interleaved else "rotate_halves"
        self._put(steps.ALONE, kernel, fields | {steps.WEIGHT: cosines, steps.SHIFT: sines})

    def _mlp(self, block: Block, normed: int) -> int:
        """Where what goes into the down projection is."""
        spec, width = block.spec.mlp, block.ffn_up.shape[0]
        assert spec is not None
        first, second = self._room("up", width), 0
        if block.ffn_gate is not None:
            gate = self._room("gate", width)
            self._products(normed, (block.ffn_gate, gate), (block.ffn_up, first))
            first, second = gate, first
        else:
            self._products(normed, (block.ffn_up, first))
            if spec.gate == "fused":
                width //= 2
                second = first + 4 * width
        fields = {steps.SOURCE: first, steps.TARGET: first, steps.COUNT: width, steps.WEIGHT: second}
        self._put(steps.ALONE, f"join_{spec.activation}", fields)
        return first

    def _normed(self, norm: Norm | None, at: int, size: int) -> int:
        """Where the vector at an address is, normed."""
        if norm is None:
            return at
        self._norm(norm, at, self._room("normed", size), size)
        return self._room("normed", size)

    def _norm(self, norm: Norm, source: int, target: int, size: int, count: int = 1) -> None:
        fields = {steps.SOURCE: source, steps.TARGET: target, steps.COUNT: count, steps.SIZE: size}
        fields |= {steps.WEIGHT: self._vector(norm.weight), steps.SHIFT: self._vector(norm.bias)}
        self._put(steps.ALONE, f"norm_{norm.kind}", fields | {steps.FACTOR: _bits(norm.eps)})

    def _vector(self, vector: Tensor | None) -> int:
        if vector is None:
            return 0
        self._kept.append(vector)
        return vector.data_ptr()

    def _products(self, source: int, *wanted: tuple[Stored, int]) -> None:
        """Products of one input, which run at the same time: weights, and where their results go."""
        kinds = [kind_of(weight) for weight, _ in wanted]
        columns = wanted[0][0].shape[-1]
        inputs = {kind.form: self._input(source, columns, kind.form) for kind in kinds if kind is not None}
        for i, ((weight, results), kind) in enumerate(zip(wanted, kinds, strict=True)):
            assert kind is not None
            rows = weight.shape[0]
            chunk = max(-(-rows // (CHUNKS_A_THREAD * self._threads)), -(-LEAST_CHUNK // columns))
            chunk = -(-(rows if self._threads == 1 else chunk) // ROWS) * ROWS
            matrix = weight.weight if weight.block_type is None else weight.abreast()
            self._kept.append(matrix)
            fields = {
                steps.CHUNKS: -(-rows // chunk),
                steps.FOLLOWERS: len(wanted) - 1 if i == 0 else 0,
                steps.WEIGHTS: matrix.data_ptr(),
                steps.ROW_BYTES: matrix.stride(0) * matrix.element_size(),
                steps.ROW_COUNT: rows,
                steps.COLUMNS: columns,
                steps.VALUES: inputs[kind.form],
                steps.RESULTS: results,
                steps.BIAS: self._vector(weight.bias),
                steps.CHUNK_ROWS: chunk,
            }
            self._put(steps.ROWS, kind.product, fields)

    def _input(self, source: int, columns: int, form: str | None) -> int:
        """Where an input of a form is."""
        if form is None:
            return source
        values = self._room(form, self._widest)
        self._put(steps.ALONE, form, {steps.SOURCE: source, steps.TARGET: values, steps.COUNT: columns})
        return values


def _at(array: NDArray[Any]) -> int:
    address: int = array.ctypes.data
    return address


def _bits(number: float) -> int:
    """The bits of a float32."""
    return int(np.float32(number).view(np.int32))
