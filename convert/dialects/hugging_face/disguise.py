"""Names in disguise: what torch's wrappers, PEFT and multimodal models put around the names of a family's tensors.

`plain_names` takes wrappers off, finds the prefix under which a model was saved and the head wherever it stands, so
that tables meet the names that they know; `keep` and `kept` carry the original names through a GGUF.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from llmconv.convert import archs
from llmconv.convert.dialects import carried
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import read_config
from llmconv.errors import BadFile
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["keep_names", "kept_names", "left_on", "original_name", "plain_names"]

_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_model|base_layer|"
    r"modules_to_save\.default)\."
)
_PEFT = re.compile(r"^(?:base_model\.model\.)+")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def plain_names(arch: Architecture, names: Iterable[str], tied: bool) -> dict[str, str]:
    """The table's name for each tensor; a name that the table has nothing to do with stays.

    tied: whether the configuration says that the head is the embedding, so that either may stand for both.
    """
    names = list(names)
    own = _own_words(arch)
    bare = {name: _PEFT.sub("", _WRAPPERS.sub(lambda m: m[0] if m[0][:-1] in own else "", name)) for name in names}
    bare = _one_prefix(arch, bare)
    found = _tied(arch, bare) if tied else bare
    counts = Counter(found.values())
    return {name: new if counts[new] == 1 else name for name, new in found.items()}


def _own_words(arch: Architecture) -> set[str]:
    return {word for row in arch.rows for form in row.forms for name in form.patterns for word in name.split(".")}


def left_on(checkpoint: Checkpoint) -> list[str]:
    """A note about wrappers' names in a model folder, of which transformers finds no weights."""
    try:
        arch = archs.by_hf(read_config(checkpoint))
    except BadFile:  # which a copy keeps
        return []
    own = set() if arch is None else _own_words(arch)
    for name in checkpoint.tensors if arch is not None else ():
        found = _PEFT.search(name) or next((m for m in _WRAPPERS.finditer(name) if m[0][:-1] not in own), None)
        if found:
            return [
                f"tensors' names keep {found[0]!r} of a wrapper, which transformers does not know: it would draw random"
                " weights; a folder made of a GGUF made with --portable has plain names"
            ]
    return []


def _anchors(arch: Architecture) -> tuple[str, list[str]]:
    """The name of the token embedding without its prefix, and the names that stand outside of the prefix (heads)."""
    outside, embedding = [], ""
    for table_row in arch.rows:
        for pattern in table_row.forms[0].patterns:
            if table_row.gguf[0] == "token_embd.weight":
                embedding = pattern.removeprefix("{p}")
            elif not pattern.startswith("{p}"):
                outside.append(pattern)
    return embedding, outside


def _one_prefix(arch: Architecture, names: Mapping[str, str]) -> dict[str, str]:
    """Names under a prefix that no model of the family has by itself put under its usual one, heads without any."""
    embedding, outside = _anchors(arch)
    have = set(names.values())
    usual = arch.prefixes[0]
    layer = next((r for r in arch.rows if r.per_layer and r.forms[0].patterns[0].startswith("{p}")), None)
    anchors = [embedding]
    if layer is not None:
        anchors.append(layer.forms[0].patterns[0].removeprefix("{p}").replace("{i}", "0"))
    known = any(prefix + anchor in have for prefix in arch.prefixes for anchor in anchors)
    if not known and _other_names(arch) & have:
        return dict(names)
    prefix = usual
    if not known:
        ends = [name[: -len(anchor)] for anchor in anchors for name in have if name.endswith("." + anchor)]
        prefix = max(ends, key=len) if len(set(ends)) == 1 else _text_prefix(ends, usual)
    else:
        prefix = next(p for p in arch.prefixes if any(p + anchor in have for anchor in anchors))
    out = {}
    for name, bare in names.items():
        if not known and prefix and bare.startswith(prefix):
            bare = usual + bare.removeprefix(prefix)
        elif bare not in outside:
            end = next((head for head in outside if bare.endswith("." + head)), None)
            if end is not None and _outer(bare.removesuffix(end), prefix):
                bare = end
        out[name] = bare
    return out


def _other_names(arch: Architecture) -> set[str]:
    """What the family's other programs call the token embedding, whole."""
    rows = [r for r in arch.rows if r.gguf[0] == "token_embd.weight"]
    patterns = {name for r in rows for form in r.forms[1:] for name in form.patterns}
    return {name for name in patterns if not name.startswith("{p}")}


def _text_prefix(ends: list[str], usual: str) -> str:
    """Of several prefixes the one of a text model; the usual one where that is not clear."""
    text = {end for end in ends if "language_model" in end or "text_model" in end or "llm" in end}
    return text.pop() if len(text) == 1 else usual


def _outer(start: str, prefix: str) -> bool:
    """Whether what stands before a head is the beginning of the prefix, or a language model's."""
    return prefix.startswith(start) or start.rstrip(".").endswith(("language_model", "text_model", "llm"))


def _tied(arch: Architecture, names: Mapping[str, str]) -> dict[str, str]:
    """The head's name made the embedding's, where only the head was saved."""
    embedding, _ = _anchors(arch)
    rows = {r.gguf[0]: r.forms[0].patterns[0] for r in arch.rows}
    head, have = rows.get("output.weight", ""), set(names.values())
    if head not in have or any(prefix + embedding in have for prefix in arch.prefixes):
        return dict(names)
    prefix = _prefix_of_layers(arch, have)
    return {name: prefix + embedding if bare == head else bare for name, bare in names.items()}


def _prefix_of_layers(arch: Architecture, have: set[str]) -> str:
    first = next(r.forms[0].patterns[0] for r in arch.rows if r.per_layer).replace("{i}", "0")
    return next((p for p in arch.prefixes if first.replace("{p}", p) in have), arch.prefixes[0])


def _disguises(names: Mapping[str, str]) -> dict[str, str]:
    """The table's name -> the original one, for those that differ; layers written once, with {} for their numbers."""
    patterns: dict[str, set[str]] = {}
    for original, bare in names.items():
        same = _NUMBER.findall(bare) == _NUMBER.findall(original)
        patterns.setdefault(_NUMBER.sub("{}", bare), set()).add(_NUMBER.sub("{}", original) if same else "")
    out: dict[str, str] = {}
    for original, bare in names.items():
        general = _NUMBER.sub("{}", bare)
        alike = len(patterns[general]) == 1 and "" not in patterns[general]
        if original != bare:
            out[general if alike else bare] = _NUMBER.sub("{}", original) if alike else original
    return out


def keep_names(metadata: dict[str, Any], names: Mapping[str, str], more: Mapping[str, str] | None = None) -> None:
    """Put the original names into a GGUF's metadata, where they are not the table's.  more: (the GGUF's, original)."""
    if different := _disguises(names) | dict(more or {}):
        metadata[own_keys.NAMES] = json.dumps(different, ensure_ascii=False, separators=(",", ":"))


def kept_names(metadata: Mapping[str, Any], where: str) -> dict[str, str]:
    """The way back: the table's name (or its pattern) -> the original one."""
    names = carried.kept_json(metadata, own_keys.NAMES, where)
    if not all(isinstance(v, str) and v for v in names.values()):
        raise BadFile(f"{where}: {own_keys.NAMES} is no map of names; remove the key to use the usual ones")
    return names


def original_name(name: str, names: Mapping[str, str]) -> str:
    """The name that a tensor had in the folder that the GGUF was made from."""
    if name in names:
        return names[name]
    pattern = names.get(_NUMBER.sub("{}", name))
    if pattern is None:
        return name
    numbers = iter(_NUMBER.findall(name))
    return re.sub(r"\{\}", lambda _: next(numbers, ""), pattern)
