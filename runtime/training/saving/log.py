"""What a run leaves for people: a CSV log, TensorBoard events, the loss curve, a one-page summary."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from llmconv.formats.writing.checks import output_errors
from llmconv.formats.writing.outputs import Output

__all__ = ["Log", "draw_losses", "write_summary"]

COLUMNS = ("step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "val_loss", "val_perplexity")


class Log:
    """`log.csv` and, where tensorboard is installed and wanted, events under `tensorboard/`.

    A resumed run first drops the lines after its step, so that the log is one run's.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool):
        self.path = folder / "log.csv"
        rows = [row for row in read_log(self.path) if int(row["step"]) <= step] if step else []
        kept = io.StringIO(newline="")
        writer = csv.DictWriter(kept, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        with Output(self.path, force=True) as out:  # a kill here must not cost what was logged
            out.file.write(kept.getvalue().encode())
        with output_errors(self.path):
            self._file = self.path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._events: Any = None
        self.note = ""
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self.note = "no TensorBoard events: tensorboard is not installed"
            else:
                self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)

    def write(self, step: int, tokens: int, **values: float) -> None:
        """A line of the log; columns without a value stay empty."""
        row = {"step": step, "tokens": tokens} | {k: f"{v:.8g}" for k, v in values.items() if math.isfinite(v)}
        with output_errors(self.path):
            self._writer.writerow(row)
            self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_log(path: Path) -> list[dict[str, str]]:
    """The lines of a log, as written; what is no line of one is left out.  None when there is no log."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = (dict(zip(COLUMNS, line.split(","), strict=False)) for line in lines)
    return [row for row in rows if len(row) == len(COLUMNS) and _is_written(row)]


def _is_written(row: dict[str, str]) -> bool:
    try:
        numbers = [float(value) for value in row.values() if value]
    except ValueError:
        return False
    return row["step"].isdecimal() and len(row["step"]) < 16 and all(map(math.isfinite, numbers))


def _curve(rows: list[dict[str, str]], column: str) -> tuple[list[int], list[float]]:
    kept = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
    return [s for s, _ in kept], [v for _, v in kept]


def draw_losses(folder: Path) -> Path | None:
    """`loss.png` from the log; None where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    rows = read_log(folder / "log.csv")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # headless
    axis = figure.subplots()
    axis.plot(*_curve(rows, "loss"), label="training", alpha=0.7, linewidth=1)
    steps, losses = _curve(rows, "val_loss")
    if steps:
        axis.plot(steps, losses, "o-", label="validation", markersize=3)
    axis.set(xlabel="step", ylabel="loss, nats per token")
    axis.grid(alpha=0.3)
    axis.legend()
    path = folder / "loss.png"
    with Output(path, force=True) as out:
        figure.savefig(out.file, format="png", dpi=130, metadata={"Software": None})
    return path


def write_summary(folder: Path, title: str, facts: dict[str, str], picture: Path | None) -> Path:
    """`summary.md`: what was trained on what, how well, how fast, what was exported."""
    lines = [f"# {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    if picture is not None:
        lines += ["", f"![loss]({picture.name})"]
    path = folder / "summary.md"
    with Output(path, force=True) as out:
        out.file.write(("\n".join(lines) + "\n").encode())
    return path
