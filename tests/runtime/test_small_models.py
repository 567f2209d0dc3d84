"""Other people's small GPTs run: logits and greedy texts as their own programs' arithmetic gives them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models as small

import llmconv
from llmconv.errors import BadFile
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.initial import fresh_checkpoint
from llmconv.runtime.training.vocabulary import make_vocab

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.usefixtures("one_thread")
F = torch.nn.functional

IDS = [1, 4, 2, 7, 3, 9]
Make = Callable[[], Any]
Logits = Callable[[Any, list[int]], Any]


def micro(document: Any, ids: list[int]) -> Any:
    return small.microgpt_logits(small.microgpt_weights(), ids)


PROGRAMS: dict[str, tuple[Make, Logits]] = {
    "microgpt": (small.microgpt, micro),
    "microgpt-nested": (lambda: small.microgpt("nested"), micro),
    "flat": (small.flat, micro),
    "modern": (small.modern, small.modern_logits),
    "lecture": (small.lecture, small.lecture_logits),
    "playground": (small.playground, small.playground_logits),
    "ndarray": (small.ndarray, small.ndarray_logits),
    "blocks": (small.blocks, small.blocks_logits),
    "dotted": (small.dotted, small.dotted_logits),
}
ACTIVATIONS = {"relu": small.relu, "gelu": small.gelu, "gelu_tanh": small.gelu_tanh, "tanh": np.tanh}


def greedy(logits: Callable[[list[int]], Any], ids: list[int], count: int) -> list[int]:
    out = list(ids)
    for _ in range(count):
        out.append(int(np.argmax(logits(out)[-1])))
    return out[len(ids) :]


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_computes_what_its_program_does(tmp_path: Path, name: str) -> None:
    make, logits = PROGRAMS[name]
    document = make()
    (tmp_path / "m.json").write_text(json.dumps(document))
    model = llmconv.load(tmp_path / "m.json", "cpu", "f64")
    with torch.no_grad():
        found = model(torch.tensor([IDS]))[0].numpy()
    np.testing.assert_allclose(found, logits(document, IDS), rtol=0, atol=1e-9)
    cache = model.cache()
    with torch.no_grad():
        step = torch.cat([model(torch.tensor([[id]]), cache=cache) for id in IDS], 1)[0].numpy()
    np.testing.assert_allclose(step, found, rtol=0, atol=1e-12)
    if model.tokenizer is not None and model.tokenizer.eos is None:
        made = llmconv.generate(model, model.tokenizer.decode(IDS[:2]), max_tokens=4, temperature=0)
        assert made.tokens == greedy(lambda ids: logits(document, ids), IDS[:2], 4)


def test_the_first_microgpt_squares_its_relu(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(small.microgpt()))
    (tmp_path / "c.json").write_text('{"activation": "relu_squared"}')
    llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf", config=tmp_path / "c.json", outtype="f64")
    model = llmconv.load(tmp_path / "m.gguf", "cpu", "f64")
    wanted = small.microgpt_logits(small.microgpt_weights(), IDS, squared=True)
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.tensor([IDS]))[0].numpy(), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["blocks", "dotted"])
def test_an_activation_is_what_the_document_or_a_file_says(tmp_path: Path, name: str, activation: str) -> None:
    make, logits = PROGRAMS[name]
    document = make()
    (tmp_path / "m.json").write_text(json.dumps(document))
    (tmp_path / "c.json").write_text(json.dumps({"activation": activation}))
    document["config"]["activation"] = activation
    (tmp_path / "stated.json").write_text(json.dumps(document))
    notes = llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf", config=tmp_path / "c.json", outtype="f64")
    assert not any("nothing in the file" in note for note in notes.notes)
    wanted = logits(document, IDS, ACTIVATIONS[activation])  # type: ignore[call-arg]
    for path in (tmp_path / "m.gguf", tmp_path / "stated.json"):
        with torch.no_grad():
            found = llmconv.load(path, "cpu", "f64")(torch.tensor([IDS]))[0].numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


REAL: dict[str, Logits] = {
    "transformer_desde_cero-gpt_weights.json": small.desde_cero_logits,
    "forge-transformer_weights.json": small.forge_logits,
}


@pytest.mark.parametrize("target", ["", "m.gguf", "folder"])
@pytest.mark.parametrize("name", REAL)
def test_real_files_run_as_their_programs(shared: Path, tmp_path: Path, name: str, target: str) -> None:
    source = shared / "json" / name
    document, ids = json.loads(source.read_text()), [2, 4, 5, 4, 7, 1]
    if target:
        llmconv.convert_file(source, tmp_path / target, outtype="f64")
        source = tmp_path / target
    model = llmconv.load(source, "cpu", "f64")
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.tensor([ids]))[0].numpy(), REAL[name](document, ids), rtol=0, atol=1e-9)


def test_forge_goes_on_as_it_learned_to(shared: Path) -> None:
    """Its program learned "hello world " and continues "hello wo" over a window of eight."""
    model = llmconv.load(shared / "json" / "forge-transformer_weights.json", "cpu", "f64")
    letters = " dehlorw"
    window, text = [letters.index(c) for c in "hello wo"], ""
    document = json.loads((shared / "json" / "forge-transformer_weights.json").read_text())
    for _ in range(12):
        with torch.no_grad():
            next_ = int(model(torch.tensor([window]))[0, -1].argmax())
        assert next_ == int(np.argmax(small.forge_logits(document, window)[-1]))
        text, window = text + letters[next_], [*window[1:], next_]
    assert set(text) <= set(letters)


# torch's checkpoints


def mingpt_forward(w: dict[str, Any], ids: list[int], heads: int, layers: int, act: Any, names: dict[str, str]) -> Any:
    """minGPT's forward pass over a state dict."""

    def norm(x: Any, name: str) -> Any:
        return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w.get(name + ".bias"))

    def linear(x: Any, name: str) -> Any:
        return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))

    x = w[names["tok"]][ids] + w[names["pos"]][: len(ids)]
    mask = torch.ones(len(ids), len(ids)).tril().bool()
    for i in range(layers):
        at = names["block"] + f"{i}."
        q, k, v = linear(norm(x, at + "ln_1"), at + "attn.c_attn").chunk(3, -1)
        q, k, v = (t.view(len(ids), heads, -1).transpose(0, 1) for t in (q, k, v))
        scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
        x = x + linear((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), at + "attn.c_proj")
        x = x + linear(act(linear(norm(x, at + "ln_2"), at + "mlp.c_fc")), at + "mlp.c_proj")
    return norm(x, names["norm"]) @ w[names["head"]].T


def test_a_trained_checkpoint_gives_its_authors_logits(shared: Path, tmp_path: Path) -> None:
    source = shared / "hobby" / "slm4096-ckpt.pt"
    saved = torch.load(source, weights_only=True)
    w = {name: t.double() for name, t in saved["model_state"].items()}
    names = {
        "tok": "tok_emb.weight",
        "pos": "pos_emb.weight",
        "block": "blocks.",
        "norm": "ln_f",
        "head": "head.weight",
    }
    model = llmconv.load(source, "cpu", "f64")
    text = "The quick answer is: 26"
    ids = model.tokenizer.encode(text)
    assert ids == [saved["stoi"][c] for c in text if c in saved["stoi"]] and model.tokenizer.decode(ids) in text
    wanted = mingpt_forward(w, ids, 4, 4, F.gelu, names)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([ids]))[0], wanted, atol=1e-9, rtol=0)
        result = llmconv.convert_file(source, tmp_path / "m.gguf")
        assert result.types == {"F32": 52} and any("its MLP has gelu;" in note for note in result.notes)


class NanoGpt(torch.nn.Module):
    """nanoGPT's module tree, by its names."""

    def __init__(self, bias: bool, masks: bool):
        super().__init__()
        torch.manual_seed(3)
        n, linear, norm = small.D, torch.nn.Linear, torch.nn.LayerNorm

        def block() -> Any:
            attn = torch.nn.ModuleDict({"c_attn": linear(n, 3 * n, bias), "c_proj": linear(n, n, bias)})
            if masks:
                attn.register_buffer("bias", torch.ones(small.T, small.T).tril()[None, None])
            mlp = torch.nn.ModuleDict({"c_fc": linear(n, 4 * n, bias), "c_proj": linear(4 * n, n, bias)})
            norms = {"ln_1": norm(n, bias=bias), "ln_2": norm(n, bias=bias)}
            return torch.nn.ModuleDict({**norms, "attn": attn, "mlp": mlp})

        parts: dict[str, Any] = {"wte": torch.nn.Embedding(small.V, n), "wpe": torch.nn.Embedding(small.T, n)}
        parts |= {"h": torch.nn.ModuleList(block() for _ in range(small.L)), "ln_f": norm(n, bias=bias)}
        self.transformer = torch.nn.ModuleDict(parts)
        self.lm_head = linear(n, small.V, bias=False)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, 0.3, 0.5)
        self.transformer["wte"].weight = self.lm_head.weight


NANO = {
    "tok": "transformer.wte.weight", "pos": "transformer.wpe.weight", "block": "transformer.h.",
    "norm": "transformer.ln_f", "head": "lm_head.weight",
}  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt_runs_as_itself(tmp_path: Path, prefix: str, bias: bool) -> None:
    module = NanoGpt(bias, masks=not bias)
    state = module.state_dict()
    model_args = {**small.SIZES, "bias": bias, "dropout": 0.0}
    torch.save(
        {"model": {prefix + k: v for k, v in state.items()}, "model_args": model_args, "iter_num": 5},
        tmp_path / "ckpt.pt",
    )
    itos = dict(enumerate(small.CHARACTERS))
    meta = {"vocab_size": small.V, "itos": itos, "stoi": {c: i for i, c in itos.items()}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    act = F.gelu if bias else lambda x: F.gelu(x, approximate="tanh")  # with masks it is taken for the older one
    wanted = mingpt_forward({k: v.double() for k, v in state.items()}, IDS, small.H, small.L, act, NANO)
    for target in ("", "m.gguf", "folder", "m.json"):
        if target:
            llmconv.convert_file(
                tmp_path / "ckpt.pt", tmp_path / target, outtype="f64" if target != "m.json" else "auto"
            )
        model = llmconv.load(tmp_path / (target or "ckpt.pt"), "cpu", "f64")
        assert model.decoder.arch == ("gpt2" if bias else "small-gpt") and model.tokenizer.encode("ab\n") == [2, 3, 0]
        with torch.no_grad():
            torch.testing.assert_close(model(torch.tensor([IDS]))[0], wanted.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("how", ["--config", "metadata", "metadata's JSON"])
def test_a_lone_safetensors_file_of_nanogpt(tmp_path: Path, how: str) -> None:
    module, source = NanoGpt(True, masks=False), tmp_path / "m.safetensors"
    metadata = {"metadata": {"n_head": "2"}, "metadata's JSON": {"model_args": json.dumps(small.SIZES)}}.get(how)
    safetensors_torch.save_model(module, str(source), metadata)  # which leaves one of two names out
    (tmp_path / "c.json").write_text('{"n_head": 2}')
    config = tmp_path / "c.json" if how == "--config" else None
    wanted = mingpt_forward(module.state_dict(), IDS, small.H, small.L, F.gelu, NANO)
    for target in ("m.gguf", "m.json"):
        llmconv.convert_file(source, tmp_path / target, config=config)
    model = llmconv.load(tmp_path / "m.gguf", "cpu", "f32")
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([IDS]))[0], wanted, atol=1e-5, rtol=0)
    assert {"transformer.wte.weight", "lm_head.weight"} < json.loads((tmp_path / "m.json").read_text()).keys()
    llmconv.convert_file(source, tmp_path / "same.safetensors")
    assert llmconv.open(tmp_path / "same.safetensors").tensors.keys() == llmconv.open(source).tensors.keys()


def test_what_transformers_may_have_saved_is_said(tmp_path: Path) -> None:
    """Its GPTBigCode has nanoGPT's names and shapes, without the head's; nothing in a lone file tells them apart."""
    state = {n: a.clone() for n, a in NanoGpt(True, masks=False).state_dict().items() if n != "lm_head.weight"}
    (tmp_path / "c.json").write_text('{"n_head": 2}')
    for name, metadata in (("m", None), ("t", {"format": "pt"})):
        safetensors_torch.save_file(state, tmp_path / f"{name}.safetensors", metadata)
        result = llmconv.convert_file(
            tmp_path / f"{name}.safetensors", tmp_path / f"{name}.gguf", config=tmp_path / "c.json"
        )
        assert any("GPTBigCode" in note for note in result.notes) == (name == "t")


def test_a_lone_safetensors_file_is_not_guessed(tmp_path: Path) -> None:
    """Without the number of heads it keeps its names; Hugging Face's GPT-2, whose matrices are turned, always does."""
    state = {name: array.clone() for name, array in NanoGpt(True, masks=False).state_dict().items()}
    safetensors_torch.save_file(state, tmp_path / "m.safetensors")
    result = llmconv.convert_file(tmp_path / "m.safetensors", tmp_path / "m.gguf")
    assert any("looks like the layout nanogpt" in note and "n_head is missing" in note for note in result.notes)
    assert llmconv.open(tmp_path / "m.gguf").tensors.keys() == state.keys()
    turned = {k: a.T.contiguous() if ".c_" in k and a.ndim == 2 else a for k, a in state.items()}
    safetensors_torch.save_file(turned, tmp_path / "h.safetensors", {"n_head": "2"})
    llmconv.convert_file(tmp_path / "h.safetensors", tmp_path / "h.gguf")
    assert llmconv.open(tmp_path / "h.gguf").tensors.keys() == state.keys()


@pytest.mark.parametrize("how", ["one storage", "the same bytes", "an older file", "another head"])
def test_a_head_that_is_the_embedding_is_kept_once(tmp_path: Path, how: str) -> None:
    state = NanoGpt(True, masks=False).state_dict()
    if how != "one storage":
        state["lm_head.weight"] = state["lm_head.weight"].clone()
    if how == "another head":
        state["lm_head.weight"][-1, -1] += 1
    saved = {"model": state, "model_args": small.SIZES}
    torch.save(saved, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=how != "an older file")
    llmconv.convert_file(tmp_path / "ckpt.pt", tmp_path / "m.gguf")
    made = llmconv.open(tmp_path / "m.gguf")
    assert ("output.weight" in made.tensors) == (how == "another head")
    for source in ("ckpt.pt", "m.gguf"):
        llmconv.convert_file(tmp_path / source, tmp_path / "m.json", force=True)
        document = json.loads((tmp_path / "m.json").read_text())
        assert {name: np.array(document[name], np.float32).tolist() for name in state} == {
            name: array.numpy().tolist() for name, array in state.items()
        }
    llmconv.convert_file(tmp_path / "m.json", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "m.json").read_bytes()


def test_a_nanogpt_folder_runs_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    module = NanoGpt(True, masks=False)
    torch.save({"model": module.state_dict(), "model_args": small.SIZES}, tmp_path / "ckpt.pt")
    llmconv.convert_file(tmp_path / "ckpt.pt", tmp_path / "folder")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "folder")
    wanted = mingpt_forward(module.state_dict(), IDS, small.H, small.L, F.gelu, NANO)
    with torch.no_grad():
        torch.testing.assert_close(theirs(torch.tensor([IDS])).logits[0], wanted, atol=1e-5, rtol=0)


def test_a_checkpoint_without_what_a_table_needs_keeps_its_names(tmp_path: Path) -> None:
    torch.save(NanoGpt(True, masks=False).state_dict(), tmp_path / "m.pt")
    result = llmconv.convert_file(tmp_path / "m.pt", tmp_path / "m.gguf")
    assert any("looks like the layout nanogpt" in note and "n_head is missing" in note for note in result.notes)
    assert "transformer.wte.weight" in llmconv.open(tmp_path / "m.gguf").tensors
    with pytest.raises(BadFile, match="n_head is missing"):
        llmconv.convert_file(tmp_path / "m.pt", tmp_path / "n.gguf", layout="nanogpt")
    (tmp_path / "c.json").write_text('{"n_head": 2}')
    llmconv.convert_file(tmp_path / "m.pt", tmp_path / "n.gguf", config=tmp_path / "c.json")
    assert llmconv.open(tmp_path / "n.gguf").metadata["gpt2.attention.head_count"] == 2


@pytest.mark.parametrize(
    "more",
    [
        {"resid_lambdas": torch.ones(small.L)},
        {"logit_scale": torch.tensor(2.0)},
        {"transformer.emb_ln.weight": torch.ones(small.D)},
        {"value_embeds.0.weight": torch.ones(small.V, small.D)},
    ],
)
def test_a_checkpoint_with_more_than_the_layout_has_keeps_its_names(tmp_path: Path, more: dict[str, Any]) -> None:
    """It would be run without them, and be wrong."""
    state = NanoGpt(True, masks=False).state_dict() | more
    torch.save({"model": state, "model_args": small.SIZES}, tmp_path / "ckpt.pt")
    result = llmconv.convert_file(tmp_path / "ckpt.pt", tmp_path / "m.gguf")
    assert any(f"{next(iter(more))!r} is none of the weights" in note for note in result.notes)
    assert set(more) < set(llmconv.open(tmp_path / "m.gguf").tensors)


def test_a_meta_file_that_would_run_something_is_refused(tmp_path: Path) -> None:
    torch.save({"model": NanoGpt(True, masks=False).state_dict(), "model_args": small.SIZES}, tmp_path / "ckpt.pt")
    (tmp_path / "meta.pkl").write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    result = llmconv.convert_file(tmp_path / "ckpt.pt", tmp_path / "m.gguf")
    assert any("is no pickle of plain data" in note for note in result.notes)


# Trained here, and back


def test_training_writes_the_pages_own_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("emma\nolivia\nava\n" * 60)
    settings = TrainConfig(
        data=str(tmp_path / "names.txt"), output=str(tmp_path / "run"), preset="microgpt", steps=3, batch_size=4,
        export="json", layout="microgpt", device="cpu", plot=False, tensorboard=False, eval_sequences=4,
    )  # fmt: skip
    llmconv.train(settings)
    made = json.loads((tmp_path / "run" / "model.json").read_text())
    assert list(made) == ["metadata", "weights"] and made["metadata"]["uchars"] == sorted(set("emma\nolivia\nava"))
    assert made["metadata"]["BOS"] == len(made["metadata"]["uchars"]) == made["metadata"]["vocab_size"] - 1
    assert {name: np.shape(w) for name, w in made["weights"].items()}["layer0.mlp_fc1"] == (64, 16)


@pytest.mark.slow
def test_training_goes_on_from_a_page_and_gives_it_back(tmp_path: Path) -> None:
    document = small.microgpt("top")
    (tmp_path / "m.json").write_text(json.dumps(document))
    (tmp_path / "t.txt").write_text("abc abd abe\n" * 50)
    settings = TrainConfig(
        data=str(tmp_path / "t.txt"), output=str(tmp_path / "run"), from_checkpoint=str(tmp_path / "m.json"), steps=3,
        batch_size=4, export="json", device="cpu", plot=False, tensorboard=False, eval_sequences=4,
    )  # fmt: skip
    llmconv.train(settings)
    made = json.loads((tmp_path / "run" / "model.json").read_text())
    assert {k: v for k, v in made.items() if k != "state_dict"} == {
        k: v for k, v in document.items() if k != "state_dict"
    }
    assert list(made["state_dict"]) == list(document["state_dict"]) and made["state_dict"] != document["state_dict"]


def test_a_layout_that_a_model_has_no_place_in_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abc\n" * 50)
    settings = TrainConfig(
        data=str(tmp_path / "t.txt"), output=str(tmp_path / "run"), preset="microgpt", steps=3, export="json",
        layout="lecture", device="cpu",
    )  # fmt: skip
    with pytest.raises(llmconv.LlmconvError, match="a microgpt model can't be written in the layout lecture"):
        llmconv.train(settings)


@pytest.mark.parametrize("layout", ["lecture", "playground", "ndarray"])
def test_a_fresh_lecture_gpt_fits_every_page_of_its_kind(tmp_path: Path, layout: str) -> None:
    settings = TrainConfig(data="t.txt", output="run", preset="lecture", dim=16, layers=2, heads=2, ffn=24, context=8)
    model = fresh_checkpoint(settings, make_vocab("characters", 40, ["hello world\n"]))
    assert model.tensors["token_embd.weight"].shape == (9, 16) and "blk.0.attn_qkv.bias" not in model.tensors
    llmconv.save(model, tmp_path / "m.json", layout=layout)
    again = llmconv.load(tmp_path / "m.json", "cpu", "f64")
    assert again.tokenizer.decode(again.tokenizer.encode("hold\n")) == "hold\n"
    ours = llmconv.load(model, "cpu", "f64")
    with torch.no_grad():
        torch.testing.assert_close(again(torch.tensor([[1, 4, 2]])), ours(torch.tensor([[1, 4, 2]])), atol=1e-6, rtol=0)


MAKEMORE = {"rnn": ("h",), "gru": ("r", "z", "hbar")}


def makemore(cell: str) -> dict[str, Any]:
    """A state dict of makemore's recurrent models: 11 tokens of 5 numbers, a state of 6."""
    torch.manual_seed(3)
    state = {"start": torch.randn(1, 6), "wte.weight": torch.randn(11, 5)}
    for x in MAKEMORE[cell]:
        state |= {f"cell.xh_to_{x}.weight": torch.randn(6, 11) / 2, f"cell.xh_to_{x}.bias": torch.randn(6) / 2}
    return state | {"lm_head.weight": torch.randn(11, 6), "lm_head.bias": torch.randn(11)}


def makemore_logits(state: dict[str, Any], ids: list[int]) -> Any:
    w = {name: x.double().numpy() for name, x in state.items()}
    h, out = w["start"][0], []
    for token in ids:
        x = w["wte.weight"][token]

        def of(name: str, h: Any, x: Any = x) -> Any:
            return w[f"cell.xh_to_{name}.weight"] @ np.concatenate([x, h]) + w[f"cell.xh_to_{name}.bias"]

        if "cell.xh_to_h.weight" in w:
            h = np.tanh(of("h", h))
        else:
            r, z = (1 / (1 + np.exp(-of(name, h))) for name in "rz")
            h = (1 - z) * h + z * np.tanh(of("hbar", r * h))
        out.append(w["lm_head.weight"] @ h + w["lm_head.bias"])
    return np.array(out)


@pytest.mark.parametrize("cell", MAKEMORE)
def test_makemores_cells_begin_from_the_state_that_they_learned(tmp_path: Path, cell: str) -> None:
    state, ids = makemore(cell), [0, 4, 1, 9, 9, 2]
    torch.save(state, tmp_path / "m.pt")
    (tmp_path / "chars.json").write_text(json.dumps(list("abcdefghij")))
    llmconv.convert_file(tmp_path / "m.pt", tmp_path / "m.gguf", vocab=tmp_path / "chars.json")
    for path in (tmp_path / "m.pt", tmp_path / "m.gguf"):
        with torch.no_grad():
            found = llmconv.load(path, "cpu", "f64")(torch.tensor([ids]))[0].numpy()
        np.testing.assert_allclose(found, makemore_logits(state, ids), rtol=0, atol=1e-12)
    model = llmconv.load(tmp_path / "m.gguf", "cpu", "f64")
    assert model.tokenizer.encode("abj") == [1, 2, 10]
    best = [int(makemore_logits(state, [0, 1, 2])[-1].argmax())]
    text = llmconv.generate(model, "ab", max_tokens=1, temperature=0).text
    assert text == ("" if best == [0] else "abcdefghij"[best[0] - 1])
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.safetensors")
    back = llmconv.open(tmp_path / "back.safetensors").tensors
    assert {n: t.numpy().tolist() for n, t in back.items()} == {n: t.tolist() for n, t in state.items()}


def test_makemore_keeps_its_names_where_it_is_not_whole(tmp_path: Path) -> None:
    """Its transformer is minGPT's, and lacks only the number of heads."""
    mlp = {f"mlp.{i}.{x}": torch.randn(4, *[24] * (x == "weight")) for i in (0, 2) for x in ("weight", "bias")}
    mlp["wte.weight"] = torch.randn(12, 8)
    bag = {"wte.weight": torch.randn(12, 8), "context_block.cbow.bias": torch.ones(1, 6, 6)}
    less = {name: x for name, x in makemore("gru").items() if name != "cell.xh_to_r.bias"}
    for name, state, why in (
        ("mlp", mlp, "'mlp.2.weight' has shape [4, 24], expected [11, 4]"),
        ("bag", bag, "bag of words, but 'context_block.mlp.c_fc.bias' is missing"),
        ("less", less, "'cell.xh_to_r.bias' is missing"),
    ):
        torch.save(state, tmp_path / f"{name}.pt")
        result = llmconv.convert_file(tmp_path / f"{name}.pt", tmp_path / f"{name}.gguf")
        assert any("keeps its own names" in note and why in note for note in result.notes), result.notes
        assert set(llmconv.open(tmp_path / f"{name}.gguf").tensors) == set(state)
    module = NanoGpt(True, masks=True)
    torch.save(module.state_dict(), tmp_path / "transformer.pt")
    (tmp_path / "c.json").write_text('{"n_head": 2}')
    llmconv.convert_file(tmp_path / "transformer.pt", tmp_path / "t.gguf", config=tmp_path / "c.json", outtype="f64")
    model = llmconv.load(tmp_path / "t.gguf", "cpu", "f64")
    state = {k: v.double() for k, v in module.state_dict().items()}
    wanted = mingpt_forward(state, IDS, small.H, small.L, lambda x: F.gelu(x, approximate="tanh"), NANO)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([IDS]))[0], wanted, atol=1e-6, rtol=0)


def test_a_lecture_checkpoint_needs_nothing_else(tmp_path: Path) -> None:
    document = small.lecture()
    torch.save({name: torch.tensor(values) for name, values in document.items()}, tmp_path / "m.pt")
    model = llmconv.load(tmp_path / "m.pt", "cpu", "f64")
    assert model.decoder.arch == "small-gpt"
    with torch.no_grad():
        found = model(torch.tensor([IDS]))[0].numpy()
    np.testing.assert_allclose(found, small.lecture_logits(document, IDS), rtol=0, atol=1e-5)


def test_perplexity_and_generating_begin_with_bos(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(small.microgpt()))
    model = llmconv.load(tmp_path / "m.json", "cpu", "f64")
    bos = small.V - 1
    assert model.tokenizer.encode("ab", add_special=True) == [bos, 2, 3]
    made = llmconv.generate(model, "ab", max_tokens=3, temperature=0)
    wanted = greedy(lambda ids: micro(None, ids), [bos, 2, 3], 3)
    assert made.tokens == wanted[: wanted.index(bos) if bos in wanted else 3]
