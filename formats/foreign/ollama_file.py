"""Ollama's models: a manifest that names blobs by their SHA-256, one of them a GGUF.

    ~/.ollama/models/manifests/registry.ollama.ai/library/NAME/TAG    JSON: layers, each a media type, digest and size
    ~/.ollama/models/blobs/sha256-…

Source: ollama/ollama (`server/manifest.go`, `server/images.go`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llmconv.errors import BadFile, Unsupported, at, cut
from llmconv.formats import guests, limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import regular_size
from llmconv.formats.format import Format
from llmconv.formats.gguf import gguf_file

NAME = "ollama"
_LAYER = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
TEXTS = ("template", "system", "params", "license")
"""Layers that are carried along, as `info["ollama"]`."""


def sniff(path: Path, head: bytes) -> bool:
    return not path.is_dir() and head[:1] == b"{" and b'"schemaVersion"' in head and _LAYER.encode() in head


def open(path: Path) -> Checkpoint:
    """The GGUF of a manifest; its template, system text and parameters are kept in `info`."""
    blobs = next((p.parent / "blobs" for p in path.absolute().parents if p.name == "manifests"), None)
    if blobs is None:
        raise BadFile(f"{at(path)}: is a manifest of Ollama's outside its folder manifests; name it ollama://NAME")
    layers = _layers(path)
    models = [layer for layer in layers if layer[0] == "model"]
    if len(models) != 1:
        raise Unsupported(f"{at(path)}: has {len(models)} layers of weights, expected one GGUF; pull the model again")
    files = {kind: (_blob(blobs, digest, size, path), size) for kind, digest, size in layers if kind in TEXTS}
    model = _blob(blobs, *models[0][1:], path)
    found = gguf_file.open(model)
    said = {kind: _text(file, path) for kind, (file, size) in files.items() if size <= limits.SIDE_FILE_BYTES}
    notes = [
        f"the model's {kind} is left out: only its weights are read"
        for kind in ("adapter", "projector")
        if any(layer[0] == kind for layer in layers)
    ]
    return found.but(*notes, format=NAME, source=path, info={**found.info, "ollama": said}, parts=[model])


def _layers(path: Path) -> list[tuple[str, str, int]]:
    """(kind, digest, size) of every layer."""
    if regular_size(path) > limits.MANIFEST_BYTES:
        raise BadFile(f"{at(path)}: is larger than any manifest; pull the model again")
    try:
        found: list[Any] = json.loads(guests.whole(path))["layers"]
        out = [(str(x["mediaType"]).removeprefix(_LAYER), _DIGEST.fullmatch(x["digest"]), x["size"]) for x in found]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise BadFile(f"{at(path)}: is no manifest of Ollama's; pull the model again") from None
    bad = next((kind for kind, digest, size in out if digest is None or not isinstance(size, int)), None)
    if bad is not None:
        raise BadFile(f"{at(path)}: its layer {cut(bad)} has no digest or size; pull the model again")
    return [(kind, digest[1], size) for kind, digest, size in out if digest is not None]


def _blob(blobs: Path, digest: str, size: int, path: Path) -> Path:
    file = blobs / f"sha256-{digest}"
    if not file.is_file() or file.stat().st_size != size:
        raise BadFile(f"{at(path)}: its blob {file.name[:20]}… is missing or not {size:,} bytes; pull the model again")
    return file


def _text(file: Path, path: Path) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError:
        raise BadFile(f"{at(path)}: its blob {file.name[:20]}… is no UTF-8 text; pull the model again") from None


FORMAT = Format(name=NAME, dialect="gguf", sniff=sniff, open=open)
