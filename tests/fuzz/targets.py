"""What is fuzzed: each function reads bytes as a whole file of its format, and lets only sentences pass."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from llmconv.errors import LlmconvError
from llmconv.formats import json_file, msgpack_file, safetensors_file
from llmconv.formats.gguf import gguf_file

FOLDER = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
_file = FOLDER / f"llmconv-fuzz-{os.getpid()}"


def _put(data: bytes, suffix: str) -> Path:
    path = _file.with_suffix(suffix)
    path.write_bytes(data)
    return path


def clean() -> None:
    for path in FOLDER.glob(_file.name + "*"):
        path.unlink()


def gguf(data: bytes) -> None:
    """Keys, strings, tensors, and the way back."""
    with contextlib.suppress(LlmconvError):
        found = gguf_file.open(_put(data, ".gguf"))
        for value in found.metadata.values():
            if not isinstance(value, str | bytes) and hasattr(value, "__len__"):
                list(value)
        for tensor in found.tensors.values():
            if tensor.nbytes < 1 << 20:
                tensor.blocks()
        gguf_file.header(found)


def safetensors(data: bytes) -> None:
    with contextlib.suppress(LlmconvError):
        found = safetensors_file.open(_put(data, ".safetensors"))
        for tensor in found.tensors.values():
            tensor.blocks()
        safetensors_file.header(found)


def json(data: bytes) -> None:
    """What is read is written again as a document that reads the same."""
    with contextlib.suppress(LlmconvError):
        first = json_file.open(_put(data, ".json"))
        pieces: list[bytes] = []
        json_file.render(first, pieces.append)
        json_file.open(_put(b"".join(pieces), ".json"))


def msgpack(data: bytes) -> None:
    with contextlib.suppress(LlmconvError):
        first = msgpack_file.open(_put(data, ".msgpack"))
        pieces: list[bytes] = []
        msgpack_file.render(first, pieces.append)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "gguf": gguf, "safetensors": safetensors, "json": json, "msgpack": msgpack,
}  # fmt: skip
CORPUS = Path(__file__).parent / "corpus"


def instrumented(name: str) -> None:
    """Run libFuzzer on a target until it ends or finds something; see `python tests/fuzz/run.py`."""
    import atheris

    with atheris.instrument_imports(include=["llmconv"], enable_loader_override=False):
        for module in [m for m in sys.modules if m.startswith("llmconv.formats")]:
            del sys.modules[module]

    for module in ("gguf_file", "json_file", "msgpack_file", "safetensors_file"):
        globals()[module] = sys.modules[f"llmconv.formats.{module}"]
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()
