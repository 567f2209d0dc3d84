"""TensorFlow.js models: manifests of every kind read as it computes them, and written so that it reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv.errors import BadFile, LlmconvError, OutputError, Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

RNG = np.random.default_rng(2)
W = RNG.standard_normal((5, 3)).astype(np.float32)
CODES8, CODES16 = np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(0, 60000, 10000, dtype=np.uint16)
SCALE, LEAST = 0.007843137718737125, -1.0


def quantized(dtype: str, **more: Any) -> dict[str, Any]:
    return {"quantization": {"dtype": dtype, "original_dtype": "float32", **more}}


# name -> (shape, dtype in the manifest, more of its entry, bytes, values)
WEIGHTS: dict[str, tuple[list[int], str, dict[str, Any], bytes, Any]] = {
    "w": ([5, 3], "float32", {}, W.tobytes(), W),
    "half": ([3], "float32", quantized("float16"), W[0].astype("<f2").tobytes(), W[0].astype(np.float16)),
    "codes": (
        [2, 3],
        "float32",
        quantized("uint8", scale=SCALE, min=LEAST),
        CODES8.tobytes(),
        (CODES8 * SCALE + LEAST).astype(np.float32),
    ),
    "wide": (
        [6],
        "float32",
        quantized("uint16", scale=SCALE, min=LEAST),
        CODES16.astype("<u2").tobytes(),
        (CODES16 * SCALE + LEAST).astype(np.float32),
    ),
    "whole": (
        [2, 3],
        "int32",
        quantized("uint8", scale=2.5, min=0),
        CODES8.tobytes(),
        np.floor(CODES8 * 2.5 + 0.5).astype(np.int32),
    ),
    "ids": ([2], "int32", {}, np.array([-1, 7], "<i4").tobytes(), np.array([-1, 7], np.int32)),
    "flags": ([3], "bool", {}, b"\1\0\2", np.array([True, False, True])),
    "turn": ([1], "complex64", {}, np.array([1 + 2j], "<c8").tobytes(), np.array([1 + 2j], np.complex64)),
    "scalar": ([], "float32", {}, np.float32(2.5).tobytes(), np.array(2.5, np.float32)),
    "words": ([2], "string", {}, b"\1\0\0\0a\3\0\0\0b\xc3\xa9", None),
}


def manifest(folder: Path, cut: int = 17, **more: Any) -> Path:
    """A model of WEIGHTS in shards of `cut` bytes, so that most weights go over several, and a second group."""
    folder.mkdir()
    data = b"".join(w[3] for w in WEIGHTS.values())
    shards = [data[i : i + cut] for i in range(0, len(data), cut)]
    for i, shard in enumerate(shards):
        (folder / f"s{i}.bin").write_bytes(shard)
    (folder / "last.bin").write_bytes(W.tobytes())
    entries = [{"name": n, "shape": w[0], "dtype": w[1], **w[2]} for n, w in WEIGHTS.items()]
    groups = [
        {"paths": [f"s{i}.bin" for i in range(len(shards))], "weights": entries},
        {"paths": ["last.bin"], "weights": [{"name": "last", "shape": [5, 3], "dtype": "float32"}]},
    ]
    model = {"modelTopology": {"node": []}, "format": "graph-model", "weightsManifest": groups, **more}
    (folder / "model.json").write_text(json.dumps(model))
    return folder


@pytest.mark.parametrize("cut", [7, 17, 1000])
def test_every_kind_of_weight(tmp_path: Path, cut: int) -> None:
    folder = manifest(tmp_path / "m", cut)
    for path in (folder, folder / "model.json"):
        opened = llmconv.open(path)
        assert opened.format == "tfjs" and json.loads(opened.metadata["tfjs.words"]) == ["a", "bé"]
        assert list(opened.tensors) == [*(n for n in WEIGHTS if n != "words"), "last"]
        for name, tensor in opened.tensors.items():
            values = W if name == "last" else WEIGHTS[name][4]
            assert tensor.shape == values.shape and np.array_equal(tensor.numpy(), values), name
            assert tensor.numpy().dtype == values.dtype, name
            for start, stop in tensor.slabs(4):
                assert np.array_equal(tensor.rows(start, stop), tensor.rows()[start:stop])


def test_through_gguf_and_back(tmp_path: Path) -> None:
    """The topology, the groups, and the codes that give the numbers exactly."""
    folder = manifest(tmp_path / "m", userDefinedMetadata={"mine": 1})
    llmconv.convert_file(folder, tmp_path / "m.gguf")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.tfjs")
    old, new = llmconv.open(folder), llmconv.open(tmp_path / "back.tfjs")
    for name, tensor in old.tensors.items():
        assert np.array_equal(new.tensors[name].numpy(), tensor.numpy()), name
        assert new.tensors[name].type is tensor.type, name
    model = json.loads((tmp_path / "back.tfjs" / "model.json").read_text())
    assert model["modelTopology"] == {"node": []} and model["userDefinedMetadata"]["mine"] == 1
    kinds = {w["name"]: w.get("quantization", {}).get("dtype") for g in model["weightsManifest"] for w in g["weights"]}
    assert [kinds[n] for n in ("w", "half", "codes", "wide", "whole", "last")] == [
        None,
        "float16",
        "uint8",
        "uint16",
        "uint8",
        None,
    ]


def test_ml5_s_manifest(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "cell_kernel").write_bytes(W.tobytes())
    (tmp_path / "m" / "manifest.json").write_text(
        json.dumps({"cell/kernel": {"filename": "cell_kernel", "shape": [5, 3]}})
    )
    (tmp_path / "m" / "vocab.json").write_text('{"a": 0}')
    opened = llmconv.open(tmp_path / "m")
    assert np.array_equal(opened.tensors["cell/kernel"].numpy(), W) and "vocab.json" in opened.files


GOOD = {"name": "w", "shape": [5, 3], "dtype": "float32"}
FAULTS: dict[str, tuple[Any, str]] = {
    "no groups": ({"weightsManifest": {}}, "weightsManifest is no list"),
    "nothing": ({"weightsManifest": []}, "lists no weights"),
    "no paths": ({"weightsManifest": [{"weights": [GOOD]}]}, "group 0 of its manifest has no lists"),
    "missing file": ({"weightsManifest": [{"paths": ["x.bin"], "weights": [GOOD]}]}, "its file 'x.bin' is missing"),
    "outside": ({"weightsManifest": [{"paths": ["../w.bin"], "weights": [GOOD]}]}, "it is not followed"),
    "absolute": ({"weightsManifest": [{"paths": ["/w.bin"], "weights": [GOOD]}]}, "it is not followed"),
    "no name": ({"weightsManifest": [{"paths": ["w.bin"], "weights": [{"shape": [1]}]}]}, "a weight without a name"),
    "twice": ({"weightsManifest": [{"paths": ["w.bin"], "weights": [GOOD, GOOD]}]}, "'w' is listed twice"),
    "bad shape": ({"weightsManifest": [{"paths": ["w.bin"], "weights": [{**GOOD, "shape": [-1]}]}]}, "has shape"),
    "bad type": ({"weightsManifest": [{"paths": ["w.bin"], "weights": [{**GOOD, "dtype": "x"}]}]}, "of type 'x'"),
    "too short": (
        {"weightsManifest": [{"paths": ["w.bin"], "weights": [{**GOOD, "shape": [6, 3]}]}]},
        "takes 72 bytes",
    ),
    "too long": ({"weightsManifest": [{"paths": ["w.bin"], "weights": [{**GOOD, "shape": [4, 3]}]}]}, "expected 48 by"),
    "no scale": (
        {"weightsManifest": [{"paths": ["w.bin"], "weights": [{**GOOD, "quantization": {"dtype": "uint8"}}]}]},
        "is quantized as",
    ),
    "cut text": (
        {"weightsManifest": [{"paths": ["w.bin"], "weights": [{**GOOD, "dtype": "string"}]}]},
        "more than its files have",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_sentences(tmp_path: Path, fault: str) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    (tmp_path / "model.json").write_text(json.dumps(FAULTS[fault][0]))
    with pytest.raises((BadFile, Unsupported), match=FAULTS[fault][1]) as error:
        llmconv.open(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(tmp_path))


def test_files_cut_anywhere_are_sentences(tmp_path: Path) -> None:
    folder = manifest(tmp_path / "m")
    raw = (folder / "model.json").read_bytes()
    for stop in range(1, len(raw), 37):
        (folder / "model.json").write_bytes(raw[:stop])
        with pytest.raises(LlmconvError):
            llmconv.open(folder)


def made() -> Checkpoint:
    arrays = {
        "a.weight": RNG.standard_normal((40, 300, 100)).astype(np.float32),
        "a/half": np.array([1.5, -2], np.float16),
        "ids:0": np.array([[1, 2]], np.int64),
        "flag": np.array([True]),
    }
    return Checkpoint({n: Tensor.from_array(n, a) for n, a in arrays.items()}, {"format": "pt", "note": "é"}, "plain")


def test_written_in_shards_of_four_megabytes(tmp_path: Path) -> None:
    result = llmconv.save(made(), tmp_path / "m.tfjs")
    sizes = {p.name: p.stat().st_size for p in result.paths}
    assert sizes["group1-shard1of2.bin"] == 4 << 20 and "group1-shard2of2.bin" in sizes
    opened = llmconv.open(tmp_path / "m.tfjs")
    assert opened.metadata["note"] == "é" and "model.json" not in opened.files
    for name, tensor in made().tensors.items():
        if name != "a.weight":
            assert np.array_equal(opened.tensors[name].numpy(), tensor.numpy())
    with pytest.raises(OutputError, match="not empty"):
        llmconv.save(made(), tmp_path / "m.tfjs")
    lone = Checkpoint({"w": Tensor.from_array("w", W)}, dialect="plain")
    llmconv.save(lone, tmp_path / "m.tfjs", force=True)
    assert not (tmp_path / "m.tfjs" / "group1-shard2of2.bin").exists()
    assert np.array_equal(llmconv.open(tmp_path / "m.tfjs").tensors["w"].numpy(), W)
    large = Checkpoint({"n": Tensor.from_array("n", np.array([2**40]))}, dialect="plain")
    with pytest.raises(Unsupported, match="'n' has numbers beyond 2"):
        llmconv.save(large, tmp_path / "n", format="tfjs")
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("spaced", [True, False])
@pytest.mark.parametrize("names", [["weights.bin"], ["my_model.weights.bin"]])
def test_a_folder_comes_back_file_for_file(tmp_path: Path, names: list[str], spaced: bool) -> None:
    values = np.arange(6, dtype=np.float32)
    entry = {"name": "w", "shape": [2, 3], "dtype": "float32"}
    model = {"modelTopology": {"a": 1.50}, "weightsManifest": [{"paths": names, "weights": [entry]}], "format": "x"}
    (tmp_path / "m").mkdir()
    text = json.dumps(model, indent=2 if spaced else None)
    (tmp_path / "m" / "model.json").write_text(text)
    (tmp_path / "m" / names[0]).write_bytes(values.tobytes())
    llmconv.convert_file(tmp_path / "m", tmp_path / "m.gguf")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.tfjs")
    assert {p.name for p in (tmp_path / "back.tfjs").iterdir()} == {"model.json", *names}
    assert (tmp_path / "back.tfjs" / "model.json").read_text() == text
    assert (tmp_path / "back.tfjs" / names[0]).read_bytes() == values.tobytes()
