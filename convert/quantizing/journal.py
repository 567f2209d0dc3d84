"""Outputs of a run that can be continued: `NAME.partial` holds what is written, `NAME.partial.journal` says what is.

The journal is lines of JSON: first what the run was made from (`identity`), then the names of tensors that are complete
and flushed to the disk.  A run with the same identity goes on after them; any other is refused in a sentence.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmconv.convert.quantizing.plan import FilePlan
from llmconv.errors import OutputError, at, telling
from llmconv.formats.files import open_regular
from llmconv.formats.places.remote import RemotePath
from llmconv.formats.sharing.team import current
from llmconv.formats.writing.checks import by_first, output_errors
from llmconv.formats.writing.outputs import Output

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Partial", "digest", "fingerprint", "partials"]

_EVERY = 2.0  # seconds between flushes to the disk
_MOST_JOURNAL = 64 << 20
_HEAD = 1 << 20  # bytes of an input that its fingerprint covers, besides its size and time


def fingerprint(path: Path) -> dict[str, Any]:
    """What an input file is recognised by: name, size, time of change and a hash of its first megabyte, or its tag."""
    if isinstance(path, RemotePath):
        entry = path.entry
        return {"name": path.name, "size": entry.size, "tag": entry.tag} if entry else {"name": path.name}
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        head = hashlib.sha256(file.read(_HEAD)).hexdigest()
    return {
        "name": path.name,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "head_sha256": head,
    }


def digest(file: FilePlan, allow_nonfinite: bool) -> str:
    """A hash of everything that decides the file's bytes, besides the weights: header, types, importance."""
    found = hashlib.sha256(file.head + bytes([allow_nonfinite]))
    for tensor in file.tensors:
        if tensor.importance is not None:
            found.update(tensor.importance.tobytes())
    return found.hexdigest()


class Partial(Output):
    """An `Output` whose temporary has a name of its own and stays when the run is interrupted.

    size: the finished file's.
    identity: JSON values that say what the run is; a partial file of another identity is refused, or begun again
        with `force`.
    done: after `create`, the names of tensors that an earlier run completed.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        *,
        force: bool = False,
        inputs: Sequence[Path] = (),
        size: int = 0,
    ):
        temporary = path.with_name(path.name + ".partial")
        self._size = size
        with contextlib.suppress(OSError):
            size -= temporary.stat().st_blocks * 512
        super().__init__(path, force=force, inputs=inputs, size=max(0, size))
        self.temporary = temporary
        self.journal = path.with_name(path.name + ".partial.journal")
        self.done = frozenset()
        self._identity = json.loads(json.dumps(identity))
        self._waiting: list[str] = []
        self._flushed = time.monotonic()

    def create(self) -> None:
        self.done = by_first(self._taken_up)
        team = current()
        if team is not None and team.rank:
            with output_errors(self.temporary):
                self.file = os.fdopen(os.open(self.temporary, os.O_RDWR | getattr(os, "O_BINARY", 0)), "r+b", 0)

    def _taken_up(self) -> frozenset[str]:
        """Open and lock the temporary, and begin anew where the journal is about another; what is complete in it."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        with output_errors(self.temporary):
            self.file = os.fdopen(os.open(self.temporary, flags, 0o666), "r+b", buffering=0)
        if fcntl is not None:
            try:
                fcntl.flock(self.file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    self.file.close()
                    raise OutputError(f"{at(self.temporary)}: another run is writing it; wait for it") from None
        self.done = frozenset(self._read_journal())
        if os.fstat(self.file.fileno()).st_size != self._size:  # not what the journal is about
            self.done = frozenset()
        if not self.done:
            with output_errors(self.journal):
                os.truncate(self.file.fileno(), 0)
                self.journal.write_text(json.dumps({"identity": self._identity}) + "\n")
        return frozenset(self.done)

    def _read_journal(self) -> set[str]:
        """Tensors that are complete; none when there is no journal, or an unreadable or other one and `force`."""
        try:
            with open(self.journal, "rb") as file:
                lines = file.read(_MOST_JOURNAL).split(b"\n")
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise OutputError(f"{at(self.journal)}: can't be read ({error.strerror})") from None
        lines.pop()  # what follows the last line's end was cut off
        try:
            old = json.loads(lines[0])["identity"] if lines else self._identity
            done = {name for line in lines[1:] for name in json.loads(line)["done"]}
        except (ValueError, KeyError, TypeError, RecursionError):
            old, done = None, set()
        if old == self._identity:
            return done
        if self.force:
            return set()
        differs = [key for key in self._identity if not isinstance(old, dict) or old.get(key) != self._identity[key]]
        raise OutputError(
            f"{at(self.temporary)}: is of a run with other {differs[0] if differs else 'options'}; "
            "give the same input and options, delete it, or start over with --force"
        )

    def complete(self, name: str) -> None:
        """Note that all of a tensor is written; it counts once it is flushed, every few seconds."""
        self._waiting.append(name)
        if time.monotonic() - self._flushed > _EVERY:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        with output_errors(self.path):
            os.fsync(self.file.fileno())
            with open(self.journal, "ab") as journal:
                journal.write(json.dumps({"done": self._waiting}).encode() + b"\n")
                journal.flush()
                os.fsync(journal.fileno())
        self._waiting = []
        self._flushed = time.monotonic()

    def publish(self) -> None:
        super().publish()
        with contextlib.suppress(OSError):
            self.journal.unlink()
        with contextlib.suppress(OSError):
            self.temporary.unlink()  # the other name of the finished file, where it was linked

    def discard(self) -> None:
        """Close the file, and keep what is complete."""
        with contextlib.suppress(OSError, AttributeError, OutputError, ValueError):
            self.flush()
        with contextlib.suppress(OSError, AttributeError):
            self.file.close()


def _publish(outputs: Sequence[Partial]) -> None:
    for out in outputs:
        with output_errors(out.path):
            out.publish()


def _agree(error: BaseException | None = None) -> None:
    team = current()
    if team is not None:
        team.agree(error)


@contextlib.contextmanager
def partials(outputs: Sequence[Partial]) -> Iterator[Sequence[Partial]]:
    """Write several; all are flushed before the first gets its name.  On an error all are kept as they are."""
    try:
        try:
            for out in outputs:
                out.create()
            kept = ", ".join(str(out.temporary) for out in outputs)
            with (
                output_errors(outputs[0].path if outputs else Path()),
                telling(f"the same command goes on from {kept}"),
            ):
                yield outputs
            for out in outputs:
                out.finish()
        except BaseException as error:
            _agree(error)
            raise
        _agree()
        by_first(lambda: _publish(outputs))
    finally:
        for out in outputs:
            out.discard()
