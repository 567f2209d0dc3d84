"""The sweep: one read, an evaluation a type, a report of what was measured, and going on after an interruption."""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="a sweep evaluates with torch")

import llmconv
from llmconv.cli import cli
from llmconv.convert.vocab import from_words
from llmconv.formats import gguf_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.progress import Step
from llmconv.runtime.measure import sweep as engine, sweep_report
from llmconv.runtime.measure.sweep import SweepRow
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.initial import fresh_checkpoint

WORDS = [f"w{i}" for i in range(60)]
ROW = SweepRow("Q8_0", 800, 8.5, 10.0, 0.1, 1.0, 0.001, 0.0001, 0.1, 0.99, 0.1, 0.2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose rows are whole superblocks, with a word vocabulary."""
    config = TrainConfig(data="-", output="-", preset="llama-15m", dim=256, layers=1, heads=4, ffn=256)
    vocab = from_words(["[PAD]", "[UNK]", "[EOS]", *WORDS])
    checkpoint = fresh_checkpoint(config, vocab)
    wide = {
        n: t.map(lambda x: x * 8 if x.shape[-1] > 1 else x, t.type) if "norm" not in n else t
        for n, t in checkpoint.tensors.items()
    }
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    gguf_file.save(Checkpoint(wide, checkpoint.metadata), path)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "t.txt"
    rng = np.random.default_rng(0)
    path.write_text(" ".join(rng.choice(WORDS, 300)))
    return path


def run(model: Path, text: Path, output: Path, *types: str, **options: Any) -> engine.Sweep:
    return llmconv.sweep(model, text, types, output, context=16, chunks=4, device="cpu", plots=False, **options)


def test_a_report_of_what_was_measured(model: Path, text: Path, tmp_path: Path) -> None:
    found = run(model, text, tmp_path, "Q8_0", "Q4_0")
    assert [row.type for row in found.rows] == ["Q8_0", "Q4_0"]
    eight, four = found.rows
    assert eight.size == (tmp_path / "m-Q8_0.gguf").stat().st_size > four.size
    assert 0 < eight.mean_kld < four.mean_kld
    assert abs(eight.ppl_ratio - 1) < abs(four.ppl_ratio - 1) + 0.05
    direct = llmconv.compare(model, tmp_path / "m-Q4_0.gguf", text, context=16, chunks=4, device="cpu")
    assert four.mean_kld == pytest.approx(direct.mean_kld, rel=1e-6)
    assert found.ppl == pytest.approx(direct.ppl_a, rel=1e-9)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rows"][1]["mean_kld"] == four.mean_kld
    assert "| Q4_0 |" in (tmp_path / "report.md").read_text()


def test_it_goes_on_where_it_stopped(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = engine.compare
    calls: list[str] = []

    def interrupted(a: Any, b: Path, *rest: Any, **options: Any) -> Any:
        calls.append(b.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(a, b, *rest, **options)

    monkeypatch.setattr(engine, "compare", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"the same command goes on from .*sweep\.json"):
        run(model, text, tmp_path, "Q8_0", "Q5_0", "Q4_0")
    stamp = (tmp_path / "m-Q4_0.gguf").stat().st_mtime_ns
    found = run(model, text, tmp_path, "Q8_0", "Q5_0", "Q4_0", keep=False)
    assert calls == ["m-Q8_0.gguf", "m-Q5_0.gguf", "m-Q5_0.gguf", "m-Q4_0.gguf"]
    assert stamp  # quantized once: only what was still to be measured is gone now
    assert len(found.rows) == 3
    assert not (tmp_path / "m-Q4_0.gguf").exists()
    with pytest.raises(llmconv.OutputError, match="another model, text or options"):
        llmconv.sweep(model, text, ["Q8_0"], tmp_path, context=8, device="cpu", plots=False)


def test_the_frontier_is_what_no_other_beats() -> None:
    rows = [
        replace(ROW, type=name, size=size, mean_kld=kld)
        for name, size, kld in (
            ("big", 9, 0.001),
            ("worse", 9, 0.01),
            ("middle", 6, 0.005),
            ("beaten", 7, 0.006),
            ("small", 3, 0.1),
        )
    ]
    assert sweep_report.frontier(rows) == {"big", "middle", "small"}


class Page(HTMLParser):
    """Which tags a page has, and whether anything in it would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href") and not (v or "").startswith("data:")]


def test_the_page_is_self_contained_and_safe() -> None:
    sweep = engine.Sweep("<script>x</script>.gguf", "t.txt", 8, 10, 2000, 9.0, 0.1, [ROW, replace(ROW, type="Q4_0")])
    text = sweep_report.html_page(sweep, b"png")
    page = Page()
    page.feed(text)
    assert page.fetched == []
    assert page.tags.count("script") == 2
    assert page.tags.count("tr") == 3
    assert "<script>x" not in text


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    sweep = engine.Sweep(
        "m.gguf", "t.txt", 8, 10, 2000, 9.0, 0.1, [ROW, replace(ROW, type="Q4_0", size=500, mean_kld=0.0)]
    )
    with (tmp_path / "p.png").open("wb") as file:
        sweep_report.plot(sweep, file)
    assert (tmp_path / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_bad_input(model: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(llmconv.UsageError, match="no types"):
        run(model, text, tmp_path)
    with pytest.raises(llmconv.UsageError, match="Q9"):
        run(model, text, tmp_path, "Q9")
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(llmconv.BadFile, match="no state of a sweep"):
        run(model, text, tmp_path, "Q8_0")


def test_a_text_that_can_not_be_scored_is_refused_before_quantizing(model: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    with pytest.raises(llmconv.UsageError, match="fewer than one chunk of 16"):
        run(model, tmp_path / "short.txt", tmp_path / "out", "Q8_0")
    wordless = llmconv.open(model)
    keys = {k: v for k, v in wordless.metadata.items() if not k.startswith("tokenizer.")}
    gguf_file.save(replace(wordless, metadata=keys), tmp_path / "wordless.gguf")
    with pytest.raises(llmconv.BadFile, match=r"wordless.gguf: holds no tokenizer"):
        run(tmp_path / "wordless.gguf", tmp_path / "short.txt", tmp_path / "out", "Q8_0")
    assert not (tmp_path / "out").exists()


def test_a_quantized_model_is_swept_on_request(model: Path, text: Path, tmp_path: Path) -> None:
    llmconv.quantize(model, tmp_path / "q8.gguf", "Q8_0")
    arguments = ["sweep", tmp_path / "q8.gguf", text, "--types", "Q4_0", "-c", 16, "--chunks", 4, "--no-plot", "-q"]
    arguments = [str(a) for a in [*arguments, "-o", tmp_path / "out", "--device", "cpu"]]
    refused = CliRunner().invoke(cli, arguments)
    assert isinstance(refused.exception, llmconv.Unsupported) and "allow_requantize=True" in str(refused.exception)
    assert CliRunner().invoke(cli, [*arguments, "--allow-requantize"]).exit_code == 0
    assert json.loads((tmp_path / "out/report.json").read_text())["rows"][0]["mean_kld"] > 0


def test_a_json_model_is_measured_over_pairs(root: Path, tmp_path: Path) -> None:
    """A model that looks both ways has no text to be scored on, only input/target pairs; A's figure is perplexity's."""
    source, pairs = root / "examples" / "simple-36k.json", root / "examples" / "pairs.json"
    found = llmconv.sweep(source, pairs, ["Q8_0"], tmp_path, chunks=40, device="cpu", plots=False)
    alone = llmconv.perplexity(source, pairs, chunks=40, device="cpu")
    assert found.ppl == pytest.approx(alone.perplexity, rel=1e-6)
    assert found.tokens == alone.tokens
    assert 0 < found.rows[0].mean_kld < 0.05
    verdict = llmconv.verify(source, tmp_path / "simple-36k-Q8_0.gguf", run=pairs)
    assert verdict.same
    assert verdict.run.ppl_a != verdict.run.ppl_b


def test_steps_report_how_far_they_are(model: Path, text: Path, tmp_path: Path) -> None:
    seen: list[Step] = []
    run(model, text, tmp_path, "Q8_0", "Q4_0", progress=seen.append)
    works = list(dict.fromkeys((step.what, step.item) for step in seen))
    assert works == [("quantize", "Q8_0, Q4_0"), ("compare", "Q8_0"), ("compare", "Q4_0")]
    for work in works:
        last = [step for step in seen if (step.what, step.item) == work][-1]
        assert last.done == last.total > 0


def test_an_importance_matrix_is_used_and_recognised(model: Path, text: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {n: rng.random(t.shape[-1]) for n, t in llmconv.open(model).tensors.items() if len(t.shape) == 2}
    weights = tmp_path / "weights.dat"

    def write(scale: float) -> None:
        out = struct.pack("<i", len(rows))
        for name, values in rows.items():
            out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, len(values))
            out += (values * scale).astype("<f4").tobytes()
        weights.write_bytes(out)

    write(1.0)
    found = run(model, text, tmp_path / "out", "Q4_0", imatrix=str(weights))
    assert llmconv.open(tmp_path / "out" / "m-Q4_0.gguf").metadata["quantize.imatrix.entries_count"] == len(rows)
    assert run(model, text, tmp_path / "out", "Q4_0", imatrix=weights).rows == found.rows  # nothing is measured again
    write(2.0)
    with pytest.raises(llmconv.OutputError, match="another model, text or options"):
        run(model, text, tmp_path / "out", "Q4_0", imatrix=weights)
    with pytest.raises(llmconv.BadFile, match="no such file"):
        run(model, text, tmp_path / "out", "Q4_0", imatrix=tmp_path / "nothing.dat")


def test_a_missing_matplotlib_is_named_before_any_work(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(llmconv.UsageError, match="needs matplotlib; install it with: pip install matplotlib"):
        llmconv.sweep(model, text, ["Q8_0"], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
