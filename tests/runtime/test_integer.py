"""Products in integers: rounded inputs times blocks, against a reference written from the definition; in models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import llmconv
from llmconv.cli import cli
from llmconv.errors import UsageError
from llmconv.quant import integer_products
from llmconv.quant.block import by_name

torch = pytest.importorskip("torch")

from llmconv.runtime import products
from llmconv.runtime.load import _check_activations


def rounded(x: Any, block: int) -> tuple[Any, Any]:
    """ggml's Q8_0 (x86) and Q8_K: the integers, (n, k), and their scales, (n, k / block)."""
    parts = x.reshape(len(x), -1, block)
    first = np.abs(parts).argmax(-1)[..., None]
    most = np.take_along_axis(parts, first, -1)
    with np.errstate(divide="ignore", over="ignore"):
        if block == 32:
            inverse = np.float32(127) / np.abs(most)
            scales = (np.abs(most) / np.float32(127)).astype(np.float16).astype(np.float32)
        else:
            inverse = np.float32(-127) / most
            scales = np.float32(1) / inverse
    inverse[scales == 0] = 0
    levels = np.minimum(np.rint(parts * inverse), 127)
    return levels.reshape(x.shape), scales[..., 0]


def product(x: Any, weights: Any, block: int) -> Any:
    """x rounded @ weights.T, in float64."""
    levels, scales = rounded(x, block)
    return (levels.astype(np.float64) * np.repeat(scales, block, 1)) @ weights.astype(np.float64).T


def made(name: str, n: int, n_out: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Inputs, blocks and the weights in them; the last chunk of columns is short where blocks are."""
    kind, rng = by_name(name), np.random.default_rng(seed)
    k = 512 if kind.block_size == 256 else 256 + 96
    x = rng.standard_normal((n, k), np.float32) * rng.lognormal(0, 2, (n, 1)).astype(np.float32)
    blocks = kind.encode(rng.standard_normal((n_out, k), np.float32))
    return x, blocks, kind.decode(blocks)


def multiplied(x: Any, name: str, blocks: Any, **how: Any) -> Any:
    out = np.zeros((len(x), len(blocks)), np.float32)
    integer_products.multiply(
        integer_products.round_inputs(x, by_name(name).block_size), by_name(name), blocks, out, **how
    )
    return out


def assert_near(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-6 * float(np.abs(expected).max()))


@pytest.mark.parametrize("block", [32, 256])
def test_inputs_are_rounded_as_ggml_does(block: int) -> None:
    x = np.random.default_rng(1).standard_normal((5, 512), np.float32)
    x[1] = 0
    x[2, :256] = np.tile(np.float32([0.5, -127, 1.5, 127, 2.5, -0.5, 0, 3.5]), 32)  # ties, and two of a size
    x[3, 256:] *= np.float32(1e-42)
    levels, scales = rounded(x, block)
    found = integer_products.round_inputs(x, block)
    rows = found.levels.view(np.int8).transpose(1, 0, 2).reshape(-1, 512)[:5]
    np.testing.assert_array_equal(rows, levels)
    np.testing.assert_array_equal(found.scales.transpose(1, 0, 2).reshape(-1, 512 // block)[:5], scales)
    sums = found.sums.view(np.int16).transpose(1, 0, 2).reshape(-1, 32)[:5]
    np.testing.assert_array_equal(sums, levels.reshape(5, 32, 16).sum(-1))


@pytest.mark.parametrize("n", [1, 3, 5, 17])
@pytest.mark.parametrize("name", integer_products.TYPES)
def test_products_are_exact_in_a_block(name: str, n: int) -> None:
    x, blocks, weights = made(name, n, 37)
    assert_near(multiplied(x, name, blocks), product(x, weights, by_name(name).block_size))


@pytest.mark.parametrize("name", integer_products.TYPES)
def test_any_bytes_are_weights(name: str) -> None:
    """Extreme integers at once: sums stay inside an int16."""
    kind, rng = by_name(name), np.random.default_rng(3)
    blocks = rng.integers(0, 256, (32, kind.row_bytes(512)), np.uint8)
    blocks[:16] = 255
    fields = blocks.reshape(32, -1, kind.layout.itemsize).view(kind.layout)[..., 0]
    for scale in {"d", "dmin", "m"} & set(kind.layout.names):
        fields[scale] = rng.standard_normal(fields[scale].shape)
    if name == "MXFP4":
        fields["e"] = rng.integers(0, 140, fields["e"].shape)
    x = np.where(rng.random((4, 512)) < 0.5, -1, 1).astype(np.float32)
    x[0], x[1] = 1, -1
    assert_near(multiplied(x, name, blocks), product(x, kind.decode(blocks), kind.block_size))


@pytest.mark.parametrize("n_out", [1, 15, 16, 33])
@pytest.mark.parametrize("name", ["Q4_0", "Q6_K"])
def test_any_number_of_outputs(name: str, n_out: int) -> None:
    x, blocks, weights = made(name, 2, n_out)
    assert_near(multiplied(x, name, blocks), product(x, weights, by_name(name).block_size))


def test_ranges_of_outputs_make_up_the_whole() -> None:
    x, blocks, _ = made("Q4_K", 3, 50)
    whole, parts = multiplied(x, "Q4_K", blocks), np.zeros((3, 50), np.float32)
    rounded_x = integer_products.round_inputs(x, 256)
    for first, stop in ((0, 16), (16, 48), (48, 50)):
        integer_products.multiply(rounded_x, by_name("Q4_K"), blocks, parts, first, stop)
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("name", ["Q8_0", "Q5_K"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_only_the_row_of_a_bad_number_is_lost(name: str, bad: float) -> None:
    x, blocks, weights = made(name, 5, 20)
    x[0], x[2, 40] = 0, bad
    found = multiplied(x, name, blocks)
    assert np.isnan(found[2]).all()
    assert (found[0] == 0).all()
    good = [0, 1, 3, 4]
    assert_near(found[good], product(x[good], weights, by_name(name).block_size))


def test_huge_inputs() -> None:
    """A float32 scale holds them; a float16 one does not, and says so instead of giving something else."""
    x, blocks, weights = made("Q4_K", 2, 20)
    assert_near(multiplied(x * np.float32(1e30), "Q4_K", blocks), product(x * np.float32(1e30), weights, 256))
    x, blocks, weights = made("Q4_0", 2, 20)
    x[0] *= np.float32(8e6) / np.abs(x[0]).max()
    x[1] *= np.float32(9e6) / np.abs(x[1]).max()
    found = multiplied(x, "Q4_0", blocks)
    assert_near(found[0], product(x[:1], weights, 32)[0])
    assert np.isnan(found[1]).all()


def test_arguments_that_do_not_fit() -> None:
    x, blocks, _ = made("Q4_0", 2, 20)
    with pytest.raises(UsageError, match="blocks of 256"):
        integer_products.round_inputs(x, 256)
    with pytest.raises(UsageError, match="don't fit"):
        rounded = integer_products.round_inputs(x, 32)
        integer_products.multiply(rounded, by_name("Q4_0"), blocks, np.zeros((2, 21), np.float32))


@pytest.mark.parametrize("features", [(), ("avx2",), ("avx2", "avx512"), ("avx2", "avx512", "vnni")])
def test_lanes_without_their_instructions(features: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain vector code gives the integers that the instructions give (where this CPU has them)."""
    import numba

    from llmconv.quant.kernels.vectors import byte_lanes
    from llmconv.quant.kernels.vectors.memory import load_i32, store

    for feature in ("avx2", "avx512", "vnni"):
        has = getattr(byte_lanes, f"has_{feature}")
        monkeypatch.setattr(
            byte_lanes, f"has_{feature}", lambda context, has=has, asked=feature in features: asked and has(context)
        )

    @numba.njit
    def all_of_them(x: Any, y: Any, z: Any, table: Any, out: Any) -> None:
        a, b = load_i32(x, 0), load_i32(y, 0)
        store(out, 0, byte_lanes.dot_bytes(a, b))
        store(out, 16, byte_lanes.dot_shorts(a, b))
        store(out, 32, byte_lanes.add_shorts(a, b))
        store(out, 48, byte_lanes.look_up(table, a))
        store(out, 64, byte_lanes.add_fours(a, b, a))
        store(out, 80, byte_lanes.add_signed_fours(b, load_i32(z, 0), b))

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 16, 64, np.uint8), rng.integers(-128, 128, 64).astype(np.int8)
    table = rng.integers(0, 256, 16, np.uint8)
    z, out = rng.integers(-127, 128, 64).astype(np.int8), np.zeros(96, np.int32)
    all_of_them(x.view(np.int32), y.view(np.int32), z.view(np.int32), table, out)
    sums = (x.astype(np.int16) * y).reshape(-1, 2).sum(1)
    np.testing.assert_array_equal(out[:16].view(np.int16), sums)
    pairs = x.view(np.int16).astype(np.int32) * y.view(np.int16)
    np.testing.assert_array_equal(out[16:32], pairs.reshape(-1, 2).sum(1))
    np.testing.assert_array_equal(out[32:48].view(np.int16), x.view(np.int16) + y.view(np.int16))
    np.testing.assert_array_equal(out[48:64].view(np.uint8), table[x])
    out[64:80] -= x.view(np.int32)  # the totals
    out[80:] -= y.view(np.int32)
    np.testing.assert_array_equal(out[64:80], (x.astype(np.int32) * y).reshape(-1, 4).sum(1))
    np.testing.assert_array_equal(out[80:], (y.astype(np.int32) * z).reshape(-1, 4).sum(1))


# ---- in models


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_matmul_rounds_when_asked(threads: int) -> None:
    kind, rng = by_name("Q4_0"), np.random.default_rng(0)
    blocks = kind.encode(rng.standard_normal((300, 256), np.float32))
    x = torch.from_numpy(rng.standard_normal((2, 3, 256), np.float32))
    stored = torch.from_numpy(blocks)
    found = products.matmul(x, stored, kind, "int8")
    expected = product(x.flatten(0, 1).numpy(), kind.decode(blocks), 32).reshape(2, 3, 300)
    assert_near(found.numpy(), expected)
    assert not torch.equal(found, products.matmul(x, stored, kind))
    half = products.matmul(x.bfloat16(), stored, kind, "int8")
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), found, rtol=0.02, atol=0.3)


def test_gradients_are_those_of_floats() -> None:
    """And the product is the rounded one, whoever wants gradients."""
    kind = by_name("Q4_0")
    stored = torch.from_numpy(kind.encode(np.random.default_rng(0).standard_normal((20, 64), np.float32)))
    x = torch.randn(3, 64, requires_grad=True)
    found = products.matmul(x, stored, kind, "int8")
    assert torch.equal(found, products.matmul(x.detach(), stored, kind, "int8"))
    assert not torch.equal(found, products.matmul(x, stored, kind))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(gradient, torch.from_numpy(kind.decode(stored.numpy())).sum(0).expand(3, -1))


def test_inputs_with_gradients_switched_off() -> None:
    kind = by_name("Q4_0")
    stored = torch.from_numpy(kind.encode(np.random.default_rng(0).standard_normal((20, 64), np.float32)))
    x = torch.randn(3, 64, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(products.matmul(x, stored, kind, "int8"), products.matmul(x.detach(), stored, kind, "int8"))


def test_other_types_stay_floats() -> None:
    assert "TQ1_0" not in integer_products.TYPES
    kind = by_name("TQ1_0")
    stored = torch.from_numpy(kind.encode(np.random.default_rng(0).standard_normal((20, 256), np.float32)))
    x = torch.randn(3, 256)
    with torch.no_grad():
        assert torch.equal(products.matmul(x, stored, kind, "int8"), products.matmul(x, stored, kind))


@pytest.fixture
def stories(shared: Path, tmp_path: Path) -> Any:
    """stories260K quantized to a type."""

    def quantized(name: str) -> Path:
        target = tmp_path / f"{name}.gguf"
        if not target.exists():
            llmconv.quantize(shared / "stories260K" / "stories260K-f32.gguf", target, name)
        return target

    return quantized


@pytest.fixture
def perplexity(shared: Path) -> Any:
    """That of a model on the sample, with activations as told, in one thread: the matrices are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    text = shared / "text" / "tinystories-sample.txt"
    yield lambda path, how: llmconv.perplexity(path, text, context=128, device="cpu", activations=how).perplexity
    torch.set_num_threads(before)


LLAMA_CPP = {
    "Q4_0": 6.3379,
    "Q4_1": 6.3876,
    "Q5_0": 6.1781,
    "Q5_1": 6.0853,
    "Q8_0": 6.0313,
    "IQ4_NL": 6.3458,
    "Q3_K_M": 6.2776,
    "Q4_K_M": 6.1606,
    "Q5_K_M": 6.0832,
}


def test_llama_cpp_has_the_same_perplexity(stories: Any, perplexity: Any) -> None:
    assert perplexity(stories("Q4_0"), "int8") == pytest.approx(LLAMA_CPP["Q4_0"], rel=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", LLAMA_CPP)
def test_rounding_comes_nearer_to_llama_cpp(name: str, stories: Any, perplexity: Any) -> None:
    """Within 0.05 %, where floats are up to 0.1 % away."""
    exact, rounded_ = (perplexity(stories(name), how) for how in products.ACTIVATIONS)
    assert rounded_ == pytest.approx(LLAMA_CPP[name], rel=5e-4)
    assert abs(rounded_ - LLAMA_CPP[name]) <= abs(exact - LLAMA_CPP[name])


def test_the_same_through_the_cache(stories: Any) -> None:
    model = llmconv.load(stories("Q4_0"), "cpu", activations="int8")
    tokens = torch.arange(3, 19)[None]
    with torch.inference_mode():
        whole = model(tokens)
        cache = model.cache(1, 16)
        steps = torch.cat([model(tokens[:, i : i + 1], cache=cache) for i in range(16)], 1)
    torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-3)


def test_what_can_not_be_had(stories: Any) -> None:
    with pytest.raises(UsageError, match="give float or int8"):
        llmconv.load(stories("Q4_0"), "cpu", activations="int4")
    with pytest.raises(UsageError, match="f64"):
        llmconv.load(stories("Q4_0"), "cpu", "f64", activations="int8")
    with pytest.raises(UsageError, match="for the CPU, not 'cuda'"):  # asked before anything goes there
        _check_activations("int8", torch.device("cuda"), None)


def test_commands_take_it(stories: Any) -> None:
    how = ["--device", "cpu", "--activations", "int8", "--temperature", "0", "-n", "5", "-p", "Once upon a time"]
    result = CliRunner().invoke(cli, ["generate", str(stories("Q8_0")), *how])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == "Once upon a time, there was a little"
    result = CliRunner().invoke(cli, ["perplexity", "model.gguf", "text.txt", "--activations", "int4"])
    assert result.exit_code == 2
    assert "'int4' is not one of 'float', 'int8'" in result.output
