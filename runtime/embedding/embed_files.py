"""What a model's files and keys say of how texts become vectors: sentence-transformers' modules and prompts.

A GGUF of ours keeps the files; of somebody else's there are its keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmconv.convert.dialects import carried
from llmconv.convert.tables.config import text_config
from llmconv.convert.tables.keys import LABELS
from llmconv.convert.vocab.model import TEMPLATE
from llmconv.errors import BadFile, Unsupported, UsageError, cut
from llmconv.formats.safetensors_header import DTYPES
from llmconv.formats.side_files import MODULES
from llmconv.runtime.model import Model

__all__ = ["POOLINGS", "Said"]

POOLINGS = ("mean", "cls", "last", "max")
_NUMBERS = {1: "mean", 2: "cls", 3: "last"}  # llama.h's `llama_pooling_type`
_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}
_MODES = {"mean": "mean", "cls": "cls", "lasttoken": "last", "max": "max"}


class Said:
    """What a model's files and keys say of how texts become vectors."""

    def __init__(self, model: Model, pooling: str):
        self.where, self.files = model.where, carried.kept_files(model.metadata)
        arch = model.decoder.arch
        modules = self.json(MODULES)
        self.modules = [m for m in modules if isinstance(m, Mapping)] if isinstance(modules, list) else []
        for module in self.modules:
            if _kind(module) not in ("Transformer", "Pooling", "Dense", "Normalize"):
                raise Unsupported(f"{self.where}: its module {cut(_kind(module))} is not known here")
        number = model.metadata.get(f"{arch}.pooling_type")
        self.pooling = pooling if pooling != "auto" else self._pooling() or _NUMBERS.get(_whole(number), "mean")
        if self.pooling not in POOLINGS:
            raise UsageError(f"unknown pooling {pooling!r}; give auto, {', '.join(POOLINGS)}")
        listed = [str(m.get("path")) for m in self.modules if _kind(m) == "Dense"]
        self.dense = [self._dense(path) for path in listed] if model.dense_2 is None else []
        usual = "last" if model.decoder.causal else "cls"
        of_classifier = _NUMBERS.get(_whole(model.metadata.get(f"{arch}.classifier.pooling_type")), usual)
        late = model.metadata.get(f"{arch}.classifier.pools_scores") is True
        self.classifier = pooling if pooling != "auto" else "late" if late else of_classifier
        self.padding = self._padding(model)
        labels = model.metadata.get(f"{arch}.{LABELS}", ())
        self.labels = list(labels) if isinstance(labels, Sequence) else []
        self.of_words = f"{TEMPLATE}.rerank" in model.metadata
        """Whether the labels are words that a language model may say next."""

    def _padding(self, model: Model) -> int:
        """The token that no classifier reads; -1 where there is none."""
        config = self.json("config.json")
        keyed = model.metadata.get("tokenizer.ggml.padding_token_id")
        found = text_config(config).get("pad_token_id") if isinstance(config, Mapping) else keyed
        return -1 if found is None else _whole(found)

    def json(self, name: str) -> Any:
        """One of the model's files, parsed; None where it has none."""
        if name not in self.files:
            return None
        try:
            return json.loads(self.files[name])
        except (ValueError, RecursionError):
            raise BadFile(f"{self.where}: {cut(name)} is no JSON; repair it") from None

    def _pooling(self) -> str | None:
        for module in self.modules:
            if _kind(module) == "Pooling":
                found = self.json(f"{module.get('path')}/config.json") or {}
                modes = [mode for flag, mode in _FLAGS.items() if found.get(flag) is True]
                stated = found.get("pooling_mode")
                modes = modes or [mode for name, mode in _MODES.items() if stated == name]
                unknown = [
                    k for k, v in found.items() if k.startswith("pooling_mode_") and v is True and k not in _FLAGS
                ]
                if len(modes) == 1 and not unknown:
                    return modes[0]
                raise Unsupported(f"{self.where}: its way of pooling is not known here; known: {', '.join(POOLINGS)}")
        return None

    def _dense(self, path: str) -> tuple[Tensor, Tensor | None, str]:
        """A dense layer: weight, bias, activation."""
        config = self.json(f"{path}/config.json") or {}
        name = str(config.get("activation_function", "torch.nn.modules.linear.Identity")).rpartition(".")[2].lower()
        data = self.files.get(f"{path}/model.safetensors")
        if data is None:
            raise Unsupported(f"{self.where}: {cut(path)} has no model.safetensors, so its layer can't be computed")
        found = _matrices(data, f"{self.where}: {cut(path)}/model.safetensors")
        if "linear.weight" not in found:
            raise BadFile(f"{self.where}: {cut(path)}/model.safetensors has no linear.weight")
        return found["linear.weight"], found.get("linear.bias"), name

    def prompt(self, wanted: str | None) -> str:
        """What is put before a text."""
        config = self.json("config_sentence_transformers.json") or {}
        prompts = config.get("prompts") if isinstance(config, Mapping) else None
        prompts = prompts if isinstance(prompts, Mapping) else {}
        name = config.get("default_prompt_name") if wanted is None else wanted
        found = prompts.get(name) if isinstance(name, str) else None
        return str(found) if found is not None else wanted or ""

    @property
    def most_tokens(self) -> int | None:
        """What sentence-transformers cuts a text to."""
        value = (self.json("sentence_bert_config.json") or {}).get("max_seq_length")
        return value if isinstance(value, int) and value > 2 else None

    @property
    def lower_case(self) -> bool:
        return bool((self.json("sentence_bert_config.json") or {}).get("do_lower_case"))

    @property
    def logistic(self) -> bool:
        """Whether a reranker's number goes through the logistic function."""
        config = self.json("config.json") or {}
        stated = (config.get("sentence_transformers") or {}).get("activation_fn")
        stated = stated or config.get("sbert_ce_default_activation_function") or "Sigmoid"
        return len(self.labels) == 1 and str(stated).endswith("Sigmoid")


def _kind(module: Mapping[str, Any]) -> str:
    return str(module.get("type")).rpartition(".")[2]


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, int | np.integer) else 0


def _matrices(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a small safetensors file, as float32."""
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        out = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            values = np.frombuffer(data[start + first : start + last], DTYPES[entry["dtype"]].dtype)
            out[name] = torch.from_numpy(values.astype(np.float32).reshape(entry["shape"]))
        return out
    except (LookupError, TypeError, ValueError, RecursionError):
        raise BadFile(f"{where} is no whole safetensors file; fetch it again") from None
