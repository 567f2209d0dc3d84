"""Decoding on devices: torch operations and Triton's kernels (interpreted on the CPU) equal the room's kernels."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import blocks
import numpy as np
import pytest
from blocks import KEPT, blocks_of

from llmconv.quant.block import by_name

torch = pytest.importorskip("torch")

from llmconv.quant import gpu
from llmconv.runtime import decoding, products


def test_the_kept_types_are_all_there() -> None:
    assert set(KEPT) <= set(gpu.DECODERS)


@pytest.mark.parametrize("name", KEPT)
def test_torch_operations_decode_exactly(name: str) -> None:
    encoded, expected = blocks_of(name)
    found = gpu.decode(torch.from_numpy(encoded), name)
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q3_K"])
def test_tiles_multiply_as_the_whole_does(name: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, expected = blocks_of(name, rows=37, blocks=1)
    monkeypatch.setattr(products, "TILE_BYTES", 4 * expected.shape[1] * 8)  # five tiles, the last one short
    x = torch.randn(3, expected.shape[1], dtype=dtype, generator=torch.Generator().manual_seed(0))
    found = products.matmul(x, torch.from_numpy(encoded), by_name(name))
    exact = (x.double() @ torch.from_numpy(expected).double().T).to(dtype)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(found, exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_under_float32(dtype: Any) -> None:
    weight, x = torch.randn(50, 64).to(dtype), torch.randn(2, 5, 64)
    with torch.inference_mode():
        found = products.matmul(x, weight)
    torch.testing.assert_close(found, x.to(dtype).float() @ weight.float().T, rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_blocks_to_their_input() -> None:
    encoded, expected = blocks_of("Q8_0")
    x = torch.randn(2, expected.shape[1], requires_grad=True)
    products.matmul(x, torch.from_numpy(encoded), by_name("Q8_0")).square().sum().backward()
    other = x.detach().clone().requires_grad_()
    (other @ torch.from_numpy(expected).T).square().sum().backward()
    assert x.grad is not None and other.grad is not None
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-4 * float(other.grad.abs().max()))


_INTERPRETED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from blocks import KEPT, blocks_of
from llmconv.quant.block import by_name
from llmconv.runtime import triton_kernels
for name in KEPT:
    encoded, expected = blocks_of(name, rows=3, blocks=1)
    blocks, expected = torch.from_numpy(encoded), torch.from_numpy(expected)
    found = triton_kernels.decode(blocks, by_name(name), torch.float32)
    torch.testing.assert_close(found, expected, rtol=2e-7, atol=0)
    x = torch.randn(2, expected.shape[1])
    product = triton_kernels.matvec(x, blocks, by_name(name))
    exact = (x.double() @ expected.double().T).float()
    torch.testing.assert_close(product, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))
    print(name)
"""


def test_triton_by_its_interpreter() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRETED, str(Path(blocks.__file__).parent)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == list(KEPT)


@pytest.mark.gpu
@pytest.mark.parametrize("name", KEPT)
def test_on_a_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    encoded, expected = blocks_of(name, rows=130, blocks=4)
    blocks, exact = torch.from_numpy(encoded).cuda(), torch.from_numpy(expected).cuda()
    found = decoding.decode(blocks, by_name(name), torch.float32)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)
    for tokens in (1, 3, 17):
        x = torch.randn(tokens, exact.shape[1], device="cuda")
        product = products.matmul(x, blocks, by_name(name))
        expected_product = (x.double() @ exact.double().T).float()
        scale = float(expected_product.abs().max())
        torch.testing.assert_close(product, expected_product, rtol=1e-3, atol=1e-3 * scale)
