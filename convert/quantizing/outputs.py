"""What is read and what is written when tensors are encoded: the plans made true."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llmconv.convert.quantizing.plan import Plan
from llmconv.convert.writing.options import Writing
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.places.outbox import Outbox
from llmconv.formats.tensor import Tensor
from llmconv.formats.writing.outputs import Output, Outputs
from llmconv.formats.writing.stream import stream
from llmconv.formats.writing.target import Item, Sink, Target, Told
from llmconv.progress import Meter
from llmconv.quant.plain import F32, F64

__all__ = ["fingerprints", "inputs_of", "opened_outputs", "parts_of", "runnable", "write_plans"]

StrPath = str | os.PathLike[str]
Proving = Callable[[], Callable[[str], Told | None]]
"""Gives for the name of a source what is told of its rows when they are written (`Item.written`)."""


def runnable(checkpoint: Checkpoint, opened: Checkpoint) -> Checkpoint:
    """A translated model with its float64 tensors in float32, the widest that runtimes take; a GGUF as it is."""
    if opened.dialect == "gguf":
        return checkpoint
    tensors = {n: t.astype(F32) if t.type is F64 else t for n, t in checkpoint.tensors.items()}
    return dataclasses.replace(checkpoint, tensors=tensors)


def inputs_of(*checkpoints: Checkpoint) -> list[Path]:
    """Every file that weights may be read from, the source first."""
    found = {c.source: None for c in checkpoints if c.source is not None}
    for checkpoint in checkpoints:
        found |= {t.extent.path: None for t in checkpoint.tensors.values() if t.extent is not None}
    return list(found)


def fingerprints(inputs: Sequence[Path]) -> list[Any]:
    """What files are recognised by."""
    from llmconv.convert.quantizing import journal  # hashes, by OpenSSL

    return [journal.fingerprint(path) for path in inputs if path.is_file()]


def parts_of(plans: Sequence[Plan], writing: Writing, box: Outbox | None) -> Iterator[Sequence[Plan]]:
    """What is written together: all of it; of what is sent away, a part of each output after the other."""
    if box is None:
        yield plans
        return
    from llmconv.convert.quantizing import journal  # hashes, by OpenSSL

    box.claim(*(file.path for plan in plans for file in plan.files))
    for row in zip(*(plan.files for plan in plans), strict=True):
        new = [
            dataclasses.replace(plan, files=[file])
            for plan, file in zip(plans, row, strict=True)
            if not box.has(file.path, journal.digest(file, writing.allow_nonfinite))
        ]
        if not new:
            continue
        box.check_room(sum(plan.size for plan in new))
        if writing.resumable:  # what is written otherwise is given away as it is finished
            box.begin()
        yield new
        for plan in new:
            box.put(plan.files[0].path)


@contextlib.contextmanager
def opened_outputs(
    plans: Sequence[Plan], inputs: Sequence[Path], matrix_file: str, writing: Writing, calibration: Any = None
) -> Iterator[Sequence[Output]]:
    """The open files of the plans, together or not at all; where the run is resumable, what is done stays.

    calibration: by what it is recognised.
    """
    files = [f for plan in plans for f in plan.files]
    if not writing.resumable:
        sizes = {f.path: f.size for f in files}
        with Outputs(sizes, force=writing.force, inputs=inputs) as together, contextlib.ExitStack() as stack:
            yield [stack.enter_context(together.open(path)) for path in sizes]
        return
    from llmconv.convert.quantizing import journal  # hashes, by OpenSSL

    identity = {
        "input": fingerprints(inputs),
        "importance matrix": journal.fingerprint(Path(matrix_file)) if matrix_file else None,
    }
    identity |= {} if calibration is None else {"calibration": calibration}
    outputs = [
        journal.Partial(
            f.path,
            identity | {"options": journal.digest(f, writing.allow_nonfinite)},
            force=writing.force,
            inputs=inputs,
            size=f.size,
        )
        for f in files
    ]
    with journal.partials(outputs) as opened:
        yield opened


def write_plans(
    plans: Sequence[Plan],
    outputs: Sequence[Output],
    where: str,
    writing: Writing,
    meter: Meter,
    proving: Proving | None = None,
) -> None:
    """Write the header of every file, then all tensors, each read once.   proving: called between the two."""
    files = [f for plan in plans for f in plan.files]
    sources: dict[str, Tensor] = {}
    wanted: dict[str, list[tuple[Output, str, Target]]] = {}
    for file, out in zip(files, outputs, strict=True):
        if not out.done:
            out.reserve(file.size)
            os.pwrite(out.file.fileno(), file.head, 0)
        sink = Sink(file.path, out.file.fileno())
        for tensor in file.tensors:
            sources.setdefault(tensor.source.name, tensor.source)
            places = wanted.setdefault(tensor.source.name, [])
            if tensor.name not in out.done:
                target = Target(sink, tensor.choice.type, tensor.offset, tensor.importance)
                places.append((out, tensor.name, target))
    skipped = sum(sources[name].nbytes for name, places in wanted.items() if not places)
    if skipped:
        meter(skipped, "already done")

    def finished(item: Item) -> None:
        for out, name, _ in wanted[item.tensor.name]:
            out.complete(name)

    told = (lambda name: None) if proving is None else proving()
    items = [
        Item(sources[name], [t for *_, t in places], where, told(name)) for name, places in wanted.items() if places
    ]
    stream(
        items,
        jobs=writing.jobs,
        check=not writing.allow_nonfinite,
        meter=meter,
        finished=finished,
        whole=writing.resumable,  # a journal is of whole tensors
    )
