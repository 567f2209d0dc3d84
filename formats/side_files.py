"""Files that lie beside a model's weights, in its folder and in folders within: which are carried, and their names.

A folder within is carried whole where modules.json names it (sentence-transformers keeps pooling and further layers
so), or where it holds no weights; any other is another model's, and a note names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from llmconv.errors import cut, more
from llmconv.formats import guests, limits

__all__ = [
    "MODULES",
    "WEIGHTS",
    "around",
    "beside",
    "is_name",
    "model_within",
    "modules_of",
    "others",
    "passed_by",
    "programs",
    "within",
]

MODULES = "modules.json"
TEMPLATES = "additional_chat_templates"
WEIGHTS = {
    *(".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".ckpt", ".npz", ".distcp")
}
"""Suffixes of weights, which are no side files."""
_PROGRAMS = {".py", ".pyc", ".pyw", ".sh", ".bat", ".cmd", ".ps1", ".exe", ".so", ".dll", ".js"}
_OF_OTHERS = {".gitattributes", ".gitignore", ".DS_Store", ".mdl", ".msc", ".mv"}
"""Hidden files of git, desktops and hubs, which say nothing of a model; any other is named."""
_DEPTH, _FILES = 4, 200  # of a folder within a model's; no model comes near


def is_name(name: str) -> bool:
    """Whether a file may be written under this name, which came from a file: it stays in the folder."""
    steps = name.split("/")
    plain = all(s and s.strip() == s and s[0] != "." and s[-1] != "." and len(s) <= 200 for s in steps)
    return plain and len(steps) <= _DEPTH and name.isprintable() and not any(c in name for c in '\\:*?"<>|')


def passed_by(index: str, passed: Mapping[str, str]) -> list[str]:
    """A note about tensors of files where an index does not have them.   passed: these files by the tensors' names."""
    if not passed:
        return []
    names = [*passed]
    there = f"{passed[names[0]]} holds {cut(names[0])}{more(names)}"
    return [f"{there}, which {index} lists in another file; that one is read"]


def programs(names: Iterable[str]) -> list[str]:
    """A note about files that are program text."""
    found = [name for name in names if Path(name).suffix.lower() in _PROGRAMS]
    if not found:
        return []
    return [f"carried along is program text, which nothing here runs: {cut(found[0])}{more(found)}; read it before use"]


def beside(folder: Path, weights: Path | None = None) -> tuple[dict[str, Path | bytes], list[str]]:
    """The files of a model folder that are no weights, by name: settings, vocabulary, cards; and notes about others.

    With a config.json the folder is a model's, and the files in its folders belong to it too (`within`).
    weights: the folder inside it that they are read from, where they have one of their own.
    """
    found: dict[str, Path | bytes] = {}
    notes: list[str] = []
    nameless: list[str] = []
    for entry in sorted(folder.iterdir(), key=lambda p: p.name):
        is_weights = entry.suffix.lower() in WEIGHTS or entry.name.endswith(".index.json")
        if is_weights or entry.name in _OF_OTHERS or guests.is_unfinished(entry) or not entry.is_file():
            continue
        if not is_name(entry.name):
            nameless.append(entry.name)
        elif entry.stat().st_size <= limits.SIDE_FILE_BYTES:
            found[entry.name] = entry
        else:
            notes.append(f"left out, too large: {cut(entry.name)}")
    if nameless:
        notes.append(f"left out, no name that files are carried by: {cut(nameless[0])}{more(nameless)}")
    for entry in sorted((folder / TEMPLATES).glob("*.jinja")):
        if entry.is_file() and entry.stat().st_size <= limits.SIDE_FILE_BYTES:
            found[f"{TEMPLATES}/{entry.name}"] = entry
    if "config.json" in found:
        inner, said = within(folder, weights)
        found |= inner
        notes += said
    return found, [*notes, *programs(found)]


def others(folder: Path, *patterns: str) -> list[str]:
    """A note about weights in a folder that are of another kind than those that are read.

    patterns: of the names that other notes speak of.
    """
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix.lower() in WEIGHTS and not entry.name.startswith(".") and entry.is_file()
        if not any(entry.match(pattern) for pattern in patterns)
    )
    return [f"left out, no part of these weights: {cut(names[0])}{more(names)}"] if names else []


def within(folder: Path, weights: Path | None = None) -> tuple[dict[str, Path], list[str]]:
    """The files in a model folder's folders, by name, and notes about those that are left out."""
    found: dict[str, Path] = {}
    left: list[str] = []
    named = _modules(folder)
    for inner in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))):
        if inner == weights:
            continue
        files = list(_files(inner, f"{inner.name}/", _FILES + 1))
        has_weights = any(p.suffix.lower() in WEIGHTS for _, p in files)
        if inner.is_symlink() or len(files) > _FILES or (has_weights and inner.name not in named):
            left.append(f"{inner.name}/")
            continue
        for name, file in files:
            size = file.stat().st_size if _inside(file, folder) and is_name(name) else limits.SIDE_FILE_BYTES + 1
            if size > limits.SIDE_FILE_BYTES:
                left.append(name)
            else:
                found[name] = file
    notes = [f"left out, not of this model's folder or too large: {cut(left[0])}{more(left)}"] if left else []
    return found, notes


def modules_of(data: bytes | None, kind: str) -> list[str]:
    """The folders of the modules of a kind ("Pooling") that a modules.json lists, in order; none of a broken one."""
    try:
        listed = json.loads(data or b"[]")
    except (ValueError, RecursionError):
        return []
    found = [m for m in listed if isinstance(m, Mapping)] if isinstance(listed, list) else []
    wanted = [str(m.get("path")) for m in found if str(m.get("type")).endswith(kind)]
    return [path.replace("\\", "/").strip("/") for path in wanted]  # as Windows writes them


def model_within(folder: Path) -> Path | None:
    """The folder in a sentence-transformers folder that holds its model, as releases before 2.3 keep it."""
    try:
        data = (folder / MODULES).read_bytes()[: limits.INDEX_BYTES]
    except OSError:
        return None
    path = next(iter(modules_of(data, ".Transformer")), "")
    if not path or "/" in path or not is_name(path) or any(p.suffix.lower() in WEIGHTS for p in folder.iterdir()):
        return None
    found = folder / path
    return found if (found / "config.json").is_file() and _inside(found, folder) else None


def around(folder: Path, model: Path) -> tuple[dict[str, Path | bytes], list[str]]:
    """The files of such a folder as they are where the model lies at its top, without the model's own; and notes."""
    found, notes = beside(folder, model)
    if "config.json" not in found:
        inner, said = within(folder, model)
        found |= inner
        notes += said
    steps = json.loads((folder / MODULES).read_bytes())
    for step in steps:
        if isinstance(step, dict) and str(step.get("path")).replace("\\", "/").strip("/") == model.name:
            step["path"] = ""
    found[MODULES] = json.dumps(steps, indent=2, ensure_ascii=False).encode() + b"\n"
    name = f"{model.name}/"
    return found, [*notes, f"its model lies in {name}: a folder made of it has it at its top, as newer releases do"]


def _modules(folder: Path) -> set[str]:
    """The folders that modules.json names."""
    try:
        data = (folder / MODULES).read_bytes()[: limits.INDEX_BYTES]
        return {str(entry["path"]).replace("\\", "/").split("/")[0] for entry in json.loads(data)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()


def _files(folder: Path, start: str, most: int) -> Iterator[tuple[str, Path]]:
    """Name and path of the files in a folder and below, at most so many."""
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if most <= 0 or entry.name.startswith((".", "__")):
            continue
        if entry.is_dir() and not entry.is_symlink() and start.count("/") < _DEPTH:
            for one in _files(entry, f"{start}{entry.name}/", most):
                most -= 1
                yield one
        elif entry.is_file():
            most -= 1
            yield f"{start}{entry.name}", entry


def _inside(file: Path, folder: Path) -> bool:
    """Whether a file lies where it seems to; a link may lead within the folder, or to a hub cache's blobs beside it."""
    real, root = file.resolve(), folder.resolve()
    blobs = root.parent.parent / "blobs"
    return real.is_relative_to(root) or (root.parent.name == "snapshots" and real.is_relative_to(blobs))
