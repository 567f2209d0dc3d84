"""Quantize to several types in one read, evaluate each against the original, report: `llmconv sweep`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from llmconv import formats
from llmconv.convert.writing.quantize import quantize
from llmconv.errors import BadFile, OutputError, UsageError, at
from llmconv.formats.files import Output, open_regular
from llmconv.progress import Progress
from llmconv.quant.filetypes import file_type
from llmconv.runtime import sweep_report
from llmconv.runtime.chunks import text_chunks
from llmconv.runtime.compare import compare
from llmconv.runtime.load import load
from llmconv.runtime.perplexity import pair_batches, pairs_of
from llmconv.show import Shown

__all__ = ["Sweep", "SweepRow", "sweep"]

STATE = "sweep.json"


@dataclass(frozen=True)
class SweepRow(Shown):
    """One type: its file's size and bits per weight, and what `compare` says of it against the original."""

    type: str
    size: int
    bits_per_weight: float
    ppl: float
    ppl_stderr: float
    ppl_ratio: float
    mean_kld: float
    mean_kld_stderr: float
    max_kld: float
    top1_agreement: float
    quantize_seconds: float
    evaluate_seconds: float


@dataclass(frozen=True)
class Sweep(Shown):
    """model, text: file names; size, ppl: the original's; tokens: positions scored; rows: as asked for."""

    model: str
    text: str
    context: int
    tokens: int
    size: int
    ppl: float
    ppl_stderr: float
    rows: list[SweepRow]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the names of the types on the frontier."""
        return {**super().as_dict(), "frontier": sorted(sweep_report.frontier(self.rows))}


def _identity(model: Path, text: Path, options: dict[str, Any]) -> str:
    """What must be the same for a sweep to go on: the input files by name, size and time, and the options."""
    names = sorted(p for p in model.iterdir() if p.is_file()) if model.is_dir() else [model]
    inputs = [*names, text, *(value for value in options.values() if isinstance(value, Path))]
    facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in inputs]
    return hashlib.sha256(json.dumps([facts, options], sort_keys=True, default=str).encode()).hexdigest()


def _read_state(path: Path, identity: str) -> dict[str, Any]:
    if not path.exists():
        return {}
    with open_regular(path) as file:
        raw = file.read(1 << 20)
    try:
        state = json.loads(raw)
        known = {f.name for f in fields(SweepRow)}
        good = all(set(row) == known for row in state["rows"].values()) and isinstance(state["base"], dict)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise BadFile(f"{at(path)}: is no state of a sweep; remove it or choose another output folder (-o)")
    if state["identity"] != identity:
        raise OutputError(
            f"{at(path)}: belongs to a sweep of another model, text or options; use --force to start over, or "
            "another output folder (-o)"
        )
    return dict(state)


def _check_text(model: Path, text: Path, context: int) -> None:
    """Refuse a text that the model can't be measured on, before any work: the model without its weights cuts it."""
    weightless = load(model, "meta")
    pairs = pairs_of(text)
    if pairs is None:
        text_chunks(weightless, model, text, context or None, 1, None)
    else:
        next(pair_batches(weightless, model, text, pairs[:1]))


def _write(path: Path, text: str) -> None:
    data = text.encode()
    with Output(path, force=True, size=len(data)) as out:
        out.file.write(data)


def sweep(
    model: str | Path,
    text: str | Path,
    types: Sequence[str],
    output: str | Path,
    *,
    context: int = 0,
    chunks: int = 0,
    device: str = "auto",
    keep: bool = True,
    plots: bool = True,
    force: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
    **quantize_options: Any,
) -> Sweep:
    """Quantize `model` to each of `types`, measure each against it over `text`, and write a report into `output`.

    types: file types such as "Q4_K_M".  context, chunks: as in `perplexity` (0: its defaults).
    keep: leave the quantized files in the folder; else each is removed once measured.
    plots: draw the PNG (needs matplotlib).  force: start over where another sweep's state lies.
    progress: called with each `Step` of quantizing and, with the type as its item, of evaluating.

    Writes report.md, report.json, report.html and plot.png, and `sweep.json` after every step: the same call again goes
    on where an interrupted one stopped.
    """
    model, text, output = Path(model), Path(text), Path(output)
    names = list(dict.fromkeys(file_type(name).name for name in types))
    if not names:
        raise UsageError("no types to sweep; give --types Q8_0,Q4_K_M,…")
    formats.open(model)  # this and the others: refused before any work when they can't be read
    given = quantize_options.get("imatrix")
    if given is not None:
        quantize_options["imatrix"] = Path(given)

    def named(item: str) -> Progress | None:
        return progress and (lambda step: progress(dataclasses.replace(step, item=item)))

    for path in (text, *([Path(given)] if given is not None else [])):
        with open_regular(path):
            pass
    if plots:
        sweep_report.need_matplotlib()
    if output.exists() and not output.is_dir():
        raise OutputError(f"{at(output)}: is a file, expected a folder; choose another (-o)")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{at(output)}: can't be made ({error.strerror})") from None
    state_path = output / STATE
    identity = _identity(model, text, {"context": context, "chunks": chunks, **quantize_options})
    state = {} if force else _read_state(state_path, identity)
    rows: dict[str, Any] = state.get("rows", {})
    base: dict[str, Any] = state.get("base", {})
    seconds: dict[str, float] = state.get("seconds", {})

    def save() -> None:
        record = {"identity": identity, "base": base, "rows": rows, "seconds": seconds}
        _write(state_path, json.dumps(record, indent=2) + "\n")

    stem = re.sub(r"\.(gguf|json|msgpack|safetensors)$", "", model.name)
    files = {name: output / f"{stem}-{name}.gguf" for name in names}
    missing = [name for name in names if name not in rows and not (name in seconds and files[name].exists())]
    if missing:
        _check_text(model, text, context)
        started = time.perf_counter()
        quantize(
            model,
            output / f"{stem}-{{type}}.gguf",
            missing,
            force=True,
            jobs=jobs,
            progress=named(", ".join(missing)),
            **quantize_options,
        )
        share = (time.perf_counter() - started) / len(missing)
        seconds.update(dict.fromkeys(missing, share))
        save()
    original = None
    for name in names:
        if name in rows:
            continue
        if original is None:
            original = load(model, device)
        started = time.perf_counter()
        options: dict[str, Any] = {k: v for k, v in {"context": context, "chunks": chunks}.items() if v}
        options["progress"] = named(name)
        found = compare(original, files[name], text, device=device, **options)
        quantized = formats.open(files[name])
        base.update(ppl=found.ppl_a, ppl_stderr=found.ppl_a_stderr, context=found.context, tokens=found.tokens)
        row = SweepRow(
            type=name,
            size=files[name].stat().st_size,
            bits_per_weight=8 * quantized.nbytes / max(1, quantized.n_elements),
            ppl=found.ppl_b,
            ppl_stderr=found.ppl_b_stderr,
            ppl_ratio=found.ppl_ratio,
            mean_kld=found.mean_kld,
            mean_kld_stderr=found.mean_kld_stderr,
            max_kld=found.max_kld,
            top1_agreement=found.top1_agreement,
            quantize_seconds=seconds.get(name, math.nan),
            evaluate_seconds=time.perf_counter() - started,
        )
        rows[name] = asdict(row)
        save()
        if not keep:
            files[name].unlink()
    size = sum(p.stat().st_size for p in model.iterdir() if p.is_file()) if model.is_dir() else model.stat().st_size
    result = Sweep(
        model=model.name,
        text=text.name,
        context=base["context"],
        tokens=base["tokens"],
        size=size,
        ppl=base["ppl"],
        ppl_stderr=base["ppl_stderr"],
        rows=[SweepRow(**rows[name]) for name in names],
    )
    _report(result, output, plots)
    return result


def _report(result: Sweep, output: Path, plots: bool) -> None:
    image: bytes | None = None
    if plots:
        import io

        drawn = io.BytesIO()
        sweep_report.plot(result, drawn)
        image = drawn.getvalue()
        with Output(output / "plot.png", force=True, size=len(image)) as out:
            out.file.write(image)
    _write(output / "report.json", json.dumps(result.as_dict(), indent=2) + "\n")
    _write(output / "report.md", sweep_report.markdown(result))
    _write(output / "report.html", sweep_report.html_page(result, image))
