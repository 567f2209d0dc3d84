"""Signals and system calls that fail, at any moment: the old file or the new one whole, and a sentence."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from failing import failing_at

import llmconv

SLOW = """
import os, sys, time
from llmconv.formats.writing import target
write = target.write_at
def slow(*args):
    write(*args); print("ready", flush=True); time.sleep(20)
target.write_at = slow
pwrite = os.pwrite
def slow_pwrite(*args):
    n = pwrite(*args); print("ready", flush=True); time.sleep(20); return n
os.pwrite = slow_pwrite
fsync = os.fsync
def slow_fsync(*args):
    fsync(*args); print("ready", flush=True); time.sleep(20)
os.fsync = slow_fsync
from llmconv.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize(
    "args",
    [
        ["convert", "m.gguf", "o.gguf"],
        ["convert", "m.gguf", "o.json"],
        ["quantize", "m.gguf", "-t", "Q8_0", "-q", "-o", "o.gguf"],
    ],
    ids=lambda a: a[0] + a[-1],
)
def test_a_signal_leaves_the_old_file(tmp_path: Path, good: Path, args: list[str], number: signal.Signals) -> None:
    shutil.copy(good, tmp_path / "m.gguf")
    target = tmp_path / args[-1]
    target.write_bytes(b"old")
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *args, "--force"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "llmconv: interrupted\n", err
    assert target.read_bytes() == b"old" and sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", target.name]


EARLY = """
import builtins, sys, time
plain = builtins.__import__
def slow(name, *args):
    if name == "click":
        print("ready", flush=True); time.sleep(20)
    return plain(name, *args)
builtins.__import__ = slow
sys.argv = ["llmconv", "--help"]
from llmconv.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_while_the_command_is_being_imported(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", EARLY], text=True, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "llmconv: interrupted\n", err


def _save_json(source: Path, folder: Path) -> None:
    llmconv.convert_file(source, folder / "o.json")


def _save_msgpack(source: Path, folder: Path) -> None:
    llmconv.convert_file(source, folder / "o.msgpack")


def _quantize(source: Path, folder: Path) -> None:
    llmconv.quantize(source, folder / "q.gguf", ["Q8_0"])


def _resumable(source: Path, folder: Path) -> None:
    llmconv.quantize(source, folder / "q.gguf", ["Q8_0"], resumable=True)


def _edited(source: Path, folder: Path) -> None:
    llmconv.edit(source, set={"a": "b" * 100_000}, output=folder / "e.gguf")


WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "json": _save_json, "msgpack": _save_msgpack, "quantize": _quantize, "resumable": _resumable, "edit": _edited,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_at_each_call(tmp_path: Path, good: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each system call that writes fails once, in turn: a sentence, and nothing under the final name."""
    failed = 0
    for call in ("open", "pwrite", "posix_fallocate", "truncate", "fsync", "link"):
        for nth in range(12):
            out = tmp_path / f"{call}{nth}"
            out.mkdir()
            with monkeypatch.context() as patch:
                patch.setattr(os, call, failing_at(getattr(os, call), nth))
                try:
                    WRITERS[name](good, out)
                except llmconv.LlmconvError as error:
                    failed += 1
                    assert "\n" not in str(error)
                    left = {p.name for p in out.iterdir()}
                    # A resumable run keeps what it has, under its own names; a second run then finishes it.
                    assert left <= ({"q.gguf.partial", "q.gguf.partial.journal"} if name == "resumable" else set())
                    if name == "resumable":
                        patch.undo()
                        WRITERS[name](good, out)
                        assert {p.name for p in out.iterdir()} == {"q.gguf"}
                    continue
            break
    assert failed > 1


@pytest.mark.parametrize("call", ["pwrite", "fsync", "open"])
def test_an_edit_that_is_cut_off_is_undone(
    tmp_path: Path, good: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Editing in place: whatever fails, the next edit finds the old or the new header whole."""
    for nth in range(8):
        path = tmp_path / f"{nth}.gguf"
        shutil.copy(good, path)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing_at(getattr(os, call), nth))
            try:
                llmconv.edit(path, set={"a": "b"})
            except llmconv.LlmconvError as error:
                assert "\n" not in str(error)
        llmconv.edit(path, set={"c": "d"})
        found = llmconv.open(path)
        assert found.metadata["c"] == "d" and found.metadata.get("a", "b") == "b"
        assert all(t.status == "identical" for t in llmconv.verify(path, good).tensors)
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
