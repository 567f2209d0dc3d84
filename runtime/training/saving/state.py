"""Durable checkpoints of a run: model, optimizer, step, random states; a folder each, complete or not there.

    OUT/checkpoints/step-00000500/{model.gguf, optimizer.pt, random-0.pt, state.json}      one process, or DDP
    OUT/checkpoints/step-00000500/{.metadata, *.distcp, random-0.pt, …, state.json}         FSDP: torch's own

The GGUF holds float32 weights and the vocabulary: any checkpoint can be run, converted or trained on from.  A folder
is written under a temporary name, flushed, and renamed; kill -9 at any moment leaves the last complete one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmconv.errors import BadFile, LlmconvError, OutputError, UsageError, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import open_regular
from llmconv.formats.gguf import gguf_file
from llmconv.formats.writing.checks import output_errors
from llmconv.formats.writing.outputs import flush_folder
from llmconv.runtime.reading import read_tensor
from llmconv.runtime.save import checkpoint_of
from llmconv.runtime.training.learner import Learner
from llmconv.runtime.training.parallel import left_alone

__all__ = ["Position", "latest", "restore", "save"]

_NAME = re.compile(r"step-(\d{8,})")


@dataclass
class Position:
    """Where a run is: steps done, tokens seen, the last loss, the last validation's and the step it was after.

    best: the lowest validation loss; stale: validations since it was reached.   Of those that `eval_every` asks for.
    """

    step: int = 0
    tokens: int = 0
    loss: float = math.nan
    val_loss: float = math.nan
    validated: int = 0
    best: float = math.inf
    stale: int = 0


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run's folder, or None."""
    found = folder / "checkpoints"
    if not found.is_dir():
        return None
    steps = [p for p in _checkpoints(found) if (p / "state.json").is_file()]
    return steps[-1] if steps else None


def _checkpoints(root: Path) -> list[Path]:
    """By step; `_NAME` matches them all."""
    return sorted((p for p in root.iterdir() if _NAME.fullmatch(p.name)), key=_number)


def _number(path: Path) -> int:
    """The step that a checkpoint is of."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _running_state(learner: Learner) -> dict[str, Any]:
    """What a process's step depends on besides weights and moments: random generators, the scale of float16 losses."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if learner.team.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(learner.team.device)
    if learner.team.device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    if learner.scaler.is_enabled():
        states["scaler"] = learner.scaler.state_dict()
    return states


def _loaded(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return found


def _run_on(folder: Path, learner: Learner) -> None:
    """Put the generators where this process's were; one that the run did not have keeps the first's scale only."""
    team = learner.team
    own = folder / f"random-{team.rank}.pt"
    states = _loaded(own if own.is_file() else folder / "random-0.pt")
    if own.is_file():
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and team.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], team.device)
        if "mps" in states and team.device.type == "mps":
            torch.mps.set_rng_state(states["mps"])
    if "scaler" in states:
        learner.scaler.load_state_dict(states["scaler"])


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Whatever torch or the system say when a file can't be written, as a sentence about `path`."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with output_errors(path):
            yield
    except (OutputError, RuntimeError, CheckpointException) as error:
        if left_alone(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, OutputError):  # which names a file that is no more
            reason = reason.rpartition(": ")[2].removeprefix("can't be written (").removesuffix(")")
        raise OutputError(
            f"{at(path)}: can't be written ({reason}); make room on the disk, then go on with --resume"
        ) from None


def save(folder: Path, learner: Learner, position: Position, keep: int) -> Path:
    """Write a checkpoint of step `position.step` and remove all but the last `keep`.  Every process calls this.

    `OutputError` when it can't be written; then the earlier checkpoints stay, and no part of this one.
    """
    team = learner.team
    root = folder / "checkpoints"
    final = root / f"step-{position.step:08d}"
    there = final.is_dir()
    team.barrier()  # all have looked before anybody writes
    if there:  # the same step of the same run: nothing to write
        return final
    temporary = root / f".llmconv-{final.name}.tmp"
    if team.rank == 0:
        with output_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            for stale in root.glob(".llmconv-step-*.tmp"):  # of a run that was killed
                shutil.rmtree(stale, ignore_errors=True)
            temporary.mkdir()
    team.barrier()
    try:
        _write(temporary, final, learner)
        team.barrier()
        if team.rank == 0:
            with output_errors(temporary):
                record = {**asdict(position), "processes": team.size}
                (temporary / "state.json").write_text(json.dumps(record))
                for path in temporary.iterdir():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                flush_folder(temporary)
    except BaseException:
        if team.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if team.rank == 0:
        with output_errors(final):
            temporary.rename(final)
            flush_folder(root)
            for old in _checkpoints(root)[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
    team.barrier()
    return final


def _write(folder: Path, final: Path, learner: Learner) -> None:
    """The large files of checkpoint `final` into `folder`: by the first process, or by each its part."""
    team, model, optimizer = learner.team, learner.model, learner.optimizer
    with _writing(final):
        torch.save(_running_state(learner), folder / f"random-{team.rank}.pt")
        if team.sharded:
            from torch.distributed.checkpoint.state_dict import get_state_dict
            from torch.distributed.checkpoint.state_dict_saver import save as save_parts

            weights, states = get_state_dict(model, optimizer)
            save_parts({"model": weights, "optimizer": states}, checkpoint_id=folder)
        elif team.rank == 0:
            gguf_file.save(checkpoint_of(model), folder / "model.gguf")
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")


def restore(path: Path, learner: Learner) -> tuple[Position, int]:
    """Put a checkpoint into the learner; where the run was, and of how many processes it was.

    `BadFile` when it doesn't fit.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    parts = (path / ".metadata").is_file()
    if learner.team.sharded and not parts and (path / "model.gguf").is_file():
        raise UsageError(
            f"{at(path)}: was written by one process; go on with one, or start a new run with --from its model.gguf"
        )
    file = "state.json"
    try:
        with open_regular(path / file) as opened:
            position, processes = _position(json.loads(opened.read(1 << 16)), _number(path))
        if parts:
            file = ""
            _restore_parts(path, learner)
        else:
            file = "model.gguf"
            _fill(learner.model, gguf_file.open(path / file))
            file = "optimizer.pt"
            states = _loaded(path / file)
            learner.optimizer.load_state_dict(states)
        file = "random-0.pt"
        _run_on(path, learner)
    except (LlmconvError, torch.OutOfMemoryError):
        raise
    except (Exception, CheckpointException) as error:  # torch has a kind for each way to be broken
        if left_alone(error):  # which says nothing of the checkpoint
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0]
        raise BadFile(f"{at(path / file)}: can't be read ({reason}); remove {path.name} to use an older one") from None
    return position, processes


@torch.no_grad()
def _fill(model: nn.Module, found: Checkpoint) -> None:
    """Put a checkpoint's weights into the model, slab by slab; `ValueError` when they are not its own."""
    own = {key if "." in key else f"{key}.weight": value for key, value in model.state_dict().items()}
    if {n: t.n_elements for n, t in found.tensors.items()} != {n: v.numel() for n, v in own.items()}:
        raise ValueError("it holds another model's tensors")
    for name, value in own.items():
        value.copy_(read_tensor(found.tensors[name], value.shape, value.dtype, value.device))


def _position(found: Any, step: int) -> tuple[Position, int]:
    """The record in `state.json` of a step; `ValueError` for anything else."""
    wanted = {f.name: type(f.default) for f in fields(Position)} | {"processes": int}
    if not isinstance(found, dict) or {k: type(v) for k, v in found.items()} != wanted:
        raise ValueError(f"expected an object of {', '.join(wanted)}")
    processes = found.pop("processes")
    whole = [value for value in found.values() if isinstance(value, int)]
    if found["step"] != step or not 0 < processes < 1 << 31 or not all(0 <= n < 1 << 63 for n in whole):
        raise ValueError("it speaks of another step")
    return Position(**found), processes


def _restore_parts(path: Path, learner: Learner) -> None:
    """A sharded run's checkpoint, into the shards of as many processes as there are now, or into a whole model."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load as load_parts

    weights, states = get_state_dict(learner.model, learner.optimizer)
    load_parts({"model": weights, "optimizer": states}, checkpoint_id=path)
    set_state_dict(learner.model, learner.optimizer, model_state_dict=weights, optim_state_dict=states)
