"""makemore's bigrams, MLP and bag of words, against its arithmetic written out token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import llmconv
from llmconv import TrainConfig

LETTERS, SEEN, WIDTH, INNER = "abcdefghij", 3, 4, 6
VOCAB = len(LETTERS) + 1
BLOCK = "context_block."
IDS = [0, 3, 1, 4, 1, 5, 9, 2]


def weights(kind: str) -> dict[str, Any]:
    rng = np.random.default_rng(5)

    def of(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    if kind == "bigram":
        return {"logits": of(VOCAB, VOCAB)}
    if kind == "mlp":
        return {
            "wte.weight": of(VOCAB + 1, WIDTH),
            "mlp.0.weight": of(INNER, SEEN * WIDTH),
            "mlp.0.bias": of(INNER),
            "mlp.2.weight": of(VOCAB, INNER),
            "mlp.2.bias": of(VOCAB),
        }
    return {
        "wte.weight": of(VOCAB, WIDTH),
        "wpe.weight": of(8, WIDTH),
        f"{BLOCK}cbow.bias": np.tri(8, dtype=np.float32)[None],
        f"{BLOCK}mlp.c_fc.weight": of(INNER, WIDTH),
        f"{BLOCK}mlp.c_fc.bias": of(INNER),
        f"{BLOCK}mlp.c_proj.weight": of(WIDTH, INNER),
        f"{BLOCK}mlp.c_proj.bias": of(WIDTH),
        "lm_head.weight": of(VOCAB, WIDTH),
        "lm_head.bias": of(VOCAB),
    }


def expected(w: dict[str, Any], ids: list[int]) -> Any:
    """Logits behind each token, as makemore.py computes them."""
    w = {name: x.astype(np.float64) for name, x in w.items()}
    if "logits" in w:
        return w["logits"][ids]
    out = []
    if "mlp.0.weight" in w:
        before = [VOCAB] * (SEEN - 1) + ids  # the special <BLANK> token
        for t in range(len(ids)):
            x = np.concatenate([w["wte.weight"][i] for i in reversed(before[t : t + SEEN])])
            h = np.tanh(w["mlp.0.weight"] @ x + w["mlp.0.bias"])
            out.append(w["mlp.2.weight"] @ h + w["mlp.2.bias"])
        return np.array(out)
    x = w["wte.weight"][ids] + w["wpe.weight"][: len(ids)]
    for t in range(len(ids)):
        y = x[t] + x[: t + 1].mean(0)
        h = np.tanh(w[f"{BLOCK}mlp.c_fc.weight"] @ y + w[f"{BLOCK}mlp.c_fc.bias"])
        y = y + w[f"{BLOCK}mlp.c_proj.weight"] @ h + w[f"{BLOCK}mlp.c_proj.bias"]
        out.append(w["lm_head.weight"] @ y + w["lm_head.bias"])
    return np.array(out)


def saved(folder: Path, kind: str, form: str) -> Path:
    path, state = folder / f"m.{form}", weights(kind)
    if form == "pt":
        torch.save({"state": {n: torch.tensor(x) for n, x in state.items()}, "chars": LETTERS}, path)
    else:
        tree = {"chars": list(LETTERS), "state_dict": {n: x.tolist() for n, x in state.items()}}
        path.write_text(json.dumps(tree, separators=(",", ":")))
    return path


KINDS = pytest.mark.parametrize("kind", ["bigram", "mlp", "bow"])


@KINDS
@pytest.mark.parametrize("form", ["pt", "json"])
def test_it_is_computed_as_there_and_comes_back(tmp_path: Path, kind: str, form: str) -> None:
    path, state = saved(tmp_path, kind, form), weights(kind)
    llmconv.convert_file(path, tmp_path / "m.gguf")
    model = llmconv.load(tmp_path / "m.gguf", "cpu", "f64")
    with torch.no_grad():
        found = model(torch.tensor([IDS]))[0].numpy()
    np.testing.assert_allclose(found, expected(state, IDS), rtol=0, atol=1e-12)
    ids = [0, 1, 2]
    while len(ids) < 8 and ids[-1:] != [0]:
        ids.append(int(expected(state, ids)[-1].argmax()))
    text = llmconv.generate(model, "ab", max_tokens=5, temperature=0).text
    assert text == "".join(LETTERS[i - 1] for i in ids[3:] if i)
    logits = expected(state, IDS)
    logits -= logits.max(-1, keepdims=True)
    losses = (np.log(np.exp(logits).sum(-1)) - logits[np.arange(8), [*IDS[1:], 0]])[:-1]
    (tmp_path / "t.txt").write_text("".join(LETTERS[i - 1] for i in IDS[1:]))
    measured = llmconv.perplexity(model, tmp_path / "t.txt", context=8)
    assert measured.perplexity == pytest.approx(float(np.exp(losses[4:].mean())), rel=1e-9)
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / f"back.{form}")
    if form == "json":
        assert (tmp_path / "back.json").read_bytes() == path.read_bytes()
    else:
        back = torch.load(tmp_path / "back.pt", weights_only=True)
        assert back["chars"] == LETTERS and list(back["state"]) == list(state)
        assert all(np.array_equal(back["state"][n].numpy(), x) for n, x in state.items())


@KINDS
def test_it_goes_on_through_a_cache_and_padding_changes_nothing(tmp_path: Path, kind: str) -> None:
    llmconv.convert_file(saved(tmp_path, kind, "pt"), tmp_path / "m.gguf")
    model, wanted = llmconv.load(tmp_path / "m.gguf", "cpu", "f64"), expected(weights(kind), IDS)
    cache, mask = model.cache(2), torch.tensor([[True] * 4, [False, True, True, False]])
    with torch.no_grad():
        first = model(torch.tensor([IDS[:4], [7, *IDS[:2], 7]]), mask, cache)
        then = model(torch.tensor([IDS[4:6], IDS[2:4]]), torch.ones(2, 2, dtype=torch.bool), cache)
    for row, kept, start in ((0, first[0], 4), (1, first[1, 1:3], 2)):
        found = torch.cat([kept, then[row]])
        np.testing.assert_allclose(found.numpy(), wanted[: start + 2], rtol=0, atol=1e-12)


@KINDS
def test_it_is_quantized_and_comes_back_rounded(tmp_path: Path, kind: str) -> None:
    llmconv.convert_file(saved(tmp_path, kind, "pt"), tmp_path / "m.gguf")
    llmconv.quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q8_0")
    with torch.no_grad():
        found = llmconv.load(tmp_path / "q.gguf", "cpu", "f64")(torch.tensor([IDS]))[0].numpy()
    np.testing.assert_allclose(found, expected(weights(kind), IDS), rtol=0, atol=0.1)
    llmconv.convert_file(tmp_path / "q.gguf", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["state"]
    assert {n: tuple(x.shape) for n, x in back.items()} == {n: x.shape for n, x in weights(kind).items()}


@KINDS
@pytest.mark.slow
def test_it_is_trained_on_and_given_back(tmp_path: Path, kind: str) -> None:
    path, state = saved(tmp_path, kind, "json"), weights(kind)
    (tmp_path / "t.txt").write_text("abcabd\nbeef\n" * 20)
    settings = TrainConfig(
        data=str(tmp_path / "t.txt"), output=str(tmp_path / "run"), from_checkpoint=str(path), steps=3, batch_size=2,
        context=8, export="json", device="cpu", plot=False, tensorboard=False, eval_sequences=2,
    )  # fmt: skip
    llmconv.train(settings)
    made = json.loads((tmp_path / "run" / "model.json").read_text())
    assert made["chars"] == list(LETTERS) and list(made["state_dict"]) == list(state)
    for name, x in state.items():
        trained = np.array(made["state_dict"][name])
        assert trained.shape == x.shape and np.array_equal(trained, x) == name.endswith("cbow.bias")


def test_a_bag_that_leaves_something_out_keeps_its_names(tmp_path: Path) -> None:
    state = {n: torch.tensor(x) for n, x in weights("bow").items()}
    state[f"{BLOCK}cbow.bias"][0, 3, 1] = 0
    torch.save(state, tmp_path / "m.pt")
    notes = llmconv.convert_file(tmp_path / "m.pt", tmp_path / "m.gguf").notes
    assert any("averages is not all that came before" in note for note in notes)
