"""Which weight of a Keras model's file belongs to which layer, as its configuration lists them.

Keras 2, TensorFlow.js and Keras 3's `.h5` name weights by their layer: `lstm/lstm/lstm_cell/kernel:0`; Keras 3's
`.keras` numbers the layers of a class and the weights of a layer: `layers/lstm_1/cell/vars/0`.  A wrapper's inner layer
stands for it.  Sources: keras-team/keras src/saving/saving_lib.py and legacy_h5_format.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmconv.errors import cut

__all__ = ["MODELS", "Layer", "Names"]

MODELS = ("Sequential", "Functional", "Model")
"""Classes that list layers."""
_NUMBERS = {
    **dict.fromkeys(("embeddings", "kernel", "gamma", "scale"), 0),
    **dict.fromkeys(("bias", "beta", "recurrent_kernel"), 1),
}
_OTHERWISE = {"GroupQueryAttention": "GroupedQueryAttention"}
"""Classes that are registered by another name than their own."""
_CELLS = ("SimpleRNN", "GRU", "LSTM")
_ROOTS = ("layers", "_layer_checkpoint_dependencies")


@dataclass(frozen=True)
class Layer:
    """kind: its class.   module: where that is from, "" where nothing says so.

    weights: the path of each below the layer (`query/kernel`, `cell/vars/0`) -> its name.
    """

    kind: str
    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, str]
    module: str = ""

    @property
    def said(self) -> str:
        """What messages call it."""
        return f"its layer {cut(self.name)} ({self.kind[:40]})"

    def weight(self, leaf: str, part: str = "") -> str | None:
        """The file's name of a weight of the layer, or of one of its parts.

        leaf: as Keras 2 calls it: "kernel".   part: a pattern of the inner layer's name: "query(_dense)?".
        """
        number = 2 if leaf == "bias" and self.kind in _CELLS else _NUMBERS[leaf]
        within = f"(.*/)?(?:{part})/" if part else r"(?:[^/]*/)*?"
        pattern = re.compile(rf"{within}(?:{leaf}|vars/{number})")
        return next((name for path, name in self.weights.items() if pattern.fullmatch(path)), None)


class Names:
    """A file's names, given out layer by layer in the order of the configuration; `within`: the outer models' names.

    named, numbered: what each outer model is called in the two ways of naming.
    """

    def __init__(self, names: Iterable[str], named: Sequence[str] = (), numbered: Sequence[str] = ()):
        self._named, self._numbered = named, numbered
        self._parts: dict[str, list[str]] = {}  # a part of a name between slashes -> the names that have it
        for full in names:
            for part in dict.fromkeys(full.split("/")):
                self._parts.setdefault(part, []).append(full)
        self._counts: dict[str, int] = {}

    def _number(self, kind: str) -> str:
        """What Keras 3 calls the next layer of a class: `dense`, `dense_1`."""
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", _OTHERWISE.get(kind, kind)).lower()
        number = self._counts[snake] = self._counts.get(snake, -1) + 1
        return f"{snake}_{number}" if number else snake

    def layer(self, entry: Mapping[str, Any]) -> Layer:
        """The layer of an entry of the list, a wrapped one as itself."""
        kind, config = str(entry["class_name"]), entry["config"]
        name = str(config["name"] if "name" in config else entry["name"])
        number = self._number(kind)
        inner = config["layer"] if kind == "TimeDistributed" else None
        found = self._below(name, number)
        if inner is not None:
            found = {path.removeprefix("layer/"): full for path, full in found.items()}
            kind, config = str(inner["class_name"]), inner["config"]
        package, _, kind = kind.rpartition(">")
        registered = str(entry.get("registered_name") or "").rpartition(">")[0]
        return Layer(kind, name, config, found, package or str(entry.get("module") or registered))

    def inside(self, entry: Mapping[str, Any]) -> Names:
        """The names of the layers of a model that stands among the layers."""
        name = str(entry["config"].get("name", ""))
        numbered = [*self._numbered, self._number(str(entry["class_name"]))]
        within = Names((), [*self._named, name], numbered)
        within._parts = self._parts
        return within

    def _below(self, name: str, number: str) -> dict[str, str]:
        """The weights of a layer, by their paths below it."""
        start = "".join(f"(?:{'|'.join(_ROOTS)})/{re.escape(own)}/" for own in (*self._numbered, number))
        numbered = re.compile(start + r"(.+)")
        named = re.compile(
            "".join(f"(?:{re.escape(own)}/)*" for own in self._named) + rf"(?:{re.escape(name)}/)+(.+?)(?::\d+)?"
        )
        out = {}
        for full in dict.fromkeys((*self._parts.get(name.split("/")[0], ()), *self._parts.get(number, ()))):
            found = numbered.fullmatch(full) or named.fullmatch(full)
            if found is not None:
                out[found[1]] = full
        return out
