"""MessagePack: strict to read, written back byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from faulty_documents import MSGPACK
from hypothesis import example, given, settings, strategies as st

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
@example([2**63])
def test_any_document_comes_back(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any.msgpack"
    path.write_bytes(msgpack.packb([tree, "x"]))
    try:
        c = msgpack_file.open(path)
    except BadFile as error:
        assert "ragged" in str(error) or "null among numbers" in str(error)
        return
    assert msgpack_file.is_exact(c)


@pytest.mark.parametrize("case", MSGPACK)
def test_bad_documents_are_named_in_a_sentence(tmp_path: Path, case: str) -> None:
    raw, message = MSGPACK[case]
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
