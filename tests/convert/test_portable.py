"""GGUFs for publishing: no keys of ours, and what can't come back is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from simple_model import document
from synthetic import write
from tokenizers_trained import trained

import llmconv


def own_keys(path: Path) -> list[str]:
    return [key for key in llmconv.open(path).metadata if key.startswith("llmconv")]


pytest.importorskip("gguf", reason="the gguf library is not installed")
pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Llama with a tokenizer."""
    made = trained("bpe")
    write(tmp_path / "made.gguf", n_layer=1, n_embd=64, n_ff=64, n_kv=64, n_vocab=made.get_vocab_size())
    llmconv.edit(tmp_path / "made.gguf", remove=["tokenizer.ggml.tokens"])
    llmconv.convert_file(tmp_path / "made.gguf", tmp_path / "folder")
    (tmp_path / "made.gguf").unlink()
    (tmp_path / "folder" / "tokenizer.json").write_text(made.to_str())
    return tmp_path / "folder"


def test_a_folder_s_gguf_has_no_key_of_ours(folder: Path, tmp_path: Path) -> None:
    usual = llmconv.convert_file(folder, tmp_path / "usual.gguf")
    made = llmconv.convert_file(folder, tmp_path / "made.gguf", portable=True)
    assert own_keys(tmp_path / "usual.gguf") and not own_keys(tmp_path / "made.gguf")
    assert [n for n in made.notes if n not in usual.notes] == [n for n in made.notes if n.startswith("portable, so")]
    assert "config.json as it was (one is made of the GGUF's keys)" in made.notes[-1]
    llmconv.convert_file(tmp_path / "made.gguf", tmp_path / "again")  # it is a model all the same
    assert llmconv.verify(folder, tmp_path / "again").counts().keys() <= {"identical", "rounded"}
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == "llama"


def test_quantizing_too(folder: Path, tmp_path: Path) -> None:
    made = llmconv.quantize(folder, tmp_path / "q.gguf", "Q8_0", portable=True)
    assert not own_keys(tmp_path / "q.gguf") and any(note.startswith("portable, so") for note in made.notes)
    again = llmconv.quantize(tmp_path / "q.gguf", tmp_path / "r.gguf", "COPY", portable=True)
    assert not any(note.startswith("portable") for note in again.notes)


def test_json_loses_its_document_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(document(heads=2)))
    made = llmconv.convert_file(tmp_path / "model.json", tmp_path / "m.gguf", portable=True)
    assert not own_keys(tmp_path / "m.gguf") and "the JSON document around the weights" in made.notes[-1]
    back = llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert back.n_tensors == made.n_tensors


def test_where_it_can_t_be(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", w=np.ones((2, 2), np.float32))
    for call, said in (
        (lambda: llmconv.convert_file(folder, tmp_path / "o.safetensors", portable=True), "it is for GGUF"),
        (lambda: llmconv.convert_file(tmp_path / "x.npz", tmp_path / "x.gguf", portable=True), "names of their own"),
        (lambda: llmconv.convert_file(folder, tmp_path / "x.gguf", portable=True, provenance=True), "choose one"),
        (lambda: llmconv.quantize(folder, tmp_path / "o", "INT8", portable=True), "INT8 makes safetensors"),
    ):
        with pytest.raises(llmconv.LlmconvError, match=said):
            call()
    assert not (tmp_path / "x.gguf").exists()


def test_a_vocabulary_is_honoured_by_quantize_or_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = folder / "tokenizer.json"
    with pytest.raises(llmconv.UsageError, match="has a tokenizer; leave vocab out"):
        llmconv.quantize(folder, tmp_path / "q.gguf", "Q8_0", vocab=tokenizer)
    tokenizer.rename(tmp_path / "tokenizer.json")
    llmconv.quantize(folder, tmp_path / "q.gguf", "Q8_0", vocab=tmp_path / "tokenizer.json")
    assert "tokenizer.ggml.tokens" in llmconv.open(tmp_path / "q.gguf").metadata
    for name, value in (("vocab", tmp_path / "tokenizer.json"), ("config", tmp_path / "tokenizer.json"), ("pre", "x")):
        with pytest.raises(llmconv.UsageError, match=f"{name}.* has no effect on a GGUF"):
            llmconv.quantize(tmp_path / "q.gguf", tmp_path / "r.gguf", "COPY", **{name: value})
