"""Products that a GGUF stores: the originals come back, bit for bit, of any float type."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llmconv.convert.tables.times import Times
from llmconv.errors import Unsupported
from llmconv.formats.tensor import Tensor

DIMS: dict[str, Any] = {"n": 6, "scaled_by": {"a": 0.39, "b": 1.7, "list": (0.2357, 5.6569)}}
KINDS = [np.float32, np.float16, ml_dtypes.bfloat16]
OPS = {
    "one": Times(("a",)),
    "two": Times(("a", "b")),
    "runs": Times(("b",), (("n", "list.0"), (4, "list.1"))),
    "tiny": Times(("list.0", "list.0", "list.0", "list.0")),
}


def _tensor(kind: Any, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).normal(0, 0.02, (10, 300)).astype(np.float32)
    values[0, :4] = [0.0, -0.0, 1e-30, -6e-8]
    return Tensor.from_array("w", values.astype(kind))


def _back(op: Times, moved: Tensor, like: Tensor, record: Any) -> Tensor:
    (plain,) = op.undo((moved,), DIMS)
    plain = plain.astype(like.type)
    return plain if record is None else op.restored(plain, moved, record, DIMS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: np.dtype(kind).name)
@pytest.mark.parametrize("name", OPS)
def test_originals_come_back(name: str, kind: Any) -> None:
    op, tensor = OPS[name], _tensor(kind)
    (moved,), record = op.apply((tensor,), DIMS), op.lost(tensor, DIMS)
    back = _back(op, moved, tensor, record)
    assert back.blocks().tobytes() == tensor.blocks().tobytes()
    assert back.blocks(3, 5).tobytes() == tensor.blocks(3, 5).tobytes()
    assert record is not None
    if name in ("one", "runs"):  # "tiny" underflows, "two" rounds twice in float16
        assert len(record) < 0.2 * tensor.nbytes


def test_the_product_is_numpy_s() -> None:
    tensor = _tensor(ml_dtypes.bfloat16)
    (moved,) = OPS["one"].apply((tensor,), DIMS)
    expected = (tensor.numpy().astype(np.float32) * np.float32(0.39)).astype(ml_dtypes.bfloat16)
    assert moved.numpy().tobytes() == expected.tobytes()


def test_changed_weights_are_not_patched() -> None:
    op, tensor, trained = OPS["one"], _tensor(ml_dtypes.bfloat16), _tensor(ml_dtypes.bfloat16, 1)
    record, (moved,) = op.lost(tensor, DIMS), op.apply((trained,), DIMS)
    back = _back(op, moved, tensor, record)
    assert back.blocks().tobytes() == _back(op, moved, tensor, None).blocks().tobytes()
    for broken in (np.zeros(3, np.uint8), np.full(40, 255, np.uint8), "no", None):
        _back(op, moved, tensor, broken).blocks()


def test_without_factors_nothing_moves() -> None:
    tensor = _tensor(np.float32)
    assert Times(("a",)).apply((tensor,), {}) == (tensor,)
    assert Times(("a",)).lost(tensor, {}) is None


def test_a_factor_of_zero_is_refused() -> None:
    with pytest.raises(Unsupported, match="'a' is 0"):
        Times(("a",)).apply((_tensor(np.float32),), {"scaled_by": {"a": 0.0}})  # type: ignore[dict-item]
