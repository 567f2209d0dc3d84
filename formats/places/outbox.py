"""Files on their way to a repository of the Hub: each is sent as soon as it is finished, then removed; one commit.

The Hub takes a file by its SHA-256, so that its last byte is known before its first is sent: what streams up are whole
files.  They lie in `NAME.upload` where the caller is: the one that is being made, and the one before it, which is being
sent meanwhile.  `sent.json` there says what arrived; after a failure it stays, and the same call goes on from it.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from llmconv.errors import OutputError, OutputExists, UsageError, at
from llmconv.formats.places import hub, upload
from llmconv.formats.places.remote import RemotePath
from llmconv.progress import Meter, Progress

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["LARGEST", "Outbox", "Planned", "current", "is_hub", "size_of"]

LARGEST = 45 << 30
"""Bytes of a file: the Hub takes none of more than 50 GB."""
_JOURNAL = "sent.json"
_SMALL = 32 << 20  # bytes: no larger file is a part of a commit
_SAMPLE = 512  # a file's first bytes, which the Hub asks for
_now: ContextVar[Outbox | None] = ContextVar("outbox", default=None)
_waiting: ContextVar[Mapping[Path, Path]] = ContextVar("waiting", default=MappingProxyType({}))


def is_hub(target: Any) -> bool:
    """Whether a target is an address of the Hub."""
    return target is not None and str(target).startswith("hf:")


def current() -> Outbox | None:
    """The one that files are given to as they are finished, if there is one."""
    return _now.get()


def wait(finished: Mapping[Path, Path]) -> None:
    """Say under which names files lie that are finished, and get theirs later; none: nothing waits any more."""
    _waiting.set({**_waiting.get(), **finished} if finished else {})


def size_of(path: Path) -> int:
    """Bytes of a file that was written, which may be sent and gone, or wait for others to get its name."""
    box, path = current(), _waiting.get().get(path, path)
    return box.sizes[path] if box is not None and path in box.sizes else path.stat().st_size


class Outbox:
    """See above; as a context manager.

    address: `hf://ORG/NAME[@BRANCH][/FOLDER][/FILE.gguf]`.   force: files of these names there are replaced.
    root: the folder to write files in;   file: the name asked for, or "".   sizes: of what was given.
    made_of: whatever decides the bytes besides the header of a file: what an earlier call sent counts if it was the
        same.   metadata: of the model, for a card.
    """

    def __init__(self, address: str, *, force: bool = False, progress: Progress | None = None):
        parts = str(address).rstrip("/").split("/")
        self.file = parts.pop() if parts[-1].lower().endswith(".gguf") else ""
        self.to = upload.destination("/".join(parts))
        self.folder = Path(f"{self.to.repo.partition('/')[2]}.upload")
        self.root = self.folder / "files"
        self.sizes: dict[Path, int] = {}
        self.made_of: Any = None
        self.metadata: Mapping[str, Any] = {}
        self._force, self._progress = force, progress
        self._operations: dict[str, Any] = {}
        self._earlier: list[Future[None]] = []
        self._latest: list[Future[None]] = []
        self._digests: dict[Path, str] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._there: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Outbox:
        from concurrent.futures import ThreadPoolExecutor

        self._library = hub.library()
        self._api = self._library.HfApi(endpoint=hub.endpoint())
        self._there = upload.prepared(self._api, self.to)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{at(self.folder)}: can't be made ({error.strerror}); run it elsewhere") from None
        with contextlib.suppress(OSError, ValueError):
            self._known = dict(json.loads((self.folder / _JOURNAL).read_bytes()))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="llmconv-send")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if kind is None or (not self._known and not any(path.is_file() for path in self.root.rglob("*"))):
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def taking(self) -> Iterator[None]:
        """What is written meanwhile is given to it, file by file."""
        token = _now.set(self)
        try:
            yield
        finally:
            _now.reset(token)

    def name(self, path: Path) -> str:
        """A file's path in the repository."""
        inside = path.relative_to(self.root).as_posix()
        return self.to.folder if inside == "." else self.to.name(inside)

    def address(self, path: Path) -> Path:
        """Where a file is to be had."""
        place = str(upload.Destination(self.to.repo, self.to.revision)).removeprefix("hf://")
        return RemotePath("hf:", *place.split("/"), *self.name(path).split("/"))

    def claim(self, *paths: Path) -> None:
        """`OutputExists` when a file is in the repository."""
        taken = next((path for path in paths if self.name(path) in self._there), None)
        if taken is not None and not self._force:
            address = self.address(taken)
            raise OutputExists(address, f"{at(address)}: exists already; use --force to replace it, or another name")

    def check_room(self, size: int) -> None:
        """`OutputError` when the disk has no room for files of so many bytes, made and sent at once."""
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise OutputError(
                f"{at(self.folder)}: needs {size:,} bytes until they are sent but the disk has {free:,} free; give a "
                "smaller --split-max-size, or run it elsewhere"
            )

    def has(self, path: Path, head: bytes | str, size: int = 0) -> bool:
        """Whether an earlier call made this file: it is sent, or will be.   head: its header, or what stands for it."""
        import hashlib  # loads OpenSSL, which a local file needs not

        raw = head if isinstance(head, bytes) else head.encode()
        digest = hashlib.sha256(raw + json.dumps(self.made_of, default=str).encode()).hexdigest()
        self._digests[path] = digest
        known = self._known.get(self.name(path), {})
        if self.made_of is None or known.get("of") != digest:
            return False
        if path.is_file():
            self.put(path)
            return True
        if "sha256" not in known or not self._arrived(self.name(path), known):
            return False
        self.sizes[path] = int(known["size"])
        return True

    def begin(self) -> None:
        """Files are made next: wait until what was made before the last is sent, so that the disk holds no more."""
        self._wait(self._earlier)
        self._earlier, self._latest = self._latest, []

    def put(self, path: Path) -> None:
        """Send a finished file, in a thread, and remove it; one that was given already is on its way."""
        if path in self.sizes:
            return
        self.claim(path)
        self.sizes[path] = path.stat().st_size
        if path in self._digests:
            self._note(self.name(path), of=self._digests[path])
        self._latest.append(self._pool.submit(self._send, path))

    def commit(self, message: str, more: Mapping[str, str]) -> str:
        """Wait for all of them, and commit them, with these texts where no such file is; the commit's address."""
        self._wait(self._earlier + self._latest)
        there = {*self._there, *self._operations}
        texts = {self.to.name(name): text.encode() for name, text in more.items() if self.to.name(name) not in there}
        if not self._operations:
            raise UsageError("there is nothing to upload; name a model")
        additions = [self._operations[name] for name in sorted(self._operations)]
        additions += [self._library.CommitOperationAdd(path_in_repo=n, path_or_fileobj=raw) for n, raw in texts.items()]
        return upload.committed(self._api, self.to, additions, message)

    def _wait(self, sent: list[Future[None]]) -> None:
        meter = Meter(self._progress, "upload", len(sent), "files")
        for one in sent:
            one.result()
            meter(1)

    def _send(self, path: Path) -> None:
        """Bytes of a file that is sent by itself (a large one); a small one is kept for the commit."""
        name = self.name(path)
        with path.open("rb") as file:
            sample = file.read(_SAMPLE)
        made = upload.sent(self._library, self._api, self.to, name, path)
        if made.path_or_fileobj != b"":  # not sent: it is a part of the commit
            if self.sizes[path] > _SMALL:
                raise OutputError(
                    f"{at(str(self.to))}: its .gitignore leaves {name} out; change that, or choose another name"
                )
            made.path_or_fileobj = path.read_bytes()
        elif path in self._digests:
            info = made.upload_info
            how = {"sha256": info.sha256.hex(), "size": info.size, "sample": base64.b64encode(sample).decode()}
            self._note(name, **how)
        self._operations[name] = made
        path.unlink()

    def _note(self, name: str, **what: Any) -> None:
        """Write down what is known of a file; "of" begins anew."""
        with self._lock:
            before = {} if "of" in what else self._known.get(name, {})
            self._known = {**self._known, name: {**before, **what}}
            new = self.folder / f"{_JOURNAL}.new"
            new.write_text(json.dumps(self._known))
            new.replace(self.folder / _JOURNAL)

    def _arrived(self, name: str, known: Mapping[str, Any]) -> bool:
        """Whether the bytes of a file are still there, which the commit then only names."""
        from huggingface_hub.lfs import UploadInfo

        gone = _Gone()
        info = UploadInfo(
            sha256=bytes.fromhex(known["sha256"]), size=int(known["size"]), sample=base64.b64decode(known["sample"])
        )
        made = self._library.CommitOperationAdd(path_in_repo=name, path_or_fileobj=b"")
        made.upload_info, made.path_or_fileobj = info, gone
        try:
            upload.preuploaded(self._library, self._api, self.to, made)
        except OutputError:
            if gone.asked:
                return False
            raise
        self._operations[name] = made
        return bool(made.path_or_fileobj == b"")


class Planned(Outbox):
    """An outbox that only says in `sizes` which files would be sent: none is made, and nobody is asked anything."""

    def __enter__(self) -> Planned:
        self._room = tempfile.TemporaryDirectory()  # for small side files, which are written to be counted
        self.root = Path(self._room.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._room.cleanup()

    def claim(self, *paths: Path) -> None:
        pass

    def check_room(self, size: int) -> None:
        pass

    def begin(self) -> None:
        pass

    def has(self, path: Path, head: bytes | str, size: int = 0) -> bool:
        self.sizes[path] = size
        return True

    def put(self, path: Path) -> None:
        if path not in self.sizes:
            self.sizes[path] = path.stat().st_size
            path.unlink()


class _Gone(io.BufferedIOBase):
    """In place of a file that was sent and removed.   asked: whether somebody wanted its bytes after all."""

    asked = False

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        self.asked = True
        raise LookupError("was removed after it was sent")
