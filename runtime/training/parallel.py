"""Several processes under torchrun: who is who, and the model wrapped by torch's own DDP or FSDP2."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from llmconv.errors import LlmconvError, UsageError, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.sharing.team import FROM_AFAR
from llmconv.formats.tensor import Tensor
from llmconv.runtime.load import build, pick_device
from llmconv.runtime.model import Model
from llmconv.runtime.reading import read_tensor, tensor_of

__all__ = ["Team", "alone", "assemble", "build_model", "left_alone", "wrap"]


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


def left_alone(error: BaseException) -> bool:
    """Whether an error of torch's says that another process of the run is gone."""
    return isinstance(error, getattr(distributed, "DistError", ())) or bool(FROM_AFAR.search(str(error)))


@contextlib.contextmanager
def alone(team: Team, folder: str) -> Iterator[None]:
    """The end of another process of the run, which torch tells in many ways, as one sentence."""
    if team.size == 1:
        yield
        return
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except (RuntimeError, CheckpointException) as error:
        if not left_alone(error):
            raise
        raise LlmconvError(
            f"{at(folder)}: another of the run's {team.size} processes ended, and this one, number {team.rank}, with "
            "it; see what that one said, then go on with --resume"
        ) from None


def build_model(start: Checkpoint, team: Team, prepare: Callable[[Model], None]) -> tuple[Model, nn.Module]:
    """The model with float32 weights, and the same as the team trains it (see `wrap`).

    prepare: called with the model before it is wrapped.

    A sharded model is cut while it has no weights, and each process then reads only its own rows: no device ever holds
    the whole.
    """
    model = build(start, torch.device("meta") if team.sharded else team.device, torch.float32).train()
    prepare(model)
    wrapped = wrap(model, team)
    if team.sharded:
        _fill_shards(model, start, team)
    return model, wrapped


@torch.no_grad()
def _fill_shards(model: Model, start: Checkpoint, team: Team) -> None:
    from torch.distributed.tensor import DTensor

    model.to_empty(device=team.device)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        tensor = tensor_of(start.tensors, name)
        local, first = value, 0
        if isinstance(value, DTensor):  # FSDP2 cuts the first dimension as `chunk` does
            local = value.to_local()
            first = min(value.shape[0], team.rank * -(-value.shape[0] // team.size))
        if local.numel():
            local.copy_(read_tensor(_part(tensor, first, tuple(local.shape)), local.shape, local.dtype, local.device))


def _part(tensor: Tensor, first: int, shape: tuple[int, ...]) -> Tensor:
    """A tensor's elements from `first` of its first dimension on, lazily."""
    if len(shape) < 2:
        return Tensor.from_array(tensor.name, tensor.rows(0, 1).reshape(-1)[first : first + shape[0]])
    row = first * math.prod(shape[1:-1])
    return dataclasses.replace(tensor, shape=shape, read=lambda a, b: tensor.blocks(row + a, row + b), extent=None)


def wrap(model: Any, team: Team) -> nn.Module:
    """The model as the team trains it: itself, in DDP, or with its blocks sharded by FSDP2's `fully_shard`."""
    if team.size == 1:
        return model  # type: ignore[no-any-return]
    if not team.sharded:
        ids = [team.device.index] if team.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    from torch.distributed.fsdp import fully_shard

    for block in model.blk:
        fully_shard(block)
    fully_shard(model)
    return model  # type: ignore[no-any-return]
