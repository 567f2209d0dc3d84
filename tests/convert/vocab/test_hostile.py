"""Broken vocabularies: one sentence or a working tokenizer, never a traceback."""

from __future__ import annotations

import contextlib
import json
import lzma
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from good_models import tokenizer_with
from tokenizers_trained import KINDS, trained

from llmconv.convert import vocab
from llmconv.convert.vocab import proto
from llmconv.convert.vocab.model import Vocab
from llmconv.convert.vocab.side_files import CUT
from llmconv.errors import BadFile, LlmconvError

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")


EMPTY_BPE = b'{"model":{"type":"BPE","vocab":{},"merges":[]}'
GOOD = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>"],
    "tokenizer.ggml.token_type": np.array([1, 1, 1, 3], np.int32),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": np.uint32(3),
}


def test_the_control_is_good() -> None:
    found = vocab.from_gguf(GOOD)
    assert found is not None and vocab.tokenizer(found).encode("ab") == [2]
    assert vocab.from_gguf({"general.architecture": "llama"}) is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", 3, "name of a tokenizer"),
        ("tokenizer.ggml.tokens", "abc", "array of strings"),
        ("tokenizer.ggml.tokens", [1, 2], "expected strings"),
        ("tokenizer.ggml.token_type", np.array([1], np.int32), "has 1 entries, expected 4"),
        ("tokenizer.ggml.scores", np.zeros((2, 2), np.float32), "array of numbers"),
        ("tokenizer.ggml.scores", ["a"] * 4, "array of numbers"),
        ("tokenizer.ggml.merges", {"a": 1}, "array of strings"),
        (CUT + "tokenizer.json", "{", "damaged"),
        (CUT + "merges.txt", '{"head":3,"end":""}', "damaged"),
        (CUT + "vocab.json", '{"runs":[[0,2]],"ids":{},"style":"no","end":""}', "damaged"),
        (CUT + "vocab.json", '{"runs":[[0,-2]],"ids":{"at":[9],"is":[1]},"style":"compact","end":""}', "damaged"),
        (CUT + "vocab.json", '{"runs":[[-1,999999999999]],"ids":{},"style":"compact","end":""}', "damaged"),
        (CUT + "vocab.txt", '{"runs":[["a",{}]],"head":"","end":""}', "damaged"),
        (CUT + "tokenizer.json", np.arange(9, dtype=np.uint8), "can't be unpacked"),
        (CUT + "tokenizer_config.json", np.frombuffer(lzma.compress(b"=abc")[:-9], np.uint8), "can't be unpacked"),
        (CUT + "tokenizer_config.json", np.frombuffer(lzma.compress(b"{}"), np.uint8), "damaged"),
    ],
)
def test_contradicting_metadata_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(BadFile, match=message):
        found = vocab.from_gguf({**GOOD, key: value})
        vocab.to_files(found)  # type: ignore[arg-type]  # what is kept is put together when it is asked for


def test_a_file_kept_in_little_that_would_fill_the_memory() -> None:
    bomb = np.frombuffer(lzma.compress(bytes(300_000_000), preset=0), np.uint8)
    with pytest.raises(BadFile, match="unpacked"):
        vocab.to_files(vocab.from_gguf({**GOOD, CUT + "tokenizer.json": bomb}))  # type: ignore[arg-type]


def test_ids_outside_are_no_ids_and_foreign_names_no_files() -> None:
    found = vocab.from_gguf({**GOOD, "tokenizer.ggml.eos_token_id": np.uint32(99), "llmconv.hf.file.../x": "boo"})
    assert found is not None and found.eos is None and found.files == {}
    assert vocab.to_gguf(found)["tokenizer.ggml.eos_token_id"] == 99  # kept all the same


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": b"{"}, "not valid JSON"),
        ({"tokenizer.json": b"[]"}, "expected a JSON object"),
        ({"tokenizer.json": b"{}"}, "model: expected an object"),
        ({"tokenizer.json": b'{"model":{"type":"Magic","vocab":{}}}'}, "'Magic', expected one of"),
        ({"tokenizer.json": b'{"model":{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]}}'}, "same id 0"),
        ({"tokenizer.json": b'{"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}'}, "id -1"),
        ({"tokenizer.json": b'{"model":{"type":"BPE","vocab":{"a":16000000},"merges":[]}}'}, "ids go up to"),
        ({"tokenizer.json": b'{"model":{"type":"BPE","vocab":{"a":0},"merges":[3]}}'}, r"merges\[0\]"),
        ({"tokenizer.json": b'{"model":{"type":"Unigram","vocab":[["a"]]}}'}, r"vocab\[0\]"),
        (
            {"tokenizer.json": EMPTY_BPE + b',"added_tokens":[{"id":9999999,"content":"x"}]}'},
            "expected one near",
        ),
        (
            {"tokenizer.json": EMPTY_BPE + b',"added_tokens":[{"id":"x"}]}'},
            "added token",
        ),
        ({"vocab.json": b'{"a":0}', "merges.txt": b"a b c\n"}, "line 1"),
        ({"vocab.json": b'{"a":0}', "merges.txt": b"\xff\n"}, "UTF-8"),
        ({"vocab.txt": b""}, "is empty"),
        ({"vocab.txt": b"\xff"}, "UTF-8"),
        ({"tokenizer.model": b""}, "no pieces"),
        ({"tokenizer.model": b"\x0a\xff\xff\xff\xff\x7f"}, "wants"),
        ({"tokenizer.model": b"\x0a" + b"\xff" * 20}, "cut off or too long"),
    ],
)
def test_broken_files_are_one_sentence(files: dict[str, Path | bytes], message: str) -> None:
    with pytest.raises(BadFile, match=message):
        vocab.from_files(files, {})


def small_model() -> bytes:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("▁a", -1.0, 1), ("b", -2.5, 1), ("<0x0A>", 0.0, 6)]
    rest = proto.spec(
        (0, 1, -1, -1), byte_fallback=True, add_dummy_prefix=True, remove_extra_whitespaces=False, charsmap=b""
    )
    return proto.serialise(pieces, rest)


def everything(found: Vocab | None) -> None:
    """All that can be asked of a vocabulary."""
    if found is None:
        return
    vocab.from_gguf(vocab.to_gguf(found))
    vocab.to_files(found)
    tokenizer = vocab.tokenizer(found)
    ids = tokenizer.encode("a b <s> \n é", add_special=True, parse_special=True)
    tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("spec", "named"),
    [(b"\x12\x03\xc0\x01\x01", "treat_whitespace_as_suffix"), (b"\x1a\x02\x28\x00", "escape_whitespaces")],
)
def test_spaces_elsewhere_are_said(spec: bytes, named: str) -> None:
    found = vocab.from_files({"tokenizer.model": small_model() + spec}, {})
    assert found is not None and [named in note for note in found.notes] == [True]


@pytest.mark.parametrize("depth", [50, 400, 490, 600])
def test_deep_nesting_is_no_crash(depth: int) -> None:
    steps = b'{"pretokenizers":[' * depth + b"]}" * depth
    with pytest.raises(LlmconvError):
        everything(vocab.from_files({"tokenizer.json": EMPTY_BPE + b',"pre_tokenizer":' + steps + b"}"}, {}))
    with pytest.raises(LlmconvError):
        steps = b'{"processors":[' * depth + b"]}" * depth
        everything(vocab.from_files({"tokenizer.json": EMPTY_BPE + b',"post_processor":' + steps + b"}"}, {}))


def test_every_byte_of_a_model_flipped() -> None:
    data = small_model()
    everything(vocab.from_files({"tokenizer.model": data}, {}))
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            broken = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
            with contextlib.suppress(LlmconvError):
                everything(vocab.from_files({"tokenizer.model": broken}, {}))


@pytest.mark.parametrize("kind", KINDS)
def test_any_value_of_a_tokenizer_json_replaced(kind: str) -> None:
    random_number = random.Random(kind)
    document = json.loads(trained(kind).to_str())
    model = document["model"]
    if isinstance(model["vocab"], dict):  # small, so that many can be tried
        model["vocab"] = {t: i for t, i in model["vocab"].items() if i < 40}
    else:
        model["vocab"] = model["vocab"][:40]
    model["merges"] = model.get("merges", [])[:5]
    values = [None, True, -1, 0, 10**9, 0.5, "", "x", [], {}, [[]], ["x"], {"type": "x"}, {"id": 3}]

    def places(value: Any) -> list[tuple[Any, Any]]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [p for key, v in inner for p in [(value, key), *places(v)]]

    found = places(document)
    for container, key in random_number.sample(found, 60):
        old = container[key]
        container[key] = random_number.choice(values)
        with contextlib.suppress(LlmconvError):
            everything(vocab.from_files({"tokenizer.json": json.dumps(document).encode()}, {}))
        container[key] = old


def test_converting_needs_no_library() -> None:
    """Files into GGUF keys and back, and sentencepiece's kind and words even run, without tokenizers or jinja2."""
    code = f"""
import sys
sys.modules["tokenizers"] = sys.modules["jinja2"] = sys.modules["sentencepiece"] = None
import llmconv.errors
from llmconv.convert import vocab
found = vocab.from_files({{"tokenizer.model": {small_model()!r}}}, {{}})
assert vocab.tokenizer(found).encode(" ab") and vocab.to_files(vocab.from_gguf(vocab.to_gguf(found)))
assert vocab.tokenizer(vocab.from_words(["a", "[UNK]"])).encode("a b") == [0, 1]
bpe = vocab.from_files({{"tokenizer.json": {trained("bpe").to_str().encode()!r}}}, {{}})
assert bpe.pre == "gpt-2" and vocab.to_gguf(bpe)
chatty = vocab.Vocab("words", ["a"], chat_template="x")
for need in (lambda: vocab.tokenizer(bpe), lambda: vocab.render_chat(chatty, [{{}}])):
    try:
        need()
    except llmconv.errors.MissingExtra as error:
        assert isinstance(error, ImportError) and f"pip install {{error.module}}" in str(error)
    else:
        raise SystemExit("nothing said")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("prefix", ["##", "\u2581\u2581\u2581", "a" * 5000])
def test_what_the_library_would_not_survive(prefix: str, capfd: pytest.CaptureFixture[str]) -> None:
    """It cuts that prefix off every merge unseen: past the end, a panic; within a character, an abort."""
    words = tokenizer_with(continuing_subword_prefix=prefix)
    found = vocab.from_files({"tokenizer.json": json.dumps(words).encode()})
    assert found is not None
    with pytest.raises(BadFile, match=r"merges\[0\]: its second part does not begin with"):
        vocab.tokenizer(found).encode("the")
    assert capfd.readouterr().err == ""
