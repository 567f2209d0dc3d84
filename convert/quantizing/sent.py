"""Quantized files that go to a repository of the Hub, a part at a time, and its card.

On the disk are the files that are being made and those before them, which are being sent meanwhile
(`places.outbox`): of each type a whole GGUF, or two parts of `split_max_size`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmconv.convert.cards.publishing import CARD, Row, card
from llmconv.convert.quantizing.plan import Recipe
from llmconv.convert.quantizing.quantized import Quantized
from llmconv.convert.writing.options import Writing
from llmconv.errors import UsageError
from llmconv.formats.gguf import gguf_file
from llmconv.formats.places.outbox import LARGEST, Outbox
from llmconv.formats.places.remote import RemotePath
from llmconv.formats.sharing.team import current
from llmconv.progress import Progress

__all__ = ["opened", "published", "sent"]


def opened(address: str, force: bool, progress: Progress | None) -> Outbox:
    """An outbox to write files in, once it is entered."""
    if current() is not None:
        raise UsageError(
            "several processes write to a disk that they share; name a folder there, then llmconv upload it"
        )
    return Outbox(address, force=force, progress=progress)


def sent(
    address: str, make: Callable[[Path, Recipe, Writing], Quantized], recipe: Recipe, writing: Writing, *, whole: bool
) -> Quantized:
    """What `make` writes, sent to an address of the Hub.   whole: only when all of it is written."""
    box = opened(address, writing.force, writing.progress)
    if writing.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            box.root = Path(folder)
            return _addressed(make(box.root / box.file, recipe, writing), box)
    if not (whole or recipe.keep_split or recipe.split_max_size):
        recipe = dataclasses.replace(recipe, split_max_size=LARGEST)
    with box:
        with contextlib.nullcontext() if whole else box.taking():
            result = make(box.root / box.file, recipe, dataclasses.replace(writing, force=True))
        for path in sorted(p for p in box.root.rglob("*") if p.is_file()) if whole else ():
            if path.suffix == ".gguf":
                box.metadata = gguf_file.open(path).metadata
            box.put(path)
        rows = [
            Row([path.name for path in made.paths], made.type, made.size, made.bits_per_weight)
            for made in result.outputs
        ]
        url = published(box, box.metadata, rows, result.source)
    return dataclasses.replace(_addressed(result, box), url=url)


def published(box: Outbox, metadata: Mapping[str, Any], rows: Sequence[Row], source: Path | None) -> str:
    """Commit what was given to an outbox, with a card where there is none; the commit's address."""
    base = "/".join(source.parts[1:3]).partition("@")[0] if isinstance(source, RemotePath) else ""
    base = base if source is not None and source.parts[0] == "hf:" else ""
    texts = {CARD: card(metadata, rows, base or None)} if metadata and not box.to.folder else {}
    first, *more = [name for row in rows for name in row.files]
    return box.commit(f"Upload {first}" + (f" and {len(more)} more" if more else ""), texts)


def _addressed(result: Quantized, box: Outbox) -> Quantized:
    """The result with the places where its files are to be had."""
    outputs = tuple(
        dataclasses.replace(made, paths=tuple(box.address(path) for path in made.paths)) for made in result.outputs
    )
    return dataclasses.replace(result, outputs=outputs)
