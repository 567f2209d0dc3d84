"""`Tower`: what a multimodal model has beside its text model, Hugging Face <-> llama.cpp's mmproj files.

An mmproj file (`general.architecture` "clip") holds one side or two: what turns pictures into vectors of the text
model's width, and what turns sound into them.  Each side is a table as a text family is, over the keys `clip.vision.*`
or `clip.audio.*`; its settings are looked up in what `Side.settings` puts together of a folder's files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmconv import formats
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import Settings, look_up, read_config, text_config
from llmconv.convert.tables.rows import Row, Slot, slots
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

__all__ = ["CLIP", "Side", "Tower", "processors"]

CLIP = "clip"
"""`general.architecture` of mmproj files."""


def processors(folder: Checkpoint) -> dict[str, Any]:
    """What a folder says of how pictures and sound are prepared; processor_config.json wins, as in llama.cpp's."""
    found: dict[str, Any] = {}
    for name, inner in (("preprocessor_config.json", "media_proc_cfg"), ("processor_config.json", "image_processor")):
        try:
            said = json.loads(folder.file(name) or b"{}")
        except (ValueError, RecursionError):
            continue  # nothing else here reads the file; what it should say is missed where it is needed
        if isinstance(said, dict):
            more = said.get(inner)
            found |= said | (more if isinstance(more, dict) else {})
    return found


def _shapes(folder: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in folder.tensors.items()}


@dataclass(frozen=True)
class Side:
    """What a tower makes of pictures, or of sound.

    table: rows and keys; its name in GGUF is "clip.vision" or "clip.audio".
    at: where its settings stand in config.json, dots for objects; "" where they are among the outer ones.
    measured: dimensions that no key says, and the tensor and axis that do: {"n_mid": ("mm.1.weight", 0)}; an axis may
        be counted from behind, as a folder may have more of them.
    made: (folder, settings) -> tensors that are no tensors of the tower in the folder (a token's vector).
    optional: whether some models of the class do without; then config.json has no object there.
    beside: a folder within the model's, another model's, of whose tensors `made` makes some.
    more: (keys, shapes of the tensors at hand, the folder's or the GGUF's) -> further rows, of towers whose tensors
        are called by settings, or are as many as there are.
    """

    table: Architecture
    at: str
    measured: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    made: Callable[[Checkpoint, Mapping[str, Any]], Iterable[Tensor]] = lambda folder, settings: ()
    optional: bool = False
    beside: str = ""
    more: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], Iterable[Row]] = lambda keys, shapes: ()

    def slots(
        self, metadata: Mapping[str, Any], dims: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> Iterator[Slot]:
        """Every row at every layer where it exists; shapes: of the tensors at hand."""
        yield from self.table.slots(dims)
        yield from slots(self.more(metadata, shapes), dims)

    def is_in(self, config: Mapping[str, Any], folder: Checkpoint) -> bool:
        """Whether a model of this config.json and folder has the side."""
        if self.optional and self.beside:
            return self.within(folder) is not None
        return not self.optional or isinstance(look_up(config, (self.at,)), Mapping)

    def is_said(self, metadata: Mapping[str, Any]) -> bool:
        """Whether an mmproj file of these keys has the side."""
        return not self.optional or f"{self.table.gguf}.block_count" in metadata

    def settings(self, config: Mapping[str, Any], folder: Checkpoint) -> Settings:
        """The side's settings; `outer`: all of config.json; `text`: the text model's; `processor`: other files';
        `shapes`: of the folder's tensors, by name; `folder`: its own; `beside`: the settings of a folder within, and
        its `shapes`."""
        own = look_up(config, (self.at,)) if self.at else config
        own = dict(own) if isinstance(own, Mapping) else {}
        text = {**config, **text_config(config)}
        around: dict[str, Any] = {
            "outer": dict(config),
            "text": text,
            "processor": processors(folder),
            "shapes": _shapes(folder),
        }
        around["folder"] = folder.source.name if folder.source is not None else ""
        if (place := self.within(folder)) is not None:
            inner = formats.open(place)
            around["beside"] = {**read_config(inner), "shapes": _shapes(inner)}
        return Settings(own | around)

    def within(self, folder: Checkpoint) -> Path | None:
        """The folder within the model's that `beside` names, if it is there."""
        place = folder.source / self.beside if folder.source is not None and self.beside else None
        return place if place is not None and place.is_dir() else None

    def dims(self, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The dimensions that keys say, and those that tensors do; shapes: of the tensors that `measured` names."""
        dims = self.table.dims_of(metadata)
        deep = metadata.get(f"{self.table.gguf}.is_deepstack_layers", ())
        dims["deep"] = [sum(map(bool, deep[: i + 1])) if flag else 0 for i, flag in enumerate(deep)]
        for name, (tensor, axis) in self.measured.items():
            shape = shapes.get(tensor, ())
            dims[name] = shape[axis] if -len(shape) <= axis < len(shape) else 0
        return dims

    def theirs(self, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors that `measured` names, in a folder."""
        wanted = {tensor for tensor, _ in self.measured.values()}
        found: dict[str, tuple[int, ...]] = {}
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        for row in (*self.table.rows, *self.more(metadata, shapes)):
            first = [name.replace("{i}", "0") for name in row.gguf]
            for name in wanted.intersection(first):
                for form in row.forms:
                    theirs = form.patterns[min(first.index(name), len(form.patterns) - 1)].replace("{i}", "0")
                    if theirs in tensors:
                        found.setdefault(name, tensors[theirs].shape)
        return found


@dataclass(frozen=True)
class Tower:
    """What the multimodal classes of a kind have beside their text model.

    projector: `clip.projector_type`.   classes: of transformers, or of the model's own code.
    model_type: what a config.json rebuilt from a GGUF alone calls the model; its class is the first.
    starts: how the names of the tower's tensors begin, in the table's spelling.
    spellings: (regular expression, replacement): other ways in which files write names -> the table's.
    dropped: tensors computed from the configuration.   kept: those that llama.cpp leaves out, carried along.
    text: (beginning of the text table's usual names, that of the text model's names inside this class).
    written: (beginning of the table's names, that of the names in published files), where these differ.
    flat: the text model's settings stand among the outer ones.   inner: else where in config.json they are.
    projectors: further names of the projector, of towers with a kind for each side.
    fits: of towers of one class, whether a config.json is this one's.
    made: how names of a GGUF's tensors begin that are made of other files than a folder's own weights.
    agree: (settings around a text model, rebuilt; the text model's) -> the former, where the latter say more of them.
    shared: tensors that both halves are made of.
    unsaid: its folders have no config.json (see `convert.tables.implied`).
    told: a tensor of the GGUF by which towers of one projector are told apart; "!name": that is not there.
    """

    projector: str
    classes: tuple[str, ...]
    model_type: str
    sides: tuple[Side, ...]
    starts: tuple[str, ...]
    spellings: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    text: tuple[tuple[str, str], ...] = (("model.", "language_model.model."), ("lm_head.", "language_model.lm_head."))
    written: tuple[tuple[str, str], ...] = ()
    flat: bool = False
    inner: str = "text_config"
    told: str = ""
    projectors: tuple[str, ...] = ()
    fits: Callable[[Mapping[str, Any]], bool] = lambda config: True
    made: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    unsaid: bool = False
    agree: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda outer, text: outer

    def spelled(self, name: str) -> str:
        """A tensor's name as the table has it."""
        for pattern, new in self.spellings:
            name = re.sub(pattern, new, name)
        return name

    def has(self, name: str) -> bool:
        """Whether a tensor of the multimodal model is the tower's."""
        return self.spelled(name).startswith(self.starts)

    def shares(self, name: str) -> bool:
        """Whether a tensor of the tower is in the text model's half too."""
        return self.spelled(name) in self.shared

    def is_told(self, tensors: Mapping[str, Any]) -> bool:
        """Whether a GGUF's tensors are of this tower rather than another of its projector."""
        return (self.told[1:] not in tensors) if self.told.startswith("!") else (not self.told or self.told in tensors)
