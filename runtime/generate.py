"""Continuing a text: one token after another through the cache, as a stream of text or all at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from llmconv.errors import UsageError
from llmconv.progress import Meter, Progress
from llmconv.runtime.banned import Banned
from llmconv.runtime.checks import check_finite
from llmconv.runtime.measure.chunks import Running, Source, device_errors, tokenizer_of
from llmconv.runtime.measure.texts import unknown
from llmconv.runtime.model import Model
from llmconv.runtime.sampling import Sampling, choose, generator_of
from llmconv.runtime.stepping.stepper import stepper
from llmconv.show import Shown

__all__ = ["Generation", "Sampling", "generate"]


@dataclass(frozen=True)
class Generation(Shown):
    """What was generated.

    text: the new text, without the prompt; after a text prompt it begins with the space between them, if the model put
    one there.  tokens: its ids.  finish: "eos", "stop" (a stop string), "length" (as many as asked for) or "context"
    (no room for more).  notes: what should be known of the prompt, of how the model ran and of how it ended.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    finish: str
    seconds: float
    tokens_per_second: float
    notes: list[str] = field(default_factory=list)


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
    progress: Progress | None = None,
) -> Generation:
    """Continue `prompt`.

    prompt: a text; with `chat` what the user says, or a list of {"role", "content"} messages, put into the model's
    template. tools: JSON schemas of functions, which a chat template shows. sampling: how tokens are chosen;
    `temperature` alone is a shorthand (0: greedy). seed: the same seed gives the same text on the same device; None
    draws one. stop: the text ends before the first of these.  on_text: called with each piece of text as soon as it is
    certain.

    `UsageError` for a prompt that is longer than the positions that the model has learned; `LlmconvError` when its
    logits are not finite.
    """
    running = Running(device, dtype, activations).model(model, streamed=False)
    how = sampling or Sampling()
    if temperature is not None:
        how = Sampling(**{**asdict(how), "temperature": temperature})
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens!r}, expected at least 1")
    tokenizer = tokenizer_of(running)
    ids = _prompt_ids(tokenizer, prompt, chat, tools)
    banned = Banned(running)
    notes = [*_check_prompt(running, prompt, ids), *banned.notes]
    writer = _Writer(tokenizer, stop, on_text, start=chat or not isinstance(prompt, str) or not prompt)
    meter, started = Meter(progress, "generate", max_tokens, "tokens"), time.perf_counter()
    with torch.inference_mode(), device_errors(running.device):
        for token in _tokens(running, ids, max_tokens, how, banned, generator_of(seed)):
            if token is None:
                writer.finish = "context"
            elif token in _ends(tokenizer) and running.decoder.ends:
                writer.finish = "eos"
            else:
                writer.push(token)
                meter.reach(len(writer.tokens))
            if writer.finish:
                break
    writer.close()
    seconds = max(time.perf_counter() - started, 1e-9)
    new, finish = writer.tokens, writer.finish or "length"
    notes += _endings(running, len(ids) + len(new), new, finish)
    return Generation(writer.text, new, len(ids), finish, seconds, len(new) / seconds, notes)


def _check_prompt(model: Model, prompt: str | Sequence[Mapping[str, str]], ids: list[int]) -> list[str]:
    """What should be known of a prompt that became `ids`; `UsageError` for one that can't be continued."""
    said = [prompt] if isinstance(prompt, str) else [str(message.get("content", "")) for message in prompt]
    notes = [*model.notes, *unknown(model.tokenizer, "the prompt", said, [ids])]
    if not ids:
        why = "holds nothing that the vocabulary knows" if any(said) else "is empty"
        raise UsageError(f"the prompt {why}, and this model has no token to begin with; give a prompt (-p)")
    most = model.most_tokens
    if most is not None and len(ids) > most:
        raise UsageError(
            f"the prompt has {len(ids)} tokens, but {model.where} has learned {most} positions; give a shorter one"
        )
    if max(ids) >= model.decoder.vocab_size:
        raise UsageError(
            f"the prompt gives token {max(ids)}, but the embedding of {model.where} has {model.decoder.vocab_size} rows"
        )
    return notes


def _endings(model: Model, length: int, new: list[int], finish: str) -> list[str]:
    """What should be known of a text of `length` tokens with its prompt, of which `new` were made."""
    trained, most = model.context_length, model.most_tokens
    if finish == "context":
        return [f"the text ends where the {most} positions that {model.where} has learned end"]
    notes = []
    if finish == "eos" and not new:
        notes.append(f"{model.where} ended at once: the first token that it chose was one that ends a text")
    if most is None and 0 < trained < length:
        notes.append(
            f"{model.where} was made for {trained} tokens and this text has {length}; what lies beyond is a guess"
        )
    return notes


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


def _tokens(
    model: Model, ids: list[int], count: int, how: Sampling, banned: Banned, generator: torch.Generator
) -> Iterator[int | None]:
    """New tokens; None when there is no room for more."""
    past, most = list(ids), model.most_tokens
    cache = model.cache(1, len(ids) + count) if model.decoder.causal else None
    feed, step = past, None
    for made in range(count):
        if most is not None and len(past) > most:
            yield None
            return
        if made == 1 and cache is not None:
            step = stepper(model, cache)
        if step is None:
            hidden = model.hidden(torch.tensor([feed], device=model.device), cache=cache)
            logits = model.head(hidden[:, -1])
        else:
            logits = step(past[-1])
        check_finite(logits, model, lambda row: f"position {len(past) - 1}")
        token = banned.last if made == count - 1 else None
        if token is None:
            token = choose(logits[0], past, how, banned.at(past, made), generator)
        past.append(token)
        feed = past if cache is None else [token]
        yield token


class _Writer:
    """Tokens as they come, as text: told piece by piece, ended by a stop string."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], on_text: Callable[[str], None] | None, start: bool):
        self.text, self.finish, self.tokens = "", "", list[int]()
        self._stream, self._watch, self._tell = tokenizer.stream(start=start), _Stops(stops), on_text

    def push(self, token: int) -> None:
        self.tokens.append(token)
        self._take(*self._watch.push(self._stream.push(token)))

    def close(self) -> None:
        """What was held back comes out, unless a stop string ended the text."""
        if self.finish != "stop":
            self._take(*self._watch.push(self._stream.flush(), last=True))

    def _take(self, piece: str, stopped: bool) -> None:
        self.text += piece
        if piece and self._tell:
            self._tell(piece)
        if stopped:
            self.finish = "stop"


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
