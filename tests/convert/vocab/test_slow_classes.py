"""Folders with vocab.json and merges.txt alone: the tokenizer's class says how text is split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers_trained import CORPUS, PROBE, trained

from llmconv.convert import vocab
from llmconv.convert.vocab.read.slow import _CLASSES
from llmconv.errors import Unsupported

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", "<mask>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "<|endoftext|>")
TEXT = "\n".join([*CORPUS[:4], PROBE.replace("<s>", "").replace("[SEP]", "").replace("<extra_0>", "")])


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(trained("bpe", special=SPECIAL).to_str())["model"]
    return document


def files(parts: dict[str, Any], **settings: Any) -> dict[str, Path | bytes]:
    merges = "#version: 0.2\n" + "".join(" ".join(merge) + "\n" for merge in parts["merges"])
    found: dict[str, Path | bytes] = {
        "vocab.json": json.dumps(parts["vocab"], ensure_ascii=False).encode(),
        "merges.txt": merges.encode(),
    }
    return found | ({"tokenizer_config.json": json.dumps(settings).encode()} if settings else {})


@pytest.mark.parametrize("name", [n for n in _CLASSES if n != "Whisper"])  # its prompt is of its own kind
def test_class(parts: dict[str, Any], tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    made = files(parts, tokenizer_class=f"{name}Tokenizer")
    if name == "Qwen3_5":
        merges = [tuple(merge) for merge in parts["merges"]]
        original = transformers.Qwen3_5Tokenizer(vocab=parts["vocab"], merges=merges)
    else:
        for file, data in made.items():
            assert isinstance(data, bytes)
            (tmp_path / file).write_bytes(data)
        original = getattr(transformers, f"{name}Tokenizer").from_pretrained(tmp_path)
    found = vocab.from_files(made, {})
    assert found is not None
    tokenizer = vocab.tokenizer(found)
    assert tokenizer.encode(TEXT) == original.encode(TEXT, add_special_tokens=False)
    assert tokenizer.encode("a man", add_special=True) == original.encode("a man")
    again = vocab.from_gguf(vocab.to_gguf(found))
    assert again is not None and vocab.to_files(again) == made
    assert vocab.tokenizer(again).encode(TEXT) == tokenizer.encode(TEXT)
    assert bool(found.notes) == (name == "Blenderbot")


@pytest.mark.parametrize(
    ("settings", "config", "pre"),
    [
        ({"tokenizer_class": "Qwen2TokenizerFast"}, {}, "qwen2"),
        ({}, {"model_type": "qwen2"}, "qwen2"),
        ({}, {"model_type": "qwen3_moe"}, "qwen2"),
        ({}, {"text_config": {"model_type": "qwen3_5_text"}}, "qwen35"),
        ({}, {"tokenizer_class": "CohereTokenizer", "model_type": "llama"}, "command-r"),
        ({}, {"model_type": "gpt_neox"}, "olmo"),
        ({}, {"model_type": "opt"}, "gpt-2"),
        ({}, {}, "gpt-2"),
    ],
)
def test_what_names_the_class(parts: dict[str, Any], settings: Any, config: Any, pre: str) -> None:
    found = vocab.from_files(files(parts, **settings), config)
    assert found is not None and found.pre == pre and found.notes == []


def test_a_class_that_nobody_knows_is_said(parts: dict[str, Any]) -> None:
    for settings, config in (({"tokenizer_class": "MyTokenizer"}, {}), ({}, {"model_type": "mine"})):
        found = vocab.from_files(files(parts, **settings), config)
        assert found is not None and found.pre == "gpt-2"
        assert len(found.notes) == 1 and "--pre NAME" in found.notes[0]
        told = vocab.from_files(files(parts, **settings), config, pre="qwen2")
        assert told is not None and told.pre == "qwen2" and told.notes == []


def test_a_space_before_the_text(parts: dict[str, Any]) -> None:
    found = vocab.from_files(files(parts, tokenizer_class="GPT2Tokenizer", add_prefix_space=True), {})
    plain = vocab.from_files(files(parts, tokenizer_class="GPT2Tokenizer"), {})
    assert found is not None and plain is not None and "llama.cpp" in found.notes[0]
    assert vocab.tokenizer(found).encode("a man") == vocab.tokenizer(plain).encode(" a man")


def test_merges_of_what_is_no_token_are_said(parts: dict[str, Any]) -> None:
    more = parts | {"merges": [*parts["merges"], ["zz", "yy"]]}
    found = vocab.from_files(files(more, tokenizer_class="GPT2Tokenizer"), {})
    assert found is not None and len(found.notes) == 1 and found.notes[0].startswith("merges.txt: 'zz yy' is of or to")
    plain = vocab.from_files(files(parts, tokenizer_class="GPT2Tokenizer"), {})
    assert plain is not None and plain.notes == []
    assert vocab.tokenizer(found).encode(TEXT) == vocab.tokenizer(plain).encode(TEXT)


@pytest.mark.parametrize("name", ["CLIP", "OpenAIGPT", "XLM"])
def test_merges_over_characters_are_refused(parts: dict[str, Any], name: str) -> None:
    with pytest.raises(Unsupported, match=f"{name}Tokenizer merges characters"):
        vocab.from_files(files(parts, tokenizer_class=f"{name}Tokenizer"), {})
