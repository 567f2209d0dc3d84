"""Quantized GGUFs, one of each type, from one read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmconv.convert.quantizing import quantized
from llmconv.convert.quantizing.names import targets
from llmconv.convert.quantizing.outputs import (
    fingerprints,
    inputs_of,
    opened_outputs,
    parts_of,
    runnable,
    write_plans,
)
from llmconv.convert.quantizing.plan import Plan, Recipe, cuts, make_plan
from llmconv.convert.quantizing.quantized import Quantized
from llmconv.convert.reading import Reading
from llmconv.convert.tables.config import read_config
from llmconv.convert.writing.options import Writing
from llmconv.errors import UsageError, about, at, cut, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.places import names as places, outbox, remote
from llmconv.formats.writing.checks import check_target, new_folder
from llmconv.quant.filetypes import COPY, FileType
from llmconv.show import log_written

if TYPE_CHECKING:
    from llmconv.convert.quantizing.calibrated import Keeping, Rounder

__all__ = ["to_gguf"]

StrPath = str | os.PathLike[str]


def to_gguf(
    src: StrPath | Checkpoint,
    dst: StrPath | None,
    types: Sequence[FileType],
    reading: Reading,
    recipe: Recipe,
    writing: Writing,
    calibration: Rounder | None = None,
) -> Quantized:
    """GGUFs, one of each type."""
    if writing.provenance and (recipe.prune_layers or reading.lora is not None):
        raise UsageError(
            "--provenance certifies the same model in other types; leave it out, or --prune-layers and --lora"
        )
    source = src.source if isinstance(src, Checkpoint) else places.place(src)
    opened = reading.open(src) if set(types) == {COPY} else reading.floats(src)
    canonical = reading.translated(opened, "gguf")
    checkpoint = runnable(canonical, opened)
    if writing.portable:
        from llmconv.convert.writing.portable import portable as without_own_keys  # and all of vocabularies

        checkpoint = without_own_keys(checkpoint)
    records: list[dict[str, str]] = [{}] * len(types)
    if writing.provenance:
        records = _certificates(Checkpoint() if writing.dry_run else canonical, opened, types)
    paths = targets(source, dst, types)

    def planned(recipe: Recipe) -> list[Plan]:
        return [
            make_plan(dataclasses.replace(checkpoint, metadata=checkpoint.metadata | record), kind, path, recipe)
            for kind, path, record in zip(types, paths, records, strict=True)
        ]

    with about(source):
        plans = planned(recipe)
        if recipe.split_max_size and (found := cuts(plans, recipe.split_max_size)):
            plans = planned(dataclasses.replace(recipe, cuts=found))
    result = quantized.of_plans(source, checkpoint, plans, 0.0)
    if writing.dry_run:
        return result
    _require_importance(plans)
    inputs = inputs_of(opened, checkpoint)
    if reading.lora is not None:
        adapter = places.place(reading.lora)
        inputs += [adapter] if adapter.is_file() else sorted(p for p in adapter.iterdir() if p.is_file())
    keeping: list[Keeping] = []
    with new_folder(paths[0].parent) if len(types) > 1 else contextlib.nullcontext():
        if calibration is not None:
            for file in (f for plan in plans for f in plan.files):  # before minutes of work
                check_target(file.path, force=writing.force, size=file.size, inputs=inputs)
            keeping = _keeping(plans, inputs, writing)
            plans, result = _calibrated(plans, result, checkpoint, calibration, writing, keeping)
        sources = {t.source.name: t.source.nbytes for plan in plans for t in plan.tensors}
        meter = writing.meter("quantize", sum(sources.values()))
        box = outbox.current()
        if box is not None:
            box.metadata = checkpoint.metadata
            # A calibration decides bytes by more than the inputs; so does what is in memory.
            box.made_of = fingerprints(inputs) if calibration is None and inputs else None
        for part in parts_of(plans, writing, box):
            by = None if calibration is None else calibration.identity()
            with opened_outputs(part, inputs, recipe.matrix_file, writing, by) as outputs:
                write_plans(part, outputs, at(source) if source else "", writing, meter)
        for kept in keeping:
            kept.forget()
    checked = remote.told(t.begins[0] for t in opened.tensors.values() if t.begins)
    result = dataclasses.replace(result, notes=(*result.notes, *_own_adapters(opened), *checked))
    for made in result.outputs:
        log_written(made.paths, Counter(t.type for t in made.tensors), [*result.notes, *made.warnings])
    return dataclasses.replace(result, written=True)


def _own_adapters(folder: Checkpoint) -> list[str]:
    """A note about a folder whose model has an adapter for each of several tasks (Jina 3)."""
    if folder.dialect != "hf":
        return []
    from llmconv.convert.writing import tasks

    names = tasks.tasks_of(read_config(folder))
    if not names:
        return []
    return [
        f"the adapters of its tasks ({cut(names[0])}{more(names)}) are not written beside it; llmconv convert makes a "
        "GGUF of each, for llama.cpp's --lora"
    ]


def _calibrated(
    plans: Sequence[Plan],
    result: Quantized,
    checkpoint: Checkpoint,
    calibration: Rounder,
    writing: Writing,
    keeping: Sequence[Keeping],
) -> tuple[list[Plan], Quantized]:
    """The plans with calibrated bytes, and the result with what they are predicted to cost."""
    from llmconv.convert.quantizing.calibrated import calibrated, plainly

    done, outputs, notes = [], [], dict[str, None]()
    for i, (plan, output) in enumerate(zip(plans, result.outputs, strict=True)):
        ready, made = calibrated(plan, checkpoint, calibration, writing, keeping[i] if keeping else None)
        done.append(ready)
        names = {t.name: t.source.name for t in plan.tensors}
        rows = [(row, made.get(names[row.name])) for row in output.tensors]
        told = tuple(
            row if m is None else dataclasses.replace(row, loss_before=m.before, loss_after=m.after) for row, m in rows
        )
        outputs.append(dataclasses.replace(output, tensors=told))
        notes |= dict.fromkeys(plainly(plan, made))
    return done, dataclasses.replace(result, outputs=tuple(outputs), notes=(*result.notes, *calibration.notes, *notes))


def _keeping(plans: Sequence[Plan], inputs: Sequence[Path], writing: Writing) -> list[Keeping]:
    """Where each output's rounding is kept, if the run is to be resumable."""
    if not writing.resumable:
        return []
    from llmconv.convert.quantizing import journal  # hashes, by OpenSSL
    from llmconv.convert.quantizing.calibrated import Keeping

    known = fingerprints(inputs)
    digests = [[journal.digest(f, writing.allow_nonfinite) for f in plan.files] for plan in plans]
    return [Keeping(plan.files[0].path, [known, *own], writing.force) for plan, own in zip(plans, digests, strict=True)]


def _certificates(canonical: Checkpoint, opened: Checkpoint, types: Sequence[FileType]) -> list[dict[str, str]]:
    """The metadata of each output that says what it was made from; `canonical` is read once for all of them."""
    from llmconv.convert.reports import provenance as certificates

    certified = Checkpoint()
    certificates.certify(certified, canonical, opened, "none")
    record = json.loads(certified.metadata[certificates.KEY])
    exact = opened.dialect == "gguf"  # then a copy rounds nothing
    roundings = ["none" if exact and kind is COPY else f"to {kind.name}" for kind in types]
    return [
        {certificates.KEY: json.dumps(record | {"rounding": rounding}, ensure_ascii=False)} for rounding in roundings
    ]


def _require_importance(plans: Sequence[Plan]) -> None:
    for plan in plans:
        if plan.needs_importance:
            raise UsageError(
                f"{plan.needs_importance} needs importance weights, the result would be garbage; give an importance "
                "matrix that has them (--imatrix; llmconv imatrix MODEL TEXT makes one), or choose a larger type"
            )
