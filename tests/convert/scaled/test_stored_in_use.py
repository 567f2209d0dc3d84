"""A quantized folder is a model like any other: run, compared, merged with an adapter, trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from stored_kinds import KINDS
from stored_models import folder, llama

import llmconv

SOME = [
    "GPTQ with act-order",
    "AWQ",
    "W4A16 with zero points",
    "NVFP4",
    "MLX",
    "FP8 by block",
    "NF4",
    "LLM.int8",
    "HQQ",
]
"""Each way of reading, once: the others differ in names alone (`test_readers`)."""


def models(path: Path, name: str) -> tuple[Path, Path]:
    """The same model stored and in F32."""
    wants: dict[str, Any] = {}

    def layer(stem: str, shape: tuple[int, int]) -> dict[str, Any]:
        made, wants[f"{stem}.weight"] = KINDS[name].stored(stem, shape, len(wants))
        return dict(made)

    source = folder(path / "in", llama(layer), KINDS[name].settings, **KINDS[name].more)
    return source, folder(path / "f32", llama(lambda stem, _: {f"{stem}.weight": wants[f"{stem}.weight"]}))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_in_use(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    both = models(tmp_path, name)
    ids = torch.tensor([[1, 5, 9, 33, 7]])
    with torch.no_grad():
        ours, want = (llmconv.load(path, "cpu", "f32")(ids) for path in both)
    assert torch.equal(ours, want) and llmconv.verify(*both).same
    rng, module = np.random.default_rng(0), "model.layers.0.self_attn.q_proj"
    (lora := tmp_path / "lora").mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    shapes = {"A": (2, 64), "B": (64, 2)}
    made = {f"base_model.model.{module}.lora_{x}.weight": rng.standard_normal(s) for x, s in shapes.items()}
    save_file({n: a.astype(np.float32) for n, a in made.items()}, lora / "adapter_model.safetensors")
    for path in both:
        llmconv.convert_file(path, tmp_path / f"{path.name}.gguf", lora=lora)
    assert llmconv.verify(tmp_path / "in.gguf", tmp_path / "f32.gguf").same
    text = tmp_path / "text.txt"
    text.write_text("abcdefghij klmnop qrs tuv " * 50)
    from llmconv.runtime.training.config import TrainConfig

    losses = []
    for path in both:
        config = TrainConfig(
            data=str(text), output=str(tmp_path / f"run-{path.name}"), from_checkpoint=str(path), tokenizer="char",
            steps=1, batch_size=2, context=16, device="cpu", tensorboard=False, plot=False, export="",
        )  # fmt: skip
        losses.append(llmconv.train(config).val_loss)
    assert losses[0] == losses[1]
