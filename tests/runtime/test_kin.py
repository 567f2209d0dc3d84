"""Families that transformers lacks and that are another one's under other names: the same weights, the same logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
from kin import KIN, MODELS

import llmconv
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own deprecations


@pytest.mark.parametrize("name", MODELS)
def test_computes_as_its_kin(name: str, tmp_path: Path) -> None:
    kin, change, config = MODELS[name]
    model = tiny_models.build(kin, tmp_path).float()
    folder = Checkpoint(dialect="hf", files={"config.json": json.dumps(config).encode()})
    for tensor_name, tensor in change(dict(model.state_dict())).items():
        folder.add(Tensor.from_array(tensor_name, tensor.contiguous().numpy()))
    ours = llmconv.load(folder, "cpu", "f32")
    assert ours.decoder.arch == KIN[name]
    tokens = torch.randint(3, 96, (2, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), model(tokens).logits, atol=1e-4, rtol=0)
