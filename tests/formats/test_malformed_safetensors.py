"""Malformed safetensors files, one fault each beside good controls; what the library accepts is accepted too."""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from llmconv.errors import BadFile, LlmconvError, Unsupported
from llmconv.formats import limits, safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor


@pytest.fixture(autouse=True)
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing to the disk is tested elsewhere, and slow on a busy one."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def entry(begin: int = 0, end: int = 16, dtype: Any = "F32", shape: Any = (4,), **more: Any) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": [begin, end],
    } | more


def file(header: Any, data: int = 16, length: int | None = None, pad: bytes = b"") -> bytes:
    raw = (header if isinstance(header, bytes) else json.dumps(header).encode()) + pad
    return struct.pack("<Q", len(raw) if length is None else length) + raw + b"\1" * data


def without(item: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in item.items() if k != name}


T = {"t": entry()}
GOOD: dict[str, bytes] = {
    "plain": file(T),
    "padded with spaces": file(T, pad=b"     "),
    "no tensors": file({}, 0),
    "metadata only": file({"__metadata__": {"format": "pt"}}, 0),
    "empty metadata": file({"__metadata__": {}, **T}),
    "scalar": file({"t": entry(0, 4, shape=())}, 4),
    "empty tensor": file({"t": entry(0, 0, shape=(0, 3)), "u": entry()}),
    "two empty tensors in one place": file(
        {"t": entry(16, 16, shape=(0,)), "v": entry(16, 16, shape=(0,)), "u": entry()}
    ),
    "header out of order": file({"u": entry(16, 32), "t": entry()}, 32),
    "escaped name": file(b'{"\\u00e4\\ud83d\\ude00":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
}

HUGE = 2**64 - 1
BAD: dict[str, tuple[bytes, str]] = {
    "empty name": (file({"": entry()}), "tensor '' has no name"),
    "seven bytes": (b"\0" * 7, "is 7 bytes long, expected at least 8"),
    "header length beyond the file": (file(T, length=10_000), "claims a header of 10,000 bytes"),
    "header length of 64 bits": (file(T, length=HUGE), "claims a header of 18,446,744,073,709,551,615 bytes"),
    "header length above the limit": (file(T, length=limits.SAFETENSORS_HEADER_BYTES + 1), "claims a header of"),
    "header length one short": (file(T, length=len(json.dumps(T)) - 1), "is not valid JSON"),
    "header empty": (file(b"", 0), "its header begins with b''"),
    "header is a list": (file(b"[]", 0), "its header begins with b'['"),
    "header begins with a space": (file(b" {}", 0), "its header begins with b' '"),
    "header is not JSON": (file(b"{oops}", 0), "is not valid JSON"),
    "header not UTF-8": (file(b'{"\xff":1}', 0), "is not valid UTF-8 at byte 2"),
    "header with text after it": (file(b"{}x", 0), "is not valid JSON"),
    "header nested too deep": (file(b'{"t":' + b"[" * 100_000, 0), "nests too deep"),
    "header nested beyond the limit": (file(b'{"t":' + b"[" * 70 + b"]" * 70 + b"}", 0), "nests too deep"),
    "number without end": (file(b'{"t":' + b"9" * 10_000 + b"}", 0), "endless number"),
    "NaN": (file(b'{"t":NaN}', 0), "holds NaN"),
    "Infinity": (file(b'{"t":-Infinity}', 0), "holds -Infinity"),
    "name twice": (file(b'{"t":%b,"t":%b}' % ((json.dumps(entry()).encode(),) * 2)), "key 't' is there twice"),
    "field twice": (
        file(b'{"t":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        "'dtype' is there twice",
    ),
    "metadata key twice": (file(b'{"__metadata__":{"a":"b","a":"b"}}', 0), "key 'a' is there twice"),
    "half a character in a name": (file(b'{"\\ud800":%b}' % json.dumps(entry()).encode()), "no valid Unicode"),
    "half a character in metadata": (file(b'{"__metadata__":{"a":"\\udc00"}}', 0), "no valid Unicode"),
    "metadata of numbers": (file({"__metadata__": {"n": 1}}, 0), "not a map of strings to strings"),
    "metadata is a list": (file({"__metadata__": []}, 0), "not a map of strings to strings"),
    "metadata is null": (file({"__metadata__": None}, 0), "not a map of strings to strings"),
    "entry is a list": (file({"t": [1]}), "tensor 't' is not described by exactly"),
    "no dtype": (file({"t": without(entry(), "dtype")}), "tensor 't' is not described by exactly"),
    "no shape": (file({"t": without(entry(), "shape")}), "tensor 't' is not described by exactly"),
    "no offsets": (file({"t": without(entry(), "data_offsets")}), "tensor 't' is not described by exactly"),
    "one field more": (file({"t": entry(stride=[1])}), "tensor 't' is not described by exactly"),
    "unknown dtype": (file({"t": entry(dtype="F12")}), "tensor 't' has dtype 'F12', expected one of"),
    "dtype in small letters": (file({"t": entry(dtype="f32")}), "tensor 't' has dtype 'f32'"),
    "dtype is a list": (file({"t": entry(dtype=["F32"])}), "tensor 't' has dtype ['F32']"),
    "negative dimension": (file({"t": entry(shape=(-4,))}), "tensor 't' has a bad shape"),
    "fractional dimension": (file({"t": entry(shape=(4.0,))}), "tensor 't' has a bad shape"),
    "boolean dimension": (file({"t": entry(0, 4, shape=(True,))}, 4), "tensor 't' has a bad shape"),
    "dimension of 64 bits": (file({"t": entry(shape=(2**64,))}), "tensor 't' has a bad shape"),
    "shape is a number": (file({"t": entry(shape=4)}), "tensor 't' has a bad shape"),
    "too many dimensions": (file({"t": entry(0, 4, shape=(1,) * 33)}, 4), "tensor 't' has a bad shape"),
    "shape that wraps to the right size": (file({"t": entry(shape=(2**62, 2**62, 4))}), "more elements"),
    "zero hides a huge shape": (file({"t": entry(0, 0, shape=(0, 2**62, 2**62))}, 0), "more elements"),
    "rows without end, all empty": (file({"t": entry(0, 0, shape=(2**40, 0))}, 0), "more elements"),
    "size too small for the shape": (file({"t": entry(shape=(5,))}), "takes 16 bytes, expected 20 for F32 [5]"),
    "size too big for the shape": (file({"t": entry(shape=(3,))}), "takes 16 bytes, expected 12"),
    "half a byte": (file({"t": entry(0, 1, "F4", (3,))}, 1), "rows of 3 F4 elements, which are not whole bytes"),
    "negative offset": (file({"t": entry(-16, 0)}), "bad data_offsets"),
    "offsets turned round": (file({"t": entry(16, 0)}), "takes -16 bytes, expected 16"),
    "offset of 64 bits": (file({"t": entry(2**64, 2**64 + 16)}), "bad data_offsets"),
    "fractional offset": (file({"t": entry(0.0, 16.0)}), "bad data_offsets"),  # type: ignore[arg-type]
    "three offsets": (file({"t": entry() | {"data_offsets": [0, 8, 16]}}), "bad data_offsets"),
    "hole at the start": (file({"t": entry(16, 32)}, 32), "begins at 16, expected 0: it leaves a hole"),
    "hole between": (file({"t": entry(), "u": entry(17, 33)}, 33), "tensor 'u' begins at 17, expected 16"),
    "tensors share bytes": (
        file({"t": entry(), "u": entry(8, 24)}, 24),
        "'u' begins at 8, expected 16: it shares bytes",
    ),
    "same bytes twice": (file({"t": entry(), "u": entry()}), "shares bytes"),
    "data cut by one byte": (file(T, 15), "expected 86 by its header"),
    "data absent": (file(T, 0), "by its header"),
    "bytes after the last tensor": (file(T, 17), "by its header"),
    "bytes after no tensor": (file({}, 1), "by its header"),
    "name too long": (file({"t" * 70_000: entry()}), "has a name longer than 65,535 bytes"),
    "stored type unknown": (file({"__metadata__": {"llmconv.types": '{"t":["Q99",32]}'}, **T}), "bad entry for 't'"),
    "stored type of another size": (
        file({"__metadata__": {"llmconv.types": '{"t":["Q4_0",32]}'}, **T}),
        "which is not Q4_0 [32] as its metadata says",
    ),
    "stored types are no JSON": (file({"__metadata__": {"llmconv.types": "x"}, **T}), "is not valid JSON"),
    "side file outside": (file({"__metadata__": {"llmconv.file.../../x": "y"}, **T}), "expected a plain file name"),
    "side file not base64": (file({"__metadata__": {"llmconv.file64.x": "?"}, **T}), "is not base64"),
}
STRICTER = {"empty tensor", "two empty tensors in one place"}  # controls with which library versions disagree


def refused(path: Path) -> str:
    with pytest.raises((BadFile, Unsupported)) as caught:
        safetensors_file.open(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 600
    return message


@pytest.mark.parametrize("name", GOOD)
def test_good_controls_open(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.safetensors").write_bytes(GOOD[name])
    found = safetensors_file.open(tmp_path / "m.safetensors")
    for tensor in found.tensors.values():
        assert tensor.blocks().nbytes == tensor.nbytes
    if name not in STRICTER:
        with safe_open(tmp_path / "m.safetensors", "np") as theirs:
            assert sorted(theirs.keys()) == sorted(found.tensors)


@pytest.mark.parametrize("name", BAD)
def test_each_fault_is_one_sentence(tmp_path: Path, name: str) -> None:
    raw, says = BAD[name]
    (tmp_path / "m.safetensors").write_bytes(raw)
    tracemalloc.start()
    try:
        message = refused(tmp_path / "m.safetensors")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert says in message
    assert peak < 4 << 20


def test_every_byte_of_the_header_flipped_is_handled(tmp_path: Path) -> None:
    raw = file({"__metadata__": {"format": "pt"}, "t": entry(), "u": entry(16, 18, "BF16", (1,))}, 18)
    path = tmp_path / "m.safetensors"
    for i in range(len(raw) - 18):
        for mask in (0x01, 0x80):
            path.write_bytes(raw[:i] + bytes([raw[i] ^ mask]) + raw[i + 1 :])
            try:
                safetensors_file.open(path)
            except LlmconvError as error:
                assert "\n" not in str(error)


def test_every_cut_is_handled(tmp_path: Path) -> None:
    raw = file(T)
    for n in range(len(raw)):
        (tmp_path / "m.safetensors").write_bytes(raw[:n])
        refused(tmp_path / "m.safetensors")


def test_a_sparse_file_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 99_000_000) + b"{")
    os.truncate(path, 1 << 36)
    start = time.process_time()
    assert "not valid JSON" in refused(path)
    assert time.process_time() - start < 1


def sharded(folder: Path) -> dict[str, Any]:
    made = Checkpoint(dialect="plain", files={"config.json": b"{}"})
    for i in range(4):
        made.add(Tensor.from_array(f"t{i}", np.full(4, i, np.float32)))
    safetensors_file.save(made, folder, max_shard_size=32)
    found: dict[str, Any] = json.loads((folder / "model.safetensors.index.json").read_text())
    return found


INDEX_FAULTS: dict[str, tuple[Any, str]] = {
    "file above": (lambda m: m.update(t0="../model-00001-of-00002.safetensors"), "expected one in its own folder"),
    "absolute file": (lambda m: m.update(t0="/etc/passwd"), "expected one in its own folder"),
    "file in a folder below": (lambda m: m.update(t0="sub/x.safetensors"), "expected one in its own folder"),
    "backslashes": (lambda m: m.update(t0="..\\x.safetensors"), "expected one in its own folder"),
    "zero byte": (lambda m: m.update(t0="a\0b"), "expected one in its own folder"),
    "the folder": (lambda m: m.update(t0="."), "expected one in its own folder"),
    "file missing": (lambda m: m.update(t0="other.safetensors"), "its file other.safetensors is missing"),
    "file is a number": (lambda m: m.update(t0=1), "has no 'weight_map'"),
    "tensor nowhere": (lambda m: m.update(t9=m["t0"]), "tensor 't9' should be in"),
    "tensor elsewhere": (lambda m: m.update(t0=m["t3"]), "tensor 't0' should be in"),
    "no map": (lambda m: m.clear(), ""),
}


@pytest.mark.parametrize("name", INDEX_FAULTS)
def test_index_faults(tmp_path: Path, name: str) -> None:
    index = sharded(tmp_path / "m")
    change, says = INDEX_FAULTS[name]
    change(index["weight_map"])
    if name == "no map":
        del index["weight_map"]
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadFile) as caught:
        safetensors_file.open(tmp_path / "m")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_tensor_that_the_index_forgot_is_read(tmp_path: Path) -> None:
    index = sharded(tmp_path / "m")
    file = index["weight_map"].pop("t0")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    found = safetensors_file.open(tmp_path / "m")
    assert sorted(found.tensors) == ["t0", "t1", "t2", "t3"]
    assert found.notes == [f"{file} holds 't0', which model.safetensors.index.json does not list; read all the same"]


def test_which_weights_are_taken_is_said(tmp_path: Path) -> None:
    sharded(tmp_path / "m")
    for no in (1, 2):
        (tmp_path / "m" / f"pytorch_model-{no:05d}-of-00002.bin").write_bytes(b"PK")
    (note,) = safetensors_file.open(tmp_path / "m").notes
    assert note == "the safetensors files are taken, not pytorch_model-00001-of-00002.bin (and 1 more)"


def test_folder_faults(tmp_path: Path) -> None:
    sharded(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors.index.json").unlink()
    (tmp_path / "m" / "model-00001-of-00002.safetensors").rename(tmp_path / "m" / "model-00001-of-00003.safetensors")
    with pytest.raises(BadFile, match=r"holds 2 safetensors files and no model\.safetensors\.index\.json"):
        safetensors_file.open(tmp_path / "m")

    index = sharded(tmp_path / "pipe")
    name = index["weight_map"]["t0"]
    (tmp_path / "pipe" / name).unlink()
    os.mkfifo(tmp_path / "pipe" / name)
    with pytest.raises(BadFile, match="not a regular file"):
        safetensors_file.open(tmp_path / "pipe")

    sharded(tmp_path / "twice")
    shards = sorted((tmp_path / "twice").glob("*.safetensors"))
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(BadFile, match="is in another file of the model too"):
        safetensors_file.open(tmp_path / "twice")


def test_a_file_that_changes_after_opening_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(file(T))
    found = safetensors_file.open(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(BadFile, match="changed while it was being read"):
        found.tensors["t"].numpy()
    path.write_bytes(file(T))
    found = safetensors_file.open(path)
    os.utime(path, (1, 1))  # rewritten in place, same size
    with pytest.raises(BadFile, match="changed while it was being read"):
        safetensors_file.save(found, tmp_path / "out.safetensors")
    assert os.listdir(tmp_path) == ["m.safetensors"]
