"""Reading only what is there, and streaming tensors into files: slabs, copies by the kernel, threads."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing import raising

from llmconv.errors import BadFile, UsageError
from llmconv.formats.files import open_regular, regular_size
from llmconv.formats.source import Source
from llmconv.formats.tensor import Extent, Tensor
from llmconv.formats.writing import copying, stream
from llmconv.formats.writing.target import Item, Sink, Target
from llmconv.quant import by_name


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


F32 = by_name("F32")


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
