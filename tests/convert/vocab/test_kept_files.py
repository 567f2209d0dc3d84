"""What a GGUF keeps of a folder's tokenizer files: little, and enough to give every byte back."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from gemma_like import gemma_like
from tokenizers_trained import bert, gpt2, llama2, trained

from llmconv.convert import vocab
from llmconv.convert.vocab import proto
from llmconv.convert.vocab.differences import again, away, column, column_again
from llmconv.convert.vocab.model import HF_JSON
from llmconv.convert.vocab.side_files import CUT
from llmconv.convert.writing.portable import portable
from llmconv.errors import BadFile
from llmconv.formats.checkpoint import Checkpoint

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")


def gemma_folder(n: int) -> dict[str, bytes]:
    """The files of such a folder: merges as transformers makes them of the scores, thousands of unused tokens listed
    one by one, a sentencepiece model beside it."""
    slow = pytest.importorskip("transformers.convert_slow_tokenizer", reason="transformers is not installed")
    keys = gemma_like(n)
    unused = [f"<unused{i}>" for i in range(n // 40)]
    keys["tokenizer.ggml.tokens"] = [*keys["tokenizer.ggml.tokens"], *unused]
    for name, value in (("scores", np.float32(-1000)), ("token_type", np.int32(4))):
        array = keys[f"tokenizer.ggml.{name}"]
        keys[f"tokenizer.ggml.{name}"] = np.concatenate([array, np.full(len(unused), value)])
    found = vocab.from_gguf(keys)
    assert found is not None and found.scores is not None
    files = vocab.to_files(found)
    ids = {token: id for id, token in enumerate(found.tokens)}
    document = json.loads(files["tokenizer.json"])
    document["model"]["vocab"] = ids
    scores = dict(zip(found.tokens, found.scores.tolist(), strict=True))
    document["model"]["merges"] = [list(m) for m in slow.generate_merges(ids, scores)]
    settings = {"add_bos_token": True, "added_tokens_decoder": {str(a.pop("id")): a for a in document["added_tokens"]}}
    document = json.loads(files["tokenizer.json"]) | {"model": document["model"]}
    return files | {
        "tokenizer.json": json.dumps(document, indent=2, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n",
        "special_tokens_map.json": b'{\n  "bos_token": "<bos>"\n}',
    }


def kept(keys: dict[str, Any]) -> int:
    """Bytes of keys that are not GGUF's own."""
    own = [v.encode() if isinstance(v, str) else np.asarray(v) for k, v in keys.items() if k.startswith("llmconv")]
    return sum(np.asarray(v).nbytes for v in own) + len(keys.get(HF_JSON, ""))


def there_and_back(files: dict[str, Any]) -> int:
    """Check that files come back; the bytes that were kept for it."""
    found = vocab.from_files(files, {})
    assert found is not None
    keys = vocab.to_gguf(found)
    back = vocab.from_gguf(keys)
    assert back is not None
    for name, data in files.items():
        assert vocab.to_files(back)[name] == (data.read_bytes() if isinstance(data, Path) else data), name
    assert back.notes == []
    return kept(keys)


@pytest.mark.parametrize("n", [3000, pytest.param(262_144, marks=pytest.mark.slow)])
def test_gemma_s_folder_is_kept_in_little(n: int) -> None:
    files = gemma_folder(n)
    assert len(files["tokenizer.json"]) > 60 * n
    assert there_and_back(files) < 20_000


def of_many(kind: str, n: int) -> dict[str, Any]:
    """A trained tokenizer.json with many tokens more, as large ones are."""
    document = json.loads(trained(kind).to_str())
    vocab = document["model"]["vocab"]
    more = [f"w{hash_of(i)}x" for i in range(n)]
    if kind == "unigram":
        vocab += [[word, -7.5 - i / 1000] for i, word in enumerate(more)]
    else:
        vocab.update({word: len(vocab) + i for i, word in enumerate(more)})
    return dict(document)


def hash_of(number: int) -> str:
    """Digits that don't compress."""
    return hashlib.sha256(str(number).encode()).hexdigest()[:12]


CHARSMAP = np.random.default_rng(0).bytes(100_000)
"""As long as sentencepiece's, and as hard to pack."""


def strangely(kind: str, document: dict[str, Any]) -> dict[str, Any]:
    """The same with what GGUF has no key for, so that the vocabulary needs its tokenizer.json."""
    if kind == "bpe":
        split = {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated", "invert": False}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return document | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}}
    if kind == "unigram":
        table = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(CHARSMAP).decode()}
        return document | {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, table]}}
    return document  # WordLevel's, whose words are split at more than spaces


BUDGET = 1 << 16
"""Bytes that may be kept of any tokenizer."""


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("kind", ["bpe", "spm", "wordpiece", "unigram"])
def test_every_kind_is_kept_in_little(kind: str, indent: int | None) -> None:
    text = json.dumps(of_many(kind, 5_000), indent=indent, ensure_ascii=False)
    assert there_and_back({"tokenizer.json": text.encode()}) < BUDGET / 4


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordlevel"])
def test_so_is_one_that_gguf_s_keys_do_not_say(kind: str) -> None:
    """It is put together again for the tokenizer, and whole in the specification's key for a file without our keys."""
    data = orjson.dumps(strangely(kind, of_many(kind, 5_000)))
    assert there_and_back({"tokenizer.json": data}) < BUDGET / 8 < len(data) / 10
    found = vocab.from_files({"tokenizer.json": data}, {})
    assert found is not None and found.json == data.decode()
    keys = vocab.to_gguf(found)
    back = vocab.from_gguf(keys)
    assert HF_JSON not in keys and back is not None and back.json == found.json
    assert vocab.to_gguf(found, files=False)[HF_JSON] == found.json
    made = Checkpoint(metadata={"general.architecture": "llama", **keys}, dialect="gguf")
    published = portable(made).metadata
    assert published[HF_JSON] == found.json and not any(key.startswith("llmconv") for key in published)
    keys["llmconv.hf.cut.tokenizer.json"] = "{}"
    with pytest.raises(BadFile, match="damaged"):
        vocab.from_gguf(keys)


def test_a_map_of_characters_is_kept_once() -> None:
    """GGUF has a key for it, and both files of such a folder hold it."""
    document = of_many("unigram", 0)
    pieces = [(piece, score, 2 if piece == "<unk>" else 1) for piece, score in document["model"]["vocab"]]
    document["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(CHARSMAP).decode()}
    normalizer = proto._block(3, proto._block(2, CHARSMAP) + b"\x18\x01")
    model = proto.serialise(pieces, proto._block(2, b"\x18\x01") + normalizer)
    files = {"tokenizer.json": orjson.dumps(document), "spiece.model": model}
    assert there_and_back(files) < BUDGET / 16 < len(CHARSMAP)


def test_llama_s_ranks_are_kept_in_little() -> None:
    """tiktoken's file, which Llama 3 calls tokenizer.model: lines of base64 and a rank."""
    pieces = [*(bytes([b]) for b in range(256)), *(hash_of(i).encode() for i in range(3000)), b"\xff\xfe"]
    lines = [base64.b64encode(piece) + b" %d" % rank for rank, piece in enumerate(pieces)]
    assert there_and_back({"tokenizer.model": b"\n".join(lines) + b"\n"}) < 500


@pytest.mark.parametrize(
    "style",
    [{}, {"indent": 2}, {"indent": 4, "ensure_ascii": False}, {"separators": (",", ":"), "ensure_ascii": False}],
)
def test_mistral_s_tekken_too(style: dict[str, Any]) -> None:
    pieces = [*(bytes([b]) for b in range(256)), *(f" w{i}".encode() for i in range(10)), b"\xff\xfe", "ü".encode()]
    pieces += [f" w{i % 10}{i}".encode() for i in range(3000)]
    entries = [
        {"rank": i, "token_bytes": base64.b64encode(p).decode(), "token_str": None if not p.isascii() else p.decode()}
        for i, p in enumerate(pieces)
    ]
    config = {"pattern": "x", "default_vocab_size": len(pieces) + 14, "default_num_special_tokens": 24}
    data = json.dumps({"config": config, "vocab": entries}, **style).encode()  # the last ten are in no GGUF
    assert there_and_back({"tekken.json": data}) < 1000 < len(data) / 200


@pytest.mark.parametrize("source", [gpt2, llama2, bert])
def test_so_are_real_tokenizers(shared: Path, source: Callable[[Path], dict[str, Path | bytes]]) -> None:
    assert there_and_back(source(shared)) < 1500


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["model"]["vocab"].update({"zz": 3000}),  # a token beyond the others
        lambda d: d["model"].update(vocab=dict(sorted(d["model"]["vocab"].items()))),  # in another order
        lambda d: d["model"]["merges"].reverse(),
        lambda d: d["model"].update(merges=[" ".join(m) for m in d["model"]["merges"]]),
        lambda d: d["model"]["merges"].insert(7, ["no", "such"]),
        lambda d: d["model"].pop("merges"),
        lambda d: d.update(model="none"),
    ],
)
def test_no_guess_has_to_be_right(change: Callable[[Any], Any]) -> None:
    files = gemma_folder(700)
    document = json.loads(files["tokenizer.json"])
    change(document)
    found = vocab.from_files(files, {})
    assert found is not None
    found.files = {**files, "tokenizer.json": orjson.dumps(document)}
    keys = vocab.to_gguf(found)
    back = vocab.from_gguf(keys)
    assert back is not None and vocab.to_files(back) == found.files


def test_keys_that_were_changed_since_are_said() -> None:
    files = gemma_folder(700)
    found = vocab.from_files(files, {})
    assert found is not None
    keys = vocab.to_gguf(found)
    tokens = list(keys["tokenizer.ggml.tokens"])
    tokens[600] = "another"
    back = vocab.from_gguf({**keys, "tokenizer.ggml.tokens": tokens})
    assert back is not None and isinstance(keys[CUT + "tokenizer.json"], str | np.ndarray)
    assert "another" in json.loads(vocab.to_files(back)["tokenizer.json"])["model"]["vocab"]
    assert any("is not the one that was converted" in note for note in back.notes)


def test_lists_as_differences() -> None:
    rng = np.random.default_rng(0)
    guess = [f"t{i}" for i in range(200)]
    for _ in range(30):
        made = [guess[i] for i in rng.permutation(200)[: rng.integers(0, 200)]] + guess[20:150]
        for i in rng.integers(0, len(made), 9).tolist():
            made[i] = f"own{i}"
        left, places = away(made, guess)
        assert again(orjson.loads(orjson.dumps(left)), guess) == (made, places)
        assert all(place == -1 or guess[place] == item for place, item in zip(places, made, strict=True))
        other = [x if rng.random() < 0.9 else "else" for x in made]
        assert column_again(column(other, made), made) == other
    assert away(guess[:50], guess)[0] == {"runs": [[0, 50]]}
