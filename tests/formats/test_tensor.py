"""A tensor as an array: values by numpy's rules, of rows alone; through pickle; from torch, of every dtype."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv.errors import BadFile, UsageError
from llmconv.quant.block import by_name

KEYS: list[Any] = [
    0, -1, np.int64(3), slice(2, 5), slice(None, None, -1), slice(9, 2, -2), slice(5, 5), slice(99, 200), ...,
    (slice(1, 9, 3), slice(0, 2)), (slice(8, 2, -2), 1), (..., 0), (3, 1, 4), ([1, 2], 0), None, True,
]  # fmt: skip


def tensor(shape: tuple[int, ...] = (12, 3, 32), kind: str = "Q8_0") -> llmconv.Tensor:
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return llmconv.Tensor.from_array("a.weight", values).astype(by_name(kind))


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_values_are_chosen_as_numpy_does(key: Any) -> None:
    a = tensor()
    np.testing.assert_array_equal(a[key], a.numpy()[key])
    np.testing.assert_array_equal(np.asarray(a), a.numpy())
    assert np.asarray(a, np.float64).dtype == np.float64


def test_only_the_rows_in_question_are_read() -> None:
    a, asked = tensor(), []

    def read(start: int, stop: int) -> Any:
        asked.append((start, stop))
        return a.read(start, stop)

    b = llmconv.Tensor(a.name, a.shape, a.type, read)
    assert b[4].shape == (3, 32) and b[2:4, 0].shape == (2, 32)
    assert asked == [(12, 15), (6, 12)]
    with pytest.raises(IndexError):
        b[12]


def test_its_repr_is_a_short_line() -> None:
    assert repr(tensor()) == "<Tensor 'a.weight' Q8_0 [12, 3, 32]>"
    assert len(repr(tensor().renamed("n" * 10_000))) < 150


def test_a_checkpoint_pickles(tmp_path: Path, root: Path) -> None:
    opened = llmconv.open(root / "examples" / "simple-36k.json")
    llmconv.save(opened, tmp_path / "m.gguf")
    from_file = llmconv.open(tmp_path / "m.gguf")
    from_file.add(tensor((4, 32)))
    for model, most in ((opened, 400_000), (from_file, 40_000)):
        packed = pickle.dumps(model)
        assert len(packed) < most
        again = pickle.loads(packed)
        assert again.metadata.keys() == model.metadata.keys() and again.dialect == model.dialect
        for name, expected in model.tensors.items():
            assert again.tensors[name].type is expected.type
            np.testing.assert_array_equal(again.tensors[name].blocks(), expected.blocks())
    packed = pickle.dumps(from_file)
    os.utime(tmp_path / "m.gguf", (1, 1))
    with pytest.raises(BadFile, match="changed while"):
        pickle.loads(packed).tensors["token_embd.weight"].numpy()


def test_torch_tensors_of_every_dtype() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    values = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    for name, kind in (
        ("float64", "F64"), ("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16"), ("float8_e4m3fn", "F8_E4M3"),
        ("float8_e5m2", "F8_E5M2"), ("int64", "I64"), ("int8", "I8"), ("uint8", "U8"), ("bool", "BOOL"),
    ):  # fmt: skip
        given = values.to(getattr(torch, name))
        made = llmconv.Tensor.from_array("x", given.t())  # not contiguous
        assert made.type.name == kind and made.shape == (3, 2)
        np.testing.assert_array_equal(made.numpy().astype(np.float32), given.t().float().numpy())
    assert llmconv.Tensor.from_array("p", torch.nn.Parameter(values)).shape == (2, 3)
    assert llmconv.Tensor.from_array("s", torch.tensor(1.5, dtype=torch.bfloat16)).numpy() == 1.5
    for bad in (values.to_sparse(), values.to("meta")):
        with pytest.raises(UsageError, match="can't be stored"):
            llmconv.Tensor.from_array("x", bad)


@pytest.mark.parametrize("value", [["a"], [None], np.array(["x"]), np.array([object()])])
def test_what_is_no_number_is_a_sentence(value: Any) -> None:
    with pytest.raises(UsageError, match="no tensor type stores"):
        llmconv.Tensor.from_array("x", value)
