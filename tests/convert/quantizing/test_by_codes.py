"""Records of codes and scales: that two are equal says that all weights are, and most proofs need no more."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from stored_kinds import KINDS
from stored_models import folder, in_memory, llama

import llmconv
from llmconv.convert.quantizing import repack
from llmconv.convert.quantizing.proving import by_codes, by_words, written
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.exact import Carried, carried
from llmconv.convert.scaled.grid import Grid
from llmconv.convert.scaled.unpack import unpack
from llmconv.formats.tensor import Tensor


def layer(name: str, shape: tuple[int, int] = (32, 256)) -> tuple[Coded, Carried | str]:
    kind, found = KINDS[name], list[Coded]()
    model = in_memory(kind.stored("a", shape, 0)[0], kind.settings, **kind.more)
    unpack(model, lambda coded: found.append(coded) or coded.floats())
    return found[0], carried(found[0])


def blocks_of(tensor: Tensor, raw: Any = None) -> Tensor:
    data = tensor.blocks() if raw is None else raw
    return dataclasses.replace(tensor, read=lambda a, b: data[a:b], extent=None)


CARRIED = [name for name in KINDS if isinstance(layer(name)[1], Carried)]


@pytest.mark.parametrize("name", CARRIED)
def test_blocks_and_what_they_are_of(name: str) -> None:
    """The records of both are one; of blocks with another byte they are not, or the weights are the same."""
    coded, found = layer(name)
    assert isinstance(found, Carried)
    coded = dataclasses.replace(coded, factor=None, divisor=None)
    kind = found.type
    want = by_codes.record_for(coded, kind)
    made = found.tensor()
    got = by_codes.record_for(made, kind)
    assert want is not None and got is not None
    assert all(by_codes.same(got, want)(*rows) for rows in ((0, 32), (5, 9), (3, 3)))
    raw, values, rng = made.blocks(), coded.floats().numpy(), np.random.default_rng(0)
    for _ in range(200):
        row, byte, bit = int(rng.integers(32)), int(rng.integers(raw.shape[1])), int(rng.integers(8))
        spoiled = raw.copy()
        spoiled[row, byte] ^= 1 << bit
        other = by_codes.record_for(blocks_of(made, spoiled), kind)
        assert other is not None
        if by_codes.same(other, want)(0, 32):
            with np.errstate(all="ignore"):
                assert np.array_equal(kind.decode(spoiled), values)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sums_in_the_place_of_zero_points(dtype: Any) -> None:
    """(code - zero) * scale is code * scale - zero * scale, each step in float32, for codes and zeros of eight bits."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 16, 400, np.uint16)
    scales = np.unique(np.append(bits, [1, 2, 0x3FF, 0x7BFF if dtype is np.float16 else 0x7E7F]).astype(np.uint16))
    s = scales.view(dtype).astype(np.float32)
    s = s[np.isfinite(s) & (np.abs(s) < 1e36)][:, None, None]
    assert not (s.view(np.uint32) & by_words._EXACT_BITS).any()
    code, zero = np.arange(256, dtype=np.float32)[:, None], np.arange(256, dtype=np.float32)
    assert ((code - zero) * s == code * s + -zero * s).all()


def grid(values: Any, k: int) -> Grid:
    values = np.asarray(values, np.float32)
    return Grid(Tensor.from_array("s", values), len(values), k, 1, k // values.shape[1])


def test_what_has_no_record() -> None:
    """Integers that eight bits can't tell apart, scales whose products are rounded, zero points that are none."""
    codes = np.full((2, 64), 200, np.uint8)
    scale = grid([[1.0, 0.5]] * 2, 64)
    wide = Coded("a", (2, 64), lambda a, b: codes[a:b], 0, 255, scale, grid([[0, 0]] * 2, 64))
    less = Coded("a", (2, 64), lambda a, b: codes[a:b].view(np.int8), -128, 127, scale, 0)
    assert not (wide.floats().numpy() == less.floats().numpy()).any()  # 200 and -56: the same byte
    one, other = by_codes.record(wide, 32, False), by_codes.record(less, 32, False)
    assert one is not None and other is not None and not by_codes.same(one, other)(0, 2)
    for bad in (
        dataclasses.replace(wide, high=200, scale=grid([[1.0000001, 0.5]] * 2, 64), zero=128),
        dataclasses.replace(wide, zero=grid([[0.5, 0]] * 2, 64)),
        dataclasses.replace(wide, zero=grid([[300, 0]] * 2, 64)),
    ):
        found = by_codes.record(bad, 32, True)
        assert found is not None and not by_codes.same(found, found)(0, 2)
    for none in (
        dataclasses.replace(wide, after=np.float32(2)),
        dataclasses.replace(wide, scale=grid(np.ones((2, 4)), 64)),
        dataclasses.replace(wide, shape=(2, 60)),
    ):
        assert by_codes.record(none, 32, False) is None


def test_zero_points_of_other_groups() -> None:
    """Those of whole blocks are carried with their scales; others would be given to the wrong columns."""
    codes = np.random.default_rng(0).integers(0, 8, (2, 192)).astype(np.uint8)
    scale = grid([[1, 0.5, 2]] * 2, 192)
    for zeros, fits in ((6, True), (3, True), (1, True), (4, False), (2, False)):
        zero = grid(np.arange(2 * zeros).reshape(2, zeros) % 8, 192)
        coded = Coded("a", (2, 192), lambda a, b: codes[a:b], 0, 7, scale, zero)
        found = carried(coded)
        assert isinstance(found, Carried) is fits
        if isinstance(found, Carried):
            spread = np.repeat(zero.values.numpy(), 192 // zeros, axis=1)
            want = (codes - spread) * np.repeat(scale.values.numpy(), 64, axis=1)
            assert np.array_equal(found.tensor().numpy(), want)


FOLDERS = {"MXFP4": ("MXFP4A16", "MLX"), "NVFP4": ("NVFP4A16",), "NVFP4 of ModelOpt": ("NVFP4A16",), "MLX": ("MLX",),
           "MLX in 5 bits": ("MLX",), "W8A16": ("W4A16", "MLX")}  # fmt: skip
"""Kinds of folder in which a layer can be said; else W4A16_ASYM."""


@pytest.mark.parametrize("name", ["GPTQ, symmetric", "AWQ", "W4A16 with zero points", "W8A16", "MLX", "MLX in 5 bits",
                                  "MXFP4", "NVFP4", "NVFP4 of ModelOpt"])  # fmt: skip
def test_no_weight_is_decoded_for_a_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Into a GGUF, and into the folders that say the same: every slab of every layer is proved by its record."""
    kind, asked, true = KINDS[name], Counter[bool](), by_codes.same

    def same(*args: Any) -> Any:
        ask = true(*args)

        def asking(start: int, stop: int) -> bool:
            found = ask(start, stop)
            asked[found] += 1
            return found

        return asking

    for module in (repack, written):
        monkeypatch.setattr(module, "same", same)
    arrays = llama(lambda stem, shape: dict(kind.stored(stem, shape, len(stem))[0]))
    source = folder(tmp_path / "in", arrays, kind.settings, **kind.more)
    ways = FOLDERS.get(name, ("W4A16_ASYM",))
    for way in ("REPACK", *ways):
        asked.clear()
        made = llmconv.quantize(source, tmp_path / (f"{way}.gguf" if way == "REPACK" else way), way)
        assert "every weight equal" in made.output.proof and asked[True] >= 14 and not asked[False]
    if name in ("GPTQ, symmetric", "W8A16", "MLX", "MXFP4"):
        asked.clear()
        llmconv.quantize(tmp_path / "REPACK.gguf", tmp_path / "mlx", "MLX")
        assert asked[True] >= 14 and not asked[False]
