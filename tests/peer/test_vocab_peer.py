"""The vocabularies that we write give llama.cpp the ids that they give us: every name of the pre-tokenizer table, and
every kind of tokenizer.

Needs llama-cpp-python; the GGUFs hold a vocabulary and no tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers_trained import CORPUS, gpt2, llama2, trained

from llmconv import formats
from llmconv.convert import vocab
from llmconv.convert.vocab import pre
from llmconv.convert.vocab.read import recognise
from llmconv.formats.checkpoint import Checkpoint

pytestmark = pytest.mark.peer
llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

# Where llama.cpp knowingly splits otherwise than the models' own tokenizer.json, which ours follows.
DIFFERENT = {
    "falcon": "leaves out a step that changes nothing with Falcon's own merges",
    "tiny_aya": "has no Unicode word boundaries",
    "cohere2moe": "has no Unicode word boundaries",
}
TEXT = "\n".join(CORPUS[:4]) + recognise.PROBE.replace("e\u0301", "é")  # llama.cpp doesn't compose characters


@llama_cpp.llama_log_callback
def silent(level: int, text: bytes, user: Any) -> None:
    pass


class Peer:
    """llama.cpp's tokenizer of a GGUF."""

    def __init__(self, path: Path) -> None:
        llama_cpp.llama_log_set(silent, None)
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model, "llama.cpp refuses the file"
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def encode(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 16))()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, len(ids), add_special, parse_special)
        return list(ids[:n])

    def __del__(self) -> None:
        if self.model:
            llama_cpp.llama_model_free(self.model)


def written(found: vocab.Vocab, path: Path) -> Peer:
    keys = {"general.architecture": "llama", "llama.block_count": np.uint32(1), **vocab.to_gguf(found)}
    formats.by_name("gguf").save(Checkpoint({}, keys), path)
    return Peer(path)


@pytest.mark.parametrize("name", [name for row in pre.TABLE for name in row.names if name not in DIFFERENT])
def test_pre_tokenizer(shared: Path, tmp_path: Path, name: str) -> None:
    found = vocab.from_files(gpt2(shared), {}, pre=name)
    assert found is not None
    found.files = {}
    peer, tokenizer = written(found, tmp_path / "vocab.gguf"), vocab.tokenizer(found)
    sample = (shared / "text" / "wikitext2-test.txt").read_text("utf-8")[:20000]
    for text in (TEXT, sample, "", " ", "\n\n 3333333"):
        assert peer.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "spm"])
def test_kind(tmp_path: Path, kind: str) -> None:
    found = vocab.from_files({"tokenizer.json": trained(kind).to_str().encode()}, {})
    assert found is not None
    peer, tokenizer = written(found, tmp_path / "vocab.gguf"), vocab.tokenizer(found)
    # BERT's normaliser, the library's: llama.cpp composes and classes some scripts' characters otherwise.
    plain = "\n".join(CORPUS[:3]) if kind == "wordpiece" else TEXT
    text = plain + " <s> [SEP] <|im_start|>user <extra_0>  unseen: ☃ ß "
    for parse_special in (False, True):
        assert peer.encode(text, False, parse_special) == tokenizer.encode(text, parse_special=parse_special)
    assert peer.encode("a man", True) == tokenizer.encode("a man", add_special=True)


def test_unigram(tmp_path: Path) -> None:
    import io

    sentencepiece = pytest.importorskip("sentencepiece", reason="the sentencepiece library is not installed")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=out, vocab_size=150, hard_vocab_limit=False, minloglevel=2
    )
    found = vocab.from_files({"tokenizer.model": out.getvalue()}, {})
    assert found is not None
    peer, tokenizer = written(found, tmp_path / "vocab.gguf"), vocab.tokenizer(found)
    for text in (TEXT, "  two  spaces ", "<unk> </s> ☃☃"):
        assert peer.encode(text) == tokenizer.encode(text)


def test_llama2(shared: Path, tmp_path: Path) -> None:
    found = vocab.from_files(llama2(shared), {"vocab_size": 32003})
    assert found is not None
    peer, tokenizer = written(found, tmp_path / "vocab.gguf"), vocab.tokenizer(found)
    sample = (shared / "text" / "tinyshakespeare.txt").read_text("utf-8")[:20000]
    for text in (TEXT, sample, "", "  x"):
        assert peer.encode(text) == tokenizer.encode(text)
    assert peer.encode("Hi <s> you", True, True) == tokenizer.encode("Hi <s> you", add_special=True, parse_special=True)
