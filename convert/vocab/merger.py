"""sentencepiece's BPE: merges by score, unknown characters as bytes, "▁" for a space.

The tokenizer here is llama.cpp's and sentencepiece's algorithm exactly, ties included: of all neighbouring symbols
that together are a piece, the pair with the best score merges first, the leftmost of equals.
"""

from __future__ import annotations

import heapq

import numpy as np

from llmconv.convert.vocab.model import SPACE, TokenType, Vocab

__all__ = ["ScoreMerger"]

_CACHE = 1 << 16  # words remembered


class ScoreMerger:
    """Text (spaces as "▁") -> ids, by scores.

    Where no piece goes on after a space that follows something else, words are independent and are remembered.
    """

    def __init__(self, vocab: Vocab) -> None:
        types = vocab.types if vocab.types is not None else np.full(len(vocab), TokenType.NORMAL, np.int32)
        scores = vocab.scores if vocab.scores is not None else np.zeros(len(vocab), np.float32)
        # Control tokens can't come out of text, or a text could smuggle them in.
        shut = np.isin(types, (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE)).tolist()
        self.ids = {token: i for i, (token, no) in enumerate(zip(vocab.tokens, shut, strict=True)) if not no}
        self.scores: list[float] = scores.tolist()
        every = {token: i for i, token in enumerate(vocab.tokens)}
        self.bytes: list[int | None] = [every.get(f"<0x{b:02X}>") for b in range(256)]
        self.unk = vocab.special.get("unk", 0)
        # A piece such as "a▁b" would make words depend on each other.
        plain = types == TokenType.NORMAL
        self.by_word = not any(
            SPACE in token.lstrip(SPACE) for token, normal in zip(vocab.tokens, plain.tolist(), strict=True) if normal
        )
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        if not self.by_word:
            return self._merge(text)
        out: list[int] = []
        cache, start, n = self.cache, 0, len(text)
        while start < n:
            # A word is a run of spaces with the non-spaces behind it.
            stop = start
            while stop < n and text[stop] == SPACE:
                stop += 1
            stop = end if (end := text.find(SPACE, stop)) >= 0 else n
            word = text[start:stop]
            ids = cache.get(word)
            if ids is None:
                ids = self._merge(word)
                if len(cache) >= _CACHE:
                    cache.clear()
                if len(word) < 64:
                    cache[word] = ids
            out += ids
            start = stop
        return out

    def _merge(self, text: str) -> list[int]:
        symbols: list[str] = list(text)
        n = len(symbols)
        before, after = list(range(-1, n - 1)), [*range(1, n), -1]
        queue: list[tuple[float, int, int, str]] = []
        ids, scores = self.ids, self.scores

        def consider(left: int, right: int) -> None:
            piece = symbols[left] + symbols[right]
            id = ids.get(piece)
            if id is not None:
                heapq.heappush(queue, (-scores[id], left, right, piece))

        for i in range(n - 1):
            consider(i, i + 1)
        while queue:
            _, left, right, piece = heapq.heappop(queue)
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != piece:
                continue  # one of the two has merged since
            symbols[left], symbols[right] = piece, ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            if before[left] >= 0:
                consider(before[left], left)
            if after[left] >= 0:
                consider(left, after[left])
        out: list[int] = []
        i = 0
        while i >= 0 and n:
            id = ids.get(symbols[i])
            if id is not None:
                out.append(id)
            elif (found := self._bytes(symbols[i])) is not None:
                out += found
            elif not out or out[-1] != self.unk:  # one for a whole run
                out.append(self.unk)
            i = after[i]
        return out

    def _bytes(self, symbol: str) -> list[int] | None:
        """A character without a piece as byte tokens, None where the vocabulary lacks one of them."""
        found = [self.bytes[b] for b in symbol.encode("utf-8", "surrogatepass")]
        return [id for id in found if id is not None] if None not in found else None
