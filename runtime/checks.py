"""What no figure and no text may be made from: numbers that are none, and a model that sees what it should guess.

Every function that runs a model asks here, so that a gate can't pass on garbage.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmconv.convert.decoders.facts import Decoder
from llmconv.convert.reports.streaming import EMBEDDING, HEAD
from llmconv.errors import LlmconvError, UsageError, cut
from llmconv.runtime import products
from llmconv.runtime.linear import ExpertLinear, Stored
from llmconv.runtime.model import Model

__all__ = ["check_finite", "check_looks_back", "not_finite"]


def check_looks_back(decoder: Decoder, way_out: str) -> None:
    """`UsageError` when the model's tokens see those after them, which makes guessing the next one no task."""
    if not decoder.causal:
        raise UsageError(f"a {decoder.arch} model sees the words it would be scored on; {way_out}")


def check_finite(values: Tensor, model: Model, place: Callable[[int], str], side: str = "", what: str = "") -> None:
    """`LlmconvError` when `values` (rows, n) that the model gave hold an infinity or NaN.

    place: where a row stands, in words ("chunk 3, position 17").  side: "A" or "B", where two models run.
    what: what the values are, if not logits.
    """
    if bool(values.sum(-1).isfinite().all()):
        return
    bad = (~values.isfinite()).any(-1).nonzero()
    if len(bad):  # not only a sum that is too large
        row = int(bad[0])
        raise not_finite(model, f"{what or 'the logits'} at {place(row)}", bool(values[row].isnan().any()), side)


def not_finite(model: Model, what: str, nan: bool = True, side: str = "") -> LlmconvError:
    """The error for something that came out of `model` as NaN or infinite: whose, what, and the likely cause."""
    kind = "not numbers (NaN)" if nan else "infinite"
    error = LlmconvError(f"{f'model {side} ' if side else ''}{model.where}: {what} are {kind}; {_cause(model)}")
    error.file = model.where
    return error


def _cause(model: Model) -> str:
    broken = bad_tensor(model)
    if broken:
        return f"its tensor {cut(broken)} holds numbers that are not finite, so the file is broken"
    if model.dtype == torch.float16:
        return "float16 ends at 65504, which this model passes inside; use --dtype bf16 or f32"
    if any(isinstance(m, Stored) and m.activations == "int8" for m in model.modules()):
        return "its activations may be too large to be rounded; use --activations float"
    return "it overflows inside; verify the file, or try --dtype f64"


@torch.no_grad()
def bad_tensor(model: Model) -> str | None:
    """The first of the model's tensors with an infinity or NaN in it."""
    if model.wants is None:
        return _bad_in(model)
    for part in (EMBEDDING, *range(len(model.blk)), HEAD):
        model.wants(part)
        found = _bad_in(model, f"blk.{part}.")
        if found:
            return found
    return None


def _bad_in(model: Model, layer: str = "") -> str | None:
    """The first of those that are in memory, and of the experts of a layer that are not."""
    for prefix, module in model.named_modules():
        for part in (*module._parameters, *module._buffers):
            values = getattr(module, part)
            if values is not None and not values.is_meta and not _finite(values, module):
                return f"{prefix}.{part}" if prefix else f"{part}.weight"
        if isinstance(module, ExpertLinear) and prefix.startswith(layer) and not _all_finite(module):
            return f"{prefix}.weight"
    return None


def _all_finite(module: ExpertLinear) -> bool:
    """Whether the experts that are read one by one, if they are, are finite."""
    one = module.one
    return one is None or all(_finite(one(expert), module) for expert in range(module.shape[0]))


def _finite(values: Tensor, module: torch.nn.Module) -> bool:
    rows = values.reshape(-1, values.shape[-1]) if values.dim() else values.reshape(1, 1)
    blocks = module.block_type if isinstance(module, Stored) and rows.dtype == torch.uint8 else None
    return all(bool(products.dense(part, blocks, torch.float32).isfinite().all()) for part in torch.split(rows, 1024))
