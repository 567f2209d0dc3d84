"""A calibration that is checked on a text that it has not seen, and left out where it does harm there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmconv.convert.quantizing.calibrated import Keeping
from llmconv.errors import cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.formats.writing.scratch import Rows, Scratch
from llmconv.progress import Meter, Progress
from llmconv.quant.block import BlockType
from llmconv.quant.rounding.groups import stored_as
from llmconv.runtime.calibrate.calibration import Calibration, OnText
from llmconv.runtime.calibrate.gradients import Gradients
from llmconv.runtime.calibrate.matrices import Rounded
from llmconv.runtime.calibrate.sequence import Calibrated, Offers, compare_losses
from llmconv.runtime.calibrate.texts import Reading, rows_of, without_context, works
from llmconv.runtime.measure.compare import compare
from llmconv.runtime.measure.texts import TextSource, each_of, read

__all__ = ["Verified"]

Kinds = Mapping[str, type[BlockType]]
TOKENS, _CHUNKS = 8192, 16
"""Of a text for which nobody says how many chunks: tokens whose inputs are looked at, chunks that are compared."""


@dataclass
class Verified:
    """For `quantize(calibration=…)`: what `calibration` rounds, checked on texts that it has not seen.

    A tensor whose errors are predicted to cost more there than plain rounding's is rounded plainly; and so are all, if
    the KL divergence to the float model, measured, is no smaller than theirs.   text, context, chunks: as
    `calibrate`'s; default as many chunks as make 8,192 tokens.   notes: what was found, once it has rounded.
    """

    calibration: Calibration | OnText
    text: TextSource | Sequence[TextSource]
    context: int | None = None
    chunks: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def in_nats(self) -> bool:
        """As `Calibration.in_nats`."""
        return self.calibration.in_nats

    def losses(
        self, checkpoint: Checkpoint, kinds: Offers, jobs: int | None, progress: Progress | None
    ) -> dict[str, list[float]]:
        """As `Calibration.losses`."""
        return self.calibration.losses(checkpoint, kinds, jobs, progress)

    def identity(self) -> Any:
        """As `Calibration.identity`."""
        seen = OnText(self.text, context=self.context, chunks=self.chunks)
        return [self.calibration.identity(), seen.identity()]

    def round(
        self,
        checkpoint: Checkpoint,
        kinds: Kinds,
        jobs: int | None,
        progress: Progress | None,
        kept: Keeping | None = None,
    ) -> dict[str, Rounded]:
        """As `Calibration.round`; what is found on the other texts is not kept."""
        made = self.calibration.round(checkpoint, kinds, jobs, progress, kept)
        worse = self._worse(checkpoint, kinds, made, jobs, progress)
        plain = _plain(checkpoint, kinds, made)
        mixed = {name: plain[name] if name in worse else found for name, found in made.items()}
        now, before = (self._kld(checkpoint, kinds, ready, progress) for ready in (mixed, plain))
        said = f"KL divergence on the text to verify by: {now:.4g}, rounded plainly {before:.4g}"
        if not now < before:
            self.notes.append(f"{said}; everything is rounded plainly, for the calibration does not help there")
            return plain
        self.notes.append(said)
        if worse:
            names = cut(", ".join(sorted(worse)))
            self.notes.append(
                f"{len(worse)} of {len(made)} tensors are rounded plainly, which costs less there: {names}"
            )
        return mixed

    def _worse(
        self, checkpoint: Checkpoint, kinds: Kinds, made: Mapping[str, Rounded], jobs: int | None, progress: Any
    ) -> set[str]:
        """The tensors that are predicted to cost more than if they were rounded plainly."""
        known = self.calibration if isinstance(self.calibration, Calibration) else self.calibration.made
        assert known is not None
        model = known.loaded(checkpoint)
        with without_context():
            found = works(model, Reading(each_of(self.text), self.context, self.chunks), TOKENS)
        batches = [rows.cpu() for rows in rows_of(found)]
        g = known.gradients  # each token counts alike here: the weights are those of the calibration's tokens
        alike = Calibrated(batches, Gradients({}, g.rows, g.embedding, g.head))
        meter = Meter(progress, "verify", sum(checkpoint.tensors[name].n_elements for name in made), "weights")
        losses = compare_losses(model, alike, kinds, made, jobs, meter)
        return {name for name, (plain, now) in losses.items() if now > plain}

    def _kld(self, checkpoint: Checkpoint, kinds: Kinds, made: Mapping[str, Rounded], progress: Any) -> float:
        """Mean, over the texts."""
        ready = {name: _tensor(checkpoint.tensors[name], kinds[name], found) for name, found in made.items()}
        rounded = checkpoint.but(tensors=checkpoint.tensors | ready)
        total = tokens = 0.0
        for text in each_of(self.text):
            chunks = self.chunks or (_CHUNKS if read(text).pairs is None else None)
            how: dict[str, Any] = {"context": self.context, "chunks": chunks, "progress": progress}
            how |= {"device": self.calibration.device, "memory": self.calibration.memory}
            found = compare(checkpoint, rounded, text, **how)
            total, tokens = total + found.mean_kld * found.tokens, tokens + found.tokens
        return total / tokens


def _plain(checkpoint: Checkpoint, kinds: Kinds, made: Mapping[str, Rounded]) -> dict[str, Rounded]:
    found, scratch = {}, Scratch()
    for name, rounded in made.items():
        values = np.ascontiguousarray(checkpoint.tensors[name].numpy(), np.float32)
        weights = values.reshape(-1, *values.shape[-2:]) if values.ndim > 2 else values[None]
        plain = rounded.plainly(weights, kinds[name])
        found[name] = plain.aside(scratch) if isinstance(rounded.blocks, Rows) else plain
    return found


def _tensor(source: Tensor, kind: type[BlockType], made: Rounded) -> Tensor:
    blocks = made.blocks
    return Tensor(
        source.name, source.shape, stored_as(kind), lambda start, stop: np.ascontiguousarray(blocks[start:stop])
    )
