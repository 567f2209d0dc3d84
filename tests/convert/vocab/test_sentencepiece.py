"""sentencepiece's models: its own library's ids, from the model and from what is rebuilt of a GGUF."""

from __future__ import annotations

import io
import json

import pytest
from tokenizers_trained import CORPUS, ours, trained

from llmconv.convert import vocab

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")


SENTENCEPIECE = {
    "unigram": {"model_type": "unigram"},
    "unigram with bytes": {"model_type": "unigram", "byte_fallback": True},
    "bpe": {"model_type": "bpe"},
    "bpe as gemma's": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<start>", "▁▁"],
    },
    "bpe as llama's": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["▁▁"],
    },
}


@pytest.mark.parametrize("case", SENTENCEPIECE)
def test_sentencepiece_models(case: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the sentencepiece library is not installed")

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(CORPUS[:4]).split("\n") * 4),
        model_writer=out,
        vocab_size=256 * ("byte_fallback" in SENTENCEPIECE[case]) + 150,
        hard_vocab_limit=False,
        minloglevel=2,
        **SENTENCEPIECE[case],
    )
    wanted = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    found = vocab.from_files({"tokenizer.model": out.getvalue()}, {})
    assert found is not None
    keys = vocab.to_gguf(found)
    again = vocab.from_gguf(keys)
    assert again is not None and vocab.to_files(again) == {"tokenizer.model": out.getvalue()}
    foreign = vocab.from_gguf(ours(keys))
    assert foreign is not None
    for text in ("", " two  spaces   and\nmore ", "<s> </s> ☃☃", *CORPUS[:4]):
        assert vocab.tokenizer(foreign).encode(text) == wanted.encode(text), text
    if found.model == "llama":
        rebuilt = sentencepiece.SentencePieceProcessor(model_proto=vocab.to_files(foreign)["tokenizer.model"])
        assert [rebuilt.encode(t) for t in CORPUS[:4]] == [wanted.encode(t) for t in CORPUS[:4]]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_dummy_prefix_comes_once(kind: str) -> None:
    """sentencepiece puts it before the text, and none behind a user-defined symbol, as llama.cpp would."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the sentencepiece library is not installed")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(CORPUS[:4]).split("\n") * 4),
        model_writer=out,
        vocab_size=420 if kind == "bpe" else 150,
        hard_vocab_limit=False,
        minloglevel=2,
        model_type=kind,
        byte_fallback=kind == "bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<start>", "<end>"],
    )
    wanted = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    found = vocab.from_files({"tokenizer.model": out.getvalue()}, {})
    assert found is not None and "user-defined symbols" in found.notes[0]
    again = vocab.from_gguf(vocab.to_gguf(found))
    assert again is not None
    for text in (
        "a man<start>in want",
        "man <start> <end>of a",
        "a<end><end>b",
        "x<start>",
        " <start>y",
        "<start>",
        "<start>a <end>",
        "",
        " ",
    ):
        ids = wanted.encode(text)
        assert vocab.tokenizer(found).encode(text) == ids == vocab.tokenizer(again).encode(text), text
        assert vocab.tokenizer(found).decode(ids) == text
    library = vocab.to_tokenizers(again)
    library.encode_special_tokens = True
    assert library.encode("a man<start>in want", add_special_tokens=False).ids == wanted.encode("a man<start>in want")


def test_a_prefix_at_the_first_piece_only() -> None:
    """Metaspace's "first": before a text that begins with a piece, not behind an added token."""
    from tokenizers import Tokenizer

    document = json.loads(trained("spm").to_str())
    document["normalizer"] = None
    document["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    document["model"]["byte_fallback"] = True
    original = Tokenizer.from_str(json.dumps(document))
    original.encode_special_tokens = True
    found = vocab.from_files({"tokenizer.json": json.dumps(document).encode()}, {})
    assert found is not None and found.model == "llama" and found.flag("space_prefix_first")
    keys = {k: v for k, v in vocab.to_gguf(found).items() if not k.startswith("llmconv.hf")}
    again = vocab.from_gguf(keys)
    assert again is not None
    for text in ("a man", "a<extra_0>man", "<extra_0>man of", " <extra_0> a", "<extra_0>", ""):
        ids = original.encode(text, add_special_tokens=False).ids
        assert vocab.tokenizer(again).encode(text) == ids, text
        assert vocab.to_tokenizers(again).encode(text, add_special_tokens=False).ids == ids, text
