"""Rows of blocks laid sixteen abreast: there and back, and models whose weights lie so."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from llmconv.quant import abreast, integer_products
from llmconv.quant.block import by_name

torch = pytest.importorskip("torch")

from one_by_one import TOKENS, by_table, near, stored, tiny

import llmconv
from llmconv.runtime.linear import Linear, Stored
from llmconv.runtime.save import checkpoint_of
from llmconv.runtime.stepping.stepper import stepper

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", integer_products.TYPES)
def test_each_field_of_sixteen_rows_stands_together(name: str) -> None:
    kind, rng = by_name(name), np.random.default_rng(1)
    rows = rng.integers(0, 256, (37, kind.row_bytes(512)), np.uint8)
    laid = np.full((48, rows.shape[1]), 7, np.uint8)
    abreast.lay(kind, rows, laid)
    filled = np.zeros_like(laid)
    filled[:37] = rows
    size, at = kind.layout.itemsize, 0
    blocks = filled.reshape(3, 16, -1, size)
    for strip in range(3):
        for block in range(rows.shape[1] // size):
            ends = [*(end for _, end, *_ in kind.layout.fields.values()), size]
            for start, stop in itertools.pairwise(ends):
                for byte in range(start, stop, 4):
                    field = blocks[strip, :, block, byte : min(byte + 4, stop)].ravel()
                    np.testing.assert_array_equal(laid.ravel()[at : at + field.size], field)
                    at += field.size
    back = np.empty_like(rows)
    abreast.take_back(kind, laid, back)
    np.testing.assert_array_equal(back, rows)
    np.testing.assert_array_equal(abreast.rows(kind, laid, [36, 0, 17]), rows[[36, 0, 17]])


@pytest.mark.parametrize("size", [0, 1e-38, 1e-20, 1, 1e20, 1e30])
def test_floats_of_any_size(size: float) -> None:
    """As 24 bits under the largest of 32: an outlier hides no more than it does in a sum of float32."""
    rng, kind = np.random.default_rng(2), by_name("Q8_0")
    weight = Linear((16, 96), kind)
    weight.weight = torch.from_numpy(kind.encode(rng.standard_normal((16, 96), np.float32) * np.float32(1e-3)))
    decoded = kind.decode(weight.weight.numpy()).astype(np.float64)
    x = np.float32(rng.standard_normal(96).clip(-1, 1) * size)
    x[40] = size
    near(by_table(x, weight), decoded @ x.astype(np.float64), (np.abs(decoded) @ np.abs(x)).max() + 1e-30)
    for none in (np.inf, -np.inf, np.nan):
        x[5] = none
        assert np.isnan(by_table(x, weight)).all()


def stepped(model: Any) -> Any:
    """The model after a step of one token."""
    with torch.inference_mode():
        cache = model.cache(1, 16)
        model(torch.tensor(TOKENS)[:, :5], cache=cache)
        step = stepper(model, cache)
        assert step is not None
        step(3)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_has_stepped_is_what_it_was(tied: bool) -> None:
    source = stored(tiny(), "Q4_1")
    if tied:
        source = source.but(tensors={n: t for n, t in source.tensors.items() if n != "output.weight"})
    fresh, model = llmconv.load(source, "cpu"), stepped(llmconv.load(source, "cpu"))
    laid = [module for module in model.modules() if isinstance(module, Stored) and module.laid is not None]
    assert len(laid) == 15
    assert all("weight" not in module._buffers for module in laid)  # not kept twice
    tokens = torch.tensor(TOKENS)
    torch.testing.assert_close(model(tokens), fresh(tokens), rtol=0, atol=0)
    saved, expected = checkpoint_of(model).tensors, checkpoint_of(fresh).tensors
    assert saved.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(saved[name].blocks(0, tensor.n_rows), tensor.blocks(0, tensor.n_rows))


def test_other_weights_take_the_place_of_laid_ones() -> None:
    model = stepped(llmconv.load(stored(tiny(), "Q4_0"), "cpu"))
    source = tiny()
    turned = {name: t.map(lambda x: -x, t.type) if len(t.shape) > 1 else t for name, t in source.tensors.items()}
    others = llmconv.load(stored(source.but(tensors=turned), "Q4_0"), "cpu")
    model.load_state_dict(others.state_dict())
    tokens = torch.tensor(TOKENS)
    torch.testing.assert_close(model(tokens), others(tokens), rtol=0, atol=0)
    assert stepped(model).blk[0].ffn_up.laid is not None
    torch.testing.assert_close(model(tokens), others(tokens), rtol=0, atol=0)
    model.to(torch.device("cpu"))
    assert model.blk[0].ffn_up.laid is None
    torch.testing.assert_close(model(tokens), others(tokens), rtol=0, atol=0)
