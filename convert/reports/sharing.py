"""Who of several processes quantizes what, and how long that takes: from shapes alone, before there are any."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv.convert.quantizing.plan import Recipe, make_plan
from llmconv.convert.reports.shape import Shape
from llmconv.convert.writing.cast import Rounding, cast
from llmconv.errors import UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.formats.writing.stream import Part, shared
from llmconv.formats.writing.target import Item, Sink, Target
from llmconv.quant import plain
from llmconv.quant.block import BlockType
from llmconv.quant.filetypes import file_type
from llmconv.show import Shown

__all__ = ["Rates", "Share", "SharePlan", "plan_shares"]

_SPEED = {
    **{"Q2_K": 108, "Q3_K": 421, "Q4_K": 85, "Q5_K": 166, "Q6_K": 286, "IQ4_NL": 165, "IQ4_XS": 160, "MXFP4": 858},
    **{"IQ2_XXS": 7, "IQ2_XS": 5, "IQ2_S": 11, "IQ3_XXS": 6, "IQ3_S": 8, "IQ1_S": 13, "IQ1_M": 9},
}
"""Million weights a second that a thread encodes (tests/bench/README.md); other types move memory."""
_MOVED = 1000


@dataclass(frozen=True)
class Rates:
    """disk: bytes a second that all processes together read and write.   network: that each can.   jobs: its threads.

    Zero bytes a second stand for no limit.
    """

    disk: int = 0
    network: int = 0
    jobs: int = 1


@dataclass(frozen=True)
class Share(Shown):
    """What one process does.   tensors: of so many, all or some rows.   first, last: names of tensors.   seconds: of
    arithmetic, and of its network."""

    rank: int
    tensors: int
    weights: int
    first: str
    last: str
    read: int
    written: int
    seconds: float
    moving: float

    @property
    def nbytes(self) -> int:
        return self.read + self.written


@dataclass(frozen=True)
class SharePlan(Shown):
    """Who does what, and what it is bound by.

    size: bytes of the output.   seconds: in all.   bound_by: "arithmetic", "disk" or "network".   disk_seconds: of the
    disk that all share.   balance: the mean share over the largest, in arithmetic.
    """

    name: str
    type: str
    source_type: str
    parameters: int
    source_nbytes: int
    size: int
    shares: tuple[Share, ...]
    seconds: float
    disk_seconds: float
    bound_by: str
    balance: float


def plan_shares(shape: Shape, type: str, processes: int, rates: Rates, config: Mapping[str, Any]) -> SharePlan:
    """The plan of quantizing a model of that shape to a file type by so many processes.

    config: the model's config.json, which says how it is stored where there is no checkpoint; may be empty.
    """
    if processes < 1:
        raise UsageError(f"a plan for {processes} processes is none; give 1 or more")
    stored = _stored(config)
    source = Checkpoint(metadata=dict(shape.metadata), dialect="gguf")
    for name, dims in shape.tensors.items():
        source.add(Tensor.shadow(name, dims, shape.stored.get(name, plain.F32)))
    if not shape.stored:
        source = cast(source, "f16", Rounding(), to="gguf")
    plan = make_plan(source, file_type(type), Path("model.gguf"), Recipe(allow_requantize=True))
    sink = Sink(Path("model.gguf"), -1)
    items = [Item(t.source, [Target(sink, t.choice.type, t.offset)]) for t in plan.tensors]
    read = {t.source.name: _read(t.source, shape, stored) for t in plan.tensors}
    nbytes = {t.source.name: t.nbytes for t in plan.tensors}
    shares = []
    for rank, mine in enumerate(shared(items, processes)):
        own = [(item, (stop - start) / max(1, item.tensor.n_rows)) for item, start, stop in mine]
        names = [item.tensor.name for item, _ in own]
        moved = [sum(_of_rows(of[part[0].tensor.name], part) for part in mine) for of in (read, nbytes)]
        shares.append(
            Share(
                rank=rank,
                tensors=len(set(names)),
                weights=sum((stop - start) * item.tensor.row_len for item, start, stop in mine),
                first=names[0] if names else "",
                last=names[-1] if names else "",
                read=moved[0],
                written=moved[1],
                seconds=sum(_seconds(item, rates.jobs) * part for item, part in own),
                moving=sum(moved) / rates.network if rates.network else 0.0,
            )
        )
    disk = sum(share.nbytes for share in shares) / rates.disk if rates.disk else 0.0
    slowest = {
        "arithmetic": max(share.seconds for share in shares),
        "network": max(share.moving for share in shares),
        "disk": disk,
    }
    bound = max(slowest, key=lambda what: slowest[what])
    mean = sum(share.seconds for share in shares) / processes
    return SharePlan(
        name=shape.name,
        type=plan.file_type.name,
        source_type="as stored" if shape.stored else stored.name,
        parameters=sum(math.prod(dims) for dims in shape.tensors.values()),
        source_nbytes=sum(read.values()),
        size=plan.size,
        shares=tuple(shares),
        seconds=slowest[bound],
        disk_seconds=disk,
        bound_by=bound,
        balance=mean / slowest["arithmetic"] if slowest["arithmetic"] else 1.0,
    )


def _of_rows(nbytes: int, part: Part) -> int:
    """Bytes of some of an item's rows, so that those of all parts are the item's."""
    item, start, stop = part
    rows = max(1, item.tensor.n_rows)
    return nbytes * stop // rows - nbytes * start // rows


def _seconds(item: Item, jobs: int) -> float:
    """Of a process with so many threads, for all of an item."""
    return item.tensor.n_elements / 1e6 / _SPEED.get(item.targets[0].type.name, _MOVED) / max(1, jobs)


def _stored(config: Mapping[str, Any]) -> type[BlockType]:
    """How matrices are stored by what config.json says: FP8, or the type of its numbers; BF16 where it says nothing."""
    method = config.get("quantization_config")
    if isinstance(method, Mapping) and method.get("quant_method") == "fp8":
        return plain.F8_E4M3
    named = {"float32": plain.F32, "float16": plain.F16}
    return named.get(str(config.get("torch_dtype") or config.get("dtype")), plain.BF16)


def _read(tensor: Tensor, shape: Shape, stored: type[BlockType]) -> int:
    """Bytes of the source that a tensor is made from; FP8's scales, one for 128 x 128 weights, count."""
    if shape.stored or len(tensor.shape) < 2:
        return tensor.nbytes
    scales = 4 * tensor.n_elements // (128 * 128) if stored is plain.F8_E4M3 else 0
    return tensor.n_rows * stored.row_bytes(tensor.row_len) + scales
