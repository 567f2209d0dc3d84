"""A GGUF whose types are searched."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from llmconv.convert.quantizing.mix import Wish, mixed, recipe_text
from llmconv.convert.quantizing.names import targets
from llmconv.convert.quantizing.outputs import inputs_of, runnable
from llmconv.convert.quantizing.plan import Recipe
from llmconv.convert.quantizing.quantized import Quantized
from llmconv.convert.quantizing.to_gguf import to_gguf
from llmconv.convert.reading import Reading
from llmconv.convert.writing.options import Writing
from llmconv.errors import UsageError, about
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.places import names as places
from llmconv.formats.writing.checks import check_target
from llmconv.formats.writing.outputs import Output
from llmconv.quant.filetypes import FileType
from llmconv.quant.recipe import tensor_type_rules

__all__ = ["to_mix"]

StrPath = str | os.PathLike[str]


def to_mix(
    src: StrPath | Checkpoint,
    dst: StrPath | None,
    reading: Reading,
    recipe: Recipe,
    writing: Writing,
    how: tuple[Wish, Any, StrPath | None],
) -> Quantized:
    """A GGUF whose types are searched, by writing the recipe of it as everybody could."""
    wish, calibration, recipe_file = how
    if recipe.pure:
        raise UsageError("--pure is the opposite of a mix; leave one of them out")
    if writing.resumable or writing.provenance or recipe.keep_split:
        raise UsageError("a mix does not go with --resumable, --provenance and --keep-split; leave them out")
    opened = reading.floats(src)
    checkpoint = runnable(reading.translated(opened, "gguf"), opened)
    path = targets(src.source if isinstance(src, Checkpoint) else places.place(src), dst, [FileType("MIX", 0, "")])[0]
    if not writing.dry_run:
        check_target(path, force=writing.force, inputs=inputs_of(opened, checkpoint))
    with about(opened.source):
        plan, loss, basis = mixed(checkpoint, path, recipe, wish, calibration, writing.progress)
    text = recipe_text(plan)
    if recipe_file is not None:
        with Output(Path(recipe_file), force=writing.force) as out:
            out.file.write(text.encode())
    rules = tensor_type_rules(text.split())
    fixed = dataclasses.replace(recipe, tensor_types=rules)
    result = to_gguf(src, path, [plan.file_type], reading, fixed, writing, calibration)
    unit = "nats of KL divergence a token" if calibration is not None and calibration.in_nats else "of the squares"
    note = f"the mix is predicted to lose {loss:.4g} {unit} when rounded plainly, by {basis}"
    if basis != "a calibration":
        note += "; a calibration (--calibrate TEXT) would find a better one"
    return dataclasses.replace(result, notes=(*result.notes, note))
