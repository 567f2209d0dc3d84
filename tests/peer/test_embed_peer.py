"""Vectors and scores are llama.cpp's (through llama-cpp-python), of GGUFs made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_encoders import QUERY, TEXTS, bytelevel, folder_of, unigram, wordpiece, yes_or_no

import llmconv

pytest.importorskip("torch")
pytest.importorskip("transformers")
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

MODELS = [("bert", wordpiece), ("roberta", unigram), ("distilbert", wordpiece), ("modernbert", wordpiece)]


def theirs(path: Path, texts: list[str], pooling: int) -> Any:
    model = llama_cpp.Llama(str(path), embedding=True, pooling_type=pooling, verbose=False, n_threads=1, n_ctx=64)
    return np.array([model.embed(text, normalize=pooling != 4) for text in texts], np.float32).reshape(len(texts), -1)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(("name", "tokenizer"), MODELS)
def test_vectors(tmp_path: Path, name: str, tokenizer: Any, pooling: str) -> None:
    folder_of(tmp_path / "hf", name, tokenizer)
    llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    found = llmconv.embed(tmp_path / "m.gguf", TEXTS, pooling=pooling, device="cpu")
    expected = theirs(tmp_path / "m.gguf", TEXTS, {"mean": 1, "cls": 2}[pooling])
    assert np.abs(found - expected).max() < 2e-3


@pytest.mark.parametrize(
    ("name", "tokenizer", "changes"),
    [("xlm-roberta-reranker", unigram, {}), ("bert-classifier", wordpiece, {"num_labels": 1, "type_vocab_size": 1})],
)
def test_scores(tmp_path: Path, name: str, tokenizer: Any, changes: dict[str, Any]) -> None:
    """The text is given as one: what llama.cpp's server makes of a pair is not in the library."""
    folder_of(tmp_path / "hf", name, tokenizer, **changes)
    llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    found = llmconv.embed(tmp_path / "m.gguf", [QUERY, *TEXTS], normalize=False, device="cpu")
    assert np.abs(found - theirs(tmp_path / "m.gguf", [QUERY, *TEXTS], 4)[:, :1]).max() < 5e-3


@pytest.mark.parametrize(
    ("called", "tokenizer", "changes"),
    [("scores", bytelevel, {"task": "SequenceClassification", "num_labels": 3}), ("Qwen3-Reranker-1B", yes_or_no, {})],
)
def test_scores_of_language_models(tmp_path: Path, called: str, tokenizer: Any, changes: dict[str, Any]) -> None:
    """Of Qwen3, the only one whose head llama.cpp loads: the softmax of what the labels get."""
    folder_of(tmp_path / called, "qwen3", tokenizer, **changes)
    llmconv.convert_file(tmp_path / called, tmp_path / "m.gguf")
    logits = llmconv.embed(tmp_path / "m.gguf", TEXTS, normalize=False, device="cpu").astype(np.float64)
    found = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    count = logits.shape[1]
    assert np.abs(found - theirs(tmp_path / "m.gguf", TEXTS, 4)[:, :count]).max() < 2e-3
