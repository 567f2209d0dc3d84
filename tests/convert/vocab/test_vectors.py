"""llama.cpp's own test vectors: from a GGUF's vocabulary alone, every text gives the ids it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmconv import formats
from llmconv.convert import vocab

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
NAMES = ["bert-bge", "deepseek-coder", "gpt-2", "llama-bpe", "llama-spm", "phi-3"]


def vectors(shared: Path, name: str) -> list[tuple[str, list[int]]]:
    path = shared / "vocabs" / f"ggml-vocab-{name}.gguf"
    texts = path.with_name(path.name + ".inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")[:-1]
    lines = path.with_name(path.name + ".out").read_text().splitlines()
    assert len(texts) == len(lines) == 46
    return [(text, [int(id) for id in line.split()]) for text, line in zip(texts, lines, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_every_vector(shared: Path, name: str) -> None:
    path = shared / "vocabs" / f"ggml-vocab-{name}.gguf"
    checkpoint = formats.open(path)
    found = vocab.of(checkpoint)
    assert found is not None
    tokenizer = vocab.tokenizer(found)
    cases = vectors(shared, name)
    assert [tokenizer.encode(text) for text, _ in cases] == [ids for _, ids in cases]
    for text, ids in cases:
        if name != "bert-bge":  # WordPiece forgets spaces and case
            assert tokenizer.decode(ids) == text
    # Nothing of the file's keys is lost or changed in passing through.
    keys = {key: value for key, value in checkpoint.metadata.items() if key.startswith("tokenizer.")}
    keys.pop("tokenizer.ggml.token_type_count", None)
    again = vocab.to_gguf(found)
    assert {k for k in again if k.startswith("tokenizer.")} >= set(keys)
    for key, value in keys.items():
        assert list(again[key]) == list(value) if hasattr(value, "__len__") else again[key] == value, key


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3"])
def test_the_rebuilt_library_tokenizer_agrees(shared: Path, name: str) -> None:
    tokenizer = vocab.to_tokenizers(vocab.load(shared / "vocabs" / f"ggml-vocab-{name}.gguf"))
    tokenizer.encode_special_tokens = True
    for text, ids in vectors(shared, name):
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text


@pytest.mark.parametrize("name", ["default-400.v1.json", "default-400.v2.msgpack", "multi-head-567.v2.json"])
def test_words_of_simple_llm(shared: Path, name: str) -> None:
    reference = json.loads((shared / "simple-llm" / (name.split(".")[0] + ".reference.json")).read_text())
    tokenizer = vocab.tokenizer(vocab.load(shared / "simple-llm" / name))
    assert reference["cases"]
    for case in reference["cases"]:
        assert tokenizer.encode(case["input"]) == case["tokens"]
