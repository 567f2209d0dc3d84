"""How the vectors of a text's tokens become one: sentence-transformers' Pooling module <-> GGUF's `pooling_type`.

modules.json lists the steps of an embedding model; the one of Pooling has a folder, whose config.json says the mode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.convert.tables import own_keys
from llmconv.convert.tables.architecture import Architecture
from llmconv.errors import cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.side_files import MODULES, modules_of

__all__ = ["files_of", "keys_of"]

_KEY = "pooling_type"
# Mode, as newer releases write it and as older ones do -> number in GGUF (llama.h, `llama_pooling_type`).
_MODES = {
    "mean": ("pooling_mode_mean_tokens", 1),
    "cls": ("pooling_mode_cls_token", 2),
    "lasttoken": ("pooling_mode_lasttoken", 3),
}


def keys_of(folder: Checkpoint, arch: str) -> tuple[dict[str, Any], list[str]]:
    """The GGUF key for what the folder's files say, and notes about what no key says."""
    file = _config_file(folder)
    if file is None:
        lost = modules_of(folder.file(MODULES), "Pooling")
        said = "has no config.json: the GGUF does not say how it pools"
        return {}, [f"{cut(path)} of modules.json {said}" for path in lost[:1]]
    number = _number(_json(folder, file))
    if number is None:
        return {}, [f"{cut(file)}: its way of pooling has no number in GGUF; the GGUF does not say it"]
    return {f"{arch}.{_KEY}": np.uint32(number)}, []


def files_of(
    metadata: Mapping[str, Any], folder: Checkpoint, arch: Architecture, dense: Sequence[str] = ()
) -> tuple[dict[str, bytes], list[str]]:
    """Files for a folder that do not yet say what the GGUF's key does, and notes.

    dense: folders of the layers behind pooling, where modules.json has to name them.
    """
    wanted = metadata.get(f"{arch.gguf}.{_KEY}")
    number = int(wanted) if isinstance(wanted, int | np.integer) and wanted is not True else 0
    mode = next(((name, flag) for name, (flag, n) in _MODES.items() if number == n), None)
    file = _config_file(folder)
    usual = own_keys.CONFIG in metadata and number == arch.constants.get(_KEY)  # what the family has unsaid
    if dense and mode is None:
        mode = ("mean", _MODES["mean"][0])
    if mode is None or (file is None and (MODULES in folder.files or usual)):
        return {}, []
    if file is None:
        own = {"word_embedding_dimension": int(metadata.get(f"{arch.gguf}.embedding_length", 0)), mode[1]: True}
        pooling = "1_Pooling" if "1_Dense" not in dense else "2_Pooling"
        steps = [("", "Transformer"), (pooling, "Pooling"), *((path, "Dense") for path in dense)]
        steps += [(f"{len(steps)}_Normalize", "Normalize")] if dense else []
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(steps)
        ]
        return {MODULES: _text(modules), f"{pooling}/config.json": _text(own)}, []
    found = _json(folder, file)
    if not isinstance(found, dict) or _number(found) == number:
        return {}, []
    changed = {k: False if v is True and k.startswith("pooling_mode_") else v for k, v in found.items()}
    changed |= {"pooling_mode": mode[0]} if "pooling_mode" in found else {mode[1]: True}
    return {file: _text(changed)}, [f"{file} says what was edited in the GGUF: pooling by {mode[0]}"]


def _number(config: Any) -> int | None:
    if not isinstance(config, Mapping):
        return None
    flags = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if len(flags) > 1:
        return None  # one vector behind the other
    found = next((number for flag, number in _MODES.values() if flag in flags), None)
    mode = config.get("pooling_mode")
    return found or (_MODES[mode][1] if isinstance(mode, str) and mode in _MODES else None)


def _config_file(folder: Checkpoint) -> str | None:
    """The configuration of the Pooling module, where the folder has it."""
    file = next((f"{path}/config.json" for path in modules_of(folder.file(MODULES), "Pooling")), None)
    return file if file in folder.files else None


def _json(folder: Checkpoint, name: str) -> Any:
    found: Path | bytes | None = folder.files.get(name)
    try:
        return None if found is None else json.loads(folder.file(name) or b"")
    except (ValueError, RecursionError):
        return None


def _text(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
