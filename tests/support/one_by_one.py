"""Small models and single products that go through a table of instructions."""

from __future__ import annotations

from typing import Any

import numpy as np
import runnable

from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant.block import by_name
from llmconv.quant.kernels import one_token
from llmconv.quant.kernels.terms import steps
from llmconv.runtime.linear import Linear
from llmconv.runtime.stepping.inputs import TABLE, code, kind_of

TOKENS = [[3, 9, 4, 4, 17, 30, 12, 5, 8, 21, 22, 7]]


def by_table(x: Any, weight: Linear) -> Any:
    """x (k,) times a weight, through a table of two instructions."""
    kind, k = kind_of(weight), len(x)
    assert kind is not None
    room = np.zeros(k + 64, np.float32)
    results = np.full(weight.shape[0], np.nan, np.float32)
    table = np.zeros((4, steps.WIDTH), np.int64)
    values = x.ctypes.data
    if kind.form is not None:
        values = room.ctypes.data
        table[1, [steps.HOW, steps.CODE]] = steps.ALONE, code(kind.form)
        table[1, [steps.SOURCE, steps.COUNT]] = x.ctypes.data, k
        table[1, steps.TARGET] = values
    table[2, [steps.HOW, steps.CODE]] = steps.ROWS, code(kind.product)
    matrix = weight.weight if weight.block_type is None else weight.abreast()
    table[2, [steps.CHUNKS, steps.CHUNK_ROWS]] = -(-len(results) // 16), 16
    table[2, [steps.WEIGHTS, steps.ROW_COUNT]] = matrix.data_ptr(), len(results)
    table[2, steps.ROW_BYTES] = matrix.stride(0) * matrix.element_size()
    table[2, [steps.COLUMNS, steps.RESULTS]] = k, results.ctypes.data
    table[2, steps.VALUES] = values
    if weight.bias is not None:
        table[2, steps.BIAS] = weight.bias.data_ptr()
    one_token.lead(table.reshape(-1), np.zeros(steps.SHARED, TABLE), 3, 0, 0, 0)
    return results


def near(found: Any, expected: Any, scale: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=3e-6 * float(scale))


def tiny(**sizes: int) -> Checkpoint:
    return runnable.checkpoint(**({"dim": 64, "layers": 2, "heads": 2, "ffn": 96} | sizes))


def stored(source: Checkpoint, name: str) -> Checkpoint:
    """With its matrices as a type."""
    kind = by_name(name)

    def matrix(tensor: Tensor) -> Tensor:
        return Tensor(tensor.name, tensor.shape, kind, lambda a, b: kind.encode(np.float32(tensor.rows(a, b))))

    tensors = {n: matrix(t) if len(t.shape) > 1 else t for n, t in source.tensors.items()}
    return source.but(tensors=tensors)
