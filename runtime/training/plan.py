"""From a configuration to a run that is ready to go: its folder, data, model and memory."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llmconv.convert.reports.shape import Shape, shape_of
from llmconv.convert.reports.training_memory import PARTS, TrainingMemory, training_memory
from llmconv.convert.tables.presets import preset
from llmconv.errors import BadFile, LlmconvError, UsageError, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import instead
from llmconv.formats.places.names import place
from llmconv.formats.places.outbox import is_hub
from llmconv.progress import Meter, Progress, Step
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.data import Cut, Pairs, Stream, highest, load_data
from llmconv.runtime.training.inputs import fingerprints, runs_left_out, text_bytes
from llmconv.runtime.training.learner import Learner, make_learner
from llmconv.runtime.training.parallel import Team
from llmconv.runtime.training.saving import state
from llmconv.runtime.training.saving.export import check_layout
from llmconv.runtime.training.saving.folder import enter, locked
from llmconv.runtime.training.start import (
    context_of,
    opened,
    refuse_looking_ahead,
    settle_vocab,
    starting_point,
)

__all__ = ["Run", "check_inputs", "plan"]

ONE_THREAD = 1_000_000
"""Parameters below which a CPU trains on one thread: handing out such small products costs more than it saves."""


@dataclass
class Run:
    """A run: what `plan` makes ready, `loop` moves on and `finish` writes down.

    shape, memory: of the model and of its training, per device.   checkpoint: the last one written.
    """

    config: TrainConfig
    folder: Path
    training: Stream | Pairs
    validation: Stream | Pairs
    shape: Shape
    memory: TrainingMemory
    learner: Learner
    position: state.Position = field(default_factory=state.Position)
    checkpoint: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def team(self) -> Team:
        return self.learner.team

    @property
    def stopped_early(self) -> bool:
        """Whether patience has run out."""
        return bool(self.config.patience) and self.position.stale >= self.config.patience

    @property
    def over(self) -> bool:
        return self.position.step >= self.config.steps or self.stopped_early


def check_inputs(config: TrainConfig) -> None:
    """Name what is misspelt before a folder is made; `UsageError` or `BadFile`."""
    if not config.data or not config.output:
        raise UsageError("training needs data to train on and a folder to write to (DATA and -o)")
    if is_hub(config.output):
        raise UsageError(
            f"{at(config.output)}: a run is written to a disk; name a folder there, then llmconv upload it"
        )
    for given in (config.data, config.from_checkpoint):
        if given and not place(given).exists():
            raise BadFile(f"{at(given)}: no such file or folder; {instead(Path(given))}")
    if os.path.exists(config.output) and os.path.samefile(config.output, config.data):
        raise UsageError(f"{at(config.output)}: is where the data are; choose another output folder (-o)")
    if config.preset:
        preset(config.preset)


def plan(config: TrainConfig, resume: bool, team: Team, stack: contextlib.ExitStack, progress: Progress | None) -> Run:
    """Make everything ready, in the order in which it can fail.  stack: gets what must be undone after the run.

    A run that can't begin leaves no folder where there was none.
    """
    folder = Path(config.output)
    fresh = team.rank == 0 and not folder.exists()
    try:
        return _planned(config, folder, resume, team, stack, progress)
    except LlmconvError:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _planned(
    config: TrainConfig,
    folder: Path,
    resume: bool,
    team: Team,
    stack: contextlib.ExitStack,
    progress: Progress | None,
) -> Run:
    if resume and not folder.is_dir():
        raise BadFile(f"{at(folder)}: holds no checkpoint to resume from; start without --resume")
    source = opened(config)
    refuse_looking_ahead(config, source)
    inputs: dict[str, str] = {}
    if team.rank == 0:
        stack.enter_context(locked(folder))
        inputs = fingerprints(config)
        enter(folder, config, inputs, resume)
        if not (resume and (folder / "vocab.gguf").is_file()):
            settle_vocab(config, source, folder / "vocab.gguf")
    team.barrier()
    newest = state.latest(folder) if resume else None
    start, vocab, notes = starting_point(config, source, folder / "vocab.gguf")
    check_layout(start, config.layout)
    context = context_of(config, start)
    cut = Cut(context, config.val_fraction, config.seed)
    meter = Meter(progress, "tokenize", text_bytes(Path(config.data)))
    if team.rank:  # the first process tokenizes, the others find it done
        team.barrier()
    data = load_data(Path(config.data), vocab, folder / "data", cut, inputs.get("data", ""), meter)
    if not team.rank:
        team.barrier()
    training, validation, remarks = data
    _check_ids(config, training, validation, start)

    shape = shape_of(start)
    memory = _memory(config, shape, context, team)
    if progress is not None:
        progress(Step("plan", 0, config.steps, "steps", facts=_facts(start, memory, team)))
    if team.device.type == "cpu" and start.n_elements < ONE_THREAD and "OMP_NUM_THREADS" not in os.environ:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
    learner = make_learner(start, config, team)
    notes += [*remarks, *filter(None, [runs_left_out(Path(config.data))])]
    run = Run(config, folder, training, validation, shape, memory, learner, notes=notes)
    if newest is not None:
        _go_on(run, newest)
    return run


def _check_ids(config: TrainConfig, training: Stream | Pairs, validation: Stream | Pairs, start: Checkpoint) -> None:
    rows = start.tensors["token_embd.weight"].shape[0]
    top = max(highest(training), highest(validation))
    if top >= rows:
        raise BadFile(
            f"{at(config.data)}: gives token {top}, but the model's embedding has {rows} rows; its tokenizer is not "
            "its own, name the right one with --tokenizer"
        )


def _memory(config: TrainConfig, shape: Shape, context: int, team: Team) -> TrainingMemory:
    return training_memory(
        shape,
        batch=max(1, config.batch_size // config.accumulation // team.size),
        context=context,
        devices=team.size if team.sharded else 1,
        optimizer_bytes=8 if config.optimizer == "adamw" else 4,  # two moments, or SGD's momentum
        activation_bytes=4 if config.dtype == "f32" else 2,
        checkpointing=config.activation_checkpointing,
        dropout=config.dropout > 0,
    )


def _facts(start: Checkpoint, memory: TrainingMemory, team: Team) -> dict[str, int | str]:
    return {
        "parameters": start.n_elements,
        "device": str(team.device),
        "processes": team.size,
        "planned memory": memory.total,
        **{part: getattr(memory, part) for part in PARTS},
    }


def _go_on(run: Run, checkpoint: Path) -> None:
    """Put the run where the checkpoint was, and say where it can't be exactly there."""
    config, team = run.config, run.team
    run.position, processes = state.restore(checkpoint, run.learner)
    run.checkpoint = checkpoint
    if run.position.step > config.steps:
        raise UsageError(
            f"{at(run.folder)}: has done {run.position.step} steps, more than the {config.steps} asked for; give as "
            "many --steps, or more"
        )
    if processes != team.size:
        exact = ", and dropout draws other numbers" if config.dropout else ""
        run.notes.append(
            f"the run was made by {processes} processes and goes on with {team.size}: sums are added up in another "
            f"order{exact}, so losses are close to what they would have been, not the same bit for bit"
        )
