"""Several processes make one output: all of it or nothing (`test_launched` is of torchrun's own)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runnable
import teams

import llmconv
from llmconv.formats.sharing.team import shared_out


def test_work_is_shared_out_whole_and_evenly() -> None:
    costs = [5.0, 1.0, 9.0, 2.0, 2.0, 7.0, 0.0]
    for size in (1, 2, 4, 9):
        found = shared_out(costs, size)
        assert sorted(i for part in found for i in part) == list(range(len(costs)))
        assert max(sum(costs[i] for i in part) for part in found) <= sum(costs) / size + max(costs)


def test_rows_of_a_large_tensor_are_shared() -> None:
    from llmconv.formats.tensor import Tensor
    from llmconv.formats.writing.stream import shared
    from llmconv.formats.writing.target import Item, Sink, Target
    from llmconv.quant import by_name
    from llmconv.quant.plain import F32

    sink, kind = Sink(Path("x"), -1), by_name("Q8_0")
    sizes = {"large": (5000, 256), "small": (64, 256), "empty": (0, 256)}
    items = [Item(Tensor.shadow(n, s, F32), [Target(sink, kind, 0)]) for n, s in sizes.items()]
    for whole in (False, True):
        for size in (1, 3, 7):
            parts = [part for mine in shared(items, size, whole) for part in mine]
            for item in items:
                own = sorted((a, b) for one, a, b in parts if one is item)
                ends = [0, *(b for _, b in own)]
                assert [a for a, _ in own] == ends[:-1] and ends[-1] == item.tensor.n_rows  # all rows, each once
                assert all(a % 16 == 0 for a, _ in own) and (len(own) == 1 or not whole)
    counts = [sum(b - a for _, a, b in mine) for mine in shared(items, 7)]
    assert max(counts) < 1.2 * sum(counts) / 7


def test_one_process_is_no_team() -> None:
    with llmconv.together() as team:
        assert team is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    made = tmp_path_factory.mktemp("team")
    runnable.write(runnable.checkpoint(layers=4, dim=64, ffn=256), made / "m.gguf")
    (made / "text.txt").write_text(runnable.text(4000))
    return made


@pytest.mark.slow
def test_what_one_refuses_all_refuse(folder: Path) -> None:
    pytest.importorskip("torch")

    def spoil(values: Any) -> None:
        values[3, 5] = float("nan")

    broken = runnable.changed(runnable.checkpoint(layers=4, dim=64, ffn=256), "blk.1.ffn_up.weight", spoil)
    path = runnable.write(broken, folder / "broken.gguf")
    bad, json_too = teams.runs(
        {"size": 3, "args": ["quantize", str(path), "-t", "Q8_0", "-o", str(folder / "b.gguf")]},
        {"size": 2, "args": ["convert", str(folder / "m.gguf"), str(folder / "m.json")]},
    )
    assert 0 not in bad["codes"] and "blk.1.ffn_up.weight" in bad["err"][0]
    assert len(bad["err"][0].splitlines()) == 1
    assert "several processes write GGUF and safetensors" in json_too["err"][0]
    assert not list(folder.glob("b.gguf*")) and not list(folder.glob(".llmconv-*"))
