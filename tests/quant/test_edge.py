"""Block types at the edges: other input dtypes, odd numbers of rows, hostile values, threads, bare CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from llmconv.errors import UsageError
from llmconv.quant import by_name, types

ENCODED = [t.name for t in types() if not t.is_plain() and t.can_encode()]
BLOCKS = [t.name for t in types() if not t.is_plain()]
WEIGHTED = [name for name in ENCODED if by_name(name).uses_importance]


def rows_for(block, n, blocks, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(4, (n, block.block_size * blocks)).astype(np.float32) * np.float32(0.02)
    return rows, rng.random(rows.shape[1]).astype(np.float32)


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_are_widened_or_rounded_first(name, dtype):
    block = by_name(name)
    rows, importance = rows_for(block, 3, 5)
    rows = rows.astype(dtype)
    np.testing.assert_array_equal(block.encode(rows, importance), block.encode(rows.astype(np.float32), importance))
    if not block.needs_importance:
        np.testing.assert_array_equal(block.encode(rows), block.encode(rows.astype(np.float32)))


@pytest.mark.parametrize("name", ENCODED)
def test_float16_extremes_are_widened_exactly(name):
    block = by_name(name)
    rows = np.arange(0x10000, dtype=np.uint16).view(np.float16)
    rows = np.where(np.isfinite(rows), rows, np.float16(0)).reshape(256, 256)
    importance = np.ones(256, np.float32) if block.needs_importance else None
    np.testing.assert_array_equal(block.encode(rows, importance), block.encode(rows.astype(np.float32), importance))


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 37])
def test_every_row_is_encoded_on_its_own(name, n):
    block = by_name(name)
    rows, importance = rows_for(block, n, 3, seed=n)
    for weights in ([None] if not block.needs_importance else []) + [importance]:
        alone = np.concatenate([block.encode(row[None], weights) for row in rows])
        np.testing.assert_array_equal(block.encode(rows, weights), alone)


@pytest.mark.parametrize("name", ENCODED)
def test_read_only_unaligned_and_strided_rows(name):
    block = by_name(name)
    rows, importance = rows_for(block, 4, 2)
    expected = block.encode(rows, importance)
    buffer = np.zeros(rows.nbytes + 1, np.uint8)
    odd = buffer[1:].view(np.float32).reshape(rows.shape)
    odd[...] = rows
    odd.flags.writeable = False
    np.testing.assert_array_equal(block.encode(odd, importance), expected)
    np.testing.assert_array_equal(block.encode(np.asfortranarray(rows), importance), expected)
    blocks = np.zeros(expected.nbytes + 1, np.uint8)[1:].reshape(expected.shape)
    blocks[...] = expected
    blocks.flags.writeable = False
    np.testing.assert_array_equal(block.decode(blocks), block.decode(expected))


HOSTILE = {
    "zeros": 0.0,
    "negative zeros": -0.0,
    "subnormal": 1e-45,
    "tiny": 1e-38,
    "huge": 3e38,
    "infinite": np.inf,
    "negative infinite": -np.inf,
    "not a number": np.nan,
}


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_hostile_values_spoil_their_own_row_only(name, what):
    block = by_name(name)
    rows, importance = rows_for(block, 20, 2)
    for weights in ([None] if not block.needs_importance else []) + [importance]:
        expected = block.encode(rows, weights)
        hostile = rows.copy()
        hostile[7] = HOSTILE[what]
        hostile[9, ::3] = HOSTILE[what]
        got = block.encode(hostile, weights)
        rest = [i for i in range(len(rows)) if i not in (7, 9)]
        np.testing.assert_array_equal(got[rest], expected[rest])
        if what in ("zeros", "negative zeros") and name not in ("Q1_0",):
            assert not block.decode(got)[7].any()


@pytest.mark.parametrize("name", BLOCKS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_bytes_decode(name, data):
    block = by_name(name)
    n, blocks = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    raw = np.frombuffer(
        data.draw(st.binary(min_size=(size := n * block.row_bytes(blocks * block.block_size)), max_size=size)), np.uint8
    )
    with np.errstate(all="ignore"):
        values = block.decode(raw.reshape(n, -1))
    assert values.shape == (n, blocks * block.block_size)
    assert values.dtype == np.float32


@pytest.mark.parametrize("name", ENCODED)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_decoded_values_stay_in_range(name, data):
    """No weight moves by much more than its row's greatest magnitude, whatever the values' scale and sparsity.

    Two things are the reference's own, whose bytes ours are.  IQ1_M weighs by the square without importance, and zeros
    then count for nothing: it is given some.  IQ3_S does not step past 32 weights that are all zeros, so that what
    follows in their block moves up: each 32 keep one that isn't.
    """
    block = by_name(name)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scale = 10.0 ** data.draw(st.integers(-3, 2))
    rows = (rng.standard_normal((2, block.block_size * 2)) * scale).astype(np.float32)
    gone = rng.random(rows.shape) < data.draw(st.sampled_from([0.0, 0.5, 0.95]))
    if name == "IQ3_S":
        gone[:, ::32] = False
    rows[gone] = 0
    given = block.needs_importance or name == "IQ1_M"
    importance = np.ones(rows.shape[1], np.float32) if given else None
    decoded = block.decode(block.encode(rows, importance))
    assert np.isfinite(decoded).all()
    assert (np.abs(decoded - rows).max(1) <= 1.25 * np.abs(rows).max(1) + 1e-6).all()


def test_iq3_s_moves_up_what_follows_zeros_as_the_reference_does():
    block = by_name("IQ3_S")
    rows, _ = rows_for(block, 1, 1)
    rows[0, 32:64] = 0
    found = block.encode(rows).view(block.layout)[0, 0]
    rows[0, 32:64] = rows[0, 64:96]  # of a part that is there twice, the first is at its own place
    other = block.encode(rows).view(block.layout)[0, 0]
    np.testing.assert_array_equal(found["signs"][4:8], other["signs"][4:8])
    np.testing.assert_array_equal(found["signs"][8:28], other["signs"][12:])
    assert not found["signs"][28:].any() and not found["qs"][56:].any()


@pytest.mark.parametrize("name", WEIGHTED)
def test_importance_lowers_the_weighted_error(name):
    block = by_name(name)
    rows, _ = rows_for(block, 16, 4, seed=3)
    importance = np.where(np.arange(rows.shape[1]) % 4 == 0, 100, 0.01).astype(np.float32)
    plain = np.ones_like(importance) if block.needs_importance else None

    def error(weights):
        miss = block.decode(block.encode(rows, weights)) - rows
        return float((miss * miss * importance).sum())

    assert error(importance) < error(plain)


@pytest.mark.parametrize("name", ENCODED)
def test_threads_agree(name):
    block = by_name(name)
    rows, importance = rows_for(block, 64, 2)
    expected = block.encode(rows, importance)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: block.encode(rows, importance), range(8)):
            np.testing.assert_array_equal(got, expected)


def test_wrong_shapes_are_refused_in_a_sentence():
    block = by_name("Q4_K")
    with pytest.raises(UsageError, match="not a multiple"):
        block.encode(np.zeros((1, 100), np.float32))
    with pytest.raises(UsageError, match="one weight per column"):
        block.encode(np.zeros((1, 256), np.float32), np.ones(255, np.float32))
    with pytest.raises(UsageError, match="whole"):
        block.decode(np.zeros((1, 143), np.uint8))
    with pytest.raises(UsageError, match="contiguous"):
        block.decode(np.zeros((2, 144), np.uint8), np.zeros((256, 2), np.float32).T)


def check_bytes(root, names, **environment):
    """The reference's bytes, in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA")}
    program = root / "tests" / "support" / "golden_bytes.py", root / "tests" / "golden" / "ggml.npz"
    words = [sys.executable, "-W", "ignore", *map(str, program), *names]
    done = subprocess.run(words, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal") == len(names)


@pytest.mark.slow
@pytest.mark.parametrize("cpu, names", [("generic", ["Q5_1", "Q4_K", "IQ3_S"]), ("x86-64-v2", ["Q8_0", "Q4_0"])])
def test_a_bare_cpu_gives_the_same_bytes(root, tmp_path, cpu, names):
    """Without AVX and F16C, as NUMBA_CPU_NAME and NUMBA_CPU_FEATURES can pretend."""
    check_bytes(root, names, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="", LLMCONV_CACHE_DIR=str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["/dev/null/cache", ""])
def test_kernels_work_without_a_cache_folder(root, folder):
    environment = {"LLMCONV_CACHE_DIR": folder} if folder else {"HOME": "/dev/null", "XDG_CACHE_HOME": ""}
    check_bytes(root, ["Q8_0"], **environment)


@pytest.mark.slow
def test_kernels_are_kept_under_a_name_of_their_sources(root, tmp_path):
    check_bytes(root, ["Q8_0"], LLMCONV_CACHE_DIR=str(tmp_path))
    (folder,) = (tmp_path / "llmconv").iterdir()
    kept = sorted(folder.iterdir())
    assert kept
    stamps = [p.stat().st_mtime_ns for p in kept]
    check_bytes(root, ["Q8_0"], LLMCONV_CACHE_DIR=str(tmp_path))
    assert [p.stat().st_mtime_ns for p in kept] == stamps
    for path in kept:  # a damaged cache means compiling again, not failing
        path.write_bytes(b"damaged")
    check_bytes(root, ["Q8_0"], LLMCONV_CACHE_DIR=str(tmp_path))


@pytest.mark.slow
def test_kept_kernels_need_no_numba(root, tmp_path):
    code = "import numpy as np, sys; from llmconv.quant import by_name; "
    code += "by_name('Q8_0').encode(np.ones((1, 32), np.float32)); print('numba' in sys.modules)"
    environment = os.environ | {"LLMCONV_CACHE_DIR": str(tmp_path), "NUMBA_CACHE_DIR": ""}
    words = [sys.executable, "-W", "ignore", "-c", code]
    found = [subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout for _ in "12"]
    assert found == ["True\n", "False\n"]


@pytest.mark.parametrize("rows", [np.zeros(32, np.int64), np.zeros((2, 32), np.float32), np.zeros(64, np.float32)[::2]])
def test_a_kernel_takes_no_other_arrays(rows):
    from llmconv.quant.kernels import q32

    with pytest.raises(TypeError, match=r"takes|flat array"):
        q32.encode_q8_0(rows, np.zeros(34, np.uint8))


def test_a_kernel_writes_to_nothing_that_is_read_only():
    from llmconv.quant.kernels import q32

    out = np.zeros(34, np.uint8)
    out.flags.writeable = False
    with pytest.raises(TypeError, match="read-only"):
        q32.encode_q8_0(np.zeros(32, np.float32), out)


def test_a_kernel_takes_its_arguments_by_name():
    from llmconv.quant.kernels import q32

    blocks, out = np.arange(22, dtype=np.uint8), np.zeros((2, 32), np.float32)
    q32.decode_quants(blocks, 5, False, out[0])
    q32.decode_quants(blocks, out=out[1], affine=False, width=5)
    np.testing.assert_array_equal(out[0], out[1])
    given = {"out": out[1], "width": 5}
    for wrong in (given, given | {"afine": False}, given | {"affine": False, "blocks": blocks}):
        with pytest.raises(TypeError, match="takes blocks, width, affine, out"):
            q32.decode_quants(blocks, **wrong)
