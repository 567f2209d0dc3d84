"""Which tensors of a training program's file are the model, and what becomes of the rest."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import enum
import json
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv.errors import BadFile, UsageError
from llmconv.formats.foreign.mappings import REST

torch = pytest.importorskip("torch")
W = torch.arange(6.0).reshape(2, 3)

# file -> (what it holds, names of the tensors taken, what is kept besides them)
TAKEN: dict[str, tuple[Any, list[str], Any]] = {
    "a state dict": ({"a.w": W, "b": W}, ["a.w", "b"], None),
    "a usual key": ({"model": {"a.w": W}, "step": 3}, ["a.w"], {"step": 3}),
    "an unusual key": ({"my_state": {"a.w": W}, "my_config": {"n": [1, 2]}}, ["a.w"], {"my_config": {"n": [1, 2]}}),
    "two keys deep": ({"run": {"net": {"a.w": W}, "lr": 0.5}}, ["a.w"], {"run": {"lr": 0.5}}),
    "nested modules": ({"layer1": {"w": W, "b": W}, "layer2": {"w": W}}, ["layer1.w", "layer1.b", "layer2.w"], None),
    "a vocabulary": (
        {"model_state": {"w": W}, "stoi": {"a": 0}, "itos": {0: "a"}},
        ["w"],
        {"stoi": {"a": 0}, "itos": {"$items": [[0, "a"]]}},
    ),
    "an optimizer": (
        {"net": {"w": W}, "optimizer": {"state": {0: {"exp_avg": W}}, "groups": [{"lr": 1}]}},
        ["w"],
        {"optimizer": {"groups": [{"lr": 1}]}},
    ),
    "modules beside an optimizer": ({"a": {"w": W}, "b": {"w": W}, "optim": {"m": {"x": W}}}, ["a.w", "b.w"], None),
}


@pytest.mark.parametrize("what", TAKEN)
def test_the_model_is_found_and_the_rest_kept(tmp_path: Path, what: str) -> None:
    value, names, rest = TAKEN[what]
    torch.save(value, tmp_path / "c.pt")
    opened = llmconv.open(tmp_path / "c.pt")
    assert list(opened.tensors) == names and opened.tensors[names[0]].numpy().tolist() == W.tolist()
    assert json.loads(opened.metadata.get(REST, "null")) == rest
    assert any("left out" in note for note in opened.notes) == ("optim" in str(list(value)))
    llmconv.convert_file(tmp_path / "c.pt", tmp_path / "c.gguf")
    llmconv.convert_file(tmp_path / "c.gguf", tmp_path / "c.safetensors")
    assert json.loads(llmconv.open(tmp_path / "c.safetensors").metadata.get(REST, "null")) == rest


# what a file holds, W in the places of tensors -> their names and the rest; a lone one in a .pkl has the file's name
LOOSE: dict[str, tuple[Any, list[str], Any]] = {
    "a lone tensor": (W, ["values"], None),
    "a list": ([W, W], ["0", "1"], None),
    "a tuple": ((W, W), ["0", "1"], None),
    "a list with more": ([W, {"lr": 0.5}], ["0"], {"1": {"lr": 0.5}}),
    "lists in a mapping": ({"weights": [W, W], "step": 3}, ["weights.0", "weights.1"], {"step": 3}),
}


@pytest.mark.parametrize("suffix", ["pt", "pkl"])
@pytest.mark.parametrize("what", LOOSE)
def test_lists_and_lone_tensors(tmp_path: Path, what: str, suffix: str) -> None:
    value, names, rest = LOOSE[what]
    if suffix == "pt":
        torch.save(value, tmp_path / "c.pt")
    else:
        (tmp_path / "c.pkl").write_bytes(pickle.dumps(_numpy(value)))
        names = ["c"] if what == "a lone tensor" else names
    opened = llmconv.open(tmp_path / f"c.{suffix}")
    assert list(opened.tensors) == names
    assert all(tensor.numpy().tolist() == W.tolist() for tensor in opened.tensors.values())
    assert json.loads(opened.metadata.get(REST, "null")) == rest
    assert llmconv.convert_file(tmp_path / f"c.{suffix}", tmp_path / "c.gguf").n_tensors == len(names)


def _numpy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _numpy(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_numpy, value))
    return value.numpy() if isinstance(value, torch.Tensor) else value


def test_a_whole_module_is_refused_by_name(tmp_path: Path) -> None:
    """torch.save(model), not of its state dict: reading it would run its program."""
    torch.save(torch.nn.Linear(2, 3), tmp_path / "m.pt")
    with pytest.raises(BadFile, match=r"asks for torch\.nn\.modules\.linear\.Linear.*; .*save model\.state_dict\(\)"):
        llmconv.open(tmp_path / "m.pt")


@dataclasses.dataclass
class Sizes:
    n_layer: int = 2
    where: Any = None


class Slotted:
    __slots__ = ("n_head",)

    def __init__(self) -> None:
        self.n_head = 3


class Kind(enum.Enum):
    A = 1


SETTINGS: dict[str, tuple[Any, Any]] = {
    "a dataclass": (Sizes(), {"n_layer": 2, "where": None}),
    "slots": (Slotted(), {"n_head": 3}),
    "one in another": (Sizes(where=argparse.Namespace(lr=0.5)), {"n_layer": 2, "where": {"lr": 0.5}}),
    "paths and devices": ({"out": PurePosixPath("a/b"), "on": torch.device("cuda:0")}, {"out": "a/b", "on": "cuda:0"}),
    "numpy's numbers": ({"best": np.float64(1.25), "it": np.int64(3)}, {"best": 1.25, "it": 3}),
    "collections": (
        {"set": {4}, "default": collections.defaultdict(list, a=[1]), "count": collections.Counter("aab")},
        {"set": [4], "default": {"a": [1]}, "count": {"a": 2, "b": 1}},
    ),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_settings_are_read_as_data(tmp_path: Path, what: str) -> None:
    """Nothing of the classes is run or looked for: their pickles hold names and fields."""
    value, read = SETTINGS[what]
    torch.save({"model": {"a.w": W}, "config": value}, tmp_path / "m.pt")
    opened = llmconv.open(tmp_path / "m.pt")
    assert list(opened.tensors) == ["a.w"] and json.loads(opened.metadata[REST]) == {"config": read}


@pytest.mark.parametrize("value", [Kind.A, Sizes(where=W)])
def test_what_is_more_than_settings_is_refused_by_name(tmp_path: Path, value: Any) -> None:
    torch.save({"model": {"a.w": W}, "config": value}, tmp_path / "m.pt")
    with pytest.raises(BadFile, match=rf"asks for [\w.]+\.{type(value).__name__}, which no state dict needs"):
        llmconv.open(tmp_path / "m.pt")


def test_numpys_arrays_in_a_checkpoint(tmp_path: Path) -> None:
    """As weights, and as the state of numpy's generator beside them, which is left out with a note."""
    state = np.random.RandomState(0).get_state()
    torch.save({"model": {"a.w": W.numpy()}, "rng": {"numpy": state}}, tmp_path / "m.pt")
    opened = llmconv.open(tmp_path / "m.pt")
    assert np.array_equal(opened.tensors["a.w"].numpy(), W.numpy())
    assert list(opened.tensors) == ["a.w"] and "'rng' are left out" in opened.notes[0]


def test_several_mappings_need_a_key(tmp_path: Path) -> None:
    torch.save({"generator": {"a.w": W}, "critic": {"a.w": W + 1, "b.w": W}}, tmp_path / "gan.pt")
    with pytest.raises(UsageError, match=r"several mappings of tensors, 'generator' \(1\), 'critic' \(2\); choose one"):
        llmconv.open(tmp_path / "gan.pt")
    opened = llmconv.open(tmp_path / "gan.pt", key="critic")
    assert list(opened.tensors) == ["a.w", "b.w"] and "'generator' are left out" in opened.notes[0]
    result = llmconv.convert_file(tmp_path / "gan.pt", tmp_path / "g.gguf", key="generator")
    assert result.n_tensors == 1
    with pytest.raises(UsageError, match=r"no tensors under the key 'x'; there are 'generator' \(1\)"):
        llmconv.open(tmp_path / "gan.pt", key="x")
    with pytest.raises(UsageError, match="is gguf, which has no keys to choose from"):
        llmconv.open(tmp_path / "g.gguf", key="generator")


@pytest.mark.parametrize("value", [{}, [], {"config": {"n": 1}}, 5, {"a": []}])
def test_nothing_is_not_a_model(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "c.pt")
    with pytest.raises(BadFile, match="holds no state dict"):
        llmconv.open(tmp_path / "c.pt")


def test_values_that_refer_to_themselves(tmp_path: Path) -> None:
    endless: dict[str, Any] = {"w": 1}
    endless["self"] = endless
    laughs: list[Any] = [0]
    for _ in range(60):
        laughs = [laughs, laughs]
    for value in (endless, laughs):
        (tmp_path / "c.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(BadFile, match="refers to itself"):
            llmconv.open(tmp_path / "c.pkl")


def test_shared_checkpoints(shared: Path) -> None:
    opened = llmconv.open(shared / "hobby" / "slm4096-ckpt.pt")
    rest = json.loads(opened.metadata[REST])
    assert len(opened.tensors) == 57 and rest["config"]["n_embd"] == 64 and len(rest["stoi"]) == 54
    names = {p.name: list(llmconv.open(p).tensors) for p in sorted((shared / "hobby" / "pt").iterdir())}
    assert names["nested_dict.pt"] == ["layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias"]
    assert names["top_level_key.pt"] == ["conv1.weight", "conv1.bias"] and len(names["weights_with_config.pt"]) == 3
