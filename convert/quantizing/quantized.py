"""What quantizing made, or would make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmconv.convert.quantizing.plan import Plan
from llmconv.formats.checkpoint import Checkpoint
from llmconv.show import Shown

__all__ = ["Quantized", "QuantizedFile", "QuantizedTensor", "of_plans", "of_tensors"]


@dataclass(frozen=True)
class QuantizedTensor(Shown):
    """One tensor of an output: its types before and after, and its bytes before and after.

    fallback_from: the type that its rows were no whole blocks of, or "".
    importance: whether importance weights were used.
    loss_before, loss_after: of a calibrated tensor, what errors are predicted to cost, rounded plainly and as it is: in
        nats of KL divergence, or where no gradients are known a share of the squares of its results; None otherwise.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    source_nbytes: int
    nbytes: int
    fallback_from: str
    importance: bool
    loss_before: float | None = None
    loss_after: float | None = None


@dataclass(frozen=True)
class QuantizedFile(Shown):
    """One output.

    type: the file type's name.  paths: its files.  size: their exact bytes, header and padding included.
    bits_per_weight: of the tensors' data.  warnings: sentences.  proof: what a repacking compared, in words, or "".
    """

    type: str
    paths: tuple[Path, ...]
    size: int
    tensors: tuple[QuantizedTensor, ...]
    bits_per_weight: float
    warnings: tuple[str, ...]
    proof: str = ""


@dataclass(frozen=True)
class Quantized(Shown):
    """What `quantize` did, or with `dry_run` would do.

    source: the file or folder; None for a model made in memory.  source_nbytes: of all tensors.  seconds: of the whole
    run.  notes: sentences about reading the source.  url: of the commit, where the outputs were sent to the Hub.
    """

    source: Path | None
    outputs: tuple[QuantizedFile, ...]
    source_nbytes: int
    seconds: float
    written: bool
    notes: tuple[str, ...] = ()
    url: str = ""

    @property
    def output(self) -> QuantizedFile:
        """The first (or only) output."""
        return self.outputs[0]


def of_plans(source: Path | None, checkpoint: Checkpoint, plans: Sequence[Plan], seconds: float) -> Quantized:
    """What the plans will write of a checkpoint."""
    outputs = tuple(_output(plan) for plan in plans)
    return Quantized(source, outputs, checkpoint.nbytes, seconds, False, tuple(checkpoint.notes))


def of_tensors(
    source: Path | None, opened: Checkpoint, made: Checkpoint, type: str, paths: Sequence[Path], weights: int
) -> Quantized:
    """What is written where every tensor of `made` stays as it is.   weights: how many the model has."""
    rows = tuple(
        QuantizedTensor(t.name, t.shape, t.type.name, t.type.name, t.nbytes, t.nbytes, "", False)
        for t in made.tensors.values()
    )
    bits = 8 * made.nbytes / max(1, weights)
    output = QuantizedFile(type, tuple(paths), made.nbytes, rows, bits, ())
    return Quantized(source, (output,), opened.nbytes, 0.0, False, tuple(made.notes))


def _output(plan: Plan) -> QuantizedFile:
    tensors = tuple(_rows(plan))
    weights = sum(t.source.n_elements for t in plan.tensors)
    bits = 8 * sum(t.nbytes for t in tensors) / weights if weights else 0.0
    warnings = list(plan.warnings)
    if plan.needs_importance:
        warnings.append(
            f"{plan.needs_importance} will need an importance matrix (--imatrix), which llmconv imatrix makes"
        )
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
