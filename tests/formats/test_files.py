"""Outputs appear complete or not at all, whatever fails and whenever."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from failing import failing_at, raising

from llmconv.errors import OutputError
from llmconv.formats.writing.checks import check_target
from llmconv.formats.writing.outputs import Output, Outputs
from llmconv.quant import by_name

F32 = by_name("F32")


def write(path: Path, content: bytes = b"new", **options: Any) -> None:
    with Output(path, **options) as out:
        out.file.write(content)


# One file


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with Output(path) as out:
        out.file.write(b"new")
        assert not path.exists() and out.temporary.parent == tmp_path and out.temporary.exists()
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_ordinary(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        write(tmp_path / "m.gguf")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "m.gguf").stat().st_mode) == 0o666 & ~umask


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already; use force=True"):
        write(path)
    assert path.read_bytes() == b"old"
    write(path, force=True)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1), OSError(errno.EIO, "broken")])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    expected: Any = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), Output(path, force=True) as out:
        out.file.write(b"half")
        raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", raising(errno.EPERM))
    path = tmp_path / "m.gguf"
    with pytest.raises(OutputError, match="appeared while it was being written"), Output(path) as out:
        out.file.write(b"new")
        path.write_bytes(b"another run's")
    assert path.read_bytes() == b"another run's" and os.listdir(tmp_path) == ["m.gguf"]


def test_without_hard_links_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", raising(errno.EPERM))
    write(tmp_path / "m.gguf")
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_two_runs_to_one_output(tmp_path: Path) -> None:
    """Both write; the last to finish with force wins whole, nothing is mixed."""
    path = tmp_path / "m.gguf"

    def run(content: bytes) -> None:
        write(path, content * 100_000, force=True)

    threads = [threading.Thread(target=run, args=(c,)) for c in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(path.read_bytes()) in ({97}, {98}, {99}) and os.listdir(tmp_path) == ["m.gguf"]


def test_bad_targets(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "in").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    os.link(tmp_path / "in", tmp_path / "hard")
    inputs = (tmp_path / "in",)
    for path, says in (
        (tmp_path / "folder", "is a folder"),
        (tmp_path / "none" / "m", "does not exist; make it first"),
        (tmp_path / "in", "is the input itself"),
        (tmp_path / "link", "is the input itself"),
        (tmp_path / "hard", "is the input itself"),
        (tmp_path / ("x" * 300), "can.t be written"),
        (tmp_path / "in" / "m", "does not exist"),
    ):
        with pytest.raises(OutputError, match=says):
            check_target(path, force=True, inputs=inputs)
    with pytest.raises(OutputError, match=r"needs [\d,]+ bytes but the disk has [\d,]+ free"):
        check_target(tmp_path / "m", force=False, size=1 << 60)


def test_a_link_is_replaced_and_what_it_names_stays(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        with pytest.raises(OutputError, match="exists already"):
            write(tmp_path / name)
        write(tmp_path / name, force=True)
        assert not (tmp_path / name).is_symlink() and (tmp_path / name).read_bytes() == b"new"
    assert (tmp_path / "real").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["漢" * 80, "x" * 255, os.fsdecode(b"\xff\xfe.gguf"), "-a-1-b", "a b\nc"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


# Signals


WRITER = """
    import sys, time
    from pathlib import Path
    from llmconv.formats.writing.outputs import Output
    with Output(Path(sys.argv[1]), force=True) as out:
        out.file.write(b"half"); out.file.flush()
        print("ready", flush=True)
        time.sleep(60)
"""


def interrupted(path: Path, number: int) -> int:
    """Start a writer, signal it in the middle, its exit status."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        return process.wait(30)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    status = interrupted(path, getattr(signal, name))
    assert status == (-signal.SIGINT if name == "SIGINT" else 128 + getattr(signal, name))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.gguf"]


def test_what_a_killed_run_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    assert interrupted(path, signal.SIGKILL) == -signal.SIGKILL
    assert path.read_bytes() == b"old" and len(os.listdir(tmp_path)) == 2
    write(tmp_path / "m", b"other")  # another target's leftovers stay
    write(tmp_path / "m.gguf-1", b"other")
    assert len(os.listdir(tmp_path)) == 4
    write(path, force=True)
    assert sorted(os.listdir(tmp_path)) == ["m", "m.gguf", "m.gguf-1"]


def test_a_live_run_is_not_cleared(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with Output(path) as out:
        out.file.write(b"new")
        os.utime(out.temporary, (1, 1))  # even when it looks old: it is locked
        write(path, b"other", force=True)
        assert out.temporary.exists()
        out.force = True
    assert path.read_bytes() == b"new"


def test_handlers_are_restored(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    write(tmp_path / "a")
    with Outputs({tmp_path / "b": 0}) as outputs, outputs.open(tmp_path / "b"):
        pass
    assert signal.getsignal(signal.SIGTERM) == before


# Several files


def put(outputs: Outputs, *paths: Path) -> None:
    for path in paths:
        with outputs.open(path) as out:
            out.file.write(b"new")


def test_several_files_appear_together_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, index = tmp_path / "m" / "a", tmp_path / "m" / "b", tmp_path / "m" / "index"
    linked = []
    monkeypatch.setattr(os, "link", lambda x, y, link=os.link: (linked.append(Path(y)), link(x, y)))
    with Outputs({a: 3, b: 3, index: 3}, folder=tmp_path / "m") as outputs:
        put(outputs, a, b, index)
        assert not a.exists()
    assert linked == [a, b, index] and sorted(os.listdir(tmp_path / "m")) == ["a", "b", "index"]


@pytest.mark.parametrize("force", [False, True])
def test_when_one_can_not_be_named_none_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    paths = [tmp_path / name for name in "abcd"]
    if force:
        paths[0].write_bytes(b"old")
        paths[1].write_bytes(b"older")
        monkeypatch.setattr(os, "replace", failing_at(os.replace, 2, errno.EIO))
    else:
        monkeypatch.setattr(os, "link", failing_at(os.link, 2))
        monkeypatch.setattr(os, "rename", raising(errno.EIO))
    with pytest.raises(OutputError), Outputs(dict.fromkeys(paths, 3), force=force) as outputs:
        put(outputs, *paths)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({"a": b"old", "b": b"older"} if force else {})


def test_room_is_asked_for_all_together(tmp_path: Path) -> None:
    half = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize * 2 // 3
    with pytest.raises(OutputError, match="but the disk has"):
        Outputs({tmp_path / "m" / "a": half, tmp_path / "m" / "b": half}, folder=tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"x")
    with pytest.raises(OutputError, match="exists and is no folder"):
        Outputs({}, folder=tmp_path / "m")
    with pytest.raises(OutputError, match="does not exist; make it first"):
        Outputs({}, folder=tmp_path / "none" / "m")
