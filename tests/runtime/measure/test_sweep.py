"""The sweep: one read, an evaluation a type, a report of what was measured, and going on after an interruption."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="a sweep evaluates with torch")

import llmconv
from llmconv.cli import cli
from llmconv.convert.vocab import from_words
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.progress import Step
from llmconv.runtime.measure import sharing, sweep as engine, sweep_card, sweep_report
from llmconv.runtime.measure.sweep import SweepRow
from llmconv.runtime.measure.sweep_state import State
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


def test_mixes_are_points_of_the_curve(model: Path, text: Path, tmp_path: Path) -> None:
    """A row for each size, as quantize makes it; taken up again with the same calibration only."""
    size = (llmconv.quantize(model, tmp_path / "q", "Q4_0").output.size + 4000, "300K")
    known = llmconv.OnText(text, effort="fast", context=16, chunks=4, device="cpu")
    found = run(model, text, tmp_path / "s", "Q8_0", target_sizes=size, calibration=known)
    assert [row.type for row in found.rows] == ["Q8_0", f"MIX-{size[0]}", "MIX-300K"]
    assert 0.99 * size[0] < found.rows[1].size <= size[0] and found.rows[2].size <= 300_000
    assert "--types Q8_0 --target-size" in found.about["command"] and found.about["calibration"]
    direct = llmconv.quantize(model, tmp_path / "d", target_size=size[0], calibration=known)
    assert (tmp_path / "d").read_bytes() == (tmp_path / "s" / found.rows[1].file).read_bytes() and direct.written
    with pytest.raises(llmconv.LlmconvError, match="another model, text or options"):
        run(model, text, tmp_path / "s", "Q8_0", target_sizes=size)


def test_an_impossible_size_is_refused_before_any_file_is_made(model: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(llmconv.UsageError, match="the smallest file of these types"):
        run(model, text, tmp_path, "Q8_0", target_sizes=("1M", 1000))
    assert not list(tmp_path.glob("*.gguf"))


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
    assert sweep_card.MARK in (tmp_path / "README.md").read_text()
    made = found.rows[1]
    assert made.sha256 == hashlib.sha256((tmp_path / made.file).read_bytes()).hexdigest()
    assert made.ppl_ratio_stderr > 0 and found.kv_cache > 0


def test_it_goes_on_where_it_stopped(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = engine.compared
    calls: list[str] = []

    def interrupted(a: Any, b: Path, *rest: Any, **options: Any) -> Any:
        calls.append(b.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(a, b, *rest, **options)

    monkeypatch.setattr(engine, "compared", interrupted)
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


def test_the_original_runs_once(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, ran = sharing.Passed, []

    def watched(model: Any, *rest: Any) -> Any:
        ran.append(Path(model.where).name)
        return whole(model, *rest)

    monkeypatch.setattr(sharing, "Passed", watched)
    found = run(model, text, tmp_path, "Q8_0", "Q5_0", "Q4_0")
    assert ran == ["m.gguf", "m-Q8_0.gguf", "m-Q5_0.gguf", "m-Q4_0.gguf"]
    for row in found.rows:
        assert row.ppl / row.ppl_ratio == pytest.approx(found.ppl, rel=1e-12)


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
    text = sweep_report.html_page(sweep, sweep_report.plot(sweep))
    page = Page()
    page.feed(text)
    assert page.fetched == []
    assert page.tags.count("script") == 2
    assert page.tags.count("tr") == 4
    assert "<script>x" not in text


SWEEP = engine.Sweep(
    "m.gguf",
    "t.txt",
    8,
    10,
    2_000_000,
    9.0,
    0.1,
    [
        replace(ROW, type=name, size=size, mean_kld=kld, ppl=9 + kld, file=f"m-{name}.gguf", sha256="ab" * 32)
        for name, size, kld in (
            ("Q8_0", 1_000_000, 0.0),
            ("Q6_K", 800_000, 0.001),
            ("Q5_K_M", 795_000, 0.0011),
            ("Q5_0", 800_000, 0.00105),
            ("Q4_K_M", 600_000, 0.01),
            ("Q4_0", 601_000, 0.0101),
            ("Q3_K_M", 500_000, 0.2),
        )
    ],
    bits_per_weight=16.0,
    about={"made by": "llmconv 1", "command": "llmconv sweep m.gguf t.txt"},
    card={"license": "mit", "name": "M"},
)


def test_the_plot_s_labels_keep_apart() -> None:
    picture = ElementTree.fromstring(sweep_report.plot(SWEEP))
    of = "{http://www.w3.org/2000/svg}"
    assert picture.get("role") == "img" and "prefers-color-scheme:dark" in picture.findtext(f"{of}style", "")
    for panel in picture.findall(f"{of}g"):
        labels = [t for g in panel.findall(f"{of}g") for t in g.findall(f"{of}text")]
        assert {t.text for t in labels} == {row.type for row in SWEEP.rows}
        boxes = [(float(t.get("x", 0)), float(t.get("y", 0)), len(t.text or "") * 6.3) for t in labels]
        for i, (x, y, wide) in enumerate(boxes):
            assert all(abs(y - v) >= 12 or x + wide <= u or u + w <= x for u, v, w in boxes[:i])
            assert x > 60 and x + wide < 562
        bars = [g for g in panel.findall(f"{of}g") if g.find(f"{of}path[@class='bar']") is not None]
        assert len(bars) == len(SWEEP.rows) or panel is picture.findall(f"{of}g")[1]


def test_every_difference_has_its_error_and_the_original_a_row() -> None:
    text = sweep_report.markdown(SWEEP)
    assert "| original | 2.00 | 16.000 | 9.0000 ± 0.1000 |" in text
    row = next(line for line in text.splitlines() if line.startswith("| Q8_0"))
    assert row.count("±") == 3 and "sha256 abab" in text and "command: llmconv sweep m.gguf" in text


def test_the_card_has_front_matter_and_says_which_to_choose() -> None:
    text = sweep_card.card(SWEEP)
    front, rest = text.removeprefix("---\n").split("\n---\n", 1)
    assert "license: mit" in front and "library_name: gguf" in front and rest.count("| `m-Q") == 7
    assert "| 1 GB | Q8_0 | 1 MB |" in text
    big = replace(SWEEP, rows=[replace(r, size=r.size * 4000) for r in SWEEP.rows], kv_cache=10**9, kv_context=4096)
    chosen = [line for line in sweep_card.card(big).splitlines() if " GB | Q" in line]
    assert [line.split(" | ")[1] for line in chosen] == ["Q3_K_M", "Q4_K_M", "Q6_K", "Q8_0"] or len(chosen) >= 2
    for line in chosen:
        memory, kind, needs = line.strip("| ").split(" | ")
        row = next(r for r in big.rows if r.type == kind)
        assert (row.size + 10**9) * 1.1 <= float(memory.split()[0]) * 1e9 and needs.endswith(" MB")


def test_bad_input(model: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(llmconv.UsageError, match="no types"):
        run(model, text, tmp_path)
    with pytest.raises(llmconv.UsageError, match="Q9"):
        run(model, text, tmp_path, "Q9")
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(llmconv.BadFile, match="no state of a sweep"):
        run(model, text, tmp_path, "Q8_0")


@pytest.mark.parametrize("where", [*asdict(ROW), "base", "seconds", "identity", "rows", "tokens", "device"])
def test_a_state_of_wrong_types_is_refused(where: str, tmp_path: Path) -> None:
    base = {"ppl": 3.0, "ppl_stderr": 0.5, "context": 16, "tokens": 32, "device": "cpu"}
    state = {"identity": "x", "base": base, "rows": {"Q8_0": asdict(ROW)}, "seconds": {"Q8_0": 1}}
    place: Any = next(part for part in (state, state["rows"]["Q8_0"], base) if where in part)
    good, path = place[where], tmp_path / "sweep.json"
    others = ["800", None, True, [1], {"a": "b"}, 1.5, float("nan")]
    for value in (v for v in others if type(v) is not type(good) or v != v or (where in state and where != "identity")):
        place[where] = value
        path.write_text(json.dumps(state))
        with pytest.raises(llmconv.BadFile, match="is no state of a sweep; "):
            State.of(tmp_path, "x", fresh=False)
    place[where] = good
    path.write_text(json.dumps(state))
    assert State.of(tmp_path, "x", fresh=False).rows == {"Q8_0": asdict(ROW)}


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
