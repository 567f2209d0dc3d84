"""Legacy JSON: strict and quick to read, written back byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_documents import JSON
from hypothesis import given, settings, strategies as st

import llmconv
from llmconv.errors import BadFile, Unsupported
from llmconv.formats import json_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents import json_scan
from llmconv.formats.documents.document import Slot, dumps, loads
from llmconv.formats.documents.numbers import number, row
from llmconv.formats.tensor import Tensor


def opened(tmp_path: Path, text: str | bytes) -> Checkpoint:
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return json_file.open(path)


def big(rows: int = 300, columns: int = 40) -> list[list[float]]:
    """A matrix long enough for the quick way."""
    return np.random.default_rng(1).standard_normal((rows, columns)).tolist()


def test_arrays_become_tensors_named_by_their_path(tmp_path: Path) -> None:
    c = opened(tmp_path, '{"a": {"b": [[1, 2.5], [3, 4]], "c": [{"d": [5]}]}, "x.y": [6], "s": "text", "n": 1}')
    assert {n: t.shape for n, t in c.tensors.items()} == {"a.b": (2, 2), "a.c[0].d": (1,), "x.y": (1,)}
    assert c.tensors["a.b"].numpy().tolist() == [[1, 2.5], [3, 4]]
    assert c.tensors["a.b"].type.name == "F64"
    document = c.metadata["document"]
    assert document["s"] == "text" and document["n"] == 1 and document["a"]["b"] == Slot("a.b", (2, 2), ints=(0, 2, 3))


def test_typed_arrays_that_became_objects(tmp_path: Path) -> None:
    text = '{"w":{"0":1.5,"1":2},"rows":[{"0":1,"1":2},{"0":3,"1":4}],"not":{"0":1,"2":2}}'
    c = opened(tmp_path, text)
    assert c.tensors["w"].numpy().tolist() == [1.5, 2] and c.tensors["rows"].shape == (2, 2)
    assert c.metadata["document"]["not"] == {"0": 1, "2": 2}
    assert json_file.is_exact(c)


def test_flat_numbers_beside_their_shape(tmp_path: Path) -> None:
    text = '{"a":{"shape":[2,3],"data":[1,2,3,4,5,6.5]},"b":{"rows":1,"cols":2,"data":[1,2]}}'
    c = opened(tmp_path, text)
    assert {n: t.shape for n, t in c.tensors.items()} == {"a": (2, 3), "b": (1, 2)}
    assert json_file.is_exact(c)


LAYOUTS = {
    "JSON.stringify": {"separators": (",", ":")},
    "json.dumps": {},
    "indent 2": {"indent": 2},
    "indent 4": {"indent": 4},
    "tabs": {"indent": "\t"},
    "escaped": {"ensure_ascii": True},
}
DOCUMENT = {
    "name": 'é ☃ \n\x1f\\"',
    "w": big(),
    "t": [1e-5, 1e-7, 1.5, 2e20, 3e22],
    "n": None,
    "e": [],
    "o": {},
    "k": 7,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_python_documents_come_back_byte_for_byte(tmp_path: Path, layout: str) -> None:
    options = {"ensure_ascii": False, **LAYOUTS[layout]}
    c = opened(tmp_path, json.dumps(DOCUMENT, **options) + "\n")
    assert json_file.is_exact(c) and len(c.tensors) == 2


ONLY_ARRAYS = {"root": big(), "flat root": big(1, 900)[0], "one key": {"w": big()}, "deep": {"a": [{"w": big()}]}}


@pytest.mark.parametrize("what", ONLY_ARRAYS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_a_document_that_is_all_array(tmp_path: Path, layout: str, what: str) -> None:
    """Where every separator stands among the numbers."""
    text = json.dumps(ONLY_ARRAYS[what], **LAYOUTS[layout])
    assert json_file.is_exact(opened(tmp_path, text))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_number_in_brackets_of_its_own_is_ragged(tmp_path: Path, rank: int) -> None:
    """However long the array: simdjson's buffer shows no difference."""
    values: list[object] = [0.5] * 3000
    values[1234] = [0.5]
    text = json.dumps([[values]] if rank == 3 else [values] if rank == 2 else values)
    with pytest.raises(BadFile):
        opened(tmp_path, text).tensors["values"].numpy()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_javascript_prints_numbers_as_we_do(tmp_path: Path) -> None:
    values = [0.1, 1e21, 1e-7, 1e-6, 123456789012345680000, 5e-324, 1.7976931348623157e308, 1e15, 1e16, -1.5e-9, 100, 0]
    rng = np.random.default_rng(0)
    values += np.frombuffer(rng.bytes(8 * 3000), np.float64)[:3000].tolist()
    values += (rng.standard_normal(2000) * 10.0 ** rng.integers(-12, 25, 2000)).tolist()
    values = [float(v) for v in values if np.isfinite(float(v))]
    script = "process.stdout.write(JSON.stringify(JSON.parse(require('fs').readFileSync(0))))"
    out = subprocess.run(["node", "-e", script], input=json.dumps(values), capture_output=True, text=True, check=True)
    assert row(np.array(values), "js").decode() == out.stdout[1:-1]


@settings(max_examples=300, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_reads_back_as_itself(value: float) -> None:
    for style in ("js", "python"):
        text = number(value, style)
        assert np.float64(json.loads(text)).tobytes() == np.float64(value).tobytes() or text == "-0"
        assert row(np.array([value]), style).decode() == text
    assert number(value, "python") == json.dumps(value)


def test_negative_zero_is_kept(tmp_path: Path) -> None:
    for text in ("[1.5,-0.0]", "[1.5,-0]", "[" + "1.5," * 3000 + "-0]"):
        values = opened(tmp_path, f'{{"w":{text}}}').tensors["w"].numpy()
        assert values[-1] == 0 and np.signbit(values[-1])
    assert json_file.is_exact(opened(tmp_path, '{"w":[1.5,-0]}'))


def test_whole_numbers_that_no_double_holds_stay_as_they_are(tmp_path: Path) -> None:
    text = '{"ids":[9007199254740993,2],"huge":123456789012345678901234567890}'
    c = opened(tmp_path, text)
    assert not c.tensors and c.metadata["document"]["ids"] == [9007199254740993, 2]
    assert json_file.is_exact(c)


def test_the_quick_way_is_the_slow_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = np.random.default_rng(2).standard_normal((5, 40, 30)).tolist()
    text = json.dumps({"a": big(), "s": 'x"' + "y[1,2]" * 900, "d": deep, "l": big(1, 4000)[0], "i": [3] * 3000})
    monkeypatch.setattr(json_scan, "PIECE", 5000)
    quick = opened(tmp_path, text)
    monkeypatch.setattr(json_scan, "LONG", 1 << 40)
    slow = opened(tmp_path, text)
    assert quick.metadata == slow.metadata and list(quick.tensors) == list(slow.tensors) == ["a", "d", "l", "i"]
    for name, tensor in quick.tensors.items():
        assert tensor.shape == slow.tensors[name].shape
        assert np.array_equal(tensor.numpy(), slow.tensors[name].numpy())
    assert json_file.is_exact(quick)


@settings(max_examples=120, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=20,
    )
)
def test_any_document_comes_back(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps([tree, "x"]), "utf-8")
    try:
        c = json_file.open(path)
    except BadFile as error:
        assert "ragged" in str(error) or "null among numbers" in str(error) or "twice" in str(error)
        return
    pieces: list[bytes] = []
    json_file.render(c, pieces.append)
    assert json.loads(b"".join(pieces)) == [tree, "x"]
    assert loads(dumps(c.metadata["document"]), "x") == c.metadata["document"]


@pytest.mark.parametrize("case", JSON)
def test_bad_documents_are_named_in_a_sentence(tmp_path: Path, case: str) -> None:
    text, message = JSON[case]
    with pytest.raises(BadFile) as error:
        opened(tmp_path, text)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "x.json"))


def test_good_controls(tmp_path: Path) -> None:
    for text in ("[1,2]", '\ufeff{"a":[1,2]}', ' \r\n{"a" : [ 1 , 2 ] } \n', '{"a":[]}', "[[[1]]]", '{"":[1]}'):
        opened(tmp_path, text)
    c = opened(tmp_path, '\ufeff{\r\n  "a": 1\r\n}\r\n')
    assert c.metadata["style"].bom and json_file.is_exact(c)


def test_a_sparse_file_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sparse.json"
    with path.open("wb") as file:
        file.write(b"[")
        os.truncate(file.fileno(), 3 << 30)
    with pytest.raises(BadFile, match="zero byte"):
        json_file.open(path)


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    c = Checkpoint(
        {"w": Tensor.from_array("w", np.array([[1.0, 2.0], [np.inf, 4.0]]))}, {"document": Slot("w", (2, 2))}
    )
    with pytest.raises(Unsupported, match=r"'w' is inf at \[1, 0\], which JSON can't hold"):
        json_file.save(c, tmp_path / "out.json")
    assert not list(tmp_path.iterdir())


def test_opened_by_content(tmp_path: Path) -> None:
    (tmp_path / "weights.dat").write_text('{"w": [1, 2]}')
    assert llmconv.open(tmp_path / "weights.dat").format == "json"


def _singles() -> np.ndarray[Any, Any]:
    """Usual weights, and floats of any bits: tiny, huge, whole, subnormal, negative zero."""
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**32, 20000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    odd = np.array([0, -0.0, 1, -2, 16777216, 1e15, 1e-4, 1e-7, 1.4e-45, 3.4e38, 0.1, 2**-126], np.float32)
    return np.concatenate([rng.normal(0, 0.02, 20000).astype(np.float32), bits[np.isfinite(bits)], odd])


@pytest.mark.parametrize("style", ["js", "python"])
def test_the_shortest_digits_give_every_float_back(tmp_path: Path, style: str) -> None:
    values = _singles()
    text = row(values, style)
    back = np.array([float(x) for x in text.split(b",")]).astype(np.float32)
    assert (back.view(np.uint32) == values.view(np.uint32)).all()
    digits = [len(x.lower().partition(b"e")[0].translate(None, b"-.").strip(b"0")) for x in text.split(b",")]
    assert max(digits) <= 17 and np.mean(np.array(digits) <= 9) > 0.999


def test_what_would_be_rounded_twice_gets_more_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmconv.formats.documents import numbers

    monkeypatch.setattr(numbers, "_rounded_twice", lambda values, text: [1])  # too rare to find one
    assert row(np.array([0.1, 0.2, 0.3], np.float32), "js") == b"0.1,0.20000000298023224,0.3"


def test_json_for_publishing_is_small_and_reads_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 0.02, (50, 1000)).astype(np.float32)
    checkpoint = Checkpoint()
    checkpoint.add(Tensor.from_array("w", values))
    checkpoint.add(Tensor.from_array("half", values[:2].astype(np.float16)))
    checkpoint.add(Tensor.from_array("double", values[:2].astype(np.float64) / 3))
    exact = llmconv.save(checkpoint, tmp_path / "exact.json")
    small = llmconv.save(checkpoint, tmp_path / "small.json", json_digits="shortest", json_compact=True)
    assert small.size < 14 * values.size and small.size < 0.65 * exact.size
    for path in ("exact.json", "small.json"):
        tensors = llmconv.open(tmp_path / path).tensors
        for name, was in checkpoint.tensors.items():
            found = next(t for n, t in tensors.items() if name in n).numpy().reshape(was.shape)
            kept = found if path == "exact.json" or name == "double" else found.astype(np.float32)
            assert (kept == was.numpy()).all()
    with pytest.raises(llmconv.UsageError, match="unknown JSON digits 'few'; known: exact, shortest"):
        llmconv.save(checkpoint, tmp_path / "x.json", json_digits="few")
    with pytest.raises(llmconv.UsageError, match="msgpack has no option json_compact=True; it has none of its own"):
        llmconv.save(checkpoint, tmp_path / "x.msgpack", json_compact=True)


def test_a_kept_style_is_made_compact_where_asked(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"w": [[1.5, 2.5], [3.5, 0.1]], "é": [1]}, indent=4))
    llmconv.convert_file(tmp_path / "a.json", tmp_path / "b.json", json_compact=True, layout="plain")
    assert (tmp_path / "b.json").read_text() == '{"w":[[1.5,2.5],[3.5,0.1]],"\\u00e9":[1]}'


def test_many_numbers_lie_in_a_file_that_nobody_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one of the arrays: the others are read from a temporary file, and all are what they were."""
    rows = np.random.default_rng(4).standard_normal((3, 700, 50))
    rows[1, 2] = 0  # whole numbers among them
    path, temporary = tmp_path / "m.json", tmp_path / "tmp"
    path.write_text(json.dumps({name: array.tolist() for name, array in zip("abc", rows, strict=True)}))
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(json_scan, "IN_MEMORY", 700 * 50 * 8)
    monkeypatch.setattr(json_scan, "PIECE", 10_000)
    opened = json_file.open(path)
    for name, array in zip("abc", rows, strict=True):
        tensor = opened.tensors[name]
        np.testing.assert_array_equal(tensor.numpy(), array)
        np.testing.assert_array_equal(tensor.blocks(5, 9).view(np.float64), array[5:9])
        np.testing.assert_array_equal(
            tensor.reshaped((50, 700)).blocks(3, 4).view(np.float64)[0], array.ravel()[2100:2800]
        )
    json_file.save(opened, tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == path.read_bytes()
    assert not list(temporary.iterdir())
