"""Language models made of Keras's layers, in TensorFlow.js's folders and Keras's files: numpy loops, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import llmconv
from llmconv.errors import BadFile

V, W, U = 7, 4, 5
IDS = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5]
CHARACTERS = [*"\n abcd", "é"]
CELLS = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
Weights = dict[str, Any]


def normal(*shape: int, seed: int) -> Any:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


def sigmoid(x: Any, hard: bool) -> Any:
    return np.clip(0.2 * x + 0.5, 0, 1) if hard else 1 / (1 + np.exp(-x))


def made(cell: str, hidden: list[int], one_hot: bool = False, **more: Any) -> tuple[list[Any], list[Weights]]:
    """The layers' configurations and weights: [embedding], recurrent ones, dropouts, a head."""
    layers: list[Any] = [{"class_name": "InputLayer", "config": {"name": "in", "batch_input_shape": [None, None]}}]
    weights: list[Weights] = [{}]
    if not one_hot:
        layers.append({"class_name": "Embedding", "config": {"name": "emb", "input_dim": V, "output_dim": W}})
        weights.append({"embeddings": normal(V, W, seed=1)})
    given = V if one_hot else W
    for k, units in enumerate(hidden):
        config = {"name": f"{cell.lower()}_{k}", "units": units, "return_sequences": True, "activation": "tanh", **more}
        layers += [{"class_name": cell, "config": config}, {"class_name": "Dropout", "config": {"name": f"d{k}"}}]
        gates = CELLS[cell] * units
        own = {"kernel": normal(given, gates, seed=10 + k), "recurrent_kernel": normal(units, gates, seed=20 + k)}
        bias = (2, gates) if more.get("reset_after") else (gates,)
        weights += [own | {"bias": normal(*bias, seed=30 + k)}, {}]
        given = units
    layers.append({"class_name": "Dense", "config": {"name": "head", "units": V, "activation": "softmax"}})
    weights.append({"kernel": normal(given, V, seed=40), "bias": normal(V, seed=41)})
    return layers, weights


def step(cell: str, config: Any, w: Weights, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    """Keras's cells, as their documentation writes them."""
    hard, bias = config.get("recurrent_activation") == "hard_sigmoid", w["bias"]
    if cell == "SimpleRNN":
        return np.tanh(x @ w["kernel"] + h @ w["recurrent_kernel"] + bias), c
    if cell == "LSTM":
        i, f, new, o = np.split(x @ w["kernel"] + h @ w["recurrent_kernel"] + bias, 4)
        c = sigmoid(f, hard) * c + sigmoid(i, hard) * np.tanh(new)
        return sigmoid(o, hard) * np.tanh(c), c
    kernels, recurrent = np.split(w["kernel"], 3, 1), np.split(w["recurrent_kernel"], 3, 1)
    given, own = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
    (xz, xr, xh), (bz, br, bh) = ([x @ k for k in kernels], np.split(given, 3))
    cz, cr, ch = np.split(own, 3)
    z = sigmoid(xz + bz + h @ recurrent[0] + cz, hard)
    r = sigmoid(xr + br + h @ recurrent[1] + cr, hard)
    last = r * (h @ recurrent[2] + ch) if config.get("reset_after") else (r * h) @ recurrent[2]
    return z * h + (1 - z) * np.tanh(xh + bh + last), c


def logits(layers: list[Any], weights: list[Weights], ids: list[int]) -> Any:
    weights = [{k: v.astype(np.float64) for k, v in w.items()} for w in weights]
    x = np.eye(V)[ids]
    for layer, w in zip(layers, weights, strict=True):
        kind, config = layer["class_name"], layer["config"]
        if kind == "Embedding":
            x = w["embeddings"][ids]
        elif kind == "Dense":
            x = x @ w["kernel"] + w["bias"]
        elif kind in CELLS:
            h, c, out = np.zeros(config["units"]), np.zeros(config["units"]), []
            for given in x:
                h, c = step(kind, config, w, given, h, c)
                out.append(h)
            x = np.array(out)
    return x


def functional(layers: list[Any]) -> dict[str, Any]:
    """The same layers as a graph, listed in another order."""
    names = [layer["config"]["name"] for layer in layers]
    nodes = [[], *([[[name, 0, 0, {}]]] for name in names[:-1])]
    listed = [{**layer, "name": n, "inbound_nodes": node} for layer, n, node in zip(layers, names, nodes, strict=True)]
    return {"class_name": "Functional", "config": {"name": "m", "layers": listed[::-1]}}


def tfjs(folder: Path, layers: list[Any], weights: list[Weights], graph: bool = False, vocab: Any = None) -> Path:
    folder.mkdir()
    listed, raw = [], b""
    for layer, own in zip(layers, weights, strict=True):
        for name, array in own.items():
            listed.append({"name": f"{layer['config']['name']}/{name}", "shape": list(array.shape), "dtype": "float32"})
            raw += array.tobytes()
    config = functional(layers) if graph else {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    model = {"format": "layers-model", "modelTopology": {"model_config": config, "keras_version": "2.15.0"}}
    manifest = [{"paths": ["group1-shard1of1.bin"], "weights": listed}]
    (folder / "model.json").write_text(json.dumps({**model, "weightsManifest": manifest}, separators=(",", ":")))
    (folder / "group1-shard1of1.bin").write_bytes(raw)
    if vocab is not None:
        (folder / "vocab.json").write_text(json.dumps(vocab))
    return folder


def h5(path: Path, layers: list[Any], weights: list[Weights], version: str = "2.15.0") -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        config = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
        file.attrs["model_config"], file.attrs["keras_version"] = json.dumps(config), version
        for layer, own in zip(layers, weights, strict=True):
            name = layer["config"]["name"]
            for part, array in own.items():
                file[f"model_weights/{name}/{name}/{layer['class_name'].lower()}_cell/{part}:0"] = array
    return path


def run(path: Path, ids: list[int] = IDS) -> Any:
    with torch.no_grad():
        return llmconv.load(path, "cpu", "f64")(torch.tensor([ids]))[0].numpy()


KINDS: dict[str, Any] = {
    "LSTM": ("LSTM", [U], False, {}),
    "LSTMs, hard, of several sizes": ("LSTM", [U, 3, 6], False, {"recurrent_activation": "hard_sigmoid"}),
    "LSTM of one-hot inputs": ("LSTM", [U, U], True, {}),
    "GRU": ("GRU", [U, U], False, {"recurrent_activation": "hard_sigmoid"}),
    "GRU, reset behind": ("GRU", [U], False, {"reset_after": True}),
    "GRU of one-hot inputs": ("GRU", [U], True, {}),
    "RNN": ("SimpleRNN", [U], False, {}),
}


def layers_of(kind: str) -> tuple[list[Any], list[Weights]]:
    cell, hidden, one_hot, more = KINDS[kind]
    return made(cell, hidden, one_hot, **more)


@pytest.mark.parametrize("container", ["tfjs", "graph", "h5"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_keras_does_and_comes_back(tmp_path: Path, kind: str, container: str) -> None:
    layers, weights = layers_of(kind)
    if container == "h5":
        source = h5(tmp_path / "m.h5", layers, weights)
    else:
        source = tfjs(tmp_path / "m", layers, weights, container == "graph")
    wanted = logits(layers, weights, IDS)
    np.testing.assert_allclose(run(source), wanted, rtol=0, atol=1e-12)
    llmconv.convert_file(source, tmp_path / "m.gguf")
    np.testing.assert_allclose(run(tmp_path / "m.gguf"), wanted, rtol=0, atol=1e-12)
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.tfjs")
    back = llmconv.open(tmp_path / "back.tfjs")
    own = {f"{layer['config']['name']}/{n}": x for layer, w in zip(layers, weights, strict=True) for n, x in w.items()}
    assert {n: t.numpy().tolist() for n, t in back.tensors.items()} == {n: x.tolist() for n, x in own.items()}
    assert json.loads((tmp_path / "back.tfjs" / "model.json").read_text())["format"] == "layers-model"
    if container != "h5":
        files = {p.name: p.read_bytes() for p in source.iterdir()}
        assert {p.name: p.read_bytes() for p in (tmp_path / "back.tfjs").iterdir()} == files
    llmconv.quantize(source, tmp_path / "q.gguf", "F16")
    np.testing.assert_allclose(run(tmp_path / "q.gguf"), wanted, rtol=0, atol=1e-2)


VOCABULARIES: dict[str, Any] = {
    "list": CHARACTERS,
    "text": {"chars": "".join(CHARACTERS)},
    "map": {c: i for i, c in enumerate(CHARACTERS)},
    "turned": {"indices_char": {str(i): c for i, c in enumerate(CHARACTERS)}},
}


@pytest.mark.parametrize("form", VOCABULARIES)
def test_its_vocabulary_lies_beside_it(tmp_path: Path, form: str) -> None:
    layers, weights = layers_of("LSTM")
    source = tfjs(tmp_path / "m", layers, weights, vocab=VOCABULARIES[form])
    model = llmconv.load(source, "cpu", "f64")
    ids = model.tokenizer.encode("abé")
    assert ids == [2, 3, 6]
    for _ in range(6):
        ids.append(int(logits(layers, weights, ids)[-1].argmax()))
    made = llmconv.generate(model, "abé", max_tokens=6, temperature=0)
    assert made.text == "".join(CHARACTERS[i] for i in ids[3:])
    (tmp_path / "t.txt").write_text("abcd é\n" * 40)
    rows = logits(layers, weights, [CHARACTERS.index(c) for c in "abcd é\n"])
    assert np.isfinite(rows).all() and llmconv.perplexity(source, tmp_path / "t.txt", context=14).perplexity > 1


def test_keras_numbers_its_words_from_one(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(1, 20)]
    index = {word: i for i, word in enumerate(words, 1)}
    tokenizer = {"class_name": "Tokenizer", "config": {"num_words": V, "word_index": json.dumps(index)}}
    layers, weights = layers_of("GRU")
    source = h5(tmp_path / "m.h5", layers, weights)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    tokens = llmconv.load(source, "cpu", "f64").tokenizer
    assert tokens.encode("w1 w6") == [1, 6] and tokens.decode([6, 2]) == "w6 w2"
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "v.json").write_text(json.dumps(CHARACTERS))
    llmconv.convert_file(source, tmp_path / "m.gguf", vocab=tmp_path / "v.json")
    assert list(llmconv.open(tmp_path / "m.gguf").metadata["tokenizer.ggml.tokens"]) == CHARACTERS
    (tmp_path / "v.json").write_text(json.dumps(CHARACTERS[:3]))
    with pytest.raises(BadFile, match=r"v\.json: has 3 words, expected 7"):
        llmconv.convert_file(source, tmp_path / "n.gguf", vocab=tmp_path / "v.json")


def test_training_goes_on_and_gives_the_page_its_folder(tmp_path: Path) -> None:
    source = tfjs(tmp_path / "m", *layers_of("LSTMs, hard, of several sizes"), vocab=CHARACTERS)
    (tmp_path / "t.txt").write_text("abcd é\n" * 60)
    config = llmconv.TrainConfig(
        data=str(tmp_path / "t.txt"), output=str(tmp_path / "run"), from_checkpoint=str(source), steps=40, batch_size=8,
        context=14, lr=0.03, export="gguf", device="cpu", plot=False, tensorboard=False,
    )  # fmt: skip
    llmconv.train(config)
    after = llmconv.perplexity(tmp_path / "run" / "model.gguf", tmp_path / "t.txt", context=14).perplexity
    assert after < llmconv.perplexity(source, tmp_path / "t.txt", context=14).perplexity * 0.7
    llmconv.convert_file(tmp_path / "run" / "model.gguf", tmp_path / "page.tfjs")
    np.testing.assert_allclose(run(tmp_path / "page.tfjs"), run(tmp_path / "run" / "model.gguf"), rtol=0, atol=1e-12)
    made = json.loads((tmp_path / "page.tfjs" / "model.json").read_text())
    assert made["modelTopology"] == json.loads((source / "model.json").read_text())["modelTopology"]


def changed(kind: str, layer: int, **changes: Any) -> tuple[list[Any], list[Weights]]:
    layers, weights = layers_of(kind)
    layers[layer] = {**layers[layer], "config": {**layers[layer]["config"], **changes}}
    return layers, weights


ODD: dict[str, tuple[Any, str]] = {
    "backwards": (lambda: changed("LSTM", 2, go_backwards=True), "reads a text from its end"),
    "another activation": (lambda: changed("LSTM", 2, activation="swish"), "has the activation 'swish', expected tanh"),
    "other gates": (lambda: changed("GRU", 2, recurrent_activation="elu"), "has gates of 'elu'"),
    "a head of chances": (lambda: changed("LSTM", 4, activation="sigmoid"), "has the activation 'sigmoid'"),
    "a weight less": (lambda: (lambda m: (m[0], [{} if "kernel" in w else w for w in m[1]]))(layers_of("LSTM")),
                      "has no kernel in the file"),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_what_is_not_computed_here_is_named(tmp_path: Path, what: str) -> None:
    layers, weights = ODD[what][0]()
    result = llmconv.convert_file(tfjs(tmp_path / "m", layers, weights), tmp_path / "m.gguf")
    assert any("keeps its own names" in note and ODD[what][1] in note for note in result.notes), result.notes
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.tfjs")
    assert (tmp_path / "back.tfjs" / "model.json").read_bytes() == (tmp_path / "m" / "model.json").read_bytes()


def test_a_classifier_claims_no_kinship(tmp_path: Path) -> None:
    layers, weights = changed("LSTM", 4, units=2)
    weights[4] = {"kernel": normal(U, 2, seed=1), "bias": normal(2, seed=2)}
    result = llmconv.convert_file(tfjs(tmp_path / "m", layers, weights), tmp_path / "m.gguf")
    assert not any("language model" in note for note in result.notes)


def test_a_key_that_describes_nothing_is_said(tmp_path: Path) -> None:
    llmconv.convert_file(tfjs(tmp_path / "m", *layers_of("LSTM")), tmp_path / "m.gguf")
    for value in ("[1]", '[["a", ["none"], ""]]', "{"):
        broken = llmconv.open(tmp_path / "m.gguf").but()
        broken.metadata["llmconv.layers"] = value
        with pytest.raises(BadFile, match=r"llmconv\.layers"):
            llmconv.save(broken, tmp_path / "back.tfjs")


# PyTorch's layers in a state dict


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_a_state_dict_of_recurrent_layers_runs(tmp_path: Path, cell: str) -> None:
    torch.manual_seed(1)
    embed, body, head = (
        torch.nn.Embedding(V, W),
        getattr(torch.nn, cell)(W, U, 2, batch_first=True),
        torch.nn.Linear(U, V),
    )
    state = {
        f"{n}.{k}": v for n, m in (("fc", head), ("net", body), ("embed", embed)) for k, v in m.state_dict().items()
    }
    torch.save({"model": state, "chars": CHARACTERS, "epoch": 3}, tmp_path / "m.pt")
    with torch.no_grad():
        wanted = head(body(embed(torch.tensor([IDS])))[0])[0].numpy()
    result = llmconv.convert_file(tmp_path / "m.pt", tmp_path / "m.gguf")
    assert any("has tanh" in n or "have tanh" in n for n in result.notes) == (cell == "RNN")
    for path in (tmp_path / "m.pt", tmp_path / "m.gguf"):
        np.testing.assert_allclose(run(path), wanted, rtol=0, atol=1e-5)
    assert llmconv.load(tmp_path / "m.gguf").tokenizer.encode("ab\u00e9") == [2, 3, 6]
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.safetensors")
    back = llmconv.open(tmp_path / "back.safetensors").tensors
    assert {n: t.numpy().tolist() for n, t in back.items()} == {n: t.tolist() for n, t in state.items()}


def test_an_activation_that_the_file_states_is_not_guessed(tmp_path: Path) -> None:
    embed, head = torch.nn.Embedding(V, W), torch.nn.Linear(U, V)
    body = torch.nn.RNN(W, U, nonlinearity="relu", batch_first=True)
    state = torch.nn.ModuleDict({"embed": embed, "rnn": body, "fc": head}).state_dict()
    torch.save({"model": state, "config": {"nonlinearity": "relu"}, "chars": CHARACTERS}, tmp_path / "m.pt")
    with torch.no_grad():
        wanted = head(body(embed(torch.tensor([IDS])))[0])[0].numpy()
    assert llmconv.convert_file(tmp_path / "m.pt", tmp_path / "m.gguf").notes == []
    np.testing.assert_allclose(run(tmp_path / "m.gguf"), wanted, rtol=0, atol=1e-5)
    assert llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.pt").notes == []  # its words are in the settings
    saved = torch.load(tmp_path / "back.pt", weights_only=True)
    assert saved["chars"] == CHARACTERS and all(torch.equal(x, saved["model"][n]) for n, x in state.items())


@pytest.mark.parametrize("root", ["state_dict", ""])
def test_a_state_dict_in_json_runs_and_comes_back(tmp_path: Path, root: str) -> None:
    embed, body, head = torch.nn.Embedding(V, W), torch.nn.LSTM(W, U, batch_first=True), torch.nn.Linear(U, V)
    parts = (("fc", head), ("lstm", body), ("embedding", embed))
    state = {f"{n}.{k}": v.tolist() for n, m in parts for k, v in m.state_dict().items()}
    text = json.dumps({**({root: state} if root else state), "chars": CHARACTERS})
    (tmp_path / "m.json").write_text(text)
    with torch.no_grad():
        wanted = head(body(embed(torch.tensor([IDS])))[0])[0].numpy()
    llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf", outtype="f64")
    for path in (tmp_path / "m.json", tmp_path / "m.gguf"):
        np.testing.assert_allclose(run(path), wanted, rtol=0, atol=1e-6)
    assert llmconv.load(tmp_path / "m.gguf").tokenizer.encode("ab\u00e9") == [2, 3, 6]
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_text() == text


def test_a_state_dict_of_other_layers_says_what_is_odd(tmp_path: Path) -> None:
    embed, body, head = torch.nn.Embedding(V, W), torch.nn.LSTM(W, U, bidirectional=True), torch.nn.Linear(2 * U, V)
    torch.save(torch.nn.ModuleDict({"e": embed, "lstm": body, "fc": head}).state_dict(), tmp_path / "m.pt")
    result = llmconv.convert_file(tmp_path / "m.pt", tmp_path / "m.gguf")
    assert any("keeps its own names" in n and "lstm.weight_ih_l0_reverse" in n for n in result.notes), result.notes
