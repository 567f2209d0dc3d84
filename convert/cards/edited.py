"""A folder's card and generation_config.json, where the GGUF that keeps them says otherwise by now."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llmconv.convert.cards.about import CARD, SAMPLING, SAMPLING_NAMES, TEXTS, plain_number
from llmconv.convert.cards.head import read_head, written
from llmconv.convert.vocab.model import same_value
from llmconv.errors import listed

__all__ = ["agreeing"]

_START, _SAMPLING = "general.", "general.sampling."


def agreeing(
    metadata: Mapping[str, Any], files: dict[str, Any], again: Callable[[], Mapping[str, Any]]
) -> tuple[Mapping[str, Any], list[str]]:
    """Set in `files` what the GGUF's general keys say otherwise; the keys that the folder gives now, and notes.

    again: the general keys that a GGUF made of the folder would have.
    """
    before = again()
    edited = [k for k, v in metadata.items() if k.startswith(_START) and not same_value(v, before.get(k))]
    changed = _set_sampling(metadata, files, [k for k in edited if k.startswith(_SAMPLING)])
    changed += _set_card(metadata, files, {k.removeprefix(_START): metadata[k] for k in edited})
    after = again()
    notes = []
    if said := [k for k in edited if k in after and same_value(metadata[k], after[k])]:
        notes.append(f"{listed(changed, 4)}: changed, as {listed(said, 4)} was edited in the GGUF")
    stale = [
        k for k in {**after, **metadata} if k in after and _of_files(k) and not same_value(after[k], metadata.get(k))
    ]
    if stale:
        notes.append(f"the folder's files do not say what {listed(stale, 4)} of the GGUF says; edit those by hand")
    return after, notes


def _of_files(key: str) -> bool:
    """Whether files say a key, not a folder's name alone."""
    return key.startswith((_SAMPLING, f"{_START}license", f"{_START}tags", f"{_START}languages"))


def _set_sampling(metadata: Mapping[str, Any], files: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """How texts are to be sampled, in generation_config.json; the file's name, if it changed."""
    wanted = {k: names for k in keys if (names := SAMPLING_NAMES.get(k.removeprefix(_SAMPLING)))}
    try:
        config = json.loads(files.get(SAMPLING) or b"{}")
        new = {
            next((n for n in reversed(names) if config.get(n) is not None), names[0]): plain_number(metadata[k])
            for k, names in wanted.items()
        }
        if not new or not isinstance(config, dict):
            return []
        data = json.dumps({**config, **new}, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError):
        return []
    files[SAMPLING] = data
    return [SAMPLING]


def _set_card(metadata: Mapping[str, Any], files: dict[str, Any], edited: Mapping[str, Any]) -> list[str]:
    """Texts in the head of README.md, where there is one; the file's name, if it changed."""
    texts = {
        name: text for name, text in edited.items() if name in TEXTS and name != "size_label" and isinstance(text, str)
    }
    try:
        card = bytes(files.get(CARD) or b"").decode("utf-8")
        head = read_head(card)
    except ValueError:
        return []
    if not head or not texts:
        return []
    lines = card.splitlines(keepends=True)
    end = next(i for i, line in enumerate(lines[1:], 1) if line.strip() == "---" or i == len(lines) - 1)
    kept = _without(lines[1:end], {name for key in texts for name in TEXTS[key]})
    new = [written(TEXTS[key][0], text) for key, text in texts.items()]
    card = "".join([lines[0], *kept, *new, *lines[end:]])
    try:
        if any(read_head(card).get(TEXTS[key][0]) != text for key, text in texts.items()):
            return []
    except ValueError:
        return []
    files[CARD] = card.encode()
    return [CARD]


def _without(lines: Iterable[str], names: set[str]) -> list[str]:
    """The lines of a head without the entries of these names; comments stay."""
    kept, left_out = [], False
    for line in lines:
        if match := re.match(r"""["']?([\w.-]+)["']?\s*:""", line):
            left_out = match[1] in names
        if not left_out or line.startswith("#"):
            kept.append(line)
    return kept
