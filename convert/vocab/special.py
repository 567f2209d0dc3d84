"""Roles of special tokens, what is added around a text, and the chat template, from a folder's side files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmconv.convert.vocab.base import BPE, ROLES, WORDPIECE, Vocab

if TYPE_CHECKING:
    from llmconv.convert.vocab.sources import Folder

__all__ = ["fill"]

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def _content(entry: Any) -> str | None:
    """A token as tokenizer_config.json names it: its text, or an object that holds it."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _processors(entry: Any) -> Iterator[dict[str, Any]]:
    """tokenizer.json's post-processors, those in sequences too."""
    if isinstance(entry, dict):
        if isinstance(entry.get("processors"), list):
            for inner in entry["processors"]:
                yield from _processors(inner)
        else:
            yield entry


def _ends(template: Any) -> tuple[str | None, str | None]:
    """The special tokens before and after the text in a TemplateProcessing's `single`."""

    def name(piece: Any) -> str | None:
        token = piece.get("SpecialToken") if isinstance(piece, dict) else None
        return _content({"content": token.get("id")}) if isinstance(token, dict) else None

    pieces = template if isinstance(template, list) and len(template) > 1 else [None]
    return name(pieces[0]), name(pieces[-1])


def fill(vocab: Vocab, folder: Folder) -> None:
    """Set `special`, `flags` and `chat_template`, as the reference converter derives them.

    The post-processor says what is added around a text; where it is silent, tokenizer_config.json's
    add_bos_token / add_eos_token do.  Ids come from the tokens' texts there, else from config.json.
    """
    settings = folder.json("tokenizer_config.json")
    named = {role: _content(settings.get(f"{role}_token")) for role in _ROLES}
    for role, token in folder.json("special_tokens_map.json").items():
        role = role.removesuffix("_token")
        if role in named and named[role] is None:
            named[role] = _content(token)
    added = {a.content: a.id for a in folder.added().values()}
    flags: dict[str, bool] = {}
    for processor in _processors(folder.tokenizer.get("post_processor")):
        match processor.get("type"):
            case "ByteLevel":
                flags.setdefault("bos", False)
                flags.setdefault("eos", False)
            case "RobertaProcessing" | "BertProcessing":
                flags |= {"bos": True, "eos": True, "sep": True}
                for role in ("cls", "sep"):
                    pair = processor.get(role)
                    named[role] = named[role] or (_content(pair[0]) if isinstance(pair, list) and pair else None)
            case "TemplateProcessing":
                first, last = _ends(processor.get("single"))
                if first:
                    if first not in (named["bos"], named["cls"]):
                        named["bos"] = first
                    flags["bos"] = True
                if last:
                    if last not in (named["eos"], named["sep"]):
                        named["eos"] = last
                    flags["eos"] = True
                ids = processor.get("special_tokens")
                for token in (t for t in (first, last) if t and t not in added):
                    entry = ids.get(token) if isinstance(ids, dict) else None
                    if isinstance(entry, dict) and isinstance(entry.get("ids"), list) and len(entry["ids"]) == 1:
                        added[token] = entry["ids"][0]
    named["bos"] = named["bos"] or named["cls"]
    named["eos"] = named["eos"] or named["sep"]
    for name in ("bos", "eos"):
        if isinstance(stated := settings.get(f"add_{name}_token"), bool):
            flags.setdefault(name, stated)
    if isinstance(prefix := settings.get("add_prefix_space"), bool) and vocab.model != BPE:
        vocab.flags.setdefault("space_prefix", prefix)
    if vocab.model == WORDPIECE:
        flags = {k: v for k, v in flags.items() if k not in ("bos", "eos", "sep")}  # always [CLS] text [SEP]
    vocab.flags |= flags

    n = folder.size(len(vocab))
    texts: dict[str, int] | None = None
    for role in _ROLES:
        token = named[role]
        id: Any = None
        if token is not None and (id := added.get(token)) is None:
            texts = {t: i for i, t in enumerate(vocab.tokens)} if texts is None else texts
            id = texts.get(token)
        if id is None:
            id = folder.setting(f"{role}_token_id")
            id = id[0] if isinstance(id, list) and id else id  # Llama 3.1 names several ends; the first is the end
        if isinstance(id, int) and not isinstance(id, bool) and 0 <= id < n:
            vocab.special[role] = id
    vocab.special = {role: vocab.special[role] for role in ROLES if role in vocab.special}
    template = settings.get("chat_template")
    if template is None and "chat_template.jinja" in folder.files:
        template = folder.files["chat_template.jinja"].decode("utf-8", "replace")
    if template is None:
        template = folder.json("chat_template.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        templates = {
            t["name"]: t["template"]
            for t in template
            if isinstance(t, dict) and isinstance(t.get("name"), str) and isinstance(t.get("template"), str)
        }
        template = templates.pop("default", None)
        vocab.extra |= {f"tokenizer.chat_template.{name}": text for name, text in templates.items()}
        if templates:
            vocab.extra["tokenizer.chat_templates"] = list(templates)
    vocab.chat_template = template if isinstance(template, str) else None
