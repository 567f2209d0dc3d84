"""Durable checkpoints of a run: model, optimizer, step, random states; a folder each, complete or not there.

    OUT/checkpoints/step-00000500/{model.gguf, optimizer.pt, state.json}       one process, or DDP
    OUT/checkpoints/step-00000500/{.metadata, *.distcp, state.json}            FSDP: torch's distributed checkpoint

The GGUF holds float32 weights and the vocabulary: any checkpoint can be run, converted or trained on from.  A folder
is written under a temporary name, flushed, and renamed; kill -9 at any moment leaves the last complete one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmconv.errors import BadFile, LlmconvError, OutputError, UsageError, at
from llmconv.formats import gguf_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import open_regular, output_errors
from llmconv.runtime.load import read_tensor
from llmconv.runtime.save import checkpoint_of
from llmconv.runtime.training.parallel import Team

__all__ = ["Progress", "latest", "restore", "save"]

_NAME = re.compile(r"step-(\d{8})")


@dataclass
class Progress:
    """Where a run is: steps done, tokens seen, the best validation loss, validations since it was reached."""

    step: int = 0
    tokens: int = 0
    best: float = float("inf")
    stale: int = 0


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run's folder, or None."""
    found = folder / "checkpoints"
    if not found.is_dir():
        return None
    steps = sorted(p for p in found.iterdir() if _NAME.fullmatch(p.name) and (p / "state.json").is_file())
    return steps[-1] if steps else None


def _running_state(scaler: torch.amp.GradScaler | None) -> dict[str, Any]:
    """What a step depends on besides weights and moments: random generators, the scale of float16 losses."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    if scaler is not None and scaler.is_enabled():
        states["scaler"] = scaler.state_dict()
    return states


def _run_on(states: dict[str, Any], scaler: torch.amp.GradScaler | None) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "scaler" in states and scaler is not None:
        scaler.load_state_dict(states["scaler"])


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Whatever torch or the system say when a file can't be written, as a sentence about `path`."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with output_errors(path):
            yield
    except (OutputError, RuntimeError, CheckpointException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, OutputError):  # which names a file that is no more
            reason = reason.rpartition(": ")[2].removeprefix("can't be written (").removesuffix(")")
        raise OutputError(
            f"{at(path)}: can't be written ({reason}); make room on the disk, then go on with --resume"
        ) from None


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    keep: int,
    team: Team,
    scaler: torch.amp.GradScaler | None = None,
) -> Path:
    """Write a checkpoint of step `progress.step` and remove all but the last `keep`.  Every process calls this.

    `OutputError` when it can't be written; then the earlier checkpoints stay, and no part of this one.
    """
    root = folder / "checkpoints"
    final = root / f"step-{progress.step:08d}"
    temporary = root / f".llmconv-{final.name}.tmp"
    if team.rank == 0:
        with output_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            for stale in root.glob(".llmconv-step-*.tmp"):  # of a run that was killed
                shutil.rmtree(stale, ignore_errors=True)
            temporary.mkdir()
    team.barrier()
    try:
        _write(temporary, final, model, optimizer, team, _running_state(scaler))
        team.barrier()
        if team.rank == 0:
            with output_errors(temporary):
                (temporary / "state.json").write_text(json.dumps(asdict(progress)))
                for path in temporary.iterdir():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
    except BaseException:
        if team.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if team.rank == 0:
        with output_errors(final):
            if final.exists():  # a run that stopped right after it, resumed with the same step
                shutil.rmtree(final)
            temporary.rename(final)
            for old in sorted(p for p in root.iterdir() if _NAME.fullmatch(p.name))[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
    team.barrier()
    return final


def _write(
    folder: Path,
    final: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    team: Team,
    running: dict[str, Any],
) -> None:
    """The large files of checkpoint `final` into `folder`: by the first process, or by each its part."""
    if team.sharded:
        from torch.distributed.checkpoint.state_dict import get_state_dict
        from torch.distributed.checkpoint.state_dict_saver import save as save_parts

        weights, states = get_state_dict(model, optimizer)
        with _writing(final):
            save_parts({"model": weights, "optimizer": states}, checkpoint_id=folder)
            torch.save(running, folder / f"random-{team.rank}.pt")
    elif team.rank == 0:
        with _writing(final):
            gguf_file.save(checkpoint_of(model), folder / "model.gguf")
            torch.save({"optimizer": optimizer.state_dict(), "random": running}, folder / "optimizer.pt")


def restore(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    team: Team,
    scaler: torch.amp.GradScaler | None = None,
) -> Progress:
    """Put a checkpoint into the model and the optimizer; where the run was.  `BadFile` when it doesn't fit them."""
    from torch.distributed.checkpoint.api import CheckpointException

    if not team.sharded and (path / ".metadata").is_file():
        raise UsageError(f"{at(path)}: was written by several processes with --parallel fsdp; resume with as many")
    file = "state.json"
    try:
        with open_regular(path / file) as opened:
            progress = _progress(json.loads(opened.read(1 << 16)))
        if team.sharded:
            file = ""
            running = _restore_sharded(path, model, optimizer, team)
        else:
            file = "model.gguf"
            _fill(model, gguf_file.open(path / file))
            file = "optimizer.pt"
            found: dict[str, Any] = torch.load(path / file, map_location="cpu", weights_only=True)
            optimizer.load_state_dict(found["optimizer"])
            running = found["random"]
        _run_on(running, scaler)
    except (LlmconvError, torch.OutOfMemoryError):
        raise
    except (Exception, CheckpointException) as error:  # torch has a kind for each way to be broken
        reason = f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0]
        raise BadFile(f"{at(path / file)}: can't be read ({reason}); remove {path.name} to use an older one") from None
    return progress


@torch.no_grad()
def _fill(model: nn.Module, found: Checkpoint) -> None:
    """Put a checkpoint's weights into the model, slab by slab; `ValueError` when they are not its own."""
    own = {key if "." in key else f"{key}.weight": value for key, value in model.state_dict().items()}
    if {n: t.n_elements for n, t in found.tensors.items()} != {n: v.numel() for n, v in own.items()}:
        raise ValueError("it holds another model's tensors")
    for name, value in own.items():
        value.copy_(read_tensor(found.tensors[name], value.shape, value.dtype, value.device))


def _progress(found: Any) -> Progress:
    """The record in `state.json`; `ValueError` for anything else."""
    wanted = {"step": int, "tokens": int, "best": float, "stale": int}
    if not isinstance(found, dict) or {k: type(v) for k, v in found.items()} != wanted:
        raise ValueError(f"expected an object of {', '.join(wanted)}")
    return Progress(**found)


def _restore_sharded(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, team: Team) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load as load_parts

    weights, states = get_state_dict(model, optimizer)
    load_parts({"model": weights, "optimizer": states}, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
    own = path / f"random-{team.rank}.pt"
    if not own.is_file():
        raise OutputError(f"{at(path)}: was written by another number of processes; resume with as many")
    return dict(torch.load(own, map_location="cpu", weights_only=True))
