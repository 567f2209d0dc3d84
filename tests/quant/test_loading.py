"""Kernels' object files put into memory by ourselves and by LLVM: the reference's bytes either way."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_bytes import compared

from llmconv.quant import kernels
from llmconv.quant.kernels.compiling import loading
from llmconv.quant.kernels.compiling.cache import Entry

ours = pytest.mark.skipif(not loading.HERE, reason="object files of other systems are LLVM's")


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel is loaded anew."""
    for family in kernels.FAMILIES:
        for entry in vars(getattr(kernels, family)).values():
            if isinstance(entry, Entry):
                monkeypatch.setattr(entry, "_codes", {})


def refused(*_: Any) -> int:
    raise AssertionError("called")


# Q4_K's search has addresses to fill in, IQ1_S calls memset; most have distances alone.
@pytest.mark.parametrize("by", [pytest.param("placed", marks=ours), "_linked"])
@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "IQ1_S"])
def test_the_reference_s_bytes(
    root: Path, name: str, by: str, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_linked" if by == "placed" else "placed", refused)
    monkeypatch.setattr(loading, "HERE", by == "placed")
    found = dict(compared(name, dict(np.load(root / "tests" / "golden" / "ggml.npz")), 16))
    assert found and all(found.values())


def object_file(entry: Entry, dtype: type) -> bytes:
    entry.load(np.dtype(dtype))
    path = entry._file(np.dtype(dtype))
    assert path is not None
    return path.read_bytes().partition(b"\n")[2]


@ours
def test_what_it_does_not_know_is_left_to_llvm(monkeypatch: pytest.MonkeyPatch) -> None:
    image = object_file(kernels.q32.encode_q8_0, np.float32)
    (at,), (count,) = struct.unpack_from("<Q", image, 40), struct.unpack_from("<H", image, 60)
    heads = [struct.unpack_from("<IIQQQQIIQQ", image, at + 64 * i) for i in range(count)]
    symbol = "nobody's"

    def changed(place: int, value: bytes) -> bytes:
        return image[:place] + value + image[place + len(value) :]

    relocations = next(head[4] for head in heads if head[1] == 4)
    text = next(i for i, head in enumerate(heads) if head[2] & 4)
    others = {
        "another processor": changed(18, b"\xb7"),
        "a kind of reference": changed(relocations + 8, struct.pack("<I", 9)),  # through a table of addresses
        "variables": changed(at + 64 * text + 8, struct.pack("<Q", 3)),
        "cut short": image[: at + 64],
        "no such symbol": image,
    }
    for what, file in others.items():
        with pytest.raises((NotImplementedError, LookupError, ValueError, struct.error)):
            loading.placed(symbol, file)
        monkeypatch.setattr(loading, "_linked", lambda symbol, image: 42)
        assert loading.load(symbol, file) == 42, what
