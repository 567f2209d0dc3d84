"""Results look like tables in a notebook, and nothing in them is taken for markup."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import llmconv
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.show import Shown


@dataclass(frozen=True)
class Row(Shown):
    name: str
    n: int = 1234567
    share: float = 0.25


@dataclass(frozen=True)
class Report(Shown):
    rows: list[Row] = field(default_factory=list)
    parts: dict[str, int] = field(default_factory=dict)


def test_a_report_is_nested_tables() -> None:
    page = Report([Row("<b>"), Row("c")], {"x": 3})._repr_html_()
    assert page.count("<table>") == 3
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert "1,234,567" in page


def test_long_lists_are_cut() -> None:
    page = Report([Row(str(i)) for i in range(100)])._repr_html_()
    assert "… 40 more" in page


def test_a_checkpoint_lists_its_tensors() -> None:
    checkpoint = Checkpoint()
    for i in range(70):
        checkpoint.add(Tensor.from_array(f"<t{i}>", np.zeros((2, 3), np.float32)))
    page = checkpoint._repr_html_()
    assert "&lt;t0&gt;" in page and "<t0>" not in page
    assert "2 × 3" in page and "… 10 more" in page
    assert "70 tensors" in repr(checkpoint)


def test_real_results_show() -> None:
    assert "124,439,808" in llmconv.size("gpt2-small")._repr_html_()
    model = Checkpoint({"x": Tensor.from_array("x", np.ones(3, np.float32))}, {"general.architecture": "none"})
    assert "identical" in llmconv.verify(model, model)._repr_html_()


def test_results_are_json() -> None:
    @dataclass(frozen=True)
    class Odd(Shown):
        path: Path
        pairs: tuple[tuple[str, float], ...]
        counts: object
        row: Row

    odd = Odd(Path("a/b"), (("x", float("inf")), ("y", 1.0)), np.array([1, 2]), Row("c", share=float("nan")))
    assert odd.as_dict() == {
        "path": str(Path("a/b")), "pairs": [["x", None], ["y", 1.0]], "counts": [1, 2],
        "row": {"name": "c", "n": 1234567, "share": None},
    }  # fmt: skip
    zero, one = (
        Checkpoint({"x": Tensor.from_array("x", fill((2, 4), np.float32))}, {"general.architecture": "none"})
        for fill in (np.zeros, np.ones)
    )
    found = llmconv.verify(zero, one).as_dict()  # an infinite relative error, no angle
    assert json.loads(json.dumps(found, allow_nan=False))["tensors"][0]["relative"] is None
    assert (found["same"], found["counts"]) == (False, {"different": 1})


def test_a_repr_is_a_line_however_much_it_holds() -> None:
    assert repr(Row("a")) == "Row(name='a', n=1234567, share=0.25)"
    assert repr(Report([Row("a")], {"x": 1})) == "Report(rows=[Row(name='a', n=1234567, share=0.25)], parts={'x': 1})"
    many = Report([Row(str(i)) for i in range(100)], {f"k{i}": i for i in range(30)})
    assert repr(many) == "Report(rows=[100 x Row], parts={'k0': 0, 'k1': 1, 'k2': 2, 'k3': 3, … 26 more})"
    model = Checkpoint({"x": Tensor.from_array("x", np.ones(3, np.float32))}, {"general.architecture": "none"})
    assert repr(llmconv.verify(model, model)) == "Verdict(same=True, tensors={'identical': 1}, hparams={}, vocab=[])"
    assert repr(llmconv.histogram(model, "x", 10)) == "Histogram(edges=float64[11], counts=int64[10], nonfinite=0)"
    assert "0.5" in llmconv.histogram(model, "x", 10)._repr_html_()
    assert len(repr(llmconv.size("llama2-7b"))) < 1500
    assert eval(repr(Row("a"))) == Row("a")
