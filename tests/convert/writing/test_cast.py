"""--outtype: what is rounded, what is refused, what stays."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as npst

import llmconv
from llmconv.convert.writing.cast import OUTTYPES, Rounding, cast
from llmconv.errors import Unsupported, UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.quant.block import by_name

TYPES = {"f64": plain.F64, "f32": plain.F32, "f16": plain.F16, "bf16": plain.BF16}


def checkpoint(**arrays: np.ndarray) -> Checkpoint:
    out = Checkpoint(dialect="gguf", metadata={"general.architecture": "x", "general.name": "y"})
    for name, array in arrays.items():
        out.add(Tensor.from_array(name, array))
    return out


def test_vectors_stay_f32_in_a_gguf_of_16_bits() -> None:
    ones = np.ones((2, 2))
    c = checkpoint(matrix=ones, vector=np.ones(3), column=np.ones((3, 1)), ids=np.arange(4))
    c.add(Tensor.from_array("blk.0.attn_norm.weight", ones))
    for outtype in ("f16", "bf16"):
        types = {t.name: t.type.name for t in cast(c, outtype, Rounding(), to="gguf").tensors.values()}
        assert types == {"matrix": outtype.upper(), "vector": "F32", "column": "F32", "ids": "I64"} | {
            "blk.0.attn_norm.weight": "F32"
        }
        elsewhere = cast(c, outtype, Rounding(), to="hf")
        assert elsewhere.tensors["vector"].type.name == outtype.upper()
    assert cast(c, "f64", Rounding(), to="gguf").tensors["vector"].type is plain.F64


def test_auto_is_f32_from_documents_only() -> None:
    c = checkpoint(matrix=np.ones((2, 2)))
    assert cast(c, "auto", Rounding(), to="gguf", from_document=True).tensors["matrix"].type is plain.F32
    assert cast(c, "auto", Rounding(), to="json", from_document=True).tensors["matrix"].type is plain.F64
    assert cast(c, "auto", Rounding(), to="gguf").tensors["matrix"].type is plain.F64


@pytest.mark.parametrize(("outtype", "number"), [("f32", 0), ("f16", 1), ("bf16", 32), ("f64", None)])
def test_the_file_type_key_fits(outtype: str, number: int | None) -> None:
    out = cast(checkpoint(matrix=np.ones((2, 2))), outtype, Rounding(), to="gguf")
    assert out.metadata.get("general.file_type") == number


VALUES = npst.arrays(np.float64, (3, 5), elements=st.floats(-60000, 60000))


@settings(max_examples=60, deadline=None)
@given(values=VALUES, outtype=st.sampled_from(["f32", "f16", "bf16"]))
def test_the_largest_relative_error_is_measured(values: np.ndarray, outtype: str) -> None:
    rounding = Rounding()
    tensor = cast(checkpoint(matrix=values), outtype, rounding, to="hf").tensors["matrix"]
    dtype = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[outtype]
    expected = values.astype(dtype)
    assert np.array_equal(tensor.numpy(), expected)
    back = expected.astype(np.float64)
    kept = (values != 0) & (back != 0)
    error = np.abs(back - values)[kept] / np.abs(values)[kept]
    assert rounding.largest == error.max(initial=0)
    assert rounding.underflows == ((values != 0) & (back == 0)).sum()


def test_overflow_is_refused_by_tensor_and_index(tmp_path: Path) -> None:
    values = np.ones((300, 4))
    values[271, 3] = 70000.0
    c = checkpoint(first=np.ones((2, 2)), big=values)
    message = r"tensor 'big' is 70000 at \[271, 3\], beyond 65504, which f16 can't hold; use outtype=.bf16., or"
    with pytest.raises(Unsupported, match=message):
        llmconv.save(c, tmp_path / "x.gguf", outtype="f16")
    assert not list(tmp_path.iterdir())
    result = llmconv.save(c, tmp_path / "x.gguf", outtype="f16", allow_overflow=True)
    assert result.overflows == 1 and np.isinf(llmconv.open(tmp_path / "x.gguf").tensors["big"].numpy()[271, 3])
    assert llmconv.save(c, tmp_path / "b.gguf", outtype="bf16").overflows == 0


def test_the_largest_half_is_no_overflow(tmp_path: Path) -> None:
    llmconv.save(checkpoint(m=np.full((2, 2), 65519.0)), tmp_path / "x.gguf", outtype="f16")
    with pytest.raises(Unsupported, match="'m' is 65520 at"):
        llmconv.save(checkpoint(m=np.full((2, 2), 65520.0)), tmp_path / "y.gguf", outtype="f16")
    with pytest.raises(Unsupported, match=r"which f32 can't hold; use outtype=.f64."):
        llmconv.save(checkpoint(m=np.full((2, 2), 1e39)), tmp_path / "y.gguf", outtype="f32")


def test_what_was_infinite_or_nan_before_is_no_overflow(tmp_path: Path) -> None:
    c = checkpoint(m=np.array([[np.inf, np.nan], [-np.inf, 1.0]], np.float32))
    result = llmconv.save(c, tmp_path / "x.gguf", outtype="f16")
    assert result.rounding == 0 and result.overflows == 0
    assert np.array_equal(
        llmconv.open(tmp_path / "x.gguf").tensors["m"].numpy(), c.tensors["m"].numpy(), equal_nan=True
    )


@pytest.mark.parametrize("narrow", ["F16", "BF16"])
def test_widening_rounds_nothing(narrow: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).view(by_name(narrow).dtype).reshape(256, 256)
    rounding = Rounding()
    wide = cast(checkpoint(m=bits), "f32", rounding, to="gguf").tensors["m"]
    assert np.array_equal(wide.numpy(), bits.astype(np.float32), equal_nan=True) and rounding.largest == 0


def test_block_types_are_decoded(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    c = Checkpoint(metadata={"general.architecture": "x"})
    c.add(Tensor.from_array("m", weights).astype(by_name("Q8_0")))
    kept = llmconv.save(c, tmp_path / "kept.gguf")
    assert kept.types == {"Q8_0": 1} and kept.rounding == 0
    wide = llmconv.save(c, tmp_path / "wide.gguf", outtype="f32")
    assert wide.types == {"F32": 1}
    assert np.array_equal(llmconv.open(tmp_path / "wide.gguf").tensors["m"].numpy(), c.tensors["m"].numpy())


def test_unknown_types_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown output type 'f8'; known: auto, f64"):
        cast(checkpoint(), "f8", Rounding(), to="gguf")
    assert set(TYPES) | {"auto"} == set(OUTTYPES)
