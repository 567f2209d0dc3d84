"""Pictures of a measure: what their points stand for."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("torch", reason="a measure runs torch")

import torch

import llmconv
from llmconv.convert.vocab import from_words
from llmconv.runtime.measure.along import Along, kind_of_token
from llmconv.runtime.measure.charts import Panel, Point, svg
from llmconv.runtime.measure.chunks import Batch

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("token", "kind"),
    [("▁Hello", "word"), ("ing", "part of a word"), ("Ġ42", "number"), ("▁", "white space"), ("Ċ", "white space"),
     ("...", "punctuation"), ("x1", "other"), ("Ġdon't", "word")],
)  # fmt: skip
def test_kinds_of_tokens(token: str, kind: str) -> None:
    assert kind_of_token(token, False) == kind and kind_of_token(token, True) == "special"


def test_a_picture_shows_the_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmconv.runtime.measure import along

    drawn: list[Panel] = []
    monkeypatch.setattr(along, "svg", lambda panels, title: drawn.extend(panels) or "<svg/>")
    gathered = Along(tmp_path / "p.svg", ("A",), "KLD")
    values = torch.arange(12, dtype=torch.float64).view(2, 6)
    targets = torch.tensor([[3, 4, 3, 4, 3, 4]] * 2)
    gathered.add(Batch(values.long(), slice(4, 10), targets, range(2)), values, 2 * values)
    vocab = from_words(["[PAD]", "[UNK]", "[EOS]", "one", "22"])
    gathered.draw(type("T", (), {"vocab": vocab}), "x")
    assert drawn[0].lines["A"] == [(float(i), float(i)) for i in range(12)]
    assert drawn[1].lines[""] == [(4.0 + i, 2.0 * (i + i + 6) / 2) for i in range(6)]
    points = {p.label: p for p in drawn[2].points}
    assert points["number"].x == 50 and points["number"].y == np.mean([2, 6, 10, 14, 18, 22])


def test_charts_are_whatever_the_figures_are() -> None:
    for points in ([], [Point(1, 0.0)], [Point(1, 5), Point(1, 5)], [Point(1e9, 1e-12, 1e-9, "<b>")]):
        for log in (False, True):
            assert ElementTree.fromstring(svg([Panel("t & t", "x", "y", points, log=log)], "<t>")).tag == f"{SVG}svg"


def test_commands_draw(shared: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from llmconv.cli import cli

    model = str(shared / "stories260K" / "stories260K-f32.gguf")
    text = str(shared / "text" / "tinystories-sample.txt")
    common = ["-c", "32", "--chunks", "2", "--device", "cpu"]
    for name, models in (("perplexity", [model]), ("compare", [model, model])):
        path = tmp_path / f"{name}.svg"
        arguments = [name, *models, text, *common, "--plot", str(path)]
        plain = CliRunner().invoke(cli, [*arguments[:-2], "--json"])
        made = CliRunner().invoke(cli, [*arguments, "--json"])
        assert made.exit_code == 0, made.output
        one, other = (json.loads(r.stdout)["result"] for r in (plain, made))
        assert one["tokens"] == other["tokens"]
        assert len(ElementTree.parse(path).getroot().findall(f"{SVG}g")) == 3
        again = CliRunner().invoke(cli, arguments)
        assert isinstance(again.exception, llmconv.OutputExists) and "choose another name" in str(again.exception)
