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

_STATING = ("tokenizer_config.json", "chat_template.json")
_KEPT = frozenset(string.ascii_letters + string.digits)


def fill(vocab: Vocab, folder: Folder) -> None:
    """Set `chat_template`, and put the templates with a name into `extra`, under GGUF's keys."""
    sources = {
        "the template files": _files(folder),
        **{name: _stated(vocab, name, folder.json(name).get("chat_template")) for name in _STATING},
    }
    taken = next((source for source, found in sources.items() if found), "")
    templates = dict(sources.get(taken, {}))
    for source, found in sources.items():
        other = next((name for name, text in found.items() if templates.get(name) != text), None)
        if other is not None:
            vocab.notes.append(f"{taken} are followed for chat, not {source}, whose template {cut(other)} differs")
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


def _stated(vocab: Vocab, file: str, template: Any) -> dict[str, str]:
    """Templates in a JSON file: one text, or a list or a map of them by name, of which the last of a name counts."""
    match template:
        case str():
            return {"default": template}
        case list():
            pairs = [(t.get("name"), t.get("template")) if isinstance(t, Mapping) else (None, t) for t in template]
        case dict():
            pairs = list(template.items())
        case None:
            return {}
        case _:
            pairs = [(None, template)]
    found: dict[str, str] = {}
    for name, text in pairs:
        if not isinstance(name, str) or not isinstance(text, str):
            vocab.notes.append(f"{file}: chat_template holds {cut(text, 40)} under the name {cut(name)}: left out")
        elif found.setdefault(name, text) != text:
            vocab.notes.append(f"{file}: has two chat templates {cut(name)} that differ; the last is followed")
            found[name] = text
    return found
