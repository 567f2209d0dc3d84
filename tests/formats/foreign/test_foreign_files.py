"""numpy's, pickle's, Keras's and ONNX's files against the libraries that wrote them; what is no model is named."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import llmconv
from llmconv import formats
from llmconv.errors import BadFile, LlmconvError, Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign import onnx_file

RNG = np.random.default_rng(5)
ARRAYS: dict[str, Any] = {
    "layer.0/w": RNG.standard_normal((3, 4)).astype(np.float32),
    "columns": np.asfortranarray(RNG.standard_normal((3, 4, 2))),
    "big": RNG.standard_normal((5, 2)).astype(">f4"),
    "half": np.array([1.5, -2], np.float16),
    "ids": np.arange(6, dtype=np.int64).reshape(2, 3),
    "flags": np.array([True, False]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "complex": np.array([1 + 2j], np.complex64),
}


def same(opened: Checkpoint, arrays: dict[str, Any]) -> None:
    """Shape, type and every value; whole and in slabs."""
    assert list(opened.tensors) == list(arrays)
    for name, array in arrays.items():
        tensor = opened.tensors[name]
        assert tensor.shape == array.shape and tensor.type.dtype == array.dtype.newbyteorder("<"), name
        assert np.array_equal(tensor.numpy(), array), name
        for start, stop in tensor.slabs(16):
            assert np.array_equal(tensor.rows(start, stop), tensor.rows()[start:stop]), name


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_as_numpy_reads_it(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "m.npz", **ARRAYS, words=np.array([["a", "bé"]]))
    opened = llmconv.open(tmp_path / "m.npz")
    same(opened, ARRAYS)
    assert opened.format == "numpy" and json.loads(opened.metadata["words"]) == [["a", "bé"]]
    llmconv.convert_file(tmp_path / "m.npz", tmp_path / "m.gguf")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "m.safetensors")
    back = llmconv.open(tmp_path / "m.safetensors")
    assert all(np.array_equal(back.tensors[n].numpy(), a) for n, a in ARRAYS.items()) and "words" in back.metadata


@pytest.mark.parametrize("name", ARRAYS)
def test_npy_as_numpy_reads_it(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "a.npy", ARRAYS[name])
    same(llmconv.open(tmp_path / "a.npy"), {"a": ARRAYS[name]})


def test_an_npz_whose_first_name_is_longer_than_what_is_looked_at(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", **{"x" * 60_000: np.ones(3, np.float32)})
    same(llmconv.open(tmp_path / "m.npz"), {"x" * 60_000: np.ones(3, np.float32)})


def test_what_numpy_has_no_type_for(tmp_path: Path) -> None:
    values = np.array([1.5, -3], ml_dtypes.bfloat16)
    np.save(tmp_path / "a.npy", values)
    opened = llmconv.open(tmp_path / "a.npy")
    assert opened.tensors["a"].type.name == "BF16" and opened.tensors["a"].numpy().tolist() == [1.5, -3]
    assert "taken as bfloat16" in opened.notes[0]
    np.savez(tmp_path / "o.npz", w=np.ones(2), o=np.array([{}], object))
    assert "array 'o' holds Python objects" in llmconv.open(tmp_path / "o.npz").notes[0]
    refused = {
        "structured array of the fields 'x, y'": np.zeros(2, [("x", "f4"), ("y", "i4")]),
        "holds Python objects": np.array([{}], object),
        "no tensor type stores": np.zeros(2, np.complex128),
    }
    for message, array in refused.items():
        np.save(tmp_path / "r.npy", array)
        with pytest.raises(Unsupported, match=message):
            llmconv.open(tmp_path / "r.npy")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays(tmp_path: Path, protocol: int) -> None:
    value = {"params": ARRAYS, "vocab": ["a", "b"], "step": np.int64(3), "names": np.array(["x"])}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(value, protocol))
    opened = llmconv.open(tmp_path / "m.pkl")
    assert opened.format == "pickle" and list(opened.tensors) == list(ARRAYS)
    assert all(np.array_equal(opened.tensors[n].numpy(), a) for n, a in ARRAYS.items())
    assert json.loads(opened.metadata["checkpoint.rest"]) == {"vocab": ["a", "b"], "step": 3, "names": ["x"]}


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("you have been run",)


EVIL = {
    "a call": (pickle.dumps({"w": np.ones(2), "x": _Evil()}), "asks for builtins.print, which no array needs"),
    "objects": (pickle.dumps(np.array([{}], object)), "array of Python objects"),
    "fields": (pickle.dumps(np.zeros(2, [("x", "f4")])), "structured array of the fields x"),
    "a huge count": (b"\x80\x05\x96" + (1 << 60).to_bytes(8, "little"), "cut short"),
    "a huge memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "holds no state dict"),
    "cut short": (pickle.dumps({"w": np.ones(99)})[:200], "its pickle can't be read, it is damaged or cut short"),
    "no pickle": (b"\x80\x04\x95" + bytes(300), "its pickle can't be read, it is damaged or cut short"),
    "a wrong shape": (pickle.dumps(np.ones(3)).replace(b"K\x03\x85", b"K\x04\x85"), r"shape \[4\] with 24 bytes"),
}


@pytest.mark.parametrize("what", EVIL)
def test_pickles_that_are_more_than_arrays(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.pkl").write_bytes(EVIL[what][0])
    with pytest.raises(BadFile, match=EVIL[what][1]):
        llmconv.open(tmp_path / "m.pkl")
    assert not capsys.readouterr().out


NUMBERS = {k: v for k, v in ARRAYS.items() if k not in ("scalar", "empty")}


@pytest.fixture
def h5(tmp_path: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "m.h5", "w", track_order=True) as file:
        group = file.create_group("model_weights/dense", track_order=True)
        for name, array in NUMBERS.items():
            group.create_dataset(name.replace("/", "_"), data=array)
        group.create_dataset("packed", data=ARRAYS["columns"], chunks=(1, 2, 2), compression="gzip")
        file["model_weights"].attrs["layer_names"] = np.array([b"dense"])
        file.attrs["keras_version"] = "2.1"
        file["optimizer_weights/m"] = np.ones(3)
    return tmp_path / "m.h5"


def test_keras_weights_as_h5py_reads_them(h5: Path, tmp_path: Path) -> None:
    arrays = {f"dense/{k.replace('/', '_')}": v for k, v in (NUMBERS | {"packed": ARRAYS["columns"]}).items()}
    opened = llmconv.open(h5)
    assert set(opened.tensors) == set(arrays)
    same(Checkpoint({n: opened.tensors[n] for n in arrays}), arrays)
    told = opened.metadata.pop("keras.h5")  # groups and attributes, which test_keras_writing is about
    assert "model_weights/dense" in told
    assert opened.metadata == {"keras.keras_version": "2.1", "keras.layer_names": '["dense"]'}
    assert opened.notes == ["1 arrays under 'optimizer_weights', the state of training, are left out"]
    with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", "{}")
        archive.write(h5, "model.weights.h5")
    zipped = llmconv.open(tmp_path / "m.keras")
    same(Checkpoint({n: zipped.tensors[n] for n in arrays}), arrays)


def test_keras_files_that_point_elsewhere(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["w"] = np.ones(3)
        file["loop"] = file["/"]
        file["out"] = h5py.ExternalLink("/etc/passwd", "/")
        file["soft"] = h5py.SoftLink("/w")
    assert list(llmconv.open(tmp_path / "m.h5").tensors) == ["w"]
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file.create_dataset("w", (8,), "u1", external=[(str(tmp_path / "m.h5"), 0, 8)])
    with pytest.raises(Unsupported, match="dataset 'w' keeps its numbers in other files"):
        llmconv.open(tmp_path / "e.h5")


@pytest.fixture
def onnx_model() -> Any:
    onnx = pytest.importorskip("onnx")
    kind, make = onnx.TensorProto, onnx.helper.make_tensor
    first = ARRAYS["layer.0/w"]
    tensors = [
        onnx.numpy_helper.from_array(first, "raw"),
        make("typed", kind.FLOAT, first.shape, first.reshape(-1).tolist()),
        make("half", kind.FLOAT16, [2], [1.5, -2]),
        make("brain", kind.BFLOAT16, [3], [1, -2, 3.5]),
        make("eighth", kind.FLOAT8E4M3FN, [2], [0.5, 448]),
        make("four", kind.INT4, [3], [-8, 7, 1]),
        make("four unsigned", kind.UINT4, [1, 5], [15, 0, 1, 2, 3]),
        make("flags", kind.BOOL, [2], [True, False]),
        make("ids", kind.INT64, [2], [-1, 2**40]),
        make("bytes", kind.UINT8, [2], [0, 255]),
        make("scalar", kind.DOUBLE, [], [2.5]),
        make("complex", kind.COMPLEX64, [1], [1 + 2j]),
    ]
    node = onnx.helper.make_node("Identity", ["raw"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", kind.FLOAT, [3, 4])
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [out], tensors), producer_name="us")


@pytest.mark.parametrize("outside", [False, True])
def test_onnx_as_the_library_reads_it(tmp_path: Path, onnx_model: Any, outside: bool) -> None:
    onnx = pytest.importorskip("onnx")
    known = [t for t in onnx_model.graph.initializer if t.name != "complex"]  # which onnx 1.17 itself can't read
    wanted = {t.name: onnx.numpy_helper.to_array(t) for t in known} | {"complex": np.array([1 + 2j], np.complex64)}
    extra = {"save_as_external_data": True, "size_threshold": 0, "location": "m.data"} if outside else {}
    onnx.save(onnx_model, tmp_path / "m.onnx", **extra)
    opened = llmconv.open(tmp_path / "m.onnx")
    assert opened.metadata["onnx.producer"] == "us" and "graph of 1 nodes is not" in opened.notes[-1]
    assert list(opened.tensors) == [t.name for t in onnx_model.graph.initializer] and len(wanted) == len(opened.tensors)
    for name, array in wanted.items():
        tensor = opened.tensors[name]
        own = tensor.numpy()
        narrow = array.dtype.names is not None
        if narrow:  # onnx before 1.19 gives the bits of narrow types
            bits = f"u{array.dtype.itemsize}"
            own, array = own.reshape(-1).view(bits).reshape(array.shape), array.view(bits)
        assert tensor.shape == array.shape and np.array_equal(own.astype(array.dtype), array), name
        if name.startswith("four") and not narrow:
            assert tensor.rows().tolist() == array.reshape(tensor.rows().shape).astype(int).tolist()
    kinds = {n: t.type.name for n, t in opened.tensors.items()}
    assert kinds["brain"] == "BF16" and kinds["eighth"] == "F8_E4M3" and kinds["four"] == "I8"


def test_onnx_files_that_point_elsewhere(tmp_path: Path, onnx_model: Any) -> None:
    onnx = pytest.importorskip("onnx")
    onnx.save(onnx_model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    raw = (tmp_path / "m.onnx").read_bytes()
    for location, message in (
        (b"../m.d", "it is not followed"),
        (b"/m.dat", "not followed"),
        (b"m.date", "is missing"),
    ):
        (tmp_path / "e.onnx").write_bytes(raw.replace(b"m.data", location))
        with pytest.raises(BadFile, match=message):
            llmconv.open(tmp_path / "e.onnx")
    (tmp_path / "m.data").write_bytes(b"short")
    with pytest.raises(BadFile, match=r"in 'm.data' of 5, expected"):
        llmconv.open(tmp_path / "m.onnx")


def test_files_cut_anywhere_are_sentences(tmp_path: Path, h5: Path, onnx_model: Any) -> None:
    np.savez(tmp_path / "m.npz", w=np.ones(9))
    np.savez_compressed(tmp_path / "c.npz", w=np.ones(9))
    np.save(tmp_path / "m.npy", np.ones(9))
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"w": np.ones(9)}))
    (tmp_path / "m.onnx").write_bytes(onnx_model.SerializeToString())
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.write(h5, "model.weights.h5")
    rng = np.random.default_rng(1)
    for name in ("m.npz", "c.npz", "m.npy", "m.pkl", "m.onnx", "m.h5", "m.keras"):
        raw = (tmp_path / name).read_bytes()
        path = tmp_path / f"cut-{name}"
        for stop in sorted({int(n) for n in rng.integers(1, len(raw), 25)}):
            for data in (raw[:stop], raw[:stop] + b"\xff" + raw[stop + 1 :]):
                path.write_bytes(data)
                try:
                    for tensor in formats.open(path).tensors.values():
                        tensor.blocks()
                except LlmconvError as error:
                    assert "\n" not in str(error) and len(str(error)) < 330 + len(str(path)), str(error)


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "m.npz", w=np.zeros(1 << 16))
    raw = bytearray((tmp_path / "m.npz").read_bytes())
    size = (8 * (1 << 16) + 128).to_bytes(4, "little")
    assert raw.count(size)
    (tmp_path / "b.npz").write_bytes(bytes(raw).replace(size, (1 << 31).to_bytes(4, "little")))
    with pytest.raises(BadFile):
        llmconv.open(tmp_path / "b.npz").tensors["w"].blocks()


@pytest.mark.parametrize("module", [onnx_file])
def test_read_only_formats_say_so(tmp_path: Path, module: Any) -> None:
    with pytest.raises(Unsupported, match="only read"):
        module.FORMAT.save(Checkpoint(), tmp_path / "x")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d7a2146" * 8 + "\nsize 1234567\n"
GUESTS = {
    "m.gguf": (POINTER.encode(), r"is a git-lfs pointer, the file of 1,234,567 bytes was not fetched"),
    "m.safetensors": (POINTER.encode(), "is a git-lfs pointer"),
    "m.bin": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", r"is a web page \(HTML\), no model"),
    "m.json": (b'\n<?xml version="1.0"?><Error/>', "is a web page"),
    "m.gguf.incomplete": (b"GGUF\3\0\0\0", r"is a download that was not finished \(.incomplete\)"),
    "m.safetensors.part": (b"\x10\0\0\0\0\0\0\0{}", "is a download that was not finished"),
    "zeros.gguf": (b"\0" * 5000, "begins with nothing but zeros"),
    "annex.gguf": (b"../.git/annex/objects/Zf/3p/SHA256E-s9--ab.gguf/SHA256E-s9--ab.gguf", "is a git-annex pointer"),
    "m.zip": (b"PK\x03\x04" + b"\0" * 40, "is a zip archive, as none of numpy's, PyTorch's or Keras's is"),
}


@pytest.mark.parametrize("name", GUESTS)
def test_what_is_no_model_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GUESTS[name][0])
    with pytest.raises(BadFile, match=GUESTS[name][1]):
        llmconv.open(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors.part", ".cache/huggingface/download/ab12.incomplete"])
def test_a_folder_of_halves_is_named(tmp_path: Path, name: str) -> None:
    """The Hub's library keeps what it has of a file in a hidden folder of `local_dir`."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadFile, match=f"downloads that were not finished: '{Path(name).name}'"):
        llmconv.open(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_pages_in_a_folder_are_named(tmp_path: Path, name: str) -> None:
    llmconv.save(Checkpoint(tensors=dict(_tensor()), dialect="plain"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).write_bytes(GUESTS["m.bin"][0])
    with pytest.raises(BadFile, match=rf"{name}: is a web page \(HTML\), no model"):
        llmconv.convert_file(tmp_path, tmp_path / "m.gguf", layout="plain")


def test_pointers_in_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "model.safetensors").write_text(POINTER)
    with pytest.raises(BadFile, match=r"model.safetensors: is a git-lfs pointer"):
        llmconv.open(tmp_path / "f")
    llmconv.save(Checkpoint(tensors=dict(_tensor()), dialect="plain"), tmp_path / "f" / "model.safetensors", force=True)
    (tmp_path / "f" / "tokenizer.json").write_text(POINTER)
    with pytest.raises(BadFile, match=r"tokenizer.json: is a git-lfs pointer"):
        llmconv.convert_file(tmp_path / "f", tmp_path / "m.gguf")


def _tensor() -> Any:
    from llmconv.formats.tensor import Tensor

    return {"w": Tensor.from_array("w", np.ones(2, np.float32))}
