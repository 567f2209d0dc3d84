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
from faulty_safetensors import BAD, GOOD, T, entry, file
from safetensors import safe_open

from llmconv.errors import BadFile, LlmconvError, Unsupported
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

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


def test_the_index_says_which_of_two_tensors_is_meant(tmp_path: Path) -> None:
    """A file laid over others, as models are changed after they were published."""
    index = sharded(tmp_path / "m")
    before = safetensors_file.open(tmp_path / "m").tensors
    over = Checkpoint(dialect="plain")
    over.add(Tensor.from_array("t0", np.full(before["t0"].shape, 7, np.float32)))
    safetensors_file.save(over, tmp_path / "m" / "model-overlay.safetensors")
    file, index["weight_map"]["t0"] = index["weight_map"]["t0"], "model-overlay.safetensors"
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    found = safetensors_file.open(tmp_path / "m")
    assert sorted(found.tensors) == sorted(before) and (found.tensors["t0"].numpy() == 7).all()
    assert found.notes == [
        f"{file} holds 't0', which model.safetensors.index.json lists in another file; that one is read"
    ]


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
    with pytest.raises(BadFile, match="tensor 't2' should be in"):
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
