"""A GGUF's general keys: its type, what most weights are stored in, what card and name say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.cards.about import keys_of
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.places import names as places
from llmconv.quant.filetypes import QUANTIZATION_VERSION, number_of

__all__ = ["folder_name", "general", "size_label"]


def general(
    source: Checkpoint, config: Mapping[str, Any], out: Checkpoint, kind: str = "model"
) -> tuple[dict[str, Any], list[str]]:
    """The general keys of what is made of a folder, and notes.  kind: "model", or "mmproj" of a tower."""
    sizes: Counter[str] = Counter()
    for tensor in out.tensors.values():
        sizes[tensor.type.name] += tensor.nbytes if len(tensor.shape) > 1 else 0
    main = "MXFP4" if "MXFP4" in sizes else sizes.most_common(1)[0][0] if sizes else "F32"
    about, notes = keys_of(source, config, folder_name(source), out.n_elements)
    found: dict[str, Any] = {"general.architecture": "", "general.type": kind} | about
    found.setdefault("general.size_label", size_label(out))
    found["general.file_type"] = np.uint32(number_of(main) or 0)
    found["general.quantization_version"] = np.uint32(QUANTIZATION_VERSION)
    return found, notes


def size_label(out: Checkpoint) -> str:
    """How large a GGUF's model is, as its name gives it; "8x7B": as the model with one of its 8 experts."""
    total = out.n_elements
    experts = [t for t in out.tensors.values() if "_exps." in t.name and len(t.shape) == 3]
    count = experts[0].shape[0] if experts else 0
    if count:
        total -= sum(t.n_elements for t in experts) * (count - 1) // count
    return (f"{count}x" if count else "") + _rounded(total)


def folder_name(folder: Checkpoint) -> str | None:
    """The name of a model's folder, of its lone file, or of where it came from."""
    if folder.info.get("name"):
        return str(folder.info["name"])
    return None if folder.source is None else places.called(folder.source)


def _rounded(count: int) -> str:
    """A parameter count of at least two digits, as names of models give it: 1.1B, 8.0B, 70B, 260K."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= scale or letter == "K":
            value = count / scale
            return f"{value:.{max(2 - len(str(round(value)).lstrip('0')), 0)}f}{letter}"
    raise AssertionError
