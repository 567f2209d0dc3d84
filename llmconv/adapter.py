"""Public function that writes a live PEFT model's adapter: `save_adapter`."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from llmconv.api import Result, convert_file
from llmconv.errors import UsageError, kind_of, listed

__all__ = ["save_adapter"]


def _gathered(model: Any) -> dict[str, Any]:
    """The adapters' tensors of a model that is sharded; {} of any other."""
    from llmconv.runtime.live.adapters import is_sharded, whole_of  # loads torch

    if not is_sharded(model):
        return {}
    return {name: whole_of(value) for name, value in model.state_dict().items() if "lora_" in name}


def save_adapter(
    model: Any,
    path: str | os.PathLike[str],
    *,
    adapter: str | None = None,
    outtype: str = "auto",
    force: bool = False,
) -> Result:
    """Write an adapter of a PEFT model in memory as a GGUF of its own (llama.cpp's `--lora`); the model stays as it is.

    adapter: its name in the model; the active one when None.   outtype: as in `save`.
    Of a model that is sharded over processes (FSDP) every process calls it, and the first one writes.
    The bytes are those of `model.save_pretrained` and `convert_file(…, base=…)`, which see for what is refused.
    """
    if not (hasattr(model, "peft_config") and hasattr(model, "get_base_model")):
        raise UsageError(f"save_adapter takes a PEFT model, not {kind_of(model)}; save_gguf writes a model itself")
    names = list(model.active_adapters) if adapter is None else [adapter]
    if len(names) != 1 or names[0] not in model.peft_config:
        raise UsageError(
            f"{listed(names)} can't be written as one adapter; name one of {listed(list(model.peft_config))}"
        )
    inner = model.get_base_model()
    with tempfile.TemporaryDirectory() as place:
        folder, base = Path(place, Path(path).stem or "adapter"), Path(place, ".base")
        base.mkdir()
        config = {**json.loads(inner.config.to_json_string(use_diff=False)), "architectures": [type(inner).__name__]}
        (base / "config.json").write_text(json.dumps(config))
        whole = _gathered(model)
        model.save_pretrained(folder, selected_adapters=names, **({"state_dict": whole} if whole else {}))
        folder = folder if names[0] == "default" else folder / names[0]
        if whole and sys.modules["torch"].distributed.get_rank():
            path = Path(place, "adapter.gguf")
        made = convert_file(folder, path, to="gguf", base=base, outtype=outtype, force=force)
    return dataclasses.replace(made, source=None, source_size=0)
