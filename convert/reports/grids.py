"""Which tensors of a model lie on the grid of a block type: what `-t REPACK` would carry, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass

from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.exact import Carried, carried
from llmconv.convert.scaled.lattice import grid_of
from llmconv.convert.scaled.unpack import unpack
from llmconv.convert.tables.storage import stays_f32
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.progress import Meter
from llmconv.show import Shown

__all__ = ["TensorGrid", "grids_of"]


@dataclass(frozen=True)
class TensorGrid(Shown):
    """A tensor, under the name of its weight.

    stored: "floats", "blocks", or "scaled" for codes with scales.   type: of its blocks or floats; "" of codes.
    grid: the smallest block type that says all its weights exactly, "" where none does.   why: why none does, if known.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    type: str
    grid: str
    why: str = ""


def grids_of(checkpoint: Checkpoint, meter: Meter) -> list[TensorGrid]:
    """Every matrix; floats are read, and compared with what the types' blocks say.   Of codes, scales are read."""
    found: dict[str, Carried | str] = {}

    def look(coded: Coded) -> Tensor:
        found[coded.weight] = carried(coded)
        return coded.floats()

    out = []
    for name, tensor in unpack(checkpoint, look).tensors.items():
        if name in found:
            layer = found[name]
            grid, why = (layer.type.name, "") if isinstance(layer, Carried) else ("", layer)
            out.append(TensorGrid(name, tensor.shape, "scaled", "", grid, why))
        elif not tensor.type.is_plain():
            out.append(TensorGrid(name, tensor.shape, "blocks", tensor.type.name, tensor.type.name))
        elif tensor.type.is_float and not stays_f32(tensor):
            kind = grid_of(tensor)
            out.append(TensorGrid(name, tensor.shape, "floats", tensor.type.name, kind.name if kind else ""))
        meter(tensor.nbytes, name)
    return out
