"""Chat templates: a conversation as the prompt text that a model was trained on.

Templates come with the model, so they run in Jinja's immutable sandbox: no attributes of Python objects, no changes
to what they are given, no file, no import.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from llmconv.convert.vocab.model import Vocab
from llmconv.errors import BadFile, Unsupported, UsageError

__all__ = ["render"]


def render(
    vocab: Vocab,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    template: str | None = None,
    **variables: Any,
) -> str:
    """The text of a conversation.

    messages: [{"role": "user", "content": "Hi"}, ...].   template: another than the model's own.
    variables: what else the template may ask for (`tools`, `enable_thinking`, ...), as transformers passes them.
    `Unsupported` without a template or without jinja2, `BadFile` for a template that fails, `UsageError` when the
    template itself refuses the messages.
    """
    text = template if template is not None else vocab.chat_template
    if text is None:
        raise Unsupported("this model has no chat template; give the prompt as plain text, or a template with it")
    try:
        import jinja2
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise Unsupported("chat templates need the jinja2 library; pip install 'llmconv[chat]'") from None

    def refuse(message: str) -> None:
        raise UsageError(f"the chat template refuses the messages: {message}")

    def tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson  # without HTML's escapes
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    named = {f"{role}_token": vocab.tokens[id] for role, id in vocab.special.items()}
    try:
        return environment.from_string(text).render(
            **{**named, **variables, "messages": messages, "add_generation_prompt": add_generation_prompt}
        )
    except UsageError:
        raise
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as e:
        raise BadFile(f"the chat template fails: {type(e).__name__}: {e}") from None
