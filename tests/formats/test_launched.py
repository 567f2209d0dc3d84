"""Several processes as torchrun itself starts them: the bytes and figures of one, and the end when one of them dies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import launched
import pytest
import runnable
from folders import only

pytest.importorskip("torch")
pytestmark = pytest.mark.slow


def figures(text: str) -> dict[str, Any]:
    found = json.loads(text)["result"]
    return {k: v for k, v in found.items() if k not in ("seconds", "tokens_per_second", "path")}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_under_torchrun(tmp_path: Path) -> None:
    source = runnable.write(runnable.checkpoint(layers=4, dim=64, ffn=256), tmp_path / "m.gguf")
    small = str(runnable.write(runnable.checkpoint(), tmp_path / "s.gguf"))
    (tmp_path / "t.txt").write_text(runnable.text(3000))
    text, model = str(tmp_path / "t.txt"), str(source)

    def commands(name: str) -> list[list[str]]:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        measured = [text, "-c", "128", "--device", "cpu", "--json", "-q"]
        return [
            ["quantize", model, "-t", "Q5_K_M", "-o", str(out / "q.gguf"), "-j", "1", "--resumable"],
            ["convert", model, str(out / "hf"), "--outtype", "f16", "--max-shard-size", "200K"],
            ["verify", model, str(out / "q.gguf"), "--json", "--tolerance", "0.5"],
            ["imatrix", model, text, "-o", str(out / "i.gguf"), "-c", "128", "--device", "cpu", "-q"],
            ["perplexity", model, *measured],
            ["compare", model, str(out / "q.gguf"), *measured],
            ["convert", model, str(out / "split.gguf"), "--split-max-size", "300K"],
            ["calibrate", small, text, "-o", str(out / "k"), "-c", "64", "--chunks", "40", "--device", "cpu", "-q"],
            ["quantize", small, "-t", "Q4_0", "-o", str(out / "c.gguf"), "--calibration", str(out / "k"), "-j", "1"],
        ]

    single = launched.launch(tmp_path / "log1", 1, *commands("one"))
    two = launched.launch(tmp_path / "log2", 2, *commands("two"))
    quantize, *_ = commands("four")
    plain = [word for word in quantize if word != "--resumable"]
    for name, args, kill, left in (
        ("dead", plain, [1, 2], []),
        ("stopped", quantize, [1, 4], ["q.gguf.partial", "q.gguf.partial.journal"]),
    ):
        said, _ = launched.launch_and_kill(tmp_path / name, 2, args, kill)
        ours = [line for line in said.splitlines() if line.startswith("llmconv: ")]
        assert len(ours) == 1 and "processes" in ours[0] and "Traceback" not in said, said
        assert only(tmp_path / "four") == left
    four = launched.launch(tmp_path / "log4", 4, *commands("four"))  # which goes on from it
    for several in (two, four):
        for alone, shared in zip(single, several, strict=True):
            assert {*alone["code"], *shared["code"]} == {"0"}, (alone, shared)
            assert not any(shared["out"][1:]) and not any(shared["err"][1:])
        for i in (2, 4, 5):
            assert figures(several[i]["out"][0]) == figures(single[i]["out"][0])
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two") == bytes_of(tmp_path / "four")
