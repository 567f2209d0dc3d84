"""What is kept between calls works after them, whatever mode it was made in: evaluated, then trained, and back."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import runnable

import llmconv
from llmconv.convert.translate import translate
from llmconv.quant.block import by_name
from llmconv.runtime import products
from llmconv.runtime.load import build

TOKENS = torch.arange(3, 15)[None]


def stored(kind: str) -> Any:
    """A model of which every product goes through the scratch: matrices in a narrower type than it computes in."""
    source = runnable.checkpoint()
    tensors = {n: t.astype(by_name(kind)) if len(t.shape) > 1 else t for n, t in source.tensors.items()}
    return build(translate(source.but(tensors=tensors), "gguf"), torch.device("cpu"), None)


def evaluated(model: Any) -> Any:
    with torch.inference_mode():
        return model(TOKENS).clone()


def trained(model: Any) -> Any:
    """A step's gradients flow, and come out the same each time."""
    model.zero_grad()
    out = model(TOKENS)
    out.square().mean().backward()
    return out.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("order", [(evaluated, trained) * 2, (trained, evaluated)])
def test_evaluating_and_training_in_one_process(kind: str, order: Any) -> None:
    products._local.__dict__.pop("scratch", None)
    model = stored(kind)
    found = [step(model) for step in order]
    outs = [f[0] if isinstance(f, tuple) else f for f in found]
    for out in outs[1:]:
        assert torch.equal(out, outs[0])  # the same numbers with gradients and without
    with torch.no_grad():
        assert torch.equal(model(TOKENS), outs[0])


def test_in_several_threads() -> None:
    model = stored("F16")
    expected, failures = evaluated(model), []

    def work(first: Any, second: Any) -> None:
        try:
            for step in (first, second, first):
                out = step(model)
                assert torch.equal(out[0] if isinstance(out, tuple) else out, expected)
        except BaseException as error:
            failures.append(error)

    def no_grad(model: Any) -> Any:
        with torch.no_grad():
            return model(TOKENS)

    pairs = [(evaluated, no_grad), (no_grad, evaluated), (evaluated, lambda m: m(TOKENS).detach())]
    threads = [threading.Thread(target=work, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_gradients_of_narrower_weights_are_those_of_floats() -> None:
    weight = torch.randn(8, 16).half().requires_grad_()
    x = torch.randn(2, 3, 16, requires_grad=True)
    out = products.matmul(x, weight)
    assert torch.equal(out.detach(), products.matmul(x.detach(), weight.detach()))
    given = torch.randn_like(out)
    found = torch.autograd.grad(out, (x, weight), given)
    wide = weight.detach().float().requires_grad_()
    expected = torch.autograd.grad(x @ wide.t(), (x, wide), given)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1].half(), rtol=2e-3, atol=2e-3)
    assert torch.autograd.grad(products.matmul(x[0, 0], weight).sum(), x)[0].shape == x.shape


def test_rounded_activations_whoever_wants_gradients() -> None:
    source = runnable.checkpoint()
    tensors = {n: t.astype(by_name("Q8_0")) if len(t.shape) > 1 else t for n, t in source.tensors.items()}
    model = llmconv.load(source.but(tensors=tensors), "cpu", activations="int8")
    assert not model.notes
    expected = evaluated(model)
    with torch.no_grad():
        assert torch.equal(model(TOKENS), expected)
    found = model(TOKENS)  # norms want gradients
    assert found.requires_grad and torch.equal(found.detach(), expected)
    found.sum().backward()
    assert float(model.blk[0].attn_norm.weight.grad.abs().sum()) > 0
    floats = llmconv.load(source, "cpu", activations="int8")
    assert "so they change nothing" in floats.notes[0]


def test_a_cache_outlives_an_inference_mode() -> None:
    model = llmconv.load(runnable.checkpoint(), "cpu")
    cache = model.cache(1, 4)  # it grows on the way
    with torch.inference_mode():
        parts = [model(TOKENS[:, :5], cache=cache).clone()]
    with torch.no_grad():
        parts.append(model(TOKENS[:, 5:8], cache=cache))
    parts.append(model(TOKENS[:, 8:], cache=cache).detach())
    torch.testing.assert_close(torch.cat(parts, 1), evaluated(model), rtol=1e-4, atol=1e-5)


def test_lengths_of_a_normed_head_outlive_it_too() -> None:
    model = llmconv.load(runnable.checkpoint(), "cpu")
    model.decoder = dataclasses.replace(model.decoder, head_norm=True)
    expected = evaluated(model)
    found = model(TOKENS)
    torch.testing.assert_close(found.detach(), expected)
    found.sum().backward()
    model.train()
    assert model(TOKENS).requires_grad
    model.eval()
    assert torch.equal(evaluated(model), expected)
