"""The quantizing pipeline: whole files, one read for several outputs, refusals, resuming, the command."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import synthetic
from click.testing import CliRunner
from int8_layers import decode

import llmconv
from llmconv import formats
from llmconv.cli import cli
from llmconv.convert.writing.quantize import quantize
from llmconv.errors import BadFile, LlmconvError, OutputError, Unsupported, UsageError
from llmconv.formats import gguf_file
from llmconv.formats.tensor import Tensor
from llmconv.progress import Step


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("model") / "m-f16.gguf", n_layer=2, n_vocab=64)


def only(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_several_outputs_from_one_read_equal_single_ones(model: Path, tmp_path: Path) -> None:
    steps: list[Step] = []
    types = ["Q8_0", "Q4_K_M", "Q6_K"]
    made = quantize(model, tmp_path, types, jobs=3, progress=steps.append)
    assert steps[-1].done == steps[-1].total == made.source_nbytes == formats.open(model).nbytes
    assert only(tmp_path) == ["m-Q4_K_M.gguf", "m-Q6_K.gguf", "m-Q8_0.gguf"]
    for output in made.outputs:
        one = quantize(model, tmp_path / "one.gguf", output.type, jobs=1, force=True)
        assert (tmp_path / "one.gguf").read_bytes() == output.paths[0].read_bytes()
        assert one.output.size == output.size == output.paths[0].stat().st_size
        found = formats.open(output.paths[0]).tensors
        assert [(t.name, t.type) for t in output.tensors] == [(t.name, t.type.name) for t in found.values()]
        assert output.bits_per_weight == 8 * sum(t.nbytes for t in found.values()) / sum(
            t.n_elements for t in found.values()
        )


def test_metadata_and_order_are_the_references(model: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "q.gguf", "Q4_K_M", override_kv=["a.b=int:-7", "general.name=str:x"])
    before, after = formats.open(model), formats.open(tmp_path / "q.gguf")
    keys = [k for k in before.metadata if k not in ("general.quantization_version", "general.file_type")]
    keys.remove("general.name")
    assert list(after.metadata) == [*keys, "general.quantization_version", "general.file_type", "a.b", "general.name"]
    assert (after.metadata["general.file_type"], after.metadata["a.b"]) == (15, 7)
    assert list(after.tensors)[:4] == [
        "output.weight",
        "output_norm.weight",
        "token_embd.weight",
        "blk.0.attn_k.weight",
    ]


def test_dry_run_is_exact_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    plan = quantize(model, tmp_path / "q.gguf", "Q5_K_M", dry_run=True)
    assert only(tmp_path) == [] and not plan.written
    made = quantize(model, tmp_path / "q.gguf", "Q5_K_M")
    assert (made.output.size, made.output.tensors) == (plan.output.size, plan.output.tensors)
    assert (tmp_path / "q.gguf").stat().st_size == plan.output.size


def test_a_folder_gives_the_same_weights_as_its_gguf(shared: Path, tmp_path: Path) -> None:
    stories = shared / "stories260K"
    quantize(stories / "hf", tmp_path / "a.gguf", "Q4_0")
    quantize(stories / "stories260K-f32.gguf", tmp_path / "b.gguf", "Q4_0")
    a, b = (formats.open(tmp_path / name).tensors for name in ("a.gguf", "b.gguf"))
    assert list(a) == list(b)
    assert all(t.type is b[n].type and (t.blocks() == b[n].blocks()).all() for n, t in a.items())


def test_legacy_json_goes_straight_to_quantized(shared: Path, tmp_path: Path) -> None:
    made = quantize(shared / "simple-llm" / "default-400.v1.json", tmp_path / "q.gguf", "Q8_0")
    assert {t.type for t in made.output.tensors} == {"F32", "Q8_0"}


# SHA-256 (its first half) of what llama-quantize (llama.cpp as in llama-cpp-python 0.3.36) makes of
# `synthetic.write_exact`'s model.
REFERENCE = {
    "F32": "8885a8faba54d51f991dcea0185872ff",
    "F16": "c9e258f1bc130d520b730acdd0809512",
    "BF16": "d374d4ebf609dc15d3b6ce7fb9c55922",
    "Q8_0": "2e9b769f2b00aed3e8180aaf12106779",
    "Q6_K": "9eeb4cd4d1735ab9b96e5f270bf59ca8",
    "Q5_K_M": "f0deb47bd9bffcd8edf6b8dded00aed1",
    "Q5_K_S": "68006ac494d0bbd023657e826dac92e1",
    "Q5_1": "f7a1cb72a65c709dd3ac819c4615f814",
    "Q5_0": "f8e6228c2235dc5e35af1ff101ff22c3",
    "Q4_K_M": "98fe98fd66ddb91cf0300a441b2acf5d",
    "Q4_K_S": "b2b8f8d639b7d4d7235c29581b19fd72",
    "Q4_1": "82ae3e718cd04dd4a8139d2eed7a1513",
    "Q4_0": "3c2fe8fb3f5e89f01cf0747ffc407c89",
    "IQ4_NL": "14e57303b01f61c93b3e552abab9c94c",
    "IQ4_XS": "4a720dd64e229ab368af6bdf2c31a361",
    "MXFP4_MOE": "40a027794ae820d5dcb38f437fb8b293",
    "Q3_K_L": "c911f1075d7626e33c6cdfe4adb6d60a",
    "Q3_K_M": "08cc7ba541caae5d8870b8b595321bf2",
    "Q3_K_S": "b5b38bc801de8b780cd5407487cc214e",
    "IQ3_M": "9d5ada441f211a64a604b76bb47ac24c",
    "IQ3_S": "6b02b7da190fa44a735b3bb87b513fc7",
    "Q2_K": "73392229b00a8d72d2da915c9f0cfaae",
    "TQ2_0": "93d3cdbf7009c75ff34fd1c2661c0af8",
    "TQ1_0": "c03ea8ac041d0ce3775a84e511ba0244",
    "Q2_0": "0e3ef7f3332b156186189f2a328059c8",
}


def test_whole_files_are_the_references(tmp_path: Path) -> None:
    source = synthetic.write_exact(tmp_path / "exact.gguf")
    assert digest(source).startswith("690c161307d241ce4544401aa3edbec2")
    made = quantize(source, tmp_path, list(REFERENCE))
    assert {o.type: digest(o.paths[0])[:32] for o in made.outputs} == REFERENCE


# Refusals leave nothing.


def broken(at: tuple[int, ...], value: float) -> Any:
    def change(name: str, values: Any) -> Any:
        if name == "blk.1.ffn_up.weight":
            values[at] = value
        return values

    return change


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
    assert only(tmp_path) == ["i.gguf", "o.gguf", "q.gguf"]


def changed_importance(path: Path, changes: dict[str, Any]) -> Path:
    """The same matrix with other sums for some tensors."""
    found = formats.open(path)
    for name, change in changes.items():
        tensor = found.tensors[f"{name}.in_sum2"]
        found.tensors[tensor.name] = Tensor.from_array(tensor.name, change(tensor.numpy().copy()))
    return formats.by_name("gguf").save(found, path.with_name("changed.gguf"), force=True)[0]


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


def test_rules_from_a_file(model: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.txt"
    rules.write_text("attn_q=Q8_0\nffn_up=Q6_K attn_v=F16\n")
    made = quantize(model, tmp_path / "q.gguf", "Q4_0", tensor_type_file=rules)
    types = {t.name: t.type for t in made.output.tensors}
    assert [types[f"blk.1.{n}.weight"] for n in ("attn_q", "ffn_up", "attn_v")] == ["Q8_0", "Q6_K", "F16"]
    rules.write_bytes(b"\xff")
    with pytest.raises(BadFile, match="not UTF-8"):
        quantize(model, tmp_path / "x.gguf", "Q4_0", tensor_type_file=rules)


def test_pruned_layers_move_up(tmp_path: Path) -> None:
    source = synthetic.write(tmp_path / "m.gguf", n_layer=4)
    quantize(source, tmp_path / "q.gguf", "Q8_0", prune_layers=[1, 2])
    quantize(source, tmp_path / "all.gguf", "Q8_0")
    pruned, whole = formats.open(tmp_path / "q.gguf"), formats.open(tmp_path / "all.gguf")
    assert pruned.metadata["llama.block_count"] == 2
    assert max(int(n.split(".")[1]) for n in pruned.tensors if n.startswith("blk.")) == 1
    moved = pruned.tensors["blk.1.ffn_down.weight"].blocks()
    assert (moved == whole.tensors["blk.3.ffn_down.weight"].blocks()).all()


def test_split_models_stay_split(model: Path, tmp_path: Path) -> None:
    parts = gguf_file.save(gguf_file.open(model), tmp_path / "s.gguf", split_max_tensors=9)
    made = quantize(parts[0], tmp_path / "q.gguf", "Q4_K_M", keep_split=True)
    assert len(made.output.paths) == len(parts) > 1
    assert made.output.size == sum(p.stat().st_size for p in made.output.paths)
    again = formats.open(made.output.paths[1])
    assert set(again.tensors) == set(formats.open(model).tensors)


# Resuming.


class Stop(Exception):
    pass


def stopping_after(n: int) -> tuple[Any, list[str]]:
    seen: list[str] = []

    def progress(step: Step) -> None:
        seen.append(step.item)
        if len(seen) == n:
            raise Stop

    return progress, seen


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_interrupted_run_goes_on(model: Path, tmp_path: Path, jobs: int) -> None:
    whole = {t: tmp_path / f"whole-{t}.gguf" for t in ("Q8_0", "Q4_K_M")}
    for kind, path in whole.items():
        quantize(model, path, kind)
    target = tmp_path / "{type}.gguf"
    progress, _ = stopping_after(8)
    call: dict[str, Any] = {"type": list(whole), "resumable": True, "jobs": jobs}
    with pytest.raises(Stop):
        quantize(model, target, progress=progress, **call)
    assert {"Q8_0.gguf.partial", "Q8_0.gguf.partial.journal"} <= set(only(tmp_path))
    steps: list[Step] = []
    made = quantize(model, target, progress=steps.append, **call)
    assert steps[0].item == "already done" and steps[0].done > 0
    assert steps[-1].done == made.source_nbytes
    for kind, path in whole.items():
        assert digest(tmp_path / f"{kind}.gguf") == digest(path)
    assert not [name for name in only(tmp_path) if "partial" in name]


def test_a_partial_run_of_something_else_is_refused(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "m.gguf", tmp_path / "q.gguf"
    source.write_bytes(model.read_bytes())
    with pytest.raises(Stop):
        quantize(source, target, "Q8_0", resumable=True, progress=stopping_after(6)[0])
    with pytest.raises(OutputError, match="run with other options"):
        quantize(source, target, "Q4_0", resumable=True)
    os.utime(source, (1, 1))
    with pytest.raises(OutputError, match="run with other input"):
        quantize(source, target, "Q8_0", resumable=True)
    (tmp_path / "q.gguf.partial.journal").write_text("{}\n")
    with pytest.raises(OutputError, match="run with other"):
        quantize(source, target, "Q8_0", resumable=True)
    quantize(source, target, "Q8_0", resumable=True, force=True)
    quantize(model, tmp_path / "whole.gguf", "Q8_0")
    assert digest(target) == digest(tmp_path / "whole.gguf")
    assert only(tmp_path) == ["m.gguf", "q.gguf", "whole.gguf"]


def test_a_partial_file_that_was_cut_is_begun_again(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        quantize(model, tmp_path / "q.gguf", "Q8_0", resumable=True, progress=stopping_after(6)[0])
    os.truncate(tmp_path / "q.gguf.partial", 1000)
    quantize(model, tmp_path / "q.gguf", "Q8_0", resumable=True)
    quantize(model, tmp_path / "whole.gguf", "Q8_0")
    assert digest(tmp_path / "q.gguf") == digest(tmp_path / "whole.gguf")


def test_without_the_flag_nothing_is_left(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        quantize(model, tmp_path / "q.gguf", "Q8_0", progress=stopping_after(6)[0])
    assert only(tmp_path) == []


# The command.


def run(*args: Any) -> Any:
    return CliRunner().invoke(cli, [str(a) for a in args])


def test_the_command(model: Path, tmp_path: Path) -> None:
    done = run("quantize", model, "-t", "q4_k_m", "-t", "Q8_0", "-o", tmp_path, "--json", "-j", 2)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)["result"]
    assert [o["type"] for o in result["outputs"]] == ["Q4_K_M", "Q8_0"]
    assert [Path(o["paths"][0]).stat().st_size for o in result["outputs"]] == [o["nbytes"] for o in result["outputs"]]
    dry = run("quantize", model, "-t", "Q6_K", "-o", tmp_path / "x.gguf", "--dry-run")
    assert "blk.1.attn_v.weight" in dry.stdout and "nothing was written" in dry.stdout
    assert not (tmp_path / "x.gguf").exists()
    assert run("quantize", model, "-t", "Q6_K", "-o", tmp_path / "x.gguf", "-q").output == ""


def test_several_types_make_a_folder(model: Path, tmp_path: Path) -> None:
    assert run("quantize", model, "-t", "Q4_0", "-t", "Q8_0", "-o", f"{tmp_path / 'new'}/", "-q").exit_code == 0
    assert only(tmp_path / "new") == ["m-Q4_0.gguf", "m-Q8_0.gguf"]
    with pytest.raises(UsageError, match="is one name for 2 outputs"):
        quantize(model, tmp_path / "x.gguf", ["Q4_0", "Q8_0"])
    with pytest.raises(OutputError):
        quantize(model, tmp_path / "no" / "folder", ["Q4_0", "Q8_0"])
    assert only(tmp_path) == ["new"]
    bad = synthetic.write(tmp_path / "nan.gguf", n_layer=2, changes=broken((3, 17), np.nan))
    with pytest.raises(Unsupported, match="allow_nonfinite"):
        quantize(bad, tmp_path / "gone", ["Q4_0", "Q8_0"])
    assert only(tmp_path) == ["nan.gguf", "new"]


def test_a_source_is_read_as_convert_reads_it(tmp_path: Path) -> None:
    """Options about the source mean the same as in `convert`: the result equals that of two steps."""
    (tmp_path / "p.json").write_text(json.dumps({"net": [{"w": [[i / 64 for i in range(64)]] * 2, "b": [1, 2]}]}))
    refused = run("quantize", tmp_path / "p.json", "-t", "Q8_0")
    assert isinstance(refused.exception, LlmconvError)
    assert 'layout="plain"' in str(refused.exception)
    done = run("quantize", tmp_path / "p.json", "-t", "Q8_0", "--layout", "plain", "-o", tmp_path / "one.gguf", "-v")
    assert done.exit_code == 0 and "net[0].w  2x64   F32   Q8_0" in done.stdout
    assert run("json-to-gguf", tmp_path / "p.json", tmp_path / "p.gguf", "--layout", "plain").exit_code == 0
    assert run("quantize", tmp_path / "p.gguf", "-t", "Q8_0", "-o", tmp_path / "two.gguf", "-q").exit_code == 0
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    assert run("gguf-to-json", tmp_path / "one.gguf", tmp_path / "back.json").exit_code == 0
    back = json.loads((tmp_path / "back.json").read_text())["net"][0]
    assert back["b"] == [1, 2] and back["w"][0][63] == pytest.approx(63 / 64, rel=1e-2)


def test_the_commands_help_lists_every_type() -> None:
    from llmconv.quant.filetypes import FILE_TYPES

    text = run("quantize", "--help").output
    assert all(name in text for name in FILE_TYPES)


def command(*args: Any, **options: Any) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "llmconv", *map(str, args)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_bad_layer_list_is_a_usage_error(model: Path) -> None:
    process = command("quantize", model, "-t", "Q8_0", "--prune-layers", "a,b")
    _, error = process.communicate()
    assert process.returncode == 2 and error.count("\n") == 1 and "'a,b' is not a list" in error


def sparse(path: Path, gigabytes: float) -> Path:
    """A valid F16 model of zeros that takes no space on the disk."""
    rows = int(gigabytes * 1e9 / 2 / 4096)
    writer = gguf.GGUFWriter(path, "nobodys")  # an architecture without a table: any tensors will do
    writer.add_block_count(1)
    shape = (rows // 4, 4096)
    for i in range(4):
        writer.add_tensor_info(f"blk.0.w{i}.weight", shape, np.dtype(np.float16), rows // 4 * 8192)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.seek(0, 2)
        start = -(-file.tell() // 32) * 32
        file.truncate(start + 4 * (rows // 4 * 8192))
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of its own memory as Linux tells it")
def test_memory_stays_bounded(tmp_path: Path) -> None:
    source, small = sparse(tmp_path / "big.gguf", 2.0), sparse(tmp_path / "small.gguf", 0.01)
    script = (
        "import sys; from llmconv.convert.writing.quantize import quantize; "
        "quantize(sys.argv[1], sys.argv[2], ['Q4_K_M', 'Q8_0'], jobs=4); "
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )  # not ru_maxrss: a child begins with its parent's, and the tests' own process has loaded torch
    words = [sys.executable, "-c", script, str(source), str(tmp_path / "{type}.gguf")]
    once = [*words[:3], str(small), str(tmp_path / "small-{type}.gguf")]
    subprocess.run(once, check=True, capture_output=True)  # compiling kernels takes memory of its own, the first time
    megabytes = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) // 1024
    assert megabytes < 400


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("resumable", [False, True])
def test_ctrl_c(tmp_path: Path, resumable: bool) -> None:
    source, out = sparse(tmp_path / "big.gguf", 2.0), tmp_path / "out"
    out.mkdir()
    small = sparse(tmp_path / "small.gguf", 0.01)
    command("quantize", small, "-t", "Q6_K", "-o", tmp_path / "q.gguf", "-j", 1).communicate(timeout=60)  # compiles
    words: Sequence[Any] = ["quantize", source, "-t", "Q6_K", "-o", out / "q.gguf", "-j", 1]
    process = command(*words, *(["--resumable"] if resumable else []))
    while process.poll() is None and not any(p.stat().st_blocks for p in out.iterdir()):
        time.sleep(0.02)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    way = f"; the same command goes on from {out / 'q.gguf.partial'}" if resumable else ""
    assert process.returncode == 130 and error.splitlines()[-1] == f"llmconv: interrupted{way}"
    assert only(out) == (["q.gguf.partial", "q.gguf.partial.journal"] if resumable else [])


# INT8.


def test_int8_folders(shared: Path, tmp_path: Path) -> None:
    source = shared / "stories260K" / "hf"
    made = quantize(source, tmp_path / "int8", "INT8")
    before, after = formats.open(source), formats.open(tmp_path / "int8")
    config = json.loads(after.file("config.json") or b"")
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    name = "model.layers.0.mlp.down_proj"
    q, scale = after.tensors[f"{name}.weight"], after.tensors[f"{name}.weight_scale"]
    assert (q.type.name, q.shape, scale.shape) == ("I8", (64, 172), (64, 1))
    close = decode(q.numpy(), scale.numpy())
    values = before.tensors[f"{name}.weight"].numpy()
    assert np.abs(close - values).max() <= np.abs(values).max() / 127
    assert after.tensors["model.embed_tokens.weight"].type.name == "F32"
    assert made.output.type == "INT8" and "lm_head" in config["quantization_config"]["ignore"]
    lone = quantize(source, tmp_path / "m.safetensors", "INT8")
    assert lone.output.paths == (tmp_path / "m.safetensors",)
    with pytest.raises(Unsupported, match="quantized already"):
        quantize(tmp_path / "int8", tmp_path / "x", "INT8")


def test_the_public_names() -> None:
    assert llmconv.quantize is quantize and callable(llmconv.warmup)
