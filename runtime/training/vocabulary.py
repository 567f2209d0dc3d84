"""A vocabulary made from the training text, or taken from a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llmconv.convert import vocab
from llmconv.convert.vocab import Vocab
from llmconv.convert.vocab.words import split
from llmconv.errors import MissingExtra, UsageError

__all__ = ["KINDS", "make_vocab"]

KINDS = ("word", "char", "characters", "documents", "sentences", "bpe", "wordpiece")
SPECIAL = ["[PAD]", "[UNK]", "[EOS]"]
"""The special words of the legacy program, in its order."""


def make_vocab(kind: str, size: int, texts: Iterable[str]) -> Vocab:
    """A vocabulary of at most `size` tokens over `texts`, or the one of the file that `kind` names.

    word: lower-cased words in order of first use, as the legacy program had them; the most frequent when there are
    too many.  characters: each is a token, as small programs list them; documents: the same, and [BOS] around each
    text, as microgpt has it; sentences: with [BOS] first in the list, as recurrentjs has it.  Through `tokenizers`:
    char, the bytes that occur; bpe, byte-level BPE; wordpiece, as BERT's.
    """
    if kind not in KINDS:
        path = Path(kind)
        if not path.exists():
            raise UsageError(f"tokenizer {kind!r} is neither one of {', '.join(KINDS)} nor a file")
        return vocab.load(path)
    if kind == "word":
        return _words(size, texts)
    if kind in ("characters", "documents", "sentences"):
        return _characters(size, texts, kind)
    try:
        import tokenizers
    except ImportError:
        raise MissingExtra("training a tokenizer", "tokenizers", "tokenizers") from None
    if kind == "wordpiece":
        made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
        made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        made.decoder = tokenizers.decoders.WordPiece()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer: Any = tokenizers.trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=special, show_progress=False
        )
    else:
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        # A character-level vocabulary is byte-level BPE without merges, over the bytes that occur.
        if kind == "char":
            alphabet, texts = _used_bytes(texts, alphabet)
            size = len(alphabet) + 1
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=sorted(alphabet),
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
    made.train_from_iterator(texts, trainer)
    config = b'{"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}' if kind != "wordpiece" else b"{}"
    files = {"tokenizer.json": made.to_str().encode(), "tokenizer_config.json": config}
    found = vocab.from_files(files, {})
    assert found is not None
    return found


def _used_bytes(texts: Iterable[str], alphabet: list[str]) -> tuple[list[str], Iterator[str]]:
    """The byte-level letters of the bytes that occur, and nothing left to learn merges from."""
    seen: set[int] = set()
    for text in texts:
        seen.update(text.encode())
    # `tokenizers` maps printable Latin-1 bytes to themselves and the others, in order, to U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in printable]
    letter = {b: chr(b) if b in printable else chr(0x100 + others.index(b)) for b in range(256)}
    return [letter[b] for b in seen if letter[b] in alphabet], iter(())


def _characters(size: int, texts: Iterable[str], kind: str) -> Vocab:
    ends = kind != "characters"
    counts = Counter(character for text in texts for character in text)
    kept = sorted(character for character, _ in counts.most_common(max(0, size - ends)))
    listed = {"characters": kept, "documents": [*kept, "[BOS]"], "sentences": ["[BOS]", *kept]}[kind]
    found = vocab.from_words(listed, unk=None, lowercase=False, characters=True)
    if ends:
        found.special["eos"], found.flags["bos"] = found.special["bos"], True
    return found


def _words(size: int, texts: Iterable[str]) -> Vocab:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word in split(" ".join(text.split())) if word.upper() not in SPECIAL)
    room = max(0, size - len(SPECIAL))
    kept = {word for word, _ in counts.most_common(room)}
    return vocab.from_words([*SPECIAL, *(word for word in counts if word in kept)])
