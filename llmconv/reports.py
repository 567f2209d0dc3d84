"""Public functions behind the reports: they open what they are given and call the rooms that do the work."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llmconv
from llmconv import formats
from llmconv.errors import BadFile, MissingTensor, UnknownName, UsageError, about, at, cut, nearest
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import regular_size
from llmconv.formats.places import names as places
from llmconv.formats.places.names import place
from llmconv.progress import Meter, Progress
from llmconv.show import for_json

if TYPE_CHECKING:  # each is loaded when its function runs
    from llmconv.convert.reports.content_hash import ContentHash
    from llmconv.convert.reports.diff import Difference
    from llmconv.convert.reports.grids import TensorGrid
    from llmconv.convert.reports.provenance import Certificate
    from llmconv.convert.reports.shape import Shape
    from llmconv.convert.reports.sharing import SharePlan
    from llmconv.convert.reports.sizing import SizeReport
    from llmconv.convert.reports.stats import Histogram, TensorStats
    from llmconv.convert.reports.streaming import StreamingPlan
    from llmconv.convert.reports.training_memory import TrainingMemory
    from llmconv.convert.reports.verify import Verdict

__all__ = [
    "content_hash",
    "diff",
    "grids",
    "histogram",
    "inspect_file",
    "nbytes_on_disk",
    "shaped",
    "shares",
    "size",
    "statistics",
    "streaming",
    "training_memory",
    "verify",
    "verify_provenance",
    "view",
    "vocabulary",
]

Source = str | Path | Checkpoint


def _open(source: Source) -> Checkpoint:
    return source if isinstance(source, Checkpoint) else formats.open(source)


def inspect_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a model file holds, as plain data: see `llmconv.convert.reports.describe.describe`."""
    from llmconv.convert.reports.describe import describe

    checkpoint = formats.open(path)
    report = describe(checkpoint)
    report["size"] = nbytes_on_disk(checkpoint.source or Path(path), checkpoint)
    return report


def nbytes_on_disk(path: Path, checkpoint: Checkpoint) -> int:
    """Bytes on disk of a file and of all others that hold tensors of it, or of a folder's files."""
    try:
        there = (p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        parts = {t.extent.path.resolve() for t in checkpoint.tensors.values() if t.extent is not None}
        return sum(p.stat().st_size for p in parts | {p.resolve() for p in there})
    except OSError as error:
        raise BadFile(f"{at(path)}: can't be read ({error.strerror})") from None


def verify(
    a: Source,
    b: Source,
    *,
    tolerance: float = 0.0,
    run: str | Path | None = None,
    context: int | None = None,
    chunks: int | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Are `a` and `b` the same model?  Paths or checkpoints of any two formats; see `Verdict`.

    tolerance: relative error up to which a tensor counts as close.
    run: a text file; both models are run over it and the verdict's `run` holds the comparison (needs torch).
    context, chunks: how that text is cut, as in `compare`.
    """
    import dataclasses

    from llmconv.convert.reports.verify import verify_checkpoints

    left, right = _open(a), _open(b)
    verdict = verify_checkpoints(left, right, tolerance=tolerance, meter=Meter(progress, "verify", left.nbytes))
    if run is not None:
        verdict = dataclasses.replace(verdict, run=llmconv.compare(a, b, run, context=context, chunks=chunks))
    return verdict


def verify_provenance(file: Source, source: Source, *, progress: Progress | None = None) -> Certificate:
    """Check the certificate that a converted file carries (`--provenance`) against the source it was made from."""
    from llmconv.convert.reports.provenance import check_certificate

    original = _open(source)
    return check_certificate(_open(file), original, Meter(progress, "verify", 2 * original.nbytes))


def diff(a: Source, b: Source) -> list[Difference]:
    """What differs between two files in their own terms: metadata, tensor lists, side files."""
    from llmconv.convert.reports.diff import diff_checkpoints

    return diff_checkpoints(_open(a), _open(b))


def content_hash(model: Source, *, progress: Progress | None = None) -> ContentHash:
    """A hash per tensor and of the model, independent of container, float width and tensor order."""
    from llmconv.convert.reports import content_hash as contenthash

    checkpoint = _open(model)
    return contenthash.content_hash(checkpoint, Meter(progress, "hash", checkpoint.nbytes))


def statistics(model: Source, *, progress: Progress | None = None) -> list[TensorStats]:
    """Extremes, mean, deviation, zeros, non-finite values and outliers of every tensor, streaming."""
    from llmconv.convert.reports.stats import tensor_stats

    checkpoint = _open(model)
    meter = Meter(progress, "statistics", checkpoint.nbytes)
    found = []
    for name, tensor in checkpoint.tensors.items():
        found.append(tensor_stats(tensor, functools.partial(meter, item=name)))
    return found


def grids(model: Source, *, progress: Progress | None = None) -> list[TensorGrid]:
    """Which matrices lie on the grid of a block type, wholly: what `quantize(..., "REPACK")` would carry as it is."""
    from llmconv.convert.reports.grids import grids_of

    checkpoint = _open(model)
    return grids_of(checkpoint, Meter(progress, "grids", checkpoint.nbytes))


def histogram(model: Source, tensor: str, bins: int = 40) -> Histogram:
    """How the values of one tensor are spread; `BadFile` when there is none of that name."""
    from llmconv.convert.reports import stats

    checkpoint = _open(model)
    found = checkpoint.tensors.get(tensor)
    if found is None:
        near = nearest(tensor, checkpoint.tensors)
        hint = f"did you mean {near!r}?" if near else "llmconv inspect --tensors lists them"
        raise MissingTensor(checkpoint.where, tensor, hint)
    return stats.histogram(found, bins)


def vocabulary(model: Source) -> list[dict[str, Any]]:
    """The tokens of a model: id, token, kind (normal, control, ...) and score (None where there is none).

    `UsageError` when the model carries no vocabulary.
    """
    from llmconv.convert import vocab

    checkpoint = _open(model)
    found = vocab.of(checkpoint)
    if found is None:
        raise UsageError(f"{checkpoint.where}: carries no vocabulary")
    scores = None if found.scores is None else found.scores.tolist()
    return [
        {
            "id": i,
            "token": token,
            "kind": vocab.TokenType(found.type_of(i)).name.lower(),
            "score": None if scores is None else scores[i],
        }
        for i, token in enumerate(found.tokens)
    ]


def view(
    model: Source,
    output: str | Path | None = None,
    *,
    stats: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write one self-contained HTML page about a model; its path.

    output: beside the model, with .html behind its name, when None.   stats: read every tensor for histograms and
    outliers.   force: replace an existing page.
    """
    from llmconv.convert import vocab
    from llmconv.convert.reports import page, stats as reports
    from llmconv.convert.reports.describe import describe
    from llmconv.formats.writing.checks import check_target
    from llmconv.formats.writing.outputs import Output

    checkpoint = _open(model)
    if output is None and checkpoint.source is None:
        raise UsageError("a model made in memory has no name to call the page by; give output")
    source = checkpoint.source or Path()
    path = Path(output) if output is not None else places.beside(source) / f"{source.name}.html"
    inputs = [checkpoint.source] if checkpoint.source else []
    check_target(path, force=force, inputs=inputs)
    report = describe(checkpoint)
    meter = Meter(progress, "statistics", checkpoint.nbytes if stats else 0)
    for entry in report["tensors"] if stats else ():
        tensor = checkpoint.tensors[entry["name"]]
        bins = reports.histogram(tensor)
        found = reports.tensor_stats(tensor, functools.partial(meter, item=tensor.name)).as_dict()
        edges = [float(bins.edges[0]), float(bins.edges[-1])]
        entry["stats"] = for_json({**found, "counts": bins.counts.tolist(), "edges": edges})
    words = vocab.of(checkpoint)
    facts = {
        "format": report["format"],
        "architecture": report["architecture"] or "unknown",
        "parameters": f"{report['parameters']:,}",
        "bytes of weights": f"{checkpoint.nbytes:,}",
        "types": ", ".join(f"{count} {name}" for name, count in report["types"].items()),
        **{f"note {i}": note for i, note in enumerate(report["notes"], 1)},
    }
    contents = {
        "facts": facts,
        **{name: report[name] for name in ("hyperparameters", "metadata", "tensors")},
        "tokens": list(words.tokens) if words else [],
        "kinds": [vocab.TokenType(words.type_of(i)).name.lower() for i in range(len(words))] if words else [],
        "template": words.chat_template if words else None,
    }
    text = page.page(Path(str(checkpoint.source or "model")).name, contents).encode()
    with Output(path, force=force, size=len(text), inputs=inputs) as out:
        out.file.write(text)
    return path


def size(target: Source, **options: Any) -> SizeReport:
    """The size report of a checkpoint, a config.json, or a preset by name.

    options: context, batch, devices (see `llmconv.convert.reports.sizing.size_report`).
    """
    _check_sizes(options)
    from llmconv.convert.reports.sizing import size_report

    shape, _ = _shape(target)
    with about(None if isinstance(target, Checkpoint) else place(target)):
        return size_report(shape, **options)


def streaming(target: Source, memory: int | str, *, tokens: int = 100_000, context: int = 512) -> StreamingPlan:
    """How a model is run layer by layer within so much memory, as `perplexity(memory=…)` does it: from its shape alone.

    target: a checkpoint, a config.json, or a preset by name.   memory: bytes, or a size like "4G".
    tokens, context: of the text, and of a chunk.   `UsageError` where not even the largest part fits.
    """
    from llmconv.convert.reports.streaming import plan_streaming, sizes_of
    from llmconv.formats.limits import in_bytes

    return plan_streaming(sizes_of(_shape(target)[0]), in_bytes(memory, "memory"), tokens, context)


def training_memory(
    target: Source, *, batch: int = 1, context: int = 0, devices: int = 1, checkpointing: bool = False
) -> TrainingMemory:
    """What training a model takes on each of so many devices that shard it (FSDP2): from its shape alone.

    target: a checkpoint, a config.json, or a preset by name.   batch, context: of a device's step, computed in 16 bits
    with float32 weights and AdamW; a context of 0 is the model's, at most 4096.   checkpointing: activations are
    computed again instead of kept (`--activation-checkpointing`).
    """
    _check_sizes({"batch": batch, "context": context, "devices": devices})
    from llmconv.convert.reports import training_memory as plan

    shape, _ = _shape(target)
    return plan.training_memory(shape, batch=batch, context=context, devices=devices, checkpointing=checkpointing)


def shares(
    target: Source, type: str, processes: int, *, disk: int = 0, network: int = 0, jobs: int | None = None
) -> SharePlan:
    """Who of `processes` (under torchrun) quantizes what of a model, and how long it takes: from its shape alone.

    target: a checkpoint, a config.json, or a preset by name.   type: a file type, as Q4_K_M.
    disk: bytes a second of the disk that all share.   network: of each process's way to it; 0: no limit.
    jobs: threads of each process; default as many as there are processors here.
    """
    from llmconv.convert.reports.sharing import Rates, plan_shares
    from llmconv.formats.writing.stream import threads

    shape, config = _shape(target)
    return plan_shares(shape, type, processes, Rates(disk, network, threads(jobs)), config)


def _shape(target: Source) -> tuple[Shape, dict[str, Any]]:
    """The shape of what `size` takes, and its config.json where it is one."""
    from llmconv.convert.reports.shape import shape_of
    from llmconv.convert.tables.presets import preset

    if isinstance(target, Checkpoint):
        return shape_of(target), {}
    path = place(target)
    if not path.exists():
        if len(path.parts) == 2:
            regular_size(path)  # says where to look
        if isinstance(target, Path) or len(path.parts) > 1 or path.suffix in (".json", ".gguf", ".safetensors"):
            raise BadFile(f"{at(path)}: no such file; check the path, or name a preset")
        return shape_of(preset(str(target))), {}
    with about(path):
        if path.is_file() and path.suffix == ".json" and (config := _config(path)) is not None:
            return shape_of(config, path.name), config
        return shape_of(formats.open(path), path.name), {}


def _check_sizes(sizes: Mapping[str, Any]) -> None:
    for name, value in sizes.items():
        if isinstance(value, int) and value >= 1 << 31:
            raise UsageError(f"{name} is {cut(value, 40)}, expected less than 2^31")


def _config(path: Path) -> dict[str, Any] | None:
    """A Hugging Face config.json's mapping; None for another JSON file, such as a legacy model."""
    import json

    from llmconv.formats.files import open_regular

    with open_regular(path) as file:
        raw = file.read(1 << 20)  # a configuration is small, a legacy model may not be
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    known = isinstance(found, dict) and ("model_type" in found or "architectures" in found)
    return found if known else None


def shaped(arch: str, **keys: Any) -> SizeReport:
    """The size report of a shape given by hand.

    arch: the architecture's GGUF name; keys: its hyper-parameters under GGUF's key names without that name in front
    (`embedding_length`, with "." as in `attention.head_count`), `tied`, `name`, and the options of `size`.
    `UsageError` for an unknown architecture or sizes that don't go together.
    """
    from llmconv.convert import archs
    from llmconv.convert.reports.sizing import shape_of, size_report
    from llmconv.convert.tables.presets import Preset, check_heads

    _check_sizes(keys)
    if archs.by_gguf(arch) is None:
        raise UnknownName("architecture", arch, [table.gguf for table in archs.all()])
    heads = keys.get("attention.head_count", 1)
    check_heads(keys.get("embedding_length", heads), heads, keys.get("attention.head_count_kv", heads))
    options = {k: keys.pop(k) for k in ("context", "batch", "devices") if k in keys}
    tied, name = keys.pop("tied", True), keys.pop("name", "shape")
    return size_report(shape_of(Preset(name, arch, keys, tied)), **options)
