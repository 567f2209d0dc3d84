"""A GGUF that was edited since it was made from a folder: its keys win over the files that it keeps.

The kept files are read once more; a key of the GGUF that they say otherwise has been changed.  config.json is rebuilt
from the keys twice, as they were and as they are, and where the two differ the kept one is set to the new value, under
the name that it uses.  A change that the kept files can't take is left to `foreign_keys`, which says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from llmconv.convert.dialects.hugging_face import absent
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import LOCAL_THETAS, THETAS, put, text_config
from llmconv.convert.tables.rows import flag_of
from llmconv.convert.vocab import pre as vocab_pre
from llmconv.convert.vocab.model import BPE, ROLES, Vocab, same_value
from llmconv.errors import LlmconvError, cut, listed, more

__all__ = ["configured", "differing", "flagged", "gone", "otherwise_split", "with_ids"]

Again = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""The keys that a GGUF made of a folder with these files would have."""

_ROPE = "rope_scaling"
_ROPE_OBJECTS = ("rope_parameters", _ROPE)
_NAMES = ("architectures", "model_type")


def differing(metadata: Mapping[str, Any], again: Mapping[str, Any], start: str) -> list[str]:
    """The keys that begin with `start` whose values the kept files say otherwise, or not at all."""
    return [k for k, v in metadata.items() if k.startswith(start) and not (k in again and same_value(v, again[k]))]


def gone(metadata: Mapping[str, Any], again: Mapping[str, Any], starts: tuple[str, ...]) -> list[str]:
    """A note about keys that the kept files state and the GGUF has no more."""
    names = [key for key in again if key.startswith(starts) and key not in metadata and not _none(key, again[key])]
    if not names:
        return []
    return [f"the GGUF has no key {cut(names[0])}{more(names)}, which its kept files still say; edit those by hand"]


def _none(key: str, value: Any) -> bool:
    """Whether a key counts layers of which there are none, which is what its absence says."""
    return key.endswith(".nextn_predict_layers") and not value


def configured(
    arch: Architecture, metadata: Mapping[str, Any], files: dict[str, Any], again: Mapping[str, Any], reread: Again
) -> list[str]:
    """Set in files["config.json"] what the GGUF's keys say otherwise; a note that names the settings."""
    edited = differing(metadata, again, f"{arch.gguf}.")
    if not edited or not again:
        return []
    try:
        old = arch.config(again)
        new = arch.config({**again, **{key: metadata[key] for key in edited}})
        config = json.loads(files["config.json"])
        said = [_set(arch, config, name, value) for name, value in _changes(old, new)]
    except (LlmconvError, AttributeError, LookupError, TypeError, ValueError):
        return []
    data = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    left = differing(metadata, reread({**files, "config.json": data}), f"{arch.gguf}.")
    if not said or not set(left) < set(edited):
        return []
    files["config.json"] = data
    return [f"config.json says what was edited in the GGUF: {listed(said, 4)}"]


def flagged(
    arch: Architecture,
    files: dict[str, Any],
    lacking: Mapping[str, list[str]],
    surplus: Iterable[str],
    metadata: Mapping[str, Any],
) -> list[str]:
    """Set in files["config.json"] the flags of tensors that were taken out of the GGUF, or put into it; notes."""
    known = absent.known(metadata)
    names = [name for name in lacking.get("", ()) if name not in known]
    notes = [f"the GGUF has no {cut(names[0])}{more(names)}, which config.json says there is"] if names else []
    taken = [flag_of(flag) for flag in lacking if flag and flag not in known]
    added = [flag_of(flag) for flag in surplus if flag not in known]
    for flags, there, what in ((taken, False, "taken out of"), (added, True, "put into")):
        if flags:
            config = json.loads(files["config.json"])
            said = [_set(arch, config, flag.setting, flag.there == there) for flag in flags]
            files["config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
            notes.append(f"config.json says what was {what} the GGUF: {listed(said, 4)}")
    return notes


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """Settings that differ, with dots for objects, rotary scaling as one."""
    for name in {**old, **new}:
        a, b = old.get(name), new.get(name)
        if a == b or start + name in _NAMES:
            continue
        if isinstance(b, dict) and start + name != _ROPE:
            yield from _changes(a if isinstance(a, dict) else {}, b, f"{start}{name}.")
        else:
            yield start + name, b


def _set(arch: Architecture, config: dict[str, Any], name: str, value: Any) -> str:
    """Set one setting wherever the configuration states it, under any of its names; what a note says of it."""
    inner = text_config(config)
    assert isinstance(inner, dict)
    places = [inner] if inner is config else [inner, config]
    if name == _ROPE:
        _set_rope(places, value)
        return _ROPE
    names = next((key.names for key in arch.keys if key.names and key.names[0] == name), (name,))
    stated = [(place, n) for place in places for n in names if _stated(place, n)]
    for place, n in stated or [(inner, name)]:
        put(place, n, value)
    for group, kind in ((THETAS, "full_attention"), (LOCAL_THETAS, "sliding_attention")):
        if set(names) & set(group):
            _set_theta(places, kind, value)
    return f"{name} {value!s:.40}"


def _stated(config: Mapping[str, Any], name: str) -> bool:
    value: Any = config
    for step in name.split("."):
        if not isinstance(value, Mapping) or step not in value:
            return False
        value = value[step]
    return value is not None


def _rope_objects(places: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from (p[n] for p in places for n in _ROPE_OBJECTS if isinstance(p.get(n), dict))


def _set_theta(places: list[dict[str, Any]], kind: str, value: Any) -> None:
    for rope in _rope_objects(places):
        own = rope.get(kind) if isinstance(rope.get(kind), dict) else rope if kind == "full_attention" else {}
        if isinstance(own, dict) and "rope_theta" in own:
            own["rope_theta"] = value


def _set_rope(places: list[dict[str, Any]], value: Mapping[str, Any] | None) -> None:
    """Another rotary scaling: what is not of the scaling (the base, a part of the head) stays."""
    wanted = dict(value or {"rope_type": "default"})
    for rope in list(_rope_objects(places)):
        inner = rope["full_attention"] if isinstance(rope.get("full_attention"), dict) else rope
        kind = inner.get("rope_type", inner.get("type"))
        kept = inner if kind == wanted["rope_type"] else {k: inner[k] for k in _NOT_SCALING if k in inner}
        made = {**{k: v for k, v in kept.items() if k != "type"}, **wanted}
        inner.clear()
        inner.update(made)
        return
    places[0][_ROPE] = wanted if value else None


_NOT_SCALING = ("rope_theta", "partial_rotary_factor")


def otherwise_split(metadata: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """A note about a name of a pre-tokenizer that is not that of the kept files, which spell theirs out."""
    mine, said = (keys.get("tokenizer.ggml.pre") for keys in (metadata, again))
    if again.get("tokenizer.ggml.model") != BPE or mine is None or said is None or mine == said:
        return []
    one, other = (vocab_pre.by_name(name) if isinstance(name, str) else None for name in (mine, said))
    if one is None:
        return [f"tokenizer.ggml.pre {cut(mine)} of the GGUF is none known here: tokenizer.json is kept, as {said!r}"]
    if other is None or one.patterns == other.patterns:
        return []
    return [f"tokenizer.json splits texts as {said!r} does, not as tokenizer.ggml.pre {mine!r} of the GGUF; it is kept"]


def with_ids(files: dict[str, Any], vocab: Vocab, again: Mapping[str, Any]) -> list[str]:
    """Set the ids of special tokens that config.json and generation_config.json state to those of the GGUF."""
    said = []
    gone = {role: None for role in ("bos", "eos", "pad") if role not in vocab.special and ROLES[role] in again}
    for role, new in {**vocab.special, **gone}.items():
        old = again.get(ROLES[role])
        if old is not None and int(old) == new:
            continue
        for file in ("config.json", "generation_config.json"):
            if file in files and _set_id(files, file, f"{role}_token_id", old, new):
                said.append(f"{role}_token_id of {file}")
    return [f"as edited in the GGUF: {listed(said, 4)}"] if said else []


def _set_id(files: dict[str, Any], file: str, name: str, old: Any, new: int | None) -> bool:
    try:
        document = json.loads(files[file])
    except (ValueError, RecursionError):
        return False
    inner = text_config(document) if isinstance(document, dict) else document
    places = [p for p in (document, inner) if isinstance(p, dict) and name in p]
    for place in places:
        value = place[name]
        others = [i for i in value if i not in (old, new)] if isinstance(value, list) else []
        place[name] = others or None if new is None else [new, *others] if isinstance(value, list) else new
    if places:
        files[file] = json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
    return bool(places)
