"""A model's tokenizer for programs: text to ids, ids to text, a conversation to a prompt."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmconv.convert import vocab
from llmconv.convert.vocab.chat import render
from llmconv.errors import UsageError, about, kind_of
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["ModelTokenizer", "tokenizer"]


class ModelTokenizer:
    """What a model reads and writes: `encode`, `decode`, `pieces`, `chat`; its length is the number of tokens."""

    def __init__(self, found: vocab.Vocab):
        self._vocab, self._tokenizer = found, vocab.tokenizer(found)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __repr__(self) -> str:
        return f"<ModelTokenizer {self._vocab.model}, {len(self):,} tokens>"

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """The ids of a text.

        add_special: put the tokens for beginning and end around it where the model wants them.
        parse_special: special tokens written out in the text ("<|im_start|>") become those tokens; leave it off for
            text of a stranger.
        """
        return self._tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of ids; control tokens are left out unless `special`.  `UsageError` for an id out of range."""
        return self._tokenizer.decode(ids, special=special)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Each id's text on its own."""
        return self._tokenizer.pieces(ids)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """A conversation as the prompt that the model was trained on; `encode` it with `parse_special=True`.

        messages: [{"role": "user", "content": "Hi"}, ...].   template: another than the model's own.
        variables: what else the template may ask for.   `Unsupported` where the model has no template.
        """
        return render(self._vocab, messages, add_generation_prompt, template, **variables)


def tokenizer(model: str | os.PathLike[str] | Checkpoint, *, pre: str | None = None) -> ModelTokenizer:
    """The tokenizer of a model of any format, of a folder with tokenizer files, or of a lone tokenizer file.

    pre: llama.cpp's name of the BPE pre-tokenizer, over what the file says.   `UsageError` when there is no tokenizer.
    """
    if not isinstance(model, Checkpoint):
        if not isinstance(model, str | os.PathLike):
            raise UsageError(f"tokenizer takes a path or a Checkpoint, not {kind_of(model)}")
        with about(model):
            return ModelTokenizer(vocab.load(Path(model), pre=pre))
    found = vocab.of(model, pre=pre)
    if found is None:
        raise UsageError(f"{model.where}: has no tokenizer; give a model that carries one, or a tokenizer file")
    return ModelTokenizer(found)
