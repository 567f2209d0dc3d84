"""Texts, and pairs of them, as the rows of token ids that an embedding model or a reranker takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmconv.convert.tables import own_keys
from llmconv.convert.vocab.model import TEMPLATE, WORDPIECE
from llmconv.errors import Unsupported, UsageError
from llmconv.runtime.embedding.embed_files import Said
from llmconv.runtime.measure.chunks import tokenizer_of
from llmconv.runtime.model import Model

__all__ = ["Rows"]

Piece = tuple[int | str, int]
"""Of a pair's row: a token, or "A" or "B" for one of the texts; and its type."""


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
        """As the tokenizer's files put a pair; else [CLS] query [SEP] text [SEP], types of the second 1, RoBERTa's kind
        with two </s> between and no types, and of a language model two texts one behind the other."""
        template = self.model.metadata.get(f"{TEMPLATE}.rerank")
        if isinstance(template, str) and "{document}" in template:
            ids = self._asked(template, query, text)
            return ids, [0] * len(ids)
        pieces = self._stated() or self._usual()
        a, b = self._ids(query), self._ids(text)
        over = len(a) + len(b) + sum(isinstance(piece, int) for piece, _ in pieces) - self.most
        for _ in range(max(over, 0)):  # the longer one gives
            (a if len(a) > len(b) else b).pop()
        kinds = self.model.token_types
        typed = self.tokenizer.vocab.model == WORDPIECE and kinds is not None and kinds.shape[0] > 1
        ids, types = [], []
        for piece, type in pieces:
            found = [piece] if isinstance(piece, int) else a if piece == "A" else b
            ids += found
            types += [int(typed and type > 0)] * len(found)
        return ids, types

    def _usual(self) -> list[Piece]:
        before, after = self.tokenizer.around
        says_words = self.model.decoder.causal
        if not says_words and not (before and after):
            raise Unsupported(f"{self.model.where}: its vocabulary puts nothing around a text, so a pair has no form")
        between = [*after, *before] if says_words else after * 2 if self._doubled() else after
        return [
            *((id, 0) for id in (*before,)),
            ("A", 0),
            *((id, 0) for id in between),
            ("B", 1),
            *((id, 1) for id in after),
        ]

    def _stated(self) -> list[Piece]:
        """What tokenizer.json's template says of a pair; nothing where it has none."""
        cut, whole = (self.model.metadata.get(key + "tokenizer.json") for key in (own_keys.CUT_FILE, own_keys.FILE))
        try:
            said = json.loads(cut)["document"] if isinstance(cut, str) else json.loads(whole or "{}")
            found = said.get("post_processor") or {}
            steps = found["processors"] if found.get("type") == "Sequence" else [found]
            template = next((step for step in steps if step.get("type") == "TemplateProcessing"), None)
            return [] if template is None else list(_pieces(template))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return []

    def _asked(self, template: str, query: str, text: str) -> list[int]:
        """The question that a template makes of the pair; the text is cut where it is too long."""
        before, _, after = template.partition("{document}")

        def ids(text: str) -> list[int]:
            whole = before.replace("{query}", query) + text + after.replace("{query}", query)
            found: list[int] = self.tokenizer.encode(whole, parse_special=True)
            return found

        found = ids(text)
        if (over := len(found) - self.most) > 0:
            found = ids(self.tokenizer.decode(self._ids(text)[:-over]))
        return found[: self.most]

    def _doubled(self) -> bool:
        return self.model.decoder.arch == "bert" and self.tokenizer.vocab.model != WORDPIECE


def _pieces(template: Mapping[str, Any]) -> Iterator[Piece]:
    """The pieces of a pair, as the `tokenizers` library's TemplateProcessing has them."""
    for piece in template["pair"]:
        (kind, said) = next(iter(piece.items()))
        if kind == "Sequence":
            yield str(said["id"]), int(said["type_id"])
            continue
        for id in template["special_tokens"][said["id"]]["ids"]:
            yield int(id), int(said["type_id"])
