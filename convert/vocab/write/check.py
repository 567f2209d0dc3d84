"""A tokenizer.json that was made here, read back by the `tokenizers` library before it goes out."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.vocab import tokenize, wordpiece
from llmconv.convert.vocab.model import CHARACTERS, SPACE, SPM, WORDPIECE, WORDS, TokenType, Vocab
from llmconv.convert.vocab.write.library import parse
from llmconv.convert.vocab.write.tokenizer_json import types_of
from llmconv.errors import Unsupported, cut, more

__all__ = ["check"]

_SAMPLE = (
    "Once upon a time, it's 12345.67! \n\n\n\tdef f(x):\n\t\t\t\treturn  x ** 2     # done\r\n"
    "Größe, naïve café — 你好，世界。 Привет мир! こんにちは 안녕하세요 🚀🙂 ½ e\u0301 <b> </b> "
)
_OF_EACH_TYPE = 300


def check(vocab: Vocab, files: Mapping[str, bytes]) -> list[str]:
    """Sentences about texts that the library splits otherwise than the vocabulary does.  None without the library.

    `Unsupported` when it refuses the tokenizer.json, or gives a token another id.
    """
    data = files.get("tokenizer.json")
    if data is None or importlib.util.find_spec("tokenizers") is None:
        return []
    library = parse(data)
    _check_ids(vocab, library)
    if vocab.model != SPM:
        return []  # there the library itself is what splits texts here
    mine = tokenize.tokenizer(vocab)
    library.encode_special_tokens = True
    wrong = [text for text in _sample(vocab) if library.encode(text, add_special_tokens=False).ids != mine.encode(text)]
    if not wrong:
        return []
    return [
        f"the tokenizer.json that is written splits {cut(wrong[0], 60)}{more(wrong)} otherwise than the GGUF's "
        "tokenizer, whose scores no list of merges can say exactly; tokenizer.model beside it is exact"
    ]


def _check_ids(vocab: Vocab, library: Any) -> None:
    tokens = wordpiece.plain(vocab) if vocab.model == WORDPIECE else vocab.tokens
    if vocab.model in (WORDS, CHARACTERS):
        return
    found = list(map(library.token_to_id, tokens))
    if found == list(range(len(tokens))):
        return
    seen: set[str] = set()
    for id, (token, type) in enumerate(zip(tokens, types_of(vocab), strict=True)):
        skip = not token or token in seen or type == TokenType.UNUSED
        seen.add(token)
        if not skip and found[id] != id:
            raise Unsupported(f"the tokenizers library gives token {cut(token)} the id {found[id]}, expected {id}")


def _sample(vocab: Vocab) -> list[str]:
    """Texts to try: usual ones, and tokens of each type among others."""
    texts, types = [_SAMPLE, *_SAMPLE.split(" ")], np.asarray(types_of(vocab))
    for wanted in (TokenType.USER_DEFINED, TokenType.NORMAL):
        ids = np.flatnonzero(types == wanted).tolist()
        step = max(1, len(ids) // _OF_EACH_TYPE)
        some = [vocab.tokens[id].replace(SPACE, " ") for id in itertools.islice(ids, 0, None, step)]
        texts += ["a" + text + "b" for text in some] + ["".join(some)]
    return texts
