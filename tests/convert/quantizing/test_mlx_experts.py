"""Experts that `-t MLX` writes as mlx-lm has them, or says that it will not load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hf_models import QWEN3_MOE, model

import llmconv
from llmconv.convert.quantizing import mlx_experts
from llmconv.convert.scaled.unpack import unpack
from llmconv.errors import Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

WIDE = QWEN3_MOE | {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "head_dim": 16}
AT = "model.layers.1.mlp"


def folder(path: Path) -> Path:
    llmconv.save(model(WIDE, "F16"), path)
    return path


@pytest.mark.parametrize("source", ["floats", "Q4_1"])
def test_experts_are_written_as_one(tmp_path: Path, source: str) -> None:
    """Under the names of mlx-lm's `qwen3_moe.Model`, and as each alone would be."""
    path = folder(tmp_path / "in")
    llmconv.quantize(path, tmp_path / "q.gguf", "Q4_1", pure=True, token_embedding_type="F16", output_tensor_type="F16")
    made = llmconv.quantize(path if source == "floats" else tmp_path / "q.gguf", tmp_path / "out", "MLX")
    assert not [note for note in made.notes if "mlx-lm" in note]
    assert source == "floats" or "every weight equal" in made.output.proof
    out = llmconv.open(tmp_path / "out")
    experts = {n: t.shape for n, t in out.tensors.items() if n.startswith(f"{AT}.") and "gate.weight" not in n}
    assert experts == {
        f"{AT}.switch_mlp.{name}_proj.{end}": (3, n, k * 4 // 32 if end == "weight" else k // 32)
        for name, n, k in (("gate", 32, 64), ("up", 32, 64), ("down", 64, 32))
        for end in ("weight", "scales", "biases")
    }
    want = llmconv.open(tmp_path / "q.gguf").tensors["blk.1.ffn_up_exps.weight"].numpy()
    assert np.array_equal(unpack(out).tensors[f"{AT}.switch_mlp.up_proj.weight"].numpy(), want)
    llmconv.quantize(tmp_path / "out", tmp_path / "again.gguf", "REPACK")
    assert llmconv.verify(tmp_path / "q.gguf", tmp_path / "again.gguf").same


def test_what_mlx_lm_will_not_load_is_said(tmp_path: Path) -> None:
    path = folder(tmp_path / "in")
    config = json.loads((path / "config.json").read_text())
    for kind, said in (("qwen3_moe", False), ("qwen3_next", True), ("qwen2_moe", False)):
        assert bool(mlx_experts.unread([f"{AT}.experts.0.up_proj.weight"], config | {"model_type": kind})) == said
    assert not mlx_experts.unread([f"{AT}.up_proj.weight"], config | {"model_type": "qwen3_next"})


def test_experts_that_differ_are_refused() -> None:
    parts = {
        f"{AT}.experts.{i}.up_proj.weight": Tensor.from_array(
            f"{AT}.experts.{i}.up_proj.weight", np.zeros((2, i + 2), np.uint32)
        )
        for i in range(2)
    }
    with pytest.raises(Unsupported, match="in several widths"):
        mlx_experts.stacked(parts, {"model_type": "qwen3_moe"}, "here")
    assert mlx_experts.stacked(parts, {"model_type": "qwen2_moe"}, "here") == parts


def test_experts_are_stacked_by_number() -> None:
    """Which files list as text: 0, 1, 10, 11, 2."""
    names = sorted(f"{AT}.experts.{i}.up_proj.weight" for i in range(12))
    whole = Checkpoint()
    for name in names:
        whole.add(Tensor.from_array(name, np.full((1, 1), int(name.split(".")[5]), np.float32)))
    (made,) = mlx_experts.stacked(whole.tensors, {"model_type": "qwen3_moe"}, "here").values()
    assert made.numpy().reshape(-1).tolist() == list(range(12))
