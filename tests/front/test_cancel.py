"""A progress callback that raises `Cancelled` ends any long function at once, and nothing is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv.errors import Cancelled
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.progress import Step

CALLS: dict[str, Callable[..., Any]] = {
    "to the same format": lambda p, **o: llmconv.convert_file(p / "m.gguf", p / "o.gguf", **o),
    "to another type": lambda p, **o: llmconv.convert_file(p / "m.gguf", p / "o.gguf", outtype="f16", **o),
    "split": lambda p, **o: llmconv.convert_file(p / "m.gguf", p / "o.gguf", split_max_tensors=1, **o),
    "to a folder": lambda p, **o: llmconv.convert_file(p / "m.gguf", p / "folder", max_shard_size=20_000, **o),
    "to one safetensors": lambda p, **o: llmconv.convert_file(p / "m.gguf", p / "o.safetensors", **o),
    "to JSON": lambda p, **o: llmconv.convert_file(p / "m.gguf", p / "o.json", **o),
    "to MessagePack": lambda p, **o: llmconv.convert_file(p / "m.gguf", p / "o.msgpack", **o),
    "save": lambda p, **o: llmconv.save(llmconv.open(p / "m.gguf"), p / "o.gguf", **o),
    "quantize": lambda p, **o: llmconv.quantize(p / "m.gguf", p / "o.gguf", "Q8_0", **o),
    "quantize to several": lambda p, **o: llmconv.quantize(p / "m.gguf", p / "new", ["Q8_0", "Q4_0", "F16"], **o),
    "copy": lambda p, **o: llmconv.quantize(p / "m.gguf", p / "o.gguf", "COPY", allow_nonfinite=True, **o),
    "split a file": lambda p, **o: llmconv.split(p / "m.gguf", p / "o.gguf", max_tensors=1, **o),
    "merge": lambda p, **o: llmconv.merge(p / "s-00001-of-00004.gguf", p / "o.gguf", **o),
    "verify": lambda p, **o: llmconv.verify(p / "m.gguf", p / "s-00001-of-00004.gguf", **o),
    "content_hash": lambda p, **o: llmconv.content_hash(p / "m.gguf", **o),
    "statistics": lambda p, **o: llmconv.statistics(p / "m.gguf", **o),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    made = Checkpoint(metadata={"general.architecture": "some"})
    for i in range(4):
        made.add(Tensor.from_array(f"t{i}.weight", rng.standard_normal((64, 96)).astype(np.float32)))
    llmconv.save(made, path / "m.gguf")
    llmconv.split(path / "m.gguf", path / "s.gguf", max_tensors=1)
    return path


@pytest.mark.parametrize("when", ["first", "last"])
@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("name", CALLS)
def test_cancelling_leaves_nothing(folder: Path, tmp_path: Path, name: str, jobs: int, when: str) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    before = {p.name for p in tmp_path.iterdir()}
    threads = threading.active_count()
    steps: list[Step] = []

    def progress(step: Step) -> None:
        steps.append(step)
        if when == "first" or step.done == step.total:
            raise Cancelled("enough")

    options = {"jobs": jobs} if name in list(CALLS)[:11] else {}
    with pytest.raises(Cancelled, match="enough"):
        CALLS[name](tmp_path, progress=progress, **options)
    assert all(0 <= s.done <= s.total for s in steps) and (when == "last" or len(steps) == 1)
    assert {p.name for p in tmp_path.iterdir()} == before
    assert threading.active_count() <= threads  # those of an earlier test may have ended
    if name != "save":
        CALLS[name](tmp_path, **options)  # and the same call goes through the next time


def test_a_resumable_run_keeps_what_is_done(folder: Path, tmp_path: Path) -> None:
    def progress(step: Step) -> None:
        if step.done > step.total // 2:
            raise Cancelled("enough")

    call = {"src": folder / "m.gguf", "dst": tmp_path / "o.gguf", "type": "Q8_0", "resumable": True, "jobs": 1}
    with pytest.raises(Cancelled):
        llmconv.quantize(**call, progress=progress)  # type: ignore[arg-type]
    assert {p.name for p in tmp_path.iterdir()} == {"o.gguf.partial", "o.gguf.partial.journal"}
    llmconv.quantize(**call)  # type: ignore[arg-type]
    llmconv.quantize(folder / "m.gguf", tmp_path / "plain.gguf", "Q8_0")
    assert (tmp_path / "o.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()
