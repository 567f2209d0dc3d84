"""Tensors that config.json says a model has and that are not there, or the other way about.

Lost by a folder or taken out of a GGUF, nothing is computed with them here, while a program that trusts config.json
makes them up; those that it denies are computed with here, and left out there.  So it is said; and where somebody
edited a GGUF made of a folder, the folder's config.json says the flag that is true of what the GGUF has.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from typing import Any

from llmconv.convert.tables import own_keys
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.rows import flag_of
from llmconv.errors import more

__all__ = ["absent", "denied", "kept", "known", "said"]

_TIED = "tie_word_embeddings"


def absent(
    arch: Architecture, config: Mapping[str, Any], dims: Mapping[str, Any], names: Container[str]
) -> dict[str, list[str]]:
    """What is not among a GGUF's `names`: flag ("attention_bias", "!no_bias") -> all that it stands for; under "" what
    no flag says, or only some of a flag's tensors."""
    found: dict[str, list[str]] = {}
    there: set[str] = set()
    for slot in arch.slots(dims):
        if isinstance(slot.row.optional, bool) or not arch.expected(slot.row, config):
            continue
        flag = slot.row.optional if isinstance(slot.row.optional, str) else ""
        lacking = [name for name in slot.gguf if name not in names]
        if lacking:
            found.setdefault(flag, []).extend(lacking)
        else:
            there.add(flag)
    out: dict[str, list[str]] = {}
    for flag, lacking in found.items():
        out.setdefault("" if flag in there else flag, []).extend(lacking)
    return out


def denied(
    arch: Architecture, config: Mapping[str, Any], dims: Mapping[str, Any], names: Container[str]
) -> dict[str, list[str]]:
    """What is among a GGUF's `names` against a flag; a head of a tied model is none of it."""
    found: dict[str, list[str]] = {}
    for slot in arch.slots(dims):
        flag = slot.row.optional
        if isinstance(flag, str) and not _of_a_head(flag) and not arch.expected(slot.row, config):
            found.setdefault(flag, []).extend(name for name in slot.gguf if name in names)
    return {flag: there for flag, there in found.items() if there}


def _of_a_head(flag: str) -> bool:
    return flag_of(flag).setting.endswith((_TIED, "weight_tying", "share_input_output_layers"))


def _word(value: bool) -> str:
    return "true" if value else "false"


def said(lacking: Mapping[str, list[str]], surplus: Mapping[str, list[str]], headless: bool = False) -> list[str]:
    """Notes about a folder's tensors that are not there, or should not.   headless: a model that needs no own head."""
    notes = []
    for flag, names in surplus.items():
        setting, there, _ = flag_of(flag)
        notes.append(
            f"config.json: {setting} is {_word(not there)}, but the file has {names[0]}{more(names)}: converted with "
            "them; transformers leaves them out"
        )
    for flag, names in lacking.items():
        setting, there, _ = flag_of(flag)
        if setting.endswith(_TIED):
            if headless:
                continue
            notes.append(
                "config.json does not tie the head to the embeddings, but the file has no head: the embeddings are "
                "taken for it; transformers makes a random one"
            )
        elif flag:
            value = _word(there)
            notes.append(f"config.json: {setting} is {value}, but the file has no such tensors: converted without")
        else:
            notes.append(f"config.json says that there is {names[0]}{more(names)}, the file does not: left out")
    return notes


def kept(lacking: Mapping[str, list[str]], surplus: Iterable[str]) -> dict[str, str]:
    """What to put into a GGUF's metadata, so that nobody takes it for edited."""
    listed = [*(flag for flag in lacking if flag), *lacking.get("", []), *surplus]
    if not listed:
        return {}
    return {own_keys.ABSENT: json.dumps(listed, separators=(",", ":"))}


def known(metadata: Mapping[str, Any]) -> set[str]:
    """Flags and names that were not true of the GGUF's folder from the start."""
    try:
        listed: Iterable[Any] = json.loads(metadata.get(own_keys.ABSENT, "[]"))
        return {name for name in listed if isinstance(name, str)}
    except (TypeError, ValueError, RecursionError):
        return set()
