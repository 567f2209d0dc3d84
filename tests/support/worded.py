"""The tiny models of every family with a vocabulary of words, so that texts can be run through them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import by_hand
import hf_models
import numpy as np
import pytest
import tiny_models

import llmconv
from llmconv.convert.reports import streaming
from llmconv.convert.translate import translate
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

WORDS = [f"w{i}" for i in range(93)]


def with_words(metadata: dict[str, Any]) -> dict[str, Any]:
    """A vocabulary of 96 words for a tiny model, split at spaces."""
    return metadata | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"\u2581{w}" for w in WORDS)],
        "tokenizer.ggml.scores": np.zeros(96, np.float32),
        "tokenizer.ggml.token_type": np.asarray([2, 3, 3] + [1] * 93, np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
        "tokenizer.ggml.unknown_token_id": np.uint32(0),
        "tokenizer.ggml.add_bos_token": True,
    }


def gguf_of(name: str, folder: Path) -> Path:
    """The GGUF of a tiny model, made once a folder."""
    path = folder / f"{name}.gguf"
    if not path.exists():
        tiny_models.build(name, folder / name)
        found = translate(llmconv.open(folder / name), "gguf")
        found.metadata = with_words(dict(found.metadata))
        llmconv.save(found, path)
    return path


def by_hand_folder(config: dict[str, Any], form: int = 0, **more: Any) -> Checkpoint:
    """A folder made from our table, of random numbers that are not too large to tell texts apart."""
    folder = hf_models.model(config, kind="F32", form=form, **more)
    for name, tensor in list(folder.tensors.items()):
        if tensor.type.name == "I64":  # tables of numbers
            continue
        values = tensor.numpy() * np.float32(0.1) + np.float32(0.5 if len(tensor.shape) == 1 else 0.0)
        folder.add(Tensor.from_array(name, values))
    return folder


def by_hand_gguf(name: str, folder: Path) -> Path:
    """The same of a model made by hand, which needs no transformers."""
    path = folder / f"{name}.gguf"
    if not path.exists():
        made = by_hand_folder(by_hand.CONFIGS[name], by_hand.FORMS.get(name, 0))
        found = translate(made, "gguf")
        found.metadata = with_words(dict(found.metadata))
        llmconv.save(found, path)
    return path


def resident_and_streamed(path: Path, patch: pytest.MonkeyPatch) -> tuple[float, float]:
    """A model's perplexity over some words, in memory and with its layers left in the file."""
    patch.setattr(streaming, "BATCH", 32)  # results inside a layer are smaller than weights
    patch.setattr(streaming, "_TILE", 0)
    text = path.with_suffix(".txt")
    text.write_text(" ".join(WORDS[i * 7 % len(WORDS)] for i in range(200)))
    whole = llmconv.perplexity(path, text, context=32, device="cpu")
    memory = sum(t.n_elements for t in llmconv.open(path).tensors.values()) * 4 - 1
    model = llmconv.load(path, "cpu", memory=memory)
    assert model.wants is not None
    return whole.perplexity, llmconv.perplexity(model, text, context=32).perplexity
