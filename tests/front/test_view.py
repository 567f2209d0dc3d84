"""The page about a model: whole, safe, and as a browser shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import dom, needs_browser, widths
from simple_model import document

import llmconv
from llmconv import Checkpoint, Tensor

HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    (folder / "m.json").write_text(json.dumps(document(heads=2)))
    llmconv.convert_file(folder / "m.json", folder / "plain.gguf")
    keys = {"general.name": HOSTILE, "tokenizer.chat_template": "{{ messages }} " + HOSTILE, "some.key": "x" * 500}
    llmconv.edit(folder / "plain.gguf", set=keys, output=folder / "m.gguf")
    return folder / "m.gguf"


@pytest.fixture(scope="module")
def page(model: Path) -> Path:
    return llmconv.view(model)


def embedded(page: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_has_everything_in_it(model: Path, page: Path) -> None:
    data, checkpoint = embedded(page), llmconv.open(model)
    assert page == model.with_name("m.gguf.html")
    assert [t["name"] for t in data["tensors"]] == list(checkpoint.tensors)
    for entry, found in zip(data["tensors"], llmconv.statistics(model), strict=True):
        values = checkpoint.tensors[entry["name"]].numpy()
        assert entry["stats"]["counts"] == np.histogram(values, 40)[0].tolist() or values.std() == 0
        assert sum(entry["stats"]["counts"]) == values.size and entry["stats"]["outliers"] == found.outliers
    assert data["tokens"] == list(checkpoint.metadata["tokenizer.ggml.tokens"]) and HOSTILE in data["template"]
    assert data["metadata"]["general.name"] == HOSTILE


def test_nothing_is_fetched_and_nothing_foreign_runs(page: Path) -> None:
    text = page.read_text()
    assert "default-src 'none'" in text and not re.search(r'(?:src|href)="|@import|url\(', text)
    assert text.count("<script") == 2 == text.count("</script>") and "<img" not in text


def test_where_it_can_t_be_written(model: Path, page: Path, tmp_path: Path) -> None:
    with pytest.raises(llmconv.OutputExists, match="use force=True"):
        llmconv.view(model, page)
    made = Checkpoint()
    made.add(Tensor.from_array("w", np.ones((2, 3), np.float32)))
    with pytest.raises(llmconv.UsageError, match="give output"):
        llmconv.view(made)
    data = embedded(llmconv.view(made, tmp_path / "x.html", stats=False))
    assert data["tokens"] == [] and "stats" not in data["tensors"][0]


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_it(page: Path, tmp_path: Path) -> None:
    data = embedded(page)
    tree = dom(page, tmp_path / "a", "t=blk.0.attn_q.weight")
    assert tree.count('<details id="t:blk.0.') > 3 and '<div class="bars">' in tree
    assert "&lt;script&gt;alert(1)" in tree and "<img" not in tree
    word = next(t for t in data["tokens"] if len(t) > 1 and t.isalnum())
    found = dom(page, tmp_path / "b", f"q={word}")
    wanted = [t for t in data["tokens"] if word in t]
    assert f"{len(wanted)} of {len(data['tokens'])} tokens" in found
    assert found.split('id="tokens"')[1].split("</table>")[0].count("<tr>") == len(wanted)


@needs_browser
@pytest.mark.slow
def test_it_fits_a_desk_and_a_phone(page: Path, tmp_path: Path) -> None:
    found = widths(page, tmp_path, 360, 1280)
    assert set(found) == {360, 1280} and all(wide <= inside for inside, wide in found.items())
