"""How a source is read: one value for converting, quantizing and whatever else opens a model."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass

from llmconv import formats
from llmconv.convert.dialects.gguf import check_gguf, check_not_empty
from llmconv.convert.tables import own_keys
from llmconv.convert.translate import translate
from llmconv.errors import UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.places.names import place

__all__ = ["Reading"]

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Reading:
    """What is said of a source besides its name.

    layout: the JSON layout, or "plain".  config, vocab: files that hold what a JSON model lacks.  pre: the name of the
    pre-tokenizer.  strict: refuse tensors that the architecture's table does not know.
    lora: folder of a PEFT adapter to merge in.  exclude: patterns of names of tensors to leave out.
    """

    layout: str | None = None
    config: StrPath | None = None
    vocab: StrPath | None = None
    pre: str | None = None
    strict: bool = True
    lora: StrPath | None = None
    exclude: Sequence[str] = ()

    def open(self, source: StrPath | Checkpoint) -> Checkpoint:
        """The source, the adapter merged in, without what is excluded."""
        checkpoint = source if isinstance(source, Checkpoint) else formats.open(source)
        if self.lora is not None:
            from llmconv.convert.writing.lora import merge

            checkpoint = merge(translate(checkpoint, "hf"), place(self.lora))
        if self.exclude:
            checkpoint = _without(checkpoint, self.exclude)
        if checkpoint.dialect != "json":  # a document's layout says what it has in place of arrays
            check_not_empty(checkpoint)
        return checkpoint

    def floats(self, source: StrPath | Checkpoint) -> Checkpoint:
        """The same for who changes the weights: those that are stored with scales as what they stand for."""
        checkpoint = self.open(source)
        if checkpoint.dialect == "gguf" and own_keys.SAFETENSORS_METADATA not in checkpoint.metadata:
            return checkpoint  # its block types hold their scales
        from llmconv.convert.scaled.unpack import unpack

        if checkpoint.dialect != "gguf":
            return unpack(checkpoint)
        named = self.translated(checkpoint, "plain")  # of codes and scales under their own names
        found = unpack(named)
        same = all(found.tensors.get(name) is tensor for name, tensor in named.tensors.items())
        return checkpoint if same else found

    def translated(self, checkpoint: Checkpoint, to: str) -> Checkpoint:
        """The checkpoint in another dialect."""
        if checkpoint.dialect == "gguf":
            check_gguf(checkpoint)
        return translate(
            checkpoint, to, layout=self.layout, config=self.config, vocab=self.vocab, pre=self.pre, strict=self.strict
        )

    def own_names(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint in nobody's dialect is to keep its names; a safetensors file's stay in another."""
        if checkpoint.format == "safetensors":
            return True
        from llmconv.convert.dialects import training_files  # as `translate` does: a GGUF needs no dialect

        return training_files.table_of(checkpoint, self.layout) is None

    def named(self, checkpoint: Checkpoint, dialect: str) -> Checkpoint:
        """The checkpoint in the dialect of a container: under its own names in "hf" where no table knows it."""
        if dialect == "program":
            return self._program(checkpoint)
        if dialect != "hf":
            return self.translated(checkpoint, dialect)
        if checkpoint.dialect == "hf" or (checkpoint.dialect == "plain" and self.own_names(checkpoint)):
            return checkpoint
        from llmconv.convert import archs
        from llmconv.convert.towers import which

        checkpoint = self.translated(checkpoint, "gguf")
        known = archs.by_gguf(str(checkpoint.metadata.get("general.architecture", ""))) is not None
        known = known or which.is_known(checkpoint)
        plain = not known or own_keys.is_plain(checkpoint.metadata) or own_keys.LAYERS in checkpoint.metadata
        return self.translated(checkpoint, "plain" if plain else "hf")

    def _program(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint as a training program's file: as it was, as a document of a layout, or names and tensors."""
        if self.layout in (None, "plain") and checkpoint.dialect == "plain":
            return checkpoint
        if checkpoint.dialect == "json":
            return (
                checkpoint
                if self.layout in (None, "plain")
                else self.translated(self.translated(checkpoint, "gguf"), "json")
            )
        made = self.translated(checkpoint, "gguf")
        document = self.layout not in (None, "plain") or own_keys.JSON_LAYOUT in made.metadata
        if document:
            return self.translated(made, "json")
        named = self.named(made, "hf")
        if named.dialect == "hf" or own_keys.GGUF_METADATA in named.metadata:
            named.notes.append("such a file takes names and tensors alone: settings and vocabulary are left out")
        return named


def _without(checkpoint: Checkpoint, patterns: Sequence[str]) -> Checkpoint:
    """The checkpoint without the tensors whose names match."""
    where = checkpoint.where
    if checkpoint.dialect == "json":
        raise UsageError(f"{where}: a document needs all of its tensors; convert it first, then --exclude")
    gone: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = fnmatch.filter(checkpoint.tensors, pattern)
        if not found:
            raise UsageError(f"{where}: --exclude {pattern!r} fits no tensor; llmconv inspect --tensors lists them")
        gone.update(found)
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in gone}
    note = f"{len(gone)} tensors left out, as asked"
    return checkpoint.but(note, tensors=tensors)
