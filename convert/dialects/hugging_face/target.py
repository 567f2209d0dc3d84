"""The model that a draft is for: its words, and what the draft's keys take from its configuration.

A draft's folder has no tokenizer, and some say neither which layers they read nor how wide these are.  `aimed` puts
both beside it; a GGUF keeps what its keys were made of, so that the folder's config.json comes back as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmconv import formats
from llmconv.convert import archs
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.config import Settings, normalized, read_config
from llmconv.convert.vocab.read.folder import NAMES
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["aimed", "is_draft", "keep", "kept", "own_draft", "with_target"]

_TARGET = "target"
_WITH_DRAFTS = {"DeepseekV4ForCausalLM": "DeepseekV4DSparkModel"}
"""Classes of models whose folders may hold a draft, and its class."""
_SETTINGS = ("num_hidden_layers", "hidden_size", "vocab_size")


def is_draft(folder: Checkpoint) -> bool:
    """Whether it is a model folder of a family whose models draft for others."""
    config = read_config(folder) if folder.dialect == "hf" else {}
    arch = archs.by_hf(config) if config else None
    return arch is not None and _TARGET in arch.settings


def aimed(draft: Checkpoint, target: Path) -> Checkpoint:
    """The draft with the tokenizer of the model that it is for: a folder, of which no weight is read, or a GGUF."""
    if (target / "config.json").is_file():
        found = {name: target / name for name in ("config.json", *NAMES)}
        model = Checkpoint(files={name: path for name, path in found.items() if path.is_file()}, source=target)
    else:
        from llmconv.convert.translate import translate

        model = translate(formats.open(target), "hf")
    config = normalized(read_config(model))
    said = {name: config[name] for name in _SETTINGS if isinstance(config.get(name), int)}
    said["mrope"] = "mrope_section" in (config.get("rope") or {})
    words = {name: file for name, file in model.files.items() if name in NAMES}
    made = draft.but(files={**words, **draft.files})
    made.info[_TARGET] = said
    return made


def own_draft(folder: Checkpoint) -> Checkpoint:
    """The draft (DSpark) that lies beside a model in its own folder, under its tokenizer; any other folder as it is."""
    config = read_config(folder) if folder.dialect == "hf" else {}
    cls = _WITH_DRAFTS.get(str(next(iter(config.get("architectures") or ()), "")))
    if cls is None or not config.get("dspark_block_size"):
        return folder
    beside = {name: tensor for name, tensor in folder.tensors.items() if name.startswith("mtp.")}
    said = json.dumps({**config, "architectures": [cls]}, indent=2, ensure_ascii=False).encode() + b"\n"
    return folder.but(tensors=beside, files={**folder.files, "config.json": said})


def with_target(config: dict[str, Any], folder: Checkpoint) -> dict[str, Any]:
    """A draft's settings with those of its model, where these are known."""
    found = folder.info.get(_TARGET)
    return Settings({**config, _TARGET: found}) if found else config


def keep(folder: Checkpoint) -> dict[str, str]:
    """The key of a GGUF that says what its others take from another model's configuration."""
    found = folder.info.get(_TARGET)
    return {own_keys.TARGET: json.dumps(found)} if found else {}


def kept(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The way back of `keep`: facts of the folder that a GGUF was made of."""
    try:
        found = json.loads(metadata.get(own_keys.TARGET, "null"))
    except (TypeError, ValueError, RecursionError):
        return {}
    return {_TARGET: found} if isinstance(found, dict) else {}
