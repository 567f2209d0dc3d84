"""Quantize a model: any source straight to quantized GGUFs, in one read, in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmconv import formats
from llmconv.convert.dialects.gguf import check_gguf
from llmconv.convert.translate import translate
from llmconv.convert.writing import encode, journal
from llmconv.convert.writing.importance import read_importance
from llmconv.convert.writing.plan import FilePlan, Plan, PlannedTensor, Wishes, make_plan, parse_override
from llmconv.errors import BadFile, UsageError, about, at, kind_of
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import Output, Outputs, check_target, new_folder, open_regular
from llmconv.progress import Meter, Progress
from llmconv.quant import by_name
from llmconv.quant.filetypes import COPY, FILE_TYPES, FileType, file_type
from llmconv.quant.plain import F32, F64
from llmconv.quant.recipe import Options, tensor_type_rules
from llmconv.show import Shown, log_written

__all__ = ["Quantized", "QuantizedFile", "QuantizedTensor", "quantize"]

StrPath = str | os.PathLike[str]
INT8 = "INT8"
_MOST_RULES = 16 << 20


@dataclass(frozen=True)
class QuantizedTensor(Shown):
    """One tensor of an output: its types before and after, and its bytes before and after.

    fallback_from: the type that its rows were no whole blocks of, or "".
    importance: whether importance weights were used.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    source_nbytes: int
    nbytes: int
    fallback_from: str
    importance: bool


@dataclass(frozen=True)
class QuantizedFile(Shown):
    """One output.

    type: the file type's name.  paths: its files.  size: their exact bytes, header and padding included.
    bits_per_weight: of the tensors' data.  warnings: sentences.
    """

    type: str
    paths: tuple[Path, ...]
    size: int
    tensors: tuple[QuantizedTensor, ...]
    bits_per_weight: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Quantized(Shown):
    """What `quantize` did, or with `dry_run` would do.

    source: the file or folder; None for a model made in memory.  source_nbytes: of all tensors.  seconds: of the whole
    run.  notes: sentences about reading the source.
    """

    source: Path | None
    outputs: tuple[QuantizedFile, ...]
    source_nbytes: int
    seconds: float
    written: bool
    notes: tuple[str, ...] = ()

    @property
    def output(self) -> QuantizedFile:
        """The first (or only) output."""
        return self.outputs[0]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        result = asdict(self) | {"source": str(self.source) if self.source else None}
        for output in result["outputs"]:
            output["paths"] = [str(path) for path in output["paths"]]
        return result


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
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    override_kv: Sequence[str] = (),
    prune_layers: Sequence[int] = (),
    keep_split: bool = False,
    provenance: bool = False,
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
        or INT8: a model folder, or a lone `.safetensors`, as compressed-tensors stores it (`convert.scaled.int8`).
    pure: no mixing; any block type may then be named as `type`.
    tensor_types: `REGEX=TYPE`, the first that is found in a tensor's name decides its type; tensor_type_file: a file
        of more of them, separated by spaces or lines.
    output_tensor_type, token_embedding_type: block types for `output.weight` and `token_embd.weight`.
    leave_output_tensor: `output.weight` stays as it is.
    allow_requantize: tensors that are quantized already may become another type.
    imatrix: a file of importance weights; include_weights, exclude_weights: parts of names that limit it.
    override_kv: `KEY=TYPE:VALUE`, metadata to set.
    prune_layers: layers to leave out; the others move up.
    keep_split: as many files as the source has.
    provenance: record the source, its content hash, the type and our version in the metadata (a certificate that
        `verify_provenance` checks); the source is read once more for it.
    dry_run: only plan; nothing is read or written.
    jobs: threads (default: processors).
    allow_nonfinite: NaN and infinities are let through; otherwise they are refused, by tensor and index.
    resumable: an interrupted run leaves `NAME.partial`, and the same call goes on from its last complete tensor.
    lora, layout, config, vocab, pre, strict: how the source is read, as in `convert_file`.
    force: existing outputs are replaced.
    progress: called with each `Step`; done and total are bytes of the source.

    Raises `UsageError`, `BadFile`, `Unsupported` or `OutputError`; nothing is left behind then.
    """
    started = time.monotonic()
    if not isinstance(src, str | os.PathLike | Checkpoint):
        raise UsageError(f"quantize takes a path or a Checkpoint, not {kind_of(src)}; llmconv.open(path) gives one")
    source = src.source if isinstance(src, Checkpoint) else Path(src)
    types = [type] if isinstance(type, str) else list(type)
    if not types:
        raise UsageError("no type to quantize to; give one, such as Q4_K_M")
    if any(name.upper() == INT8 for name in types):
        if len(types) > 1:
            raise UsageError("INT8 makes a safetensors model, the other types GGUF; make it in a run of its own")
        if provenance:
            raise UsageError("--provenance certifies a GGUF, INT8 makes safetensors; leave one of them out")
        return _int8(_opened(src, lora), source, dst, dry_run, jobs, allow_nonfinite, force, progress, started)
    chosen = list(dict.fromkeys(file_type(name, pure) for name in types))
    if (include_weights or exclude_weights) and imatrix is None:
        raise UsageError("--include-weights and --exclude-weights choose from an importance matrix; give --imatrix")
    if provenance and (prune_layers or lora is not None):
        raise UsageError(
            "--provenance certifies the same model in other types; leave it out, or --prune-layers and --lora"
        )
    if resumable and isinstance(src, Checkpoint):
        raise UsageError("a resumable run recognises its input by its file; give the path instead of an open model")
    importance = None
    if imatrix is not None:
        importance = read_importance(imatrix).filtered(include_weights, exclude_weights)
        importance.check_finite(at(imatrix))
    wishes = Wishes(
        Options(
            pure,
            tensor_type_rules([*tensor_types, *_listed(tensor_type_file)]),
            by_name(output_tensor_type) if output_tensor_type else None,
            by_name(token_embedding_type) if token_embedding_type else None,
            leave_output_tensor,
        ),
        importance,
        os.fsdecode(imatrix) if imatrix is not None else "",
        [parse_override(text) for text in override_kv],
        tuple(prune_layers),
        keep_split,
        allow_requantize,
    )
    opened = _opened(src, lora)
    if opened.dialect == "gguf":
        check_gguf(opened)
    reading = {"layout": layout, "config": config, "vocab": vocab, "pre": pre, "strict": strict}
    canonical = translate(opened, "gguf", **reading)
    checkpoint = _runnable(canonical, opened)
    targets = _targets(source, dst, chosen)
    records = (
        _certificates(Checkpoint() if dry_run else canonical, opened, chosen) if provenance else [{}] * len(chosen)
    )
    with about(source):
        plans = [
            make_plan(dataclasses.replace(checkpoint, metadata=checkpoint.metadata | record), kind, path, wishes)
            for kind, path, record in zip(chosen, targets, records, strict=True)
        ]
    if not dry_run:
        _require_importance(plans)
    result = _result(source, checkpoint, plans, started, written=False)
    if dry_run:
        return result
    inputs = _inputs(opened, checkpoint)
    if lora is not None:
        inputs += sorted(p for p in Path(lora).iterdir() if p.is_file())
    with new_folder(plans[0].files[0].path.parent) if len(chosen) > 1 else contextlib.nullcontext():
        meter = Meter(progress, "quantize", result.source_nbytes)
        _write(source, plans, inputs, imatrix, resumable, force, jobs, allow_nonfinite, meter)
    result = _result(source, checkpoint, plans, started, written=True)
    for made in result.outputs:
        log_written(made.paths, Counter(t.type for t in made.tensors), [*result.notes, *made.warnings])
    return result


def _write(
    source: Path | None,
    plans: Sequence[Plan],
    inputs: Sequence[Path],
    imatrix: StrPath | None,
    resumable: bool,
    force: bool,
    jobs: int | None,
    allow_nonfinite: bool,
    meter: Meter,
) -> None:
    """Make the files of the plans, together or not at all; with `resumable` what is done stays."""
    if resumable:
        files = [f for plan in plans for f in plan.files]
        identity = {"input": [journal.fingerprint(p) for p in inputs if p.is_file()], "importance matrix": None}
        if imatrix is not None:
            identity["importance matrix"] = journal.fingerprint(Path(imatrix))  # type: ignore[assignment]
        outputs = [
            journal.Partial(
                f.path, identity | {"options": _digest(f, allow_nonfinite)}, force=force, inputs=inputs, size=f.size
            )
            for f in files
        ]
        with journal.partials(outputs) as opened_files:
            _run(source, plans, opened_files, jobs, allow_nonfinite, meter)
    else:
        sizes = {f.path: f.size for plan in plans for f in plan.files}
        with Outputs(sizes, force=force, inputs=inputs) as together, contextlib.ExitStack() as stack:
            _run(source, plans, [stack.enter_context(together.open(p)) for p in sizes], jobs, allow_nonfinite, meter)


def _opened(src: StrPath | Checkpoint, lora: StrPath | None) -> Checkpoint:
    """The source, with the adapter merged in where there is one."""
    opened = src if isinstance(src, Checkpoint) else formats.open(Path(src))
    if lora is None:
        return opened
    from llmconv.convert.writing.lora import merge

    return merge(translate(opened, "hf"), Path(lora))


def _certificates(canonical: Checkpoint, opened: Checkpoint, types: Sequence[FileType]) -> list[dict[str, str]]:
    """The metadata of each output that says what it was made from; `canonical` is read once for all of them."""
    from llmconv.convert.reports.provenance import KEY, certify

    certified = Checkpoint()
    certify(certified, canonical, opened, "none")
    record = json.loads(certified.metadata[KEY])
    exact = opened.dialect == "gguf"  # then a copy rounds nothing
    roundings = ["none" if exact and kind is COPY else f"to {kind.name}" for kind in types]
    return [{KEY: json.dumps(record | {"rounding": rounding}, ensure_ascii=False)} for rounding in roundings]


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
                "matrix that has them (--imatrix), or choose a larger type"
            )


def _int8(
    opened: Checkpoint,
    source: Path | None,
    dst: StrPath | None,
    dry_run: bool,
    jobs: int | None,
    allow_nonfinite: bool,
    force: bool,
    progress: Progress | None,
    started: float,
) -> Quantized:
    """The safetensors output: a model folder, or one file where its name says so."""
    from llmconv.convert.scaled.int8 import to_int8

    model = to_int8(opened, allow_nonfinite=allow_nonfinite)
    path = Path(dst) if dst is not None else _targets(source, None, [FileType(INT8, -1, "")])[0].with_suffix("")
    rows = tuple(
        QuantizedTensor(t.name, t.shape, t.type.name, t.type.name, t.nbytes, t.nbytes, "", False)
        for t in model.tensors.values()
    )
    weights = max(1, opened.n_elements)

    def result(paths: Sequence[Path], written: bool) -> Quantized:
        size = sum(p.stat().st_size for p in paths) if written else model.nbytes
        output = QuantizedFile(INT8, tuple(paths), size, rows, 8 * model.nbytes / weights, ())
        notes = tuple(model.notes)
        return Quantized(source, (output,), opened.nbytes, time.monotonic() - started, written, notes)

    plan = result([path], False)
    if path.suffix.lower() == ".safetensors":
        check_target(path, force=force, size=model.nbytes, inputs=_inputs(opened))
    if dry_run:
        return plan
    return result(
        safetensors_file.save(model, path, force=force, jobs=jobs, meter=Meter(progress, "quantize", model.nbytes)),
        True,
    )


# Names of outputs.

_TYPE_SUFFIX = re.compile(rf"[-._](?:{'|'.join(map(re.escape, [*FILE_TYPES, 'FP16', 'FP32']))})$", re.IGNORECASE)
_SHARD_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")


def _targets(src: Path | None, dst: StrPath | None, types: Sequence[FileType]) -> list[Path]:
    """The file for each type."""
    if dst is None and src is None:
        raise UsageError("a model made in memory has no name to call its output by; name the output")
    src = src or Path("model")
    if dst is not None:
        path = Path(dst)
        if "{type}" in path.name:
            return [path.with_name(path.name.replace("{type}", t.name)) for t in types]
        if not path.is_dir():
            if len(types) == 1:
                return [path]
            if path.suffix == ".gguf" or path.exists():
                raise UsageError(
                    f"{at(path)}: is one name for {len(types)} outputs; give a folder or a name with {{type}}"
                )
        folder = path
    elif src.is_dir() and src.name in ("", ".", ".."):
        folder = src.resolve().parent
    else:
        folder = src.parent
    stem = src.resolve().name if src.is_dir() else src.name.removesuffix(src.suffix)
    stem = _TYPE_SUFFIX.sub("", _SHARD_SUFFIX.sub("", stem))
    return [folder / f"{stem}-{t.name}.gguf" for t in types]


def _inputs(*checkpoints: Checkpoint) -> list[Path]:
    """Every file that weights may be read from, the source first."""
    found = {c.source: None for c in checkpoints if c.source is not None}
    for checkpoint in checkpoints:
        found |= {t.extent.path: None for t in checkpoint.tensors.values() if t.extent is not None}
    return list(found)


def _digest(file: FilePlan, allow_nonfinite: bool) -> str:
    """A hash of everything that decides the file's bytes, besides the weights: header, types, importance."""
    import hashlib

    digest = hashlib.sha256(file.head + bytes([allow_nonfinite]))
    for tensor in file.tensors:
        if tensor.importance is not None:
            digest.update(tensor.importance.tobytes())
    return digest.hexdigest()


# Running.


def _run(
    where: Path | None,
    plans: Sequence[Plan],
    outputs: Sequence[Output],
    jobs: int | None,
    allow_nonfinite: bool,
    meter: Meter,
) -> None:
    """Write the header of every file, then all tensors, each read once."""
    files = [f for plan in plans for f in plan.files]
    wanted: dict[str, list[tuple[Output, encode.Target]]] = {}
    tensors: dict[str, PlannedTensor] = {}
    skipped = 0
    for file, out in zip(files, outputs, strict=True):
        done = out.done if isinstance(out, journal.Partial) else set()
        if not done:
            out.reserve(file.size)
            os.pwrite(out.file.fileno(), file.head, 0)
        sink = encode.Sink(file.path, out.file.fileno())
        for tensor in file.tensors:
            tensors.setdefault(tensor.source.name, tensor)
            pairs = wanted.setdefault(tensor.source.name, [])
            if tensor.name not in done:
                pairs.append((out, encode.Target(sink, tensor.choice.type, tensor.offset, tensor.importance)))
    items = []
    owners: dict[int, list[tuple[Output, str]]] = {}
    for name, pairs in wanted.items():
        source = tensors[name].source
        if not pairs:
            skipped += source.nbytes
            continue
        items.append(encode.Item(source, [target for _, target in pairs], at(where) if where else ""))
        owners[id(items[-1])] = [(out, tensors[name].name) for out, _ in pairs]
    if skipped:
        meter(skipped, "already done")

    def finished(item: encode.Item) -> None:
        for out, name in owners[id(item)]:
            if isinstance(out, journal.Partial):
                out.complete(name)

    encode.stream(items, jobs=jobs, allow_nonfinite=allow_nonfinite, meter=meter, finished=finished)


def _result(
    source: Path | None, checkpoint: Checkpoint, plans: Sequence[Plan], started: float, written: bool
) -> Quantized:
    outputs = tuple(_output(plan) for plan in plans)
    notes = tuple(checkpoint.notes)
    return Quantized(source, outputs, checkpoint.nbytes, time.monotonic() - started, written, notes)


def _output(plan: Plan) -> QuantizedFile:
    tensors = tuple(_rows(plan))
    weights = sum(t.source.n_elements for t in plan.tensors)
    bits = 8 * sum(t.nbytes for t in tensors) / weights if weights else 0.0
    warnings = list(plan.warnings)
    if plan.needs_importance:
        warnings.append(f"{plan.needs_importance} will need an importance matrix (--imatrix)")
    return QuantizedFile(
        plan.file_type.name, tuple(f.path for f in plan.files), plan.size, tensors, bits, tuple(warnings)
    )


def _rows(plan: Plan) -> Iterator[QuantizedTensor]:
    for tensor in plan.tensors:
        source, choice = tensor.source, tensor.choice
        fallback = choice.wanted.name if choice.wanted is not choice.type else ""
        yield QuantizedTensor(
            tensor.name,
            tensor.shape,
            source.type.name,
            choice.type.name,
            source.nbytes,
            tensor.nbytes,
            fallback,
            tensor.importance is not None,
        )
