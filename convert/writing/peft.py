"""PEFT's files of an adapter: its configuration, its tensors by module, and what each product is multiplied by.

Source: PEFT's files (huggingface.co/docs/peft, "Checkpoint format").
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.errors import BadFile, Unsupported, at
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.safetensors_header import read_tensors
from llmconv.formats.tensor import Tensor

__all__ = ["PREFIX", "check_config", "config_of", "opened", "parted", "scale_of"]

_NOT_MERGED = (
    *("layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "use_qalora"),
    *("use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config", "megatron_config"),
)
"""Settings of an adapter that make it something else than W + s · B A of whole layers."""
PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\.lora_(?P<kind>embedding_A|embedding_B|A|B|magnitude_vector)(\.(?!bias$)\w+)??(\.weight)?(?P<bias>\.bias)?"
)


def config_of(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise BadFile(f"{at(folder)}: has no adapter_config.json, expected a PEFT adapter's folder")
    try:
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise BadFile(f"{at(path)}: is not a JSON object; fetch it again") from None
    check_config(config, at(path))
    return config


def check_config(config: Mapping[str, Any], where: str) -> None:
    """`Unsupported` for an adapter that is something else than products of whole layers."""
    for setting in _NOT_MERGED:
        if config.get(setting):
            raise Unsupported(f"{where}: {setting} is set, which can't be merged; merge the adapter with PEFT itself")
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise Unsupported(f"{where}: peft_type is {config['peft_type']!r}; only LORA adapters are merged")


def opened(folder: Path) -> Checkpoint:
    """The adapter's tensors."""
    loose, packed = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    if loose.is_file():
        found = Checkpoint(source=loose)
        read_tensors(found, loose)
    elif list(folder.glob("adapter_model-*-of-*.safetensors")):  # in parts, which their names count
        found = safetensors_file.open(folder)
    elif packed.is_file() or list(folder.glob("adapter_model-*-of-*.bin")):
        from llmconv.formats.foreign.torch import torch_file  # which few adapters need

        found = torch_file.open(packed if packed.is_file() else folder)
    else:
        raise BadFile(f"{at(folder)}: has no adapter_model.safetensors or .bin, expected a PEFT adapter's folder")
    return found


def parted(adapter: Checkpoint) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """(module -> its lora_A, lora_B, ...; tensors trained whole)."""
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in adapter.tensors.items():
        bare = name.removeprefix(PREFIX)
        match = _PART.fullmatch(bare)
        if match:
            parts.setdefault(match["module"], {})[match["kind"] + (match["bias"] or "")] = tensor
        else:
            whole[bare] = tensor
    return parts, whole


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """PEFT's rank_pattern and alpha_pattern: a key is the end of a module's name, or a regular expression for it."""
    for key, value in patterns.items() if isinstance(patterns, dict) else ():
        try:
            if re.fullmatch(rf"(.*\.)?({key})", module):
                return value
        except re.error:
            continue
    return default


def scale_of(config: Mapping[str, Any], module: str, folder: Path) -> tuple[int, np.float32]:
    """A module's rank r, and what its B A is multiplied by.  PEFT's defaults where the file leaves them out."""
    rank = _pattern(config.get("rank_pattern"), module, config.get("r", 8))
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in (rank, alpha))
    if not numbers or not isinstance(rank, int) or rank < 1:
        raise BadFile(f"{at(folder)}: adapter_config.json gives r {rank!r} and lora_alpha {alpha!r}, expected numbers")
    return rank, np.float32(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
