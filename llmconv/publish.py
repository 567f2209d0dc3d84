"""Public function that gives files away: `upload`, to a repository of the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llmconv import formats
from llmconv.errors import BadFile, LlmconvError, UsageError, at, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.progress import Meter, Progress
from llmconv.show import Shown

__all__ = ["Upload", "upload"]


@dataclass(frozen=True)
class Upload(Shown):
    """What was sent, or would be.

    target: hf://ORG/NAME with branch and folder.   url: of the commit; "" when nothing had to change, or for a dry run.
    files: path in the repository -> bytes.   already: of these, the ones that were there.
    card: the README.md that was made, "" where there is one.   notes: sentences.
    """

    target: str
    url: str
    files: dict[str, int]
    already: list[str] = field(default_factory=list)
    card: str = ""
    notes: list[str] = field(default_factory=list)


def upload(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    target: str,
    *,
    card: bool = True,
    base_model: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Upload:
    """Send files to a repository of the Hugging Face Hub, in one commit; needs `huggingface_hub` and its token.

    source: a file, a folder (all that is in it), or several; of a split GGUF any part stands for all.
    target: `hf://ORG/NAME[@BRANCH][/FOLDER]`; the repository is made if it is not there.
    card: make a README.md of what the GGUF files say, unless one is among the files or in the repository.
    base_model: ORG/NAME of what the files were made from, for the card.
    private: of a new repository.   message: the commit's.   dry_run: look at everything, send nothing.

    A call that failed goes on where it stopped: what arrived is not sent again.  `OutputError` when the Hub refuses.
    """
    from llmconv.convert.cards.publishing import CARD
    from llmconv.formats.places import hub, upload as sending

    to = sending.destination(target)
    if base_model is not None:
        hub.parsed(("hf:", *base_model.split("/")))
    paths = [source] if isinstance(source, str | os.PathLike) else list(source)
    files, left = _files([Path(p) for p in paths])
    notes = [f"not sent: {left[0]}{more(left)}, hidden or unfinished"] if left else []
    if not files:
        raise UsageError("there is nothing to upload; name a file, or a folder with files in it")
    made = _card(files, base_model, notes) if card and CARD not in files and not to.folder else ""
    if made and not dry_run and not sending.lacks(CARD, to):
        made = ""
    contents: dict[str, Path | bytes] = {to.name(name): path for name, path in files.items()}
    contents |= {CARD: made.encode()} if made else {}
    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in contents.items()}
    if dry_run:
        return Upload(str(to), "", sizes, [], made, notes)
    meter = Meter(progress, "upload", sum(sizes.values()))
    said = message or f"Upload {next(iter(files))}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    url, already = sending.send(contents, to, message=said, private=private, meter=meter)
    return Upload(str(to), url, sizes, already, made, notes)


def _files(paths: list[Path]) -> tuple[dict[str, Path], list[str]]:
    """Files by the names they get, and those of folders that are nobody else's: hidden ones, unfinished ones."""
    found: dict[str, Path] = {}
    left: list[str] = []
    for name, path in _named(paths):
        pieces = name.split("/")
        if any(piece.startswith(".") for piece in pieces) or name.endswith((".partial", ".incomplete", ".tmp")):
            left.append(name)
        elif name in found and not found[name].samefile(path):
            raise UsageError(f"{at(path)} and {found[name]} would both be {name!r} there; upload one of them")
        else:
            found[name] = path
    return dict(sorted(found.items())), left


def _named(paths: list[Path]) -> Iterator[tuple[str, Path]]:
    for path in paths:
        if path.is_dir():
            yield from ((str(p.relative_to(path).as_posix()), p) for p in sorted(path.rglob("*")) if p.is_file())
        elif path.is_file():
            yield from ((p.name, p) for p in _parts(path))
        else:
            raise BadFile(f"{at(path)}: no such file; check the path")


def _parts(path: Path) -> list[Path]:
    """A file, with the other parts of a split GGUF."""
    from llmconv.formats.gguf.gguf_file import parts_beside

    parts = parts_beside(path) or [path]
    if missing := next((part for part in parts if not part.is_file()), None):
        raise BadFile(f"{at(missing)}: no such file, but {path.name} is another part of the same model; fetch it")
    return parts


def _card(files: dict[str, Path], base_model: str | None, notes: list[str]) -> str:
    """A card for the GGUF files among these; "" where there is none."""
    from llmconv.convert.cards.publishing import card_of

    models: dict[tuple[Path, ...], Checkpoint] = {}
    for path in files.values():
        if path.suffix != ".gguf":
            continue
        try:
            model = formats.open(path)
        except LlmconvError as error:  # sent as it is, but not without a word
            notes.append(str(error))
            continue
        models[tuple(model.parts)] = model
    return card_of(list(models.values()), base_model) if models else ""
