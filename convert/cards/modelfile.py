"""Ollama's Modelfile of a GGUF: where its weights are, its chat template in Go, parameters, system text.

Source: ollama/ollama (`docs/modelfile.md`, `template/template.go`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmconv.convert.vocab.keys import from_gguf
from llmconv.convert.vocab.model import TokenType, Vocab
from llmconv.convert.vocab.turns import Turns, go_template, turns_of
from llmconv.errors import UsageError, cut

__all__ = ["DEFAULT_CONTEXT", "modelfile"]

DEFAULT_CONTEXT = 4096
"""Tokens that Ollama takes where nothing is said (more where there is much memory)."""
# GGUF's general.sampling.* -> Ollama's parameters.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last_n",
}


def modelfile(
    metadata: Mapping[str, Any],
    weights: Sequence[str],
    adapters: Sequence[str] = (),
    *,
    system: str | None = None,
    num_ctx: int | None = None,
    said: Mapping[str, str] | None = None,
) -> tuple[str, list[str]]:
    """The Modelfile of a GGUF of these keys, and notes.

    weights, adapters: paths as Ollama is to read them.   system: the system text, over the template's own.
    num_ctx: the context, over Ollama's own.   said: layers of a model of Ollama's, which are taken as they are.
    """
    said = said or {}
    vocab = from_gguf(metadata)
    notes: list[str] = []
    turns = turns_of(vocab) if vocab is not None and vocab.chat_template else None
    template = said.get("template") or (go_template(turns, _adds_bos(vocab)) if turns and vocab else None)
    if template is None:
        notes.append(_no_template(vocab))
    elif vocab is not None and not said and vocab.chat_template:
        notes += _left_out(vocab.chat_template, turns)
    if system is None:
        system = said.get("system") or (turns.default if turns else None)
    elif turns is not None and "system" not in turns.before:
        raise UsageError("the model's chat template takes no system text; leave --system out")
    lines = [f"FROM {_quoted(path)}" for path in weights]
    lines += [f"ADAPTER {_quoted(path)}" for path in adapters]
    for name, text in (("TEMPLATE", template), ("SYSTEM", system), ("LICENSE", said.get("license"))):
        if text:
            lines.append(f"{name} {_long(text, name)}")
    parameters = _kept(said["params"]) if "params" in said else _parameters(metadata, vocab, turns)
    context, note = _context(metadata, num_ctx)
    parameters = [(name, value) for name, value in parameters if name != "num_ctx" or context is None]
    parameters += [("num_ctx", context)] * (context is not None)
    lines += [f"PARAMETER {name} {_value(value)}" for name, value in parameters]
    return "\n".join(lines) + "\n", notes + [note] * bool(note)


def _adds_bos(vocab: Vocab | None) -> bool:
    return vocab is not None and bool(vocab.flags.get("bos", vocab.model == "llama"))


def _no_template(vocab: Vocab | None) -> str:
    if vocab is None or not vocab.chat_template:
        return "the model has no chat template, and neither has the Modelfile: Ollama passes prompts on as they are"
    return (
        "the chat template does more than texts around each turn, so no TEMPLATE is written: Ollama takes one of its "
        "own where it knows the model's, else passes prompts on as they are"
    )


def _left_out(template: str, turns: Turns | None) -> list[str]:
    found = [what for what, word in (("tools", "tools"), ("thinking", "thinking")) if word in template]
    notes = [f"of the chat template the TEMPLATE has the turns, not {' and '.join(found)}"] * bool(found)
    if "strftime_now" in template:
        notes.append("the chat template writes the day's date, the TEMPLATE has today's")
    if turns is not None and "system" not in turns.before:
        notes.append("the chat template takes no system text, so Ollama leaves it out")
    return notes


def _parameters(metadata: Mapping[str, Any], vocab: Vocab | None, turns: Turns | None) -> list[tuple[str, Any]]:
    stops = dict.fromkeys(_stops(vocab, turns)) if vocab is not None else {}
    found: list[tuple[str, Any]] = [("stop", text) for text in stops]
    for key, name in _SAMPLING.items():
        value = metadata.get(f"general.sampling.{key}")
        if isinstance(value, int | float | np.number) and not isinstance(value, bool):
            found.append((name, value))
    return found


def _stops(vocab: Vocab, turns: Turns | None) -> list[str]:
    """Texts at which an answer ends: the tokens that say so, and what begins another turn."""
    found = [vocab.tokens[vocab.special[role]] for role in ("eos", "eot", "eom") if role in vocab.special]
    if turns is None:
        return found
    control = [text for i, text in enumerate(vocab.tokens) if vocab.type_of(i) == TokenType.CONTROL and text]
    for piece in (turns.after["assistant"], turns.before["user"]):
        piece = piece.strip().removeprefix(turns.bos).strip()
        token = max((text for text in control if piece.startswith(text)), key=len, default=piece.split("\n")[0])
        found += [token] * (len(token) > 2)
    return found


def _context(metadata: Mapping[str, Any], wanted: int | None) -> tuple[int | None, str]:
    """The context to state, if any, and a note."""
    own = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    longest = int(own) if isinstance(own, int | np.integer) and own > 0 else None
    if wanted is not None:
        if longest is not None and wanted > longest:
            raise UsageError(f"a context of {wanted:,} tokens, the model was made for {longest:,}; give no more")
        return wanted, ""
    if longest is None or longest > DEFAULT_CONTEXT:
        made = f", the model is made for {longest:,}" if longest else ""
        return (
            None,
            f"no num_ctx is stated: Ollama takes {DEFAULT_CONTEXT:,} tokens or more{made}; --num-ctx states one",
        )
    return longest, ""


def _kept(text: str) -> list[tuple[str, Any]]:
    """The parameters of a model of Ollama's."""
    try:
        found = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        raise UsageError(f"the model's parameters are no JSON but {cut(text)}; pull it again") from None
    return [(name, one) for name, value in found.items() for one in (value if isinstance(value, list) else [value])]


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def _quoted(text: str) -> str:
    return f'"{text}"' if text != text.strip() or " " in text or text[:1] in "<[\"'|" or not text else text


def _long(text: str, name: str) -> str:
    if '"""' in text:
        raise UsageError(f'the {name} holds """, which a Modelfile can\'t; give another text')
    return f'"""{text}"""'
