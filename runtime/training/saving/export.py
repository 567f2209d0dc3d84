"""What comes out of a run: the trained model in any format and type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from llmconv import formats
from llmconv.convert import layouts
from llmconv.convert.quantizing.quantize import quantize
from llmconv.convert.translate import translate
from llmconv.errors import UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name
from llmconv.runtime.save import checkpoint_of
from llmconv.runtime.training.parallel import Team

__all__ = ["KINDS", "check_exports", "check_layout", "export", "gathered"]

KINDS = {"gguf": ("gguf", ".gguf"), "safetensors": ("hf", ""), "json": ("json", ".json")}
"""Format -> the dialect it is written in and what its name ends with (nothing: a folder)."""
FLOATS = ("F64", "F32", "F16", "BF16")


def check_exports(formats_text: str, type_name: str, layout: str = "") -> tuple[list[str], str]:
    """The formats and the type asked for; `UsageError` when one is unknown or they don't go together."""
    kinds = [kind.strip() for kind in formats_text.split(",") if kind.strip()]
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"unknown export {kind!r}; known: {', '.join(KINDS)}")
    if layout:
        layouts.by_name(layout)
        if "json" not in kinds:
            raise UsageError(f"layout {layout} is of a JSON, and none is exported; add json to --export")
    name = type_name.upper()
    if name not in FLOATS:
        from llmconv.quant.filetypes import file_type

        name = file_type(name).name
        if kinds != ["gguf"]:
            raise UsageError(f"only GGUF holds {name}; export gguf alone, or choose {', '.join(FLOATS).lower()}")
    return kinds, name


def check_layout(start: Checkpoint, layout: str) -> None:
    """`Unsupported`, before anything is trained, for a model that can't be written in the layout."""
    if layout:
        translate(Checkpoint(dict(start.tensors), dict(start.metadata)), "json", layout=layout)


def gathered(model: nn.Module, team: Team, metadata: dict[str, Any]) -> Checkpoint | None:
    """The model as a checkpoint in GGUF's dialect; None in all but the first process of a sharded run."""
    if not team.sharded:
        return checkpoint_of(model, metadata)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if team.rank:
        return None
    out = Checkpoint(metadata=metadata, dialect="gguf")
    for key, value in whole.items():
        name = key if "." in key else f"{key}.weight"
        out.add(Tensor.from_array(name, value.numpy()))
    return out


def export(
    checkpoint: Checkpoint,
    folder: Path,
    name: str,
    kinds: Sequence[str],
    type_name: str,
    history: Mapping[str, Any] | None = None,
    layout: str | None = None,
) -> list[Path]:
    """Write the checkpoint as each of `kinds` into `folder`, replacing what an earlier run left; the paths.

    Vectors stay float32 in GGUF, as the ecosystem has them.
    history: what a version "1.0" JSON says of its training, under `metadata`.
    layout: of a JSON; its family's when None.
    """
    paths = []
    for kind in kinds:
        dialect, suffix = KINDS[kind]
        path = folder / f"{name}{suffix}"
        if type_name not in FLOATS:
            tensors = {n: t if len(t.shape) > 1 else t.astype(by_name("F32")) for n, t in checkpoint.tensors.items()}
            quantize(Checkpoint(tensors, dict(checkpoint.metadata)), path, type_name, force=True)
        else:
            cast = by_name(type_name)
            keep = by_name("F32") if kind == "gguf" and type_name != "F64" else cast
            tensors = {n: t.astype(cast if len(t.shape) > 1 else keep) for n, t in checkpoint.tensors.items()}
            made = translate(Checkpoint(tensors, dict(checkpoint.metadata)), dialect, layout=layout)
            document = made.metadata.get("document")
            if history and isinstance(document, dict) and document.get("version") == "1.0":
                made.metadata["document"] = {**document, "metadata": dict(history)}
            formats.by_name(kind).save(made, path, force=True)
        paths.append(path)
    return paths
