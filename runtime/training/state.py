"""Durable checkpoints of a run: model, optimizer, step, random states; a folder each, complete or not there.

    OUT/checkpoints/step-00000500/{model.safetensors, optimizer.pt, state.json}       one process, or DDP
    OUT/checkpoints/step-00000500/{.metadata, *.distcp, state.json}             FSDP: torch's distributed checkpoint

A folder is written under a temporary name, flushed, and renamed; kill -9 at any moment leaves the last complete one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmconv.errors import BadFile, OutputError, at
from llmconv.formats.files import open_regular, output_errors
from llmconv.runtime.training.parallel import Team

__all__ = ["Progress", "latest", "restore", "save"]

_NAME = re.compile(r"step-(\d{8})")


@dataclass
class Progress:
    """Where a run is: steps done, tokens seen, the best validation loss, validations since, the data's seed."""

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


def _random_state() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, keep: int, team: Team
) -> Path:
    """Write a checkpoint of step `progress.step` and remove all but the last `keep`.  Every process calls this."""
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
    with output_errors(temporary):
        if team.sharded:
            from torch.distributed.checkpoint.state_dict import get_state_dict
            from torch.distributed.checkpoint.state_dict_saver import save as save_parts

            weights, states = get_state_dict(model, optimizer)
            save_parts({"model": weights, "optimizer": states}, checkpoint_id=temporary)
            torch.save(_random_state(), temporary / f"random-{team.rank}.pt")
        elif team.rank == 0:
            from safetensors.torch import save_file

            save_file(
                {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()},
                temporary / "model.safetensors",
            )
            torch.save({"optimizer": optimizer.state_dict(), "random": _random_state()}, temporary / "optimizer.pt")
        team.barrier()
        if team.rank == 0:
            (temporary / "state.json").write_text(json.dumps(asdict(progress)))
            for path in temporary.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            if final.exists():  # a run that stopped right after it, resumed with the same step
                shutil.rmtree(final)
            temporary.rename(final)
            for old in sorted(p for p in root.iterdir() if _NAME.fullmatch(p.name))[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
    team.barrier()
    return final


def restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, team: Team
) -> Progress:
    """Put a checkpoint into the model and the optimizer; where the run was.  `BadFile` when it doesn't fit them."""
    try:
        with open_regular(path / "state.json") as file:
            progress = Progress(**json.loads(file.read(1 << 16)))
        if team.sharded:
            random = _restore_sharded(path, model, optimizer, team)
        else:
            from safetensors.torch import load_file

            model.load_state_dict(load_file(path / "model.safetensors", device=str(device)))
            found: dict[str, Any] = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
            optimizer.load_state_dict(found["optimizer"])
            random = found["random"]
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadFile(f"{at(path)}: can't go on from it ({reason}); remove it to use an older one") from None
    return progress


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
