"""A folder's model card, generation_config.json and name <-> GGUF's general keys.

The keys are those that llama.cpp's converter derives (gguf-py's `metadata`): what the card's head says, then what
config.json's `_name_or_path` says, then what the folder's name does.  The other way round a card and a
generation_config.json are made for a GGUF whose folder had none that we know of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llmconv.convert.cards.head import read_head, written
from llmconv.convert.cards.names import Named, named, title
from llmconv.convert.tables.keys import KINDS
from llmconv.errors import cut
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["CARD", "are_texts", "files_of", "head_of", "keys_of"]

CARD, SAMPLING = "README.md", "generation_config.json"

# GGUF's general.* -> names in a card's head, the first that is there; texts.
TEXTS = {
    "name": ("name", "model_name"),
    "author": ("author", "model_author", "model_creator"),
    "version": ("version", "model_version"),
    "organization": ("organization", "model_organization"),
    "finetune": ("finetune", "model_finetune"),
    "basename": ("basename", "model_basename", "model_type"),
    "description": ("description", "model_description"),
    "size_label": ("size_label", "model_size_label"),
    "license": ("license",),
    "license.name": ("license_name",),
    "license.link": ("license_link",),
    "source.url": ("url", "model_url"),
    "source.doi": ("doi", "model_doi"),
    "source.uuid": ("uuid", "model_uuid"),
    "source.repo_url": ("repo_url", "model_repo_url"),
}
# GGUF's general.*.{n}.* -> names in a card's head; models or data sets.
_SOURCES = {"base_model": ("base_model", "base_models", "base_model_sources"),
            "dataset": ("datasets", "dataset", "dataset_sources")}  # fmt: skip
_OF_A_SOURCE = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
# GGUF's general.* -> names in a card's head, of which all are taken; lists of texts.
_LISTS = {"tags": ("tags", "pipeline_tag"), "languages": ("languages", "language")}
# GGUF's general.sampling.* -> its kind, and names in generation_config.json.
_SAMPLING = {
    "sequence": ("str", ("sequence",)),
    "top_k": ("i32", ("top_k",)),
    "top_p": ("f32", ("top_p",)),
    "min_p": ("f32", ("min_p",)),
    "xtc_probability": ("f32", ("xtc_probability",)),
    "xtc_threshold": ("f32", ("xtc_threshold",)),
    "temp": ("f32", ("temperature",)),
    "penalty_last_n": ("i32", ("penalty_last_n",)),
    "penalty_repeat": ("f32", ("repetition_penalty", "penalty_repeat")),
    "mirostat": ("i32", ("mirostat",)),
    "mirostat_tau": ("f32", ("mirostat_tau",)),
    "mirostat_eta": ("f32", ("mirostat_eta",)),
}
SAMPLING_NAMES = {key: names for key, (_, names) in _SAMPLING.items()}
_HUB = re.compile(r"https?://huggingface\.co/([^/]+/[^/]+)")
_OF_A_NAME = ("organization", "basename", "finetune", "version", "size_label")


def keys_of(
    folder: Checkpoint, config: Mapping[str, Any], name: str | None, parameters: int
) -> tuple[dict[str, Any], list[str]]:
    """`general.*` keys of a model folder, in the reference's order, and notes about what is not read.

    config: its config.json.   name: of the folder.   parameters: how many the model has.
    """
    card, notes = _card(folder)
    sampling, said = _sampling(folder)
    found: dict[str, Any] = {key: text for key, names in TEXTS.items() if (text := _text(card, names)) is not None}
    path = config.get("_name_or_path")
    for source in (path if isinstance(path, str) and path.count("/") < 2 else None, name):
        for key, value in _from_name(source, parameters):
            found.setdefault(key, value)
    ordered = {key: found[key] for key in TEXTS if key in found}
    for key, places in _SOURCES.items():
        ordered |= _sources(card, key, places, parameters)
    for key, names in _LISTS.items():
        if values := [text for name in names for text in _texts(card.get(name))]:
            ordered[key] = values
    return {f"general.{key}": value for key, value in (sampling | ordered).items()}, notes + said


def _card(folder: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """The head of the folder's card."""
    try:
        text = (folder.file(CARD) or b"").decode("utf-8")
        return read_head(re.sub(r"- no\r?\n", '- "no"\n', text)), []  # a language, not YAML's word for false
    except ValueError as error:
        why = "is not UTF-8" if isinstance(error, UnicodeError) else f"has a head that is not read here ({error})"
        return {}, [f"{CARD} {cut(why, 120)}; it is kept, but gives the GGUF no keys"]


def _sampling(folder: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """sampling.* by the folder's generation_config.json."""
    try:
        config = json.loads(folder.file(SAMPLING) or b"{}")
    except (ValueError, RecursionError):
        return {}, [f"{SAMPLING} is no JSON; it is kept, but gives the GGUF no keys"]
    if not isinstance(config, dict):
        return {}, []
    out, left = {}, []
    for key, (kind, names) in _SAMPLING.items():
        value = next((config[n] for n in reversed(names) if config.get(n) is not None), None)
        if value is None:
            continue
        try:
            out[f"sampling.{key}"] = KINDS[kind](value)
        except (TypeError, ValueError, OverflowError):
            left.append(f"{SAMPLING}: {names[0]} is {cut(value)}, which the GGUF does not say")
    return out, left


def _text(card: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first value among names; a licence may be several."""
    value = next((card[name] for name in names if card.get(name) is not None), None)
    if isinstance(value, list):
        return ",".join(_texts(value)) or None
    return str(value) if isinstance(value, str | int | float) else None


def _texts(value: Any) -> list[str]:
    """A text, or those of a list."""
    if isinstance(value, list):
        return [str(v) for v in value if isinstance(v, str | int | float) and not isinstance(v, bool)]
    return [value] if isinstance(value, str) else []


def _from_name(name: str | None, parameters: int) -> Iterator[tuple[str, str]]:
    """general.* keys that a model's name says."""
    if name is None:
        return
    parts = named(name, parameters)
    if parts.full is not None:
        yield "name", title(parts.full)
    for key in _OF_A_NAME:
        if (value := getattr(parts, key)) is not None:
            yield key, title(value) if key == "organization" else value


def _sources(card: Mapping[str, Any], key: str, names: tuple[str, ...], parameters: int) -> dict[str, Any]:
    """Keys of the models that this one was made from, or of its data."""
    if not any(name in card for name in names):
        return {}
    value = next((card[name] for name in names if name in card), None)
    entries = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    out: dict[str, Any] = {f"{key}.count": np.uint32(len(entries))}
    for n, entry in enumerate(entries):
        found = _source(entry, parameters) if isinstance(entry, str) else entry if isinstance(entry, dict) else {}
        texts = {part: _text(found, (part,)) for part in _OF_A_SOURCE}
        out |= {f"{key}.{n}.{part}": text for part, text in texts.items() if text is not None}
    return out


def _source(entry: str, parameters: int) -> dict[str, str]:
    """What the name of a model on the Hub, or an address, says."""
    url = entry.startswith(("http://", "https://", "ssh://"))
    match = _HUB.fullmatch(entry)
    parts = Named() if url and not match else named(match[1] if match else entry, parameters)
    out = {"name": title(parts.full)} if parts.full is not None else {}
    if parts.version is not None:
        out["version"] = parts.version
    if parts.organization is not None:
        out |= {"organization": title(parts.organization)}
        out |= {} if url else {"repo_url": f"https://huggingface.co/{parts.organization}/{parts.full}"}
    return out | ({"repo_url": entry} if url else {})


def files_of(metadata: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, bytes]:
    """The card and generation_config.json that a GGUF's keys make, where the folder has none."""
    own = {k.removeprefix("general."): v for k, v in metadata.items() if k.startswith("general.")}
    out = {}
    sampling = {
        names[0]: plain_number(own[f"sampling.{key}"])
        for key, (kind, names) in _SAMPLING.items()
        if isinstance(own.get(f"sampling.{key}"), str if kind == "str" else int | float | np.number)
    }
    if sampling and SAMPLING not in files:
        out[SAMPLING] = json.dumps(sampling, indent=2).encode() + b"\n"
    if CARD not in files and (head := head_of(own)):
        name = own["name"] if isinstance(own.get("name"), str) else "A model"
        body = f"# {' '.join(name.split())}\n\nConverted from a GGUF file, whose keys this card repeats.\n"
        out[CARD] = f"---\n{head}---\n\n{body}".encode("utf-8", "replace")
    return out


def plain_number(value: Any) -> Any:
    """A number as JSON prints it: 0.7, not 0.699999988079071."""
    if isinstance(value, str):
        return value
    return float(str(np.float32(value))) if isinstance(value, float | np.floating) else int(value)


def head_of(own: Mapping[str, Any]) -> str:
    """The lines of a card's head; none where the keys say nothing that a reader of cards would miss."""
    texts = {key: own[key] for key in TEXTS if isinstance(own.get(key), str) and key != "size_label"}
    lists = {key: own[key] for key in _LISTS if are_texts(own.get(key))}
    sources = {key: _named_sources(own, key) for key in _SOURCES}
    if not set(texts) - {"name"} and not lists and not any(sources.values()):
        return ""
    out = "".join(written(TEXTS[key][0], value) for key, value in texts.items())
    out += "".join(written(_SOURCES[key][0], value) for key, value in sources.items() if value)
    return out + "".join(written({"languages": "language"}.get(key, key), list(v)) for key, v in lists.items())


def are_texts(value: Any) -> bool:
    many = isinstance(value, Sequence) and not isinstance(value, str) and 0 < len(value) < 10000
    return many and all(isinstance(v, str) for v in value)


def _named_sources(own: Mapping[str, Any], key: str) -> list[Any]:
    """Base models or data sets as cards name them: by their place on the Hub, or by all that is known."""
    out: list[Any] = []
    count = own.get(f"{key}.count")
    for n in range(int(count) if isinstance(count, int | np.integer) and 0 < count < 1000 else 0):
        found = {p: own[f"{key}.{n}.{p}"] for p in _OF_A_SOURCE if isinstance(own.get(f"{key}.{n}.{p}"), str)}
        hub = _HUB.fullmatch(found.get("repo_url", ""))
        if found:
            out.append(hub[1] if hub else found)
    return out
