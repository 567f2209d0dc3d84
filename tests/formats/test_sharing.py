"""Several processes make one output: the bytes and figures of one, all of it or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import runnable
import teams
from folders import only

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


def same(a: Path, b: Path) -> bool:
    files = [p.relative_to(a) for p in a.rglob("*") if p.is_file()] if a.is_dir() else [Path()]
    return all((a / p).read_bytes() == (b / p).read_bytes() for p in files)


def figures(text: str) -> dict[str, Any]:
    found = json.loads(text)["result"]
    return {k: v for k, v in found.items() if k not in ("seconds", "tokens_per_second", "path")}


@pytest.mark.slow
def test_the_bytes_and_figures_are_those_of_one_process(folder: Path) -> None:
    (one, four) = (folder / "one", folder / "four")
    source, text = str(folder / "m.gguf"), str(folder / "text.txt")

    def commands(out: Path) -> list[list[str]]:
        out.mkdir()
        measured = [text, "-c", "128", "--device", "cpu", "--json", "-q"]
        return [
            ["quantize", source, "-t", "Q4_K_M", "-o", str(out / "q.gguf")],
            ["quantize", source, "-t", "Q8_0", "-o", str(out / "r.gguf"), "--resumable"],
            ["convert", source, str(out / "hf"), "--outtype", "f16", "--max-shard-size", "200K"],
            ["convert", source, str(out / "split.gguf"), "--split-max-size", "300K", "--json"],
            ["verify", source, str(out / "r.gguf"), "--json", "--tolerance", "0.1"],
            ["perplexity", source, *measured],
            ["compare", source, str(out / "r.gguf"), *measured],
            ["imatrix", source, text, "-o", str(out / "i.gguf"), "-c", "128", "--device", "cpu", "-q"],
        ]

    single = teams.runs(*({"size": 1, "args": args} for args in commands(one)))
    several = teams.runs(*({"size": 4, "args": args} for args in commands(four)))
    for alone, shared in zip(single, several, strict=True):
        assert alone["codes"] == [0], alone
        assert shared["codes"] == [0] * 4, shared
        assert not any(shared["out"][1:]) and not any(shared["err"][1:])
    assert only(one) == only(four)
    assert same(one, four)
    for i in (5, 6):
        assert figures(several[i]["out"][0]) == figures(single[i]["out"][0])
    assert figures(several[4]["out"][0]) == figures(single[4]["out"][0])


@pytest.mark.slow
def test_a_death_ends_the_run_with_a_sentence_and_can_be_gone_on_from(folder: Path) -> None:
    out = folder / "dead"
    out.mkdir()
    args = ["quantize", str(folder / "m.gguf"), "-t", "Q5_K_M", "-o", str(out / "q.gguf"), "-j", "1"]
    begun, resumed = teams.runs(
        {"size": 3, "args": args, "kill": [1, 3]},
        {"size": 3, "args": [*args, "--resumable"], "kill": [2, 5]},
    )
    assert not list(out.glob("q.gguf"))
    for run in (begun, resumed):
        assert -9 in run["codes"] and 0 not in run["codes"]
        assert len(run["err"][0].splitlines()) == 1 and "processes ended" in run["err"][0], run["err"]
    assert only(out) == ["q.gguf.partial", "q.gguf.partial.journal"]
    shutil.copytree(out, folder / "other")
    other = [*args[:5], str(folder / "other" / "q.gguf"), "-j", "1", "--resumable"]
    for run in teams.runs({"size": 2, "args": [*args, "--resumable"]}, {"size": 1, "args": other}):
        assert not any(run["codes"]), run
    llmconv.quantize(folder / "m.gguf", folder / "whole.gguf", "Q5_K_M")
    assert only(out) == ["q.gguf"]
    assert same(folder / "whole.gguf", out / "q.gguf") and same(folder / "whole.gguf", folder / "other" / "q.gguf")


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
