"""Recurrent decoders against numpy loops and torch.nn, from the JSON of the programs that trained such models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import llmconv
from llmconv.convert.translate import translate
from llmconv.errors import BadFile, LlmconvError, UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.runtime.calibrate.gradients import drawn, gather

RNG = np.random.default_rng(4)
LETTERS = "abcdefghij"
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


def normal(*shape: int) -> Any:
    return np.round(RNG.standard_normal(shape) * 0.4, 6)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def logits_of(path: Path, ids: list[int], dtype: str = "f64") -> Any:
    model = llmconv.load(path, dtype=dtype)
    with torch.no_grad():
        return model(torch.tensor([ids]))[0].numpy()


def converted(tmp_path: Path, tree: Any, layout: str) -> Path:
    """The document as a GGUF, after it came back from it byte for byte."""
    source = tmp_path / "m.json"
    source.write_text(json.dumps(tree, separators=(",", ":"), ensure_ascii=False))
    llmconv.convert_file(source, tmp_path / "m.gguf", outtype="f64")
    opened = llmconv.open(tmp_path / "m.gguf")
    assert opened.metadata["llmconv.json.layout"] == layout
    assert opened.metadata["general.architecture"] == "char-rnn"
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == source.read_bytes()
    return tmp_path / "m.gguf"


# Karpathy's char-rnn


def karpathy(hidden: int = 6, vocab: str = LETTERS) -> dict[str, Any]:
    v = len(vocab)
    return {
        "Wxh": normal(hidden, v),
        "Whh": normal(hidden, hidden),
        "Why": normal(v, hidden),
        "bh": normal(hidden),
        "by": normal(v),
    }


def char_rnn(w: dict[str, Any], ids: list[int], activation: Any = np.tanh) -> Any:
    """min-char-rnn.py, one token after another."""
    h, out = np.zeros(len(w["bh"])), []
    for i in ids:
        h = activation(w["Wxh"][:, i] + w["Whh"] @ h + w["bh"])
        out.append(w["Why"] @ h + w["by"])
    return np.array(out)


def listed(w: dict[str, Any]) -> dict[str, Any]:
    return {k: v.tolist() for k, v in w.items()}


FORMS: dict[str, Any] = {
    "as it is": lambda w: {"chars": list(LETTERS), **listed(w)},
    "below weights, columns": lambda w: {
        "weights": {k: v.reshape(-1, 1).tolist() if v.ndim == 1 else v.tolist() for k, v in w.items()},
        "char_to_ix": {c: i for i, c in enumerate(LETTERS)},
    },
    "other spellings": lambda w: {"params": {f"{k[0]}_{k[1:]}": v.tolist() for k, v in w.items()}, "vocab": LETTERS},
    "[in][out], as css-llm": lambda w: {
        "vocabulary": LETTERS,
        "hidden_size": 6,
        "weights": {k.lower(): (v.T if v.ndim > 1 else v).tolist() for k, v in w.items()},
    },
    "{shape, data}": lambda w: {
        "model": {k: {"shape": list(v.shape), "data": v.reshape(-1).tolist()} for k, v in w.items()},
        "itos": {str(i): c for i, c in enumerate(LETTERS)},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_char_rnn_in_its_spellings(tmp_path: Path, form: str) -> None:
    weights = karpathy()
    path = converted(tmp_path, FORMS[form](weights), "char-rnn")
    assert np.allclose(logits_of(path, IDS), char_rnn(weights, IDS), rtol=0, atol=1e-12)
    assert "".join(llmconv.open(path).metadata["tokenizer.ggml.tokens"]) == LETTERS


def test_a_stated_activation_is_the_model_s(tmp_path: Path) -> None:
    weights = karpathy()
    path = converted(tmp_path, {**FORMS["as it is"](weights), "activation": "relu"}, "char-rnn")
    wanted = char_rnn(weights, IDS, lambda x: np.maximum(x, 0))
    assert np.allclose(logits_of(path, IDS), wanted, rtol=0, atol=1e-12)


def test_greedy_text_is_the_program_s(tmp_path: Path) -> None:
    weights = karpathy()
    path = converted(tmp_path, FORMS["as it is"](weights), "char-rnn")
    ids = [LETTERS.index(c) for c in "cab"]
    for _ in range(12):
        ids.append(int(char_rnn(weights, ids)[-1].argmax()))
    text = llmconv.generate(path, "cab", max_tokens=12, temperature=0, dtype="f64").text
    assert text == "".join(LETTERS[i] for i in ids[3:])


# recurrentjs


def matrix_n(w: Any) -> dict[str, Any]:
    w = w.reshape(len(w), -1)
    return {"n": w.shape[0], "d": w.shape[1], "w": {str(i): x for i, x in enumerate(w.reshape(-1).tolist())}}


def recurrentjs(names: str, sizes: Sequence[int], letters: int = 3) -> tuple[dict[str, Any], dict[str, Any]]:
    weights: dict[str, Any] = {"Wil": normal(len(LETTERS) + 1, letters)}
    for i, hidden in enumerate(sizes):
        for g in names:
            x, h, b = (f"W{g}x{i}", f"W{g}h{i}", f"b{g}{i}") if g != "R" else (f"Wxh{i}", f"Whh{i}", f"bhh{i}")
            weights |= {x: normal(hidden, sizes[i - 1] if i else letters), h: normal(hidden, hidden), b: normal(hidden)}
    weights |= {"Whd": normal(len(LETTERS) + 1, hidden), "bd": normal(len(LETTERS) + 1)}
    tree = {
        "hidden_sizes": list(sizes),
        "letter_size": letters,
        "model": {k: matrix_n(v) for k, v in weights.items()},
        "letterToIndex": {c: i + 1 for i, c in enumerate(LETTERS)},
        "indexToLetter": {str(i + 1): c for i, c in enumerate(LETTERS)},
        "vocab": list(LETTERS),
    }
    return weights, tree


@pytest.mark.parametrize("sizes", [[4], [4, 4], [5, 5, 3]])
def test_recurrentjs_lstm(tmp_path: Path, sizes: list[int]) -> None:
    w, tree = recurrentjs("ifoc", sizes)
    layers = len(sizes)
    path = converted(tmp_path, tree, "recurrentjs")
    h, c, wanted = [np.zeros(n) for n in sizes], [np.zeros(n) for n in sizes], []
    for i in IDS:
        x = w["Wil"][i]
        for k in range(layers):
            gate = {g: w[f"W{g}x{k}"] @ x + w[f"W{g}h{k}"] @ h[k] + w[f"b{g}{k}"] for g in "ifoc"}
            c[k] = sigmoid(gate["f"]) * c[k] + sigmoid(gate["i"]) * np.tanh(gate["c"])
            h[k] = x = sigmoid(gate["o"]) * np.tanh(c[k])
        wanted.append(w["Whd"] @ x + w["bd"])
    assert np.allclose(logits_of(path, IDS), wanted, rtol=0, atol=1e-12)
    assert list(llmconv.open(path).metadata["tokenizer.ggml.tokens"])[:3] == ["[BOS]", "a", "b"]


def test_recurrentjs_rnn(tmp_path: Path) -> None:
    w, tree = recurrentjs("R", [4])
    path = converted(tmp_path, tree, "recurrentjs-rnn")
    h, wanted = np.zeros(4), []
    for i in IDS:
        h = np.maximum(0, w["Wxh0"] @ w["Wil"][i] + w["Whh0"] @ h + w["bhh0"])
        wanted.append(w["Whd"] @ h + w["bd"])
    assert np.allclose(logits_of(path, IDS), wanted, rtol=0, atol=1e-12)


# brain.js


def rows_columns(w: Any) -> dict[str, Any]:
    w = w.reshape(len(w), -1)
    return {"rows": w.shape[0], "columns": w.shape[1], "weights": w.reshape(-1).tolist()}


BRAIN = {
    "lstm": {g: (f"{g}Matrix", f"{g}Hidden", f"{g}Bias") for g in ("input", "forget", "output", "cellActivation")},
    "gru": {
        g: (f"{g}InputMatrix", f"{g}HiddenMatrix", f"{g}Bias") for g in ("updateGate", "resetGate", "cellWrite")
    },
    "rnn": {"all": ("weight", "transition", "bias")},
}  # fmt: skip


def brain_step(cell: str, w: dict[str, Any], x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    def part(gate: str, state: Any = h) -> Any:
        a, b, bias = BRAIN[cell][gate]
        return w[a] @ x + w[b] @ state + w[bias]

    if cell == "rnn":
        return np.maximum(0, part("all")), c
    if cell == "lstm":
        c = sigmoid(part("forget")) * c + sigmoid(part("input")) * np.tanh(part("cellActivation"))
        return sigmoid(part("output")) * np.tanh(c), c
    z, r = sigmoid(part("updateGate")), sigmoid(part("resetGate"))
    return (1 - z) * np.tanh(part("cellWrite", r * h)) + h * z, c


@pytest.mark.parametrize("sizes", [[4], [4, 4], [5, 3]])
@pytest.mark.parametrize("cell", BRAIN)
def test_brain_js(tmp_path: Path, cell: str, sizes: list[int]) -> None:
    vocab, size, layers = len(LETTERS) + 1, 5, len(sizes)
    embed, head, bias = normal(vocab, size), normal(vocab, sizes[-1]), normal(vocab)
    stack = []
    for k, hidden in enumerate(sizes):
        width = sizes[k - 1] if k else size
        shapes = ((hidden, width), (hidden, hidden), (hidden,))
        stack.append({n: normal(*s) for names in BRAIN[cell].values() for n, s in zip(names, shapes, strict=True)})
    tree = {
        "type": cell.upper(),
        "options": {"hiddenLayers": sizes, "dataFormatter": {"characters": list(LETTERS)}},
        "input": rows_columns(embed),
        "hiddenLayers": [{n: rows_columns(v) for n, v in layer.items()} for layer in stack],
        "outputConnector": rows_columns(head),
        "output": rows_columns(bias),
    }
    path = converted(tmp_path, tree, f"brain-{cell}")
    h, c, wanted = [np.zeros(n) for n in sizes], [np.zeros(n) for n in sizes], []
    for i in IDS:
        x = embed[i]
        for k in range(layers):
            h[k], c[k] = brain_step(cell, stack[k], x, h[k], c[k])
            x = h[k]
        wanted.append(head @ x + bias)
    assert np.allclose(logits_of(path, IDS), wanted, rtol=0, atol=1e-12)


# Any cell, against torch


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_cells_are_torch_s(cell: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(torch.nn, cell.upper())(5, 4, num_layers=2, batch_first=True).double()
    embed, head = torch.randn(7, 5).double(), torch.randn(7, 4).double()
    tensors = {"token_embd.weight": embed, "output.weight": head}
    for i in range(2):
        for ours, name in (("rnn_x", "ih"), ("rnn_h", "hh")):
            for part in ("weight", "bias"):
                tensors[f"blk.{i}.{ours}.{part}"] = getattr(theirs, f"{part}_{name}_l{i}").detach()
    metadata = {"general.architecture": "any", "any.block_count": 2, "any.recurrent.cell": cell}
    made = Checkpoint({n: Tensor.from_array(n, t.numpy()) for n, t in tensors.items()}, metadata)
    model, ids = llmconv.load(made, dtype="f64"), torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    with torch.no_grad():
        wanted = theirs(embed[ids])[0] @ head.T
        assert torch.allclose(model(ids), wanted, atol=1e-12)
        cache = model.cache(2)
        parts = [model(ids[:, a:b], cache=cache) for a, b in ((0, 1), (1, 4), (4, 6))]
        assert torch.allclose(torch.cat(parts, 1), wanted, atol=1e-12) and cache.length == 6
        padded = torch.tensor([[0, 0, 1, 2, 3, 4], [6, 5, 4, 3, 2, 1]])
        mask = torch.tensor([[False, False, True, True, True, True], [True] * 6])
        found = model(padded, mask)
        assert torch.allclose(found[0, 2:], wanted[0, :4], atol=1e-12) and torch.allclose(found[1], wanted[1])
        with pytest.raises(UsageError, match="keeps no earlier states"):
            cache.cut(2)


FAULTS = {
    "another cell": (lambda c: c.metadata.update({"char-rnn.recurrent.cell": "mgu"}), "is 'mgu', expected one of rnn"),
    "no layers": (lambda c: c.metadata.update({"char-rnn.block_count": 0}), "at least 1"),
    "many layers": (lambda c: c.metadata.update({"char-rnn.block_count": 2**30}), "blk.1.rnn_h.weight' is missing"),
    "no output": (lambda c: c.tensors.pop("output.weight"), "'output.weight' is missing"),
    "other shape": (
        lambda c: c.add(c.tensors["blk.0.rnn_h.weight"].reshaped((9, 4)).renamed("blk.0.rnn_h.weight")),
        r"shape \[9, 4\], expected \[6, 6\]",
    ),
    "an LSTM's keys": (lambda c: c.metadata.update({"char-rnn.recurrent.cell": "lstm"}), r"expected \[24, 6\]"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_contradict_themselves(tmp_path: Path, fault: str) -> None:
    path = converted(tmp_path, FORMS["as it is"](karpathy()), "char-rnn")
    broken = llmconv.open(path).but()
    FAULTS[fault][0](broken)
    with pytest.raises(LlmconvError, match=FAULTS[fault][1]):
        llmconv.load(broken)


def test_documents_that_contradict_themselves(tmp_path: Path) -> None:
    tree = FORMS["as it is"](karpathy())
    for change, message in (
        ({"Whh": normal(5, 6).tolist()}, r"Whh has shape \[5, 6\], expected \[6, 6\]"),
        ({"Wxh": normal(3, 3).tolist()}, r"Wxh has shape \[3, 3\], expected \[10, 6\] or the other way round"),
        ({"chars": ["a"]}, "has 1 words, expected 10"),
        ({"Whh2": normal(6, 6).tolist()}, "Whh2 is none of the weights that a recurrent model"),
        ({"activation": "sigmoid"}, "activation is 'sigmoid', expected one of 'tanh'"),
    ):
        (tmp_path / "m.json").write_text(json.dumps(tree | change))
        with pytest.raises(BadFile, match=message):
            llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf")


def test_perplexity_training_and_export(tmp_path: Path) -> None:
    """The ancestors learn too, and go back to the page that they came from."""
    path = converted(tmp_path, FORMS["below weights, columns"](karpathy()), "char-rnn")
    (tmp_path / "t.txt").write_text("abcdefghij" * 60)
    before = llmconv.perplexity(path, tmp_path / "t.txt", context=16).perplexity
    config = llmconv.TrainConfig(
        data=str(tmp_path / "t.txt"), output=str(tmp_path / "run"), from_checkpoint=str(path), steps=60, batch_size=8,
        context=16, lr=0.02, export="gguf,json", device="cpu", plot=False, tensorboard=False,
    )  # fmt: skip
    llmconv.train(config)
    after = llmconv.perplexity(tmp_path / "run" / "model.gguf", tmp_path / "t.txt", context=16).perplexity
    assert after < before / 2
    tree = json.loads((tmp_path / "run" / "model.json").read_text())
    assert list(tree) == ["weights", "char_to_ix"] and np.shape(tree["weights"]["bh"]) == (6, 1)
    weights = {k: np.array(v).reshape(len(v), -1) for k, v in tree["weights"].items()}
    weights |= {k: weights[k][:, 0] for k in ("bh", "by")}
    found = logits_of(tmp_path / "run" / "model.gguf", IDS)
    assert np.allclose(found, char_rnn(weights, IDS), rtol=0, atol=1e-6)


def test_quantized(tmp_path: Path) -> None:
    path = converted(tmp_path, FORMS["as it is"](karpathy(32)), "char-rnn")
    llmconv.quantize(path, tmp_path / "q.gguf", "Q8_0")
    exact, near = logits_of(path, IDS, "f32"), logits_of(tmp_path / "q.gguf", IDS, "f32")
    assert 0 < np.abs(exact - near).max() < 0.5


def test_a_calibration_weighs_tokens_in_the_text_s_order(tmp_path: Path) -> None:
    """A loop meets its matrix once a token, and the pass back comes to the last of them first; against autograd."""
    model = llmconv.load(converted(tmp_path, FORMS["as it is"](karpathy()), "char-rnn"), "cpu")
    meter = llmconv.progress.Meter(None, "x", 0)
    batch, kept = torch.tensor([IDS]), []
    found = gather(model, [batch], 5, meter).tokens["blk.0.rnn_h.weight"]
    model.blk[0].rnn_h.register_forward_hook(lambda m, i, y: kept.append(y) or y.retain_grad())
    for p in model.parameters():
        p.requires_grad_(True)
    logits = model(batch)[0]
    labels = drawn(logits.detach().softmax(-1), torch.rand(len(IDS), 1, generator=torch.Generator().manual_seed(5)))
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    wanted = torch.cat([y.grad for y in kept]).square().mean(1)
    assert len(kept) == len(IDS) and not np.allclose(wanted, wanted.flip(0), rtol=0.1)
    wanted[0] = 0  # of a product with the first state: zeros, behind which no gradient is asked for
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-9)


def test_hobby_css_rnn_runs(tmp_path: Path, shared: Path) -> None:
    tree = json.loads((shared / "hobby" / "cssrnn.json").read_text())
    llmconv.convert_file(shared / "hobby" / "cssrnn.json", tmp_path / "m.gguf", outtype="f64")
    w = {k: np.array(v) for k, v in tree["weights"].items()}
    turned = {"Wxh": w["wxh"].T, "Whh": w["whh"].T, "Why": w["why"].T, "bh": w["bh"], "by": w["by"]}
    assert np.allclose(logits_of(tmp_path / "m.gguf", IDS), char_rnn(turned, IDS), rtol=0, atol=1e-12)
    back = translate(llmconv.open(tmp_path / "m.gguf"), "json")
    assert back.metadata["document"]["vocabulary"] == tree["vocabulary"]


# Written anew

WRITTEN = {
    "char-rnn": "char-rnn",
    "recurrentjs": "char-lstm",
    "brain-lstm": "char-lstm",
    "brain-gru": "char-gru",
    "recurrentjs-rnn": "char-relu-rnn",
    "brain-rnn": "char-relu-rnn",
}


def trained(tmp_path: Path, preset: str, layout: str, **more: Any) -> Path:
    (tmp_path / "t.txt").write_text("emma\nolivia\nava\n" * 20)
    config = llmconv.TrainConfig(
        data=str(tmp_path / "t.txt"), output=str(tmp_path / "run"), preset=preset, steps=4, batch_size=4, context=8,
        dim=6, export="gguf,json", layout=layout, device="cpu", plot=False, tensorboard=False, eval_sequences=4, **more,
    )  # fmt: skip
    llmconv.train(config)
    return tmp_path / "run" / "model.json"


@pytest.mark.parametrize("layout", WRITTEN)
def test_a_preset_writes_the_page_s_file(tmp_path: Path, layout: str) -> None:
    path = trained(tmp_path, WRITTEN[layout], layout)
    tree = json.loads(path.read_text())
    opened = translate(llmconv.open(path), "gguf")
    assert opened.metadata["llmconv.json.layout"] == layout
    tokens = list(opened.metadata["tokenizer.ggml.tokens"])
    assert tokens == [*([] if layout == "char-rnn" else ["[BOS]"]), *sorted(set("emma\nolivia\nava"))]
    np.testing.assert_allclose(logits_of(path, [1, 3, 2]), logits_of(path.with_suffix(".gguf"), [1, 3, 2]), atol=1e-12)
    if layout == "char-rnn":
        weights = {k: np.array(tree[k]) for k in ("Wxh", "Whh", "Why", "bh", "by")}
        np.testing.assert_allclose(logits_of(path, [1, 3, 2]), char_rnn(weights, [1, 3, 2]), atol=1e-12)
    if layout.startswith("recurrentjs"):
        assert tree["letterToIndex"]["e"] == tokens.index("e") and len(tree["model"]["Whd"]["w"]) == 6 * len(tokens)
    if layout.startswith("brain"):
        assert tree["type"] == layout[6:].upper() and tree["options"]["dataFormatter"]["characters"] == tokens[1:]


def test_a_model_that_a_page_can_t_hold_is_refused_before_training(tmp_path: Path) -> None:
    for preset, layout, why in (
        ("char-lstm", "brain-gru", "of the kind lstm, there gru"),
        ("char-rnn", "recurrentjs-rnn", "activation is tanh, there relu"),
        ("char-relu-rnn", "char-rnn", "activation is relu, there tanh"),
    ):
        with pytest.raises(LlmconvError, match=f"can't be written in the layout {layout}: .*{why}"):
            trained(tmp_path, preset, layout)
    with pytest.raises(LlmconvError, match="token 0 begins and ends a text"):
        trained(tmp_path, "char-lstm", "recurrentjs", tokenizer="characters")


def test_half_a_recurrentjs_is_no_model_and_says_what_it_lacks(tmp_path: Path, shared: Path) -> None:
    result = llmconv.convert_file(shared / "hobby" / "recurrentjs.json", tmp_path / "m.gguf")
    assert any("as the layout recurrentjs, but not model.Wfh0, model.Wch0, model.Woh0" in n for n in result.notes)
