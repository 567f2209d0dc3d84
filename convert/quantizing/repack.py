"""`-t REPACK`: a quantized model folder into a GGUF, every layer in the smallest type that says its numbers exactly.

Codes and scales are carried (`scaled.exact`); layers that no type says are read as F32, or become the fallback type.
Matrices in floats that lie on a type's grid return to it (`scaled.lattice`).  Every repacking is proved while it is
written (`proving.written`): code by code, or else, weight by weight, by what both decode to.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.quantizing.proving.by_codes import is_record, record_for, same
from llmconv.convert.quantizing.proving.written import Pair
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.exact import WIDER, Carried, carried
from llmconv.convert.scaled.kept import with_codes_remembered
from llmconv.convert.scaled.lattice import encoder, grid_of
from llmconv.convert.scaled.ordered import Folding, foldings
from llmconv.convert.scaled.unpack import READ_AS_FLOATS, unpack
from llmconv.convert.tables.config import read_config
from llmconv.convert.tables.storage import stays_f32
from llmconv.errors import LlmconvError, Unsupported, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import block, plain

__all__ = ["Repacked", "fallen_back", "pair_of", "repacked"]

_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass
class Repacked:
    """A model with its layers in block types, and what it takes to prove that they say the same.

    checkpoint: in GGUF's dialect.   said: what the source says of the same tensors: records (`by_codes`), or floats.
    decoded: gives them all in F32, read from the source by the way of its scales.
    reasons: why layers are not carried, and how many for each.
    rounded: how far off, in steps, layers are whose sums were rounded.
    """

    checkpoint: Checkpoint
    said: Mapping[str, Tensor]
    decoded: Callable[[], Mapping[str, Tensor]]
    reasons: Counter[str] = field(default_factory=Counter)
    rounded: Mapping[str, float] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        said = [f"no type says {n} weights exactly, they are read as F32: {why}" for why, n in self.reasons.items()]
        if self.rounded:
            said.append(
                f"the sums of {len(self.rounded)} weights with zero points (Q4_1) are rounded to float16, by at most "
                f"{max(self.rounded.values()):.4f} of a step"
            )
        return said


def repacked(
    opened: Checkpoint, to_gguf: Callable[[Checkpoint], Checkpoint], round_sums: bool = False, fold: bool = True
) -> Repacked:
    """The model in GGUF's dialect, its stored layers carried where a type says them.   Scales are read, codes lazily.

    to_gguf: translates a checkpoint, as the caller wishes it to be read.   round_sums: see `carried`.
    fold: act-order may be folded into the model (`scaled.ordered`), whose rows and columns are in another order then.
    """
    found: dict[str, Carried | str] = {}
    layers: dict[str, Coded] = {}

    def look(coded: Coded) -> Tensor:
        layers[coded.weight] = coded = with_codes_remembered(coded)
        found[coded.weight] = carried(coded, round_sums)
        return coded.floats()

    floats = unpack(opened, look)
    folds, unfolded = foldings(layers, floats.tensors, read_config(opened)) if fold else ({}, {})
    found |= unfolded
    if folds:
        own = floats.tensors
        floats = floats.but(tensors=own | {n: f.read_from(layers.get(n), own[n]) for n, f in folds.items()})
        for name in folds.keys() & layers.keys():
            in_order = folds[name].coded(layers[name])
            if in_order is not None:
                found[name] = carried(in_order, round_sums)
    types = _together(found)
    made, decoded, said, factors = (dict(floats.tensors) for _ in range(4))
    for name, kind in types.items():
        layer = found[name]
        assert isinstance(layer, Carried)
        made[name] = layer.tensor(kind)
        if name not in folds:  # else it is proved against the layer as it was stored, put in that order
            decoded[name] = layer.floats()
        said[name] = _said(layer, layers[name], kind, folds.get(name)) or decoded[name]
        factors[name] = _constant(decoded[name], np.float32(1) if layer.factor is None else layer.factor)
    reasons = Counter(layer for layer in found.values() if isinstance(layer, str))
    if mixed := len(found) - len(types) - reasons.total():
        reasons["experts of a layer in different types"] = mixed
    notes = [note for note in floats.notes if not (found and note.endswith(READ_AS_FLOATS))]
    out = to_gguf(floats.but(tensors=made, notes=notes))

    @functools.cache
    def beside() -> Mapping[str, Tensor]:
        return to_gguf(floats.but(tensors=decoded)).tensors

    records: Mapping[str, Tensor]
    try:
        records = to_gguf(floats.but(tensors=said)).tensors
    except LlmconvError:  # of columns that are moved
        records = beside()
    if any(isinstance(layer, Carried) and layer.factor is not None for layer in found.values()):
        _add_factors(out, to_gguf(floats.but(tensors=factors)).tensors)
    grids = _on_grids(out)
    notes = [f"{n} matrices in floats lie on the grid of {kind} and return to it" for kind, n in grids.items()]
    folded = Counter("output" if ".o_proj." in name else "down" for name, each in folds.items() if not each.by_rows)
    for which, n in sorted(folded.items()):
        notes.append(f"columns of {n} {which} projections with act-order, and their inputs' rows, are in groups' order")
    off = {name: layer.rounded for name, layer in found.items() if isinstance(layer, Carried) and layer.rounded}
    return Repacked(out.but(*notes), {n: records[n] for n in out.tensors if n in records}, beside, reasons, off)


def _said(layer: Carried, stored: Coded, kind: BlockClass, fold: Folding | None) -> Tensor | None:
    """The record of a layer as it is stored, without a factor that is beside its blocks; None where there is none."""
    given = layer.coded if layer.rounded else stored
    found = record_for(dataclasses.replace(given, factor=None, divisor=None), kind)
    if found is None or fold is None:
        return found
    return fold.floats(found) if fold.by_rows else None


def _on_grids(out: Checkpoint) -> Counter[str]:
    """Put matrices in floats that lie on a type's grid into that type; how many for each."""
    found: Counter[str] = Counter()
    for name, tensor in out.tensors.items():
        kind = None if stays_f32(tensor) else grid_of(tensor)
        if kind is not None:
            out.tensors[name] = _encoded(tensor, kind)
            found[kind.name] += 1
    return found


def _encoded(tensor: Tensor, kind: BlockClass) -> Tensor:
    encode = encoder(kind)
    return Tensor(tensor.name, tensor.shape, kind, lambda start, stop: encode(tensor.rows(start, stop)))


def _together(found: Mapping[str, Carried | str]) -> dict[str, BlockClass]:
    """The type of each layer that is carried; experts that GGUF stacks get one that says all of them."""
    groups: dict[str, list[str]] = {}
    for name in found:
        groups.setdefault(_EXPERT.sub(".experts.*.", name), []).append(name)
    types: dict[str, BlockClass] = {}
    for names in groups.values():
        layers = [layer for layer in map(found.__getitem__, names) if isinstance(layer, Carried)]
        if len(layers) < len(names):
            continue
        common = [kind for kind in WIDER if all(kind in layer.alike for layer in layers)]
        kinds = {layer.type for layer in layers}
        if common or len(kinds) == 1:
            types |= dict.fromkeys(names, block.by_name(common[0]) if common else kinds.pop())
    return types


def _constant(like: Tensor, value: NDArray[np.float32] | np.float32) -> Tensor:
    """A tensor of that shape, all of one number."""

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return np.full((stop - start, like.row_len), value, np.float32).view(np.uint8)

    return Tensor(like.name, like.shape, plain.F32, read)


def _add_factors(out: Checkpoint, constants: Mapping[str, Tensor]) -> None:
    """Put beside each NVFP4 weight the factor that it has, which came the same way as the weight.

    Raises `Unsupported` where a matrix was joined of several with different ones.
    """
    for name, tensor in list(out.tensors.items()):
        if tensor.type.name != "NVFP4":
            continue
        matrices = tensor.shape[0] if len(tensor.shape) == 3 else 1
        each = tensor.n_rows // matrices
        factors = np.empty(matrices, np.float32)
        for i in range(matrices):
            column = constants[name].rows(i * each, (i + 1) * each)[:, 0]
            if (column != column[0]).any():
                raise Unsupported(
                    f"{out.where}: tensor {cut(name)} is joined of several whose global scales differ, which NVFP4 "
                    "can't say in a GGUF; quantize to another type instead of REPACK"
                )
            factors[i] = column[0]
        if (factors != 1).any():
            out.add(Tensor.from_array(name.removesuffix(".weight") + ".scale", factors))


def fallen_back(checkpoint: Checkpoint, kind: BlockClass) -> Checkpoint:
    """The checkpoint in GGUF's dialect, its matrices in F32 rounded to a type, or F16 where their rows don't fit."""
    tensors = dict(checkpoint.tensors)
    for name, tensor in tensors.items():
        if tensor.type is plain.F32 and not stays_f32(tensor):
            tensors[name] = tensor.astype(kind if tensor.row_len % kind.block_size == 0 else plain.F16)
    return checkpoint.but(tensors=tensors)


def pair_of(written: Tensor, found: Repacked) -> Pair:
    """A tensor of the file that is written, and what it must say."""
    name, want = written.name, found.said[written.name]
    by_record = None
    if is_record(want):
        record = record_for(written, written.type)
        by_record = None if record is None else same(record, want)

    def floats() -> tuple[Tensor, Tensor]:
        return written, found.decoded()[name] if is_record(want) else want

    return Pair(written, by_record, floats)
