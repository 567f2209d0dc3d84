"""Files that are no models though they stand where one should: named, so that nobody hunts for damage.

A repository cloned without git-lfs has pointers in place of weights, a browser saves a login page under the model's
name, a download that was broken off leaves `.incomplete` or `.part`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from llmconv.errors import BadFile, Unsupported, at, cut, more

__all__ = ["beside", "check", "check_links", "is_unfinished", "misnamed", "of_others", "whole", "written"]

_POINTER = b"version https://git-lfs"
_ANNEX = re.compile(rb"[./]*(?:\.git)?/annex/objects/")
_ZIP = b"PK\x03\x04"
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!doctype\s+html|<html|<head|<\?xml|<!--)", re.IGNORECASE)
_BEFORE_GGUF = (b"lmgg", b"fmgg", b"tjgg", b"algg")
"""ggml, ggmf, ggjt and ggla, little-endian: llama.cpp's of before August 2023."""
_WRITTEN = (
    (re.compile(rb"(?:\xff\xfe|\xfe\xff)"), "is text in UTF-16; save it in UTF-8"),
    (
        re.compile(
            rb"(?:export\s+default|export\s+const|module\.exports|exports\.|(?:const|let|var)\s+\w+\s*=|\w+\s*=\s*[\[{])"
        ),
        "is a program that holds a model, no JSON; save the object alone, as JSON.stringify gives it",
    ),
    (re.compile(rb"[\w$.]+\(\s*[\[{]"), "is JSONP, a call around JSON; save what is between the parentheses"),
    (re.compile(rb"//|/\*|#"), "begins with a comment, which JSON has none of; remove the comments"),
    (re.compile(rb"```"), "is Markdown around JSON; save what is between the fences"),
    (
        re.compile(rb'"(?:\s|\\[nrt])*[\[{](?:\s|\\[nrt])*(?:\\"|[\[\d{-])'),
        "is JSON in a text, encoded twice; decode it once",
    ),
    (re.compile(rb"\)\]\}'"), "begins with )]}', which keeps JSON from being run; remove it"),
)
"""How texts begin that hold a model's JSON in something else, and what to say of them."""
_MESSAGE = re.compile(
    rb"""\s*(?:\{\s*"(?:error|errors|message|detail)"\s*:|(?:entry|repository|revision|file|page|not)\s+(?:not\s+)?found"""
    rb"""|invalid\s+(?:username|credentials|token)|access\s+(?:to|denied)|unauthori[sz]ed|forbidden)""",
    re.IGNORECASE,
)
"""How the answers begin that servers give in place of a file."""
_LONG = 4096  # bytes, of which no such answer has as many
_ARCHIVES = {
    b"\x1f\x8b": "compressed by gzip",
    b"\xfd7zXZ\0": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"BZh": "compressed by bzip2",
    b"%PDF-": "a PDF",
}
"""How archives and their like begin; a zip may be a model of numpy's, torch's or Keras's."""
_NO_MODELS = {
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"\x7fELF": "a program or library (ELF)",
    b"SQLite format 3\0": "a database (SQLite)",
    b"d8:announce": "a torrent, the address of a download",
}
"""How files begin that have nothing of a model in them."""
_MISNAMED = {
    b"GGUF": "a GGUF; name it .gguf",
    _ZIP: "a zip archive, as PyTorch writes; name it .bin or .pt",
    b"\x80\x02": "a pickle, as PyTorch wrote; name it .bin or .pt",
    b"\x89HDF": "an HDF5 file, as Keras writes; name it .h5",
}
"""How other models begin than safetensors."""
_OF_PROGRAMS = {
    "openvino_model.xml": "OpenVINO's",
    "mlc-chat-config.json": "MLC's",
    "ndarray-cache.json": "MLC's",
    "*.mlpackage": "Core ML's",
    "*.mlmodelc": "Core ML's",
    "*.engine": "TensorRT's",
    "*.tflite": "TensorFlow Lite's",
    "*.pdparams": "PaddlePaddle's",
    "*.mnn": "MNN's",
    "*.rkllm": "Rockchip's",
    "saved_model.pb": "TensorFlow's",
}
"""What lies in the folders of programs whose models are not read here."""
_UNFINISHED = (".incomplete", ".part", ".crdownload", ".download", ".aria2", ".!ut")


def _is_pointer(head: bytes) -> bool:
    return head.startswith(_POINTER)


def _pointer(path: Path, head: bytes) -> BadFile:
    """What to say of a git-lfs pointer."""
    size = re.search(rb"\nsize (\d{1,15})\b", head)
    missing = f" of {int(size[1]):,} bytes" if size else ""
    return BadFile(f"{at(path)}: is a git-lfs pointer, the file{missing} was not fetched; run git lfs pull")


def whole(path: Path) -> bytes:
    """A small file's bytes; `BadFile` for a git-lfs pointer, or a web page that was saved as JSON."""
    data = path.read_bytes()
    if _is_pointer(data):
        raise _pointer(path, data)
    if path.suffix.lower() == ".json" and _PAGE.match(data):
        raise _page(path)
    return data


def _page(path: Path) -> BadFile:
    return BadFile(f"{at(path)}: is a web page (HTML), no model: an error or login page was saved; fetch it again")


def _zip(path: Path) -> BadFile:
    return BadFile(f"{at(path)}: is a zip archive, as none of numpy's, PyTorch's or Keras's is; take what is in it")


def check_links(folder: Path) -> None:
    """`BadFile` for a link that leads nowhere, as a download to the Hub's cache leaves it that was broken off."""
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink() and not entry.exists() and not entry.name.startswith("."):
            raise BadFile(f"{at(entry)}: is a link to a file that is not there; fetch the model again")


def is_unfinished(path: Path) -> bool:
    """Whether the name is that of a download that was not finished."""
    return path.suffix.lower() in _UNFINISHED


def beside(folder: Path, taken: Iterable[Path], pattern: str) -> Iterator[str]:
    """Notes about what lies beside the weights that are read: others of the same kind, and unfinished downloads."""
    names = sorted(path.name for path in taken)
    others = sorted(p.name for p in folder.glob(pattern) if p.is_file() and p.name not in names)
    if others:
        yield f"not read, the weights are taken from {cut(names[0])}{more(names)}: {cut(others[0])}{more(others)}"
    if halves := _unfinished(folder):
        yield f"left out, a download that was not finished: {cut(halves[0])}{more(halves)}; is the folder whole?"


def _unfinished(folder: Path) -> list[str]:
    """Downloads in a folder that were not finished, those of the Hub's library among them, which it hides."""
    hidden = folder.glob(".cache/huggingface/download/*.incomplete")
    return sorted(p.name for p in (*folder.iterdir(), *hidden) if is_unfinished(p) and p.is_file())


def of_others(path: Path, formats: Iterable[str]) -> BadFile:
    """What to say of a file or folder that is of none of the formats."""
    if not path.is_dir():
        kind = next((whose for pattern, whose in _OF_PROGRAMS.items() if fnmatch(path.name, pattern)), None)
        if kind is not None:
            return BadFile(f"{at(path)}: is {kind} file, which can't be read; give the original model")
        import zipfile  # for such files alone

        if path.is_file() and zipfile.is_zipfile(path):
            return _zip(path)
        return BadFile(f"{at(path)}: is no model file of a known format; known: {', '.join(formats)}")
    for pattern, whose in _OF_PROGRAMS.items():
        if found := sorted(path.glob(pattern)):
            name = cut(found[0].name)
            return BadFile(f"{at(path)}: is {whose} folder ({name}), which can't be read; give the original model")
    lone = sorted(p for p in path.iterdir() if p.suffix.lower() in _LONE and p.is_file())
    if lone:
        names = [p.name for p in lone]
        return BadFile(f"{at(path)}: is no model folder, but has {cut(names[0])}{more(names)}; give that file")
    if (path / "model_index.json").is_file():  # diffusers' list of a pipeline's models
        inside = sorted(p.parent.name for p in path.glob("*/config.json"))
        first = next(
            (name for name in ("transformer", "unet") if name in inside), inside[0] if inside else "transformer"
        )
        return BadFile(f"{at(path)}: is a pipeline of several models, each in a folder; give that of one, {cut(first)}")
    if halves := _unfinished(path):
        listed = f"{cut(halves[0])}{more(halves)}"
        return BadFile(
            f"{at(path)}: holds no model, but downloads that were not finished: {listed}; fetch it to its end"
        )
    return BadFile(f"{at(path)}: holds no model; known: {', '.join(formats)}")


_LONE = {".onnx", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".keras", ".npz", ".msgpack", ".bin"}
"""How models end that are a file each; in a folder, nobody knows which is meant."""


def check(path: Path, head: bytes) -> None:
    """`BadFile` or `Unsupported` with its name for a file that is none of a model; head: its first bytes."""
    if _is_pointer(head):
        raise _pointer(path, head)
    if _PAGE.match(head):
        raise _page(path)
    if _ANNEX.match(head):
        raise BadFile(f"{at(path)}: is a git-annex pointer, the file itself was not fetched; run git annex get")
    if _MESSAGE.match(head) and path.suffix.lower() != ".json" and len(head) < _LONG:
        text = head.decode("utf-8", "replace").split("\n")[0]
        raise BadFile(f"{at(path)}: is the message of a server, no model: {cut(text, 60)}; fetch it again")
    if kind := _named(head, _ARCHIVES):
        raise BadFile(f"{at(path)}: is {kind}, no model; take what is in it")
    if kind := _named(head, _NO_MODELS):
        raise BadFile(f"{at(path)}: is {kind}, no model; fetch the model")
    if head[:4] in _BEFORE_GGUF:
        name = head[3::-1].decode()
        raise Unsupported(f"{at(path)}: is {name.upper()}, a format of before GGUF; convert the original model again")
    if is_unfinished(path):
        raise BadFile(f"{at(path)}: is a download that was not finished ({path.suffix}); fetch it to its end")
    if len(head) >= 512 and not any(head):
        raise BadFile(f"{at(path)}: begins with nothing but zeros: its download was not finished; fetch it again")


def _named(head: bytes, kinds: Mapping[bytes, str]) -> str | None:
    """The kind whose beginning this is, if it is not the length of a safetensors header, which can look like any."""
    if head[8:9] == b"{" and not any(head[4:8]):
        return None
    return next((name for magic, name in kinds.items() if head.startswith(magic)), None)


def misnamed(path: Path, head: bytes) -> None:
    """`BadFile` with its name for another kind of model that is called .safetensors."""
    if kind := _named(head, _MISNAMED):
        raise BadFile(f"{at(path)}: is {kind}")


def written(path: Path, head: bytes) -> None:
    """`BadFile` with what it is for a text that has a model's JSON in something else, or a zip of no known model."""
    if head.startswith(_ZIP):
        raise _zip(path)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for begins, text in _WRITTEN:
        if begins.match(start):
            raise BadFile(f"{at(path)}: {text}")
