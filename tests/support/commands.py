"""The command in this process or in one of its own, and whether a refusal is as it must be."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Good models, small enough to be made anew for each test.


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str


def run(*args: object) -> Run:
    """The command in this process, with its own streams."""
    from llmconv import cli

    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="surrogateescape") for _ in "12")
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([os.fspath(a) if isinstance(a, Path) else str(a) for a in args])
        except SystemExit as stop:
            code = stop.code
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "backslashreplace"))  # type: ignore[attr-defined]
    return Run(int(code or 0), *texts)


def fault_of(result: Run, names: tuple[str, ...]) -> str:
    """What is wrong with how a bad input was refused; "" when nothing is."""
    if result.code not in (1, 2, 130):
        return f"exit code {result.code}"
    if result.err.count("\n") != 1 or not result.err.endswith("\n"):
        return f"{result.err.count(chr(10))} lines on stderr: {result.err[-2000:]!r}"
    line = result.err[:-1]
    if not line.startswith("llmconv: ") or "Traceback" in line or "this is a bug" in line:
        return f"no sentence: {line!r}"
    if len(line) > 500:
        return f"{len(line)} characters: {line!r}"
    if not all(c.isprintable() for c in line):
        return f"control characters: {line!r}"
    if not any(name in line for name in names):
        return f"names no file: {line!r}"
    return ""


def command(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, when it has ended."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "llmconv", *map(str, args)],
        **{"capture_output": True, "text": True, "timeout": 120, **options},
    )


def started(*args: object) -> subprocess.Popen[str]:
    """The command in a process of its own, while it runs."""
    words = [sys.executable, "-P", "-m", "llmconv", *map(str, args)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
