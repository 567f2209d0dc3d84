"""Roles of special tokens and what is added around a text, from a folder's side files.

Three sources, as the reference converter has them.  The post-processor of tokenizer.json says what is added around a
text; where it is silent, `add_bos_token` / `add_eos_token` of tokenizer_config.json do.  A role's id is that of its
token's text there, else what config.json states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llmconv.convert.vocab import wordpiece
from llmconv.convert.vocab.model import BPE, NAMED, ROLES, WORDPIECE, Vocab
from llmconv.convert.vocab.read.folder import Folder
from llmconv.errors import cut, more

__all__ = ["fill", "processors"]


@dataclass
class _Said:
    """What the files say: the token of each role, the ids of tokens, and what is added around a text."""

    named: dict[str, str | None] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    template: bool = False


def fill(vocab: Vocab, folder: Folder) -> None:
    """Set `special` and `flags` of a vocabulary."""
    said = _Said(_settings(folder), {a.content: a.id for a in folder.added().values()})
    for processor in processors(folder.tokenizer.get("post_processor")):
        _post_processor(said, processor)
    named, settings = said.named, folder.json("tokenizer_config.json")
    named["bos"] = named["bos"] or named["cls"]
    named["eos"] = named["eos"] or named["sep"]
    for name in ("bos", "eos"):
        if isinstance(stated := settings.get(f"add_{name}_token"), bool):
            said.flags.setdefault(name, stated)
    if isinstance(prefix := settings.get("add_prefix_space"), bool) and vocab.model != BPE:
        vocab.flags.setdefault("space_prefix", prefix)
    if vocab.model != WORDPIECE or said.template:  # else it is always [CLS] text [SEP], which needs no saying
        vocab.flags |= said.flags
    _roles(vocab, folder, said)


def _content(entry: Any) -> str | None:
    """A token as tokenizer_config.json names it: its text, or an object that holds it."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _settings(folder: Folder) -> dict[str, str | None]:
    """The token of each role by tokenizer_config.json, else by special_tokens_map.json."""
    settings, map = folder.json("tokenizer_config.json"), folder.json("special_tokens_map.json")
    keys = {role: f"{role}_token" for role in NAMED}
    return {role: _content(settings.get(key)) or _content(map.get(key)) for role, key in keys.items()}


def processors(entry: Any) -> Iterator[dict[str, Any]]:
    """tokenizer.json's post-processors, those in sequences too."""
    if isinstance(entry, dict):
        if isinstance(entry.get("processors"), list):
            for inner in entry["processors"]:
                yield from processors(inner)
        else:
            yield entry


def _post_processor(said: _Said, processor: dict[str, Any]) -> None:
    match processor.get("type"):
        case "ByteLevel":
            said.flags.setdefault("bos", False)
            said.flags.setdefault("eos", False)
        case "RobertaProcessing" | "BertProcessing":
            said.flags |= {"bos": True, "eos": True, "sep": True}
            for role in ("cls", "sep"):
                pair = processor.get(role)
                token = _content(pair[0]) if isinstance(pair, list) and pair else None
                said.named[role] = said.named[role] or token
        case "TemplateProcessing":
            _template(said, processor)


def _template(said: _Said, processor: dict[str, Any]) -> None:
    """What a TemplateProcessing's `single` puts before and after the text."""
    said.template = True
    named, ends = said.named, _ends(processor.get("single"))
    for token, role, alias in zip(ends, ("bos", "eos"), ("cls", "sep"), strict=True):
        if token:
            if token not in (named[role], named[alias]):
                if role == "eos":
                    named["eot"] = named["eos"] or named["sep"]  # what ends a turn, where it isn't what ends a text
                named[role] = token
            said.flags[role] = True
    separated = _separated(processor.get("pair"), *ends)
    if separated:
        # The reference converter's rule: a separator is added where the text alone has none behind it.
        own = (named["sep"], named["eos"])
        said.flags["sep"] = (separated[0] in own and not ends[1]) or (len(separated) == 2 and separated[1] in own)
        if said.flags["sep"]:
            named["sep"] = named["sep"] or named["eos"]
    ids = processor.get("special_tokens")
    for token in (t for t in ends if t and t not in said.ids):
        match ids.get(token) if isinstance(ids, dict) else None:
            case {"ids": [id]}:
                said.ids[token] = id


def _separated(pair: Any, first: str | None, last: str | None) -> list[str | None]:
    """The special tokens between the two texts of a TemplateProcessing's `pair`."""
    pieces = pair if isinstance(pair, list) else []
    names = [_special_name(piece) for piece in pieces]
    names = names[1 if first and names[:1] == [first] else 0 : -1 if last and names[-1:] == [last] else None]
    inner = names[1:-1]  # without A and B
    return inner if len(names) > 2 and names[0] is None is names[-1] else []


def _special_name(piece: Any) -> str | None:
    token = piece.get("SpecialToken") if isinstance(piece, dict) else None
    return _content({"content": token.get("id")}) if isinstance(token, dict) else None


def _ends(template: Any) -> tuple[str | None, str | None]:
    """The special tokens at the two ends of a template."""
    pieces = template if isinstance(template, list) and len(template) > 1 else [None]
    return _special_name(pieces[0]), _special_name(pieces[-1])


def _roles(vocab: Vocab, folder: Folder, said: _Said) -> None:
    """The id of each role, where it is one of the vocabulary's."""
    n = folder.size(len(vocab))
    texts: dict[str, int] = {}
    absent: dict[str, str] = {}
    for role, token in said.named.items():
        id: Any = None
        if token is not None and (id := said.ids.get(token)) is None:
            texts = texts or _texts(vocab)
            id = texts.get(token)
            if id is None:
                absent.setdefault(token, f"{role}_token")
        if id is None:
            id = folder.setting(f"{role}_token_id")
            id = id[0] if isinstance(id, list) and id else id  # Llama 3.1 names several ends; the first is the end
        if isinstance(id, int) and not isinstance(id, bool) and 0 <= id < n:
            vocab.special[role] = id
        elif isinstance(id, int) and not isinstance(id, bool) and id >= n:
            vocab.notes.append(f"config.json: {role}_token_id is {id}, which is no token of the vocabulary: left out")
    vocab.special = {role: vocab.special[role] for role in ROLES if role in vocab.special}
    for token in _additional(folder):
        if token not in said.ids:
            texts = texts or _texts(vocab)
            if token not in texts:
                absent.setdefault(token, "additional_special_tokens")
    if absent:
        first = next(iter(absent))
        text = f"named but not in the vocabulary: {absent[first]} {cut(first)}{more(list(absent))}"
        vocab.notes.append(f"{text}; it is not added, though transformers would add it behind the last")


def _texts(vocab: Vocab) -> dict[str, int]:
    """The id of each token, by its text as the folder's files have it."""
    return {t: i for i, t in enumerate(wordpiece.plain(vocab) if vocab.model == WORDPIECE else vocab.tokens)}


def _additional(folder: Folder) -> Iterator[str]:
    """Special tokens without a role that the settings list."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            found = folder.json(file).get(key)
            entries = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
            yield from (token for entry in entries if (token := _content(entry)) is not None)
