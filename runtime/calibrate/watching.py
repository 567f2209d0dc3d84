"""Seeing what a model's matrices are multiplied with while it runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from llmconv.runtime.linear import Embedding, Stored
from llmconv.runtime.model import Model

__all__ = ["Watcher", "layer_of", "matrices", "often", "watching"]

Watcher = Callable[[str, Tensor, Tensor | None, int | None], None]
"""Called with a tensor's name, the inputs (..., in) of a product with it, its results (..., out) before any bias (None
where it is not made as one product), and the number of the expert or head whose matrix it was (None: the only one)."""


def matrices(model: Model) -> dict[str, Stored]:
    """Tensor name -> its module, of everything that the model multiplies with; a tied embedding is one too."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Stored) and (not isinstance(module, Embedding) or _is_head(model, module)):
            found[f"{name}.weight"] = module
    return found


def layer_of(name: str) -> int:
    """The number of the layer that a tensor is in; -1: in none."""
    return int(name.split(".")[1]) if name.startswith("blk.") else -1


def often(model: Model) -> bool:
    """Whether a batch meets matrices more than once, which of others only experts are."""
    spec = model.decoder
    return spec.recurrent is not None or spec.passes != len(spec.layers)


def _is_head(model: Model, module: Embedding) -> bool:
    return module is model.token_embd and model.output is None


@contextlib.contextmanager
def watching(modules: Mapping[str, Stored], seen: Watcher) -> Iterator[None]:
    """Within it, `seen` is told of every product with these modules, in the order of the computation."""
    try:
        for name, module in modules.items():
            module.watch = functools.partial(seen, name)
        yield
    finally:
        for module in modules.values():
            module.watch = None
