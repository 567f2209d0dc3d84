"""The card of a repository of GGUF files: what their keys say of the model, and a table of the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv.convert.cards.about import CARD, are_texts, head_of
from llmconv.convert.cards.head import written
from llmconv.formats.checkpoint import Checkpoint
from llmconv.quant.filetypes import FILE_TYPES, GUESSED

__all__ = ["CARD", "Row", "card", "card_of"]


@dataclass(frozen=True)
class Row:
    """A model of the table.   files: their names.   bits: a weight.   nbytes: in all."""

    files: Sequence[str]
    type: str
    nbytes: int
    bits: float


def card_of(models: Sequence[Checkpoint], base_model: str | None = None) -> str:
    """README.md for these GGUF files, of one model in several types.

    base_model: ORG/NAME of what they were made from; None: the card names the models that the files name.
    """
    first = max(models, key=lambda model: len(model.metadata))
    return card(first.metadata, list(map(_row_of, models)), base_model)


def card(metadata: Mapping[str, Any], rows: Sequence[Row], base_model: str | None = None) -> str:
    """README.md of these files, of a model of these keys."""
    own = {k.removeprefix("general."): v for k, v in metadata.items() if k.startswith("general.")}
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
    lines = "".join(map(_line, sorted(rows, key=lambda row: -row.nbytes)))
    table = f"| file | type | size | bits a weight |\n|---|---|---:|---:|\n{lines}"
    end = "Runs in llama.cpp and whatever is built on it: `llama-cli -m FILE`.\n"
    return f"---\n{head}---\n\n# {title}, GGUF\n\n{made_of}{table}\n{end}"


def _line(row: Row) -> str:
    first, *more = row.files
    name = f"`{first}`" + (f" and {len(more)} more" if more else "")
    return f"| {name} | {row.type} | {row.nbytes / 1e6:,.1f} MB | {row.bits:.2f} |\n"


def _row_of(model: Checkpoint) -> Row:
    parts: Sequence[Path | None] = model.parts or [model.source]
    names = [part.name for part in parts if part is not None]
    return Row(names, _type(model), model.nbytes, 8 * model.nbytes / max(1, model.n_elements))


def _type(model: Checkpoint) -> str:
    """The file type that a model states, or the type of most of its weights."""
    stated: Any = model.metadata.get("general.file_type")
    number = int(stated) & ~GUESSED if isinstance(stated, int) or hasattr(stated, "__index__") else None
    found = next((t.name for t in FILE_TYPES.values() if t.number == number), None)
    weights: Counter[str] = Counter()
    for tensor in model.tensors.values():
        weights[tensor.type.name] += tensor.n_elements
    return found or (weights.most_common(1)[0][0] if weights else "")
