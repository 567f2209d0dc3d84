"""A run that was interrupted goes on where it stopped, and gives what one run gives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import synthetic
from commands import started
from folders import digest, only
from synthetic import sparse

from llmconv.convert.quantizing.quantize import quantize
from llmconv.errors import OutputError
from llmconv.progress import Step


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("model") / "m-f16.gguf", n_layer=2, n_vocab=64)


class Stop(Exception):
    pass


def stopping_after(n: int) -> tuple[Any, list[str]]:
    seen: list[str] = []

    def progress(step: Step) -> None:
        seen.append(step.item)
        if len(seen) == n:
            raise Stop

    return progress, seen


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_interrupted_run_goes_on(model: Path, tmp_path: Path, jobs: int) -> None:
    whole = {t: tmp_path / f"whole-{t}.gguf" for t in ("Q8_0", "Q4_K_M")}
    for kind, path in whole.items():
        quantize(model, path, kind)
    target = tmp_path / "{type}.gguf"
    progress, _ = stopping_after(8)
    call: dict[str, Any] = {"type": list(whole), "resumable": True, "jobs": jobs}
    with pytest.raises(Stop):
        quantize(model, target, progress=progress, **call)
    assert {"Q8_0.gguf.partial", "Q8_0.gguf.partial.journal"} <= set(only(tmp_path))
    steps: list[Step] = []
    made = quantize(model, target, progress=steps.append, **call)
    assert steps[0].item == "already done" and steps[0].done > 0
    assert steps[-1].done == made.source_nbytes
    for kind, path in whole.items():
        assert digest(tmp_path / f"{kind}.gguf") == digest(path)
    assert not [name for name in only(tmp_path) if "partial" in name]


def test_a_partial_run_of_something_else_is_refused(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "m.gguf", tmp_path / "q.gguf"
    source.write_bytes(model.read_bytes())
    with pytest.raises(Stop):
        quantize(source, target, "Q8_0", resumable=True, progress=stopping_after(6)[0])
    with pytest.raises(OutputError, match="run with other options"):
        quantize(source, target, "Q4_0", resumable=True)
    os.utime(source, (1, 1))
    with pytest.raises(OutputError, match="run with other input"):
        quantize(source, target, "Q8_0", resumable=True)
    (tmp_path / "q.gguf.partial.journal").write_text("{}\n")
    with pytest.raises(OutputError, match="run with other"):
        quantize(source, target, "Q8_0", resumable=True)
    quantize(source, target, "Q8_0", resumable=True, force=True)
    quantize(model, tmp_path / "whole.gguf", "Q8_0")
    assert digest(target) == digest(tmp_path / "whole.gguf")
    assert only(tmp_path) == ["m.gguf", "q.gguf", "whole.gguf"]


def test_a_partial_file_that_was_cut_is_begun_again(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        quantize(model, tmp_path / "q.gguf", "Q8_0", resumable=True, progress=stopping_after(6)[0])
    os.truncate(tmp_path / "q.gguf.partial", 1000)
    quantize(model, tmp_path / "q.gguf", "Q8_0", resumable=True)
    quantize(model, tmp_path / "whole.gguf", "Q8_0")
    assert digest(tmp_path / "q.gguf") == digest(tmp_path / "whole.gguf")


def test_without_the_flag_nothing_is_left(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        quantize(model, tmp_path / "q.gguf", "Q8_0", progress=stopping_after(6)[0])
    assert only(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("resumable", [False, True])
def test_ctrl_c(tmp_path: Path, resumable: bool) -> None:
    source, out = sparse(tmp_path / "big.gguf", 2.0), tmp_path / "out"
    out.mkdir()
    small = sparse(tmp_path / "small.gguf", 0.01)
    started("quantize", small, "-t", "Q6_K", "-o", tmp_path / "q.gguf", "-j", 1).communicate(timeout=60)  # compiles
    words: Sequence[Any] = ["quantize", source, "-t", "Q6_K", "-o", out / "q.gguf", "-j", 1]
    process = started(*words, *(["--resumable"] if resumable else []))
    while process.poll() is None and not any(p.stat().st_blocks for p in out.iterdir()):
        time.sleep(0.02)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    way = f"; the same command goes on from {out / 'q.gguf.partial'}" if resumable else ""
    assert process.returncode == 130 and error.splitlines()[-1] == f"llmconv: interrupted{way}"
    assert only(out) == (["q.gguf.partial", "q.gguf.partial.journal"] if resumable else [])
