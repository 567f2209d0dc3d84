"""The end of a run: the exports, the loss curve, the summary, and what `train` returns."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmconv.runtime.training.data import Pairs
from llmconv.runtime.training.plan import Run
from llmconv.runtime.training.saving.export import export, gathered
from llmconv.runtime.training.saving.log import draw_losses, write_summary
from llmconv.show import Shown

__all__ = ["Trained", "finish"]


@dataclass(frozen=True)
class Trained(Shown):
    """What `train` did.

    steps, tokens: done in all; loss, val_loss: the last ones, nats per token; val_perplexity: exp(val_loss);
    best_val_loss: the lowest; seconds, tokens_per_second: of this call; stopped_early: whether patience ran out;
    checkpoint: the last one; exports: the files and folders written; parameters: of the model; notes: remarks for
    people.
    """

    steps: int
    tokens: int
    loss: float
    val_loss: float
    val_perplexity: float
    best_val_loss: float
    seconds: float
    tokens_per_second: float
    stopped_early: bool
    parameters: int
    checkpoint: Path | None
    exports: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def finish(run: Run, seconds: float, tokens: int, kinds: Sequence[str], export_type: str) -> Trained:
    """Write what comes out of a run that is over; the first process does, the others take part in gathering.

    seconds, tokens: of this call.  kinds, export_type: as `check_exports` gives them.
    """
    config, position = run.config, run.position
    exports: list[Path] = []
    picture: Path | None = None
    trained = gathered(run.learner.model, run.team, dict(run.learner.metadata))
    if run.team.rank == 0 and trained is not None:
        exports = export(
            trained, run.folder, "model", kinds, export_type, _history(run, seconds), config.layout or None
        )
        picture = draw_losses(run.folder) if config.plot else None
        if config.plot and picture is None:
            run.notes.append("no loss curve: matplotlib is not installed")
    result = Trained(
        steps=position.step,
        tokens=position.tokens,
        loss=position.loss,
        val_loss=position.val_loss,
        val_perplexity=math.exp(min(position.val_loss, 700)),
        best_val_loss=min(position.best, position.val_loss),
        seconds=seconds,
        tokens_per_second=tokens / max(1e-9, seconds),
        stopped_early=run.stopped_early,
        parameters=sum(math.prod(dims) for dims in run.shape.tensors.values()),
        checkpoint=run.checkpoint,
        exports=exports,
        notes=run.notes,
    )
    if run.team.rank == 0:
        _summarise(run, result, picture)
    run.team.barrier()
    return result


def _history(run: Run, seconds: float) -> dict[str, Any]:
    """What the legacy program writes of a model's training, under its names; SOURCE_DATE_EPOCH fixes the date."""
    made = datetime.fromtimestamp(float(os.environ.get("SOURCE_DATE_EPOCH") or time.time()), UTC)
    return {
        "name": run.config.preset or Path(run.config.from_checkpoint).stem,
        "createdAt": made.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "trainingTime": round(seconds, 3),
        "trainingSamples": len(run.training),
        "epochs": -(-run.position.step * run.config.batch_size // len(run.training)),
        "embeddingDim": run.shape.dim("n_embd"),
        "numLayers": run.shape.dim("n_layer"),
        "source": "local",
    }


def _summarise(run: Run, result: Trained, picture: Path | None) -> None:
    config = run.config
    what = config.preset or config.from_checkpoint
    unit = "pairs" if isinstance(run.training, Pairs) else "tokens"
    facts = {
        "model": f"{what}, {result.parameters:,} parameters",
        "data": f"{Path(config.data).name}, {len(run.training):,} {unit} to train on",
        "steps": f"{result.steps:,} of {config.batch_size} sequences, {result.tokens:,} tokens seen",
        "optimiser": f"{config.optimizer}, learning rate {config.peak_lr:g}, {config.schedule} after "
        f"{config.warmup_steps} steps of warm-up",
        "training loss": f"{result.loss:.4f}",
        "validation loss": f"{result.val_loss:.4f} (best {result.best_val_loss:.4f})",
        "validation perplexity": f"{result.val_perplexity:.4f}",
        "time": f"{result.seconds:.1f} s, {result.tokens_per_second:,.0f} tokens/s",
        "memory planned": f"{run.memory.total:,} bytes per device",
        "exports": ", ".join(path.name for path in result.exports) or "none",
    }
    write_summary(run.folder, f"Training {what}", facts, picture)
