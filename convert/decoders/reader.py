"""A checkpoint's keys and shapes, typed, with errors that name the file and the key."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from llmconv.convert.tables import own_keys
from llmconv.convert.tables.config import Settings, normalized
from llmconv.convert.tables.keys import whole
from llmconv.errors import BadFile, at
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["Reader", "short"]


_FLAGS = (bool, np.bool_, int, np.integer)


class Reader:
    """Typed access to a checkpoint's keys, with errors that name the file and the key."""

    def __init__(self, checkpoint: Checkpoint, arch: str):
        self.metadata, self.arch = Settings(checkpoint.metadata), arch
        self.where = checkpoint.source or "this model"
        self.asked: set[str] = set()
        self.shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        self.config = self._config()

    def _config(self) -> dict[str, Any]:
        """The config.json that the model came with: it says what GGUF's keys can't, when it is there."""
        try:
            found = json.loads(self.metadata.get(own_keys.CONFIG, "{}"))
        except (ValueError, TypeError):
            return {}
        return normalized(found) if isinstance(found, dict) else {}

    def bad(self, item: str, message: str) -> BadFile:
        return BadFile(f"{at(self.where, item)} {message}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `{arch}.key` (of `key` itself when it is absent), numpy scalars unwrapped."""
        self.asked.add(key)
        value = self.metadata.get(f"{self.arch}.{key}", default)
        return value.item() if isinstance(value, np.generic) else value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.bad(f"key '{self.arch}.{key}'", f"is {short(value)}, expected a number; is the file whole?")
        return float(value)

    def count(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.number(key, default)
        if value != int(value) or not least <= value < 1 << 31:
            raise self.bad(f"key '{self.arch}.{key}'", f"is {value:g}, expected a whole number of at least {least}")
        return int(value)

    def flag(self, key: str, default: Any = None) -> Any:
        """True or false, or the default."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(f"key '{self.arch}.{key}'", f"is {short(value)}, expected true or false")
        return value

    def text(self, key: str, default: Any = None) -> Any:
        """A text, or the default."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.bad(f"key '{self.arch}.{key}'", f"is {short(value)}, expected a text")
        return default if value is None else value

    def flags(self, key: str, n: int, default: Any = None) -> list[bool] | None:
        """A flag of each of `n` layers, or None where the file has none."""
        value = self.get(key, default)
        if value is None:
            return None
        if not isinstance(value, np.ndarray | list | tuple) or not all(isinstance(v, _FLAGS) for v in value):
            raise self.bad(f"key '{self.arch}.{key}'", f"is {short(value)}, expected a flag for each layer")
        if len(value) < n:
            raise self.bad(f"key '{self.arch}.{key}'", f"has {len(value)} entries for {n} layers")
        return [bool(v) for v in value[:n]]

    def of_layer(self, key: str, i: int, full: str = "") -> float:
        """A number for all layers, or layer `i`'s of an array of them; 0 where the file has none.

        full: the key's whole name, where it does not begin with the architecture's.
        """
        value = self.metadata.get(full) if full else self.get(key, 0.0)
        number = value[i] if isinstance(value, np.ndarray | list | tuple) and i < len(value) else value
        number = number.item() if isinstance(number, np.generic) else number
        if isinstance(number, bool) or not isinstance(number, int | float) or math.isnan(number):
            raise self.bad(f"key '{full or f'{self.arch}.{key}'}'", f"has no number for layer {i}")
        return float(number)

    def optional(self, key: str) -> float | None:
        """A number where 0 means "none"."""
        return self.number(key, 0) or None

    def per_layer(self, key: str, n: int, default: int) -> list[int]:
        """A number for all layers, or an array of one each."""
        value = self.get(key, default)
        if isinstance(value, np.ndarray | list | tuple):
            try:
                values = [whole(v) for v in value]
            except TypeError:
                raise self.bad(f"key '{self.arch}.{key}'", f"is {short(value)}, expected whole numbers") from None
            if len(values) < n:
                raise self.bad(f"key '{self.arch}.{key}'", f"has {len(values)} entries for {n} layers")
            return values[:n]
        return [self.count(key, default)] * n

    def shape(self, name: str, rank: int | None = None) -> tuple[int, ...]:
        found = self.shapes.get(name)
        if found is None:
            raise self.bad(f"tensor '{name}'", "is missing, and the model can't run without it")
        if rank is not None and len(found) != rank:
            raise self.bad(f"tensor '{name}'", f"has shape {list(found)}, expected {rank} dimensions")
        return found

    def expect(self, name: str, rows: int, why: str) -> None:
        """The tensor, when it is there, has that many output rows."""
        found = self.shapes.get(name)
        if found is not None and (len(found) != 2 or found[0] != rows):
            raise self.bad(f"tensor '{name}'", f"has shape {list(found)}, expected {rows} rows ({why})")


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 40 else text[:37] + "..."
