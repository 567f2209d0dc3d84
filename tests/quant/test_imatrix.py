"""Importance matrices: both forms, the same floats as the reference computes, and hostile files."""

from __future__ import annotations

import contextlib
import re
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, strategies as st
from imatrix_files import dat, write_gguf

from llmconv.convert.quantizing.importance import read_importance, read_sums
from llmconv.convert.quantizing.plan import _importance
from llmconv.errors import BadFile, UsageError
from llmconv.formats.tensor import Tensor
from llmconv.quant.imatrix import Importance, from_dat


def test_dat(tmp_path: Path) -> None:
    tail = struct.pack("<ii", 42, 8) + b"wiki.txt"
    path = tmp_path / "i.dat"
    path.write_bytes(dat({"a": (3, [1.0, 2.0]), "b": (0, [5.0])}, tail))
    found = read_importance(path)
    assert found.chunks == 42 and found.datasets == ("wiki.txt",)
    assert found.entries["a"].tolist() == (np.float32([1, 2]) / np.float32(3)).tolist()
    assert found.entries["b"].tolist() == [5.0]


def test_dat_without_its_tail() -> None:
    found = from_dat(dat({"a": (1, [1.0])}), "x")
    assert (found.chunks, found.datasets) == (0, ())


def test_gguf_with_experts_never_used(tmp_path: Path) -> None:
    sums = {"a": [[2.0, 4.0], [3.0, 3.0], [1.0, 9.0]]}
    path = write_gguf(tmp_path / "i.gguf", sums, {"a": [[2.4], [0.0], [2.5]]})
    found = read_importance(path)
    third = (np.float32([1, 9]) / np.float32(3)).tolist()
    assert found.entries["a"].tolist() == [1.0, 2.0, 1.0, 1.0, *third]
    assert found.chunks == 7 and list(found.datasets) == ["wiki.txt"] and found.unseen == {"a": 1}


def test_filters() -> None:
    one = np.ones(1, np.float32)
    matrix = Importance({"blk.0.attn_v.weight": one, "blk.0.ffn_up.weight": one, "output.weight": one})
    assert list(matrix.filtered(include=["ffn", "output"]).entries) == ["blk.0.ffn_up.weight", "output.weight"]
    assert list(matrix.filtered(exclude=["blk.0"]).entries) == ["output.weight"]
    with pytest.raises(UsageError, match="exclude each other"):
        matrix.filtered(["a"], ["b"])
    for bad in (np.nan, np.inf, -1e-9, 3e38):
        with pytest.raises(BadFile, match=re.escape(f"importance of 'a' at 1 is {np.float32(bad)}")):
            Importance({"a": np.float32([1, bad])}).check("x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends at 0"),
        (struct.pack("<i", 0), "claims 0 entries"),
        (struct.pack("<i", 1 << 30) + bytes(64), "claims 1,073,741,824 entries"),
        (struct.pack("<ii", 1, -5) + bytes(16), "-5 bytes long"),
        (struct.pack("<ii", 1, 1 << 30) + bytes(16), "expected at most 65,535"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 1 << 29), "needs 2,147,483,648 bytes"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, -1) + bytes(8), "-1 values"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", -3, 1) + bytes(8), "1 values of -3 calls"),
        (struct.pack("<ii", 1, 1) + b"\xff" + struct.pack("<iif", 1, 1, 1.0), "not valid UTF-8"),
        (dat({"a": (1, [1.0])}) + b"", ""),
    ],
)
def test_hostile_dat(data: bytes, message: str) -> None:
    if not message:
        doubled = struct.pack("<i", 2) + data[4:] * 2
        data, message = doubled, "there twice"
    with pytest.raises(BadFile, match=message):
        from_dat(data, "x.dat")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    with contextlib.suppress(BadFile):
        from_dat(data, "x.dat")


@pytest.mark.parametrize(
    ("sums", "counts", "keys", "message"),
    [
        ({"a": [1.0]}, {}, True, "only one of"),
        ({}, {"a": [1.0]}, True, "only one of"),
        ({"a": [1.0, 2.0, 3.0]}, {"a": [1.0, 1.0]}, True, "3 sums and 2 counts"),
        ({"a": [1.0]}, {"a": [np.nan]}, True, "no number of tokens"),
        ({"a": [1.0]}, {"a": [1e30]}, True, "no number of tokens"),
        ({"a": [1.0]}, {"a": [-1.0]}, True, "no number of tokens"),
        ({"a": [1.0]}, {"a": [1.0]}, False, "imatrix.datasets"),
    ],
)
def test_hostile_gguf(tmp_path: Path, sums: Any, counts: Any, keys: bool, message: str) -> None:
    path = write_gguf(tmp_path / "i.gguf", sums, counts, keys)
    with pytest.raises(BadFile, match=message):
        read_importance(path)


@pytest.mark.parametrize(
    ("weights", "used", "words"),
    [
        (np.ones(64), True, ""),
        (np.zeros(64), False, "zeros alone"),
        (np.full(64, 1e-40), False, "zeros alone"),
        (np.full(64, -0.0), False, "zeros alone"),
        (np.where(np.arange(64) < 32, 0, 1), True, "of 0 for 32 of 64 columns, whole blocks of them"),
        (np.where(np.arange(64) == 7, 1, 1e-35), True, "of 0 for 48 of 64 columns, whole blocks of them"),
        (np.arange(64) % 2, True, ""),
    ],
)
def test_weights_that_say_nothing_are_named(weights: Any, used: bool, words: str) -> None:
    notes: list[str] = []
    tensor = Tensor.from_array("blk.0.ffn_up.weight", np.ones((2, 64), np.float32))
    found = _importance(tensor, tensor.shape, Importance({tensor.name: weights.astype(np.float32)}), notes)
    assert (found is not None) == used
    assert words in "".join(notes) and len(notes) == bool(words)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "is a git-lfs pointer"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\x1f\x8b" + bytes(60), "is compressed by gzip"),
    ],
)
def test_what_stands_in_place_of_a_matrix(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "i.dat").write_bytes(data)
    with pytest.raises(BadFile, match=message):
        read_importance(tmp_path / "i.dat")


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("a", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadFile, match="no importance matrix"):
        read_importance(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("a", [1.0, -1.0], "negative"),
        ("a", [1.0, np.nan], "negative or no"),
        ("b", [1.0, 1.0], "another"),
    ],
)
def test_sums_that_can_not_be_added(tmp_path: Path, name: str, values: list[float], message: str) -> None:
    one = read_sums(write_gguf(tmp_path / "1.gguf", {"a": [[1.0, 2.0]]}, {"a": [[1.0]]}), 512)
    other = read_sums(write_gguf(tmp_path / "2.gguf", {name: [values]}, {name: [[1.0]]}), 512)
    with pytest.raises(BadFile, match=message):
        one.merge(other, "2.gguf")
