"""Rounding for a quadratic loss: grids are the types' own, every sweep lowers the loss, which is what it says."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llmconv.quant import int8
from llmconv.quant.rounding.descent import Metric, Order, loss, rounded, spread_errors
from llmconv.quant.rounding.families import GRIDS
from llmconv.quant.rounding.grid import Grid
from llmconv.quant.rounding.groups import Grouped, grouped, int8_rows
from llmconv.quant.rounding.knapsack import Offer, choose, smallest

ROWS, COLUMNS = 80, 256


@pytest.fixture(scope="module")
def problem() -> dict[str, Any]:
    """Weights, correlated inputs and correlated gradients, as models have them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 40)) @ rng.standard_normal((40, COLUMNS)) + 0.4 * rng.standard_normal((600, COLUMNS))
    g = rng.standard_normal((600, 12)) @ rng.standard_normal((12, ROWS)) + 0.4 * rng.standard_normal((600, ROWS))
    return {
        "weights": (rng.standard_t(5, (ROWS, COLUMNS)) * 0.02).astype(np.float32),
        "h": (x.T @ x / 600).astype(np.float32),
        "f": (g.T @ g / 600).astype(np.float32),
    }


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_any_bytes_are_codes_and_back(grid: Grid) -> None:
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (6, grid.type.row_bytes(512))).astype(np.uint8)
    fields = blocks.reshape(-1).view(grid.type.layout)
    for name in grid.type.layout.names or ():
        if grid.type.layout[name] == np.float16:
            fields[name] = rng.standard_normal(len(fields)).astype(np.float16)
    if grid.type.name == "IQ1_M":  # the float16 scale is in the words' top bits: a finite one
        fields["scales"][:, 3] &= 0xBFFF
    elif grid.type.name == "MXFP4":
        fields["e"] = rng.integers(0, 250, len(fields))  # 12 times greater ones are beyond float32
    elif grid.type.name in ("TQ1_0", "TQ2_0", "NVFP4"):  # not all bytes are a number, or say it in one way
        blocks = grid.type.encode(rng.standard_normal((6, 512)).astype(np.float32))
    codes = grid.unpack(blocks)
    assert np.array_equal(grid.pack(codes), blocks)
    np.testing.assert_allclose(grid.values(codes), grid.type.decode(blocks), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_every_sweep_lowers_the_loss(grid: Grid, problem: dict[str, Any]) -> None:
    weights, h, f = problem["weights"], problem["h"], problem["f"]
    importance = np.ascontiguousarray(np.diag(h))
    start = grid.unpack(grid.type.encode(weights, importance if grid.type.uses_importance else None))
    apart, both = Metric(h), Metric(h, f)
    if grid.book is None:
        plain, start = start, spread_errors(grid, start, weights, Order.of(h), np.matmul)
        assert loss(apart, grid, start, weights) < 0.5 * loss(apart, grid, plain, weights)
    for metric in (apart, both):
        found, losses, _ = rounded(grid, start, weights, metric, 4)
        assert all(b <= a * 1.0001 for a, b in itertools.pairwise(losses)) and losses[-1] < 0.8 * losses[0]
        assert grid.book is None or losses[-1] < 0.1 * losses[0]
        decoded = grid.type.decode(grid.pack(found)).astype(np.float64)  # what a reader of the file sees
        error = decoded - weights
        rows = np.eye(ROWS) if metric.f is None else f
        assert losses[-1] == pytest.approx(np.trace(error @ h @ error.T @ rows), rel=1e-3)


@pytest.mark.parametrize(
    "kind", [grouped("Q4_0", 128), grouped("Q4_1", 64), int8_rows(np.dtype(ml_dtypes.bfloat16))], ids=lambda k: k.name
)
def test_grids_of_folders(kind: type[Grouped], problem: dict[str, Any]) -> None:
    """Scales of groups and rows: what is packed decodes to the codes' values, and a group's blocks agree in theirs."""
    grid, weights, metric = kind.grid, problem["weights"], Metric(problem["h"], problem["f"])
    blocks = kind.encode(weights)
    plain = grid.unpack(blocks)
    assert np.array_equal(grid.pack(plain), blocks)
    assert np.abs(grid.values(plain) - weights).max() < np.abs(weights).max() / 7
    found, losses, _ = rounded(
        grid, spread_errors(grid, plain, weights, Order.of(metric.h), np.matmul), weights, metric, 4
    )
    assert losses[-1] < 0.8 * loss(metric, grid, plain, weights)
    made = grid.pack(found)
    np.testing.assert_allclose(kind.decode(made), grid.values(found), rtol=1e-6, atol=1e-7)
    if kind.base is None:
        codes, scales = kind.numbers(made)  # type: ignore[attr-defined]
        assert np.array_equal(scales, int8.encode(weights.astype(ml_dtypes.bfloat16))[1]) and np.abs(codes).max() == 127
        np.testing.assert_allclose(codes * scales.astype(np.float32), grid.values(found), rtol=1e-6)
    else:
        scales = made.reshape(-1).view(kind.base.layout)["d"].reshape(-1, grid.span // 32)
        assert (scales == scales[:, :1]).all()
        assert np.array_equal(kind.decode(made), kind.base.decode(made))


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ3_S", "IQ1_S"])
def test_no_single_entry_is_better(name: str, problem: dict[str, Any]) -> None:
    """Where the search has ended, no other entry with the same signs and shift lowers the loss, tried one by one."""
    grid, weights, h = GRIDS[name], problem["weights"][:2], problem["h"].astype(np.float64)
    start = grid.unpack(grid.type.encode(weights, np.ascontiguousarray(np.diag(problem["h"]))))
    found = rounded(grid, start, weights, Metric(problem["h"]), 40).codes
    assert grid.book is not None
    places, group = grid.book().places.astype(int), grid.book().places.shape[1]
    values, step = grid.values(found).astype(np.float64), np.repeat(grid.steps(found)[0], grid.block, 1)
    for row in range(2):
        for at in range(0, COLUMNS, 5 * group):
            here, codes = slice(at, at + group), found.code[row, at : at + group]
            half = len(grid.levels) // 2
            same = 2 * places + (codes[0] & 1) if half == 3 and name.startswith("IQ1") else None
            other = np.where(codes < half, half - 1 - places, half + places) if same is None else same
            moved = grid.levels[other] * step[row, here] - values[row, here]
            error = values[row] - weights[row]
            change = 2 * moved @ (h[here] @ error) + np.einsum("ij,jk,ik->i", moved, h[here, here], moved)
            assert change.min() > -1e-5 * (error @ h @ error)


def test_one_column_at_a_time_is_gptq(problem: dict[str, Any]) -> None:
    """The same codes as the textbook's loop: round a column, and move the rest by the inverse's Cholesky factor."""
    grid, weights, h = GRIDS["Q4_0"], problem["weights"][:8], problem["h"].astype(np.float64)
    plain = grid.unpack(grid.type.encode(weights))
    found = spread_errors(grid, plain, weights, Order.of(h), np.matmul)
    left, inverse = weights.astype(np.float64), np.linalg.inv(h)
    scales = np.repeat(plain.scale, 32, 1).astype(np.float64)
    code = np.zeros(weights.shape, np.int64)
    alive = list(np.argsort(-np.diag(h), kind="stable"))
    while alive:
        j = alive[0]
        code[:, j] = np.clip(np.rint(left[:, j] / scales[:, j]), -8, 7) + 8
        error = (left[:, j] - (code[:, j] - 8) * scales[:, j]) / inverse[j, j]
        left -= np.outer(error, inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        alive.pop(0)
    assert (found.code == code).mean() > 0.995  # ties aside


def test_scales_stay_what_float16_holds(problem: dict[str, Any]) -> None:
    for name in ("Q4_1", "Q4_K", "IQ4_XS", "IQ3_XXS"):
        grid = GRIDS[name]
        start = grid.unpack(grid.type.encode(problem["weights"]))
        found = rounded(grid, start, problem["weights"], Metric(problem["h"]), 3).codes
        for array in (found.scale, found.minimum):
            assert np.array_equal(array, array.astype(np.float16).astype(np.float32))
        assert ((found.factor - grid.factors[0]) % grid.apart == 0).all()
        assert found.factor.min() >= grid.factors[0] and found.factor.max() <= grid.factors[1]
        assert found.shift.min() >= grid.shifts[0] and found.shift.max() <= grid.shifts[1]


def test_rows_and_columns_that_never_matter(problem: dict[str, Any]) -> None:
    """A row that no loss depends on, and weights of zeros, stay as they were."""
    h, f, weights = problem["h"], problem["f"].copy(), problem["weights"].copy()
    f[3] = f[:, 3] = 0
    weights[5] = 0
    grid = GRIDS["Q4_K"]
    start = grid.unpack(grid.type.encode(weights))
    found = rounded(grid, start, weights, Metric(h, f), 2).codes
    assert np.array_equal(found.code[3], start.code[3])
    assert np.isfinite(grid.values(found)).all()


def test_the_best_choice_is_found() -> None:
    """Against all choices there are, of small problems; never over the budget, and close to it where many fit."""
    rng = np.random.default_rng(4)
    for _ in range(30):
        offers = [
            Offer(sorted(rng.integers(100, 5000, 4).tolist()), sorted(rng.random(4).tolist(), reverse=True))
            for _ in range(5)
        ]
        budget = int(rng.integers(smallest(offers), 25_000))
        found = choose(offers, budget)
        assert found is not None
        size, loss = (
            sum(getattr(offer, what)[i] for offer, i in zip(offers, found, strict=True)) for what in ("sizes", "losses")
        )
        every = [
            sum(offer.losses[i] for offer, i in zip(offers, picks, strict=True))
            for picks in itertools.product(range(4), repeat=5)
            if sum(offer.sizes[i] for offer, i in zip(offers, picks, strict=True)) <= budget
        ]
        assert size <= budget and loss <= min(every) * 1.02 + 1e-9
    assert choose(offers, smallest(offers) - 1) is None
