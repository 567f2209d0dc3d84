"""A calibration: texts as a model's tokens, and what errors in its matrices cost there; made once, for many types."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmconv.convert.quantizing.calibrated import Keeping
from llmconv.convert.reports import streaming
from llmconv.errors import BadFile, UsageError, at, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.sharing.team import current
from llmconv.formats.tensor import Tensor as Stored
from llmconv.formats.writing.checks import check_target
from llmconv.progress import Meter, Progress
from llmconv.quant.block import BlockType
from llmconv.runtime.calibrate.gradients import EMBEDDING, Gradients, gather
from llmconv.runtime.calibrate.kept import Rounds
from llmconv.runtime.calibrate.layered import loaded, prepare, there
from llmconv.runtime.calibrate.matrices import Rounded
from llmconv.runtime.calibrate.sequence import Calibrated, Offers, losses_of, round_model
from llmconv.runtime.calibrate.sofar import SoFar, of_another
from llmconv.runtime.calibrate.texts import Reading, rows_of, without_context, works
from llmconv.runtime.calibrate.threads import one_thread
from llmconv.runtime.calibrate.watching import matrices
from llmconv.runtime.measure.chunks import Running, Source, device_errors
from llmconv.runtime.measure.texts import Text, TextSource, each_of, read as read_text
from llmconv.runtime.model import Model
from llmconv.runtime.streamed.memory import Memory
from llmconv.runtime.streamed.weights import Weights
from llmconv.show import Shown

__all__ = ["EFFORTS", "Calibration", "OnText", "calibrate"]

EFFORTS = ("fast", "standard", "best")
_FILE_TYPE = "llmconv.calibration"
TOKENS = 16_384
"""Of a calibration for which nobody says how many chunks."""
_RUN = "calibration.run"  # of what an interrupted one leaves: what it was of
_KNOWN_BY, _OTHER = 16, 0.02  # tokens whose embeddings tell a model, and by how much those of its roundings may differ
_BATCH = 2048  # tokens that run together: what a backward pass keeps of them is in memory at once


@dataclass(repr=False)
class Calibration(Shown):
    """What `quantize(calibration=…)` rounds by.

    batches: (rows, tokens) int64 ids each.   effort: "fast": inputs alone count; "standard": squared gradients too;
    "best": and rounding goes on for longer.
    gradients: empty with "fast".   model: settings by which a model is recognised.   tokens: in all batches.
    device, memory: as `calibrate` takes them, for rounding.   embedded: (tokens, width) float32, the embeddings of the
    first tokens, by which other weights of the same shape are noticed; None: nobody looks.
    """

    batches: list[Tensor]
    effort: str
    gradients: Gradients
    model: Mapping[str, int | str]
    notes: list[str] = field(default_factory=list)
    device: str | torch.device = "auto"
    memory: Memory = None
    embedded: Tensor | None = None

    @property
    def tokens(self) -> int:
        return sum(batch.numel() for batch in self.batches)

    def loaded(self, checkpoint: Checkpoint) -> Model:
        """The model, in memory or left in its file.  `UsageError` for another than it was made on."""
        model = loaded(Running(self.device, memory=self.memory), checkpoint, self.in_nats)
        own = _settings(model)
        differ = [key for key, value in self.model.items() if own.get(key) != value]
        if differ:
            key = differ[0]
            raise UsageError(
                f"{model.where}: has {key} {own.get(key)}, the calibration's model {self.model[key]}; it is of another "
                "model, make one with llmconv calibrate"
            )
        self._check_rows(model)
        self._look_at_weights(model)
        return model

    def _look_at_weights(self, model: Model) -> None:
        """A note where they are not those that it was made of: a model trained further may well be rounded by it."""
        if self.embedded is None:
            return
        off = float((_embedded(model, self.batches) - self.embedded).norm() / self.embedded.norm())
        note = (
            f"the calibration was made of other weights: embeddings differ by {off:.0%}; if {model.where} is no "
            "further training of that model, make one with llmconv calibrate"
        )
        if not off <= _OTHER and note not in self.notes:
            self.notes.append(note)

    def _check_rows(self, model: Model) -> None:
        """`UsageError` where its matrices are not the model's."""
        heights = {name: module.shape[-2] for name, module in matrices(model).items()}
        for name, parts in self.gradients.rows.items():
            rows, found = sum(part.shape[0] for part in parts), heights.get(name)
            if found != rows and name != EMBEDDING:
                has = "no tensor" if found is None else f"{found} rows in"
                raise UsageError(
                    f"{model.where}: has {has} {name!r}, the calibration's model {rows}; it is of another model, make "
                    "one with llmconv calibrate"
                )

    def identity(self) -> Any:
        """A hash of what it knows."""
        found = hashlib.sha256(self.effort.encode())
        g = self.gradients
        for array in (*self.batches, *g.tokens.values(), g.embedding, g.head):
            found.update(b"" if array is None else array.cpu().contiguous().numpy().data)
        for name in g.rows:
            for part in g.of_rows(name) or ():
                found.update(part.numpy().data)
        return found.hexdigest()

    def round(
        self,
        checkpoint: Checkpoint,
        kinds: Mapping[str, type[BlockType]],
        jobs: int | None,
        progress: Progress | None,
        kept: Keeping | None = None,
    ) -> dict[str, Rounded]:
        """Round tensors of a float model in GGUF's dialect to their types; those that it says something of, by name.

        kept: where what is done stays when the run is interrupted.
        """
        return self._round(checkpoint, kinds, jobs, progress, None if kept is None else Rounds(kept, self.identity()))

    def _round(
        self,
        checkpoint: Checkpoint,
        kinds: Mapping[str, type[BlockType]],
        jobs: int | None,
        progress: Progress | None,
        kept: Rounds | None,
    ) -> dict[str, Rounded]:
        model = self.loaded(checkpoint)
        weights = sum(checkpoint.tensors[name].n_elements for name in kinds)
        meter = Meter(progress, "round", weights, "weights")
        known = Calibrated(self.batches, self.gradients, self.effort == "best")
        return round_model(model, known, kinds, jobs, meter, kept)

    def losses(
        self, checkpoint: Checkpoint, kinds: Offers, jobs: int | None, progress: Progress | None
    ) -> dict[str, list[float]]:
        """What rounding each tensor plainly to each of its types is predicted to cost, alone; of those it knows."""
        model = self.loaded(checkpoint)
        weights = sum(checkpoint.tensors[name].n_elements for name in kinds)
        meter = Meter(progress, "look at types", weights, "weights")
        return losses_of(model, Calibrated(self.batches, self.gradients), kinds, jobs, meter)

    @property
    def in_nats(self) -> bool:
        """Whether losses are nats of KL divergence a token, so that they add up to the file's."""
        return self.effort != "fast"

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write it, for `Calibration.open` and `quantize --calibration`: a GGUF, complete or not at all."""
        return self._save(Path(path), force, {})

    def _save(self, path: Path, force: bool, more: Mapping[str, Any]) -> Path:
        meta: dict[str, Any] = {"general.type": _FILE_TYPE, "calibration.effort": self.effort, **more}
        meta |= {f"calibration.model.{key}": value for key, value in self.model.items()}
        made = Checkpoint(metadata=meta)
        for i, batch in enumerate(self.batches):
            made.add(Stored.from_array(f"batch.{i}", batch.numpy().astype(np.int32)))
        g = self.gradients
        for name, weights in g.tokens.items():
            made.add(Stored.from_array(f"tokens.{name}", weights.numpy()))
        for name, parts in g.rows.items():
            for i, part in enumerate(parts):
                made.add(dataclasses.replace(part, name=f"rows.{i}.{name}"))
        for name, matrix in (("embedding", g.embedding), ("head", g.head), ("embedded", self.embedded)):
            if matrix is not None:
                made.add(Stored.from_array(name, matrix.numpy()))
        gguf_file.save(made, path, force=force)
        return path

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Calibration:
        """What `save` wrote; `BadFile` for anything else."""
        opened = gguf_file.open(Path(path))
        meta = opened.metadata
        if meta.get("general.type") != _FILE_TYPE or meta.get("calibration.effort") not in EFFORTS:
            raise BadFile(f"{at(path)}: is no calibration; make one with llmconv calibrate MODEL TEXT -o FILE")
        lazy = opened.tensors
        tensors = {
            n: torch.from_numpy(np.array(t.numpy())) for n, t in lazy.items() if not n.startswith("rows.")
        }  # fmt: skip
        count = sum(name.startswith("batch.") for name in tensors)
        try:
            batches = [tensors[f"batch.{i}"].long() for i in range(count)]
            rows: dict[str, list[Stored]] = {}
            for name in lazy:
                if name.startswith("rows."):
                    rest = name.removeprefix("rows.").partition(".")
                    assert int(rest[0]) == len(rows.setdefault(rest[2], []))
                    rows[rest[2]].append(lazy[name])
        except (KeyError, ValueError, AssertionError):
            raise BadFile(f"{at(path)}: its tensors are not those of a calibration; make it again") from None
        tokens = {n.removeprefix("tokens."): t for n, t in tensors.items() if n.startswith("tokens.")}
        gradients = Gradients(tokens, rows, tensors.get("embedding"), tensors.get("head"))
        prefix = "calibration.model."
        known = {k.removeprefix(prefix): v for k, v in meta.items() if k.startswith(prefix)}
        model = {k: v if isinstance(v, str) else int(v) for k, v in known.items()}
        return Calibration(batches, str(meta["calibration.effort"]), gradients, model, embedded=tensors.get("embedded"))


@torch.no_grad()
def _embedded(model: Model, batches: Sequence[Tensor]) -> Tensor:
    there(model, streaming.EMBEDDING)
    try:
        found: Tensor = model.token_embd(batches[0].flatten()[:_KNOWN_BY].to(model.device), torch.float32)
        return found.cpu()
    finally:
        if isinstance(model.wants, Weights):
            model.wants.rest()


def _settings(model: Model) -> dict[str, int | str]:
    spec = model.decoder
    return {"arch": spec.arch, "width": spec.dim, "layers": len(model.blk), "vocabulary": spec.vocab_size}


def calibrate(
    model: Source,
    text: TextSource | Sequence[TextSource],
    output: str | os.PathLike[str] | None = None,
    *,
    effort: str = "standard",
    context: int | None = None,
    chunks: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    memory: Memory = None,
    resumable: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Look at a model on texts, so that `quantize(calibration=…)` rounds what matters there best.

    model: a path, a checkpoint or a loaded model: the float model that will be quantized.
    text: one or several, as `perplexity` takes them, of the kind that the model is for; there is no default.
    output: a file for it, as `Calibration.save` writes it; nothing is written when None.
    effort: "fast": what goes into each matrix; "standard": and what errors in its results cost the predictions;
        "best": the same, for a search that goes on until it hardly finds anything.
    context: tokens in a chunk; default 512, or what the model takes.
    chunks: of all texts together, shared out among them; default as many as make 16,384 tokens (of pairs all).
    seed: of the labels that are drawn from the model's predictions.   device, dtype: as `load` takes them.
    memory: as `perplexity` takes it; a larger model is looked at layer by layer, forward and back, with equal results.
    resumable: keep what is found so far in `OUTPUT.partial`, about every minute: the same call goes on from it, with
        equal results.   force: an existing output, and a `.partial` of another run, is replaced.

    Raises `UsageError` for texts of less than a chunk, `LlmconvError` where the model computes what is not finite.
    """
    _check_effort(effort)
    texts = each_of(text)
    target, kept = None if output is None else Path(output), None
    if target is not None:
        files = [*texts, *([] if isinstance(model, Checkpoint | Model) else [model])]
        inputs = [Path(file) for file in files if not isinstance(file, Text)]
        check_target(target, force=force, inputs=inputs)
    if resumable:
        kept = _partial(target, force)
    how = Running(device, dtype, memory=memory)
    made = _looked_at(how, model, Reading(texts, context, chunks), effort, seed, progress, kept)
    if target is not None:
        made.save(target, force=force)
    if kept is not None:
        kept.forget()
    return made


def _partial(target: Path | None, force: bool) -> SoFar:
    if target is None:
        raise UsageError("--resumable keeps what there is beside the output; give one (-o)")
    if current() is not None:
        raise UsageError("--resumable is for one process here; leave it out, or run without torchrun")
    return SoFar.beside(target, force)


def _looked_at(
    how: Running,
    source: Source,
    reading: Reading,
    effort: str,
    seed: int,
    progress: Progress | None,
    kept: SoFar | None,
) -> Calibration:
    """What a model's calibration on texts knows; arguments as `calibrate`'s."""
    model = loaded(how, source, effort != "fast")
    found = works(model, reading, TOKENS)
    batches = [part for rows in rows_of(found) for part in _cut(rows.cpu())]
    meter = Meter(progress, "calibrate", sum(len(b) for b in batches), f"{found[0].unit}s")
    gradients = Gradients()
    prepare(model, batches)
    if effort != "fast":
        with one_thread(), device_errors(model.device, "use a smaller context (-c) or --effort fast"):
            gradients = gather(model, batches, seed, meter, kept)
    notes = [*model.notes, *(note for work in found for note in work.notes)]
    embedded = _embedded(model, batches)
    return Calibration(batches, effort, gradients, _settings(model), notes, how.device, how.memory, embedded)


def _check_effort(effort: str) -> None:
    if effort not in EFFORTS:
        raise UsageError(f"unknown effort {cut(effort)}; give {', '.join(EFFORTS[:-1])} or {EFFORTS[-1]}")


def _cut(rows: Tensor) -> list[Tensor]:
    """A batch in pieces of at most 2048 tokens."""
    return [part.clone() for part in torch.split(rows, max(1, _BATCH // rows.shape[1]))]


@dataclass
class OnText:
    """For `quantize(calibration=…)`: calibrate on texts when the model is there; arguments as `calibrate`'s."""

    text: TextSource | Sequence[TextSource]
    effort: str = "standard"
    context: int | None = None
    chunks: int | None = None
    seed: int = 0
    device: str | torch.device = "auto"
    memory: Memory = None
    made: Calibration | None = field(default=None, repr=False)
    """Once it was needed."""

    def __post_init__(self) -> None:
        _check_effort(self.effort)

    def identity(self) -> Any:
        """What it is made of."""
        read = [hashlib.sha256(repr(read_text(text)).encode()).hexdigest() for text in each_of(self.text)]
        return [read, self.effort, self.context, self.chunks, self.seed]

    def round(
        self,
        checkpoint: Checkpoint,
        kinds: Mapping[str, type[BlockType]],
        jobs: int | None,
        progress: Progress | None,
        kept: Keeping | None = None,
    ) -> dict[str, Rounded]:
        """As `Calibration.round`; what the texts say is kept too."""
        rounds = None if kept is None else Rounds(kept, self.identity())
        return self._known(checkpoint, progress, kept)._round(checkpoint, kinds, jobs, progress, rounds)

    def losses(
        self, checkpoint: Checkpoint, kinds: Offers, jobs: int | None, progress: Progress | None
    ) -> dict[str, list[float]]:
        """As `Calibration.losses`."""
        return self._known(checkpoint, progress).losses(checkpoint, kinds, jobs, progress)

    @property
    def in_nats(self) -> bool:
        """As `Calibration.in_nats`."""
        return self.effort != "fast"

    @property
    def notes(self) -> list[str]:
        """As `Calibration.notes`."""
        return [] if self.made is None else self.made.notes

    def _known(self, checkpoint: Checkpoint, progress: Progress | None, kept: Keeping | None = None) -> Calibration:
        if self.made is None and kept is not None:
            self.made = self._kept(kept)
        if self.made is None:
            self.made = self._looked_at(checkpoint, progress, kept)
            if kept is not None:
                self._keep(kept)
        return self.made

    def _looked_at(self, checkpoint: Checkpoint, progress: Progress | None, kept: Keeping | None) -> Calibration:
        so_far = None
        if kept is not None and current() is None:  # of several processes each has sums of its own
            so_far = SoFar(kept.statistics, kept.force)
        reading = Reading(each_of(self.text), self.context, self.chunks)
        how = Running(self.device, memory=self.memory)
        with without_context():
            return _looked_at(how, checkpoint, reading, self.effort, self.seed, progress, so_far)

    def _mark(self, kept: Keeping) -> str:
        said = json.dumps([kept.made_of[0], self.identity()], sort_keys=True)  # the inputs, whatever they become
        return hashlib.sha256(said.encode()).hexdigest()

    def _keep(self, kept: Keeping) -> None:
        assert self.made is not None
        self.made._save(kept.calibration, True, {_RUN: self._mark(kept)})
        SoFar(kept.statistics, kept.force).forget()

    def _kept(self, kept: Keeping) -> Calibration | None:
        """What an earlier run found, if it is of the same texts and model."""
        if not kept.calibration.exists():
            return None
        try:
            same = gguf_file.open(kept.calibration).metadata.get(_RUN) == self._mark(kept)
            found = Calibration.open(kept.calibration) if same else None
        except BadFile:
            same, found = False, None
        if found is None:
            if kept.force:
                return None
            raise of_another(kept.calibration)
        found.device, found.memory = self.device, self.memory
        return found
