"""Vocabularies: tokenizer.json, sentencepiece, vocab.json + merges.txt, vocab.txt, word lists <-> GGUF's keys.

vocab = vocab.load("model.gguf")           # or of(checkpoint), from_files(...), from_gguf(...), from_words(...)
ids = vocab.tokenizer().encode("Hello")
vocab.to_gguf(), vocab.to_files()          # into either ecosystem
"""

from __future__ import annotations

from llmconv.convert.vocab.base import TokenType, Vocab, from_gguf
from llmconv.convert.vocab.load import load, of, read_texts
from llmconv.convert.vocab.sources import from_files
from llmconv.convert.vocab.words import from_words

__all__ = ["TokenType", "Vocab", "from_files", "from_gguf", "from_words", "load", "of", "read_texts"]
