"""The card of a repository of GGUF files: what their keys say of the model, and a table of the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmconv.convert.cards.about import CARD, are_texts, head_of
from llmconv.convert.cards.head import written
from llmconv.formats.checkpoint import Checkpoint
from llmconv.quant.filetypes import FILE_TYPES, GUESSED

__all__ = ["CARD", "card_of"]


def card_of(models: Sequence[Checkpoint], base_model: str | None = None) -> str:
    """README.md for these GGUF files, of one model in several types.

    base_model: ORG/NAME of what they were made from; None: the card names the models that the files name.
    """
    first = max(models, key=lambda model: len(model.metadata))
    own = {k.removeprefix("general."): v for k, v in first.metadata.items() if k.startswith("general.")}
    if base_model is not None:
        own = {k: v for k, v in own.items() if not k.startswith("base_model.")}
    tags = own.get("tags")
    own["tags"] = list(dict.fromkeys([*(tags if tags and are_texts(tags) else ()), "gguf"]))
    head = head_of(own) + "library_name: gguf\n"
    if base_model is not None:
        head += written("base_model", base_model) + "base_model_relation: quantized\n"
    name = own.get("name")
    title = " ".join(name.split()) if isinstance(name, str) and name.strip() else "A model"
    made_of = f"Made from [{base_model}](https://huggingface.co/{base_model}).\n\n" if base_model else ""
    rows = sorted(models, key=lambda model: -model.nbytes)
    table = "| file | type | size | bits a weight |\n|---|---|---:|---:|\n" + "".join(map(_row, rows))
    end = "Runs in llama.cpp and whatever is built on it: `llama-cli -m FILE`.\n"
    return f"---\n{head}---\n\n# {title}, GGUF\n\n{made_of}{table}\n{end}"


def _row(model: Checkpoint) -> str:
    parts: Sequence[Path | None] = model.parts or [model.source]
    first, *more = [part.name for part in parts if part is not None]
    name = f"`{first}`" + (f" and {len(more)} more" if more else "")
    bits = 8 * model.nbytes / max(1, model.n_elements)
    return f"| {name} | {_type(model)} | {model.nbytes / 1e6:,.1f} MB | {bits:.2f} |\n"


def _type(model: Checkpoint) -> str:
    """The file type that a model states, or the type of most of its weights."""
    stated: Any = model.metadata.get("general.file_type")
    number = int(stated) & ~GUESSED if isinstance(stated, int) or hasattr(stated, "__index__") else None
    found = next((t.name for t in FILE_TYPES.values() if t.number == number), None)
    weights: Counter[str] = Counter()
    for tensor in model.tensors.values():
        weights[tensor.type.name] += tensor.n_elements
    return found or (weights.most_common(1)[0][0] if weights else "")
