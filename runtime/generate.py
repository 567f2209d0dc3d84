"""Continuing a text: one token after another through the cache, as a stream of text or all at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from llmconv.errors import UsageError
from llmconv.runtime.chunks import Source, as_model, check_finite, device_errors, tokenizer_of
from llmconv.runtime.model import Model
from llmconv.runtime.sampling import Sampling, choose
from llmconv.show import Shown

__all__ = ["Generation", "Sampling", "generate"]

_TOKEN_NORMAL, _TOKEN_UNKNOWN, _TOKEN_CONTROL, _TOKEN_UNUSED = 1, 2, 3, 5


@dataclass(frozen=True)
class Generation(Shown):
    """What was generated.

    text: the new text, without the prompt; after a text prompt it begins with the space between them, if the model put
    one there.  tokens: its ids.  finish: "eos", "stop" (a stop string), "length" (as many
    as asked for) or "context" (no room for more).
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    finish: str
    seconds: float
    tokens_per_second: float


def generate(
    model: Source,
    prompt: str | Sequence[Mapping[str, Any]],
    *,
    max_tokens: int = 128,
    sampling: Sampling | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
    chat: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    on_text: Callable[[str], None] | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    activations: str = "float",
) -> Generation:
    """Continue `prompt`.

    prompt: a text; with `chat` what the user says, or a list of {"role", "content"} messages, put into the model's
    template. tools: JSON schemas of functions, which a chat template shows. sampling: how tokens are chosen;
    `temperature` alone is a shorthand (0: greedy). seed: the same seed gives the same text on the same device; None
    draws one. stop: the text ends before the first of these.  on_text: called with each piece of text as soon as it is
    certain.
    """
    running = as_model(model, device, dtype, activations)
    how = sampling or Sampling()
    if temperature is not None:
        how = Sampling(**{**asdict(how), "temperature": temperature})
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}, expected at least 1")
    tokenizer = tokenizer_of(running, model)
    ids = _prompt_ids(tokenizer, prompt, chat, tools)
    if not ids:
        raise UsageError("the prompt is empty, and this model has no token to begin with; give a prompt (-p)")
    text, new, finish, started = "", [], "length", time.perf_counter()
    watch = _Stops(stop)
    stream = tokenizer.stream(start=chat or not isinstance(prompt, str) or not prompt)
    with torch.inference_mode(), device_errors(running.device):
        for token in _tokens(running, ids, max_tokens, how, seed):
            if token is None:
                finish = "context"
                break
            check_finite(token[1], model)
            if token[0] in _ends(tokenizer) and running.decoder.arch not in _NO_END:
                finish = "eos"
                break
            new.append(token[0])
            piece, stopped = watch.push(stream.push(token[0]))
            text += piece
            if piece and on_text:
                on_text(piece)
            if stopped:
                finish = "stop"
                break
    if finish != "stop":
        piece, stopped = watch.push(stream.flush(), last=True)
        text += piece
        finish = "stop" if stopped else finish
        if piece and on_text:
            on_text(piece)
    seconds = max(time.perf_counter() - started, 1e-9)
    return Generation(text, new, len(ids), finish, seconds, len(new) / seconds)


_NO_END = ("simple-llm",)
"""Families whose original program never chose a special token: they don't end by themselves."""


def _prompt_ids(
    tokenizer: Any, prompt: str | Sequence[Mapping[str, Any]], chat: bool, tools: Sequence[Mapping[str, Any]] | None
) -> list[int]:
    if chat or not isinstance(prompt, str):
        from llmconv.convert.vocab.chat import render

        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        ids: list[int] = tokenizer.encode(render(tokenizer.vocab, messages, tools=tools), parse_special=True)
        if tokenizer.bos is not None and tokenizer.vocab.flag("bos") and ids[:1] != [tokenizer.bos]:
            ids = [tokenizer.bos, *ids]
        return ids
    before = [tokenizer.bos] if tokenizer.bos is not None and tokenizer.vocab.flag("bos") else []
    return before + list(tokenizer.encode(prompt))


def _ends(tokenizer: Any) -> set[int]:
    special = tokenizer.vocab.special
    return {special[name] for name in ("eos", "eot", "eom") if special.get(name) is not None}


def _banned(model: Model) -> torch.Tensor | None:
    """Tokens that are never chosen: padding of the vocabulary, unused ones, and for simple-llm all special ones."""
    vocab = model.tokenizer.vocab
    kinds = (_TOKEN_UNUSED, _TOKEN_UNKNOWN, _TOKEN_CONTROL) if model.decoder.arch in _NO_END else (_TOKEN_UNUSED,)
    ids = list(range(len(vocab.tokens), model.decoder.vocab_size))
    if vocab.types is not None:
        ids += [i for i, kind in enumerate(vocab.types) if int(kind) in kinds]
    return torch.tensor(ids, device=model.device) if ids else None


def _tokens(
    model: Model, ids: list[int], count: int, how: Sampling, seed: int | None
) -> Iterator[tuple[int, float] | None]:
    """New tokens, each with its logit; None when there is no room for more."""
    generator = torch.Generator()
    generator.manual_seed(seed) if seed is not None else generator.seed()
    banned, past = _banned(model), list(ids)
    limit = model.context_length if model.decoder.positions == "learned" else 0
    cache = model.cache(1, len(ids) + count) if model.decoder.causal else None
    feed = past
    for _ in range(count):
        if limit and len(past) > limit:
            yield None
            return
        hidden = model.hidden(torch.tensor([feed], device=model.device), cache=cache)
        logits = model.head(hidden[0, -1])
        token = choose(logits, past, how, banned, generator)
        past.append(token)
        feed = past if cache is None else [token]
        yield token, float(logits[token])


class _Stops:
    """Holds back text that may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]):
        self.stops, self.held = [s for s in stops if s], ""

    def push(self, text: str, last: bool = False) -> tuple[str, bool]:
        """(text that is certain, whether a stop string came)."""
        self.held += text
        found = [at for at in (self.held.find(stop) for stop in self.stops) if at >= 0]
        if found:
            out, self.held = self.held[: min(found)], ""
            return out, True
        keep = 0 if last else max((self._overlap(stop) for stop in self.stops), default=0)
        out, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return out, False

    def _overlap(self, stop: str) -> int:
        """How many characters at the end of the held text begin `stop`."""
        sizes = range(min(len(stop) - 1, len(self.held)), 0, -1)
        return next((n for n in sizes if self.held.endswith(stop[:n])), 0)
