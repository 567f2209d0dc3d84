"""Tensors that config.json says a model has, and that are not there: lost by a folder, or taken out of a GGUF.

Nothing is computed with them here, while a program that trusts config.json makes them up.  So it is said; and where
somebody took them out of a GGUF made of a folder, the folder's config.json says the flag that is true of what is left.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from typing import Any

from llmconv.convert.tables import own_keys
from llmconv.convert.tables.architecture import Architecture
from llmconv.errors import more

__all__ = ["absent", "kept", "known", "said"]

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


def said(lacking: Mapping[str, list[str]], headless: bool = False) -> list[str]:
    """Notes about a folder's tensors that are not there.   headless: of a model that needs no head of its own."""
    notes = []
    for flag, names in lacking.items():
        name = flag.lstrip("!").partition("=")[0]
        if name.endswith(_TIED):
            if headless:
                continue
            notes.append(
                "config.json does not tie the head to the embeddings, but the file has no head: the embeddings are "
                "taken for it; transformers makes a random one"
            )
        elif flag:
            value = "false" if flag.startswith("!") else "true"
            notes.append(f"config.json: {name} is {value}, but the file has no such tensors: converted without")
        else:
            notes.append(f"config.json says that there is {names[0]}{more(names)}, the file does not: left out")
    return notes


def kept(lacking: Mapping[str, list[str]]) -> dict[str, str]:
    """What to put into a GGUF's metadata, so that nobody takes it for edited."""
    if not lacking:
        return {}
    listed = [flag for flag in lacking if flag] + lacking.get("", [])
    return {own_keys.ABSENT: json.dumps(listed, separators=(",", ":"))}


def known(metadata: Mapping[str, Any]) -> set[str]:
    """Flags and names that the folder of a GGUF lacked from the start."""
    try:
        listed: Iterable[Any] = json.loads(metadata.get(own_keys.ABSENT, "[]"))
        return {name for name in listed if isinstance(name, str)}
    except (TypeError, ValueError, RecursionError):
        return set()
