"""Tensors of a GGUF that a table does not know: scales are part of their weights, the harmless travel, others don't."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hf_models import LLAMA, QWEN3_MOE, model

import llmconv
from llmconv.convert.dialects import hf
from llmconv.convert.dialects.hugging_face.strangers import changes_the_result
from llmconv.convert.tables import own_keys
from llmconv.errors import BadFile
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

EXTRA = {
    "blk.0.ffn_up.scale": np.float32([0.37]),
    "blk.1.attn_q.scale": np.float32([3.0]),
    "blk.0.ffn_up.input_scale": np.float32([0.01]),
    "blk.1.attn_rot_embd.weight": np.arange(2, dtype=np.float32),
    "cls.output.weight": np.ones((2, 16), np.float32),
    "statistics": np.arange(3, dtype=np.int32),
}


def somebodys() -> Checkpoint:
    gguf = hf.to_gguf(model(LLAMA, kind="F32"))
    gguf.metadata = {k: v for k, v in gguf.metadata.items() if not k.startswith("llmconv.")}
    for name, values in EXTRA.items():
        gguf.add(Tensor.from_array(name, values))
    return gguf


def test_strangers_travel_and_scales_are_multiplied_in(tmp_path: Path) -> None:
    gguf = somebodys()
    llmconv.save(hf.from_gguf(gguf), tmp_path / "folder")
    folder = llmconv.open(tmp_path / "folder")
    for name, scale in (("blk.0.ffn_up", 0.37), ("blk.1.ffn_up", 1.0)):
        mlp = folder.tensors[f"model.layers.{name.split('.')[1]}.mlp.up_proj.weight"]
        expected = gguf.tensors[f"{name}.weight"].numpy().astype(np.float64) * np.float32(scale)
        assert np.array_equal(mlp.numpy(), expected.astype(np.float32))
    again = hf.to_gguf(folder)
    assert sorted(again.tensors) == sorted(gguf.tensors)
    for name, tensor in gguf.tensors.items():
        other = again.tensors[name]
        assert (other.shape, other.type) == (tensor.shape, tensor.type)
        if name in ("blk.0.ffn_up.weight", "blk.1.attn_q.weight"):
            np.testing.assert_allclose(other.numpy(), tensor.numpy(), rtol=2e-7)
        else:
            assert other.blocks().tobytes() == tensor.blocks().tobytes()


def test_they_are_named() -> None:
    notes = hf.from_gguf(somebodys()).notes
    assert "multiplied into its weight: blk.0.ffn_up.scale (and 1 more)" in notes
    assert any("carried under its own name" in note and "(and 3 more)" in note for note in notes)


def test_a_scale_of_each_expert() -> None:
    gguf = hf.to_gguf(model(QWEN3_MOE, kind="F32"))
    scales = np.float32([0.5, 2.0, 4.0])
    gguf.add(Tensor.from_array("blk.1.ffn_down_exps.scale", scales))
    folder = hf.from_gguf(gguf)
    weight = gguf.tensors["blk.1.ffn_down_exps.weight"].numpy()
    for i in range(3):
        found = folder.tensors[f"model.layers.1.mlp.experts.{i}.down_proj.weight"].numpy()
        assert np.array_equal(found, weight[i] * scales[i])
    again = hf.to_gguf(folder)
    assert np.array_equal(again.tensors["blk.1.ffn_down_exps.weight"].numpy(), weight)
    assert np.array_equal(again.tensors["blk.1.ffn_down_exps.scale"].numpy(), scales)


def test_a_scale_of_another_shape_is_refused() -> None:
    gguf = somebodys()
    gguf.add(Tensor.from_array("blk.0.ffn_down.scale", np.ones(16, np.float32)))
    with pytest.raises(BadFile, match=r"'blk.0.ffn_down.scale' has shape \[16\]"):
        hf.from_gguf(gguf)


@pytest.mark.parametrize("name", ["blk.0.strange.weight", "blk.1.ffn_up_2.bias"])
def test_what_would_change_the_result_is_refused(name: str) -> None:
    gguf = somebodys()
    gguf.add(Tensor.from_array(name, np.ones(2, np.float32)))
    assert changes_the_result(name)
    with pytest.raises(BadFile, match=f"'{name}' is none that a llama model has"):
        hf.from_gguf(gguf)
    assert f"left out, unknown to llama: {name}" in hf.from_gguf(gguf, strict=False).notes


def test_a_bias_of_a_head_is_never_left_out() -> None:
    gguf = somebodys()
    gguf.add(Tensor.from_array("output.bias", np.ones(2, np.float32)))
    for strict in (True, False):
        with pytest.raises(BadFile, match=r"'output.bias' belongs to 'output.weight', another weight without it"):
            hf.from_gguf(gguf, strict=strict)


def test_a_folder_can_t_smuggle_weights_in() -> None:
    """The list of carried tensors excuses none that would change the result."""
    folder = hf.from_gguf(somebodys())
    folder.add(Tensor.from_array("blk.0.strange.weight", np.ones(2, np.float32)))
    folder.metadata[own_keys.GGUF_TENSORS] = '{"names": ["blk.0.strange.weight"]}'
    with pytest.raises(BadFile, match="is none that a llama model has"):
        hf.to_gguf(folder)
    folder.metadata[own_keys.GGUF_TENSORS] = '{"names": 5}'
    with pytest.raises(BadFile, match="is no list of names"):
        hf.to_gguf(folder)


def test_the_runtime_multiplies_scales_in(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    plain = hf.to_gguf(model(LLAMA, kind="F32"))
    scaled = dataclasses.replace(plain, tensors=dict(plain.tensors))
    weight = plain.tensors["blk.0.ffn_up.weight"].numpy()
    scaled.tensors["blk.0.ffn_up.weight"] = Tensor.from_array("blk.0.ffn_up.weight", weight / np.float32(4))
    scaled.add(Tensor.from_array("blk.0.ffn_up.scale", np.float32([4])))
    scaled.add(Tensor.from_array("blk.0.ffn_up.input_scale", np.float32([9])))
    ids = torch.tensor([[1, 5, 9, 3]])
    with torch.no_grad():
        one, other = (llmconv.load(c, dtype="f32", device="cpu")(ids) for c in (plain, scaled))
    assert torch.equal(one, other)
