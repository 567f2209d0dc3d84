"""The torch encoders against the kernels: on CPU tensors to the byte, on a GPU (when there is one) measured."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from llmconv.errors import UsageError
from llmconv.quant import by_name

torch = pytest.importorskip("torch")

from llmconv.quant import gpu


def _rows(n: int = 24, k: int = 1024) -> np.ndarray:
    """Trained-like, heavy-tailed, tied, sparse, one-sided, tiny and huge rows, zeros of both signs."""
    rng = np.random.default_rng(11)
    rows = (rng.standard_normal((n, k)) * 0.02).astype(np.float32)
    rows[4:7] = rng.standard_t(2, (3, k))
    rows[7:9] = np.round(rows[7:9] * 200) / 16
    rows[9:11] *= rng.random((2, k)) < 0.1
    rows[11] = np.abs(rows[11])
    rows[12] *= np.float32(1e-38)
    rows[13] *= np.float32(1e18)
    rows[14], rows[15], rows[16] = 0, -0.0, 0.25
    rows[17] = np.ldexp(np.float32(1 - 2**-24), rng.integers(-100, 100, k))
    return rows


def _differing(name: str, device: str) -> tuple[float, float, float]:
    """Share of blocks that differ; root mean square errors of torch's and of the reference's."""
    block, rows = by_name(name), _rows()
    expected = block.encode(rows)
    got = gpu.encode(torch.from_numpy(rows).to(device), name).cpu().numpy()
    assert got.shape == expected.shape and got.dtype == np.uint8
    width = block.layout.itemsize
    differs = (got.reshape(-1, width) != expected.reshape(-1, width)).any(1).mean()
    normal = rows[:12].astype(np.float64)
    errors = [np.sqrt(np.mean((block.decode(b[:12]) - normal) ** 2)) for b in (got, expected)]
    return float(differs), *map(float, errors)


@pytest.mark.parametrize("name", gpu.ENCODERS)
def test_cpu_tensors_give_the_reference_bytes(name: str) -> None:
    differs, error, reference = _differing(name, "cpu")
    assert abs(error - reference) <= 1e-3 * reference
    assert differs == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", gpu.ENCODERS)
def test_cuda_tensors_give_nearly_the_reference_bytes(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    differs, error, reference = _differing(name, "cuda")
    assert abs(error - reference) <= 1e-3 * reference
    assert differs <= 1e-3


@pytest.mark.parametrize("name", gpu.ENCODERS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_widened(name: str, dtype: type) -> None:
    rows = _rows()[:6].astype(dtype)
    if dtype == np.float16:
        tensor = torch.from_numpy(rows)
    else:
        tensor = torch.from_numpy(rows.view(np.uint16)).view(torch.bfloat16)
    np.testing.assert_array_equal(gpu.encode(tensor, name).numpy(), by_name(name).encode(rows))


@pytest.mark.parametrize("name", gpu.DECODERS)
def test_decode_equals_the_kernels_on_any_bytes(name: str) -> None:
    block = by_name(name)
    blocks = np.random.default_rng(5).integers(0, 256, (7, block.row_bytes(1024))).astype(np.uint8)
    got = gpu.decode(torch.from_numpy(blocks), name).numpy()
    np.testing.assert_array_equal(got, block.decode(blocks))


def test_slabs_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.from_numpy(_rows())
    whole = gpu.encode(tensor, "Q4_K")
    monkeypatch.setattr(gpu, "_slab", lambda tensor: 256 * 7)
    assert torch.equal(gpu.encode(tensor, "Q4_K"), whole)
    np.testing.assert_array_equal(gpu.decode(whole, "Q4_K").numpy(), by_name("Q4_K").decode(whole.numpy()))


def test_wrong_calls_are_sentences() -> None:
    with pytest.raises(UsageError, match="those that have"):
        gpu.encode(torch.zeros(1, 256), "Q3_K")
    with pytest.raises(UsageError, match="multiple"):
        gpu.encode(torch.zeros(1, 100), "Q8_0")
    with pytest.raises(UsageError, match="shape"):
        gpu.encode(torch.zeros(256), "Q8_0")
    with pytest.raises(UsageError, match="whole blocks"):
        gpu.decode(torch.zeros(1, 100, dtype=torch.uint8), "Q8_0")
