"""Vectors and scores are those of sentence-transformers' arithmetic, written out here over transformers' models."""

# ruff: noqa: E501 (tables)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from tiny_encoders import QUERY, TEXTS, bytelevel, ended, folder_of, unigram, wordpiece, yes_or_no

import llmconv

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytestmark = pytest.mark.filterwarnings("ignore")


def modules(
    path: Path, pooling: dict[str, Any], dense: tuple[int, ...] = (), normalize: bool = True, plain: bool = False
) -> list[Any]:
    """Write sentence-transformers' files; the dense layers (weight, bias), none of which has one where `plain`."""
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), *((f"{n + 2}_Dense", "Dense") for n in range(len(dense)))]
    steps += [("9_Normalize", "Normalize")] if normalize else []
    listing = [
        {"idx": n, "name": str(n), "path": where, "type": f"sentence_transformers.models.{kind}"}
        for n, (where, kind) in enumerate(steps)
    ]
    (path / "modules.json").write_text(json.dumps(listing))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64} | pooling))
    layers, size, generator = [], 64, torch.Generator().manual_seed(5)
    for n, out in enumerate(dense):
        weight, bias = torch.randn(out, size, generator=generator) / 8, torch.randn(out, generator=generator)
        where = path / f"{n + 2}_Dense"
        where.mkdir()
        tensors = {"linear.weight": weight.numpy()} | ({"linear.bias": bias.numpy()} if n == 0 and not plain else {})
        made = llmconv.Checkpoint()
        for name, values in tensors.items():
            made.add(llmconv.Tensor.from_array(name, values))
        llmconv.save(made, where / "model.safetensors")
        first = n == 0 and not plain
        kind = "torch.nn.modules.activation.Tanh" if first else "torch.nn.modules.linear.Identity"
        config = {"in_features": size, "out_features": out, "bias": first, "activation_function": kind}
        (where / "config.json").write_text(json.dumps(config))
        layers.append((weight, bias if first else None, torch.tanh if first else lambda x: x))
        size = out
    return layers


def hidden(model: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return model(torch.tensor([ids])).last_hidden_state[0]


POOLINGS = {
    "mean": ({"pooling_mode_mean_tokens": True}, lambda h: h.mean(0)),
    "cls": ({"pooling_mode": "cls"}, lambda h: h[0]),
    "last": ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False}, lambda h: h[-1]),
    "max": ({"pooling_mode_max_tokens": True}, lambda h: h.max(0).values),
}
MODELS = [("bert", wordpiece), ("roberta", unigram), ("distilbert", wordpiece), ("modernbert", wordpiece)]


@pytest.mark.parametrize(("name", "tokenizer", "pooling"), [
    *((name, tokenizer, "mean") for name, tokenizer in MODELS), *(("bert", wordpiece, p) for p in ("cls", "last", "max"))
])  # fmt: skip
def test_vectors(tmp_path: Path, name: str, tokenizer: Any, pooling: str) -> None:
    model, splits = folder_of(tmp_path / "hf", name, tokenizer)
    modules(tmp_path / "hf", POOLINGS[pooling][0])
    expected = []
    for text in TEXTS:
        vector = POOLINGS[pooling][1](hidden(model, splits.encode(text).ids))
        expected.append((vector / vector.norm()).numpy())
    found = llmconv.embed(tmp_path / "hf", TEXTS, device="cpu")
    assert found.dtype == np.float32 and np.abs(found - np.stack(expected)).max() < 2e-5
    llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    assert np.abs(llmconv.embed(tmp_path / "m.gguf", TEXTS, device="cpu") - found).max() < 1e-6


def test_dense_layers_prompts_and_length(tmp_path: Path) -> None:
    model, splits = folder_of(tmp_path / "hf", "bert", wordpiece)
    layers = modules(tmp_path / "hf", POOLINGS["mean"][0], (32, 16))
    prompts = {"prompts": {"query": "what is "}, "default_prompt_name": None}
    (tmp_path / "hf" / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    (tmp_path / "hf" / "sentence_bert_config.json").write_text('{"max_seq_length": 6, "do_lower_case": true}')
    expected = []
    for text in TEXTS:
        ids = splits.encode("what is " + text).ids
        vector = hidden(model, [*ids[:-1][:5], ids[-1]]).mean(0)
        for weight, bias, act in layers:
            vector = act(torch.nn.functional.linear(vector, weight, bias))
        expected.append(vector.numpy())
    llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    for path in (tmp_path / "hf", tmp_path / "m.gguf"):
        for prompt in ("query", "what is "):
            found = llmconv.embed(path, TEXTS, prompt=prompt, normalize=False, device="cpu")
            assert np.abs(found - np.stack(expected)).max() < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_layers_behind_pooling_are_tensors(tmp_path: Path, count: int) -> None:
    """EmbeddingGemma's two, and more than a GGUF has names for."""
    model, splits = folder_of(tmp_path / "hf", "embeddinggemma", unigram)
    layers = modules(tmp_path / "hf", POOLINGS["mean"][0], (32, 16, 8)[:count], plain=True)
    expected = []
    for text in TEXTS:
        vector = hidden(model, splits.encode(text).ids).mean(0)
        for weight, _bias, _act in layers:
            vector = torch.nn.functional.linear(vector, weight)
        expected.append((vector / vector.norm()).numpy())
    result = llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    tensors = llmconv.open(tmp_path / "m.gguf").tensors
    assert [f"dense_{n}.weight" in tensors for n in (2, 3)] == [count < 3, count == 2]
    assert any("'2_Dense' (and 2 more): kept, and computed by llmconv embed" in note for note in result.notes) == (
        count == 3
    )
    for path in (tmp_path / "hf", tmp_path / "m.gguf"):
        assert np.abs(llmconv.embed(path, TEXTS, device="cpu", dtype="f32") - np.stack(expected)).max() < 5e-5
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "again")
    for file in (tmp_path / "hf").rglob("*"):
        name = file.relative_to(tmp_path / "hf")
        if file.is_file() and str(name) != "model.safetensors":  # whose tensors may stand in another order
            assert (tmp_path / "again" / name).read_bytes() == file.read_bytes()
    assert llmconv.verify(tmp_path / "hf", tmp_path / "again").same
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "p.gguf", portable=True)  # as somebody else has it
    if count < 3:
        assert (
            np.abs(llmconv.embed(tmp_path / "p.gguf", TEXTS, device="cpu", dtype="f32") - np.stack(expected)).max()
            < 5e-5
        )
        llmconv.convert_file(tmp_path / "p.gguf", tmp_path / "made")
        found = llmconv.embed(tmp_path / "made", TEXTS, device="cpu", dtype="f32")
        assert np.abs(found - np.stack(expected)).max() < 5e-5
        assert json.loads((tmp_path / "made" / "2_Dense" / "config.json").read_text())["out_features"] == 32


RERANKERS = [
    ("bert-classifier", wordpiece, {}), ("xlm-roberta-reranker", unigram, {}), ("modernbert-reranker", wordpiece, {}),
    ("bert-classifier", wordpiece, {"num_labels": 1}), ("distilbert-classifier", wordpiece, {}),
    ("modernbert-reranker", wordpiece, {"classifier_pooling": "cls"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tokenizer", "changes"), RERANKERS)
def test_scores(tmp_path: Path, name: str, tokenizer: Any, changes: dict[str, Any]) -> None:
    model, splits = folder_of(tmp_path / "hf", name, tokenizer, **changes)
    expected = []
    for text in TEXTS:
        row = splits.encode(QUERY, text)
        given = {"input_ids": torch.tensor([row.ids])}
        if name == "bert-classifier":
            given["token_type_ids"] = torch.tensor([row.type_ids])
        with torch.no_grad():
            expected.append(model(**given).logits[0])
    logits = torch.stack(expected)
    llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    pairs = [(QUERY, text) for text in TEXTS]
    for path in (tmp_path / "hf", tmp_path / "m.gguf"):
        raw = llmconv.embed(path, pairs, normalize=False, device="cpu", dtype="f32")
        assert raw.shape == logits.shape and np.abs(raw - logits.numpy()).max() < 1e-4
        found = llmconv.embed(path, pairs, device="cpu", dtype="f32")
        wanted = logits.sigmoid() if logits.shape[1] == 1 else logits
        assert np.abs(found - wanted.numpy()).max() < 1e-4


def came_back(one: Path, other: Path) -> bool:
    """Whether two folders have the same files, but for the order of the tensors."""
    files, others = (
        {p.name: p.read_bytes() for p in path.iterdir() if p.suffix != ".safetensors"} for path in (one, other)
    )
    return files == others and llmconv.diff(one, other) == []


SORTS: dict[str, Any] = {"task": "SequenceClassification"}
SCORING = [
    ("llama", bytelevel, {"num_labels": 1, "tie_word_embeddings": False}),
    ("llama", ended, {"num_labels": 2, "pad_token_id": 2}),  # the last token is that of padding, so it is not read
    ("qwen3", ended, {"num_labels": 3, "pad_token_id": None}),
    ("qwen2", bytelevel, {"num_labels": 1, "id2label": {"0": "good"}}),
    ("gemma2", bytelevel, {"num_labels": 2}),
    ("gpt2", bytelevel, {"num_labels": 2}),
    ("eurobert", ended, {"num_labels": 1, "classifier_pooling": "bos"}),
    ("eurobert", ended, {"num_labels": 2, "classifier_pooling": "mean"}),
    ("eurobert", ended, {"num_labels": 3, "classifier_pooling": "late"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tokenizer", "changes"), SCORING)
def test_language_models_that_score(tmp_path: Path, name: str, tokenizer: Any, changes: dict[str, Any]) -> None:
    """transformers' `score` of the last token, and EuroBERT's layers, of texts and of pairs; the folder comes back."""
    model, splits = folder_of(tmp_path / "hf", name, tokenizer, **SORTS, **changes)
    pairs = [(QUERY, text) for text in TEXTS]
    with torch.no_grad():
        alone, both = (
            torch.stack([model(input_ids=torch.tensor([row.ids])).logits[0] for row in rows]).numpy()
            for rows in ([splits.encode(t) for t in TEXTS], [splits.encode(*p) for p in pairs])
        )
    made = llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    arch = "gpt2" if name == "gpt2" else name
    keys = llmconv.open(tmp_path / "m.gguf").metadata
    labels = list(changes.get("id2label", {}).values()) or [f"LABEL_{n}" for n in range(changes["num_labels"])]
    assert keys[f"{arch}.classifier.output_labels"] == labels and not any("has no head" in n for n in made.notes)
    assert name == "eurobert" or keys[f"{arch}.pooling_type"] == 4
    assert any("softmax" in n if name == "qwen3" else "no place for cls.output" in n for n in made.notes) or name == "eurobert"  # fmt: skip
    for path in (tmp_path / "hf", tmp_path / "m.gguf"):
        options = {"device": "cpu", "dtype": "f32", "normalize": False}
        assert np.abs(llmconv.embed(path, TEXTS, **options) - alone).max() < 1e-4
        assert np.abs(llmconv.embed(path, pairs, **options) - both).max() < 1e-4
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "again")
    assert came_back(tmp_path / "hf", tmp_path / "again")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "p.gguf", portable=True)
    llmconv.convert_file(tmp_path / "p.gguf", tmp_path / "made")
    rebuilt = type(model).from_pretrained(tmp_path / "made", dtype=torch.float32)
    if changes.get("pad_token_id"):  # which is another than the vocabulary's: what no key of others says
        return
    with torch.no_grad():
        again = rebuilt(input_ids=torch.tensor([splits.encode(TEXTS[0]).ids])).logits[0]
    assert np.abs(again.numpy() - alone[0]).max() < 1e-4
    if name == "llama":
        with pytest.raises(llmconv.UsageError, match="says no words"):
            (tmp_path / "text").write_text("a text of words " * 20)
            llmconv.perplexity(tmp_path / "m.gguf", tmp_path / "text", device="cpu", context=16)


def test_a_reranker_that_says_yes_or_no(tmp_path: Path) -> None:
    """Qwen3's: the chance of yes against no as the next word of the question that it was trained with."""
    model, splits = folder_of(tmp_path / "My-Qwen3-Reranker-1B", "qwen3", yes_or_no, max_position_embeddings=1024)
    words = [splits.token_to_id(word) for word in ("yes", "no")]
    made = llmconv.convert_file(tmp_path / "My-Qwen3-Reranker-1B", tmp_path / "m.gguf")
    assert any("a reranker, by its name" in note for note in made.notes)
    found = llmconv.open(tmp_path / "m.gguf")
    assert (found.metadata["qwen3.pooling_type"], found.metadata["qwen3.classifier.output_labels"]) == (
        4,
        ["yes", "no"],
    )
    before, after = found.metadata["tokenizer.chat_template.rerank"].replace("{query}", QUERY).split("{document}")
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            logits = model(torch.tensor([splits.encode(before + text + after, add_special_tokens=False).ids])).logits
        expected.append(logits[0, -1, words].softmax(-1).numpy())
    for path in (tmp_path / "My-Qwen3-Reranker-1B", tmp_path / "m.gguf"):
        scores = llmconv.embed(path, [(QUERY, text) for text in TEXTS], device="cpu", dtype="f32")
        assert np.abs(scores - np.stack(expected)).max() < 1e-5
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "again")
    assert came_back(tmp_path / "My-Qwen3-Reranker-1B", tmp_path / "again")


def test_a_head_for_each_token_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "hf", "llama", bytelevel, task="TokenClassification")
    with pytest.raises(llmconv.LlmconvError, match="score"):
        llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")


def test_one_label_and_one_type_of_tokens_quantized(tmp_path: Path) -> None:
    """A quantizer leaves leading ones out, as ggml counts: two matrices of one row are vectors in the file."""
    folder_of(tmp_path / "hf", "xlm-roberta-reranker", unigram, type_vocab_size=1, num_labels=1)
    expected = llmconv.embed(tmp_path / "hf", [(QUERY, TEXTS[0])], device="cpu")
    llmconv.quantize(tmp_path / "hf", tmp_path / "q.gguf", "Q8_0")
    made = llmconv.open(tmp_path / "q.gguf").tensors
    assert made["token_types.weight"].shape == made["cls.output.weight"].shape == (64,)
    assert np.abs(llmconv.embed(tmp_path / "q.gguf", [(QUERY, TEXTS[0])], device="cpu") - expected).max() < 0.02
    assert llmconv.verify(tmp_path / "hf", tmp_path / "q.gguf").same
    llmconv.convert_file(tmp_path / "q.gguf", tmp_path / "again")
    back = llmconv.open(tmp_path / "again").tensors
    assert {n: t.shape for n, t in llmconv.open(tmp_path / "hf").tensors.items()} == {
        n: t.shape for n, t in back.items()
    }
    llmconv.convert_file(tmp_path / "q.gguf", tmp_path / "copy.gguf")


def test_the_command(tmp_path: Path) -> None:
    folder_of(tmp_path / "hf", "bert", wordpiece)
    expected = llmconv.embed(tmp_path / "hf", TEXTS[:2], device="cpu")
    result = run("embed", tmp_path / "hf", *TEXTS[:2], "--device", "cpu", "--json", "-o", tmp_path / "v.npy")
    found = json.loads(result.out)["result"]
    assert found["shape"] == [2, 64] and np.array_equal(np.float32(found["vectors"]), expected)
    assert np.array_equal(np.load(tmp_path / "v.npy"), expected)
    lines = run("embed", tmp_path / "hf", *TEXTS[:2], "--device", "cpu").out.splitlines()
    assert np.array_equal(np.float32([line.split() for line in lines]), expected)
    assert run("embed", tmp_path / "hf", "a", "--device", "cpu", "-o", tmp_path / "v.npy").code == 1
    refused = run("embed", tmp_path / "hf", "a", "--query", "b", "--device", "cpu")
    assert refused.code != 0 and "is no reranker" in refused.err


@pytest.mark.parametrize(
    ("files", "texts", "sentence"),
    [
        ({}, [], "there are no texts"),
        ({"modules.json": '[{"type": "x.models.CNN", "path": ""}]'}, ["a"], "module 'CNN' is not known"),
        ({"modules.json": '[{"type": "x.Dense", "path": "2_Dense"}]'}, ["a"], "has no model.safetensors"),
        ({"modules.json": '[{"type": "x.Pooling", "path": "1_P"}]', "1_P/config.json": '{"pooling_mode_x": true}'}, ["a"], "pooling is not known"),
        ({"modules.json": '[{"type": "x.Dense", "path": "2_D"}]', "2_D/model.safetensors": "{}"}, ["a"], "no whole safetensors"),
        ({"config_sentence_transformers.json": "{"}, ["a"], "is no JSON"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, files: dict[str, str], texts: list[str], sentence: str) -> None:
    folder_of(tmp_path / "hf", "bert", wordpiece)
    for name, text in files.items():
        (tmp_path / "hf" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "hf" / name).write_text(text)
    with pytest.raises(llmconv.LlmconvError, match=sentence):
        llmconv.embed(tmp_path / "hf", texts, device="cpu")
