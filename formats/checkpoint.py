"""A checkpoint: what every container opens to and saves from."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmconv.errors import at
from llmconv.formats import guests
from llmconv.formats.tensor import Tensor
from llmconv.show import escaped

__all__ = ["Checkpoint"]


@dataclass(repr=False)
class Checkpoint:
    """Tensors and everything else that a container carried, nothing interpreted away.

    tensors: name -> `Tensor`, in file order; the names are those of `dialect`.
    metadata: what the container states about the model, in order.
        GGUF: key -> value; numpy scalars and arrays keep GGUF's exact type (`np.uint32(4)`, int8 arrays),
        str, bool, and sequences of str for string arrays (possibly lazy).  A Python int is written as uint32
        when it fits (else int32, uint64, int64), a Python float as float32.
        safetensors: the `__metadata__` map, str -> str.
        JSON / MessagePack: {"document": the document with its tensors cut out, ...} (see the JSON format).
    dialect: whose names the tensors bear: "gguf", "hf", "json", or "plain" (nobody's: a lone safetensors file).
    files: side files of a model folder, by name (config.json, tokenizer.json, ...): their path, or bytes.
    format: the container it was read from ("gguf", "safetensors", "json", "msgpack", ...), "" if made in memory.
    source: the file or folder it was opened from.
    parts: the files that hold its tensors, where a container was read.
    info: facts about the container (version, byte order, alignment, shards, style) that are no part of the model.
    notes: sentences that somebody who converts this model should read; they travel with it.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    dialect: str = "gguf"
    files: dict[str, Path | bytes] = field(default_factory=dict)
    format: str = ""
    source: Path | None = None
    info: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    parts: Sequence[Path] = ()

    def add(self, tensor: Tensor) -> None:
        self.tensors[tensor.name] = tensor

    @property
    def where(self) -> str:
        """How messages call it: its file or folder, or "model" if it was made in memory."""
        return at(self.source) if self.source else "model"

    def inputs(self) -> list[Path]:
        """Files that it may still be read from, which an output must not replace."""
        found = {tensor.extent.path for tensor in self.tensors.values() if tensor.extent is not None}
        found.update(self.parts, (file for file in self.files.values() if isinstance(file, Path)))
        return sorted(found | {self.source} if self.source is not None else found)

    def but(self, *notes: str, **changes: Any) -> Checkpoint:
        """This checkpoint with other fields and with further notes; nothing of it is shared with the original's."""
        own = {name: dict(getattr(self, name)) for name in ("tensors", "metadata", "files", "info")}
        return dataclasses.replace(self, **{**own, "notes": [*self.notes, *notes], **changes})

    def derived(self, dialect: str, **contents: Any) -> Checkpoint:
        """Another checkpoint of the same origin: where it comes from and its notes, nothing in it but `contents`."""
        return self.but(**{"tensors": {}, "metadata": {}, "files": {}, "dialect": dialect, **contents})

    def file(self, name: str) -> bytes | None:
        """The bytes of a side file, or None when there is none of that name; `BadFile` for a git-lfs pointer."""
        found = self.files.get(name)
        return guests.whole(found) if isinstance(found, Path) else found

    @property
    def n_elements(self) -> int:
        """Elements of all tensors (the parameter count, for a model without integer tensors)."""
        return sum(t.n_elements for t in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensor data."""
        return sum(t.nbytes for t in self.tensors.values())

    def __repr__(self) -> str:
        where = f" from {self.source}" if self.source else ""
        return f"<Checkpoint {self.dialect}, {len(self.tensors)} tensors, {self.n_elements:,} elements{where}>"

    def _repr_html_(self, most: int = 60) -> str:
        """The tensors as a table, for notebooks; at most `most` of them."""
        head = "".join(f"<th>{name}</th>" for name in ("tensor", "type", "shape", "bytes"))
        rows = [
            f"<tr><td><code>{escaped(t.name)}</code></td><td>{t.type.name}</td>"
            f"<td>{' × '.join(map(str, t.shape)) or 'scalar'}</td><td style='text-align:right'>{t.nbytes:,}</td></tr>"
            for t in itertools.islice(self.tensors.values(), most)
        ]
        if len(self.tensors) > most:
            rows.append(f"<tr><td colspan='4'>… {len(self.tensors) - most} more</td></tr>")
        return (
            f"<p>{escaped(repr(self)[1:-1])}</p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )
