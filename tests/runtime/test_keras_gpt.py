"""Transformers of Keras's layers run as numpy computes them, from TensorFlow.js's folders, `.h5` and `.keras`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_models import D, F, Net, T, V

torch = pytest.importorskip("torch")

import llmconv

IDS = [3, 1, 4, 1, 5, 2, 6, 5]
CHARACTERS = list("\n abcdé")
GELU_TANH = {"class_name": "function", "config": "gelu_approximate", "registered_name": "keras_hub>gelu_approximate"}


def mlp(net: Net, x: str, activation: Any = "relu") -> str:
    return net.dense(net.dense(x, D, F, activation), F, D)


def before(net: Net) -> None:
    """Norms before the sublayers, positions by keras_hub's layer, a head of chances."""
    x = net.embedding()
    x = net("Add", [x, net.draw(net("PositionEmbedding", [x], sequence_length=T), embeddings=(T, D))])
    for _ in range(2):
        x = net("Add", [x, net("Dropout", [net.heads(net.norm(x))], rate=0.1)])
        x = net("Add", [x, mlp(net, net.norm(x), "gelu")])
    net("Softmax", [net.dense(net.norm(x), D, V)])


def hub(net: Net) -> None:
    x = net.positioned()
    for _ in range(2):
        x = net.block(x)
    net.dense(x, D, V)


def tied(net: Net) -> None:
    words = net.embedding("ReversibleEmbedding")
    x = net("Add", [words, net("SinePositionEncoding", [words], max_wavelength=10000)])
    x = net.block(x, first=True, activation=GELU_TANH)
    net("ReversibleEmbedding", [net.norm(x)], {"reverse": True}, name=words, input_dim=V, output_dim=D)


def by_hand(net: Net) -> None:
    """One head of `Attention`, not scaled; norms behind the sums; positions as a second input."""
    places = net("InputLayer", [], name="places", batch_input_shape=[None, None])
    x = net("Add", [net.embedding(), net.embedding(rows=T, source=places, name="pos")])
    for _ in range(2):
        q, k, v = (net.dense(x, D, 5) for _ in "qkv")
        mixed = net.dense(net("Attention", [q, v, k], {"use_causal_mask": True}, use_scale=False), 5, D)
        x = net.norm(net("Add", [mixed, x]))
        up = net("ReLU", [net.dense(x, D, F)])
        x = net.norm(net("Add", [x, net.dense(up, F, D)]))
    net("Activation", [net.dense(x, D, V)], activation="softmax")


def dots(net: Net) -> None:
    """What TensorFlow.js has: two products with a softmax between, no mask, no norms."""
    x = net.embedding()
    q, k, v = net.dense(x, D, D), net.dense(x, D, D), net.dense(x, D, D)
    scores = net("Rescaling", [net("Dot", [q, k], axes=[2, 2])], scale=0.25, offset=0)
    x = net("Add", [x, net("Dot", [net("Softmax", [scores]), v], axes=[2, 1])])
    x = net("Add", [x, mlp(net, x)])
    net.dense(x, D, V)


def gated(net: Net) -> None:
    """An encoder's block that sees all positions, then one with a gate and a model as its MLP."""
    x = net.norm(net("Rescaling", [net.embedding()], scale=2.5, offset=0.0))
    x = net("Add", [x, net.heads(net.norm(x), causal=False)])
    n = net.norm(x)
    gate = net("Multiply", [net.dense(n, D, F, "silu"), net.dense(n, D, F)])
    x = net("Add", [x, net.dense(gate, F, D)])
    net.dense(x, D, V)


def nested(net: Net) -> None:
    x = net.positioned()
    x = net.norm(net("Add", [x, net.heads(x)]))
    inner = [
        {"class_name": "Dense", "config": {"name": n, "units": size, "activation": a, "use_bias": True}}
        for n, size, a in (("up", F, "relu"), ("down", D, "linear"))
    ]
    name = net("Sequential", [x], layers=inner)
    net.draw(name, up__kernel=(D, F), up__bias=(F,), down__kernel=(F, D), down__bias=(D,))
    x = net.norm(net("Add", [x, name]))
    net.dense(x, D, V)


KINDS: dict[str, Callable[[Net], None]] = {
    f.__name__: f for f in (before, hub, tied, by_hand, dots, gated, nested)
}  # fmt: skip


def made(kind: str) -> Net:
    net = Net()
    KINDS[kind](net)
    return net


def run(path: Path, ids: list[int] = IDS) -> Any:
    with torch.no_grad():
        return llmconv.load(path, "cpu", "f64")(torch.tensor([ids]))[0].numpy()


def logits(net: Net, ids: list[int] = IDS) -> Any:
    """Before a softmax behind the head."""
    if net.calls[-1][0] == "Softmax":
        net.calls = net.calls[:-1]
    return net.logits(ids)


@pytest.mark.parametrize("container", ["tfjs", "h5", "keras"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_keras_does_and_comes_back(tmp_path: Path, kind: str, container: str) -> None:
    if kind == "nested" and container == "keras":
        pytest.skip("its numbers are in the peer test")
    net = made(kind)
    source = net.save(container, tmp_path)
    wanted = logits(net)
    np.testing.assert_allclose(run(source), wanted, rtol=0, atol=1e-10)
    llmconv.convert_file(source, tmp_path / "m.gguf")
    np.testing.assert_allclose(run(tmp_path / "m.gguf"), wanted, rtol=0, atol=1e-10)
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.tfjs")
    if container == "tfjs":
        files = {p.name: p.read_bytes() for p in source.iterdir()}
        assert {p.name: p.read_bytes() for p in (tmp_path / "back.tfjs").iterdir()} == files
    np.testing.assert_allclose(run(tmp_path / "back.tfjs"), wanted, rtol=0, atol=1e-10)
    llmconv.quantize(source, tmp_path / "q.gguf", "F16")
    np.testing.assert_allclose(run(tmp_path / "q.gguf"), wanted, rtol=0, atol=5e-2)


def test_it_writes_text(tmp_path: Path) -> None:
    net = made("before")
    source = net.tfjs(tmp_path / "m")
    (source / "vocab.json").write_text(json.dumps(CHARACTERS))
    model = llmconv.load(source, "cpu", "f64")
    ids = model.tokenizer.encode("abé")
    assert ids == [2, 3, 6]
    for _ in range(5):
        ids.append(int(logits(net, ids)[-1].argmax()))
    assert llmconv.generate(model, "abé", max_tokens=5, temperature=0).text == "".join(CHARACTERS[i] for i in ids[3:])
    (tmp_path / "t.txt").write_text("abcd é\n" * 40)
    assert llmconv.perplexity(source, tmp_path / "t.txt", context=T).perplexity > 1


def test_it_learns_on_and_gives_the_page_its_folder(tmp_path: Path) -> None:
    source = made("hub").tfjs(tmp_path / "m")
    (source / "vocab.json").write_text(json.dumps(CHARACTERS))
    (tmp_path / "t.txt").write_text("abcd é\n" * 60)
    config = llmconv.TrainConfig(
        data=str(tmp_path / "t.txt"), output=str(tmp_path / "run"), from_checkpoint=str(source), steps=40, batch_size=8,
        context=T, lr=0.01, export="gguf", device="cpu", plot=False, tensorboard=False,
    )  # fmt: skip
    llmconv.train(config)
    after = llmconv.perplexity(tmp_path / "run" / "model.gguf", tmp_path / "t.txt", context=T).perplexity
    assert after < llmconv.perplexity(source, tmp_path / "t.txt", context=T).perplexity * 0.7
    llmconv.convert_file(tmp_path / "run" / "model.gguf", tmp_path / "page.tfjs")
    np.testing.assert_allclose(run(tmp_path / "page.tfjs"), run(tmp_path / "run" / "model.gguf"), rtol=0, atol=1e-12)


def odd(change: Callable[[Net], None], kind: str = "before") -> Net:
    net = made(kind)
    change(net)
    return net


def reclassed(old: str, new: str, **config: Any) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        k = next(k for k, call in enumerate(net.calls) if call[0] == old)
        _, name, own, inputs, call = net.calls[k]
        net.calls[k] = (new, name, {**own, **config}, inputs, call)

    return change


ODD: dict[str, tuple[Net, str]] = {
    "a Lambda": (odd(reclassed("Dropout", "Lambda")), "(Lambda) is the program's own"),
    "another layer": (odd(reclassed("TransformerDecoder", "TransformerBlock"), "hub"), "(TransformerBlock) is not"),
    "another activation": (odd(reclassed("Dense", "Dense", activation="selu")), "has the activation 'selu'"),
    "pooled": (odd(reclassed("Softmax", "GlobalAveragePooling1D")), ""),
    "a window": (odd(reclassed("MultiHeadAttention", "MultiHeadAttention", sliding_window=4)), "a gate or a window"),
    "another epsilon": (odd(reclassed("LayerNormalization", "LayerNormalization", epsilon=1.0)), "layer_norm_epsilon"),
    "another shape": (odd(reclassed("MultiHeadAttention", "MultiHeadAttention", key_dim=5)), "expected [8, 2, 5]"),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_what_is_not_computed_here_is_named(tmp_path: Path, what: str) -> None:
    net, said = ODD[what]
    result = llmconv.convert_file(net.tfjs(tmp_path / "m"), tmp_path / "m.gguf")
    named = [note for note in result.notes if "looks like a language model, but keeps its own names" in note]
    assert (said in named[0]) if said else not named, result.notes
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.tfjs")
    assert (tmp_path / "back.tfjs" / "model.json").read_bytes() == (tmp_path / "m" / "model.json").read_bytes()
