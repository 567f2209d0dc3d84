"""Making an importance matrix: which of a model's inputs are large, over texts."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmconv.convert.quantizing import journal
from llmconv.convert.quantizing.importance import read_sums
from llmconv.errors import OutputError, UsageError, at, cut
from llmconv.formats.sharing.team import current
from llmconv.formats.writing.checks import check_target
from llmconv.formats.writing.outputs import Output
from llmconv.progress import Meter, Progress
from llmconv.quant.importance.statistics import TensorStatistics, statistics_of
from llmconv.quant.importance.sums import Sums
from llmconv.runtime.calibrate.collecting import (
    Collector,
    at_end,
    coverage,
    sums_of_tensors_exactly,
    tensors_of,
    wanted,
    write_gguf,
)
from llmconv.runtime.calibrate.sofar import SoFar
from llmconv.runtime.calibrate.texts import Reading, rows_of, works
from llmconv.runtime.calibrate.watching import watching
from llmconv.runtime.measure.chunks import Running, Source, device_errors
from llmconv.runtime.measure.texts import Text, TextSource, each_of
from llmconv.runtime.model import Model
from llmconv.runtime.streamed.memory import Memory
from llmconv.runtime.streamed.passing import Passed
from llmconv.show import Shown

__all__ = ["OUTPUT_FORMATS", "ImportanceMatrix", "imatrix"]

OUTPUT_FORMATS = ("gguf", "dat")


@dataclass(frozen=True)
class ImportanceMatrix(Shown):
    """What was collected.

    path: the file written, None where none was asked for.   entries: tensors in it.   tokens: run now, without those
    of files that were merged.   chunks: of text, in all.   context: tokens in a chunk.   datasets: the texts' names.
    statistics: a row a tensor.   notes: which matrices and experts saw few tokens, and what should be known of the
    texts and the model.
    """

    path: Path | None
    entries: int
    tokens: int
    chunks: int
    context: int
    datasets: list[str]
    statistics: list[TensorStatistics]
    seconds: float
    tokens_per_second: float
    notes: list[str] = field(default_factory=list)


def imatrix(
    model: Source | None = None,
    text: TextSource | Sequence[TextSource] = (),
    output: str | os.PathLike[str] | None = None,
    *,
    context: int | None = None,
    chunks: int | None = None,
    process_output: bool = False,
    in_files: Sequence[str | os.PathLike[str]] = (),
    output_format: str | None = None,
    output_frequency: int = 0,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    memory: Memory = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ImportanceMatrix:
    """Run texts through a model and sum the squared inputs of each matrix: the file that `quantize(imatrix=…)` takes.

    model: a path, a checkpoint or a loaded model of any architecture that the runtime runs; best unquantized.  None
        where files are only merged or looked at.
    text: one or several, as `perplexity` takes them; pairs of a JSON list are run one by one.
    output: the file to write; nothing is written when None.
    context: tokens in a chunk; default 512, or what the model takes.  chunks: stop after so many of all texts.
    process_output: include the output matrix (a tied one is `token_embd.weight`).
    in_files: matrices of the same model to add, of either form.
    output_format: "gguf", or the older "dat"; by default what the name ends in.
    output_frequency: after so many chunks, keep what there is in `OUTPUT.partial`; the same call goes on from it.
    device, dtype: as `load` takes them.   memory: as `perplexity` takes it.   force: an existing output is replaced.

    Sums, counts and file forms are llama-imatrix's.  Raises `UsageError` for a text of less than a chunk, `BadFile`
    for files of another model, `LlmconvError` for inputs that are not finite: it names the tensor.
    """
    texts = each_of(text)
    kind = _format(output, output_format)
    target = Path(output) if output is not None else None
    if (model is None) != (not texts):
        raise UsageError("a matrix is made of a model and texts; give both, or only matrices to merge (--in-file)")
    if model is None and not in_files:
        raise UsageError("nothing to make a matrix of; give a model and a text, or matrices to merge (--in-file)")
    if output_frequency and target is None:
        raise UsageError("--output-frequency keeps what there is beside the output; give one (-o)")
    if target is not None:
        inputs = [Path(p) for p in (*in_files, *(t for t in texts if not isinstance(t, Text)))]
        check_target(target, force=force, inputs=inputs)
    started = time.perf_counter()
    sums, notes, tokens = Sums(chunk_size=context or 0), list[str](), 0
    if model is not None:
        running = Running(device, dtype, memory=memory).model(model)
        reading = Reading(texts, context, chunks)
        kept = _kept(target, model, reading, output_frequency, force, process_output)
        sums, notes, tokens = _collect(running, reading, process_output, kept, progress)
    else:
        kept = None
    seconds = max(time.perf_counter() - started, 1e-9)
    for path in in_files:
        sums.merge(read_sums(path, context or sums.chunk_size or 512), at(path))
    sums.check()
    if target is not None:
        _write(target, sums, kind, force)
        if kept is not None:
            kept.file.forget()
    return ImportanceMatrix(
        path=target,
        entries=len(sums.entries),
        tokens=tokens,
        chunks=sums.chunks,
        context=sums.chunk_size,
        datasets=list(sums.datasets),
        statistics=statistics_of(sums),
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        notes=notes,
    )


def _format(output: Any, wanted: str | None) -> str:
    if wanted is None:
        return "dat" if output is not None and os.fsdecode(output).lower().endswith(".dat") else "gguf"
    if wanted not in OUTPUT_FORMATS:
        raise UsageError(f"unknown form of importance matrix {cut(wanted)}; give {' or '.join(OUTPUT_FORMATS)}")
    return wanted


@dataclass
class _Kept:
    """`OUTPUT.partial`: the sums so far.   identity: what the run is.   every: chunks between two writings."""

    file: SoFar
    identity: dict[str, Any]
    every: int
    last: int = 0

    def found(self) -> tuple[Sums, int] | None:
        """What an earlier run left, and how many chunks of it are done."""
        found = self.file.found(self.identity)
        if found is None:
            return None
        self.last, (opened, *_) = found
        return sums_of_tensors_exactly(opened), self.last

    def keep(self, sums: Sums, done: int) -> None:
        """Write, if it is time."""
        if done - self.last >= self.every:
            self.last = done
            self.file.keep(tensors_of(sums, np.float64), done, sums.metadata())


def _kept(
    target: Path | None, model: Source, reading: Reading, every: int, force: bool, process_output: bool
) -> _Kept | None:
    """Where an interrupted run is kept, if it is."""
    if not every or target is None:
        return None
    if every < 0:
        raise UsageError(f"output_frequency is {every}, expected a number of chunks")
    files = [t for t in reading.texts if not isinstance(t, Text)]
    source = _files(Path(model)) if isinstance(model, str | os.PathLike) else []
    identity = {
        "model": [journal.fingerprint(p) for p in source] or str(getattr(model, "where", model)),
        "texts": [journal.fingerprint(Path(t)) for t in files],
        "memory": [str(t) for t in reading.texts if isinstance(t, Text)],
        "options": [reading.context, reading.chunks, process_output],
    }
    return _Kept(SoFar.beside(target, force), identity, every)


def _files(model: Path) -> list[Path]:
    """What it is made of, as far as it lies here."""
    inside = sorted(model.iterdir()) if model.is_dir() else [model]
    return [path for path in inside if path.is_file()]


@torch.inference_mode()
def _collect(
    model: Model, reading: Reading, head: bool, kept: _Kept | None, progress: Progress | None
) -> tuple[Sums, list[str], int]:
    """The sums of a model over texts, notes, and how many tokens were run."""
    found, team = works(model, reading), current()
    if team is not None and kept is not None:
        raise UsageError("--output-frequency is for one process; leave it out, or run without torchrun")
    total = sum(work.total for work in found)
    before = kept.found() if kept is not None else None
    sums, done = before or (Sums({}, 0, found[0].context, reading.names), 0)
    collector, modules, tokens, at_chunk = Collector(model, sums), wanted(model, head), 0, 0
    meter = Meter(progress, "imatrix", total, f"{found[0].unit}s")
    with watching(modules, collector), device_errors(model.device):
        for some in _together(rows_of(found), kept):
            left = []
            for i, rows in enumerate(some):
                at_chunk += len(rows)
                mine = team is None or i % team.size == team.rank
                left += [rows] if mine and at_chunk > done else []  # nor an earlier run's
            with Passed(model, left, progress) as passed:
                for i, rows in enumerate(left):
                    at_end(model, passed.hidden(i), head)
                    collector.forget_input()
                    tokens += rows.numel()
            sums.chunks = at_chunk
            if kept is not None and left:
                kept.keep(sums, at_chunk)
            meter.reach(at_chunk)
    if team is not None:
        sums, tokens = _added(team.all(sums), at_chunk), sum(team.all(tokens))
    notes = [*model.notes, *(note for work in found for note in work.notes)]
    return sums, [*notes, *coverage(model, sums, list(modules))], tokens


def _added(parts: Sequence[Sums], chunks: int) -> Sums:
    """The sums of several processes, in their order: those of one but for the last bits of a float64."""
    found = Sums({}, 0, parts[0].chunk_size, parts[0].datasets)
    for part in parts:
        found.merge(dataclasses.replace(part, datasets=()), "a process of this run")
    found.chunks = chunks
    return found


def _together(batches: Iterable[Tensor], kept: _Kept | None) -> Iterator[list[Tensor]]:
    """All batches, or as many as make up what is kept at a time."""
    some: list[Tensor] = []
    for rows in batches:
        some.append(rows)
        if kept is not None and sum(map(len, some)) >= kept.every:
            yield some
            some = []
    if some:
        yield some


def _write(target: Path, sums: Sums, kind: str, force: bool) -> None:
    if kind == "gguf":
        write_gguf(target, sums, force=force)
        return
    if not sums.chunk_size:
        raise OutputError(f"{at(target)}: the older form counts chunks, and nothing says how long one is; give -c")
    with Output(target, force=force) as out:
        out.file.write(sums.dat())
