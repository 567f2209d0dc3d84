"""Tokens that are not to be chosen: those that no text has, and what the model's generation_config.json asks for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from llmconv.convert.tables import own_keys
from llmconv.convert.vocab import TokenType
from llmconv.errors import UsageError
from llmconv.runtime.model import Model

__all__ = ["Banned"]

_KEY = "tokenizer.ggml.suppress_tokens"
_UNMET = {
    "forced_bos_token_id": None,
    "forced_decoder_ids": None,
    "sequence_bias": None,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1,
    "num_beams": 1,
}
"""What else of a generation_config.json changes which token comes, and its value that changes nothing."""


class Banned:
    """What a model never says, what it does not begin with, what may not follow on what; and what must come last.

    `notes`: what its generation_config.json asks for and is not done here.
    """

    def __init__(self, model: Model):
        self._model, vocab = model, model.tokenizer.vocab
        size = model.decoder.vocab_size
        kinds = {TokenType.UNUSED, *(() if model.decoder.ends else (TokenType.UNKNOWN, TokenType.CONTROL))}
        ids = set(range(len(vocab.tokens), size))
        if vocab.types is not None:
            ids |= {i for i, kind in enumerate(vocab.types[:size]) if kind in kinds}
        asked = _asked(model)
        key = model.metadata.get(_KEY)
        ids |= set(_tokens(asked.get("suppress_tokens") if key is None else key, size))
        words = asked.get("bad_words_ids")
        ends = {i for i in (vocab.special.get("eos"),) if i is not None}
        words = [w for w in words if isinstance(w, list)] if isinstance(words, list) else []
        words = [w for w in words if w and len(_tokens(w, size)) == len(w) and not (len(w) == 1 and w[0] in ends)]
        self._words = [word for word in words if len(word) > 1]
        ids |= {word[0] for word in words if len(word) == 1}
        self._always, self._first = self._tensor(ids), set(_tokens(asked.get("begin_suppress_tokens"), size))
        self._ids = ids
        self.last = next(iter(_tokens([asked.get("forced_eos_token_id")], size)), None)
        unmet = [name for name, idle in _UNMET.items() if asked.get(name) not in (None, idle)]
        self.notes = [f"{model.where}: its generation_config.json asks for {', '.join(unmet)}, which is not done here"]
        self.notes = self.notes if unmet else []

    def at(self, past: Sequence[int], made: int) -> torch.Tensor | None:
        """What is not chosen behind the tokens `past`, of which the last `made` are new."""
        more = set() if made else self._first
        more = more | {w[-1] for w in self._words if list(past[-(len(w) - 1) :]) == w[:-1]}
        if len(self._ids | more) == self._model.decoder.vocab_size:
            raise UsageError(f"{self._model.where}: all its tokens are special ones, so there is none to choose")
        return self._tensor(self._ids | more) if more else self._always

    def _tensor(self, ids: set[int]) -> torch.Tensor | None:
        return torch.tensor(sorted(ids), device=self._model.device) if ids else None


def _asked(model: Model) -> dict[str, Any]:
    try:
        found = json.loads(model.metadata.get(own_keys.GENERATION_CONFIG) or "{}")
    except (ValueError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _tokens(found: Any, size: int) -> list[int]:
    """The tokens of a list, those that the model has."""
    some = found if isinstance(found, Iterable) and not isinstance(found, str | bytes | dict) else ()
    return [int(i) for i in some if not isinstance(i, bool | float) and hasattr(i, "__index__") and 0 <= int(i) < size]
