"""A calibration by several processes: the bytes of one, however many they are, and the end when one of them dies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runnable
import teams
import worded
from folders import only

import llmconv

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

SMALL = {
    "calibration:TOKENS": 1280,
    "calibration:_BATCH": 64,
    "gradients:_MOST_BYTES": 1,
    "gradients:_MOST_LOGITS": 1500,
    "gradients:_MOST_ROWS": 48,
    "matrices:_PIECE": 40,
    "shared:_TILE": 1000,
    "layered:_SEARCHED": 0,
    "layered:_FACTORED": 0,
}
"""Five batches of a short text, several pieces of a small matrix, several tiles of its sums, layers that fit alone."""
PLACES = {f"llmconv.runtime.calibrate.{name}": value for name, value in SMALL.items()}
PLACES |= {"llmconv.convert.reports.streaming:BATCH": 32, "llmconv.convert.reports.streaming:_TILE": 0}


def run(size: int, *words: object, **more: Any) -> dict[str, Any]:
    return {"size": size, "args": [*map(str, words), "-q"], "set": PLACES} | more


def test_the_bytes_do_not_depend_on_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are coupled and not, experts, layers that are gone through twice, weights that are left in the file."""
    for place, value in PLACES.items():
        monkeypatch.setattr(place.replace(":", "."), value)
    text, words = tmp_path / "t.txt", tmp_path / "w.txt"
    text.write_text(runnable.text(1300))
    words.write_text(" ".join(worded.WORDS * 14))
    dense = runnable.write(runnable.checkpoint(layers=5), tmp_path / "m.gguf")
    cases: dict[str, tuple[Path, Path, list[Any]]] = {
        "dense": (dense, text, []),
        "experts": (worded.by_hand_gguf("deepseek1", tmp_path), words, []),
        "looped": (worded.by_hand_gguf("nanbeige-looped", tmp_path), words, []),
        "left": (dense, text, ["--memory", "720K"]),
    }
    found = llmconv.calibrate(dense, text, memory="720K", device="cpu")
    assert found.loaded(llmconv.open(dense)).wants is not None
    wanted = []
    for name, (model, of, how) in cases.items():
        for size in {"dense": (1, 4), "left": (2,)}.get(name, (1, 3)):
            out = tmp_path / f"{name}-{size}.gguf"
            wanted.append(run(size, "quantize", model, "-o", out, "-t", "Q4_0", "--pure", "--calibrate", of, *how))
            wanted[-1]["args"] += ["-j", str(1 + size % 2)]
    for made in teams.runs(*wanted):
        assert not any(made["codes"]), made["err"]
    for one, other in (
        ("dense-1", "dense-4"),
        ("experts-1", "experts-3"),
        ("looped-1", "looped-3"),
        ("dense-1", "left-2"),
    ):
        assert (tmp_path / f"{one}.gguf").read_bytes() == (tmp_path / f"{other}.gguf").read_bytes(), other


def test_one_that_dies(tmp_path: Path) -> None:
    """In the statistics, and between layers: one sentence; resumed by another number, the bytes of one process."""
    model = runnable.write(runnable.checkpoint(layers=3), tmp_path / "m.gguf")
    text = tmp_path / "t.txt"
    text.write_text(runnable.text(1300))

    def quantize(size: int, name: str, **more: Any) -> dict[str, Any]:
        out = tmp_path / name / "q.gguf"
        out.parent.mkdir(exist_ok=True)
        return run(size, "quantize", model, "-o", out, "-t", "Q4_0", "--calibrate", text, "--resumable", **more)

    sums, settled = (f"llmconv.runtime.calibrate.{name}" for name in ("shared:Sum.add", "kept:Rounds.settle"))
    whole, early, late, again = teams.runs(
        quantize(1, "whole"),
        quantize(2, "early", kill=[1, 40, sums]),
        quantize(3, "late", kill=[1, 2, settled]),
        quantize(2, "late"),
    )
    assert not any(whole["codes"] + again["codes"]), again["err"]
    for killed, size in ((early, 2), (late, 3)):
        (sentence,) = killed["err"][0].splitlines()
        assert killed["codes"][1] == -9 and 0 not in killed["codes"]
        assert sentence.startswith("llmconv: ") and f"another of the run's {size} processes ended" in sentence
    assert only(tmp_path / "early") == [] and only(tmp_path / "late") == ["q.gguf"]
    assert (tmp_path / "late" / "q.gguf").read_bytes() == (tmp_path / "whole" / "q.gguf").read_bytes()
