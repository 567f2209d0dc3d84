"""Layers for further tokens: left out, alone, and both together again, of every family made by hand that has some."""

from __future__ import annotations

import json
from pathlib import Path

import by_hand
import numpy as np
import pytest
from hf_models import LLAMA, model
from worded import by_hand_folder

import llmconv
from llmconv.convert import further
from llmconv.convert.dialects import hf
from llmconv.errors import Unsupported, UsageError
from llmconv.formats import safetensors_file

NAMES = (
    *("step3.5", "mimo2-published", "k-exaone-predicting", "exaone4.5-predicting", "nemotron-h-predicting"),
    *("deepseek4-predicting", "glm5-next-predicting", "dots3-predicting"),
)


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_two_files_are_the_whole_again(name: str) -> None:
    folder = by_hand.finished(name, model(by_hand.CONFIGS[name]))
    whole = hf.to_gguf(folder)
    trunk, draft = further.without(whole), further.alone(whole)
    arch, count = whole.metadata["general.architecture"], further.count(whole)
    assert count and not further.count(trunk) and further.is_alone(draft) and not further.is_alone(trunk)
    assert trunk.metadata[f"{arch}.block_count"] == whole.metadata[f"{arch}.block_count"] - count
    for key, value in trunk.metadata.items():  # what is said of each layer is said of those that there are
        if key.startswith(arch) and isinstance(value, np.ndarray) and len(whole.metadata[key]) != len(value):
            assert len(value) == trunk.metadata[f"{arch}.block_count"]
    shared = {n for n in whole.tensors if not n.startswith("blk.")}
    assert set(trunk.tensors) & set(draft.tensors) == shared
    assert set(trunk.tensors) | set(draft.tensors) == set(whole.tensors)
    back = hf.from_gguf(further.together(trunk, draft))
    assert {n: t.blocks().tobytes() for n, t in back.tensors.items()} == {
        n: t.blocks().tobytes() for n, t in folder.tensors.items()
    }
    assert back.file("config.json") == folder.file("config.json")
    less = hf.from_gguf(trunk)  # a folder without them, of which the same GGUF is made
    again = hf.to_gguf(less)
    assert sorted(again.tensors) == sorted(trunk.tensors)
    assert not again.metadata.get(f"{arch}.nextn_predict_layers")
    with pytest.raises(Unsupported, match="layers for further tokens alone"):
        hf.from_gguf(draft)


def test_what_has_none_and_what_does_not_belong_together() -> None:
    plain = hf.to_gguf(model(LLAMA))
    assert "changed nothing" in further.without(plain).notes[-1]
    with pytest.raises(UsageError, match="has no layers for further tokens"):
        further.alone(plain)
    draft = further.alone(hf.to_gguf(model(by_hand.CONFIGS["step3.5"])))
    with pytest.raises(UsageError, match="continues a step35 model of 3 layers"):
        further.together(plain, draft)
    with pytest.raises(UsageError, match="holds no layers for further tokens alone"):
        further.together(plain, plain)
    with pytest.raises(UsageError, match="holds its layers for further tokens alone"):
        further.without(draft)


def test_files(tmp_path: Path) -> None:
    safetensors_file.save(model(by_hand.CONFIGS["step3.5"]), tmp_path / "model")
    draft = llmconv.convert_file(tmp_path / "model", tmp_path / "draft.gguf", mtp=True)
    trunk = llmconv.convert_file(tmp_path / "model", tmp_path / "trunk.gguf", no_mtp=True, outtype="f16")
    assert "a draft for the model of the other 3" in " ".join(draft.notes)
    back = llmconv.convert_file(trunk.target, tmp_path / "back", mtp=draft.target)
    assert (tmp_path / "back" / "config.json").read_bytes() == (tmp_path / "model" / "config.json").read_bytes()
    assert back.n_tensors == len(llmconv.open(tmp_path / "model").tensors)
    with pytest.raises(UsageError, match="give one of them"):
        llmconv.convert_file(tmp_path / "model", tmp_path / "no.gguf", mtp=True, no_mtp=True)
    with pytest.raises(UsageError, match="has no effect on safetensors"):
        llmconv.convert_file(trunk.target, tmp_path / "no", no_mtp=True)
    with pytest.raises(UsageError, match="is for a GGUF"):
        llmconv.convert_file(tmp_path / "model", tmp_path / "no.gguf", mtp=draft.target)
    assert not (tmp_path / "no.gguf").exists()


def test_the_draft_beside_a_model_in_its_folder(tmp_path: Path) -> None:
    """DeepSeek V4's DSpark: --mtp writes it, and the model is written without."""
    said = by_hand.CONFIGS["deepseek4-dspark"]
    draft = model(said, form=by_hand.FORMS["deepseek4-dspark"])
    trunk = model(by_hand.CONFIGS["deepseek4"])
    both = by_hand.CONFIGS["deepseek4"] | {k: v for k, v in said.items() if k.startswith("dspark_")}
    folder = trunk.but(tensors={**trunk.tensors, **{n: t for n, t in draft.tensors.items() if n.startswith("mtp.")}})
    folder.files["config.json"] = json.dumps(both | {"num_nextn_predict_layers": 3}).encode()
    safetensors_file.save(folder, tmp_path / "model")
    made = llmconv.convert_file(tmp_path / "model", tmp_path / "draft.gguf", mtp=True)
    found, want = llmconv.open(made.target), hf.to_gguf(draft)
    assert found.metadata["general.architecture"] == "dflash" and found.metadata["dflash.block_count"] == 3
    assert {n: t.blocks().tobytes() for n, t in found.tensors.items()} == {
        n: t.blocks().tobytes() for n, t in want.tensors.items()
    }
    rest = llmconv.convert_file(tmp_path / "model", tmp_path / "model.gguf")
    assert "no GGUF of deepseek4 has a place: mtp." in " ".join(rest.notes)
    assert sorted(llmconv.open(rest.target).tensors) == sorted(hf.to_gguf(trunk).tensors)


@pytest.mark.parametrize("name", ["eagle3", "dflash", "dspark", "gemma4-assistant", "muse-glimmer-assistant"])
def test_a_drafts_gguf_is_quantized_and_comes_back(name: str, tmp_path: Path) -> None:
    """Some have no words of their own, whose number is in their keys alone."""
    folder = by_hand_folder(by_hand.CONFIGS[name], by_hand.FORMS.get(name, 0))
    llmconv.save(folder, tmp_path / "folder")
    llmconv.convert_file(tmp_path / "folder", tmp_path / "draft.gguf")
    llmconv.quantize(tmp_path / "draft.gguf", tmp_path / "small.gguf", "Q8_0")
    llmconv.convert_file(tmp_path / "draft.gguf", tmp_path / "again")
    again = llmconv.open(tmp_path / "again").tensors
    assert all(np.array_equal(t.blocks(), again[n].blocks()) for n, t in folder.tensors.items())


def test_a_draft_is_called_by_its_name_where_it_is_not_run() -> None:
    pytest.importorskip("torch")
    with pytest.raises(llmconv.Unsupported, match="an EAGLE-3 model can't be run here"):
        llmconv.load(by_hand_folder(by_hand.CONFIGS["eagle3"]), "cpu")


def test_a_draft_is_aimed_at_its_model(tmp_path: Path) -> None:
    """EAGLE-3's keys say what its own configuration does not, and come back as that configuration was."""
    config = {k: v for k, v in by_hand.CONFIGS["eagle3"].items() if not k.startswith(("eagle_", "target_"))}
    folder = model(by_hand.CONFIGS["eagle3"])
    folder.files["config.json"] = json.dumps(config).encode()
    safetensors_file.save(folder, tmp_path / "draft")
    with pytest.raises(llmconv.BadFile, match='give that model with base="MODEL"'):
        llmconv.convert_file(tmp_path / "draft", tmp_path / "draft.gguf")
    (tmp_path / "target").mkdir()
    target = LLAMA | {"num_hidden_layers": 12, "hidden_size": 80, "vocab_size": 96}
    (tmp_path / "target" / "config.json").write_text(json.dumps(target))
    made = llmconv.convert_file(tmp_path / "draft", tmp_path / "draft.gguf", base=tmp_path / "target")
    metadata = llmconv.open(made.target).metadata
    assert list(metadata["eagle3.target_layers"]) == [2, 6, 9] and metadata["eagle3.target_hidden_size"] == 80
    llmconv.convert_file(made.target, tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_bytes() == (tmp_path / "draft" / "config.json").read_bytes()
    words = llmconv.open(made.target).tensors["d2t"].numpy()
    assert np.array_equal(words, llmconv.open(tmp_path / "draft").tensors["d2t"].numpy() + np.arange(48))
