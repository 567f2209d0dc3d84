"""Arrays of documents whose shape or type stands beside them: read as what they are, written as they were."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest

import llmconv
from llmconv.errors import BadFile, Unsupported
from llmconv.formats import json_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents.document import Slot, dumps, loads
from llmconv.formats.documents.typed_bytes import dtype_named
from llmconv.formats.tensor import Tensor

VALUES = np.array([[1.5, -2, 3], [0.25, 5, -6]])
RAW = VALUES.astype("<f4").tobytes()
B64 = base64.b64encode(RAW).decode()
BIG = base64.b64encode(VALUES.astype(">f4").tobytes()).decode()
FLAT = VALUES.reshape(-1).tolist()
KEYED = {str(i): x for i, x in enumerate(FLAT)}
BUFFER = {"type": "Buffer", "data": list(RAW)}

# Every one of these holds VALUES as its only tensor "w".
SAME: dict[str, Any] = {
    "nested": {"w": VALUES.tolist()},
    "shape": {"w": {"shape": [2, 3], "data": FLAT}},
    "dims and values": {"w": {"dims": [2, 3], "values": FLAT}},
    "size and weights": {"w": {"size": [2, 3], "weights": FLAT}},
    "ndarray of Rust": {"w": {"v": 1, "dim": [2, 3], "data": FLAT}},
    "rows and cols": {"w": {"rows": 2, "cols": 3, "data": FLAT}},
    "recurrentjs": {"w": {"n": 2, "d": 3, "w": KEYED}},
    "typed array": {"w": {"shape": [2, 3], "data": KEYED}},
    "typed array with length": {"w": {"shape": [2, 3], "data": KEYED | {"length": 6}}},
    "nested beside its shape": {"w": {"shape": [2, 3], "data": VALUES.tolist()}},
    "base64": {"w": {"shape": [2, 3], "dtype": "float32", "data": B64}},
    "base64 of JavaScript": {"w": {"type": "Float32Array", "dims": [2, 3], "values": B64}},
    "base64 of doubles": {
        "w": {"dtype": "<f8", "shape": [2, 3], "data": base64.b64encode(VALUES.tobytes()).decode()}
    },
    "base64 of halves, url, bare": {
        "w": {"dtype": "f16", "shape": [2, 3], "b": 1, "data": base64.urlsafe_b64encode(
            VALUES.astype("<f2").tobytes()).decode().rstrip("=")}
    },
    "base64 in a data URL": {
        "w": {"dtype": "float32", "shape": [2, 3], "data": f"data:application/octet-stream;base64,{B64}"}
    },
    "big-endian": {"w": {"dtype": ">f4", "shape": [2, 3], "data": base64.b64encode(
        VALUES.astype(">f4").tobytes()).decode()}},
    "base64 of a class": {"w": {"$type": "Float32Array", "size": [2, 3], "base64": B64}},
    "bfloat16": {"w": {"dtype": "torch.bfloat16", "shape": [2, 3], "data": base64.b64encode(
        VALUES.astype(ml_dtypes.bfloat16).tobytes()).decode()}},
    "a Buffer": {"w": {"shape": [2, 3], "dtype": "float32", "data": BUFFER}},
    "a Buffer with its shape outside": {"w": BUFFER, "shape": [2, 3]},
    "a list of bytes": {"w": {"shape": [2, 3], "dtype": "float32", "data": list(RAW)}},
    "big-endian by a word beside": {"w": {"dtype": "float32", "endian": "big", "shape": [2, 3], "data": BIG}},
    "big-endian by a flag outside": {"littleEndian": False, "all": {"w": {"shape": [2, 3], "data": BIG}}},
    "base64 in lines, as encodebytes has them": {
        "w": {"dtype": "<f8", "shape": [2, 3], "data": base64.encodebytes(VALUES.tobytes()).decode()}
    },
    "base64 in lines of 20": {
        "w": {"dtype": "f4", "shape": [2, 3], "data": "\r\n".join([B64[:20], B64[20:]])}
    },
    "shapes and dtype once for all": {"dtype": "float32", "shapes": {"w": [2, 3]}, "weights": {"w": B64}},
}  # fmt: skip


@pytest.mark.parametrize("layout", [{"separators": (",", ":")}, {"indent": 2}])
@pytest.mark.parametrize("form", SAME)
def test_every_form_is_the_same_tensor_and_comes_back(tmp_path: Path, form: str, layout: dict[str, Any]) -> None:
    source = tmp_path / "m.json"
    source.write_text(json.dumps(SAME[form], **layout))
    opened = llmconv.open(source)
    (tensor,) = opened.tensors.values()
    assert tensor.name.endswith("w") and tensor.shape == (2, 3) and (tensor.numpy() == VALUES).all()
    assert json_file.is_exact(opened)
    llmconv.convert_file(source, tmp_path / "m.gguf", layout="plain", outtype="f64")
    assert [t.shape for t in llmconv.open(tmp_path / "m.gguf").tensors.values()] == [(2, 3)]
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("form", ["base64", "typed array with length", "a Buffer", "a list of bytes"])
def test_forms_in_messagepack(tmp_path: Path, form: str) -> None:
    source = tmp_path / "m.msgpack"
    source.write_bytes(msgpack.packb(SAME[form]))
    llmconv.convert_file(source, tmp_path / "m.gguf", layout="plain", outtype="f64")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.msgpack")
    assert (tmp_path / "back.msgpack").read_bytes() == source.read_bytes()


def test_binary_of_messagepack(tmp_path: Path) -> None:
    source = tmp_path / "m.msgpack"
    source.write_bytes(msgpack.packb({"w": {"dtype": "float32", "shape": [2, 3], "data": RAW}}))
    assert (llmconv.open(source).tensors["w"].numpy() == VALUES).all()
    llmconv.convert_file(source, tmp_path / "m.gguf", layout="plain", outtype="f64")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.msgpack")
    assert (tmp_path / "back.msgpack").read_bytes() == source.read_bytes()


def test_a_shape_is_no_tensor(tmp_path: Path) -> None:
    tree = {
        "w": [0.5, 1],
        "input_shape": [2, 3],
        "layerSizes": [4, 5],
        "shapes": [[1, 2], [3]],
        "dims": [7],
        "k": [1, 2],
    }
    (tmp_path / "m.json").write_text(json.dumps(tree))
    assert list(llmconv.open(tmp_path / "m.json").tensors) == ["w", "k"]


NOTED = {
    "all null": ({"w": [None, None], "x": [1.5]}, ["x"], "'w' holds only null"),
    "null in rows": ({"w": [[None], [None]], "x": [1.5]}, ["x"], "'w[0]' (and 1 more) holds only null"),
    "an object of null": ({"w": {"0": None, "1": None}, "x": [1.5]}, ["x"], "'w' holds only null"),
    "base64 without type": ({"w": B64 * 4, "x": [1.5]}, ["x"], "'w' is base64 without a dtype"),
    "base64 in lines": (
        {"w": {"shape": [2, 3], "dtype": "float32", "data": f"{B64[:8]}\n{B64[8:]}"}, "x": [1.5]},
        ["x"],
        "'w' is base64",
    ),
    "a Buffer without anything": ({"w": BUFFER}, ["w"], "'w' is a buffer without a dtype or a shape"),
    "no dtype": ({"w": {"shape": [2, 3], "data": B64}}, ["w"], "'w' has no dtype: its bytes are taken as floats"),
}


@pytest.mark.parametrize("what", NOTED)
def test_what_is_no_tensor_or_a_guess_is_named(tmp_path: Path, what: str) -> None:
    tree, tensors, note = NOTED[what]
    (tmp_path / "m.json").write_text(json.dumps(tree))
    opened = llmconv.open(tmp_path / "m.json")
    assert list(opened.tensors) == tensors and note in " ".join(opened.notes)
    assert note in " ".join(llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf", layout="plain").notes)


def test_single_numbers_are_named(tmp_path: Path) -> None:
    tree = {
        "layers": [{"0": {"bias": 0.5, "weights": {"0": 1.5, "1": 2}}, "1": {"bias": 1, "weights": {"0": 1, "1": 2}}}]
    }
    (tmp_path / "m.json").write_text(json.dumps(tree))
    notes = llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf", layout="plain").notes
    assert any("'layers[0].0.bias' (and 1 more) is a single number" in n for n in notes)


FAULTS = {
    "too few numbers": ({"w": {"shape": [2, 3], "data": FLAT[:5]}}, "w has 5 numbers in data, expected 2x3"),
    "other dims": ({"w": {"dims": [2, 4], "data": FLAT}}, "w has 6 numbers in data, expected 2x4"),
    "no sizes": ({"w": {"shape": [0, 3], "data": FLAT}}, "states the shape"),
    "too few bytes": ({"w": {"shape": [2, 4], "dtype": "f4", "data": B64}}, "has 24 bytes in data, expected 2x4 of f4"),
    "half a null": ({"w": {"0": 1.5, "1": None}}, "w.1 is null among numbers"),
    "null in a row": ({"w": [[1.5, None]]}, r"w\[0\]\[1\] is null among numbers"),
    "a Buffer of no bytes": ({"w": {"type": "Buffer", "data": [1, 300]}}, "w is a Node Buffer with numbers that"),
    "ragged": ({"w": [[1.5], [1.5, 2]]}, "w is ragged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_with_their_path(tmp_path: Path, fault: str) -> None:
    tree, message = FAULTS[fault]
    (tmp_path / "m.json").write_text(json.dumps(tree))
    with pytest.raises(BadFile, match=message) as error:
        llmconv.open(tmp_path / "m.json")
    assert len(str(error.value)) < 300 + len(str(tmp_path))


TYPES = {
    **dict.fromkeys(["float32", "Float32Array", "f32", "<f4", "f4", "FLOAT", "torch.float32", "DT_FLOAT"], "<f4"),
    **dict.fromkeys(["float64", "Float64Array", "double", "f64", "d", "=f8"], "<f8"),
    **dict.fromkeys(["float16", "half", "np.float16", "f16"], "<f2"),
    **dict.fromkeys(["int8", "Int8Array", "i8", "|i1"], "|i1"),
    **dict.fromkeys(["uint8", "Uint8ClampedArray", "u8", "uint8_t"], "|u1"),
    **dict.fromkeys(["int64", "BigInt64Array", "i64", "<i8", "long"], "<i8"),
    **dict.fromkeys(["bfloat16", "bf16", "torch.bfloat16"], "bfloat16"),
    **dict.fromkeys(["float12", "Buffer", "layer", "", "int128", "f0", 4, None, "x" * 1000], None),
    ">f4": ">f4",
}


@pytest.mark.parametrize("name", TYPES)
def test_names_of_types(name: Any) -> None:
    assert dtype_named(name) == TYPES[name]


def test_bytes_that_can_not_hold_the_numbers(tmp_path: Path) -> None:
    slot = Slot("w", (2,), "base64", raw="|i1")
    assert loads(dumps({"w": slot}), "m.gguf") == {"w": slot}
    document = {"document": {"w": slot}}
    checkpoint = Checkpoint({"w": Tensor.from_array("w", np.array([1.0, 0.5]))}, document, "json")
    with pytest.raises(Unsupported, match=r"tensor 'w' is 0\.5 at \[1\], which i1, .* can't hold"):
        json_file.save(checkpoint, tmp_path / "m.json")
    for wrong in ('{"$tensor":"w","shape":[2],"raw":"O"}', '{"$tensor":"w","shape":[2],"form":"base64x","raw":"<f4"}'):
        with pytest.raises(BadFile, match="kept document"):
            loads(wrong, "m.gguf")


def test_hobby_documents_come_back(tmp_path: Path, shared: Path) -> None:
    for source in sorted((shared / "hobby").glob("*.json")):
        llmconv.convert_file(source, tmp_path / "m.gguf", layout="plain", outtype="f64", force=True)
        llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "m.json", force=True)
        assert (tmp_path / "m.json").read_bytes() == source.read_bytes(), source.name
        names = set(llmconv.open(tmp_path / "m.gguf").tensors)
        assert not any(name.endswith((".shape", ".dim", "hidden_sizes")) for name in names)


SIX = np.arange(6, dtype="<i4")
TEXT = base64.b64encode(SIX.tobytes()).decode()


@pytest.mark.parametrize("data", ["data", "base64", "b64", "bytes", "content", "raw", "__ndarray__", "Data"])
@pytest.mark.parametrize("shape", ["shape", "dims", "sizes", "dimensions", "tensorShape", "Shape"])
@pytest.mark.parametrize("dtype", ["dtype", "dataType", "data_type", "elementType", "format", "Dtype"])
def test_base64_under_the_words_that_people_use(tmp_path: Path, data: str, shape: str, dtype: str) -> None:
    text = json.dumps({"w": {dtype: "int32", shape: [2, 3], data: TEXT}})
    (tmp_path / "m.json").write_text(text)
    found = llmconv.open(tmp_path / "m.json")
    assert found.notes == [] and found.tensors["w"].numpy().tolist() == SIX.reshape(2, 3).tolist()
    llmconv.formats.by_name("json").save(found, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == text


LONG = base64.b64encode(np.arange(96, dtype="<f4").tobytes()).decode()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"dtype": "complex64", "shape": [2, 3], "data": TEXT}, "it stays text, no tensor"),
        ([LONG, LONG], "it stays text, no tensor"),
        ({"type": "Buffer", "data": TEXT}, "it stays text, no tensor"),
        ({"data": [1, 2, 3, 4], "type": "Buffer"}, "its bytes are the tensor's numbers"),
        ({"length": 2, "0": 1.5, "1": 2.5}, "has numbers under 0, 1"),
        ({"0": 1.5, "1": 2.5, "length": 3}, "has numbers under 0, 1"),
        ({"0": 1.5, "2": 2.5, "length": 3}, "has numbers under 0, 1"),
        ([[1.5, 2.5], None], "'w[1]' holds only null"),
        ("AACAPwAAAEA=", "it stays text, no tensor"),
        ("AACAPwAAAEAAAEBA", "it stays text, no tensor"),
        ("data:;base64,AACAPwAAAEA=", "it stays text, no tensor"),
        ({"$binary": {"base64": "AACAPwAAAEA=", "subType": "00"}}, "it stays text, no tensor"),
        ({"1": 1.5, "2": 2.5}, "has numbers under numbers, but"),
        ({"1": 1.5, "2": 2.5, "n": 2}, "has numbers under numbers, but"),
        ({"1": {"1": 1.5, "2": 2}, "2": {"1": 3, "2": 4}}, "'w.1' (and 1 more) has numbers under numbers, but"),
        ({"-1": 1, "0": 2.5}, "has numbers under numbers, but"),
        ({"0.5": 1, "1.5": 2.5}, "has numbers under numbers, but"),
    ],
)
def test_what_is_no_tensor_is_named(tmp_path: Path, value: Any, said: str) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"w": value, "x": [1.5, 2.5]}))
    notes = llmconv.open(tmp_path / "m.json").notes
    assert len(notes) == 1 and said in notes[0]


def test_ggmls_ne_is_a_shape_from_the_last_dimension_on(tmp_path: Path) -> None:
    document = {"tensors": [{"name": "wte", "type": "f32", "ne": [3, 2], "data": [1, 2, 3, 4, 5, 6.5]}]}
    (tmp_path / "m.json").write_text(json.dumps(document))
    found = llmconv.open(tmp_path / "m.json").tensors
    assert [t.numpy().tolist() for t in found.values()] == [[[1, 2, 3], [4, 5, 6.5]]]


def test_base64_of_a_class_without_a_shape(tmp_path: Path) -> None:
    short = base64.b64encode(RAW[:16]).decode()
    for value in ({"$type": "Float32Array", "base64": B64}, {"dtype": "float32", "rows": {"w": short}}):
        (tensor,) = llmconv.open(written(tmp_path, {"w": value})).tensors.values()
        assert tensor.numpy()[:4].tolist() == [1.5, -2, 3, 0.25]


def test_gradients_beside_numbers_change_no_name(tmp_path: Path) -> None:
    document = {"w1": {"n": 2, "d": 1, "w": [1.5, 2], "dw": [0, 0]}, "hiddenLayers": [4, 5]}
    (tmp_path / "m.json").write_text(json.dumps(document))
    found = llmconv.open(tmp_path / "m.json").tensors
    assert {n: t.shape for n, t in found.items()} == {"w1": (2, 1), "w1.dw": (2,)}


def written(folder: Path, tree: Any) -> Path:
    (folder / "m.json").write_text(json.dumps(tree))
    return folder / "m.json"


@pytest.mark.parametrize("shape", ["2,3", "[2, 3]", "(2, 3)", "2x3", ["2", "3"], [2.0, 3.0], {"0": 2, "1": 3}])
def test_shapes_as_programs_write_them(tmp_path: Path, shape: Any) -> None:
    document = {"w": {"shape": shape, "data": FLAT}, "x": {"rows": "3", "cols": "2", "data": FLAT}}
    found = llmconv.open(written(tmp_path, document))
    assert {name: t.shape for name, t in found.tensors.items()} == {"w": (2, 3), "x": (3, 2)}
    json_file.save(found, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_bytes()) == document


NO_NUMBERS: dict[str, Any] = {
    "texts": ["0.1", "0.2", "-3e-5"],
    "texts under 0, 1": {"0": "0.1", "1": "-3e-5"},
    "not finite": ["NaN", "-Infinity"],
    "BigInts": ["1n", "2n"],
    "among numbers": [0.5, "0.25"],
    "not finite, among numbers": [0.5, "NaN"],
    "among truths": [0.5, 0.25, True],
    "commas": "0.1,0.2,0.3,0.4",
    "spaces": "0.1 0.2 0.3 0.4",
    "JSON in a text": json.dumps(VALUES.tolist()),
    "an object in a text": json.dumps({"shape": [2, 3], "data": FLAT}),
    "hexadecimal": (RAW * 8).hex(),
    "MongoDB's": [{"$numberDouble": "0.1"}, {"$numberDouble": "0.2"}],
    "MongoDB's among numbers": [0.5, {"$numberDouble": "Infinity"}],
    "objects of one number": [{"value": 0.5}, {"value": 2}],
    "objects with gradients": [{"data": 0.5, "grad": 0}, {"data": 2, "grad": 0}],
    "a short text": "[1.5,2]",
    "undefined among texts": ["1.5", "undefined"],
    "complex": [{"re": 1.5, "im": 0}, {"re": 2.5, "im": 1}],
}


@pytest.mark.parametrize("form", NO_NUMBERS)
def test_numbers_in_disguise_are_named(tmp_path: Path, form: str) -> None:
    found = llmconv.open(written(tmp_path, {"w": NO_NUMBERS[form], "x": [1.5]}))
    assert list(found.tensors) == ["x"]
    assert found.notes == ["'w' holds numbers as text or in objects, not as numbers: no tensor"]


@pytest.mark.parametrize(
    "value",
    [
        ["0", "1", "2"],
        ["a", "b"],
        ["undefined"],
        "a sentence, with 3.5 commas, 1 or 2",
        "f" * 64,
        {"a": "0.5"},
        {"1": "a", "2": "b"},
        {"8": 3},
        [{"value": "a"}, {"value": "b"}],
        *("gradientClipping", "relu", "LayerNormalization12", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "[1, 2]"),
    ],
)
def test_words_are_no_numbers(tmp_path: Path, value: Any) -> None:
    assert llmconv.open(written(tmp_path, {"w": value, "x": [1.5]})).notes == []


def test_a_tensor_without_its_numbers_is_named(tmp_path: Path) -> None:
    """What JSON.stringify makes of TensorFlow.js's tensors."""
    printed = {"kept": False, "isDisposedInternal": False, "shape": [2, 3], "dtype": "float32", "dataId": {}, "id": 7}
    notes = llmconv.open(written(tmp_path, {"w": printed, "x": [1.5]})).notes
    assert notes == ["'w' states a shape and a dtype and has no numbers, as libraries print a tensor: no tensor"]


def test_whole_numbers_beside_a_scale_are_named(tmp_path: Path) -> None:
    notes = llmconv.open(written(tmp_path, {"w": {"data": [1, 2, -3], "scale": 0.02, "zeroPoint": 0}})).notes
    assert len(notes) == 1 and "whole numbers beside a scale" in notes[0]


REFUSED_FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "a transposed view": ({"data": FLAT, "shape": [3, 2], "stride": [1, 3], "offset": 0}, r"by stride \[1, 3\]"),
    "bytes of one": ({"data": FLAT, "shape": [2, 3], "strides": [8, 16]}, "by strides"),
    "columns": ({"data": FLAT, "shape": [2, 3], "order": "F"}, "by order 'F'"),
    "numpy's columns": ({"data": FLAT, "shape": [2, 3], "fortran_order": True}, "by fortran_order True"),
    "bits of halves": ({"dtype": "float16", "shape": [3], "data": [15360, 16384, 14336]}, "has the bits of floats"),
    "bits of bfloat16": ({"dtype": "bfloat16", "data": [16256, 16384]}, "has the bits of floats"),
    "bits of floats": ({"dtype": "float32", "data": [1065353216, 1073741824]}, "has the bits of floats"),
}


@pytest.mark.parametrize("form", REFUSED_FORMS)
def test_numbers_that_are_others_are_refused(tmp_path: Path, form: str) -> None:
    value, message = REFUSED_FORMS[form]
    with pytest.raises(BadFile, match=message):
        llmconv.open(written(tmp_path, {"w": value}))


def test_strides_of_rows_are_fine(tmp_path: Path) -> None:
    for strides in ([3, 1], [24, 8], [12, 4]):
        document = {"w": {"data": FLAT, "shape": [2, 3], "strides": strides, "order": "C"}}
        assert llmconv.open(written(tmp_path, document)).tensors["w"].shape == (2, 3)


NO_JSON = {
    b'export default {"w": [[1, 2]]};': "is a program",
    b'const model = {"w": [[1, 2]]};': "is a program",
    b'module.exports = {"w": [[1, 2]]}': "is a program",
    b'callback({"w": [[1, 2]]});': "is JSONP",
    b'// model\n{"w": [[1, 2]]}': "begins with a comment",
    b'```json\n{"w": [[1, 2]]}\n```': "is Markdown",
    b'"{\\"w\\": [[1, 2]]}"': "is JSON in a text",
    '{"w": [[1, 2]]}'.encode("utf-16"): "is text in UTF-16",
}


@pytest.mark.parametrize("text", NO_JSON)
def test_what_has_json_inside_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "model.json").write_bytes(text)
    with pytest.raises(BadFile, match=NO_JSON[text]):
        llmconv.open(tmp_path / "model.json")


def test_our_own_settings_are_no_weights(tmp_path: Path) -> None:
    """Typed arrays of our JSON's metadata were told of as base64 that is no tensor."""
    metadata = {"general.architecture": "none", "kinds": np.arange(40, dtype=np.int32), "words": ["1.0", "2.0", "3.0"]}
    model = Checkpoint(metadata=metadata)
    model.add(Tensor.from_array("w", np.ones((2, 3), np.float32)))
    llmconv.save(model, tmp_path / "m.gguf")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "m.json")
    assert llmconv.open(tmp_path / "m.json").notes == []
