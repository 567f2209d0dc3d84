"""Integer products against ggml's own rounding and dots on the CPU.  Needs llama-cpp-python: `pytest -m peer`."""

from __future__ import annotations

import ctypes
import secrets
from typing import Any

import ggml
import numpy as np
import pytest

from llmconv.quant import integer_products
from llmconv.quant.block import by_name

pytestmark = pytest.mark.peer

Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
Q8_1 = np.dtype([("d", "<f2"), ("s", "<f2"), ("qs", "i1", 32)])
Q8_K = np.dtype([("d", "<f4"), ("qs", "i1", 256), ("sums", "<i2", 16)])


@pytest.fixture(scope="module")
def cpu() -> Any:
    """ggml's CPU library, beside the one that quantizes."""
    base = ggml.find()
    path = base and base.with_name(base.name.replace("ggml-base", "ggml-cpu"))
    if path is None or not path.is_file():
        pytest.skip(ggml.MISSING)
    library = ctypes.CDLL(str(path))
    library.ggml_cpu_init()
    return library


def inputs(rows: int, k: int) -> Any:
    """Rows of several scales, with ties, zeros and equal magnitudes."""
    seed = secrets.randbits(32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k), np.float32) * (10.0 ** rng.integers(-6, 4, (rows, 1))).astype(np.float32)
    x[1] = np.round(x[1] / np.abs(x[1]).max() * 127 * 2) / 2
    x[2, :256] = 0
    x[3] = np.sign(x[3])
    return x


def rounded_by(cpu: Any, name: str, layout: Any, x: Any) -> Any:
    size = 256 if layout is Q8_K else 32
    out = np.zeros((len(x), x.shape[1] // size), layout)
    for row, to in zip(x, out, strict=True):
        getattr(cpu, f"quantize_row_{name}")(
            row.ctypes.data_as(ctypes.c_void_p), to.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(len(row))
        )
    return out


@pytest.mark.parametrize(("name", "layout"), [("q8_0", Q8_0), ("q8_1", Q8_1), ("q8_K", Q8_K)])
def test_inputs_are_rounded_to_the_same_bytes(cpu: Any, name: str, layout: Any) -> None:
    x = inputs(16, 1024)
    size = 256 if layout is Q8_K else 32
    theirs, ours = rounded_by(cpu, name, layout, x), integer_products.round_inputs(x, size)
    levels = ours.levels.view(np.int8).transpose(1, 0, 2).reshape(16, -1, size)
    used = theirs["d"] != 0  # with a scale of zero, what theirs leaves or rounds counts for nothing
    np.testing.assert_array_equal(levels[used], theirs["qs"][used])
    np.testing.assert_array_equal(ours.scales.transpose(1, 0, 2).reshape(16, -1), theirs["d"].astype(np.float32))
    if layout is Q8_K:
        sums = ours.sums.view(np.int16).transpose(1, 0, 2).reshape(16, -1, 16)
        np.testing.assert_array_equal(sums[used], theirs["sums"][used])


@pytest.mark.parametrize("name", integer_products.TYPES)
def test_products_are_the_same_but_for_the_order_of_sums(cpu: Any, name: str) -> None:
    kind = by_name(name)
    x = inputs(16, 1024)
    blocks = kind.encode(np.random.default_rng(0).standard_normal((32, 1024), np.float32))
    against, layout = ("q8_K", Q8_K) if kind.block_size == 256 else ("q8_0", Q8_0)
    if name in ("Q4_1", "Q5_1"):
        against, layout = "q8_1", Q8_1
        x /= np.abs(x).max(1, keepdims=True)  # its sums of inputs are float16 (ours exact), and coarse when tiny
    theirs, ours = np.zeros((16, 32), np.float32), np.zeros((16, 32), np.float32)
    rounded = rounded_by(cpu, against, layout, x)
    dot = getattr(cpu, f"ggml_vec_dot_{name if 'K' in name else name.lower()}_{against}".replace("Q", "q"))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t(0)
    for i in range(16):
        for j in range(32):
            to, row = theirs[i, j:].ctypes.data_as(pointer), blocks[j].ctypes.data_as(pointer)
            dot(ctypes.c_int(1024), to, size, row, size, rounded[i].ctypes.data_as(pointer), size, ctypes.c_int(1))
    integer_products.multiply(integer_products.round_inputs(x, kind.block_size), kind, blocks, ours)
    tolerance = 2e-3 if layout is Q8_1 else 2e-6
    scale = np.linalg.norm(x, axis=1, keepdims=True) * np.linalg.norm(kind.decode(blocks), axis=1)
    assert (np.abs(ours - theirs) <= tolerance * scale).all()
