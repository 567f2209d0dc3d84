"""Adapters that a model brings along, one for each task (Jina's embedding models, version 3).

Each weight has two tensors beside it that hold the A and B of all tasks, (tasks, r, in) and (tasks, out, r); those of
embeddings are x A B: (tasks, rows, r) and (tasks, r, dim).  The weight of a task is W + alpha / r times the product.
A GGUF keeps them whole, and beside it lies one of each adapter, as llama.cpp's converter writes it.
Source: jinaai/xlm-roberta-flash-implementation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from llmconv.convert import archs
from llmconv.convert.dialects import carried
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import normalized, read_config
from llmconv.convert.tables.ops import Transpose
from llmconv.convert.tables.rows import prefix_of
from llmconv.errors import BadFile, LlmconvError, UsageError, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.moving.rows import take
from llmconv.formats.side_files import is_name
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes

__all__ = ["adapters", "instruction", "merged", "tasks_of"]

_WEIGHT, _LORA = ".parametrizations.weight.original", ".parametrizations.weight.0.lora_"
_EMBEDDINGS = ("token_embd.weight", "token_types.weight")


class _Pair(NamedTuple):
    """A weight's A and B, of all tasks.  up, down: of which the rows of the change are up @ down."""

    a: Tensor
    b: Tensor
    embeds: bool

    def of(self, task: int, up: bool) -> Tensor:
        """One task's: up (rows of the weight, r), or down (r, its columns)."""
        whole = self.a if up is self.embeds else self.b
        return _one(whole, task)


def _one(whole: Tensor, task: int) -> Tensor:
    """The matrix of one task."""
    if len(whole.shape) != 3:
        raise UsageError(f"{whole.name!r} has shape {list(whole.shape)}, expected (tasks, rows, columns)")
    rows = whole.shape[1]
    return take(whole, task * rows, rows, whole.shape[1:])


def tasks_of(config: Mapping[str, Any]) -> list[str]:
    """The names of a model's tasks; none where it has no adapters of its own."""
    found = config.get("lora_adaptations")
    return [str(name) for name in found] if isinstance(found, list) else []


def instruction(config: Mapping[str, Any], task: str) -> str:
    """What is put before a text of that task."""
    found = config.get("task_instructions")
    return str(found.get(task, "")) if isinstance(found, Mapping) else ""


def adapters(folder: Checkpoint) -> Iterator[tuple[str, Checkpoint]]:
    """A model folder's adapters by task, each as a GGUF of its own."""
    config = read_config(folder)
    names = tasks_of(config)
    arch = archs.by_hf(config) if names else None
    if arch is None:
        return
    if strange := [name for name in names if "/" in name or not is_name(name)]:
        raise BadFile(f"{folder.where}: config.json names the task {cut(strange[0])}, which is no name for a file")
    flat = normalized(config)
    dims = arch.dims_of(arch.metadata(flat, f"{folder.where}: config.json"))
    dims["n_vocab"] = int(flat.get("vocab_size") or 0)
    pairs = dict(_pairs(arch, dims, folder.tensors, folder.where, len(names)))
    alpha = np.float32(config.get("lora_alpha") or 1.0)
    for task, name in enumerate(names) if pairs else ():
        out = folder.derived("gguf")
        out.notes = []
        for weight, pair in pairs.items():
            a, b = _one(pair.a, task), _one(pair.b, task)
            if weight == _EMBEDDINGS[0]:
                b = Transpose().apply((b,), {})[0]
            elif weight == _EMBEDDINGS[1]:
                a, b = b, a
            out.add(a.astype(plain.F32).renamed(f"{weight}.lora_a"))
            out.add(b.astype(plain.F32).renamed(f"{weight}.lora_b"))
        out.metadata = {
            "general.architecture": arch.gguf,
            "general.type": "adapter",
            "adapter.type": "lora",
            "adapter.lora.alpha": alpha,
            "adapter.lora.task_name": name,
        }
        if config.get("task_instructions"):
            out.metadata["adapter.lora.prompt_prefix"] = instruction(config, name)
        yield name, out


def merged(gguf: Checkpoint, task: str) -> tuple[Checkpoint, dict[str, Any]]:
    """A GGUF of ours with the adapter of a task in its weights, lazily, in float32; and its config.json.

    `UsageError` for a model without that task.
    """
    config = carried.kept_json(gguf.metadata, own_keys.CONFIG, gguf.where)
    names, name = tasks_of(config), gguf.metadata.get("general.architecture")
    arch = archs.by_gguf(name) if isinstance(name, str) else None
    if arch is None or not names or own_keys.TENSORS not in gguf.metadata:
        raise UsageError(
            f"{gguf.where}: has no adapters for tasks in it; give the model's folder, or a GGUF that llmconv made of it"
        )
    if task not in names:
        raise UsageError(f"{gguf.where}: has no task {cut(task)}; its tasks: {', '.join(map(cut, names))}")
    dims = arch.dims_of(gguf.metadata)
    dims["n_vocab"] = gguf.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in gguf.tensors else 0
    kept = {tensor.name: tensor for tensor in carried.kept_tensors(gguf.metadata, gguf.where)}
    out = gguf.but(tensors=dict(gguf.tensors))
    for weight, pair in _pairs(arch, dims, kept, gguf.where, len(names)):
        if weight in out.tensors:
            out.add(_changed(out.tensors[weight], pair, names.index(task), config))
    return out, config


def _changed(weight: Tensor, pair: _Pair, task: int, config: Mapping[str, Any]) -> Tensor:
    """W + s · up @ down, row by row."""
    up, down = (pair.of(task, side).numpy().astype(np.float32) for side in (True, False))
    try:
        scale = np.float32(config.get("lora_alpha") or 1.0) / np.float32(up.shape[1])
    except (TypeError, ValueError):
        raise BadFile(f"config.json: lora_alpha is {cut(config.get('lora_alpha'))}, expected a number") from None

    def read(start: int, stop: int) -> Bytes:
        rows = weight.rows(start, stop).astype(np.float32) + scale * (up[start:stop] @ down)
        return rows.view(np.uint8)

    return dataclasses.replace(weight, type=plain.F32, read=read, extent=None)


def _pairs(
    arch: Architecture, dims: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str, count: int
) -> Iterator[tuple[str, _Pair]]:
    """A and B by the GGUF's name of the weight that they are for; `BadFile` for shapes that do not fit it."""
    modules = {name.removesuffix(_LORA + "A") for name in tensors if name.endswith(_LORA + "A")}
    if not modules:
        return
    marked = {f"{module}{_WEIGHT}": None for module in modules}
    prefix = prefix_of(arch.prefixes, arch.rows, dims, marked)
    for slot in arch.slots(dims):
        names = slot.names(0, prefix)
        module = names[0].removesuffix(_WEIGHT)
        if len(names) != 1 or module not in modules:
            continue
        a, b = tensors[module + _LORA + "A"], tensors.get(module + _LORA + "B")
        if b is None:
            raise BadFile(f"{where}: module {cut(module)} lacks lora_B; fetch the model again")
        pair = _Pair(a, b, slot.gguf[0] in _EMBEDDINGS)
        rows, columns = slot.shapes[0]
        try:
            up, down = pair.of(0, True), pair.of(0, False)
            fits = (up.shape[0], down.shape[1]) == (rows, columns) and up.shape[1] == down.shape[0] > 0
        except (LlmconvError, IndexError):
            fits = False
        if not fits or not a.shape[0] == b.shape[0] == count:
            raise BadFile(
                f"{where}: module {cut(module)} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, which do not "
                f"fit {count} tasks and a weight of {[rows, columns]}; fetch the model again"
            )
        yield slot.gguf[0], pair
