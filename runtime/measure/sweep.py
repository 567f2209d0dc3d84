"""Quantize to several types in one read, evaluate each against the original, report: `llmconv sweep`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmconv import __version__, formats
from llmconv.convert.quantizing.quantize import quantize
from llmconv.convert.reports.shape import shape_of
from llmconv.convert.reports.sizing import size_report
from llmconv.convert.reports.streaming import TooLittle
from llmconv.convert.translate import translate
from llmconv.errors import LlmconvError, OutputError, UsageError, at
from llmconv.formats.files import open_regular
from llmconv.formats.limits import in_bytes
from llmconv.formats.places.names import place
from llmconv.progress import Progress
from llmconv.quant.filetypes import file_type
from llmconv.runtime.load import pick_device
from llmconv.runtime.measure import sweep_report, texts
from llmconv.runtime.measure.chunks import Running, Window, work_on
from llmconv.runtime.measure.compare import Comparison, compared
from llmconv.runtime.measure.sharing import Recall
from llmconv.runtime.measure.sweep_card import MARK, card
from llmconv.runtime.measure.sweep_rows import Sweep, SweepRow
from llmconv.runtime.measure.sweep_state import NAME, State, file_hash, hashed, identity_of, write_text
from llmconv.runtime.model import Model
from llmconv.runtime.streamed.memory import Memory, limit

__all__ = ["Sweep", "SweepRow", "sweep"]


def sweep(
    model: str | Path,
    text: str | Path,
    types: Sequence[str],
    output: str | Path,
    *,
    target_sizes: Sequence[int | str] = (),
    context: int = 0,
    chunks: int = 0,
    device: str = "auto",
    memory: Memory = None,
    keep: bool = True,
    plots: bool = True,
    force: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
    **quantize_options: Any,
) -> Sweep:
    """Quantize `model` to each of `types`, measure each against it over `text`, and write a report into `output`.

    types: file types such as "Q4_K_M".  target_sizes: bytes, or "3.4G": of each a mix of types of that size, as
    `quantize(target_size=…)` finds it; its row's type is "MIX-3.4G".
    context, chunks: as in `perplexity` (0: its defaults).
    memory: as `perplexity` takes it, for the two models that are compared.
    keep: leave the quantized files in the folder; else each is removed once measured.
    plots: draw plot.svg.  force: start over where another sweep's state lies.
    progress: called with each `Step` of quantizing and, with the type as its item, of evaluating.

    Writes report.md, report.json, report.html, plot.svg and a model card (README.md, unless there is one of somebody's
    own), and `sweep.json` after every step: the same call again goes on where an interrupted one stopped.
    """
    window, most = Window(context or None, chunks or None), limit(memory, pick_device(device))
    mixes = {f"MIX-{size}": in_bytes(size, "target_sizes", 1) for size in target_sizes}
    job = _Job(place(model), Path(text), Path(output), window, device, most, progress, mixes)
    names = [*dict.fromkeys(file_type(name).name for name in types), *mixes]
    if not names:
        raise UsageError("no types to sweep; give --types Q8_0,Q4_K_M,…, or --target-size")
    if quantize_options.get("imatrix") is not None:
        quantize_options["imatrix"] = Path(quantize_options["imatrix"])
    job.check(quantize_options)
    with _folder(job.output):
        said: dict[str, Any] = {"context": context, "chunks": chunks, **quantize_options}
        if said.get("calibration") is not None:
            said["calibration"] = said["calibration"].identity()
        identity = identity_of(job.model, job.text, said)
        state = State.of(job.output, identity, fresh=force)
        missing = [name for name in names if name not in state.rows]
        # Before anything is quantized, so that too little memory and a text that is too short are refused at once.
        original = job.original() if missing else None
        job.quantize(missing, state, {"jobs": jobs, **quantize_options})
        if original is not None:
            job.evaluate(original, missing, state, keep)
    result = Sweep(
        model=job.model.name,
        text=job.text.name,
        size=_size(job.model),
        rows=[SweepRow(**state.rows[name]) for name in names],
        ppl=state.base["ppl"],
        ppl_stderr=state.base["ppl_stderr"],
        context=state.base["context"],
        tokens=state.base["tokens"],
        about=_about(job, names, state, quantize_options),
        **_facts(job.model),
    )
    _report(result, job.output, plots)
    return result


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """The output folder, made; away again when the work ends in an error before anything is in it."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{at(path)}: is a file, expected a folder; choose another (-o)")
    there = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{at(path)}: can't be made ({error.strerror})") from None
    try:
        yield
    except BaseException as error:
        if not there:
            with contextlib.suppress(OSError):
                path.rmdir()
        if isinstance(error, KeyboardInterrupt) and (path / NAME).exists():
            raise KeyboardInterrupt(f"the same command goes on from {path / NAME}") from None
        raise


def _size(model: Path) -> int:
    return sum(p.stat().st_size for p in model.iterdir() if p.is_file()) if model.is_dir() else model.stat().st_size


@dataclass(frozen=True)
class _Job:
    """What is swept, and how it is measured."""

    model: Path
    text: Path
    output: Path
    window: Window
    device: str
    memory: int | None
    progress: Progress | None
    mixes: Mapping[str, int]
    """Bytes, by the name of the row."""

    def file(self, name: str) -> Path:
        """Where the model goes in the type `name`; "{type}" stands for any."""
        stem = re.sub(r"\.(gguf|json|msgpack|safetensors)$", "", self.model.name)
        return self.output / f"{stem}-{name}.gguf"

    def check(self, quantize_options: dict[str, Any]) -> None:
        """Refuse what can't be read before any work."""
        formats.open(self.model)
        for path in (self.text, quantize_options.get("imatrix")):
            if path is not None:
                with open_regular(path):
                    pass

    def told(self, item: str) -> Progress | None:
        """`progress` with `item` in every step."""
        progress = self.progress
        return progress and (lambda step: progress(dataclasses.replace(step, item=item)))

    def original(self) -> Model:
        """What is quantized, loaded within half of the memory; the text is one that it can be measured on."""
        model = Running(self.device, memory=self.memory).half(self.model)
        work_on(model, texts.read(self.text), dataclasses.replace(self.window, chunks=1))
        return model

    def quantize(self, names: list[str], state: State, options: dict[str, Any]) -> None:
        """The files that are not there yet; all types in one read, each mix in one of its own.

        The smallest mix is first: no such file may be possible.
        """
        missing = [n for n in names if not (n in state.seconds and self.file(n).exists())]
        if not missing:
            return
        fixed = [name for name in missing if name not in self.mixes]
        mixes = sorted((name for name in missing if name in self.mixes), key=lambda name: self.mixes[name])
        for some in [[name] for name in mixes] + [fixed] * bool(fixed):
            started = time.perf_counter()
            how: dict[str, Any] = {"force": True, "progress": self.told(", ".join(some)), **options}
            if some is fixed:
                quantize(self.model, self.file("{type}"), fixed, **how)
            else:
                quantize(self.model, self.file(some[0]), target_size=self.mixes[some[0]], **how)
            state.seconds.update(dict.fromkeys(some, (time.perf_counter() - started) / len(some)))
            state.save()

    def evaluate(self, original: Model, names: list[str], state: State, keep: bool) -> None:
        """Each type against the original, which is loaded once and run once."""
        with Recall(original) as recall:
            for name in names:
                self._evaluate(recall, name, state)
                if not keep:
                    self.file(name).unlink()

    def _evaluate(self, original: Recall, name: str, state: State) -> None:
        started = time.perf_counter()
        found = self.compared(original, name)
        state.base = {
            "ppl": found.ppl_a,
            "ppl_stderr": found.ppl_a_stderr,
            "context": found.context,
            "tokens": found.tokens,
            "device": str(original.model.device),
        }
        seconds = (state.seconds.get(name, math.nan), time.perf_counter() - started)
        state.rows[name] = asdict(_row(name, self.file(name), found, seconds))
        state.save()

    def compared(self, original: Recall, name: str) -> Comparison:
        """A type against the original, which has half of the memory where it does not fit."""
        how, told = Running(self.device, memory=self.memory), self.told(name)
        try:
            return compared(original.model, self.file(name), self.text, self.window, how, told, recall=original)
        except TooLittle as error:
            if self.memory is None or error.given == self.memory:
                raise
            raise TooLittle(self.memory, 2 * error.least) from None


def _row(name: str, path: Path, found: Comparison, seconds: tuple[float, float]) -> SweepRow:
    quantized = formats.open(path)
    return SweepRow(
        type=name,
        size=path.stat().st_size,
        bits_per_weight=8 * quantized.nbytes / max(1, quantized.n_elements),
        ppl=found.ppl_b,
        ppl_stderr=found.ppl_b_stderr,
        ppl_ratio=found.ppl_ratio,
        mean_kld=found.mean_kld,
        mean_kld_stderr=found.mean_kld_stderr,
        max_kld=found.max_kld,
        top1_agreement=found.top1_agreement,
        quantize_seconds=seconds[0],
        evaluate_seconds=seconds[1],
        ppl_ratio_stderr=found.ppl_ratio_stderr,
        file=path.name,
        sha256=file_hash(path),
    )


def _facts(model: Path) -> dict[str, Any]:
    """What a report says of the original besides what was measured."""
    checkpoint = formats.open(model)
    found: dict[str, Any] = {"bits_per_weight": 8 * checkpoint.nbytes / max(1, checkpoint.n_elements)}
    metadata = translate(checkpoint, "gguf").metadata
    keys = {"name": "general.name", "license": "general.license", "base_model": "general.base_model.0.name"}
    found["card"] = {k: v for k, name in keys.items() if isinstance(v := metadata.get(name), str) and v.isprintable()}
    try:
        report = size_report(shape_of(checkpoint))
    except LlmconvError:  # an architecture whose cache nobody knows
        return found
    return {**found, "kv_cache": report.kv_cache, "kv_context": report.context}


def _about(job: _Job, names: Sequence[str], state: State, options: dict[str, Any]) -> dict[str, str]:
    """How the report was made, for its foot."""
    matrix, known = options.get("imatrix"), options.get("calibration")
    given = f" -c {job.window.context}" * bool(job.window.context) + f" --chunks {job.window.chunks}" * bool(
        job.window.chunks
    )
    types = ",".join(name for name in names if name not in job.mixes)
    sizes = ",".join(name.removeprefix("MIX-") for name in names if name in job.mixes)
    given = f" --types {types}" * bool(types) + f" --target-size {sizes}" * bool(sizes) + given
    command = f"llmconv sweep {job.model.name} {job.text.name}{given}"
    made = {
        "made by": f"llmconv {__version__}",
        "command": command + (f" --imatrix {matrix.name}" if matrix else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "evaluated on": state.base.get("device", ""),
        "importance matrix": f"{matrix.name}, sha256 {file_hash(matrix)}" if matrix else "none",
        "calibration": f"sha256 {hashed(known.identity())}" if known is not None else "",
        "text": f"{job.text.name}, sha256 {file_hash(job.text)}",
    }
    if job.model.is_file():
        made["original"] = f"{job.model.name}, sha256 {file_hash(job.model)}"
    return {name: value for name, value in made.items() if value}


def _report(result: Sweep, output: Path, plots: bool) -> None:
    image = sweep_report.plot(result) if plots else ""
    if plots:
        write_text(output / "plot.svg", image)
    write_text(output / "report.json", json.dumps(result.as_dict(), indent=2) + "\n")
    write_text(output / "report.md", sweep_report.markdown(result))
    write_text(output / "report.html", sweep_report.html_page(result, image))
    readme = output / "README.md"
    if not readme.exists() or MARK in readme.read_text("utf-8", "replace"):
        write_text(readme, card(result))
