"""Texts, and pairs of them, as the rows of token ids that an embedding model or a reranker takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmconv.convert.vocab.model import WORDPIECE
from llmconv.errors import Unsupported, UsageError
from llmconv.runtime.embedding.embed_files import Said
from llmconv.runtime.measure.chunks import tokenizer_of
from llmconv.runtime.model import Model

__all__ = ["Rows"]


class Rows:
    """Texts as rows of token ids, and of their types."""

    def __init__(self, model: Model, said: Said):
        self.model, self.tokenizer, self.said = model, tokenizer_of(model), said
        limits = (said.most_tokens, model.most_tokens, model.context_length)
        self.most = min(n for n in (*limits, 1 << 20) if n)

    def rows(self, texts: Sequence[Any], prompt: str) -> list[tuple[list[int], list[int]]]:
        pairs = [not isinstance(text, str) for text in texts]
        if any(pairs) and self.model.cls is None:
            raise UsageError(f"{self.model.where}: is no reranker, so it takes texts, not pairs")
        if any(pairs) and not all(isinstance(t, tuple | list) and len(t) == 2 for t in texts):
            raise UsageError("texts must all be texts, or all be pairs (query, text)")
        rows = [self._one(prompt + text) if isinstance(text, str) else self._pair(*text) for text in texts]
        for ids, _ in rows:
            if not ids:
                raise UsageError(f"a text holds nothing that the vocabulary of {self.model.where} knows")
            if max(ids) >= self.model.decoder.vocab_size:
                raise UsageError(f"{self.model.where}: its vocabulary has token {max(ids)}, past the embedding's rows")
        return rows

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text.lower() if self.said.lower_case else text)
        return ids

    def _one(self, text: str) -> tuple[list[int], list[int]]:
        before, after = self.tokenizer.around
        ids = [*before, *self._ids(text)[: max(self.most - len(before) - len(after), 0)], *after]
        return ids, [0] * len(ids)

    def _pair(self, query: str, text: str) -> tuple[list[int], list[int]]:
        """[CLS] query [SEP] text [SEP], types of the second 1; RoBERTa's kind has two </s> between, and no types."""
        before, after = self.tokenizer.around
        if not before or not after:
            raise Unsupported(f"{self.model.where}: its vocabulary puts nothing around a text, so a pair has no form")
        between = after * 2 if self._doubled() else after
        a, b = self._ids(query), self._ids(text)
        over = len(a) + len(b) + len(before) + len(between) + len(after) - self.most
        for _ in range(max(over, 0)):  # the longer one gives
            (a if len(a) > len(b) else b).pop()
        first, second = [*before, *a, *between], [*b, *after]
        types = self.model.token_types
        typed = self.tokenizer.vocab.model == WORDPIECE and types is not None and types.shape[0] > 1
        return first + second, [0] * len(first) + [int(typed)] * len(second)

    def _doubled(self) -> bool:
        return self.model.decoder.arch == "bert" and self.tokenizer.vocab.model != WORDPIECE
