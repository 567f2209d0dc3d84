"""Sizes, word lists, and special tokens from the side files."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers_trained import PROBE, ours, trained

from llmconv.convert import vocab
from llmconv.convert.vocab.model import TokenType
from llmconv.errors import BadFile

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")


def test_padding_to_the_embedding() -> None:
    data = trained("bpe").to_str().encode()
    exact = vocab.from_files({"tokenizer.json": data}, {})
    assert exact is not None
    n = len(exact)
    found = vocab.from_files({"tokenizer.json": data}, {"vocab_size": n + 3})
    assert found is not None and len(found) == n + 3
    assert list(found.tokens[n:]) == [f"[PAD{i}]" for i in range(n, n + 3)]
    assert found.types is not None and set(found.types[n:].tolist()) == {TokenType.UNUSED}
    again = vocab.from_gguf(vocab.to_gguf(found))
    assert again is not None and vocab.to_files(again)["tokenizer.json"] == data
    foreign = vocab.from_gguf(ours(vocab.to_gguf(found)))
    assert foreign is not None and vocab.tokenizer(foreign).encode(PROBE) == vocab.tokenizer(exact).encode(PROBE)
    with pytest.raises(BadFile, match=f"has {n} tokens, expected at most {n - 1}"):
        vocab.from_files({"tokenizer.json": data}, {"text_config": {"vocab_size": n - 1}})


def test_word_lists() -> None:
    found = vocab.from_words(["[PAD]", "[UNK]", "the", "cat", "naïve"])
    tokenizer = vocab.tokenizer(found)
    assert tokenizer.encode("The  CAT\n \tthe\ufeff Naïve [UNK] dog") == [2, 3, 2, 4, 1, 1]
    assert tokenizer.decode([2, 3]) == "the cat"
    foreign = vocab.from_gguf(vocab.to_gguf(found))
    assert foreign is not None
    assert vocab.to_tokenizers(foreign).encode("The  CAT\n \tthe Naïve dog").ids == [2, 3, 2, 4, 1]
    assert vocab.tokenizer(foreign).encode("the cat\nthe") == [
        2,
        1,
    ]  # one word with a newline in it, as the original has it
    with pytest.raises(BadFile, match="each word once"):
        vocab.from_words(["a", "b", "a"])


def test_characters() -> None:
    found = vocab.from_words(["a", "b", " "], unk=None, lowercase=False, characters=True)
    foreign = vocab.from_gguf(vocab.to_gguf(found))
    assert foreign is not None and vocab.tokenizer(foreign).encode("ab cA") == [0, 1, 2, 0][:3]
    assert vocab.tokenizer(foreign).decode([1, 2, 0]) == "b a"
    assert vocab.to_tokenizers(foreign).encode("ab a").ids == [0, 1, 2, 0]


def test_special_tokens_come_from_the_side_files() -> None:
    original = trained("bpe", special=("<s>", "<|im_end|>", "<pad>"))
    config = {
        "bos_token": {"content": "<s>"},
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "add_eos_token": True,
        "chat_template": [{"name": "default", "template": "D"}, {"name": "tools", "template": "T"}],
    }
    files = {"tokenizer.json": original.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}
    keys = vocab.to_gguf(vocab.from_files(files, {"eos_token_id": 0}))  # type: ignore[arg-type]
    assert keys["tokenizer.ggml.bos_token_id"] == 0 and keys["tokenizer.ggml.eos_token_id"] == 1
    assert keys["tokenizer.ggml.padding_token_id"] == 2
    assert keys["tokenizer.ggml.add_bos_token"] is True and keys["tokenizer.ggml.add_eos_token"] is True
    assert keys["tokenizer.chat_template"] == "D" and keys["tokenizer.chat_template.tools"] == "T"
    types = keys["tokenizer.ggml.token_type"]
    assert types[:3].tolist() == [TokenType.CONTROL] * 3 and types[-1] == TokenType.USER_DEFINED


@pytest.mark.parametrize(
    ("file", "settings", "named"),
    [
        ("tokenizer_config.json", {"eos_token": "<|gone|>"}, "eos_token '<|gone|>'"),
        ("special_tokens_map.json", {"eos_token": {"content": "<|gone|>"}}, "eos_token '<|gone|>'"),
        ("tokenizer_config.json", {"additional_special_tokens": ["<s>", "<tool>"]}, "special_tokens '<tool>'"),
        ("tokenizer_config.json", {"extra_special_tokens": {"image": "<img>"}}, "special_tokens '<img>'"),
        ("tokenizer_config.json", {"eos_token": "<s>", "additional_special_tokens": ["<s>"]}, None),
    ],
)
def test_a_named_token_that_is_not_there_is_noted(file: str, settings: dict[str, Any], named: str | None) -> None:
    files = {"tokenizer.json": trained("bpe", special=("<s>",)).to_str().encode(), file: json.dumps(settings).encode()}
    found = vocab.from_files(files, {})  # type: ignore[arg-type]
    assert found is not None
    assert [n for n in found.notes if "not in the vocabulary" in n and str(named) in n] == found.notes
    assert bool(found.notes) is (named is not None)


def test_words_of_bert_are_found_under_their_own_names() -> None:
    settings = {"cls_token": "[CLS]", "additional_special_tokens": ["the", "##e"]}
    files = {"vocab.txt": b"[UNK]\n[CLS]\nthe\n##e\n", "tokenizer_config.json": json.dumps(settings).encode()}
    found = vocab.from_files(files, {})  # type: ignore[arg-type]
    assert found is not None and found.notes == []


# (single, pair) -> what the reference converter writes of a folder with bos <s> and eos </s>.
AROUND: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bos": ("<s> $A", "<s> $A <s> $B", {"bos": 0, "eos": 2, "add_bos": True, "add_sep": False}),
    "eos": ("$A </s>", "$A </s> $B </s>", {"bos": 0, "eos": 2, "add_eos": True, "add_sep": False}),
    "both": (
        "<s> $A </s>",
        "<s> $A </s> </s> $B </s>",
        {"bos": 0, "eos": 2, "seperator": 2, "add_bos": True, "add_eos": True, "add_sep": True},
    ),
    "another end": ("$A <|end|>", "$A </s> $B", {"bos": 0, "eos": 1, "eot": 2, "add_eos": True, "add_sep": False}),
}


@pytest.mark.parametrize("case", AROUND)
def test_what_stands_around_texts(case: str) -> None:
    from tokenizers import processors

    single, pair, wanted = AROUND[case]
    original = trained("bpe", special=("<s>", "<|end|>", "</s>"))
    special = [(token, original.token_to_id(token)) for token in ("<s>", "<|end|>", "</s>")]
    original.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    settings = json.dumps({"bos_token": "<s>", "eos_token": "</s>"}).encode()
    found = vocab.from_files({"tokenizer.json": original.to_str().encode(), "tokenizer_config.json": settings}, {})
    assert found is not None
    keys = {key.removeprefix("tokenizer.ggml."): value for key, value in vocab.to_gguf(found).items()}
    said = {k.removesuffix("_token_id").removesuffix("_token"): v for k, v in keys.items() if "_token" in k}
    assert {k: v for k, v in said.items() if k != "token_type"} == wanted
    assert vocab.tokenizer(found).encode("a man", add_special=True) == original.encode("a man").ids


def test_keys_of_bert() -> None:
    config = {"type_vocab_size": 2, "vocab_size": 600}
    found = vocab.from_files({"tokenizer.json": trained("wordpiece").to_str().encode()}, config)
    assert found is not None
    keys = vocab.to_gguf(found)
    assert keys["tokenizer.ggml.token_type_count"] == 2 and keys["tokenizer.ggml.normalizer.lowercase"] is True
    assert keys["tokenizer.ggml.add_bos_token"] is True and keys["tokenizer.ggml.add_eos_token"] is True
