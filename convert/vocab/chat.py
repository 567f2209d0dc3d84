"""Chat templates: a conversation as the prompt text that a model was trained on, as transformers renders it.

Templates come with the model, so they run in Jinja's immutable sandbox: no attributes of Python objects, no changes
to what they are given, no file, no import.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from llmconv.convert.vocab.model import NAMED, TEMPLATE, Vocab
from llmconv.errors import BadFile, LlmconvError, MissingExtra, Unsupported, UsageError, cut

__all__ = ["render"]

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Under which names messages carry a model's reasoning; templates read the first, gpt-oss's the second."""
_DEPTH = 200
"""How deep lists and objects may be nested: a template's `tojson` takes a Python call for each."""
_MARK = "LLMCONV_THE_TEXT_GOES_ON_HERE "


def render(
    vocab: Vocab,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    template: str | None = None,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool = False,
    **variables: Any,
) -> str:
    """The text of a conversation.

    messages: [{"role": "user", "content": "Hi"}, ...]; a key whose value is None counts as absent.
    template: another than the model's own, or the name of one of its own; by default "tool_use" with `tools`, where
        there is one.
    tools: JSON schemas of functions.   documents: {"title", "text"} maps.
    continue_final_message: end within the last message, for the model to go on with it; `add_generation_prompt` is off.
    variables: what else the template may ask for (`enable_thinking`, ...).
    `Unsupported` without a template, `MissingExtra` without jinja2, `BadFile` for a template that fails, `UsageError`
    when the template itself refuses the messages, or there is nothing to go on with.
    """
    text = _template(vocab, template, bool(tools))
    if not messages:
        raise UsageError("the conversation is empty; give at least one message")
    conversation = [_message(message) for message in messages]
    last = ""
    if continue_final_message:
        last = _mark(conversation[-1])
        add_generation_prompt = False
    named = {f"{role}_token": vocab.tokens[vocab.special[role]] for role in NAMED if role in vocab.special}
    shown = _rendered(
        text,
        {
            **named,
            **_plain(variables),
            "messages": conversation,
            "tools": _plain(tools),
            "documents": _plain(documents),
            "add_generation_prompt": add_generation_prompt,
        },
    )
    return _until_mark(shown, last) if continue_final_message else shown


def _template(vocab: Vocab, wanted: str | None, tools: bool) -> str:
    """The text of a template: by its name, the one for tools, the default one, or `wanted` itself."""
    by_name = vocab.extra.get(f"{TEMPLATE}.{wanted or 'tool_use'}") if wanted or tools else None
    text = by_name if isinstance(by_name, str) else wanted if wanted is not None else vocab.chat_template
    if text is None:
        raise Unsupported("this model has no chat template; give the prompt as plain text, or a template with it")
    return text


def _plain(value: Any, depth: int = 0) -> Any:
    """Data that a template may see: nothing with methods of its own."""
    if depth > _DEPTH:
        raise UsageError(f"what the chat template is to show is nested more than {_DEPTH} deep; give flatter data")
    match value:
        case None | bool() | int() | float() | str():
            return value
        case np.generic():
            return value.item()
        case Mapping():
            return {_plain(k, depth + 1): _plain(v, depth + 1) for k, v in value.items()}
        case Sequence():
            return [_plain(v, depth + 1) for v in value]
    return f"<{type(value).__name__}>"


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UsageError(f"a message is {cut(message)}, expected an object with a role and a content")
    out: dict[str, Any] = {key: value for key, value in _plain(message).items() if value is not None}
    reasoning = next((out[key] for key in _REASONING if key in out), None)
    return out if reasoning is None else {"thinking": reasoning, **out, "reasoning_content": reasoning}


def _mark(message: dict[str, Any]) -> str:
    """Put the mark behind a message's text, or behind the last text part of it; that text."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _MARK
        return content
    parts = content if isinstance(content, list) else []
    part = next((p for p in reversed(parts) if isinstance(p, dict) and isinstance(p.get("text"), str)), None)
    if part is None:
        raise UsageError("the last message has no text to go on with; give it a content")
    content = str(part["text"])
    part["text"] = content + _MARK
    return content


def _until_mark(text: str, last: str) -> str:
    at = text.rfind(_MARK.strip())
    if at < 0 or last.strip() not in text:
        raise UsageError("the chat template leaves some of the last message out, so it can't be gone on with")
    return text[:at] if text[at:].startswith(_MARK) else text[:at].rstrip()  # the template trims texts


def _rendered(text: str, variables: dict[str, Any]) -> str:
    try:
        return str(_compiled(text).render(**variables))
    except ImportError:
        raise MissingExtra("a chat template", "jinja2", "chat") from None
    except LlmconvError:
        raise
    except Exception as e:  # a template is a program: it may fail in every way, out of memory and SyntaxError too
        raise BadFile(f"the chat template fails: {type(e).__name__}: {cut(str(e), 200)}") from None


@functools.lru_cache(8)
def _compiled(text: str) -> Any:
    return _environment().from_string(text)


def _environment() -> Any:
    """Jinja with what templates of models expect beyond it."""
    import jinja2.ext
    import jinja2.nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` … `{% endgeneration %}`: marks for training what the model is to say; shown as it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _refuse(message: str) -> None:
    raise UsageError(f"the chat template refuses the messages: {message}")


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes for HTML that Jinja's own filter has."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
