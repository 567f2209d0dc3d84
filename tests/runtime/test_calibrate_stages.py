"""Layers rounded in stages: which matrices wait for which, and the same bytes whether batches wait or begin again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import runnable
from worded import by_hand_gguf

import llmconv

torch = pytest.importorskip("torch")

from llmconv.runtime.calibrate import sequence
from llmconv.runtime.calibrate.layered import Between
from llmconv.runtime.calibrate.stages import stages_of
from llmconv.runtime.calibrate.threads import by_turns
from llmconv.runtime.calibrate.units import embedded, units


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return runnable.write(runnable.checkpoint(layers=2), tmp_path / "m.gguf")


def stages(path: Path) -> list[list[str]]:
    """Of the last layer, in words."""
    loaded = llmconv.load(path, "cpu")
    *_, unit, _head = units(loaded)
    states = Between(loaded, [torch.arange(24).view(2, 12) % loaded.decoder.vocab_size])
    states.begin(lambda tokens: embedded(loaded, tokens))
    names = [name for name in unit.modules if "norm" not in name]
    with torch.inference_mode():
        return [[name.split(".")[2] for name in stage] for stage in stages_of(loaded, unit, names, states)]


def test_stages_are_matrices_of_one_input(model: Path, tmp_path: Path) -> None:
    wanted = [{"attn_q", "attn_k", "attn_v"}, {"attn_output"}, {"ffn_gate", "ffn_up"}, {"ffn_down"}]
    assert [set(stage) for stage in stages(model)] == wanted
    assert len(stages(by_hand_gguf("deepseek1", tmp_path))) == 1  # experts are met in no order


def test_waiting_changes_no_byte(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "t.txt"
    text.write_text(runnable.text(300))
    monkeypatch.setattr("llmconv.runtime.calibrate.calibration._BATCH", 64)
    known = llmconv.calibrate(model, text, context=32, device="cpu")
    for name in ("waiting", "again"):
        llmconv.quantize(model, tmp_path / name, "Q4_0", pure=True, calibration=known, jobs=1)
        monkeypatch.setattr(sequence, "may_wait", lambda *_: False)
    assert (tmp_path / "waiting").read_bytes() == (tmp_path / "again").read_bytes()


def test_later_stages_see_what_earlier_ones_became(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes into a layer's last matrix, against the model of which all before it is rounded already."""
    text, seen = tmp_path / "t.txt", dict[str, Any]()
    text.write_text(runnable.text(200))
    known = llmconv.calibrate(model, text, context=32, device="cpu", effort="fast")
    kept = sequence.round_tensors

    def watched(tensors: Any, *more: Any) -> Any:
        seen.update({str(tensors[0].shape): tensors[0].inputs.h[0].clone()} if len(tensors) == 1 else {})
        return kept(tensors, *more)

    monkeypatch.setattr(sequence, "round_tensors", watched)
    llmconv.quantize(model, tmp_path / "q.gguf", "Q4_0", pure=True, calibration=known, token_embedding_type="F32")
    rounded, inputs = llmconv.load(tmp_path / "q.gguf", "cpu"), list[Any]()
    rounded.blk[1].ffn_down.register_forward_pre_hook(lambda _, given: inputs.append(given[0].flatten(0, 1)))
    with torch.inference_mode():
        for batch in known.batches:
            rounded(batch)
    x = torch.cat(inputs).double()
    torch.testing.assert_close(seen["(1, 32, 64)"].double(), x.T @ x / len(x), rtol=1e-4, atol=1e-5)


def test_turns_end_with_an_error_and_when_nobody_waits() -> None:
    def work(rest: Any) -> int:
        rest()
        rest()
        raise ValueError("the third part")

    way, left = by_turns(work), by_turns(work)
    next(way), next(left)
    next(way)
    left.close()
    with pytest.raises(ValueError, match="the third part"):
        next(way)
    assert not [t for t in threading.enumerate() if t.name == "llmconv-turns"]
