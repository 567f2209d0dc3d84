"""Calibrating in a process that is killed: the same command goes on, to the bytes of one that ran through."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runnable

import llmconv
from llmconv.errors import OutputError

pytest.importorskip("torch")

PLACES = {
    "llmconv.runtime.calibrate.calibration._BATCH": 64,
    "llmconv.runtime.calibrate.gradients._MOST_BYTES": 1,
    "llmconv.runtime.calibrate.layered._SEARCHED": 0,
    "llmconv.runtime.calibrate.layered._FACTORED": 0,
    "llmconv.runtime.calibrate.sofar._EVERY": 0,
    "llmconv.runtime.calibrate.sofar._SHARE": 0,
    "llmconv.convert.reports.streaming.BATCH": 32,
    "llmconv.convert.reports.streaming._TILE": 0,
}
"""A row at a time, layers that fit alone, writing whenever there is something new."""

KILLED = """
import importlib, json, os, signal, sys, llmconv
from llmconv.runtime.calibrate.sofar import SoFar

places, after, model, text, output, how = map(json.loads, sys.argv[1:])
for place, value in places.items():
    module, name = place.rsplit(".", 1)
    setattr(importlib.import_module(module), name, value)
keep, left = SoFar.keep, [after]

def kept(self, *given, **more):
    keep(self, *given, **more)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

SoFar.keep = kept
llmconv.calibrate(model, text, output, resumable=True, **how)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return runnable.write(runnable.checkpoint(layers=5), tmp_path / "m.gguf")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(runnable.text(400))
    return path


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, value in PLACES.items():
        monkeypatch.setattr(place, value)


def killed(after: int, model: Path, text: Path, output: Path, how: dict[str, Any]) -> None:
    """What a process leaves that is killed when it has written so often."""
    given = (PLACES, after, str(model), str(text), str(output), how)
    run = [sys.executable, "-c", KILLED, *map(json.dumps, given)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("places")
@pytest.mark.parametrize("memory", [None, "720K"])
def test_statistics_go_on(model: Path, text: Path, tmp_path: Path, memory: str | None) -> None:
    """After some chunks, or where layers are looked at one by one, after two of them; another text is refused."""
    out, partial = tmp_path / "cut", tmp_path / "cut.partial"
    how: dict[str, Any] = {"context": 32, "device": "cpu", "memory": memory}
    whole = llmconv.calibrate(model, text, tmp_path / "whole", **how)
    streamed = memory is not None
    assert (whole.loaded(llmconv.open(model)).wants is not None) == streamed
    killed(2, model, text, out, how)
    assert partial.exists() and (tmp_path / "cut.partial.2").exists() == streamed and not out.exists()
    with pytest.raises(OutputError, match="is of a run with another model, text, type or options"):
        llmconv.calibrate(model, text, out, resumable=True, **(how | {"seed": 1}))
    seen: list[llmconv.Step] = []
    llmconv.calibrate(model, text, out, resumable=True, progress=seen.append, **how)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "m.gguf", "text.txt", "whole"]
    steps = [step.item for step in seen if step.item.startswith("gradients")]
    assert not steps if streamed else steps[0] == "gradients, already done" != steps[1]


@pytest.mark.slow
@pytest.mark.usefixtures("places")
def test_quantizing_goes_on_from_its_statistics(model: Path, text: Path, tmp_path: Path) -> None:
    """Interrupted there; another model is refused, and what was kept is gone at the end."""
    out, items = tmp_path / "cut.gguf", list[str]()

    def made(source: Path = model, most: int = 1000, name: Path = out) -> None:
        def seen(step: llmconv.Step) -> None:
            items.append(step.item)
            if items.count("gradients") > most:
                raise KeyboardInterrupt

        items.clear()
        known = llmconv.OnText(text, context=32, device="cpu")
        llmconv.quantize(source, name, "Q4_0", calibration=known, resumable=True, progress=seen)

    made(name=tmp_path / "whole.gguf")
    every = items.count("gradients")
    with pytest.raises(KeyboardInterrupt):
        made(most=2)
    assert (tmp_path / "cut.gguf.statistics.partial").exists()
    other = runnable.changed(runnable.checkpoint(layers=5), "blk.4.ffn_up.weight", lambda x: np.negative(x, out=x))
    with pytest.raises(OutputError, match="is of a run with another model"):
        made(runnable.write(other, tmp_path / "other.gguf"))
    made()
    assert "gradients, already done" in items and items.count("gradients") == every - 3
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.gguf", "m.gguf", "other.gguf", "text.txt", "whole.gguf"]
