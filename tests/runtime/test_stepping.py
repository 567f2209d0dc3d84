"""One token at a time by a table of instructions: products against numpy, models against torch, threads, ways back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmconv.quant import integer_products
from llmconv.quant.block import by_name
from llmconv.quant.kernels.terms import steps

torch = pytest.importorskip("torch")

import runnable
from one_by_one import TOKENS, by_table, near, stored, tiny

import llmconv
from llmconv.runtime import products
from llmconv.runtime.banned import Banned
from llmconv.runtime.generate import _tokens
from llmconv.runtime.linear import Linear
from llmconv.runtime.sampling import Sampling, generator_of
from llmconv.runtime.stepping.stepper import LATE, STAY, TRIAL, _together, stepper
from llmconv.runtime.stepping.table import Table

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("rounded", [False, True], ids=["floats", "bytes"])
@pytest.mark.parametrize("name", integer_products.TYPES)
def test_a_row_of_blocks_times_an_input(name: str, rounded: bool) -> None:
    kind, rng = by_name(name), np.random.default_rng(len(name))
    k = 512 if kind.block_size == 256 else 256 + 96  # of the small blocks an odd number
    weight = Linear((37, k), kind)
    weight.weight = torch.from_numpy(kind.encode(rng.standard_normal((37, k), np.float32)))
    if kind.block_size == 32 and name != "MXFP4":
        any_bytes = rng.integers(0, 256, (37, kind.row_bytes(k)), np.uint8)
        fields = any_bytes.reshape(37, -1, kind.layout.itemsize).view(kind.layout)[..., 0]
        for scale in {"d", "m"} & set(kind.layout.names):
            fields[scale] = rng.standard_normal(fields[scale].shape)
        weight.weight = torch.from_numpy(any_bytes)
    weight.activations = "int8" if rounded else "float"
    x = rng.standard_normal(k, np.float32) * np.float32(3)
    blocks = weight.weight.numpy()
    decoded = kind.decode(blocks).astype(np.float64)
    expected = decoded @ x
    if rounded:
        out = np.zeros((1, 37), np.float32)
        inputs = integer_products.round_inputs(x[None], kind.block_size)
        integer_products.multiply(inputs, kind, blocks, out)
        expected = out[0]
    near(by_table(x, weight), expected, (np.abs(decoded) @ np.abs(x)).max())


@pytest.mark.parametrize("k", [7, 64, 100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_row_of_numbers_times_an_input(dtype: str, k: int) -> None:
    rng, kind = np.random.default_rng(k), getattr(torch, dtype)
    weight = Linear((5, k), None, (5,), kind)
    weight.weight.data.copy_(torch.from_numpy(rng.standard_normal((5, k))))
    weight.bias = torch.nn.Parameter(torch.arange(5.0))
    for size in (1, 1e5):  # beyond float16 an input stays as it is
        x = rng.standard_normal(k).astype(np.float32) * np.float32(size)
        given = torch.from_numpy(x)
        fits = dtype == "bfloat16" or float(given.abs().max()) <= 65504
        expected = weight.weight.double() @ (given.to(kind) if fits else given).double() + torch.arange(5)
        near(by_table(x, weight), expected.detach().numpy(), np.abs(x).sum() * 3)


def steps_of(model: Any, tokens: Any, first: int, capacity: int = 64, off: float = 1e-4) -> Any:
    """Logits of the tokens from `first` on, each by the table; torch's of the same.

    off: how far keys and values may be from torch's; more where inputs are rounded, which a last bit may tip over.
    """
    with torch.inference_mode():
        cache, other = model.cache(1, capacity), model.cache(1, capacity)
        model(tokens[:, :first], cache=cache)
        step = stepper(model, cache)
        assert step is not None
        model(tokens[:, :first], cache=other)
        ours, theirs = [], []
        for i in range(first, tokens.shape[1]):
            ours.append(step(int(tokens[0, i])).clone())
            theirs.append(model(tokens[:, i : i + 1], cache=other)[0])
        for layer, expected in zip(cache.layers[: len(model.blk)], other.layers, strict=False):
            for found, wanted in zip(layer, expected, strict=True):
                torch.testing.assert_close(found[:, :, : cache.length], wanted[:, :, : cache.length], atol=off, rtol=0)
        return torch.cat(ours), torch.cat(theirs)


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize("name", ["F32", "BF16", "F16", "Q4_0", "Q4_1", "Q8_0", "MXFP4"])
def test_logits_as_torch_has_them(name: str, activations: str) -> None:
    model = llmconv.load(stored(tiny(), name), "cpu", activations=activations)
    exact = activations == "float" and name not in ("BF16", "F16")
    ours, theirs = steps_of(model, torch.tensor(TOKENS), 5, off=1e-4 if exact else 2e-2)
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=(1e-4 if exact else 1e-2) * float(theirs.std()), rtol=0)


def test_a_text_longer_than_was_planned() -> None:
    model = llmconv.load(tiny(), "cpu")
    ours, theirs = steps_of(model, torch.tensor(TOKENS * 3).view(1, -1), 3, capacity=4)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_text_longer_than_a_vector() -> None:
    """Heads over 200 tokens, and numbers of a head that are no whole vectors."""
    model = llmconv.load(runnable.checkpoint(dim=40, layers=1, heads=2, ffn=56), "cpu")
    tokens = torch.randint(3, 32, (1, 200), generator=torch.Generator().manual_seed(1))
    ours, theirs = steps_of(model, tokens, 190, 256)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    products._pool = None
    yield
    torch.set_num_threads(1)
    products._pool = None


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, two_threads: None) -> None:
    """Also where chunks are of a row, so that both take some."""
    monkeypatch.setattr("llmconv.runtime.stepping.table.LEAST_CHUNK", 1)
    model = llmconv.load(stored(tiny(), "Q4_0"), "cpu")
    ours, _ = steps_of(model, torch.tensor(TOKENS * 3).view(1, -1), 5)
    torch.set_num_threads(1)
    alone, _ = steps_of(model, torch.tensor(TOKENS * 3).view(1, -1), 5)
    torch.testing.assert_close(ours, alone, atol=0, rtol=0)


def test_nobody_waits_for_a_thread_that_does_not_come(monkeypatch: pytest.MonkeyPatch, two_threads: None) -> None:
    held = threading.Event()
    for _ in range(2):
        products.workers().submit(held.wait)
    try:
        model = llmconv.load(tiny(), "cpu")
        ours, theirs = steps_of(model, torch.tensor(TOKENS), 5)
    finally:
        held.set()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_thread_that_comes_when_all_is_over_goes_again(two_threads: None) -> None:
    model = llmconv.load(tiny(), "cpu")
    cache = model.cache(1, 16)
    with torch.inference_mode():
        model(torch.tensor(TOKENS)[:, :5], cache=cache)
        step = stepper(model, cache)
        assert step is not None
        step(3)
    started = time.perf_counter()
    for job in [products.workers().submit(lambda: None) for _ in range(4)]:
        job.result(10)
    assert time.perf_counter() - started < 5


def test_a_thread_that_sleeps_over_a_token_helps_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token's help comes when the next one is made: it works at that one's position."""

    class Late:
        def __init__(self) -> None:
            self.work: list[Any] = []
            self.threads: list[threading.Thread] = []

        def submit(self, *work: Any) -> None:
            for late in self.work:
                self.threads.append(threading.Thread(target=late[0], args=late[1:]))
                self.threads[-1].start()
            time.sleep(0.005)  # till it waits for what is opened
            self.work = [work]

    late = Late()
    monkeypatch.setattr("llmconv.runtime.stepping.table.LEAST_CHUNK", 1)
    tokens = torch.tensor(TOKENS * 3).view(1, -1)
    alone, _ = steps_of(llmconv.load(stored(tiny(), "Q4_0"), "cpu"), tokens, 5)
    monkeypatch.setattr(products, "workers", lambda: late)
    torch.set_num_threads(2)
    try:
        ours, _ = steps_of(llmconv.load(stored(tiny(), "Q4_0"), "cpu"), tokens, 5)
    finally:
        torch.set_num_threads(1)
        for thread in late.threads:
            thread.join(10)
    torch.testing.assert_close(ours, alone, atol=0, rtol=0)


@pytest.mark.parametrize("faster", [True, False])
def test_where_one_comes_late_the_faster_way_is_gone_for_a_while(faster: bool) -> None:
    pace = _together()
    helped = [next(pace)]

    def token(naps: int) -> None:
        helped.append(pace.send((1.0 if helped[-1] == faster else 2.0, naps)))

    for naps in (0, 0, LATE - 1, LATE):
        token(naps)
    for _ in range(2 * TRIAL + STAY):
        token(LATE)
    assert helped[:5] == [True] * 5
    assert helped[4 : 4 + 2 * TRIAL] == [True] * TRIAL + [False] * TRIAL
    assert helped[4 + 2 * TRIAL :] == [faster] * STAY + [True]  # and asks again


def test_greedy_text_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llmconv.load(tiny(), "cpu")

    def text() -> list[int | None]:
        with torch.inference_mode():
            return list(_tokens(model, [3, 9, 4], 20, Sampling(temperature=0), Banned(model), generator_of(0)))

    by_steps = text()
    monkeypatch.setattr("llmconv.runtime.generate.stepper", lambda model, cache: None)
    assert by_steps == text()


def test_what_is_not_known_goes_through_torch() -> None:
    tokens = torch.tensor(TOKENS)

    def goes(change: Any = lambda model: None, mask: Any = None, batch: int = 1, source: Any = None) -> bool:
        model = llmconv.load(source or tiny(), "cpu")
        cache = model.cache(batch, 16)
        with torch.inference_mode():
            model(tokens[:, :5].repeat(batch, 1), mask, cache=cache)
        change(model)
        return stepper(model, cache) is None

    assert not goes()
    assert goes(lambda model: model.blk[0].ffn_up.register_forward_hook(lambda *_: None))
    assert goes(lambda model: setattr(model.blk[1].attn_q, "watch", lambda *_: None))
    assert goes(lambda model: setattr(model.blk[1].attn_q, "rounds", by_name("Q4_0")))
    assert goes(lambda model: model.blk[0].add_module("attn_gate", Linear((64, 64))))
    assert goes(lambda model: setattr(model.blk[0], "ffn_up", torch.nn.Linear(64, 96)))
    assert goes(lambda model: model.double())
    assert goes(mask=torch.tensor([[False, True, True, True, True]]))
    assert goes(batch=2)
    assert goes(source=stored(tiny(dim=256, ffn=256), "TQ2_0"))  # a type without such kernels


def test_numbers_that_are_none_are_said(tmp_path: Path) -> None:
    def broken(values: Any) -> None:
        values[0, 0] = np.inf

    model = llmconv.load(runnable.changed(tiny(), "blk.1.ffn_down.weight", broken), "cpu")
    cache = model.cache(1, 16)
    with torch.inference_mode():
        model(torch.tensor(TOKENS)[:, :5], cache=cache)
        step = stepper(model, cache)
        assert step is not None
        assert not step(3).isfinite().all()


def test_a_table_has_an_end() -> None:
    model = llmconv.load(tiny(), "cpu")
    cache = model.cache(1, 16)
    with torch.inference_mode():
        model(torch.tensor(TOKENS)[:, :5], cache=cache)
    table = Table(model, cache, 2)
    assert table.instructions[[0, -1], steps.HOW].tolist() == [steps.START] * 2
    shared = table.instructions[:, steps.HOW] == steps.ROWS
    assert (table.instructions[shared, steps.CHUNKS] >= 1).all()
