"""Repositories of the Hugging Face Hub, through `huggingface_hub`: its endpoint, token, cache and session.

A revision is looked up once and everything is read of that commit; each answer must be of the size and tag that the
listing gave, and a file of which every byte passes in order, of its SHA-256.  What fails on the way (a cut connection,
429, 5xx) is tried again, from the byte that came last.
"""

from __future__ import annotations

import functools
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from llmconv.errors import BadFile, LlmconvError, MissingExtra, UsageError, cut
from llmconv.formats.places.passing import Passing
from llmconv.formats.places.remote import Entry, stores

__all__ = [
    "HubStore",
    "download",
    "endpoint",
    "entry_of",
    "is_hash_of",
    "is_offline",
    "library",
    "one_revision",
    "parsed",
    "said",
    "tried",
]

_T = TypeVar("_T")
Refusal = Callable[[str, "Exception | None", "int | None"], LlmconvError]
"""(where, what was raised, the server's status) -> the error for people."""
TRIES = 6
WAIT = 0.5
"""Seconds before the second try; doubled each time."""
_LONGEST_WAIT = 20.0
_LONGEST_STATED = 300.0  # the Hub counts requests over five minutes
_TIMEOUT = 30.0
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_PIECE = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}")
_REF = re.compile(r"@refs/(pr|convert)/([^/]+)")
_SMALL = 128 << 20  # a file that is read at once up to here is checked by its hash


def library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtra("hf://", "huggingface_hub", "hub") from None
    return huggingface_hub


def parsed(parts: tuple[str, ...]) -> tuple[str, str]:
    """(ORG/NAME, revision)."""
    name, _, revision = (parts[2] if len(parts) > 2 else "").partition("@")
    org = parts[1] if len(parts) > 1 else ""
    if org in ("datasets", "spaces"):
        raise UsageError(f"{cut('/'.join(parts[1:]))} names one of the Hub's {org}; a model is hf://ORG/NAME")
    if not _PIECE.fullmatch(org) or not _PIECE.fullmatch(name):
        raise UsageError(f"{'/'.join(parts[1:])!r} is no repository of the Hub; write hf://ORG/NAME")
    return f"{org}/{name}", urllib.parse.unquote(revision) or "main"


def one_revision(address: str) -> str:
    """The same, `@refs/pr/1` as one part of it: `@refs%2Fpr%2F1`."""
    return _REF.sub(r"@refs%2F\1%2F\2", address)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE says that nothing is to be fetched."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def download(parts: tuple[str, ...], offline: bool = False) -> Path:
    """The repository (or one file of it) in the Hub's own cache, fetched as far as it is not there."""
    hub = library()
    repo, revision = parsed(parts)
    inside = "/".join(parts[3:])
    try:
        folder = hub.snapshot_download(
            repo, revision=revision, local_files_only=offline, endpoint=endpoint(),
            allow_patterns=[inside, f"{inside}/*"] if inside else None,
        )  # fmt: skip
    except Exception as error:
        if offline:
            raise BadFile(f"hf://{repo}: is not in the Hub's cache, and HF_HUB_OFFLINE is set; unset it") from None
        raise _refusal(f"hf://{repo}", error) from None
    found = Path(folder, *parts[3:])
    if not found.exists():
        raise BadFile(f"hf://{repo}/{inside}: no such file in the Hub's cache; check the path")
    return found


def endpoint() -> str:
    stated = os.environ.get("HF_ENDPOINT") or library().constants.ENDPOINT
    return str(stated).rstrip("/")


class HubStore:
    """One revision of a repository."""

    depth = 3

    def __init__(self, parts: tuple[str, ...]):
        self.repo, self._revision = parsed(parts)
        self._hub = library()
        self._tags: dict[str, str] = {}
        self._passing: dict[str, Passing] = {}

    @functools.cached_property
    def _commit(self) -> str:
        return str(self._listed[0])

    @functools.cached_property
    def _listed(self) -> tuple[str, Mapping[str, Entry]]:
        where = f"hf://{self.repo}" + (f"@{self._revision}" if self._revision != "main" else "")
        api = self._hub.HfApi(endpoint=endpoint())

        def ask() -> tuple[str, Mapping[str, Entry]]:
            commit = api.repo_info(self.repo, revision=self._revision).sha
            tree = api.list_repo_tree(self.repo, recursive=True, revision=commit)
            return commit, {f.path: entry_of(f) for f in tree if hasattr(f, "size") and _is_plain(f.path)}

        return tried(ask, where)

    @property
    def _entries(self) -> Mapping[str, Entry]:
        return self._listed[1]

    def find(self, name: str) -> Entry | None:
        return self._entries.get(name)

    def inside(self, folder: str) -> Iterable[str]:
        start = f"{folder}/" if folder else ""
        return {name[len(start) :].split("/")[0] for name in self._entries if name.startswith(start)}

    def read(self, name: str, offset: int, nbytes: int) -> bytes:
        if nbytes == 0:
            return b""
        entry = self._entries[name]
        self.is_checked(name)
        where = f"hf://{self.repo}/{name}"
        url = self._hub.hf_hub_url(self.repo, name, revision=self._commit, endpoint=endpoint())
        got: list[bytes] = []
        came = 0

        def ask() -> bytes:
            nonlocal came
            start = offset + came
            headers = self._hub.utils.build_hf_headers()
            headers["Range"] = f"bytes={start}-{offset + nbytes - 1}"
            headers["Accept-Encoding"] = "identity"
            with _streamed(self._hub.utils.get_session(), url, headers) as answer:
                self._check(answer, where, name, (start, offset + nbytes, entry.size))
                for piece in _body(answer):
                    got.append(piece)
                    came += len(piece)
                    if came > nbytes:
                        raise BadFile(f"{where}: more came than was asked for; the server is at fault, try again later")
            if came < nbytes:
                raise ConnectionError(f"{nbytes - came:,} bytes are missing")
            return b"".join(got)

        data = tried(ask, where)
        if len(entry.tag) == 64:
            self._passing.setdefault(name, Passing(entry.size))(offset, data)
            self.is_checked(name)
        elif nbytes == entry.size <= _SMALL and not is_hash(data, entry.tag):
            raise _other_hash(where)
        return data

    def is_checked(self, name: str) -> bool:
        passed = self._passing.get(name)
        if passed is None or not passed.digest:
            return False
        if passed.digest != self._entries[name].tag:
            raise _other_hash(f"hf://{self.repo}/{name}")
        return True

    def _check(self, answer: Any, where: str, name: str, asked: tuple[int, int, int]) -> None:
        """`BadFile` for an answer of another file, or another part of it; what passes is raised to be tried again."""
        start, stop, size = asked
        if answer.status_code in _PASSING:
            raise _Passing(answer.status_code, answer.headers.get("Retry-After"))
        if answer.status_code == 200 and start == 0 and stop == size:
            stated = f"bytes 0-{size - 1}/{answer.headers.get('Content-Length', size)}"
        elif answer.status_code == 206:
            stated = answer.headers.get("Content-Range", "")
        elif answer.status_code == 416:
            stated = f"bytes 0-0/{-1}"
        else:
            raise _refusal(where, status=answer.status_code, gated=_is_gated(answer))
        if stated != f"bytes {start}-{stop - 1}/{size}":
            total = stated.rpartition("/")[2]
            if total not in (str(size), "*"):
                raise BadFile(f"{where}: is {total} bytes, {size:,} when it was listed; it changed, run again")
            raise ConnectionError(f"another range came: {stated}")
        tag = answer.headers.get("ETag", "")
        if tag and self._tags.setdefault(name, tag) != tag:
            raise BadFile(f"{where}: changed while it was being read; run again")


def _other_hash(where: str) -> BadFile:
    return BadFile(f"{where}: what came has another hash than the Hub states; it was changed on the way, run again")


def entry_of(file: Any) -> Entry:
    lfs = getattr(file, "lfs", None)
    digest = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    return Entry(int(file.size), str(digest or file.blob_id))


def _is_plain(name: str) -> bool:
    return all(piece not in ("", ".", "..") for piece in name.split("/")) and "\\" not in name and "\0" not in name


def is_hash_of(content: Path | bytes, size: int, tag: str, length: int) -> bool:
    """Whether a file that the Hub lists with this size and hash is this one, of `length` bytes."""
    if size != length or len(tag) not in (40, 64):
        return False
    if isinstance(content, bytes) or size <= _SMALL:
        return is_hash(content if isinstance(content, bytes) else content.read_bytes(), tag)
    import hashlib

    with content.open("rb") as file:
        return len(tag) == 64 and hashlib.file_digest(file, "sha256").hexdigest() == tag


def is_hash(data: bytes, tag: str) -> bool:
    """Whether data are those of a hash that the Hub states: SHA-256 of large files, git's SHA-1 of small ones."""
    import hashlib  # loads OpenSSL, which a local file needs not

    if len(tag) == 64:
        return hashlib.sha256(data).hexdigest() == tag
    return len(tag) != 40 or hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == tag


class _Passing(Exception):
    """A refusal that passes: too many requests, a server that is restarted."""

    def __init__(self, status: int, after: str | None):
        super().__init__(f"the server answered {status}")
        self.wait = min(float(after), _LONGEST_STATED) if after and after.isdigit() else 0.0


def _streamed(session: Any, url: str, headers: dict[str, str]) -> Any:
    """An answer whose body is read as it comes, of httpx's or requests' session."""
    if callable(getattr(session, "stream", None)):  # requests' has a setting of that name
        return session.stream("GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True)
    return session.get(url, headers=headers, timeout=_TIMEOUT, stream=True)


def _body(answer: Any) -> Any:
    """The pieces of it, as they come: those before a cut, too, which requests' own iterator loses."""
    if hasattr(answer, "iter_raw"):
        return answer.iter_raw()
    read = getattr(answer.raw, "read1", answer.raw.read)
    return iter(lambda: read(1 << 18), b"")


def tried(ask: Callable[[], _T], where: str, refusal: Refusal | None = None) -> _T:
    """What `ask` gives; again after what passes, with longer waits.   refusal: the error for what does not pass."""
    refuse = refusal or _refusal
    for attempt in range(TRIES):
        try:
            return ask()
        except LlmconvError:
            raise
        except Exception as error:  # the libraries beneath have a dozen classes for a line that fails
            while error.__cause__ is not None and isinstance(error.__cause__, Exception):
                error = error.__cause__  # what a thread of the library's met
            status = _status_of(error)
            if status is not None and status not in _PASSING:
                raise refuse(where, error, status) from None
            if isinstance(error, ValueError | TypeError | AttributeError | LookupError):
                raise refuse(where, error, None) from None
            if attempt == TRIES - 1 and refusal:
                raise refusal(where, error, None) from None
            if attempt == TRIES - 1:
                raise BadFile(f"{where}: can't be fetched, tried {TRIES} times ({said(error)}); try later") from None
            time.sleep(max(getattr(error, "wait", 0.0), min(WAIT * 2**attempt, _LONGEST_WAIT)))
    raise AssertionError


def _status_of(error: Exception | None) -> int | None:
    """What a server answered; of one that `hf_xet` asked it stands in the text."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", None))
    stated = re.search(r"HTTP status (?:client|server) error \((\d{3})", str(error))
    return int(stated[1]) if status is None and stated else status


def _is_gated(answer: Any) -> bool:
    return getattr(answer, "headers", {}).get("X-Error-Code") == "GatedRepo"


def _refusal(where: str, error: Exception | None = None, status: int | None = None, gated: bool = False) -> BadFile:
    status = status or _status_of(error)
    if gated or _is_gated(getattr(error, "response", None)):
        return BadFile(f"{where}: is gated; ask for access on its page, then log in with hf auth login")
    if status in (401, 403):
        return BadFile(f"{where}: needs a token that may read it, or does not exist; log in with hf auth login")
    if status == 404:
        way = "check the name; write %2F for a / in a revision" if "@" in where else "check the name"
        return BadFile(f"{where}: no such repository, revision or file on the Hub; {way}")
    return BadFile(f"{where}: can't be fetched ({said(error) if error else f'the server answered {status}'})")


def said(error: Exception) -> str:
    return cut(str(error).strip().split("\n")[0] or type(error).__name__, 100)


stores["hf"] = HubStore
