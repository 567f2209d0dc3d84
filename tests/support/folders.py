"""What lies in a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path


def only(folder: Path) -> list[str]:
    """The names in it, sorted."""
    return sorted(p.name for p in folder.iterdir())


def digest(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with what tells whether it changed."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.lstat().st_size) if not p.is_dir() else (0, 0)
        for p in sorted(folder.rglob("*"))
    }
