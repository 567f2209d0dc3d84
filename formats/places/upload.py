"""Files sent to a repository of the Hub, through `huggingface_hub`: one after another, and all of them in one commit.

What a repository holds already is not sent again: a file that lies there unchanged is left out, and one whose bytes
arrived before a line failed is only named in the commit.  So the same call goes on where an earlier one stopped.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv.errors import OutputError, UsageError, at, cut
from llmconv.formats.places import hub
from llmconv.progress import Meter

__all__ = ["Destination", "committed", "destination", "lacks", "prepared", "preuploaded", "send", "sent"]


@dataclass(frozen=True)
class Destination:
    """A folder of a branch of a repository; its root for folder "".   repo: ORG/NAME."""

    repo: str
    revision: str
    folder: str = ""

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{urllib.parse.quote(self.revision, safe='')}"
        return "/".join(part for part in (f"hf://{self.repo}{revision}", self.folder) if part)

    def name(self, file: str) -> str:
        """A file's path in the repository."""
        return f"{self.folder}/{file}" if self.folder else file


def destination(address: str) -> Destination:
    """What `hf://ORG/NAME[@BRANCH][/FOLDER]` names; `UsageError` for anything else."""
    scheme, _, rest = hub.one_revision(str(address)).partition(":")
    parts = (f"{scheme}:", *(part for part in rest.split("/") if part))
    if scheme != "hf":
        raise UsageError(f"{cut(str(address))} is no place to upload to; write hf://ORG/NAME")
    repo, revision = hub.parsed(parts)
    if any(part in (".", "..") for part in parts[3:]):
        raise UsageError(f"{cut(str(address))}: a folder there can't be . or ..; write hf://ORG/NAME/FOLDER")
    return Destination(repo, revision, "/".join(parts[3:]))


def send(
    files: Mapping[str, Path | bytes], to: Destination, *, message: str, private: bool | None, meter: Meter
) -> tuple[str, list[str]]:
    """Send files, by their paths in the repository, which is made if it is not there.

    private: of a new repository; None: as the account is set.   Returns the commit's address, "" when there was nothing
    to change, and the files that were there already.
    """
    library = hub.library()
    api = library.HfApi(endpoint=hub.endpoint())
    there = prepared(api, to, private)
    additions, known = [], []
    for name, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if name in there and hub.is_hash_of(content, *there[name], size):
            known.append(name)
        else:
            additions.append(sent(library, api, to, name, content))
        meter(size, name)
    return committed(api, to, additions, message) if additions else "", known


def prepared(api: Any, to: Destination, private: bool | None = None) -> dict[str, tuple[int, str]]:
    """The size and hash of each file of the branch, made with its repository as far as they are not there."""
    hub.tried(lambda: _make(api, to, private), str(to), _failed)
    return hub.tried(lambda: _digests(api, to), str(to), _failed)


def committed(api: Any, to: Destination, additions: Sequence[Any], message: str) -> str:
    """The address of the commit that adds these files."""

    def commit() -> str:
        try:
            return str(api.create_commit(to.repo, additions, commit_message=message, revision=to.revision).commit_url)
        except ValueError as error:
            # huggingface_hub before 1.5 has made the commit, and takes its address for one of the endpoint that
            # HF_ENDPOINT named when it was imported.
            if "user and repo ID" not in str(error):
                raise
            return f"{api.endpoint}/{to.repo}/commit/{api.repo_info(to.repo, revision=to.revision).sha}"

    return hub.tried(commit, str(to), _failed)


def lacks(name: str, to: Destination) -> bool:
    """Whether the repository has no such file yet, or is not there."""
    library = hub.library()
    api = library.HfApi(endpoint=hub.endpoint())
    return not hub.tried(lambda: api.file_exists(to.repo, name, revision=to.revision), str(to), _failed)


def _make(api: Any, to: Destination, private: bool | None) -> None:
    """The repository and its branch, as far as they are not there."""
    if not api.repo_exists(to.repo):
        api.create_repo(to.repo, private=private, exist_ok=True)
    if to.revision != "main":
        api.create_branch(to.repo, branch=to.revision, exist_ok=True)


def _digests(api: Any, to: Destination) -> dict[str, tuple[int, str]]:
    """The size and hash of each file that the branch holds."""
    tree = api.list_repo_tree(to.repo, recursive=True, revision=to.revision)
    entries = {file.path: hub.entry_of(file) for file in tree if hasattr(file, "size")}
    return {name: (entry.size, entry.tag) for name, entry in entries.items()}


def sent(library: Any, api: Any, to: Destination, name: str, content: Path | bytes) -> Any:
    """The part of the commit that adds a file, of which the bytes are sent, and forgotten, if it is a large one."""
    source = content if isinstance(content, bytes) else str(content)
    added = library.CommitOperationAdd(path_in_repo=name, path_or_fileobj=source)
    preuploaded(library, api, to, added)
    return added


def preuploaded(library: Any, api: Any, to: Destination, added: Any) -> None:
    """Send the bytes of a part of the commit, without the library's own bars."""
    quiet = library.utils
    shown = not quiet.are_progress_bars_disabled()
    if shown:
        quiet.disable_progress_bars()
    try:
        hub.tried(lambda: api.preupload_lfs_files(to.repo, [added], revision=to.revision), str(to), _failed)
    finally:
        if shown:
            quiet.enable_progress_bars()


def _failed(where: str, error: Exception | None, status: int | None) -> OutputError:
    """What ends an upload, for people."""
    if status in (401, 403):
        return OutputError(f"{at(where)}: needs a token that may write there; log in with hf auth login")
    if status == 404:
        return OutputError(f"{at(where)}: no such repository or branch, and none could be made; check the name")
    said = hub.said(error) if error else f"the server answered {status}"
    return OutputError(f"{at(where)}: the upload failed ({said}); the same command goes on from here")
