"""Tensors whose bytes somebody else has made, in the place of those that encoding would make."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmconv.convert.quantizing.plan import Plan, PlannedTensor
from llmconv.convert.writing.options import Writing
from llmconv.errors import UsageError, listed
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.formats.writing.scratch import Rows
from llmconv.progress import Progress
from llmconv.quant.block import Bytes

__all__ = ["Keeping", "Made", "Rounder", "blocks_of", "calibrated", "plainly"]


class Made(Protocol):
    """A tensor's bytes, (rows, row bytes), to be sliced.

    before, after: what errors are predicted to cost, rounded plainly and so.
    """

    @property
    def blocks(self) -> Bytes | Rows: ...
    @property
    def before(self) -> float: ...
    @property
    def after(self) -> float: ...


@dataclass(frozen=True)
class Keeping:
    """Where an interrupted run leaves what it has done: `NAME.rounded.partial`, `NAME.calibration.partial`, and before
    that is there, `NAME.statistics.partial`.

    made_of: JSON values that say what the run is of, besides the calibration.   force: begin anew where it is another.
    """

    output: Path
    made_of: Any
    force: bool

    @property
    def rounded(self) -> Path:
        return self.output.with_name(self.output.name + ".rounded.partial")

    @property
    def calibration(self) -> Path:
        return self.output.with_name(self.output.name + ".calibration.partial")

    @property
    def statistics(self) -> Path:
        return self.output.with_name(self.output.name + ".statistics.partial")

    def forget(self) -> None:
        """The outputs are there."""
        for path in (self.rounded, self.calibration, self.statistics):
            with contextlib.suppress(OSError):
                path.unlink()


class Rounder(Protocol):
    """What knows how to round a model's tensors (`llmconv.calibrate` makes one).   notes: what to say of that."""

    @property
    def notes(self) -> Sequence[str]: ...

    def identity(self) -> Any:
        """JSON values by which it is recognised."""

    def round(
        self,
        checkpoint: Checkpoint,
        kinds: Mapping[str, BlockClass],
        jobs: int | None,
        progress: Progress | None,
        kept: Keeping | None = None,
    ) -> Mapping[str, Made]: ...


def calibrated(
    plan: Plan, checkpoint: Checkpoint, rounder: Rounder, writing: Writing, kept: Keeping | None
) -> tuple[Plan, dict[str, Made]]:
    """The plan with the bytes that `rounder` makes of the tensors that become blocks, and what it made, by name.

    `UsageError` for one that can't be without importance weights and got none.
    """
    kinds = {t.source.name: t.choice.type for t in _to_blocks(plan)}
    made = dict(rounder.round(checkpoint, kinds, writing.jobs, writing.progress, kept)) if kinds else {}
    for tensor in plan.tensors:
        kind = tensor.choice
        if tensor.changes and tensor.source.name not in made and (kind.needs_importance or kind.type.needs_importance):
            raise UsageError(
                f"tensor {tensor.name!r} as {kind.type.name} needs importance weights, and no token of the calibration "
                "went through it; use more text, or another type for it (--tensor-type)"
            )
    files = [dataclasses.replace(f, tensors=[_with(t, made) for t in f.tensors]) for f in plan.files]
    return dataclasses.replace(plan, files=files), made


def _to_blocks(plan: Plan) -> list[PlannedTensor]:
    return [t for t in plan.tensors if t.changes and not t.choice.type.is_plain()]


def plainly(plan: Plan, made: Mapping[str, Made]) -> list[str]:
    """A note on the tensors of which nothing was made."""
    names = [t.name for t in _to_blocks(plan) if t.source.name not in made]
    if not names:
        return []
    said = f"{len(names)} tensors are" if len(names) > 1 else "1 tensor is"
    return [f"{said} rounded plainly, for the calibration says nothing of what errors cost there: {listed(names)}"]


def blocks_of(source: Tensor, kind: BlockClass, made: Made, name: str = "") -> Tensor:
    """What was made of a tensor, in its place."""
    blocks = made.blocks
    return Tensor(name or source.name, source.shape, kind, lambda start, stop: np.ascontiguousarray(blocks[start:stop]))


def _with(planned: PlannedTensor, made: Mapping[str, Made]) -> PlannedTensor:
    found, source = made.get(planned.source.name), planned.source
    if found is None:
        return planned
    kind = planned.choice.type
    name = f"{source.name} as {kind.name}"  # several outputs have each their own
    return dataclasses.replace(planned, source=blocks_of(source, kind, found, name))
