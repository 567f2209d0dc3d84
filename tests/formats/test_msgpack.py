"""MessagePack: strict to read, written back byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import llmconv
from llmconv.errors import BadFile
from llmconv.formats import msgpack_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents.document import dumps, loads


def opened(tmp_path: Path, raw: bytes) -> Checkpoint:
    path = tmp_path / "x.msgpack"
    path.write_bytes(raw)
    return msgpack_file.open(path)


DOCUMENTS: dict[str, Any] = {
    "floats": {"w": np.random.default_rng(0).standard_normal((20, 30)).tolist()},
    "integers among them": {"a": [1, 2.5, -3, 300, 70000, 2**40], "b": [[1, 2], [3, 4]]},
    "objects of numbers": {"w": {"0": 1.5, "1": 2}},
    "shape and data": {"w": {"shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]}},
    "bytes and times": {
        "b": b"\0\xff",
        "t": msgpack.Timestamp(5, 3),
        "e": msgpack.ExtType(4, b"abc"),
        "n": [None, True],
    },
    "awkward keys": {"$tensor": 1, "$": {"$ref": "x"}, "a.b": [1.0], "": 2},
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_come_back_byte_for_byte(tmp_path: Path, name: str) -> None:
    c = opened(tmp_path, msgpack.packb(DOCUMENTS[name]))
    assert msgpack_file.is_exact(c)
    assert loads(dumps(c.metadata["document"]), "x") == c.metadata["document"]


def test_single_precision_comes_back_as_such(tmp_path: Path) -> None:
    c = opened(tmp_path, msgpack.packb({"w": [[0.1, 2.5], [3.0, 4.0]]}, use_single_float=True))
    assert c.tensors["w"].numpy()[0, 0] == np.float32(0.1) and msgpack_file.is_exact(c)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=20,
    )
)  # fmt: skip
def test_any_document_comes_back(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any.msgpack"
    path.write_bytes(msgpack.packb([tree, "x"]))
    try:
        c = msgpack_file.open(path)
    except BadFile as error:
        assert "ragged" in str(error) or "null among numbers" in str(error)
        return
    assert msgpack_file.is_exact(c)


BAD = {
    "a count that nothing backs": (b"\xdd\xff\xff\xff\xff", "claims 4,294,967,295 items"),
    "counts within counts": (b"\xdd\x00\x00\x00\x05" * 3, "claims 5 items"),
    "a map's count": (b"\xdf\x00\x01\x00\x00\xa1a", "claims 65,536 items"),
    "not a number": (b"\x81\xa1a\xcb\x7f\xf8\0\0\0\0\0\0", "a is nan, expected a finite number"),
    "not finite in an array": (b"\x81\xa1a\x91\xcb\x7f\xf0\0\0\0\0\0\0", "a[0] is too large"),
    "key twice": (b"\x82\xa1a\x01\xa1a\x02", "has the key 'a' twice"),
    "a byte without a meaning": (b"\x91\xc1", "[0] is no valid MessagePack at byte 1"),
    "a key that is no text": (b"\x81\x01\x02", "has a key of type int"),
    "not UTF-8": (b"\x91\xa2\xff\xff", "[0] is a text that is not valid UTF-8, at byte 1"),
    "cut": (b"\x81\xa1a\xda\x01\x00abc", "a is missing: the file ends at byte 9"),
    "more than a document": (b"\x91\x01\x01", "goes on for 1 bytes after its document"),
    "too deep": (b"\x91" * 100 + b"\x01", "nests deeper than 64 levels"),
    "ragged": (msgpack.packb({"w": [[1.0, 2.0], [3.0]]}), "w is ragged: row 1 has 1 numbers, expected 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_documents_are_named_in_a_sentence(tmp_path: Path, case: str) -> None:
    raw, message = BAD[case]
    with pytest.raises(BadFile) as error:
        opened(tmp_path, raw)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_cut_of_a_real_document_is_refused(tmp_path: Path) -> None:
    raw = msgpack.packb({"a": [1.0, 2.0], "b": {"c": "text", "d": [1, 2, 3]}, "e": b"xyz"})
    for length in range(1, len(raw)):
        with pytest.raises(BadFile):
            opened(tmp_path, raw[:length])


def test_opened_by_content(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(msgpack.packb({"w": [1.0, 2.0]}))
    assert llmconv.open(tmp_path / "weights.bin").format == "msgpack"
