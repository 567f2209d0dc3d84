"""sentencepiece's models: its own library's ids, from the model and from what is rebuilt of a GGUF."""

from __future__ import annotations

import io

import pytest
from tokenizers_trained import CORPUS, ours

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
