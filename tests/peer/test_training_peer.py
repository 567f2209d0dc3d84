"""What was trained runs in llama.cpp, with the same logits; needs `pip install llama-cpp-python`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.peer

torch = pytest.importorskip("torch", reason="training needs torch")
llama_cpp = pytest.importorskip("llama_cpp", reason="compares with llama.cpp through the optional llama-cpp-python")

import llmconv
from llmconv.runtime.training.config import TrainConfig


@pytest.mark.parametrize("preset", ["simple-36k-causal", "simple-1m-causal", "small-10m", "llama-15m"])
@pytest.mark.parametrize("export_type", ["f32", "Q8_0"])
def test_a_causal_export_runs_there(preset: str, export_type: str, root: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=str(root / "examples/corpus.txt"), output=str(tmp_path), preset=preset, layers=2, dim=64, heads=2,
        context=32, steps=5, batch_size=4, vocab_size=300, tokenizer="bpe", device="cpu", export_type=export_type,
        tensorboard=False, plot=False, eval_sequences=16,
    )  # fmt: skip
    path = llmconv.train(config).exports[0]
    ours = llmconv.load(path, device="cpu", dtype="f32")
    text = "mara kept the door open all night"
    ids = ours.tokenizer.encode(text)
    theirs = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, n_gpu_layers=0, verbose=False)
    assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ids
    theirs.eval(ids)
    with torch.no_grad():
        logits = ours(torch.tensor([ids]))[0].numpy()
    gap = np.abs(theirs.scores[: len(ids)] - logits).max()
    assert gap < (2e-3 if export_type == "f32" else 5e-2)  # with Q8_0 it rounds activations too
