"""Quantize a model: any source straight to quantized GGUFs, in one read, in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmconv import formats
from llmconv.convert.reading import Reading
from llmconv.convert.writing import quantized
from llmconv.convert.writing.calibrated import Rounder, calibrated
from llmconv.convert.writing.importance import read_importance
from llmconv.convert.writing.mix import TYPES, Wish, mixed, recipe_text
from llmconv.convert.writing.names import targets
from llmconv.convert.writing.options import Writing
from llmconv.convert.writing.plan import Plan, Recipe, make_plan, parse_override
from llmconv.convert.writing.portable import portable as without_own_keys
from llmconv.convert.writing.quantized import Quantized, QuantizedFile, QuantizedTensor
from llmconv.errors import BadFile, UsageError, about, at, kind_of
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import Output, Outputs, check_target, new_folder, open_regular
from llmconv.formats.places import names as places
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.formats.writing.stream import stream, threads
from llmconv.formats.writing.target import Item, Sink, Target
from llmconv.progress import Meter, Progress
from llmconv.quant import by_name
from llmconv.quant.filetypes import COPY, FOLDERS, INT8, REPACK, REPACKS, FileType, file_type
from llmconv.quant.imatrix import Importance
from llmconv.quant.plain import F32, F64
from llmconv.quant.recipe import tensor_type_rules
from llmconv.show import log_written

__all__ = ["Quantized", "QuantizedFile", "QuantizedTensor", "quantize"]

StrPath = str | os.PathLike[str]
_MOST_RULES = 16 << 20


def quantize(
    src: StrPath | Checkpoint,
    dst: StrPath | None = None,
    type: str | Sequence[str] = "Q4_K_M",
    *,
    pure: bool = False,
    tensor_types: Sequence[str] = (),
    tensor_type_file: StrPath | None = None,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    allow_requantize: bool = False,
    imatrix: StrPath | None = None,
    calibration: Any = None,
    target_size: int | None = None,
    bpw: float | None = None,
    target_kld: float | None = None,
    types: Sequence[str] = (),
    min_types: Sequence[str] = (),
    save_recipe: StrPath | None = None,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    override_kv: Sequence[str] = (),
    prune_layers: Sequence[int] = (),
    keep_split: bool = False,
    fallback: str | None = None,
    round_sums: bool = False,
    group_size: int | None = None,
    provenance: bool = False,
    portable: bool = False,
    dry_run: bool = False,
    jobs: int | None = None,
    allow_nonfinite: bool = False,
    resumable: bool = False,
    lora: StrPath | None = None,
    layout: str | None = None,
    config: StrPath | None = None,
    vocab: StrPath | None = None,
    pre: str | None = None,
    strict: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize a model of any format to GGUF, as llama-quantize would, byte for byte on the same GGUF.

    src: a GGUF (split or not), a safetensors file or model folder, a legacy JSON or MessagePack file; or a model that
        `llmconv.open` gave or that was made in memory.
    dst: the output; when there are several types a folder (made if its parent is there) or a name with `{type}` in
        it.  By default `NAME-TYPE.gguf` beside the source.
    type: a file type (Q4_K_M, Q8_0, ...; see `quant.filetypes`), or several, all made from one read of the source;
        or INT8: a model folder, or a lone `.safetensors`, as compressed-tensors stores it
        (`convert.scaled.compressed_tensors`); or W4A16, W4A16_ASYM, MLX, NVFP4A16, MXFP4A16: the same in four bits,
        what is in such bits already number for number (`writing.four_bits`, `writing.float_folders`); or FP8_DYNAMIC,
        FP8_BLOCK; or REPACK (AUTO): a GGUF, of a quantized folder every layer in the smallest
        type that says its numbers exactly, its integers and scales carried, and compared after (`writing.repack`).
    pure: no mixing; any block type may then be named as `type`.
    tensor_types: `REGEX=TYPE`, the first that is found in a tensor's name decides its type; tensor_type_file: a file
        of more of them, separated by spaces or lines.
    output_tensor_type, token_embedding_type: block types for `output.weight` and `token_embd.weight`.
    leave_output_tensor: `output.weight` stays as it is.
    allow_requantize: tensors that are quantized already may become another type.
    calibration: `llmconv.OnText("text.txt")`, or what `llmconv.calibrate` made of this model and a text: tensors are
        rounded so that errors cost little there.  Types are those of a run with an importance matrix, the size is the
        same.
    target_size, bpw, target_kld: instead of `type`, a mix that is predicted to lose the least within so many bytes of
        file (`llmconv.parse_size("3.4G")`) or bits a weight, or the smallest predicted to lose no more nats than that
        (plainly rounded; with a calibration).  What errors cost is taken from `calibration`, from `imatrix`, or from
        the weights alone, worse each time.
    types: what a mix may use; K, legacy and IQ4 types and F16 by default.  min_types: `REGEX=TYPE`, no fewer bits than
        that for tensors that match.  save_recipe: a file to write the mix to, for `tensor_type_file`.
    imatrix: a file of importance weights; include_weights, exclude_weights: parts of names that limit it.
    override_kv: `KEY=TYPE:VALUE`, metadata to set.
    prune_layers: layers to leave out; the others move up.
    keep_split: as many files as the source has.
    fallback: of REPACK, the block type of matrices that would be in F32 (those that no type says exactly).
    round_sums: of REPACK, layers with zero points become Q4_1, smaller than the exact Q5_0: their sums are rounded to
        float16, and a note says how far.
    group_size: of W4A16, W4A16_ASYM and MLX, columns that share a scale: 32, 64 or 128.
    provenance: record the source, its content hash, the type and our version in the metadata (a certificate that
        `verify_provenance` checks); the source is read once more for it.
    portable: with no keys of ours, for publishing; a note says what can't come back.
    dry_run: only plan; nothing is read or written.
    jobs: threads (default: processors).
    allow_nonfinite: NaN and infinities are let through; otherwise they are refused, by tensor and index.
    resumable: an interrupted run leaves `NAME.partial`, and the same call goes on from its last complete tensor.
    lora, layout, config, vocab, pre, strict: how the source is read, as in `convert_file`.
    force: existing outputs are replaced.
    progress: called with each `Step`; done and total are bytes of the source.

    Raises `UsageError`, `BadFile`, `Unsupported` or `OutputError`; nothing is left behind then.
    """
    if not isinstance(src, str | os.PathLike | Checkpoint):
        raise UsageError(f"quantize takes a path or a Checkpoint, not {kind_of(src)}; llmconv.open(path) gives one")
    recipe = Recipe(
        pure=pure,
        tensor_types=tensor_type_rules([*tensor_types, *_listed(tensor_type_file)]),
        output_type=by_name(output_tensor_type) if output_tensor_type else None,
        embedding_type=by_name(token_embedding_type) if token_embedding_type else None,
        leave_output=leave_output_tensor,
        matrix=_matrix(imatrix, include_weights, exclude_weights),
        matrix_file=os.fsdecode(imatrix) if imatrix is not None else "",
        overrides=[parse_override(text) for text in override_kv],
        prune_layers=tuple(prune_layers),
        keep_split=keep_split,
        allow_requantize=allow_requantize,
        calibrated=calibration is not None,
    )
    wish = _wish(target_size, bpw, target_kld, types, min_types)
    if save_recipe is not None:
        if wish is None:
            raise UsageError("only a mix has a recipe to save; give --target-size, --bpw or --target-kld")
        check_target(Path(save_recipe), force=force)
    reading = Reading(layout, config, vocab, pre, strict, lora)
    writing = Writing(
        force, jobs, progress, provenance, dry_run, portable=portable, allow_nonfinite=allow_nonfinite,
        resumable=resumable,
    )  # fmt: skip
    if resumable and isinstance(src, Checkpoint):
        raise UsageError("a resumable run recognises its input by its file; give the path instead of an open model")
    wanted = [type] if isinstance(type, str) else list(type)
    if not wanted:
        raise UsageError("no type to quantize to; give one, such as Q4_K_M")
    started = time.monotonic()
    if calibration is not None:
        _check_calibration(recipe, writing, wanted)
    as_repack = any(name.upper() in REPACKS for name in wanted)
    if as_repack:
        _check_repack(recipe, writing, wanted)
    elif fallback is not None or round_sums:
        flag = "--round-sums" if round_sums else "--fallback"
        raise UsageError(f"{flag} is for what REPACK can't say exactly; give -t REPACK, or leave it out")
    if group_size is not None and (group_size not in (32, 64, 128) or wanted[0].upper() not in FOLDERS[:3]):
        raise UsageError(
            f"a group size of {group_size} for {wanted[0]}, expected 32, 64 or 128 for W4A16, W4A16_ASYM or MLX"
        )
    as_folder = any(name.upper() in FOLDERS for name in wanted)
    as_int8 = as_folder or any(name.upper() == INT8 for name in wanted)
    if layout or config or vocab or pre:
        from llmconv.convert.effects import with_effect  # loads every dialect, 0.3 s that most runs save

        src, reading = with_effect(src, "safetensors" if as_int8 else "gguf", reading)
    if wish is not None:
        result = _mixed(src, dst, reading, recipe, writing, (wish, calibration, save_recipe))
    elif as_repack:
        result = _repack(src, dst, reading, writing, by_name(fallback) if fallback else None, round_sums)
    elif as_int8:
        result = _int8(src, dst, wanted, reading, writing, group_size)
    else:
        chosen = list(dict.fromkeys(file_type(name, pure) for name in wanted))
        result = _quantize(src, dst, chosen, reading, recipe, writing, calibration)
    return dataclasses.replace(result, seconds=time.monotonic() - started)


def _quantize(
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
    checkpoint = _runnable(canonical, opened)
    if writing.portable:
        checkpoint = without_own_keys(checkpoint)
    records: list[dict[str, str]] = [{}] * len(types)
    if writing.provenance:
        records = _certificates(Checkpoint() if writing.dry_run else canonical, opened, types)
    paths = targets(source, dst, types)
    with about(source):
        plans = [
            make_plan(dataclasses.replace(checkpoint, metadata=checkpoint.metadata | record), kind, path, recipe)
            for kind, path, record in zip(types, paths, records, strict=True)
        ]
    result = quantized.of_plans(source, checkpoint, plans, 0.0)
    if writing.dry_run:
        return result
    _require_importance(plans)
    inputs = _inputs(opened, checkpoint)
    if reading.lora is not None:
        adapter = Path(reading.lora)
        inputs += [adapter] if adapter.is_file() else sorted(p for p in adapter.iterdir() if p.is_file())
    with new_folder(paths[0].parent) if len(types) > 1 else contextlib.nullcontext():
        if calibration is not None:
            for file in (f for plan in plans for f in plan.files):  # before minutes of work
                check_target(file.path, force=writing.force, size=file.size, inputs=inputs)
            plans, result = _calibrated(plans, result, checkpoint, calibration, writing)
        sources = {t.source.name: t.source.nbytes for plan in plans for t in plan.tensors}
        meter = writing.meter("quantize", sum(sources.values()))
        with _outputs(plans, inputs, recipe.matrix_file, writing) as outputs:
            _run(plans, outputs, at(source) if source else "", writing, meter)
    for made in result.outputs:
        log_written(made.paths, Counter(t.type for t in made.tensors), [*result.notes, *made.warnings])
    return dataclasses.replace(result, written=True)


def _wish(
    size: int | None, bpw: float | None, kld: float | None, types: Sequence[str], least: Sequence[str]
) -> Wish | None:
    """What is wanted of a mix, if one is wanted."""
    if size is None and bpw is None and kld is None:
        if types or least:
            raise UsageError("--types and --min-type are of a mix; give --target-size, --bpw or --target-kld")
        return None
    known = [by_name(name).name for name in types] or TYPES
    return Wish(size, bpw, kld, known, tensor_type_rules(least))


def _mixed(
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
    checkpoint = _runnable(reading.translated(opened, "gguf"), opened)
    path = targets(src.source if isinstance(src, Checkpoint) else places.place(src), dst, [FileType("MIX", 0, "")])[0]
    if not writing.dry_run:
        check_target(path, force=writing.force, inputs=_inputs(opened, checkpoint))
    with about(opened.source):
        plan, loss, basis = mixed(checkpoint, path, recipe, wish, calibration, writing.progress)
    text = recipe_text(plan)
    if recipe_file is not None:
        with Output(Path(recipe_file), force=writing.force) as out:
            out.file.write(text.encode())
    rules = tensor_type_rules(text.split())
    fixed = dataclasses.replace(recipe, tensor_types=rules)
    result = _quantize(src, path, [plan.file_type], reading, fixed, writing, calibration)
    unit = "nats of KL divergence a token" if calibration is not None and calibration.in_nats else "of the squares"
    note = f"the mix is predicted to lose {loss:.4g} {unit} when rounded plainly, by {basis}"
    if basis != "a calibration":
        note += "; a calibration (--calibrate TEXT) would find a better one"
    return dataclasses.replace(result, notes=(*result.notes, note))


def _check_calibration(recipe: Recipe, writing: Writing, types: Sequence[str]) -> None:
    """What does not go with a calibration."""
    if recipe.matrix is not None:
        raise UsageError("a calibration knows more than an importance matrix; leave --imatrix out")
    if recipe.prune_layers:
        raise UsageError("a model without some of its layers is another than was calibrated; leave --prune-layers out")
    if any(name.upper() in (INT8, *FOLDERS) for name in types):
        raise UsageError("INT8, W4A16 and MLX are rounded without a calibration; leave it out, or choose a GGUF type")
    for flag, given in (("--provenance", writing.provenance), ("--resumable", writing.resumable)):
        if given:
            raise UsageError(f"{flag} does not go with a calibration, which decides bytes by more than the source")


def _calibrated(
    plans: Sequence[Plan], result: Quantized, checkpoint: Checkpoint, calibration: Rounder, writing: Writing
) -> tuple[list[Plan], Quantized]:
    """The plans with calibrated bytes, and the result with what they are predicted to cost."""
    done, outputs = [], []
    for plan, output in zip(plans, result.outputs, strict=True):
        ready, made = calibrated(plan, checkpoint, calibration, writing.jobs, writing.progress)
        done.append(ready)
        names = {t.name: t.source.name for t in plan.tensors}
        rows = [(row, made.get(names[row.name])) for row in output.tensors]
        told = tuple(
            row if m is None else dataclasses.replace(row, loss_before=m.before, loss_after=m.after) for row, m in rows
        )
        outputs.append(dataclasses.replace(output, tensors=told))
    return done, dataclasses.replace(result, outputs=tuple(outputs), notes=(*result.notes, *calibration.notes))


@contextlib.contextmanager
def _outputs(
    plans: Sequence[Plan], inputs: Sequence[Path], matrix_file: str, writing: Writing
) -> Iterator[Sequence[Output]]:
    """The open files of the plans, together or not at all; where the run is resumable, what is done stays."""
    files = [f for plan in plans for f in plan.files]
    if not writing.resumable:
        sizes = {f.path: f.size for f in files}
        with Outputs(sizes, force=writing.force, inputs=inputs) as together, contextlib.ExitStack() as stack:
            yield [stack.enter_context(together.open(path)) for path in sizes]
        return
    from llmconv.convert.writing import journal  # hashes, by OpenSSL

    identity = {
        "input": [journal.fingerprint(p) for p in inputs if p.is_file()],
        "importance matrix": journal.fingerprint(Path(matrix_file)) if matrix_file else None,
    }
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


def _run(plans: Sequence[Plan], outputs: Sequence[Output], where: str, writing: Writing, meter: Meter) -> None:
    """Write the header of every file, then all tensors, each read once."""
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

    items = [Item(sources[name], [t for *_, t in places], where) for name, places in wanted.items() if places]
    how = {"check": not writing.allow_nonfinite, "whole": writing.resumable}  # a journal is of whole tensors
    stream(items, jobs=writing.jobs, meter=meter, finished=finished, **how)


def _check_repack(recipe: Recipe, writing: Writing, types: Sequence[str]) -> None:
    """What does not go with a repacking, which has no choice."""
    if len(types) > 1:
        raise UsageError("REPACK decides every type itself; make other types in a run of their own")
    given = {
        "--pure": recipe.pure,
        "--tensor-type": recipe.tensor_types,
        "--output-tensor-type": recipe.output_type,
        "--token-embedding-type": recipe.embedding_type,
        "--imatrix": recipe.matrix,
        "--prune-layers": recipe.prune_layers,
        "--keep-split": recipe.keep_split,
        "--calibrate": recipe.calibrated,
        "--override-kv": recipe.overrides,
    }
    for flag, value in given.items():
        if value:
            raise UsageError(f"{flag} does not go with REPACK, which carries numbers as they are; leave it out")


def _repack(
    src: StrPath | Checkpoint,
    dst: StrPath | None,
    reading: Reading,
    writing: Writing,
    fallback: BlockClass | None,
    round_sums: bool,
) -> Quantized:
    """A GGUF that says what the source says; nothing is left where it doesn't."""
    from llmconv.convert.writing.repack import Pair, fallen_back, proved, repacked

    source = src.source if isinstance(src, Checkpoint) else Path(src)
    opened = reading.open(src)
    with about(source):
        fold = not writing.provenance  # which certifies the weights as they are
        found = repacked(opened, lambda c: _runnable(reading.translated(c, "gguf"), c), round_sums, fold)
        checkpoint = found.checkpoint.but(*found.notes)
        if writing.portable:
            checkpoint = without_own_keys(checkpoint)
        if writing.provenance:
            rounding = "none" if fallback is None else f"to {fallback.name} where no type says a layer exactly"
            rounding = "sums of zero points to float16" if found.rounded and fallback is None else rounding
            record = _repack_record(reading, opened, rounding, writing)
            checkpoint = checkpoint.but(metadata=checkpoint.metadata | record)
        exact = checkpoint.tensors
        if fallback is not None:
            checkpoint = fallen_back(checkpoint, fallback)
        path = targets(source, dst, [REPACK])[0]
        plan = make_plan(checkpoint, COPY, path, Recipe())
    result = quantized.of_plans(source, checkpoint, [dataclasses.replace(plan, file_type=REPACK)], 0.0)
    if writing.dry_run:
        return result
    meter = writing.meter("quantize", sum(t.source.nbytes for t in plan.tensors))
    with _outputs([plan], _inputs(opened, checkpoint), "", writing) as outputs:
        _run([plan], outputs, at(source) if source else "", writing, meter)
        kept = [
            t for t in plan.tensors if t.source.type is exact[t.source.name].type and t.source.name in found.decoded
        ]
        pairs = [Pair(t.source, found.decoded[t.source.name], t.offset) for t in kept]
        check = writing.meter("verify", sum(t.nbytes for t in kept))
        compared = proved(pairs, outputs[0].file.fileno(), threads(writing.jobs), check)
    total = checkpoint.n_elements
    rounded = f", {total - compared:,} others rounded to {fallback.name} or beside them" if fallback else ""
    made = dataclasses.replace(result.output, proof=f"repacked, every weight equal ({compared:,} compared{rounded})")
    log_written(made.paths, Counter(t.type for t in made.tensors), [*result.notes, *made.warnings])
    return dataclasses.replace(result, outputs=(made,), written=True)


def _repack_record(reading: Reading, opened: Checkpoint, rounding: str, writing: Writing) -> dict[str, str]:
    """The certificate of a repacking; the source is read once for it, as the floats it stands for."""
    from llmconv.convert.reports import provenance as certificates

    canonical = Checkpoint() if writing.dry_run else reading.translated(reading.floats(opened), "gguf")
    certified = Checkpoint()
    certificates.certify(certified, canonical, opened, rounding)
    return {certificates.KEY: certified.metadata[certificates.KEY]}


def _int8(
    src: StrPath | Checkpoint,
    dst: StrPath | None,
    types: Sequence[str],
    reading: Reading,
    writing: Writing,
    group: int | None,
) -> Quantized:
    """The safetensors output: a model folder, or one file where its name says so."""
    if len(types) > 1:
        raise UsageError(
            f"{types[0].upper()} makes a safetensors model, the other types GGUF; make it in a run of its own"
        )
    for name in ("provenance", "portable"):
        if getattr(writing, name):
            raise UsageError(f"--{name} is for GGUF, {types[0].upper()} makes safetensors; leave one of them out")
    from llmconv.convert.scaled.compressed_tensors import to_int8
    from llmconv.convert.scaled.unpack import unpack

    kind = types[0].upper()
    opened = reading.open(src)
    floats = unpack(opened)
    if all(opened.tensors.get(name) is tensor for name, tensor in floats.tensors.items()):
        opened = floats  # nothing was stored with scales, whatever config.json says
    wants: Mapping[str, Tensor] = {}
    if kind == INT8:
        model = to_int8(opened, allow_nonfinite=writing.allow_nonfinite)
    else:
        found = _folder(opened, kind, lambda c: reading.translated(c, "hf"), group)
        model, wants = found.model, found.wants
    path = Path(dst) if dst is not None else targets(opened.source, None, [FileType(kind, -1, "")])[0].with_suffix("")
    container = formats.by_name("safetensors")
    result = quantized.of_tensors(opened.source, opened, model, kind, [path])
    if not container.is_folder(path):
        check_target(path, force=writing.force, size=model.nbytes, inputs=_inputs(opened))
    if writing.dry_run:
        return result
    meter = writing.meter("quantize", model.nbytes)
    paths = container.save(model, path, force=writing.force, jobs=writing.jobs, meter=meter)
    proof = ""
    if wants:
        from llmconv.convert.writing.repack import read_again

        check = writing.meter("verify", sum(t.nbytes for t in wants.values()))
        proof = read_again(reading.open(path), wants, threads(writing.jobs), check)
    size = sum(p.stat().st_size for p in paths)
    made = dataclasses.replace(result.output, paths=tuple(paths), size=size, proof=proof)
    return dataclasses.replace(result, outputs=(made,), written=True)


def _folder(opened: Checkpoint, kind: str, to_hf: Callable[[Checkpoint], Checkpoint], group: int | None) -> Any:
    """One of `FOLDERS`, to be written."""
    if kind in FOLDERS[:3]:
        from llmconv.convert.writing.four_bits import written

        return written(opened, kind, to_hf, group)
    from llmconv.convert.writing import float_folders

    return float_folders.written(opened, kind, to_hf)


def _matrix(path: StrPath | None, include: Sequence[str], exclude: Sequence[str]) -> Importance | None:
    """The importance matrix, as far as it is to be used."""
    if path is None:
        if include or exclude:
            raise UsageError("--include-weights and --exclude-weights choose from an importance matrix; give --imatrix")
        return None
    found = read_importance(path).filtered(include, exclude)
    found.check(at(path))
    return found


def _inputs(*checkpoints: Checkpoint) -> list[Path]:
    """Every file that weights may be read from, the source first."""
    found = {c.source: None for c in checkpoints if c.source is not None}
    for checkpoint in checkpoints:
        found |= {t.extent.path: None for t in checkpoint.tensors.values() if t.extent is not None}
    return list(found)


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


def _runnable(checkpoint: Checkpoint, opened: Checkpoint) -> Checkpoint:
    """A translated model with its float64 tensors in float32, the widest that runtimes take; a GGUF as it is."""
    if opened.dialect == "gguf":
        return checkpoint
    tensors = {n: t.astype(F32) if t.type is F64 else t for n, t in checkpoint.tensors.items()}
    return dataclasses.replace(checkpoint, tensors=tensors)


def _listed(path: StrPath | None) -> list[str]:
    """The rules in a file, separated by white space."""
    if path is None:
        return []
    with open_regular(Path(path)) as file:
        raw = file.read(_MOST_RULES + 1)
    if len(raw) > _MOST_RULES:
        raise BadFile(f"{at(path)}: is larger than {_MOST_RULES:,} bytes, expected REGEX=TYPE rules")
    try:
        return raw.decode().split()
    except UnicodeDecodeError:
        raise BadFile(f"{at(path)}: is not UTF-8 text, expected REGEX=TYPE rules") from None


def _require_importance(plans: Sequence[Plan]) -> None:
    for plan in plans:
        if plan.needs_importance:
            raise UsageError(
                f"{plan.needs_importance} needs importance weights, the result would be garbage; give an importance "
                "matrix that has them (--imatrix; llmconv imatrix MODEL TEXT makes one), or choose a larger type"
            )
