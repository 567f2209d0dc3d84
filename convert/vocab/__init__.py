"""Vocabularies: tokenizer.json, sentencepiece, vocab.json + merges.txt, vocab.txt, word lists <-> GGUF's keys.

found = vocab.load("model.gguf")             # or of(checkpoint), from_files(...), from_gguf(...), from_words(...)
ids = vocab.tokenizer(found).encode("Hello")
vocab.to_gguf(found), vocab.to_files(found)  # into either ecosystem
vocab.render_chat(found, [{"role": "user", "content": "Hello"}])

`model` is what a vocabulary is; `read/` makes one of a folder's files, `write/` the files of one, `keys` does both for
GGUF, and `side_files` keeps a folder's files in a GGUF.
"""

from __future__ import annotations

from llmconv.convert.vocab.chat import render as render_chat
from llmconv.convert.vocab.keys import from_gguf, to_gguf
from llmconv.convert.vocab.load import load, of
from llmconv.convert.vocab.model import TokenType, Vocab
from llmconv.convert.vocab.parsing import read_texts, read_tools
from llmconv.convert.vocab.read.files import from_files
from llmconv.convert.vocab.tokenize import Tokenizer, tokenizer
from llmconv.convert.vocab.words import from_words
from llmconv.convert.vocab.write.edited import agreeing
from llmconv.convert.vocab.write.files import to_files
from llmconv.convert.vocab.write.library import to_tokenizers

__all__ = [
    "TokenType",
    "Tokenizer",
    "Vocab",
    "agreeing",
    "from_files",
    "from_gguf",
    "from_words",
    "load",
    "of",
    "read_texts",
    "read_tools",
    "render_chat",
    "to_files",
    "to_gguf",
    "to_tokenizers",
    "tokenizer",
]
