"""Keras's `.h5` and `.keras` written again: every group, dataset and attribute as h5py reads them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv.errors import Unsupported

h5py = pytest.importorskip("h5py")

RNG = np.random.default_rng(1)
KERNEL, BIAS = RNG.standard_normal((3, 32)).astype(np.float32), RNG.standard_normal(32).astype(np.float32)


def fill(file: Any) -> None:
    """A whole model as Keras 2 writes it, with what else may be there."""
    file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"name": "s", "layers": []}})
    file.attrs["keras_version"] = np.bytes_(b"2.15.0")
    layers = file.create_group("model_weights")
    layers.attrs["layer_names"] = np.array([b"dense", b"drop\xff"])
    layers.attrs["backend"] = "tensorflow"
    layers.attrs["numbers"] = np.arange(3, dtype=np.int16)
    dense = layers.create_group("dense")
    dense.attrs["weight_names"] = np.array(["dense/kernel:0", "dense/bias:0"], dtype=object)
    layers.create_group("drop").attrs["weight_names"] = np.zeros((0,), "S1")
    dense["dense/kernel:0"], dense["dense/bias:0"] = KERNEL, BIAS
    dense["dense/kernel:0"].attrs["note"] = "of a dataset"
    layers["conv/k"] = RNG.standard_normal((2, 2, 3, 4)).astype(np.float16)
    layers["count"] = np.int64(7)
    file["vocabulary"] = np.array([b"a", b"b"])
    file["beside"] = np.arange(4, dtype=np.int32)


def tree(file: Any) -> dict[str, Any]:
    """Everything that h5py sees, in its order."""
    out: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        attributes = {key: np.asarray(value).tolist() for key, value in node.attrs.items()}
        data = (str(node.dtype), node.shape, node[()].tolist()) if isinstance(node, h5py.Dataset) else None
        out[name] = (data, attributes)

    visit("", file)
    file.visititems(visit)
    return out


def trees(path: Path) -> Any:
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return tree(file)
    with zipfile.ZipFile(path) as archive:
        texts = {name: archive.read(name) for name in archive.namelist() if name.endswith(".json")}
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
            return texts, tree(file)


def written(path: Path, ordered: bool = False) -> Path:
    if path.suffix == ".h5":
        with h5py.File(path, "w", track_order=ordered) as file:
            fill(file)
        return path
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        file["layers/dense/vars/0"], file["layers/dense/vars/1"] = KERNEL, BIAS
        file.create_group("layers/dropout/vars")
        file["layers/dense"].attrs["name"] = "dense"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.0.0"}')
        archive.writestr("config.json", '{"class_name":  "Sequential", "config": {"name": "s", "layers": []}}')
        archive.writestr("model.weights.h5", data.getvalue())
    return path


@pytest.mark.parametrize("through", ["gguf", "safetensors"])
@pytest.mark.parametrize("name", ["m.h5", "ordered.h5", "m.keras"])
def test_it_comes_back_with_every_group_and_attribute(tmp_path: Path, name: str, through: str) -> None:
    source = written(tmp_path / name, name.startswith("ordered"))
    llmconv.convert_file(source, tmp_path / f"m.{through}", outtype="auto")
    llmconv.convert_file(tmp_path / f"m.{through}", tmp_path / f"back{source.suffix}", outtype="auto")
    assert trees(tmp_path / f"back{source.suffix}") == trees(source)


def test_rounded_weights_are_written_as_numbers(tmp_path: Path) -> None:
    llmconv.convert_file(written(tmp_path / "m.h5"), tmp_path / "m.gguf")
    llmconv.quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q8_0")
    llmconv.convert_file(tmp_path / "q.gguf", tmp_path / "back.h5")
    with h5py.File(tmp_path / "back.h5") as file:
        kernel = file["model_weights/dense/dense/kernel:0"][()]
    wanted = llmconv.open(tmp_path / "q.gguf").tensors["dense/dense/kernel:0"].numpy()
    assert kernel.dtype == np.float32 and np.array_equal(kernel, wanted) and not np.array_equal(kernel, KERNEL)


def test_a_model_from_elsewhere_is_refused_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=KERNEL)
    with pytest.raises(Unsupported, match="came from no Keras file"):
        llmconv.convert_file(tmp_path / "m.npz", tmp_path / "m.h5")
    llmconv.convert_file(written(tmp_path / "k.h5"), tmp_path / "m.gguf")
    with pytest.raises(Unsupported, match=r"came from an \.h5, which holds no config\.json; write \.h5"):
        llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "m.keras")
    assert not (tmp_path / "m.keras").exists() and not (tmp_path / "m.h5").exists()
