"""What a scheme of stored weights is: the names of a layer's tensors, how it is recognised, how it is read."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llmconv.convert.scaled.coded import Coded
from llmconv.convert.tables.config import TEXT_MODELS, read_config
from llmconv.errors import BadFile, Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

__all__ = ["KEYS", "Layer", "Scheme", "Settings", "without_settings"]

KEYS = ("quantization_config", "compression_config", "quantization")
"""Where config.json, or the text model's part of it, says how the weights are stored."""
_RULES = ("dynamic", "extra_config")
"""Where GPTQModel and AutoRound say what is otherwise in some layers: these are known by their shapes."""
_ENDLESS = re.compile(r"[*+}]\)[*+{]|.{500}")
"""Patterns that may take longer than anybody waits: what is repeated is repeated again."""
SIDE_FILES = ("quantize_config.json", "quant_config.json")


def without_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that says nothing of how the weights are stored."""
    rest = {key: value for key, value in config.items() if key not in KEYS}
    return {k: without_settings(v) if k in TEXT_MODELS and isinstance(v, dict) else v for k, v in rest.items()}


@dataclass(frozen=True)
class Settings:
    """What config.json says of the storing.

    method: its name for it, "" where it gives none.   values: everything under `quantization_config`.
    hidden: the model's width, where it says so.
    """

    where: str
    method: str
    values: Mapping[str, Any]
    hidden: int | None = None

    @staticmethod
    def of(checkpoint: Checkpoint) -> Settings:
        where = checkpoint.where
        config = read_config(checkpoint)
        for part in (config, *(config[name] for name in TEXT_MODELS if isinstance(config.get(name), dict))):
            key = next((key for key in KEYS if part.get(key) is not None), None)
            if key is not None:
                break
        values = _beside(checkpoint) if key is None else part[key]
        if not isinstance(values, Mapping):
            raise BadFile(f"{where}: config.json: {key} is {values!r:.60}, expected an object")
        method = values.get("quant_method")
        sizes = [p.get(key) for p in (part, config) for key in ("hidden_size", "n_embd", "d_model")]
        hidden = next((size for size in sizes if type(size) is int and size > 0), None)
        return Settings(where, method if isinstance(method, str) else "", values, hidden)

    def bits(self, weight: str) -> int | None:
        """Bits of a number of that weight, where it says so."""
        found = self.weights.get("num_bits", self.values.get("bits", self.values.get("w_bit")))
        ruled = any(isinstance(self.values.get(key), dict) for key in _RULES)
        return found if type(found) is int and not ruled else None

    @property
    def weights(self) -> Mapping[str, Any]:
        """compressed-tensors' word on the weights, where it is the same for all layers; else {}."""
        groups = self.values.get("config_groups")
        found = [g.get("weights") for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
        return found[0] if found and isinstance(found[0], dict) and all(w == found[0] for w in found) else {}

    def for_layer(self, weight: str) -> Settings:
        """Of several `config_groups`, only the one that the weight is in, by its name, a pattern or its class."""
        exact, patterns, linear = self._targets
        module = weight.removesuffix(".weight")
        found = exact.get(module) or next((group for pattern, group in patterns if pattern.match(module)), linear)
        return (
            self if found is None else dataclasses.replace(self, values={**self.values, "config_groups": {"": found}})
        )

    @functools.cached_property
    def _targets(self) -> tuple[dict[str, Any], list[tuple[re.Pattern[str], Any]], Any]:
        """Groups by modules' names, by patterns of names, and the one of all linear layers."""
        given = self.values.get("config_groups")
        groups = (
            [g for g in given.values() if isinstance(g, dict)] if isinstance(given, dict) and len(given) > 1 else []
        )
        exact: dict[str, Any] = {}
        patterns: list[tuple[re.Pattern[str], Any]] = []
        for group in groups:
            targets = group.get("targets")
            for target in (t for t in targets if isinstance(t, str)) if isinstance(targets, list) else ():
                if not target.startswith("re:"):
                    exact.setdefault(target, group)
                elif not _ENDLESS.search(target):
                    with contextlib.suppress(re.error):
                        patterns.append((re.compile(target[3:]), group))
        return exact, patterns, exact.get("Linear")

    def block(self) -> tuple[int, int] | None:
        """Rows and columns that share a scale, where it says so."""
        size = self.values.get("weight_block_size") or self.weights.get("block_structure")
        if isinstance(size, str):
            size = [int(n) if n.isdecimal() else 0 for n in size.split("x")]
        if not size:
            return None
        if isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n <= 1 << 20 for n in size):
            return size[0], size[1]
        raise BadFile(
            f"{self.where}: config.json's weight_block_size is {size!r:.60}, expected two numbers such as [128, 128]"
        )

    def group(self) -> int | None:
        """Columns that share a scale, where it says so."""
        size = self.weights.get("group_size", self.values.get("group_size", self.values.get("q_group_size")))
        return size if type(size) is int and size > 0 else None


def _beside(checkpoint: Checkpoint) -> Any:
    """What a file beside config.json says, as GPTQ's and AWQ's programs wrote it once."""
    for name in SIDE_FILES:
        raw = checkpoint.file(name)
        if raw is not None:
            try:
                found = json.loads(raw)
            except (ValueError, RecursionError):
                raise BadFile(f"{checkpoint.where}: {name} is no JSON; fetch it again") from None
            if not isinstance(found, dict):
                raise BadFile(f"{checkpoint.where}: {name} is {found!r:.60}, expected an object")
            return found
    return {}


@dataclass(frozen=True)
class Layer:
    """The tensors that stand for one weight.

    weight: its name as a float model has it.   parts: ending -> tensor, as the scheme calls them.
    """

    weight: str
    parts: Mapping[str, Tensor]
    settings: Settings


class Scheme:
    """One way of storing weights.

    name: as people call it.   methods: what config.json's `quant_method` calls it.
    marks: endings of tensors by which a layer is found.   parts: endings of the others that belong to it; what stands
    before any of them is the layer's stem.
    """

    name: ClassVar[str]
    methods: ClassVar[tuple[str, ...]] = ()
    marks: ClassVar[tuple[str, ...]]
    parts: ClassVar[tuple[str, ...]] = ()

    def weight(self, stem: str) -> str:
        """The weight that a layer of that stem stands for."""
        return stem

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        """Whether these tensors, found under one stem, are a layer of this scheme."""
        raise NotImplementedError

    def coded(self, layer: Layer) -> Coded:
        """The codes and scales of the weight; lazily."""
        raise Unsupported(
            f"{layer.settings.where}: tensor {layer.weight!r} is quantized with {self.name}, which can't be read; "
            "give the original model"
        )
