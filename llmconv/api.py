"""The public functions: open any model file, save it in any format, convert one file to another."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llmconv.formats as containers
from llmconv.convert.dialects.gguf import check_gguf, check_not_empty
from llmconv.convert.translate import translate
from llmconv.convert.writing.cast import OUTTYPES, Rounding, cast, stated_rounding
from llmconv.errors import BadFile, OutputError, UsageError, about, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import check_target
from llmconv.progress import Meter, Progress
from llmconv.show import Shown

__all__ = ["OUTTYPES", "Result", "convert_file", "inspect_file", "open", "save"]

_DOCUMENTS = ("json", "msgpack")


@dataclass(frozen=True)
class Result(Shown):
    """What was written.

    paths: the files, in the order of writing.   target: the file or folder asked for.   format: its container.
    size: bytes written.   n_tensors, n_elements: tensors and their elements.   types: type name -> tensors.
    seconds: time it took.   source, source_size: the input and its bytes on disk, for `convert_file`.
    rounding: the largest relative error that a cast made, 0 when nothing was rounded;   rounding_tensor: where.
    overflows, underflows: values that became infinite (only when allowed) and that became zero.
    notes: sentences a user should read.
    """

    target: Path
    paths: list[Path]
    format: str
    size: int
    n_tensors: int
    n_elements: int
    types: dict[str, int]
    seconds: float
    rounding: float = 0.0
    rounding_tensor: str = ""
    overflows: int = 0
    underflows: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)
    source: Path | None = None
    source_size: int = 0


def open(path: str | os.PathLike[str], *, key: str | None = None) -> Checkpoint:
    """Open a model of any format, by content, lazily: no weight is read before it is asked for.

    key: which of several mappings of tensors a training program's file (.pt, .pkl) holds to take.

    path: a GGUF or safetensors file, any part of a split GGUF, a Hugging Face style folder, legacy JSON or MessagePack
    (whose numbers are read at once).  Raises `BadFile` when the file breaks its format's rules.
    """
    return containers.open(Path(path), key=key)


def save(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    outtype: str = "auto",
    layout: str | None = None,
    config: str | os.PathLike[str] | None = None,
    vocab: str | os.PathLike[str] | None = None,
    pre: str | None = None,
    strict: bool = True,
    exclude: Sequence[str] = (),
    allow_overflow: bool = False,
    provenance: bool = False,
    force: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Write a checkpoint, translated to the names and shapes of the format's ecosystem; complete or not at all.

    format: "gguf", "safetensors", "json" or "msgpack"; by the file name when None (a name without one of their endings
        is a Hugging Face style folder).
    outtype: "f64", "f32", "f16", "bf16", or "auto": f32 for what comes from JSON, else the stored types.
    layout: the JSON layout to read or write (see `llmconv.convert.layouts`), where its keys do not tell; "plain" for a
        model folder too, whose tensors then keep their own names.
    config, vocab: files that hold what a JSON model lacks; found beside it when None.
    pre: the name that llama.cpp gives the pre-tokenizer of a Hugging Face model, where it is not recognised.
    strict: refuse tensors that the architecture's table does not know, instead of leaving them out.
    exclude: patterns of names (`*`, `?`, `[abc]`) of the checkpoint's tensors to leave out.
    allow_overflow: let values that `outtype` can't hold become infinite.   force: replace an existing file.
    provenance: record the source, its content hash, the rounding and our version in the metadata (a certificate that
        `verify_provenance` checks); the source is read once more for it.
    jobs: threads.   options: of the format: `max_shard_size` (safetensors), `split_max_size`, `split_max_tensors`,
        `byte_order` (GGUF).

    Raises `OutputError` when the target can't be written, `BadFile` when the model contradicts itself, `Unsupported`
    when the format can't hold it.
    """
    started = time.monotonic()
    target = Path(path)
    kind = format or format_of(target)
    module = containers.by_name(kind)
    if _is_folder(kind, target):
        _check_folder(target, force, checkpoint.source)
    else:
        check_target(target, force=force, inputs=(checkpoint.source,) if checkpoint.source else ())
    from_document = checkpoint.dialect == "json" and kind not in _DOCUMENTS and not _states_types(checkpoint)
    exclude = [exclude] if isinstance(exclude, str) else exclude
    if exclude:
        if provenance:
            raise UsageError("--provenance certifies the whole model; leave it out, or --exclude")
        checkpoint = _without(checkpoint, exclude)
    source = checkpoint
    named = {"layout": layout, "config": config, "vocab": vocab, "pre": pre, "strict": strict}
    checkpoint = translated = _in_dialect_of(kind, source, **named)
    if not translated.tensors:
        check_not_empty(source)
    rounding = Rounding(allow_overflow)
    checkpoint = cast(checkpoint, outtype, rounding, to=kind, from_document=from_document)
    if provenance:
        from llmconv.convert.reports.provenance import certify

        certify(checkpoint, translate(source, "gguf", **named), source, stated_rounding(translated, checkpoint))
    with about(source.source):
        paths = module.save(
            checkpoint, target, force=force, jobs=jobs, meter=Meter(progress, "convert", checkpoint.nbytes), **options
        )
    if target.is_dir():
        _clear_stale(target, paths)
    return Result(
        target=target,
        paths=list(paths),
        format=kind,
        size=sum(p.stat().st_size for p in paths),
        n_tensors=len(checkpoint.tensors),
        n_elements=checkpoint.n_elements,
        types=dict(Counter(t.type.name for t in checkpoint.tensors.values())),
        seconds=time.monotonic() - started,
        rounding=rounding.largest,
        rounding_tensor=rounding.tensor,
        overflows=rounding.overflows,
        underflows=rounding.underflows,
        notes=list(checkpoint.notes),
    )


def convert_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None = None,
    *,
    to: str | None = None,
    source_format: str | None = None,
    key: str | None = None,
    lora: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Result:
    """Convert one model file or folder to another: `open`, then `save`.

    dst: where to; beside the input, with the format's ending, when None.   to: the format, by `dst`'s name when None.
    source_format: refuse an input of another format.   key: as in `open`.   lora: folder of a PEFT adapter to merge in.
    options: those of `save`.
    """
    started = time.monotonic()
    source = Path(src)
    if dst is None and to is None:
        raise UsageError("convert_file needs a target or a format; give dst or to")
    module = containers.sniff(source)
    if source_format is not None and not _same_family(module.NAME, source_format):
        raise UsageError(f"{at(source)}: is {module.NAME}, not {source_format}; use llmconv convert, which takes any")
    target = default_target(source, to or "gguf") if dst is None else Path(dst)
    if dst is not None and to is not None:
        to = _named_format(target, to)
    if not _is_folder(to or format_of(target), target):
        check_target(target, force=bool(options.get("force")), inputs=(source,))
    checkpoint = containers.read(module, source, key)
    size = _size(source, checkpoint)
    if lora is not None:
        from llmconv.convert.writing.lora import merge

        checkpoint = merge(translate(checkpoint, "hf"), Path(lora))
    result = save(checkpoint, target, format=to, **options)
    notes = [*result.notes, *_inexact(checkpoint, result, str(options.get("outtype", "auto")))]
    return dataclasses.replace(result, notes=notes, source=source, source_size=size, seconds=time.monotonic() - started)


def inspect_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a model file holds, as plain data: see `llmconv.convert.reports.describe.describe`."""
    from llmconv.convert.reports.describe import describe

    checkpoint = open(path)
    report = describe(checkpoint)
    report["size"] = _size(Path(path), checkpoint)
    return report


_COMPARED = 16 << 20
"""Bytes that show how a document was laid out; writing all of a big one again would take longer than reading it."""


def _inexact(checkpoint: Checkpoint, result: Result, outtype: str) -> list[str]:
    """A note where somebody who asked for no rounding would not get a document's bytes back, only its values."""
    if checkpoint.format not in _DOCUMENTS or outtype != "f64" or result.format in _DOCUMENTS:
        return []
    module: Any = containers.by_name(checkpoint.format)
    if module.is_exact(checkpoint, first=_COMPARED):
        return []
    return [
        f"{checkpoint.source} is laid out as neither JSON.stringify nor json.dumps would: it comes back with the same "
        "values, not the same bytes"
    ]


def _without(checkpoint: Checkpoint, patterns: Sequence[str]) -> Checkpoint:
    """The checkpoint without the tensors whose names match."""
    where = checkpoint.where
    if checkpoint.dialect == "json":
        raise UsageError(f"{where}: a document needs all of its tensors; convert it first, then --exclude")
    gone: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(checkpoint.tensors, pattern)
        if not found:
            raise UsageError(f"{where}: --exclude {pattern!r} fits no tensor; llmconv inspect --tensors lists them")
        gone.update(found)
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in gone}
    note = f"{len(gone)} tensors left out, as asked"
    return checkpoint.but(note, tensors=tensors)


def format_of(path: Path) -> str:
    """The format that a file name asks for; a name without a known ending is a safetensors folder."""
    for module in containers.formats():
        if path.suffix.lower() in module.SUFFIXES:
            return module.NAME
    if path.suffix and not path.is_dir() and path.suffix.lower() in (".bin", ".pt", ".pth", ".txt", ".ggml", ".onnx"):
        endings = ", ".join(s for module in containers.formats() for s in module.SUFFIXES[:1])
        raise UsageError(
            f"{at(path)}: its ending names no format that can be written; use one of {endings}, or a folder"
        )
    return "safetensors"


def _named_format(path: Path, to: str) -> str:
    """`to`, or the other document format where the name asks for it; a name of yet another format is a mistake."""
    named = format_of(path)
    if _same_family(named, to):
        return named
    if named == "safetensors" and path.suffix.lower() != ".safetensors":
        return to  # a name without a known ending
    raise UsageError(f"{at(path)}: is a name for {named}, not for {to}; choose another, or use llmconv convert")


def default_target(source: Path, to: str) -> Path:
    """Beside the input, with the ending of the format."""
    source = source.resolve() if source.name in ("", ".", "..") else source
    stem = source.name if source.is_dir() or not source.suffix else source.name[: -len(source.suffix)]
    return source.with_name(stem + containers.by_name(to).SUFFIXES[0])


def _same_family(name: str, wanted: str) -> bool:
    return name == wanted or (name in _DOCUMENTS and wanted in _DOCUMENTS)


def _states_types(checkpoint: Checkpoint) -> bool:
    """Whether a document says of each tensor what type it is stored in elsewhere."""
    from llmconv.convert.dialects.named_tensors import OURS

    document = checkpoint.metadata.get("document")
    return isinstance(document, dict) and document.get("format") == OURS


def _in_dialect_of(kind: str, checkpoint: Checkpoint, **options: Any) -> Checkpoint:
    if checkpoint.dialect == "gguf":
        check_gguf(checkpoint)
    if kind == "gguf":
        return translate(checkpoint, "gguf", **options)
    if kind in _DOCUMENTS:
        return translate(checkpoint, "json", **options)
    if checkpoint.dialect in ("hf", "plain"):
        return checkpoint
    from llmconv.convert import archs

    checkpoint = translate(checkpoint, "gguf", **options)
    known = archs.by_gguf(str(checkpoint.metadata.get("general.architecture", ""))) is not None
    plain = not known or checkpoint.metadata.get("llmconv.layout") == "plain"
    return translate(checkpoint, "plain" if plain else "hf", **options)


def _is_folder(kind: str, target: Path) -> bool:
    """Whether a format is written into a folder of that name."""
    return kind == "tfjs" or (kind == "safetensors" and target.suffix.lower() != ".safetensors")


def _check_folder(path: Path, force: bool, source: Path | None) -> None:
    """A model folder may be written where there is none, or an empty one; never over the input."""
    own = source if source is None or source.is_dir() else source.parent
    if own is not None and own.exists() and path.is_dir() and path.samefile(own):
        raise OutputError(f"{at(path)}: holds the input itself; choose another output folder")
    if path.is_file():
        raise OutputError(f"{at(path)}: is a file; give a folder, or a name that ends in .safetensors")
    if path.is_dir() and not force and any(path.iterdir()):
        raise OutputError(f"{at(path)}: exists already and is not empty; use --force to write into it, or another name")
    if not path.parent.is_dir():
        raise OutputError(f"{at(path)}: its folder {path.parent} does not exist; make it first")


_OF_A_MODEL = (  # names that a reader of the folder would take for parts of the new model; nothing else is touched
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.j*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def _clear_stale(folder: Path, written: list[Path]) -> None:
    """Remove what an older model left in a folder that was written over (`force`): it would be read as part of it."""
    for pattern in _OF_A_MODEL:
        for path in folder.glob(pattern):
            if path not in written and path.is_file():
                path.unlink()


def _size(path: Path, checkpoint: Checkpoint) -> int:
    """Bytes on disk of a file and of all others that hold tensors of it, or of a folder's files."""
    try:
        if path.is_dir():
            return sum(p.stat().st_size for p in path.iterdir() if p.is_file())
        parts = {t.extent.path.resolve() for t in checkpoint.tensors.values() if t.extent is not None}
        return sum(p.stat().st_size for p in parts | {path.resolve()})
    except OSError as error:
        raise BadFile(f"{at(path)}: can't be read ({error.strerror})") from None
