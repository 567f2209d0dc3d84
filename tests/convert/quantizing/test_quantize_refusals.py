"""What `quantize` refuses, leaving nothing behind: weights, types, importance and calls that won't do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from folders import digest, only
from imatrix_files import write_gguf
from synthetic import broken

from llmconv import formats
from llmconv.convert.quantizing.quantize import quantize
from llmconv.errors import BadFile, OutputError, Unsupported, UsageError
from llmconv.formats.tensor import Tensor


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("model") / "m-f16.gguf", n_layer=2, n_vocab=64)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["F16", "F32", "BF16"])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, kind: str, value: float) -> None:
    source = synthetic.write(tmp_path / "m.gguf", kind, n_layer=2, changes=broken((3, 17), value))
    with pytest.raises(
        Unsupported, match=rf"'blk\.1\.ffn_up\.weight': weight \[3, 17\] is {value}.*allow_nonfinite=True"
    ):
        quantize(source, tmp_path / "q.gguf", "Q8_0", jobs=2)
    assert only(tmp_path) == ["m.gguf"]
    quantize(source, tmp_path / "q.gguf", "Q8_0", allow_nonfinite=True)


@pytest.mark.parametrize("type", ["Q8_0", "F16", "Q4_K_S"])
def test_weights_too_large_for_a_type_are_named(tmp_path: Path, type: str) -> None:
    source = synthetic.write(tmp_path / "m.gguf", "F32", n_layer=2, changes=broken((3, 17), 1e30))
    with pytest.raises(Unsupported, match=r"'blk\.1\.ffn_up\.weight': row 3 is too large for"):
        quantize(source, tmp_path / "q.gguf", type)
    assert only(tmp_path) == ["m.gguf"]


def test_quantizing_twice_needs_permission(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "q8.gguf"
    quantize(model, source, "Q8_0")
    with pytest.raises(Unsupported, match=r"is quantized already, to Q8_0, .*allow_requantize=True"):
        quantize(source, tmp_path / "q.gguf", "Q4_0")
    quantize(source, tmp_path / "q.gguf", "Q4_0", allow_requantize=True)
    quantize(source, tmp_path / "copy.gguf", "COPY")
    assert digest(tmp_path / "copy.gguf") == digest(source)


def test_importance_where_it_is_needed(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tensor 'blk\.0\.attn_k\.weight' as Q2_K needs importance weights"):
        quantize(model, tmp_path / "q.gguf", "Q2_K_S")
    plan = quantize(model, tmp_path / "q.gguf", "Q2_K_S", dry_run=True)
    assert "will need an importance matrix" in plan.output.warnings[-1]
    matrix = synthetic.write_importance(tmp_path / "i.gguf", n_layer=2)
    made = quantize(model, tmp_path / "q.gguf", "Q2_K_S", imatrix=matrix)
    assert {t.name for t in made.output.tensors if t.importance} == {
        n for n, s in synthetic.shapes(n_layer=2).items() if "blk" in n and len(s) > 1
    }
    with pytest.raises(UsageError, match=r"'blk\.0\.ffn_down\.weight'"):
        quantize(model, tmp_path / "x.gguf", "Q2_K_S", imatrix=matrix, exclude_weights=["blk.0.ffn_down"])
    other = synthetic.write_importance(tmp_path / "o.gguf", n_layer=2, n_ff=256)
    with pytest.raises(BadFile, match="256 importance weights, expected 1 x 512; the matrix belongs to another"):
        quantize(model, tmp_path / "x.gguf", "Q4_K_M", imatrix=other)
    with pytest.raises(UsageError, match="give imatrix"):
        quantize(model, tmp_path / "x.gguf", "Q4_K_M", include_weights=["a"])
    with pytest.raises(UsageError, match=r"include_weights='nosuch' is in no name of .*, such as 'blk.0"):
        quantize(model, tmp_path / "x.gguf", "Q4_K_M", imatrix=matrix, include_weights=["ffn", "nosuch"])
    with pytest.raises(UsageError, match="nothing of it is left by exclude_weights"):
        quantize(model, tmp_path / "x.gguf", "Q4_K_M", imatrix=matrix, exclude_weights=["blk"])
    assert only(tmp_path) == ["i.gguf", "o.gguf", "q.gguf"]


def changed_importance(path: Path, changes: dict[str, Any]) -> Path:
    """The same matrix with other sums for some tensors."""
    found = formats.open(path)
    for name, change in changes.items():
        tensor = found.tensors[f"{name}.in_sum2"]
        found.tensors[tensor.name] = Tensor.from_array(tensor.name, change(tensor.numpy().copy()))
    return formats.by_name("gguf").save(found, path.with_name("changed.gguf"), force=True)[0]


def test_importance_of_another_model_or_of_nothing_is_named(model: Path, tmp_path: Path) -> None:
    one = {"blk.0.attn_q.weight": np.ones((1, 256))}
    count = {"blk.0.attn_q.weight": [[3.0]]}
    strange = write_gguf(tmp_path / "s.gguf", {"layers.0.q": [[1.0]]}, {"layers.0.q": [[1.0]]})
    with pytest.raises(BadFile, match=r"s.gguf has no entry of this model's tensors, but 'layers.0.q'"):
        quantize(model, tmp_path / "x.gguf", "Q4_0", imatrix=strange)
    more = write_gguf(tmp_path / "m.gguf", one | {"v.blk.0": [[1.0]]}, count | {"v.blk.0": [[1.0]]})
    made = quantize(model, tmp_path / "x.gguf", "Q4_0", imatrix=more)
    assert any("entries of tensors that are not there: 'v.blk.0'" in w for w in made.output.warnings)
    unseen = write_gguf(tmp_path / "u.gguf", {n: 0 * v for n, v in one.items()}, {n: [[0.0]] for n in one})
    made = quantize(model, tmp_path / "y.gguf", "Q4_0", imatrix=unseen)
    assert "tensor 'blk.0.attn_q.weight': no token went through it, whose weights count alike" in made.output.warnings


def test_importance_of_zeros_is_none(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"n_layer": 1, "n_expert": 3}
    model = synthetic.write(tmp_path / "m.gguf", **sizes)
    matrix = synthetic.write_importance(tmp_path / "i.gguf", **sizes)
    whole, stack = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"

    def second(sums: Any) -> Any:
        sums[1] = 0
        return sums

    zeros = changed_importance(matrix, {whole: np.zeros_like, stack: second})
    made = quantize(model, tmp_path / "z.gguf", "Q4_K_M", imatrix=zeros, pure=True)
    quantize(model, tmp_path / "i-q.gguf", "Q4_K_M", imatrix=matrix, pure=True)
    quantize(model, tmp_path / "n.gguf", "Q4_K_M", pure=True)
    z, i, n = (formats.open(tmp_path / f"{name}.gguf").tensors for name in ("z", "i-q", "n"))
    assert (z[whole].blocks() == n[whole].blocks()).all() and (z[whole].blocks() != i[whole].blocks()).any()
    rows = z[stack].n_rows // 3
    for part, other in enumerate((i, n, i)):
        at = slice(part * rows, (part + 1) * rows)
        assert (z[stack].blocks()[at] == other[stack].blocks()[at]).all()
    assert (i[stack].blocks()[rows : 2 * rows] != n[stack].blocks()[rows : 2 * rows]).any()
    noted = [w for w in made.output.warnings if "zeros alone" in w]
    assert len(noted) == 2 and any("for 1 of 3 matrices (the first is 1)" in w for w in noted)
    with pytest.raises(UsageError, match=r"'blk\.0\.(attn_q|ffn_up_exps)\.weight' as IQ2_XXS needs importance weights"):
        quantize(model, tmp_path / "x.gguf", "IQ2_XXS", imatrix=zeros)
    negative = changed_importance(matrix, {whole: np.negative})
    with pytest.raises(BadFile, match=rf"importance of '{whole}' at 0 is -.*; compute the matrix again"):
        quantize(model, tmp_path / "x.gguf", "Q4_K_M", imatrix=negative)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": []}, "no type"),
        ({"type": "Q9"}, "unknown file type"),
        ({"type": ["Q4_0", "Q8_0"]}, "one name for 2 outputs"),
        ({"type": ["INT8", "Q8_0"]}, "a run of its own"),
        ({"override_kv": ["a"]}, "not KEY=TYPE:VALUE"),
        ({"override_kv": ["a=int:b"]}, "not a value of type 'int'"),
        ({"override_kv": ["a=u8:1"]}, "the types are int, float, bool"),
        ({"override_kv": ["a=bool:1"]}, "the types are"),
        ({"prune_layers": [7]}, "names layer 7, but the model has 2 layers"),
        ({"tensor_types": ["a=b=c"]}, "unknown type"),
        ({"output_tensor_type": "X"}, "unknown type"),
    ],
)
def test_wrong_calls(model: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quantize(model, tmp_path / "q.gguf", **options)
    assert only(tmp_path) == []


def test_types_that_can_only_be_read_or_do_not_fit(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="F8_E4M3 can be read but not written"):
        quantize(model, tmp_path / "q.gguf", "Q4_0", tensor_types=["attn_q=F8_E4M3"])
    assert only(tmp_path) == []


def test_outputs_that_exist_or_are_the_input(model: Path, tmp_path: Path) -> None:
    (tmp_path / "q.gguf").write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        quantize(model, tmp_path / "q.gguf", "Q8_0")
    before = model.read_bytes()
    with pytest.raises(OutputError, match="is the input itself"):
        quantize(model, model, "Q8_0", force=True)
    assert model.read_bytes() == before and (tmp_path / "q.gguf").read_text() == "old"
