"""Gemma's vocabularies: user-defined runs of spaces, tabs and newlines; and Gemma 4's merges over text."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from gemma_like import gemma_like
from tokenizers_trained import CORPUS, PROBE, ours, trained

from llmconv.convert import vocab
from llmconv.convert.vocab.model import TokenType

tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")

TEXTS = [
    "a",
    "\t\tif x:\n\t\t\t\treturn  1\n\n\n\nend",
    "  two   spaces    and more" + " " * 40 + "x" + "\t" * 40 + "\n" * 40,
    "Größe 你好 🚀 <unused5> <start_of_turn>user",
    *CORPUS[:4],
]


@pytest.mark.parametrize("runs_last", [True, False])
def test_runs_of_white_space_at_the_end(runs_last: bool) -> None:
    keys = gemma_like(1500, runs_last)
    found = vocab.from_gguf(keys)
    assert found is not None
    files = vocab.to_files(found)
    library = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    library.encode_special_tokens = True
    assert all(library.token_to_id(t) == i for i, t in enumerate(keys["tokenizer.ggml.tokens"]))
    mine = vocab.tokenizer(found)
    for text in TEXTS:
        assert library.encode(text, add_special_tokens=False).ids == mine.encode(text), text
        assert mine.decode(mine.encode(text)) == text
    assert found.notes == []


@pytest.mark.slow
def test_a_vocabulary_of_gemmas_size_within_seconds() -> None:
    found = vocab.from_gguf(gemma_like(262_144))
    assert found is not None and len(found) == 262_144
    started = time.process_time()
    files = vocab.to_files(found)
    assert time.process_time() - started < 30  # about five, alone on a processor
    library = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    assert library.get_vocab_size() == 262_144 and library.token_to_id("\t" * 31) == 262_143


def test_what_the_library_would_split_otherwise_is_said() -> None:
    """Equal scores: of two pieces the leftmost merges first, and a list of merges has an order."""
    tokens = ["<unk>", "a", "b", "c", "ab", "bc", *(f"<0x{b:02X}>" for b in range(256))]
    types = np.array([2, *[1] * 5, *[6] * 256], np.int32)
    scores = np.zeros(len(tokens), np.float32)
    special = {"unk": 0}
    found = vocab.Vocab("llama", tokens, types, scores, special=special, flags={"space_prefix": False})
    tied = vocab.Vocab("llama", tokens, types, scores.copy(), special=special, flags={"space_prefix": False})
    tied.tokens = [*tokens[:4], "bc", "ab", *tokens[6:]]  # the merge of "bc" comes first now
    vocab.to_files(found)
    assert found.notes == []
    files = vocab.to_files(tied)
    assert "tokenizer.model" in files and len(tied.notes) == 1 and "splits" in tied.notes[0]


@pytest.mark.parametrize("where", ["end", "middle"])
def test_a_token_twice_leaves_the_others_their_ids(where: str) -> None:
    found = vocab.from_files({"tokenizer.json": trained("bpe").to_str().encode()}, {})
    assert found is not None and found.types is not None
    tokens, types = list(found.tokens), found.types.tolist()
    at = len(tokens) if where == "end" else 300
    tokens[at:at] = ["<extra_1>", "<extra_1>", "<extra_2>"]
    types[at:at] = [TokenType.USER_DEFINED] * 3
    twice = vocab.Vocab("gpt2", tokens, np.array(types, np.int32), merges=found.merges, pre="gpt-2")
    library = tokenizers.Tokenizer.from_str(vocab.to_files(twice)["tokenizer.json"].decode())
    assert library.token_to_id("<extra_1>") == at and library.token_to_id("<extra_2>") == at + 2


def test_what_no_merge_can_use_is_left_out() -> None:
    """Byte-level BPE too: merges over added tokens at the end, and over what is no token."""
    tokens = ["a", "b", "ab", "Ġ", "Ġab"]
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1, 1, 4, 1, 4], np.int32),
        "tokenizer.ggml.merges": ["a b", "Ġ ab", "a c", "Ġ a"],
    }
    found = vocab.from_gguf(keys)
    assert found is not None
    library = tokenizers.Tokenizer.from_str(vocab.to_files(found)["tokenizer.json"].decode())
    assert [library.token_to_id(t) for t in tokens] == list(range(5))


# Gemma 4


def gemma4_json() -> dict[str, Any]:
    """A tokenizer.json as Gemma 4's: no pattern but newlines, no prefix, bytes for what has no token."""
    document: dict[str, Any] = json.loads(trained("spm").to_str())
    document["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    document["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": r"\n+"},
        "behavior": "Isolated",
        "invert": False,
    }
    document["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    document["model"]["byte_fallback"] = True
    return document


def test_gemma4_there_and_back() -> None:
    data = json.dumps(gemma4_json(), ensure_ascii=False).encode()
    original = tokenizers.Tokenizer.from_str(data.decode())
    original.encode_special_tokens = True
    found = vocab.from_files({"tokenizer.json": data}, {"model_type": "gemma4", "text_config": {}})
    assert found is not None and found.model == "gemma4"
    keys = vocab.to_gguf(found)
    assert keys["tokenizer.ggml.add_space_prefix"] is False and keys["tokenizer.ggml.add_bos_token"] is True
    assert set(keys["tokenizer.ggml.scores"].tolist()) == {-1000.0}
    again = vocab.from_gguf(keys)
    assert again is not None and vocab.to_files(again)["tokenizer.json"] == data
    foreign = vocab.from_gguf(ours(keys))
    assert foreign is not None
    library = tokenizers.Tokenizer.from_str(vocab.to_files(foreign)["tokenizer.json"].decode())
    library.encode_special_tokens = True
    reread = vocab.from_files(dict(vocab.to_files(foreign)), {})  # without a config.json
    assert reread is not None and reread.model == "gemma4"
    for text in (*TEXTS, PROBE):
        wanted = original.encode(text, add_special_tokens=False).ids
        assert vocab.tokenizer(foreign).encode(text) == wanted == vocab.tokenizer(found).encode(text), text
        assert library.encode(text, add_special_tokens=False).ids == wanted
        assert vocab.tokenizer(foreign).decode(wanted) == text.replace("▁", " ")


@pytest.mark.parametrize("pre", ["gemma4", "sarvam-moe"])
def test_merges_over_text_under_another_name(pre: str) -> None:
    found = vocab.from_files({"tokenizer.json": json.dumps(gemma4_json()).encode()}, {"model_type": "gemma4"})
    assert found is not None
    keys = ours(vocab.to_gguf(found)) | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre}
    other = vocab.from_gguf(keys)
    assert other is not None
    for text in TEXTS:
        assert vocab.tokenizer(other).encode(text) == vocab.tokenizer(found).encode(text)
        assert vocab.tokenizer(other).decode(vocab.tokenizer(other).encode(text)) == text
