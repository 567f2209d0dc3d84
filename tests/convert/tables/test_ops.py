"""Every op: undo(apply(x)) is x, bit for bit, on whole tensors and on any slab of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from llmconv.convert.dialects import carried
from llmconv.convert.tables import ops, own_keys
from llmconv.errors import BadFile, Unsupported, UsageError
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name

DIMS = {"n_head": 4, "n_head_kv": 2, "head_dim": 6, "n_embd": 10, "n_expert": 3, "n_ff": 8, "zero": 0}


def array(*shape: int, dtype: str = "float32", seed: int = 0) -> NDArray[np.generic]:
    """Arbitrary bit patterns: an op must not look at values."""
    kind = by_name({"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8"}[dtype]).dtype
    assert kind is not None
    size = int(np.prod(shape)) * kind.itemsize
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).view(kind).reshape(shape)


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.type is b.type and a.blocks().tobytes() == b.blocks().tobytes()


CASES = {
    "rope halves": (ops.rope_halves("n_head"), [(24, 5)]),
    "rope halves of a bias": (ops.rope_halves("n_head_kv"), [(12,)]),
    "heads of q, k, v": (ops.SwapRows("n_head", 3, inner="head_dim"), [(72, 5)]),
    "long runs": (ops.SwapRows("n_head", 3, inner="head_dim"), [(72, 4096)]),
    "alternating rows of experts": (ops.SwapRows("n_ff", 2, outer="n_expert"), [(3, 16, 4)]),
    "split": (ops.Split(("n_head * head_dim", "n_head_kv * head_dim", 5)), [(41, 3)]),
    "split of a vector": (ops.Split((2, 3, 4)), [(9,)]),
    "split by groups": (ops.Split(("n_head // n_head_kv * head_dim", "head_dim", "head_dim"), "n_head_kv"), [(48, 3)]),
    "split of a bias by groups": (ops.Split((12, 6, 6), "n_head_kv"), [(48,)]),
    "split stacked experts": (
        ops.Split(("n_ff", "n_ff"), "n_expert", hf_stacked=True, gguf_stacked=True),
        [(3, 16, 7)],
    ),
    "split into stacked heads": (ops.Split((4, 5), "n_head", gguf_stacked=True), [(36, 7)]),
    "concat": (ops.Concat((2, 5)), [(2, 3), (5, 3)]),
    "stack": (ops.Stack(), [(4, 5)] * 3),
    "stack of vectors": (ops.Stack(), [(6,)] * 4),
    "stack of two kinds": (ops.Stack(2), [(4, 5)] * 6),
    "reshape": (ops.Reshape(("n_expert", "2 * n_ff"), ("n_expert * 2 * n_ff", 1)), [(3, 16)]),
    "transpose": (ops.Transpose(), [(7, 5)]),
    "transpose of experts": (ops.Transpose(), [(3, 7, 5)]),
    "chunks": (ops.Chunks("n_embd", 4), [(3, 7)] * 3 + [(1, 7)]),
    "only": (ops.Only(1, ops.Transpose()), [(3, 4), (7, 5)]),
    "pairs of three axes": (ops.ByAxis("n_head"), [(24, 5)]),
    "mxfp4": (ops.PackMxfp4(), [(3, 5, 2, 16), (3, 5, 2)]),
}


@pytest.mark.parametrize("name", CASES)
def test_undo_gives_the_original(name: str) -> None:
    op, shapes = CASES[name]
    dtypes = ["uint8"] if name == "mxfp4" else ["float32", "float16", "bfloat16"]
    for dtype in dtypes:
        parts = tuple(Tensor.from_array(f"t{i}", array(*s, dtype=dtype, seed=i)) for i, s in enumerate(shapes))
        moved = op.apply(parts, DIMS)
        back = op.undo(moved, DIMS)
        assert len(back) == len(parts)
        assert all(same(a, b) for a, b in zip(parts, back, strict=True))
        for tensor in (*moved, *back):  # any slab is what the whole says
            whole = tensor.blocks()
            assert whole.flags.c_contiguous and whole.shape == (tensor.n_rows, tensor.row_bytes)
            for start in range(0, tensor.n_rows, 3):
                for stop in {start, start + 1, min(start + 5, tensor.n_rows), tensor.n_rows}:
                    part = tensor.blocks(start, stop)
                    assert part.flags.c_contiguous
                    assert part.tobytes() == whole[start:stop].tobytes()


@pytest.mark.parametrize("name", [n for n in CASES if "transpose" not in n and n not in ("only", "mxfp4", "reshape")])
def test_rows_of_any_block_type_move(name: str) -> None:
    op, shapes = CASES[name]
    if any(len(s) == 1 for s in shapes):
        return
    q8 = by_name("Q8_0")
    parts = []
    for i, shape in enumerate(shapes):
        wide = (*shape[:-1], 64)
        data = np.random.default_rng(i).integers(0, 256, (int(np.prod(wide[:-1])), q8.row_bytes(64)), np.uint8)
        parts.append(Tensor(f"t{i}", wide, q8, lambda a, b, data=data: data[a:b]))
    back = op.undo(op.apply(tuple(parts), DIMS), DIMS)
    assert all(same(a, b) for a, b in zip(parts, back, strict=True))


def test_a_product_gives_its_factors_back() -> None:
    """As long as it is what they gave; else the first is all ones."""
    rng = np.random.default_rng(0)
    for row, kind in ((False, "BF16"), (True, "F32")):
        op, shapes = ops.Product(row), ((9,), (1, 9) if row else (9,))
        parts = tuple(Tensor.from_array("ab", rng.normal(0, 1, s).astype(by_name(kind).dtype)) for s in shapes)
        (made,) = op.apply(parts, DIMS)
        want = parts[0].numpy().astype(np.float32) * parts[1].numpy().reshape(-1).astype(np.float32)
        assert np.array_equal(made.numpy(), want)
        records = op.all_lost(parts, DIMS)
        for tensor, original, record in zip(op.undo((made,), DIMS), parts, records, strict=True):
            back = op.restored(tensor.astype(original.type), made, record, DIMS)
            assert same(back, original)
        tuned = Tensor.from_array("a", want + 1)
        one, other = op.undo((tuned,), DIMS)
        assert (op.restored(one, tuned, records[0], DIMS).numpy() == 1).all()
        assert np.array_equal(op.restored(other, tuned, records[1], DIMS).numpy().reshape(-1), want + 1)


def test_whole_numbers_are_narrowed_and_come_back_as_wide_as_they_were() -> None:
    op = ops.Narrowed()
    for kind in (np.int64, np.int32):
        table = Tensor.from_array("t", np.arange(-6, 6, dtype=kind).reshape(3, 4))
        (made,) = op.apply((table,), DIMS)
        assert made.type.name == "I32" and np.array_equal(made.numpy(), table.numpy())
        (back,), record = op.undo((made,), DIMS), op.lost(table, DIMS)
        assert same(back if record is None else op.restored(back, made, record, DIMS), table)
    with pytest.raises(BadFile, match="holds 4294967296, which is no number of an expert"):
        op.apply((Tensor.from_array("t", np.full((2, 2), 1 << 32)),), DIMS)[0].numpy()
    with pytest.raises(Unsupported, match="expected whole numbers"):
        op.apply((Tensor.from_array("t", np.zeros((2, 2), np.float32)),), DIMS)


def test_llama_permutation_is_the_documented_one() -> None:
    """(first half, second half) of a head -> neighbours, as numpy writes it."""
    x = array(24, 5).view(np.uint32)
    ours = ops.rope_halves("n_head").apply((Tensor.from_array("q", x),), DIMS)[0].numpy()
    assert np.array_equal(ours, x.reshape(4, 2, 3, 5).swapaxes(1, 2).reshape(24, 5))


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40),
    st.sampled_from(["F32", "F16", "BF16"]),
)
@settings(max_examples=200, deadline=None)
def test_shift_comes_back_exactly(values: list[float], kind: str) -> None:
    """float32 sums round; what would be lost is kept, so the bits come back whatever they were."""
    dtype = by_name(kind).dtype
    assert dtype is not None
    with np.errstate(over="ignore"):
        original = Tensor.from_array("norm", np.asarray(values, np.float32).astype(dtype))
    shift = ops.Shift()
    (shifted,) = shift.apply((original,), {})
    record = shift.lost(original, {})
    (back,) = shift.undo((shifted,), {})
    back = back.astype(original.type)
    if record is not None:
        back = shift.restored(back, shifted, record, {})
    assert same(original, back)


def test_kept_values_yield_to_changed_weights() -> None:
    tiny = Tensor.from_array("norm", np.asarray([1e-30, 0.5], np.float32))
    record = ops.Shift().lost(tiny, {})
    assert record is not None and record.tolist()[0] == 0
    trained = Tensor.from_array("norm", np.asarray([1.25, 1.5], np.float32))
    (back,) = ops.Shift().undo((trained,), {})
    assert ops.Shift().restored(back, trained, record, {}).numpy().tolist() == [0.25, 0.5]


def test_ordinary_bfloat16_norms_need_nothing_kept() -> None:
    values = (np.random.default_rng(0).normal(0, 0.3, 2048)).astype(by_name("BF16").dtype)
    values = values[np.abs(values.astype(np.float32)) > 2.0**-15]
    assert ops.Shift().lost(Tensor.from_array("norm", values), {}) is None


def _batch_norm(kind: str) -> tuple[Tensor, ...]:
    rng = np.random.default_rng(3)
    values = [rng.standard_normal(33) for _ in range(3)] + [rng.random(33) + 0.1]
    return tuple(
        Tensor.from_array(str(i), one.astype(np.float32)).astype(by_name(kind)) for i, one in enumerate(values)
    )


@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_a_batch_norm_is_folded_and_comes_back(kind: str) -> None:
    parts, op = _batch_norm(kind), ops.BatchNorm()
    made = op.apply(parts, {})
    weight, bias, mean, variance = (part.numpy().astype(np.float64) for part in parts)
    x = np.linspace(-2, 2, 33)
    expected = (x - mean) / np.sqrt(variance + 1e-5) * weight + bias
    assert np.allclose(made[0].numpy() * x + made[1].numpy(), expected, rtol=1e-4, atol=1e-5)
    plain = op.undo(made, {})
    again = op.apply(plain, {})  # without a record: other numbers, which do the same
    assert all(np.allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=1e-7) for a, b in zip(made, again, strict=True))
    typed = tuple(part.astype(by_name(kind)) for part in plain)
    back = op.all_restored(typed, made, op.all_lost(parts, {}), {})
    assert all(same(a, b) for a, b in zip(parts, back, strict=True))


def test_a_changed_batch_norm_is_not_overwritten() -> None:
    parts, op = _batch_norm("F32"), ops.BatchNorm()
    made = op.apply(parts, {})
    trained = (made[0], Tensor.from_array("b", made[1].numpy() + np.float32(1)))
    back = op.all_restored(op.undo(trained, {}), trained, op.all_lost(parts, {}), {})
    assert same(back[1].renamed("b"), trained[1])


def test_quantized_tensors_are_not_transposed() -> None:
    q8 = by_name("Q8_0")
    tensor = Tensor("w", (4, 64), q8, lambda a, b: np.zeros((b - a, q8.row_bytes(64)), np.uint8))
    with pytest.raises(Unsupported, match="'w' of type Q8_0 can't be transposed"):
        ops.Transpose().apply((tensor,), {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n_head * head_dim", 24),
        ("(n_head + 2 * n_head_kv) * head_dim", 48),
        ("n_embd // zero", 0),
        ("not zero and n_head > 3", 1),
        ("n_ff % 3 == 2 or nothing", 1),
        ("unknown", 0),
        ("n_head - 6", -2),
        (7, 7),
    ],
)
def test_sizes(text: str | int, value: int) -> None:
    assert ops.evaluate(text, DIMS) == value


@pytest.mark.parametrize("text", ["__import__('os')", "n_head ** 2", "[1]", "'a'"])
def test_sizes_are_not_programs(text: str) -> None:
    with pytest.raises(UsageError, match="no size expression"):
        ops.evaluate(text, DIMS)


def test_contradicting_sizes_are_named() -> None:
    tensor = Tensor.from_array("q", array(10, 4))
    with pytest.raises(UsageError, match="'q' has 10 rows, expected 4 x 2 x 3 x 1"):
        ops.rope_halves("n_head").apply((tensor,), DIMS)
    with pytest.raises(UsageError, match="'q' has 10 rows, expected 1 x 9"):
        ops.Split((4, 5)).apply((tensor,), DIMS)
    other = Tensor.from_array("k", array(10, 4, dtype="float16"))
    with pytest.raises(Unsupported, match=r"'q' .F32.*'k' .F16.*can't be joined"):
        ops.Concat((10, 10)).apply((tensor, other), DIMS)


def test_split_pieces_stay_extents(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A slice of rows of a file is still a stretch of that file: the kernel may copy it."""
    from llmconv.formats.tensor import Extent

    data = array(9, 4)
    tensor = Tensor.from_array("w", data)
    import dataclasses

    tensor = dataclasses.replace(tensor, extent=Extent(tmp_path / "f", 100, data.nbytes))
    a, b = ops.Split((4, 5)).apply((tensor,), {})
    assert a.extent == Extent(tmp_path / "f", 100, 64) and b.extent == Extent(tmp_path / "f", 164, 80)


def test_broken_records_are_refused() -> None:
    with pytest.raises(BadFile, match="no JSON object"):
        carried.kept_json({"llmconv.hf.forms": "[1"}, "llmconv.hf.forms", "m.gguf")
    with pytest.raises(BadFile, match="unknown types"):
        carried.kept_dtypes({"default": "F99"}, "m.gguf")
    with pytest.raises(BadFile, match="does not describe"):
        list(
            carried.kept_tensors(
                {own_keys.TENSORS: '{"x":["F32",[4]]}', own_keys.TENSOR + "x": np.zeros(3, np.uint8)}, "m.gguf"
            )
        )
