"""Several processes under torchrun: who is who, and the model wrapped by torch's own DDP or FSDP2."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from llmconv.errors import UsageError
from llmconv.runtime.load import pick_device

__all__ = ["Team", "assemble", "wrap"]


@dataclass(frozen=True)
class Team:
    """The processes of a run.  sharded: whether each holds only a part of the weights (FSDP)."""

    rank: int
    size: int
    device: torch.device
    sharded: bool = False

    def barrier(self) -> None:
        if self.size > 1:
            distributed.barrier()

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def close(self) -> None:
        if self.size > 1:
            distributed.destroy_process_group()


def assemble(device: str, parallel: str) -> Team:
    """The team that torchrun's environment describes, or this process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size <= 1:
        return Team(0, 1, pick_device(device))
    if not distributed.is_available():
        raise UsageError(
            "this build of torch has no torch.distributed, which several processes need; run without torchrun"
        )
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    where = pick_device(device)
    if where.type == "cuda":
        where = pick_device(f"cuda:{local}")
        torch.cuda.set_device(where)
    # The others wait while the first tokenizes the data and writes the exports, which torch's own ten minutes cut off.
    distributed.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=timedelta(hours=24))
    return Team(rank, size, where, sharded=parallel == "fsdp")


def wrap(model: Any, team: Team) -> nn.Module:
    """The model as the team trains it: itself, in DDP, or with its blocks sharded by FSDP2's `fully_shard`."""
    if team.size == 1:
        return model  # type: ignore[no-any-return]
    if not team.sharded:
        ids = [team.device.index] if team.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)
    from torch.distributed.fsdp import fully_shard

    for block in model.blk:
        fully_shard(block)
    fully_shard(model)
    return model  # type: ignore[no-any-return]
