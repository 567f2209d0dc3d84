"""The chat templates of a folder, the default one and those by name.

As transformers reads them: template files come before tokenizer_config.json, and chat_template.json, a processor's,
after it.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from llmconv.convert.vocab.model import TEMPLATE, TEMPLATE_NAMES, Vocab
from llmconv.convert.vocab.read.folder import Folder, template_name
from llmconv.errors import cut

__all__ = ["fill", "key_name"]

_KEPT = frozenset(string.ascii_letters + string.digits)


def fill(vocab: Vocab, folder: Folder) -> None:
    """Set `chat_template`, and put the templates with a name into `extra`, under GGUF's keys."""
    templates = _files(folder) or _stated(folder.json("tokenizer_config.json").get("chat_template"))
    templates = templates or _stated(folder.json("chat_template.json").get("chat_template"))
    vocab.chat_template = templates.pop("default", None)
    names: dict[str, str] = {}
    for name, text in templates.items():
        other = names.setdefault(key_name(name), name)
        if other != name:
            vocab.notes.append(f"the chat template {cut(name)} has the same GGUF key as {cut(other)}; it is left out")
            continue
        vocab.extra[f"{TEMPLATE}.{key_name(name)}"] = text
    if names:
        vocab.extra[TEMPLATE_NAMES] = list(names)


def key_name(name: str) -> str:
    """A template's name as GGUF's keys have it, which hold letters and digits only."""
    return "".join(c if c in _KEPT else "_" for c in name)


def _files(folder: Folder) -> dict[str, str]:
    """Templates in files of their own, the default one in chat_template.jinja."""
    found = {"default": "chat_template.jinja"} if "chat_template.jinja" in folder.files else {}
    found |= {name: file for file in sorted(folder.files) if (name := template_name(file))}
    return {name: folder.files[file].decode("utf-8", "replace") for name, file in found.items()}


def _stated(template: Any) -> dict[str, str]:
    """Templates in a JSON file: one text, or a list or a map of them by name."""
    match template:
        case str():
            return {"default": template}
        case list():
            pairs = [(t.get("name"), t.get("template")) for t in template if isinstance(t, Mapping)]
        case dict():
            pairs = list(template.items())
        case _:
            return {}
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
