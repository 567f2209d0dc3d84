"""Outputs appear complete or not at all, whatever fails and whenever."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmconv.errors import BadFile, LlmconvError, OutputError, UsageError
from llmconv.formats import copying, gguf_file, safetensors_file, stream
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import Output, Outputs, check_target, open_regular, regular_size
from llmconv.formats.source import Source
from llmconv.formats.target import Item, Sink, Target
from llmconv.formats.tensor import Extent, Tensor
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


# A full disk


def raising(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def failing_at(function: Callable[..., Any], nth: int, number: int = errno.ENOSPC) -> Callable[..., Any]:
    """`function`, whose `nth` call (from 0) fails."""
    calls = iter(range(10**9))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            raise OSError(number, os.strerror(number))
        return function(*args, **kwargs)

    return call


def lazy_model(folder: Path) -> Checkpoint:
    """Tensors of a file (copied by the kernel), cast ones (slabs), and side files."""
    made = Checkpoint(dialect="plain", files={"config.json": b"{}"})
    for i in range(4):
        made.add(Tensor.from_array(f"t{i}", np.full((40, 30), i, np.float32)))
    safetensors_file.save(made, folder / "source.safetensors")
    found = safetensors_file.open(folder / "source.safetensors")
    found.tensors |= {f"c{i}": found.tensors[f"t{i}"].astype(by_name("F16")).renamed(f"c{i}") for i in range(3)}
    return found


def save_gguf(made: Checkpoint, folder: Path) -> None:
    made.metadata = {"general.architecture": "x"}
    gguf_file.save(made, folder / "m.gguf", split_max_tensors=3)


def save_folder(made: Checkpoint, folder: Path) -> None:
    safetensors_file.save(made, folder / "m", max_shard_size=9000)


@pytest.mark.parametrize("save", [save_gguf, save_folder])
@pytest.mark.parametrize("call", ["pwrite", "copy_file_range", "fsync", "posix_fallocate", "truncate", "link", "open"])
def test_every_call_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Checkpoint, Path], None], call: str
) -> None:
    made = lazy_model(tmp_path)
    (tmp_path / "out").mkdir()
    failed = 0
    for nth in range(60):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing_at(getattr(os, call), nth))
            try:
                save(made, tmp_path / "out")
                break
            except LlmconvError as error:
                failed += 1
                assert "\n" not in str(error)
                assert "no space left" in str(error) or call in ("open", "link")
        left = [p for p in (tmp_path / "out").rglob("*") if "tmp" in p.name or p.is_file()]
        assert left == [], (nth, left)
    assert failed or call == "link", "no call was made to fail"  # without links, files are renamed
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(written) > 2 and not any(p.name.startswith(".") for p in written)


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Sets the largest file that this process may write; a real failure in the middle of real writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_real_limit_in_the_middle(tmp_path: Path, file_limit: Callable[[int], None]) -> None:
    path = tmp_path / "m.bin"
    for size in (0, 1, 5000, 3_000_000):
        file_limit(size)
        with pytest.raises(OutputError, match="can't be written"), Output(path) as out:
            for _ in range(5):
                out.file.write(b"x" * 1_000_000)
        assert os.listdir(tmp_path) == []


def test_a_small_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with pytest.raises(OutputError, match="no space left"):
            write(disk / "m", b"x" * 2_000_000)
        with pytest.raises(OutputError, match="needs 2,000,000 bytes but the disk has"):
            write(disk / "m", size=2_000_000)
        with pytest.raises(OutputError, match="no space left"), Output(disk / "m") as out:
            out.reserve(2_000_000)
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


# Signals


WRITER = """
    import sys, time
    from pathlib import Path
    from llmconv.formats.files import Output
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


# Reading


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    start = time.monotonic()
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none", tmp_path / "loop", Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(BadFile):
            open_regular(path)
        with pytest.raises(BadFile):
            regular_size(path)
    assert time.monotonic() - start < 5


def test_reading_beyond_the_end(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    source = Source.of(tmp_path / "f")
    assert source.read(1, 3).tobytes() == b"234" and source.read(5, 0).tobytes() == b""
    for offset, nbytes in ((0, 6), (6, 0), (-1, 2), (0, -1), (2**70, 1), (0, 2**70)):
        with pytest.raises(BadFile, match="ends at byte 5"):
            source.read(offset, nbytes)


# Streaming


def streamed(tmp_path: Path, plan: list[tuple[Tensor, int]], **options: Any) -> bytes:
    path = tmp_path / "streamed"
    with path.open("wb") as file:
        sink = Sink(path, file.fileno())
        stream.stream([Item(t, [Target(sink, t.type, offset)]) for t, offset in plan], **options)
    return path.read_bytes()


def one_mapped(tmp_path: Path, n: int = 10_000) -> Tensor:
    values = np.arange(n, dtype=np.float32)
    (tmp_path / "source").write_bytes(b"head" + values.tobytes())
    return Source.of(tmp_path / "source").tensor("mapped", (n // 10, 10), F32, 4)


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_slabs_and_copies_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr(stream, "SLAB_BYTES", 1000)
    monkeypatch.setattr(copying, "_COPY_BYTES", 3000)
    copied = one_mapped(tmp_path)
    computed = copied.map(lambda rows: rows + 1, F32).renamed("computed")
    seen: dict[str, int] = {}
    raw = streamed(
        tmp_path,
        [(computed, 100_000), (copied, 0)],
        jobs=jobs,
        meter=lambda n, name: seen.update({name: seen.get(name, 0) + n}),
    )
    assert np.array_equal(np.frombuffer(raw[:40_000], "<f4"), np.arange(10_000))
    assert np.array_equal(np.frombuffer(raw[100_000:], "<f4"), np.arange(10_000) + 1)
    assert seen == {"computed": 40_000, "mapped": 40_000}


@pytest.mark.parametrize("way", ["absent", "another file system", "copies nothing", "in pieces"])
def test_where_the_kernel_can_not_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    real = os.copy_file_range
    if way == "absent":
        monkeypatch.delattr(os, "copy_file_range")
    elif way == "another file system":
        monkeypatch.setattr(os, "copy_file_range", raising(errno.EXDEV))
    elif way == "copies nothing":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    else:
        monkeypatch.setattr(os, "copy_file_range", lambda a, b, n, *offsets: real(a, b, min(n, 777), *offsets))
    tensor = one_mapped(tmp_path)
    assert streamed(tmp_path, [(tensor, 8)])[8:] == tensor.blocks().tobytes()


def test_neighbours_are_copied_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = one_mapped(tmp_path)
    source = Source.of(tmp_path / "source")
    parts = [source.tensor(f"p{i}", (100,), F32, 4 + 400 * i) for i in range(100)]
    calls = []
    real = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda *a: (calls.append(a), real(*a))[1])
    assert streamed(tmp_path, [(p, 400 * i) for i, p in enumerate(parts)]) == tensor.blocks().tobytes()
    assert len(calls) == 1


@pytest.mark.parametrize("copied", [True, False])
def test_an_input_that_is_cut_meanwhile(tmp_path: Path, copied: bool) -> None:
    tensor = one_mapped(tmp_path)
    os.truncate(tmp_path / "source", 20_000)
    plan = [(tensor if copied else tensor.map(lambda x: x, F32), 0)]
    with pytest.raises(BadFile, match="changed while it was being read"):
        streamed(tmp_path, plan)
    no_stamp = Tensor("t", tensor.shape, F32, tensor.read, Extent(tmp_path / "source", 4, 40_000))
    with pytest.raises(BadFile, match="was cut while it was being read"):
        streamed(tmp_path, [(no_stamp, 0)])


def test_a_tensor_that_gives_other_bytes_is_refused(tmp_path: Path) -> None:
    wrong = Tensor("t", (4, 2), F32, lambda a, b: np.zeros((b - a, 7), np.uint8))
    with pytest.raises(UsageError, match=r"'t' gave rows 0\.\.4 as uint8 \(4, 7\), expected uint8 \(4, 8\)"):
        streamed(tmp_path, [(wrong, 0)])


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many slabs there are, only jobs + 1 are asked for before one is done."""
    monkeypatch.setattr(stream, "SLAB_BYTES", 40)
    alive, most, lock = 0, 0, threading.Lock()

    def read(start: int, stop: int) -> Any:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        time.sleep(0.001)
        with lock:
            alive -= 1
        return np.zeros((stop - start, 40), np.uint8)

    streamed(tmp_path, [(Tensor("t", (100, 10), F32, read), 0)], jobs=3)
    assert 1 < most <= 3


def test_where_no_thread_is_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    tensor = one_mapped(tmp_path).map(lambda x: x, F32)
    assert streamed(tmp_path, [(tensor, 0)]) == tensor.blocks().tobytes()
