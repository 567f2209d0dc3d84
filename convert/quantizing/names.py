"""What the outputs of quantizing are called."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from llmconv.errors import UsageError, at
from llmconv.formats.places import names as places
from llmconv.quant.filetypes import FILE_TYPES, FileType

__all__ = ["targets"]

_TYPE_SUFFIX = re.compile(rf"[-._](?:{'|'.join(map(re.escape, [*FILE_TYPES, 'FP16', 'FP32']))})$", re.IGNORECASE)
_SHARD_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")


def targets(src: Path | None, dst: str | os.PathLike[str] | None, types: Sequence[FileType]) -> list[Path]:
    """The file for each type."""
    if dst is None and src is None:
        raise UsageError("a model made in memory has no name to call its output by; name the output")
    src = src or Path("model")
    if dst is not None:
        path = Path(dst)
        if "{type}" in path.name:
            return [path.with_name(path.name.replace("{type}", t.name)) for t in types]
        if not path.is_dir():
            if len(types) == 1:
                return [path]
            if path.suffix == ".gguf" or path.exists():
                raise UsageError(
                    f"{at(path)}: is one name for {len(types)} outputs; give a folder or a name with {{type}}"
                )
        folder = path
    else:
        folder = places.beside(src)
    stem = _TYPE_SUFFIX.sub("", _SHARD_SUFFIX.sub("", places.called(src)))
    return [folder / f"{stem}-{t.name}.gguf" for t in types]
