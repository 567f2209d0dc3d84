"""A vocabulary without weights: the tokenizer of a folder as a GGUF, and of a GGUF as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmconv import formats
from llmconv.convert import archs, cards, vocab
from llmconv.convert.dialects import carried
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.config import normalized, read_config
from llmconv.convert.vocab.read.folder import is_mine
from llmconv.convert.vocab.side_files import CUT, WHOLE
from llmconv.errors import BadFile, Unsupported, UsageError, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.places import names as places
from llmconv.formats.writing.outputs import Outputs

__all__ = ["is_vocab_only", "write"]

_ARCHITECTURES = {"bert": "bert", "t5": "t5"}
"""What a GGUF is said to be where no config.json tells: llama.cpp loads none that says nothing."""


def is_vocab_only(checkpoint: Checkpoint) -> bool:
    """Whether a file holds a vocabulary and no weights."""
    return not checkpoint.tensors and "tokenizer.ggml.tokens" in checkpoint.metadata


def write(source: Path, target: Path, *, pre: str | None = None, force: bool = False) -> tuple[list[Path], list[str]]:
    """Write the vocabulary of `source` (what `vocab.load` takes) to a GGUF or a folder; the files, and notes.

    The other keys of a GGUF, and a folder's config.json, go along.  `UsageError` without a vocabulary or for another
    kind of target.
    """
    gguf = _gguf(source)
    found = (gguf and vocab.of(gguf, pre=pre)) or vocab.load(source, pre=pre)
    if target.suffix.lower() == ".gguf":
        metadata, notes = _metadata(source, gguf, found)
        metadata |= vocab.to_gguf(found)
        paths = formats.by_name("gguf").save(Checkpoint(metadata=metadata, source=source), target, force=force)
        return list(paths), [*notes, *found.notes, *found.twice()]
    if target.suffix.lower() in (".safetensors", ".json", ".msgpack"):
        raise UsageError(f"{at(target)}: a vocabulary alone goes into a .gguf file or a folder; give one of these")
    files = _kept(source, gguf) | vocab.to_files(found)
    if not files:
        raise Unsupported(f"{at(source)}: no tokenizer file can say what its {found.model!r} vocabulary does")
    sizes = {target / name: len(data) for name, data in files.items()}
    with Outputs(sizes, force=force, folder=target) as outputs:
        for path, data in zip(sizes, files.values(), strict=True):
            with outputs.open(path) as out:
                out.file.write(data)
    return list(sizes), [*found.notes, *found.twice()]


def _metadata(source: Path, gguf: Checkpoint | None, found: vocab.Vocab) -> tuple[dict[str, Any], list[str]]:
    """What a GGUF says besides its vocabulary, and notes."""
    if gguf is not None:
        return {k: v for k, v in gguf.metadata.items() if not _of_vocabulary(k)}, []
    folder = source if source.is_dir() else source.parent
    config = folder / "config.json"
    out: dict[str, Any] = {"general.architecture": "", "general.type": "model"}
    checkpoint = Checkpoint(files={"config.json": config} if config.is_file() else {}, source=folder)
    settings = read_config(checkpoint)
    about = {n: folder / n for n in ("README.md", "generation_config.json") if (folder / n).is_file()}
    out |= cards.keys_of(checkpoint.but(files=about), settings, places.called(folder), 0)[0]
    arch = archs.by_hf(settings) if settings else None
    if arch is not None:
        keys = arch.metadata(normalized(settings), f"{at(folder)}: config.json")
        carried.keep_files(out, checkpoint)
        return out | {"general.architecture": arch.gguf} | dict(keys), []
    out["general.architecture"] = name = _ARCHITECTURES.get(found.model, "llama")
    return out, [f"no config.json says which architecture this is: the GGUF says {name}, so that llama.cpp loads it"]


def _gguf(source: Path) -> Checkpoint | None:
    """The source opened, where it is a GGUF."""
    try:
        checkpoint = formats.open(source)
    except BadFile:
        return None  # a tokenizer's files and no model
    return checkpoint if checkpoint.dialect == "gguf" else None


def _of_vocabulary(key: str) -> bool:
    if key.startswith((WHOLE, CUT)):
        return is_mine(key.removeprefix(WHOLE).removeprefix(CUT))
    return key.startswith(("tokenizer.", own_keys.TOKENIZER))


def _kept(source: Path, gguf: Checkpoint | None) -> dict[str, bytes]:
    """The config.json that a GGUF keeps, or that lies in the folder."""
    if gguf is not None:
        return {name: data for name, data in carried.kept_files(gguf.metadata).items() if name == "config.json"}
    config = source / "config.json"
    return {"config.json": config.read_bytes()} if config.is_file() else {}
