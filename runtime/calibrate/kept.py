"""What an interrupted rounding has done, for the same command to go on from: `NAME.rounded.partial`.

A line of JSON says what the run is; then come records, each complete or as if it were not there: eight bytes of length,
a line of JSON (a tensor's name, what it costs, its shape, a checksum), its blocks, and the importance of its columns.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from typing import IO, Any

import numpy as np

from llmconv.convert.quantizing.calibrated import Keeping
from llmconv.errors import OutputError, at
from llmconv.formats.sharing.team import current
from llmconv.formats.writing.checks import output_errors
from llmconv.runtime.calibrate.matrices import Rounded
from llmconv.runtime.calibrate.sofar import of_another

__all__ = ["Rounds"]

_MOST_LINE = 1 << 20


class Rounds:
    """identity: JSON values that say what the run is."""

    def __init__(self, keeping: Keeping, identity: Any):
        self.path, self._force = keeping.rounded, keeping.force
        said = json.dumps([keeping.made_of, identity], sort_keys=True)
        self._head = json.dumps({"identity": hashlib.sha256(said.encode()).hexdigest()}).encode() + b"\n"
        self._end = 0
        self.complete: set[str] = set()
        """Of each layer that is done, its first tensor."""

    def found(self) -> dict[str, Rounded]:
        """What an earlier run left."""
        found, team = self._found(), current()
        if team is not None:
            team.agree()  # that all have read it, before the first adds to it
        return found

    def _found(self) -> dict[str, Rounded]:
        try:
            with open(self.path, "rb") as file:
                head = file.readline(_MOST_LINE)
                if head != self._head:
                    if not self._force and head.endswith(b"\n"):
                        raise of_another(self.path)
                    return {}
                found: dict[str, Rounded] = {}
                self._end = file.tell()
                while (record := self._read(file)) is not None:
                    name, made = record
                    if made is None:
                        self.complete.add(name)
                    else:
                        found[name] = made
                    self._end = file.tell()
                return found
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise OutputError(f"{at(self.path)}: can't be read ({error.strerror})") from None

    def _read(self, file: IO[bytes]) -> tuple[str, Rounded | None] | None:
        """The next record, without a tensor where a layer is done; None where it is cut off or damaged, and the end."""
        try:
            size = int.from_bytes(file.read(8), "little")
            line = file.readline(min(size, _MOST_LINE))
            said = json.loads(line)
            data = file.read(size - len(line))
            if len(data) != size - len(line) or zlib.crc32(data) != said["crc32"]:
                return None
            if "shape" not in said:
                return str(said["name"]), None
            rows, width = said["shape"]
            blocks = np.frombuffer(data, np.uint8, rows * width).reshape(rows, width)
            columns = np.frombuffer(data, np.float32, offset=blocks.nbytes).reshape(said["matrices"], -1)
            return str(said["name"]), Rounded(blocks, said["before"], said["after"], list(columns))
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return None

    def add(self, name: str, made: Rounded) -> None:
        """Keep a tensor."""
        blocks = np.ascontiguousarray(made.blocks[:])
        data = blocks.tobytes() + np.stack(made.importance).astype(np.float32).tobytes()
        said: dict[str, Any] = {"name": name, "before": made.before, "after": made.after, "shape": list(blocks.shape)}
        self._add(said | {"matrices": len(made.importance)}, data)

    def settle(self, first: str) -> None:
        """Note that a layer is done."""
        self._add({"name": first}, b"")

    def _add(self, said: dict[str, Any], data: bytes) -> None:
        """One record; of several processes the first writes it."""
        team = current()
        if team is not None and team.rank:
            return
        line = json.dumps(said | {"crc32": zlib.crc32(data)}).encode() + b"\n"
        with output_errors(self.path), open(self.path, "r+b" if self._end else "wb") as file:
            if not self._end:
                file.write(self._head)
            else:
                file.truncate(self._end)
                file.seek(self._end)
            file.write((len(line) + len(data)).to_bytes(8, "little") + line + data)
            file.flush()
            os.fsync(file.fileno())
            self._end = file.tell()
