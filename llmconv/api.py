"""The public functions: open any model file, save it in any format, convert one file to another."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llmconv.formats as containers
from llmconv.convert.dialects.hugging_face import disguise
from llmconv.convert.effects import check_name, check_options, read_with
from llmconv.convert.reading import Reading
from llmconv.convert.tables import own_keys
from llmconv.convert.writing import adapters, vocab_only as vocab_alone
from llmconv.convert.writing.cast import OUTTYPES, Rounding, cast, stated_rounding
from llmconv.convert.writing.options import Writing
from llmconv.convert.writing.portable import portable as without_own_keys
from llmconv.drafts import aimed, drafted, joined
from llmconv.errors import UsageError, about, at, kind_of
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.format import Format
from llmconv.formats.places import names as places, outbox, remote
from llmconv.formats.sharing.team import current
from llmconv.formats.writing.outputs import Together
from llmconv.halves import is_multimodal, main_type, parted
from llmconv.progress import Progress
from llmconv.reports import nbytes_on_disk
from llmconv.show import Shown, log_written
from llmconv.wording import in_short_words

__all__ = ["OUTTYPES", "Result", "convert_file", "open", "save"]


@dataclass(frozen=True)
class Result(Shown):
    """What was written.

    paths: the files, in the order of writing.   target: the file or folder asked for.   format: its container.
    size: bytes written.   n_tensors, n_elements: tensors and their elements.   types: type name -> tensors.
    seconds: time it took.   source, source_size: the input and its bytes on disk, for `convert_file`.
    rounding: the largest relative error that a cast made, 0 when nothing was rounded;   rounding_tensor: where.
    overflows, underflows: values that became infinite (only when allowed) and that became zero.
    notes: sentences a user should read.   url: of the commit, where the files were sent to the Hub.
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
    url: str = ""


def open(path: str | os.PathLike[str], *, key: str | None = None) -> Checkpoint:
    """Open a model of any format, by content, lazily: no weight is read before it is asked for.

    key: which of several mappings of tensors a training program's file (.pt, .pkl) holds to take.

    path: a GGUF or safetensors file, any part of a split GGUF, a Hugging Face style folder, legacy JSON or MessagePack
    (whose numbers are read at once).  Raises `BadFile` when the file breaks its format's rules.
    """
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"open takes the path of a model, not {kind_of(path)}")
    return containers.open(path, key=key)


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
    portable: bool = False,
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
    portable: a GGUF for publishing, with no keys of ours; a note says what can't come back from it.
    jobs: threads.   options: of the format: `max_shard_size` (safetensors), `split_max_size`, `split_max_tensors`,
        `byte_order` (GGUF), `json_digits` ("exact", "shortest"), `json_compact` (JSON).

    Raises `OutputError` when the target can't be written, `BadFile` when the model contradicts itself, `Unsupported`
    when the format can't hold it.
    """
    if not isinstance(checkpoint, Checkpoint):
        raise UsageError(
            f"save takes a Checkpoint, not {kind_of(checkpoint)}; llmconv.open(path) gives one, or make it of tensors: "
            "Checkpoint() and add(Tensor.from_array(name, array))"
        )
    if format is None:
        check_name(path)
    if provenance and exclude:
        raise UsageError("--provenance certifies the whole model; leave it out, or --exclude")
    reading = Reading(layout=layout, config=config, vocab=vocab, pre=pre, strict=strict, exclude=exclude)
    writing = Writing(force, jobs, progress, provenance, allow_overflow=allow_overflow, portable=portable)
    target = Path(path)
    container = containers.by_name(format) if format else format_of(target)
    check_options(checkpoint, container.name, {"layout": layout, "config": config, "vocab": vocab, "pre": pre})
    return _save(checkpoint, target, container, reading, writing, outtype, options)


def _save(
    checkpoint: Checkpoint,
    target: Path,
    container: Format,
    reading: Reading,
    writing: Writing,
    outtype: str,
    options: dict[str, Any],
) -> Result:
    started = time.monotonic()
    if writing.portable and container.dialect != "gguf":
        raise UsageError(f"--portable has no effect on {container.name}: it is for GGUF; leave it out")
    if writing.provenance and container.dialect == "program":
        raise UsageError(f"--provenance has no effect on {container.name}: it has no place for one; leave it out")
    if current() is not None and container.name not in ("gguf", "safetensors"):
        raise UsageError(f"several processes write GGUF and safetensors, not {container.name}; run it without torchrun")
    container.check_target(target, force=writing.force, inputs=[checkpoint.source] if checkpoint.source else [])
    source = reading.open(checkpoint) if outtype == "auto" else reading.floats(checkpoint)
    named = reading.named(source, container.dialect)
    rounding = Rounding(writing.allow_overflow)
    stated = _states_types(source)  # a document that says of each tensor what it is stored as elsewhere
    made = cast(named, outtype, rounding, to=container.dialect, from_document=source.dialect == "json" and not stated)
    if container.dialect == "hf":
        made = made.but(*disguise.left_on(made))
    if writing.portable:
        made = without_own_keys(made)
    if writing.provenance:
        from llmconv.convert.reports.provenance import certify

        certify(made, reading.translated(source, "gguf"), source, stated_rounding(named, made))
    if (box := outbox.current()) is not None and container.name == "gguf":
        box.metadata = box.metadata or made.metadata
    with about(source.source):
        meter = writing.meter("convert", made.nbytes)
        paths = container.save(made, target, force=writing.force, jobs=writing.jobs, meter=meter, **options)
        rounding.settle()
    made = made.but(*remote.told(t.begins[0] for t in checkpoint.tensors.values() if t.begins))
    result = Result(
        target=target,
        paths=list(paths),
        format=container.name,
        size=sum(map(outbox.size_of, paths)),
        n_tensors=len(made.tensors),
        n_elements=made.n_elements,
        types=dict(Counter(t.type.name for t in made.tensors.values())),
        seconds=time.monotonic() - started,
        rounding=rounding.largest,
        rounding_tensor=rounding.tensor,
        overflows=rounding.overflows,
        underflows=rounding.underflows,
        notes=[in_short_words(note) for note in made.notes],
    )
    log_written(result.paths, result.types, result.notes)
    return result


def convert_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None = None,
    *,
    to: str | None = None,
    source_format: str | None = None,
    key: str | None = None,
    lora: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    vocab_only: bool = False,
    mmproj: bool | str | os.PathLike[str] | None = None,
    text_only: bool = False,
    mtp: bool | str | os.PathLike[str] | None = None,
    no_mtp: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> Result:
    """Convert one model file or folder to another: `open`, then `save`.

    dst: where to; beside the input, with the format's ending, when None.   to: the format, by `dst`'s name when None.
        `hf://ORG/NAME[@BRANCH][/FOLDER][/FILE.gguf]` sends files to a repository of the Hub as they are finished, and
        commits them, with a card of a GGUF; "gguf" when `to` is None.
    source_format: refuse an input of another format.   key: as in `open`.
    lora: folder or GGUF of an adapter to merge in.
    base: of an adapter that is itself converted: the model that it was trained on; config.json, or a GGUF, is enough.
        Of a draft (EAGLE-3, DFlash): the model that it drafts for, whose vocabulary it takes.
    vocab_only: write the vocabulary alone, of a folder that may hold a tokenizer and no weights, to a GGUF or a folder;
        so is a GGUF written that holds nothing else.
    mmproj: of a multimodal folder that becomes a GGUF: True writes its tower alone (llama.cpp's mmproj file); of a GGUF
        that becomes a folder: the tower's file, found beside it by its name when None.
    text_only: leave the tower out.  With neither, a multimodal folder gives both files: `dst`, and `mmproj-` before its
        name.
    mtp: True writes a model's layers for further tokens alone, with what they share with it, as a draft for llama.cpp;
        a path: of a model's GGUF without them, the file that holds them, to put both together.
    no_mtp: leave these layers out.
    dry_run: of a target on the Hub: which files there would be, and their bytes; nothing is made or sent.
    options: those of `save`.
    """
    started = time.monotonic()
    source = places.place(src)
    if dst is None and to is None:
        raise UsageError("convert_file needs a target or a format; give dst or to")
    if outbox.is_hub(dst):
        taken = {"source_format": source_format, "key": key, "lora": lora, "base": base, "vocab_only": vocab_only}
        how = {**taken, "mmproj": mmproj, "text_only": text_only, "mtp": mtp, "no_mtp": no_mtp, **options}
        made = _sent(source, str(dst), to or "gguf", how, dry_run)
        return dataclasses.replace(made, seconds=time.monotonic() - started)
    if dry_run:
        raise UsageError("dry_run is for a target on the Hub; write hf://ORG/NAME, or leave it out")
    if vocab_only:
        return _vocabulary(source, dst, options)
    if dst is not None and to is None:
        check_name(dst)
    found = containers.sniff(source)
    if source_format is not None and not _same_family(found, containers.by_name(source_format)):
        raise UsageError(f"{at(source)}: is {found.name}, not {source_format}; use llmconv convert, which takes any")
    wanted = containers.by_name(to) if to is not None else None
    if dst is None:
        container = wanted or containers.by_name("gguf")
        target = default_target(source, container)
    else:
        target = Path(dst)
        container = _named_format(target, wanted) if wanted is not None else format_of(target)
    if not container.is_folder(target):
        container.check_target(target, force=bool(options.get("force")), inputs=[source])
    checkpoint = containers.read(found, source, key)
    if vocab_alone.is_vocab_only(checkpoint):
        return _vocabulary(source, target, options)
    size = nbytes_on_disk(source, checkpoint)
    checkpoint = read_with(checkpoint, container.name, options)
    checkpoint = Reading(lora=lora).open(checkpoint)
    checkpoint, base = aimed(checkpoint, base)
    checkpoint = adapters.between(checkpoint, container.name, None if base is None else places.place(base))
    checkpoint = joined(checkpoint, mtp)
    if dst is None and container.name == "gguf" and is_multimodal(checkpoint) and not options.get("layout"):
        kind = main_type(checkpoint, str(options.get("outtype", "auto")))
        target = target.with_name(f"{'mmproj-' if mmproj else ''}{target.stem}-{kind}.gguf")
    if dst is None and mtp is True:
        target = target.with_name(f"mtp-{target.name}")
    parts = parted(checkpoint, container, target, mmproj, text_only, options)
    parts = drafted(parts, container, mtp, no_mtp)
    with Together() if len(parts) > 1 else contextlib.nullcontext():  # a tower and its text model: both, or neither
        written = [save(part.checkpoint, part.target, format=container.name, **part.options) for part in parts]
    result = _both(written)
    notes = [*result.notes, *_inexact(checkpoint, container, str(options.get("outtype", "auto")))]
    return dataclasses.replace(result, notes=notes, source=source, source_size=size, seconds=time.monotonic() - started)


def _sent(source: Path, address: str, to: str, options: dict[str, Any], dry_run: bool) -> Result:
    """`convert_file` to a repository of the Hub, or what it would send."""
    from llmconv.convert.cards.publishing import Row
    from llmconv.convert.quantizing import sent

    container = containers.by_name(to)
    force, progress = bool(options.get("force")), options.get("progress")
    with outbox.Planned(address) if dry_run else sent.opened(address, force, progress) as box:
        target = box.root
        if container.suffixes and not container.folder:
            target /= box.file or default_target(source, container).name
        inputs = [path for path in (source, options["lora"], options["base"]) if path is not None]
        box.made_of = [*map(_fingerprint, map(places.place, inputs)), {**options, "progress": None, "jobs": None}]
        if container.name == "gguf" and not options["vocab_only"]:
            options.setdefault("split_max_size", outbox.LARGEST)
        with box.taking():
            result = convert_file(source, target, to=to, **{**options, "force": True})
        for path in result.paths:
            box.put(path)  # what was not given yet
        paths = [box.address(path) for path in result.paths]
        if dry_run:
            return dataclasses.replace(result, target=box.address(target), paths=paths)
        kinds = Counter(result.types)
        kind = kinds.most_common(1)[0][0] if kinds else ""
        row = Row([path.name for path in result.paths], kind, result.size, 8 * result.size / max(1, result.n_elements))
        url = sent.published(box, box.metadata, [row], source)
        return dataclasses.replace(result, target=box.address(target), paths=paths, url=url)


def _fingerprint(path: Path) -> list[Any]:
    """What a file or folder is recognised by."""
    from llmconv.convert.quantizing import journal

    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return list(map(journal.fingerprint, files))


def _both(results: list[Result]) -> Result:
    """What was written, of one file or of two."""
    first, *rest = results
    worst = max(results, key=lambda result: result.rounding)
    return (
        dataclasses.replace(
            first,
            paths=[path for result in results for path in result.paths],
            size=sum(result.size for result in results),
            n_tensors=sum(result.n_tensors for result in results),
            n_elements=sum(result.n_elements for result in results),
            types=dict(sum((Counter(result.types) for result in results), Counter())),
            rounding=worst.rounding,
            rounding_tensor=worst.rounding_tensor,
            overflows=sum(result.overflows for result in results),
            underflows=sum(result.underflows for result in results),
            notes=[note for result in results for note in result.notes],
        )
        if rest
        else first
    )


def _vocabulary(source: Path, dst: str | os.PathLike[str] | None, options: dict[str, Any]) -> Result:
    """`convert_file` of a vocabulary without weights."""
    started = time.monotonic()
    target = places.beside(source) / f"{places.called(source)}-vocab.gguf" if dst is None else Path(dst)
    paths, notes = vocab_alone.write(source, target, pre=options.get("pre"), force=bool(options.get("force")))
    return Result(
        target=target,
        paths=paths,
        format="gguf" if target.suffix.lower() == ".gguf" else "safetensors",
        size=sum(map(outbox.size_of, paths)),
        n_tensors=0,
        n_elements=0,
        types={},
        seconds=time.monotonic() - started,
        notes=notes,
        source=source,
    )


_COMPARED = 16 << 20
"""Bytes that show how a document was laid out; writing all of a big one again would take longer than reading it."""


def _inexact(checkpoint: Checkpoint, container: Format, outtype: str) -> list[str]:
    """A note where somebody who asked for no rounding would not get a document's bytes back, only its values."""
    is_exact = containers.by_name(checkpoint.format).is_exact
    if is_exact is None or outtype != "f64" or container.dialect == "json":
        return []
    if checkpoint.dialect != "json" or is_exact(checkpoint, first=_COMPARED):
        return []
    return [
        f"{checkpoint.source} is laid out as neither JSON.stringify nor json.dumps would: it comes back with the same "
        "values, not the same bytes"
    ]


_ONLY_READ = (
    *(".bin", ".txt", ".ggml"),
    *(".npy", ".onnx"),
)
"""Endings of files that nobody means as the name of a folder."""


def format_of(path: Path) -> Format:
    """The format that a file name asks for; a name without a known ending is a model folder."""
    named = containers.named_by(path)
    if named is not None:
        return named
    if path.suffix and not path.is_dir() and path.suffix.lower() in _ONLY_READ:
        endings = ", ".join(s for container in containers.formats() for s in container.suffixes[:1])
        raise UsageError(
            f"{at(path)}: its ending names no format that can be written; use one of {endings}, or a folder"
        )
    return containers.of_folders()


def _named_format(path: Path, wanted: Format) -> Format:
    """`wanted`, or the other document format where the name asks for it; a name of yet another format is a mistake."""
    named = format_of(path)
    if _same_family(named, wanted):
        return named
    if named.is_folder(path):
        return wanted  # a name without a known ending
    raise UsageError(
        f"{at(path)}: is a name for {named.name}, not for {wanted.name}; choose another, or use llmconv convert"
    )


def default_target(source: Path, container: Format) -> Path:
    """Beside the input, with the ending of the format."""
    return places.beside(source) / (
        places.called(source) + (container.suffixes[0] if container.suffixes else f".{container.name}")
    )


def _same_family(a: Format, b: Format) -> bool:
    """Whether who names the one may mean the other: JSON and MessagePack hold the same documents."""
    return a.name == b.name or a.dialect == b.dialect == "json"


def _states_types(checkpoint: Checkpoint) -> bool:
    """Whether a document says of each tensor what type it is stored in elsewhere."""
    document = checkpoint.metadata.get("document")
    if not isinstance(document, dict):
        return False

    return document.get("format") == own_keys.OURS
