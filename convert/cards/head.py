"""The head of a model card: YAML between two lines of "---", as PyYAML reads and writes it (the reference does too)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["read_head", "written"]

_DEPTH = 20
_MOST = 10_000
"""Values that a head with references may stand for: each reference may be to others."""


def read_head(text: str) -> dict[str, Any]:
    """The head of a card, {} where it has none; `ValueError` for what is no YAML, or too deep or too much of it."""
    lines = text.splitlines()
    if not lines or lines[0] != "---":
        return {}
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    # Tabs as gguf-py's metadata.py has them; "..." ends a document of YAML.
    end = lines.index("...", 1, end) if "..." in lines[1:end] else end
    value = _loaded("\n".join(lines[1:end]).replace("\t", "  "))
    return value if isinstance(value, dict) else {}


def _loaded(text: str) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where PyYAML was built with it
    try:
        refers = _check(yaml.parse(text, loader))
        value = yaml.load(text, loader)  # either is a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 2}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    if refers and _too_many(value):
        raise ValueError("references to too many values")
    return value


def _check(events: Any) -> bool:
    """Whether references are among a text's events; `ValueError` for what is nested too deep for the loader's stack."""
    import yaml

    depth, refers = 0, False
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        refers |= isinstance(event, yaml.AliasEvent)
        if depth > _DEPTH:
            raise ValueError("nested too deep")
    return refers


def _too_many(value: Any) -> bool:
    """Whether a value has more than `_MOST` in it, each as often as it is referred to."""
    waiting, found = [value], 0
    while waiting and found < _MOST:
        item = waiting.pop()
        found += 1
        waiting += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return bool(waiting)


def written(key: str, value: str | Sequence[Any]) -> str:
    """A key of a head with a text, a list of texts or a list of mappings, as YAML."""
    import yaml

    entry = {key: value if isinstance(value, str) else list(value)}
    text = ""
    for bare in (True, False):  # letters of all kinds as they are, unless one ends a line for YAML (U+0085, U+2028)
        text = yaml.safe_dump(entry, sort_keys=False, allow_unicode=bare, width=float("inf"))
        if yaml.safe_load(text) == entry:
            break
    return text
