"""Quantized model folders, and lone safetensors files."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmconv import formats
from llmconv.convert.quantizing import quantized
from llmconv.convert.quantizing.calibrated import Made, Rounder, blocks_of
from llmconv.convert.quantizing.names import targets
from llmconv.convert.quantizing.outputs import inputs_of, runnable
from llmconv.convert.quantizing.quantized import Quantized
from llmconv.convert.reading import Reading
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.writing.options import Writing
from llmconv.errors import BadWeight, LlmconvError, MissingTensor, Unsupported, UsageError, WrongShape, cut
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.formats.writing.checks import check_target
from llmconv.quant import plain
from llmconv.quant.block import Bytes, by_name
from llmconv.quant.filetypes import INT8, INTEGERS, MLX_MXFP4, FileType
from llmconv.quant.nonfinite import first_nonfinite

__all__ = ["CALIBRATED", "to_folder"]

_INNER = re.compile(r"blk\.\d+\.(?!.*(norm|_inp|conv1d)).*\.weight$")
"""Matrices of layers, but for routers and convolutions."""

StrPath = str | os.PathLike[str]


def to_folder(
    src: StrPath | Checkpoint,
    dst: StrPath | None,
    types: Sequence[str],
    reading: Reading,
    writing: Writing,
    group: int | None,
    calibration: Rounder | None = None,
) -> Quantized:
    """The safetensors output: a model folder, or one file where its name says so.   calibration: see `CALIBRATED`."""
    if len(types) > 1:
        raise UsageError(
            f"{types[0].upper()} makes a safetensors model, the other types GGUF; make it in a run of its own"
        )
    for name in ("provenance", "portable"):
        if getattr(writing, name):
            raise UsageError(f"--{name} is for GGUF, {types[0].upper()} makes safetensors; leave one of them out")
    from llmconv.convert.scaled.arranged_by_mlx import as_transformers
    from llmconv.convert.scaled.compressed_tensors import to_int8
    from llmconv.convert.scaled.unpack import unpack

    kind = types[0].upper()
    opened = as_transformers(reading.open(src))
    floats = unpack(opened)
    if all(opened.tensors.get(name) is tensor for name, tensor in floats.tensors.items()):
        opened = floats  # nothing was stored with scales, whatever config.json says
    if kind == INT8 and opened is not floats:
        raise Unsupported(f"{opened.where}: is quantized already; give the original model")
    costs: Mapping[str, Made] = {}
    if calibration is not None and not writing.dry_run:
        opened, costs = _calibrated(floats, _becomes(kind, group), reading, writing, calibration)
    wants: Mapping[str, Tensor] = {}
    stored: Mapping[str, Coded] = {}
    widths: Sequence[int] = ()
    if kind == INT8:
        model = to_int8(opened, allow_nonfinite=writing.allow_nonfinite)
    else:
        found = _folder(opened, kind, lambda c: reading.translated(c, "hf"), group)
        model, wants, stored, widths = found.model, found.wants, found.stored, found.bits
    _require_whole(floats, lambda c: reading.translated(c, "gguf"))
    path = Path(dst) if dst is not None else targets(opened.source, None, [FileType(kind, -1, "")])[0].with_suffix("")
    container = formats.by_name("safetensors")
    result = quantized.of_tensors(opened.source, opened, model, kind, [path], floats.n_elements)
    result = dataclasses.replace(result, notes=(*result.notes, *_told(calibration, costs)))
    if not container.is_folder(path):
        check_target(path, force=writing.force, size=model.nbytes, inputs=inputs_of(opened))
    if writing.dry_run:
        return result
    meter = writing.meter("quantize", model.nbytes)
    if not writing.allow_nonfinite:
        model = model.but(tensors={name: _finite(tensor, model.where) for name, tensor in model.tensors.items()})
    proof, proving = "", None
    if wants:
        from llmconv.convert.quantizing.proving.written import PROOF, Proof, in_bits, of_folder

        proving = of_folder(Proof(), model, wants, stored)
        compared = sum(t.n_elements for t in wants.values())
        rest = floats.n_elements - compared
        others = f", {rest:,} others rounded or as they were" if rest else ""
        proof = f"{in_bits(widths)}{PROOF} ({compared:,} compared{others})"
    paths = safetensors_file.save(model, path, force=writing.force, jobs=writing.jobs, meter=meter, proving=proving)
    size = sum(p.stat().st_size for p in paths)
    made = dataclasses.replace(result.output, paths=tuple(paths), size=size, proof=proof)
    return dataclasses.replace(result, outputs=(made,), written=True)


def _require_whole(floats: Checkpoint, to_gguf: Callable[[Checkpoint], Checkpoint]) -> None:
    """Refuse a folder of a known family with tensors missing or of another shape, as making a GGUF of it would."""
    if floats.dialect != "hf":
        return
    try:
        to_gguf(floats)
    except (MissingTensor, WrongShape):
        raise
    except LlmconvError:  # of another family, or with what only a GGUF can't say
        return


def _finite(tensor: Tensor, where: str) -> Tensor:
    """A tensor of floats that are computed, which refuses those that are no numbers when they are read."""
    if tensor.extent is not None or tensor.type not in (plain.F32, plain.F16, plain.BF16):
        return tensor

    def read(start: int, stop: int) -> Bytes:
        raw = tensor.blocks(start, stop)
        index = first_nonfinite(tensor.type.decode(raw))
        if index is not None:
            value = tensor.type.decode(raw).reshape(-1)[index]
            raise BadWeight(
                f"{where}: tensor {cut(tensor.name)}: row {start + index // max(1, tensor.row_len)} has a {value}; "
                "repair the model, or let it through with --allow-nonfinite",
                tensor=tensor.name,
                value=float(value),
            )
        return raw

    return dataclasses.replace(tensor, read=read)


CALIBRATED = {"W4A16": "Q4_0", "MLX": "Q4_1", "MLX5": "Q5_1", "MXFP4A16": "MXFP4", MLX_MXFP4: "MXFP4", INT8: ""}
"""Folders whose floats a calibration rounds, and the block type that has the same numbers in groups of 32."""


def _becomes(kind: str, group: int | None) -> Callable[[Tensor], BlockClass]:
    """What a calibration rounds a tensor of floats to, for a folder."""
    from llmconv.quant.rounding.groups import grouped, int8_rows

    if kind == INT8:
        return lambda tensor: int8_rows(tensor.type.dtype or plain.F32.layout)
    block = by_name(CALIBRATED[kind]) if group in (None, 32) else grouped(CALIBRATED[kind], group)
    return lambda tensor: block


def _calibrated(
    floats: Checkpoint,
    becomes: Callable[[Tensor], BlockClass],
    reading: Reading,
    writing: Writing,
    calibration: Rounder,
) -> tuple[Checkpoint, Mapping[str, Made]]:
    """A model under a folder's names, its linear layers in blocks that a calibration has made; what those cost."""
    from llmconv.convert.quantizing.folder_layers import moved
    from llmconv.convert.scaled.compressed_tensors import is_linear
    from llmconv.convert.tables import own_keys
    from llmconv.quant.rounding.groups import stored_as

    def to_hf(checkpoint: Checkpoint) -> Checkpoint:
        return reading.translated(checkpoint, "hf")

    model = to_hf(floats)
    named = runnable(reading.translated(floats, "gguf"), floats)
    bare = {key: value for key, value in named.metadata.items() if key != own_keys.DTYPES}
    inner = {name: tensor for name, tensor in named.tensors.items() if _INNER.match(name)}
    kinds = {name: becomes(tensor) for name, tensor in inner.items() if _fits(tensor, becomes(tensor))}
    if not kinds:
        raise Unsupported(
            f"{floats.where}: has no layer in floats that a calibration could round; give the original model"
        )
    made = calibration.round(named, kinds, writing.jobs, writing.progress)
    ready = {name: blocks_of(named.tensors[name], stored_as(kinds[name]), found) for name, found in made.items()}
    types = frozenset(tensor.type.name for tensor in ready.values())
    blocks = moved(named.but(tensors=named.tensors | ready), types, bare, to_hf)
    linear = {
        name: tensor for name, tensor in blocks.items() if name in model.tensors and is_linear(model.tensors[name])
    }
    return model.but(tensors=model.tensors | linear), made


def _fits(tensor: Tensor, block: BlockClass) -> bool:
    floats = tensor.type.is_plain() and tensor.type.is_float
    return floats and len(tensor.shape) > 1 and tensor.row_len % block.block_size == 0


def _told(calibration: Rounder | None, made: Mapping[str, Made]) -> list[str]:
    """What a calibration has done, in sentences."""
    if calibration is None or not made:
        return []
    before, after = (sum(getattr(found, name) for found in made.values()) for name in ("before", "after"))
    return [*calibration.notes, f"{len(made)} tensors calibrated: predicted loss {before:.4g} plainly, {after:.4g} so"]


def _folder(opened: Checkpoint, kind: str, to_hf: Callable[[Checkpoint], Checkpoint], group: int | None) -> Any:
    """One of `FOLDERS`, to be written."""
    if kind in INTEGERS or kind == MLX_MXFP4:
        from llmconv.convert.quantizing.four_bits import written

        return written(opened, kind, to_hf, group)
    from llmconv.convert.quantizing import float_folders

    return float_folders.written(opened, kind, to_hf)
