"""Every kind of tokenizer into GGUF's keys and back: nothing lost, the same ids everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers_trained import KINDS, PROBE, bert, gpt2, llama2, ours, trained

from llmconv.convert import vocab
from llmconv.convert.vocab.model import TokenType, Vocab
from llmconv.convert.vocab.side_files import CUT
from llmconv.errors import UsageError

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pretty", [True, False])
def test_tokenizer_json_there_and_back(kind: str, pretty: bool) -> None:
    original = trained(kind)
    files = {"tokenizer.json": original.to_str(pretty=pretty).encode(), "tokenizer_config.json": b'{"x": 1}\n'}
    found = vocab.from_files(files, {})
    assert found is not None and found.model == KINDS[kind]
    keys = vocab.to_gguf(found)
    again = vocab.from_gguf(keys)
    assert again is not None and vocab.to_files(again) == files
    # Lists of words are no kind that others write; a portable file of ours has the tokenizer.json whole.
    foreign = again if kind == "wordlevel" else vocab.from_gguf(ours(keys))
    assert foreign is not None
    for parse_special in (False, True):
        original.encode_special_tokens = not parse_special
        wanted = original.encode(PROBE, add_special_tokens=False).ids
        if kind == "unigram" and not parse_special:
            # The library's own lets a text spell <s> into a control token; ours never does.
            assert found.special.get("bos", 1) in wanted
            assert 1 not in vocab.tokenizer(found).encode(PROBE)
            continue
        for one in (found, again, foreign):
            assert vocab.tokenizer(one).encode(PROBE, parse_special=parse_special) == wanted
        library = vocab.to_tokenizers(foreign)
        library.encode_special_tokens = not parse_special
        assert library.encode(PROBE, add_special_tokens=False).ids == wanted
    original.encode_special_tokens = False
    assert vocab.tokenizer(foreign).encode("a man", add_special=True) == original.encode("a man").ids


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_decoding_gives_the_text_back(kind: str) -> None:
    found = vocab.from_files({"tokenizer.json": trained(kind).to_str().encode()}, {})
    assert found is not None
    tokenizer = vocab.tokenizer(found)
    # After a matched token sentencepiece's kind puts a space, as before the text; it can't be told from a real one.
    text = PROBE.replace("<extra_0>", "") if kind == "spm" else PROBE
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    seen = [stream.push(id) for id in ids] + [stream.flush()]
    assert "".join(seen) == text and "\ufffd" not in "".join(seen)
    assert len(tokenizer.pieces(ids)) == len(ids)
    assert tokenizer.decode([found.special["bos"]]) == "" and tokenizer.decode([found.special["bos"]], True) == "<s>"
    with pytest.raises(UsageError, match="not in the vocabulary"):
        tokenizer.decode([len(found)])


def test_a_cut_character_is_shown_when_the_text_ends() -> None:
    tokens = [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = vocab.tokenizer(Vocab("llama", tokens, np.full(256, TokenType.BYTE, np.int32)))
    stream = tokenizer.stream()
    pushed = [stream.push(b) for b in "é🙂".encode()[:-1]]
    assert pushed == ["", "é", "", "", ""] and stream.flush() == "\ufffd"


@pytest.mark.parametrize("source", [gpt2, llama2, bert])
def test_files_come_back_byte_for_byte(shared: Path, source: Callable[[Path], dict[str, Path | bytes]]) -> None:
    files = source(shared)
    found = vocab.from_files(files, {})
    assert found is not None
    keys = vocab.to_gguf(found)
    kept = {k: v for k, v in keys.items() if k.startswith("llmconv")}
    assert set(kept) == {CUT + name for name in files} and sum(map(len, kept.values())) < 1000
    again = vocab.from_gguf(keys)
    assert again is not None
    for name, data in files.items():
        assert vocab.to_files(again)[name] == (data.read_bytes() if isinstance(data, Path) else data), name
    foreign = vocab.from_gguf(ours(keys))
    assert foreign is not None and vocab.tokenizer(foreign).encode(PROBE) == vocab.tokenizer(found).encode(PROBE)


def texts(shared: Path) -> list[str]:
    return [path.read_text("utf-8") for path in sorted((shared / "text").glob("*.txt"))]


@pytest.mark.slow
def test_gpt2_ids_over_megabytes(shared: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    files = gpt2(shared)
    wanted = Tokenizer(models.BPE.from_file(*(str(files[n]) for n in ("vocab.json", "merges.txt"))))
    wanted.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = vocab.from_files(files, {})
    assert found is not None
    foreign = vocab.from_gguf(ours(vocab.to_gguf(found)))
    assert foreign is not None
    tokenizer = vocab.tokenizer(foreign)
    for text in texts(shared):
        ids = tokenizer.encode(text)
        assert ids == wanted.encode(text).ids and tokenizer.decode(ids) == text


@pytest.mark.slow
def test_llama2_ids_over_megabytes(shared: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the sentencepiece library is not installed")
    wanted = sentencepiece.SentencePieceProcessor(str(llama2(shared)["tokenizer.model"]))
    found = vocab.from_files(llama2(shared), {})
    assert found is not None
    foreign = vocab.from_gguf(ours(vocab.to_gguf(found)))
    assert foreign is not None
    rebuilt = sentencepiece.SentencePieceProcessor(model_proto=vocab.to_files(foreign)["tokenizer.model"])
    tokenizer, library = vocab.tokenizer(foreign), vocab.to_tokenizers(foreign)
    library.encode_special_tokens = True
    for text in texts(shared):
        ids = wanted.encode(text)
        assert tokenizer.encode(text) == ids and tokenizer.decode(ids) == text
        assert rebuilt.encode(text) == ids
        assert library.encode(text, add_special_tokens=False).ids == ids
