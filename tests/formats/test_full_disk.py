"""A disk that is full, or any call that fails: nothing is left, and a sentence says why."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing import failing_at

from llmconv.errors import LlmconvError, OutputError
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor
from llmconv.formats.writing.outputs import Output
from llmconv.quant import by_name


def write(path: Path, content: bytes = b"", **options: Any) -> None:
    with Output(path, **options) as out:
        out.file.write(content)


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
