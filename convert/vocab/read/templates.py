"""The chat templates of a folder, the default one and those by name."""

from __future__ import annotations

from typing import Any

from llmconv.convert.vocab.model import Vocab
from llmconv.convert.vocab.read.folder import Folder

__all__ = ["fill"]


def fill(vocab: Vocab, folder: Folder) -> None:
    """Set `chat_template`, and put the templates with a name into `extra`, under GGUF's keys."""
    template = folder.json("tokenizer_config.json").get("chat_template")
    if template is None and "chat_template.jinja" in folder.files:
        template = folder.files["chat_template.jinja"].decode("utf-8", "replace")
    if template is None:
        template = folder.json("chat_template.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        templates = _named(template)
        template = templates.pop("default", None)
        vocab.extra |= {f"tokenizer.chat_template.{name}": text for name, text in templates.items()}
        if templates:
            vocab.extra["tokenizer.chat_templates"] = list(templates)
    vocab.chat_template = template if isinstance(template, str) else None


def _named(entries: list[Any]) -> dict[str, str]:
    return {
        t["name"]: t["template"]
        for t in entries
        if isinstance(t, dict) and isinstance(t.get("name"), str) and isinstance(t.get("template"), str)
    }
