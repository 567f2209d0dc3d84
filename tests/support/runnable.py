"""Small models that run: random weights of a preset's shape, a vocabulary of words, a text of those words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmconv.convert.vocab import Vocab, from_words
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.initial import fresh_checkpoint

WORDS = [f"w{i}" for i in range(29)]


def checkpoint(preset: str = "llama-15m", vocab: Vocab | None = None, **sizes: int) -> Checkpoint:
    """32 wide, one layer, 32 words, unless `sizes` say otherwise; weights large enough to prefer some words."""
    shape = {"dim": 32, "layers": 1, "heads": 2, "ffn": 64} | sizes
    config = TrainConfig(data="-", output="-", preset=preset, **shape)  # type: ignore[arg-type]
    found = fresh_checkpoint(config, vocab or from_words(["[PAD]", "[UNK]", "[EOS]", *WORDS]))
    wide = {
        name: tensor.map(lambda x: x * 8, tensor.type) if len(tensor.shape) > 1 else tensor
        for name, tensor in found.tensors.items()
    }
    return found.but(tensors=wide)


def changed(source: Checkpoint, name: str, change: Any) -> Checkpoint:
    """With one tensor's float32 values changed in place by `change`."""
    values = np.array(source.tensors[name].rows(), np.float32)
    change(values)
    tensor = Tensor.from_array(name, values.reshape(source.tensors[name].shape))
    return source.but(tensors={**source.tensors, name: tensor})


def write(source: Checkpoint, path: Path) -> Path:
    gguf_file.save(source, path)
    return path


def text(count: int = 200, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))
