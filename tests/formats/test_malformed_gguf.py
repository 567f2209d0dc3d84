"""Malformed GGUF files, one fault each beside good controls: every one a sentence, none costs memory or time."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_gguf import BAD, GOOD, array, file, key, text

from llmconv.errors import BadFile, LlmconvError, Unsupported
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor


def refused(path: Path) -> str:
    """Open it; the sentence it is refused with."""
    with pytest.raises((BadFile, Unsupported)) as caught:
        gguf_file.open(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("name", GOOD)
def test_good_controls_open(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.gguf").write_bytes(GOOD[name])
    for found in gguf_file.open(tmp_path / "m.gguf").tensors.values():
        assert found.blocks().nbytes == found.nbytes


@pytest.mark.parametrize("name", BAD)
def test_each_fault_is_one_sentence(tmp_path: Path, name: str) -> None:
    raw, says = BAD[name]
    (tmp_path / "m.gguf").write_bytes(raw)
    tracemalloc.start()
    try:
        message = refused(tmp_path / "m.gguf")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert says in message
    assert peak < 4 << 20  # nothing is allocated on the word of a count


def rich(tmp_path: Path, **options: Any) -> list[Path]:
    made = Checkpoint(metadata={"general.architecture": "x", "n": 1, "words": ["a", "bb", "ccc"]})
    for i in range(3):
        made.add(Tensor.from_array(f"t{i}", np.arange(8, dtype=np.float32)))
    return gguf_file.save(made, tmp_path / "m.gguf", **options)


def test_every_byte_of_the_header_flipped_is_handled(tmp_path: Path) -> None:
    raw = rich(tmp_path)[0].read_bytes()
    path = tmp_path / "flipped.gguf"
    for i in range(len(raw) - 96):
        for mask in (0x01, 0xFF):
            path.write_bytes(raw[:i] + bytes([raw[i] ^ mask]) + raw[i + 1 :])
            try:
                found = gguf_file.open(path)
                list(found.metadata.get("words", ()))
            except LlmconvError as error:
                assert "\n" not in str(error)


def test_every_cut_is_handled(tmp_path: Path) -> None:
    raw = rich(tmp_path)[0].read_bytes()
    path = tmp_path / "cut.gguf"
    for n in range(1, len(raw)):
        path.write_bytes(raw[:n])
        refused(path)


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        (key("k", 9, array(8, 2**30)), "holds 1,073,741,824 strings, expected at most"),
        (key("k", 9, array(0, 2**31)), "expected all metadata within"),
        (key("k", 9, array(9, 2**24)), "nests arrays too deep or too often"),
        (key("k", 8, text("", 2**32)), "bytes long, expected at most"),
    ],
)
def test_a_sparse_file_costs_nothing(tmp_path: Path, claim: bytes, says: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(file(keys=[claim], tensors=[], data=0))
    os.truncate(path, 1 << 36)
    start = time.process_time()
    assert says in refused(path)
    assert time.process_time() - start < 1


def test_zeros_for_strings_stay_quick(tmp_path: Path) -> None:
    """The string skipper's worst cases: empty strings, and texts of zeros that look like lengths."""
    for words in ([""] * 300_000, ["\0" * 15] * 100_000, ["a" * 16, ""] * 100_000):
        raw = b"".join(map(text, words))
        path = tmp_path / "m.gguf"
        path.write_bytes(file(keys=[key("k", 9, array(8, len(words), raw))], tensors=[], data=0))
        start = time.process_time()
        assert len(gguf_file.open(path).metadata["k"]) == len(words)
        assert time.process_time() - start < 3


def edited(path: Path, change: Callable[[Checkpoint], None]) -> None:
    """Rewrite one part of a split model with its split keys, which `save` would leave out."""
    part = gguf_file._read(path)
    checkpoint = Checkpoint(metadata=part.metadata, tensors={t.name: t for t in part.tensors})
    change(checkpoint)
    layout = gguf_file._lay_out(checkpoint.metadata, list(checkpoint.tensors.values()), 32, False)
    raw = bytearray(layout.head.ljust(layout.size, b"\0"))
    for found, offset in layout.plan:
        raw[offset : offset + found.nbytes] = found.blocks().tobytes()
    path.write_bytes(raw)


def test_split_faults(tmp_path: Path) -> None:
    def fresh(name: str) -> list[Path]:
        (tmp_path / name).mkdir()
        return rich(tmp_path / name, split_max_tensors=1)

    parts = fresh("missing")
    parts[1].unlink()
    with pytest.raises(BadFile, match=r"part m-00002-of-00003\.gguf of 3 is missing"):
        gguf_file.open(parts[0])

    parts = fresh("swapped")
    parts[1].rename(tmp_path / "swap")
    parts[2].rename(parts[1])
    (tmp_path / "swap").rename(parts[2])
    with pytest.raises(BadFile, match="says it is another part than its name"):
        gguf_file.open(parts[0])

    parts = fresh("renamed")
    renamed = parts[0].rename(parts[0].with_name("other.gguf"))
    assert "expected a name that ends in -NNNNN-of-00003.gguf" in refused(renamed)

    parts = fresh("count")
    edited(parts[1], lambda c: c.metadata.update({"split.count": np.uint16(4)}))
    with pytest.raises(BadFile, match="says it is another part"):
        gguf_file.open(parts[0])

    parts = fresh("total")
    edited(parts[0], lambda c: c.metadata.update({"split.tensors.count": np.int32(4)}))
    assert "its parts hold 3 tensors, expected 4" in refused(parts[0])

    parts = fresh("twice")
    edited(parts[1], lambda c: c.tensors.update(t0=c.tensors.pop("t1").renamed("t0")))
    assert "two tensors are called 't0'" in refused(parts[0])


def test_a_file_that_is_cut_after_opening_is_a_sentence(tmp_path: Path) -> None:
    path = rich(tmp_path)[0]
    found = gguf_file.open(path)
    os.truncate(path, path.stat().st_size - 40)
    with pytest.raises(BadFile, match="changed while it was being read"):
        found.tensors["t2"].numpy()
    with pytest.raises(BadFile, match="changed while it was being read"):
        gguf_file.save(found, tmp_path / "out.gguf")
    path.unlink()
    with pytest.raises(BadFile, match="no such file"):
        found.tensors["t0"].numpy()
    assert os.listdir(tmp_path) == []


def test_not_regular_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path, says in (
        (tmp_path / "pipe.gguf", "not a regular file"),
        (tmp_path, "is a folder"),
        (tmp_path / "absent.gguf", "no such file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        assert says in refused(path)


def test_limits_are_what_the_table_uses() -> None:
    assert limits.MAX_DIMS == 32 and limits.GGUF_ALIGNMENT == 1 << 20 and limits.MAX_NAME_BYTES == 65_535
