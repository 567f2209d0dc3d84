"""Training for a quantized type: the exported file computes what was validated; better than rounding afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv.errors import UsageError
from llmconv.quant import by_name

torch = pytest.importorskip("torch", reason="training needs torch")

from llmconv.runtime import products

QUIET: dict[str, Any] = {"device": "cpu", "tensorboard": False, "plot": False, "log_every": 50}


def test_the_rounding_is_the_types_and_gradients_go_through() -> None:
    weight = torch.randn(8, 64, requires_grad=True)
    kind = by_name("Q4_0")
    made = products.straight_through(weight, kind)
    assert np.array_equal(made.detach().numpy(), kind.decode(kind.encode(weight.detach().numpy())))
    (made * torch.arange(64)).sum().backward()
    assert torch.equal(weight.grad, torch.arange(64).float().expand(8, 64))


@pytest.mark.slow
def test_better_than_rounding_afterwards(root: Path, tmp_path: Path) -> None:
    pairs, model = root / "examples" / "pairs.json", tmp_path / "m.gguf"
    llmconv.convert_file(root / "examples" / "simple-36k.json", model)
    llmconv.quantize(model, tmp_path / "plain.gguf", "Q4_0")
    how = {"data": str(pairs), "output": str(tmp_path / "run"), "from_checkpoint": str(model), **QUIET}
    config = llmconv.TrainConfig(
        qat="Q4_0", teacher=str(model), steps=60, batch_size=64, lr=3e-4, weight_decay=0, **how
    )
    trained = llmconv.train(config)
    exported = trained.exports[0]
    types = {n: t.type.name for n, t in llmconv.open(exported).tensors.items()}
    assert types == {n: t.type.name for n, t in llmconv.open(tmp_path / "plain.gguf").tensors.items()}
    plain, aware = (
        llmconv.compare(model, p, pairs, device="cpu").mean_kld for p in (tmp_path / "plain.gguf", exported)
    )
    assert aware < 0.6 * plain
    # What is in the file is what was validated: the loss of the exported model is the run's last.
    loaded = llmconv.perplexity(exported, pairs, device="cpu")
    assert loaded.perplexity == pytest.approx(trained.val_perplexity, rel=0.01)


def test_what_is_refused(root: Path, tmp_path: Path) -> None:
    pairs = str(root / "examples" / "pairs.json")
    how = {"data": pairs, "output": str(tmp_path / "run"), "preset": "simple-36k", **QUIET}
    with pytest.raises(UsageError, match="leave export_type out"):
        llmconv.TrainConfig(qat="Q4_0", export_type="Q8_0", **how)
    with pytest.raises(UsageError, match="only GGUF holds Q4_0"):
        llmconv.train(llmconv.TrainConfig(qat="Q4_0", export="json", **how))
    with pytest.raises(UsageError, match="unknown file type 'Q9'"):
        llmconv.train(llmconv.TrainConfig(qat="Q9", **how))


@pytest.mark.slow
def test_the_simple_models_own_perplexity(shared: Path, tmp_path: Path) -> None:
    """The 36,496-parameter model as Q4_0, 40 kB: the float model's pair perplexity, 5.5195, to 1 %."""
    pairs, model = shared / "simple-llm" / "training-data.json", tmp_path / "m.gguf"
    llmconv.convert_file(shared / "simple-llm" / "default-400.v1.json", model)
    how = {"data": str(pairs), "output": str(tmp_path / "run"), "from_checkpoint": str(model), **QUIET}
    config = llmconv.TrainConfig(
        qat="Q4_0", teacher=str(model), steps=300, batch_size=64, lr=3e-4, weight_decay=0, **how
    )
    exported = llmconv.train(config).exports[0]
    assert exported.stat().st_size < 41_000
    # Or below: processors round otherwise, and the pairs are those that it learns from.
    assert 0.95 * 5.519523409785105 < llmconv.perplexity(exported, pairs, device="cpu").perplexity < 1.01 * 5.5195
