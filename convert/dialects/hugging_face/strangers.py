"""Tensors that an architecture's table does not know, and whether a model can do without them.

What would change the result is refused (`--no-strict` leaves it out): in a model folder every tensor that the table
does not know, in a GGUF another weight or bias of a layer, or of one of the pieces that any model is made of.  A GGUF's
other tensors (scales of inputs, statistics, heads for other uses) are carried: they keep their own names in the model
folder, whose metadata lists them, and go back into a GGUF that is made of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

from llmconv.convert.dialects import carried
from llmconv.convert.tables import own_keys
from llmconv.errors import BadFile, more
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["carry", "carried_names", "changes_the_result", "keep_list"]

_PIECES = {
    *("token_embd", "token_embd_norm", "token_embd_in", "token_types", "position_embd"),
    *("output", "output_norm", "output_in", "rope_freqs", "rope_factors_long", "rope_factors_short"),
    *("enc.output_norm", "dec.output_norm"),
}
_LAYER = re.compile(r"(enc\.|dec\.)?blk\.")
_NOTHING = re.compile(r"blk\.\d+\.(attn_rot_embd|nextn\.\w+)\.weight")
"""Of a layer, and yet nothing is computed with it: rotary tables, predictors of further tokens."""


def changes_the_result(name: str) -> bool:
    """Whether a model with this tensor of a GGUF computes something else than one without it."""
    stem, _, part = name.rpartition(".")
    if part not in ("weight", "bias") or _NOTHING.fullmatch(name):
        return False
    return stem in _PIECES or _LAYER.match(name) is not None


def carry(tensors: Mapping[str, Tensor], names: Iterable[str]) -> list[Tensor]:
    """The GGUF's tensors as a model folder can hold them, under their own names."""
    found = [tensors[name] for name in names]
    return [t if t.type.is_plain() else t.astype(plain.F32) for t in found]


def keep_list(metadata: dict[str, Any], names: list[str], computed: Container[str] = ()) -> list[str]:
    """List the carried tensors in the folder's metadata; the note about them.   computed: those that are in others."""
    if not names:
        return []
    metadata[own_keys.GGUF_TENSORS] = json.dumps({"names": names}, ensure_ascii=False, separators=(",", ":"))
    names = [name for name in names if name not in computed]
    return [f"carried under its own name, nothing here computes with it: {names[0]}{more(names)}"] if names else []


def carried_names(metadata: Mapping[str, Any], where: str) -> set[str]:
    """The names that `keep_list` put there; none of tensors that would change the result."""
    names = carried.kept_json(metadata, own_keys.GGUF_TENSORS, where).get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadFile(f"{where}: {own_keys.GGUF_TENSORS} is no list of names; remove the key")
    return {name for name in names if not changes_the_result(name)}
