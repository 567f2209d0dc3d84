"""A model whose weights stay in the file gives the numbers of one in memory, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models

import llmconv
from llmconv.convert.reports import streaming
from llmconv.convert.reports.streaming import StreamingPlan

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*torch:DeprecationWarning")]

NAMES = ("llama-gqa-tied-bf16", "gpt2", "mixtral", "deepseek-v3", "qwen3-moe", "gpt-oss", "jamba", "mamba2")
"""Dense ones, experts with and without a dense layer before them or shared ones, scans beside attention, scans."""
EXPERTS = ("mixtral", "gpt-oss", "jamba")  # of the others the embedding is larger than a layer


def smallest(model: Any) -> int:
    """The least memory that a model says it can be run with."""
    with pytest.raises(llmconv.UsageError, match="too small for the largest part") as caught:
        llmconv.load(model, "cpu", memory=1)
    return int(str(caught.value).split("at least ")[1].split()[0].replace(",", ""))


def streamed(model: Any, memory: int) -> tuple[Any, StreamingPlan]:
    """The model with its weights in the file, and the plan."""
    from llmconv.runtime.streamed.weights import Weights

    found = llmconv.load(model, "cpu", memory=memory)
    assert isinstance(found.wants, Weights)
    return found, found.wants.plan


def batches_of(vocabulary: int) -> list[Any]:
    """Batches of several shapes."""
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(0, vocabulary, shape, generator=draw) for shape in ((3, 20), (2, 20), (1, 7))]


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_gives_the_same_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmconv.runtime.streamed.passing import Passed

    pytest.importorskip("transformers")
    tiny_models.build(name, tmp_path)
    monkeypatch.setattr(streaming, "BATCH", 32)  # so that results inside a layer are smaller than weights
    resident = llmconv.load(tmp_path, "cpu")
    batches = batches_of(96)
    least, apart = smallest(tmp_path), list[bool]()
    with torch.inference_mode():
        expected = [resident.hidden(tokens) for tokens in batches]
        for memory in (least, least + 30_000, least + 150_000):
            try:
                model, plan = streamed(tmp_path, memory)
            except AssertionError:
                assert memory > least
                continue
            with Passed(model, batches) as passed:
                for i, (tokens, hidden) in enumerate(zip(batches, expected, strict=True)):
                    assert torch.equal(passed.hidden(i), hidden), (name, plan)
                    assert torch.equal(model.head(passed.hidden(i)), resident.head(hidden))
                    assert torch.equal(model.hidden(tokens), hidden)  # of one batch, read as it goes
            assert plan.peak <= memory
            apart.append(bool(plan.apart))
    assert apart[0] == (name in EXPERTS)
