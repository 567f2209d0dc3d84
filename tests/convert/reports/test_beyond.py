"""Plans of runs that are larger than a machine, from shapes alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import llmconv
from llmconv.convert.reports.shape import shape_of
from llmconv.convert.reports.streaming import Sizes, plan_streaming, sizes_of
from llmconv.convert.reports.training_memory import PARTS
from llmconv.convert.tables.presets import preset

ROOT = Path(__file__).resolve().parents[3]


def test_every_tensor_is_somebodys(tmp_path: Path) -> None:
    plan = llmconv.shares("gpt2-small", "Q4_K_M", 5, disk=10**9, network=10**8, jobs=2)
    whole = llmconv.shares("gpt2-small", "Q4_K_M", 1)
    assert sum(s.tensors for s in plan.shares) > whole.shares[0].tensors  # rows of some are shared
    for figure in ("read", "written", "weights"):
        assert sum(getattr(s, figure) for s in plan.shares) == getattr(whole.shares[0], figure)
    assert whole.size == llmconv.size("gpt2-small").files["gguf Q4_K_M"]
    assert 0.9 < plan.balance <= 1
    slowest = max(max(s.seconds, s.moving) for s in plan.shares)
    assert plan.seconds == max(slowest, plan.disk_seconds)
    assert plan.disk_seconds == sum(s.nbytes for s in plan.shares) / 10**9


@pytest.mark.parametrize(
    ("rates", "bound"), [({}, "arithmetic"), ({"disk": 10**6}, "disk"), ({"network": 10}, "network")]
)
def test_what_it_is_bound_by(rates: dict[str, int], bound: str) -> None:
    assert llmconv.shares("gpt2-small", "Q4_K_M", 4, jobs=1, **rates).bound_by == bound


@pytest.mark.parametrize(
    ("name", "parameters", "nbytes"),
    [("deepseek-v3", 671_026_404_352, 671.2e9), ("kimi-k2", 1_026_408_209_408, 1.027e12)],
)
def test_the_giants_are_as_large_as_they_are(name: str, parameters: int, nbytes: float) -> None:
    """The parameters that their makers state (without V3's layer for a further token), in FP8 with scales."""
    plan = llmconv.shares(ROOT / "docs" / "shapes" / f"{name}.json", "Q4_K_M", 64)
    assert plan.parameters == parameters and plan.source_type == "F8_E4M3"
    assert plan.source_nbytes == pytest.approx(nbytes, rel=0.01)


@pytest.mark.parametrize(("devices", "machines"), [(1, ""), (8, "--nproc-per-node 8 -m"), (24, "--nnodes 3 ")])
def test_training_is_planned_with_what_to_type(devices: int, machines: str) -> None:
    from llmconv.cli import cli

    command = ["size", "llama3.1-70b", "--train", "--devices", str(devices), "-c", "2048", "--batch", "2", "--json"]
    found = json.loads(CliRunner().invoke(cli, command).stdout)["result"]
    whole = llmconv.size("llama3.1-70b")
    assert found["weights"] == found["gradients"] == -(-whole.parameters // devices) * 4
    assert (found["gathered"] > 0) == (devices > 1) and found["total"] == sum(found[part] for part in PARTS)
    typed = found["command"]
    assert machines in typed and f"--batch-size {2 * devices} --context 2048" in typed
    assert ("--parallel fsdp" in typed) == (devices > 1) and "--preset llama3.1-70b" in typed
    text = CliRunner().invoke(cli, ["size", "gpt2-small", "--train"]).stdout
    assert "512 devices" in text and "torchrun --nproc-per-node 8 --nnodes 64 --rdzv-backend c10d" in text


def sizes() -> Sizes:
    return sizes_of(shape_of(preset("llama2-7b")))


@pytest.mark.parametrize("memory", [1_200_000_000, 2_000_000_000, 8_000_000_000])
def test_a_plan_stays_within_its_memory(memory: int) -> None:
    plan = plan_streaming(sizes(), memory, 50_000, 512)
    assert not plan.resident and plan.peak <= memory
    assert plan.states + plan.scratch >= 50_000 * 4096 * 4
    assert plan.read == sizes().total


def test_what_fits_stays() -> None:
    assert plan_streaming(sizes(), 20_000_000_000, 50_000).resident


def test_too_little_memory_says_how_much_is_needed() -> None:
    with pytest.raises(llmconv.UsageError, match=r"give at least [0-9,]+") as caught:
        plan_streaming(sizes(), 100_000_000, 50_000, 512)
    least = int(str(caught.value).split("at least ")[1].split()[0].replace(",", ""))
    assert plan_streaming(sizes(), least, 50_000, 512).peak <= least
    with pytest.raises(llmconv.UsageError):
        plan_streaming(sizes(), least - 1_000_000, 50_000, 512)


def test_experts_are_read_one_by_one_where_a_layer_is_too_large() -> None:
    config: Any = json.loads((ROOT / "docs" / "shapes" / "deepseek-v3.json").read_text())
    plan = plan_streaming(sizes_of(shape_of(config)), 16_000_000_000, 10_000, 512)
    assert len(plan.apart) == 58 and plan.passes == 1 and plan.peak <= 16_000_000_000
