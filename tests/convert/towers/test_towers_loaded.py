"""Multimodal models of transformers: two GGUFs, and a folder again that transformers loads to the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_towers

import llmconv
from llmconv.convert.towers import translate as towers
from llmconv.convert.towers.families import conformers
from llmconv.convert.translate import translate
from llmconv.convert.writing.portable import portable

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

NOT_WHOLE = {"janus"}
"""Of which another program's GGUFs do not say all: what draws in Janus."""
AGAIN = {"gemma3-bf16"}
"""A class that is there already; its other type is of the tables' tests."""


def weights(folder: Path, name: str) -> dict[str, Any]:
    """What transformers loads of a folder; every weight must be there, and no other; batches seen are none."""
    kind = getattr(transformers, tiny_towers.MODELS[name].cls)
    model, told = kind.from_pretrained(folder, output_loading_info=True, dtype="auto")
    missing = [key for key in told["missing_keys"] if not key.endswith("num_batches_tracked")]
    assert not missing and not told["unexpected_keys"] and not told["mismatched_keys"], told
    return _folded(dict(model.state_dict()))


def _folded(state: dict[str, Any]) -> dict[str, Any]:
    """The weights with batch norms as what they do: a GGUF of another program says no more of them."""
    for stem in [key.removesuffix(".running_var") for key in state if key.endswith(".running_var")]:
        weight, bias, mean, variance = (
            state[f"{stem}.{name}"].float() for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / torch.sqrt(variance + 1e-5)
        state |= {f"{stem}.weight": scale, f"{stem}.bias": bias - mean * scale}
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            del state[f"{stem}.{name}"]
    return state


@pytest.mark.parametrize("name", [name for name in tiny_towers.MODELS if name not in AGAIN])
def test_there_and_back(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    built = tiny_towers.build(name, folder)
    llmconv.convert_file(folder, tmp_path / "m.gguf")
    text, tower = (llmconv.open(tmp_path / file) for file in ("m.gguf", "mmproj-m.gguf"))
    source, again = llmconv.open(folder), towers.together(translate(text, "hf"), tower)
    assert sorted(source.tensors) == sorted(again.tensors)
    for key, tensor in source.tensors.items():
        other = again.tensors[key]
        assert (tensor.shape, tensor.type) == (other.shape, other.type), key
        assert np.array_equal(tensor.blocks(), other.blocks()), key
    assert (folder / "config.json").read_bytes() == again.file("config.json")
    if name in NOT_WHOLE:
        return
    text, tower = portable(text), portable(tower)  # as others write them
    llmconv.save(towers.together(translate(text, "hf"), tower, rebuilt=True), tmp_path / "foreign")
    ours, theirs = weights(tmp_path / "foreign", name), _folded(dict(built.state_dict()))
    assert sorted(ours) == sorted(theirs)
    for key, tensor in theirs.items():
        assert torch.allclose(ours[key].float(), tensor.float(), atol=1e-6), key


@pytest.mark.parametrize(("n", "side"), [(9, 5), (128, 32), (4, 7)])
def test_positions_are_interpolated_as_by_torch(n: int, side: int) -> None:
    values = np.random.default_rng(0).standard_normal((n, n, 6)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(values).permute(2, 0, 1)[None], (side, side), mode="bilinear", align_corners=True
    )
    assert np.allclose(conformers._resized(values, side), theirs[0].permute(1, 2, 0).numpy(), atol=1e-6)
