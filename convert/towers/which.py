"""Which half of a multimodal model a file is, and what of a folder belongs to which: told without converting any."""

from __future__ import annotations

from llmconv.convert import archs, towers
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.config import read_config
from llmconv.convert.tables.tower import CLIP, Tower
from llmconv.errors import Unsupported
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["is_known", "is_text_half", "is_tower", "text_half", "tower_half", "tower_of"]


def is_tower(checkpoint: Checkpoint) -> bool:
    """Whether a GGUF is a multimodal model's other half."""
    name = checkpoint.metadata.get("general.architecture")
    return isinstance(name, str) and name == CLIP


def is_known(checkpoint: Checkpoint) -> bool:
    """Whether a GGUF is an mmproj file of a projector known here."""
    return is_tower(checkpoint) and towers.by_gguf(checkpoint.metadata, checkpoint.tensors) is not None


def is_text_half(checkpoint: Checkpoint) -> bool:
    """Whether a GGUF was made of the text model of a multimodal folder whose tower is known here."""
    said, table = (
        checkpoint.metadata.get(own_keys.CONFIG),
        archs.by_gguf(str(checkpoint.metadata.get("general.architecture"))),
    )
    if table is not None and table.unsaid:
        return checkpoint.dialect == "gguf"
    if is_tower(checkpoint) or not isinstance(said, str) or checkpoint.dialect != "gguf":
        return False
    return towers.by_config(read_config(checkpoint.but(files={"config.json": said.encode()}))) is not None


def tower_of(folder: Checkpoint) -> Tower | None:
    """The tower of a multimodal model folder that has tensors of one; None for any other."""
    if folder.dialect != "hf":
        return None
    tower = towers.by_config(read_config(folder))
    return tower if tower is not None and any(tower.has(n) and not tower.shares(n) for n in folder.tensors) else None


def text_half(folder: Checkpoint) -> tuple[Checkpoint, int]:
    """The folder without its tower's tensors, and how many these are."""
    tower = tower_of(folder)
    if tower is None:
        return folder, 0
    own = {name for name in folder.tensors if tower.has(name)}
    rest = {name: t for name, t in folder.tensors.items() if name not in own or tower.shares(name)}
    return folder.but(tensors=rest), len(own)


def tower_half(folder: Checkpoint) -> Checkpoint:
    """The folder with its tower's tensors alone; `Unsupported` where no tower is known here, or none is there."""
    tower = tower_of(folder)
    if tower is None:
        config = read_config(folder)
        classes = config.get("architectures")
        kind = classes[0] if isinstance(classes, list) and classes else config.get("model_type") or "the model"
        why = "has no tensors of its tower" if towers.by_config(config) else f"{kind!s:.60} has no tower known here"
        raise Unsupported(f"{folder.where}: {why}; leave --mmproj out to convert the text model")
    return folder.but(tensors={name: tensor for name, tensor in folder.tensors.items() if tower.has(name)})
