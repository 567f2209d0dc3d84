"""verify, diff, hashes, statistics, certificates: what each finds, and that it finds nothing where there is nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import llmconv
from llmconv.cli import cli
from llmconv.convert.reports.content_hash import content_hash
from llmconv.convert.reports.provenance import certify
from llmconv.convert.reports.stats import histogram, tensor_stats
from llmconv.convert.reports.verify import compare_tensors
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor
from llmconv.progress import Step
from llmconv.quant import by_name


def model(seed: int = 0, **metadata: Any) -> Checkpoint:
    """Two matrices and a vector of a llama."""
    rng = np.random.default_rng(seed)
    out = Checkpoint(
        metadata={
            "general.architecture": "llama",
            "llama.block_count": np.uint32(0),
            "llama.rope.freq_base": np.float32(10000),
            **metadata,
        }
    )
    for name, shape in (("token_embd.weight", (48, 64)), ("output.weight", (48, 64)), ("output_norm.weight", (64,))):
        out.add(Tensor.from_array(name, rng.standard_normal(shape).astype(np.float32)))
    return out


def cast(source: Checkpoint, type: str) -> Checkpoint:
    tensors = {n: t.astype(by_name(type)) if len(t.shape) > 1 else t for n, t in source.tensors.items()}
    return Checkpoint(tensors, dict(source.metadata))


def test_a_model_is_itself() -> None:
    verdict = llmconv.verify(model(), model())
    assert verdict.same
    assert verdict.counts() == {"identical": 3}


@pytest.mark.parametrize(
    ("type", "status"), [("F64", "equal"), ("BF16", "rounded"), ("F16", "rounded"), ("Q8_0", "rounded")]
)
def test_rounding_is_recognised(type: str, status: str) -> None:
    for a, b in ((model(), cast(model(), type)), (cast(model(), type), model())):
        verdict = llmconv.verify(a, b)
        assert verdict.same
        assert verdict.counts() == {status: 2, "identical": 1}


@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
def test_rounding_that_was_widened_again_is_recognised(type: str) -> None:
    """The vectors of a 16-bit model are F32 in GGUF, and all numbers double in JSON."""
    a = model()
    if type == "F32":  # thirds, which float32 can't hold
        for name in ("token_embd.weight", "output.weight"):
            a.add(Tensor.from_array(name, a.tensors[name].rows(0, 48).astype(np.float64) / 3))
    b = cast(cast(a, type), "F32" if type != "F32" else "F64")
    for one, other, word in ((a, b, "to"), (b, a, "from")):
        verdict = llmconv.verify(one, other)
        assert verdict.counts() == {"rounded": 2, "identical": 1}
        assert verdict.tensors[0].detail == f"{word} {type}, widened"
        assert verdict.same


def test_one_changed_weight_is_found_and_measured() -> None:
    a, b = model(), model()
    values = b.tensors["output.weight"].numpy().copy()
    values[3, 5] += 0.5
    b.add(Tensor.from_array("output.weight", values))
    found = next(t for t in llmconv.verify(a, b).tensors if t.name == "output.weight")
    assert found.status == "different"
    assert found.max_error == pytest.approx(0.5)
    assert found.rms_error == pytest.approx(0.5 / math.sqrt(48 * 64), rel=1e-6)
    assert found.cosine == pytest.approx(1, abs=1e-3)
    assert llmconv.verify(a, b, tolerance=0.1).same


def test_missing_extra_and_reshaped_tensors() -> None:
    a, b = model(), model()
    b.tensors["more.weight"] = b.tensors.pop("output.weight").renamed("more.weight")
    b.add(Tensor.from_array("output_norm.weight", np.zeros(32, np.float32)))
    status = {t.name: t.status for t in llmconv.verify(a, b).tensors}
    assert status.pop("token_embd.weight") == "identical"
    assert status == {"output.weight": "missing", "more.weight": "extra", "output_norm.weight": "shape"}


def test_hyper_parameters_count_and_file_facts_do_not() -> None:
    a, b = model(), model(**{"llama.rope.freq_base": np.float32(5000), "general.file_type": np.uint32(7)})
    verdict = llmconv.verify(a, b)
    assert not verdict.same
    assert verdict.hparams == {"llama.rope.freq_base": (10000.0, 5000.0)}


def test_keys_left_out_count_as_what_the_architecture_makes_of_them() -> None:
    full = {
        "llama.embedding_length": np.uint32(64),
        "llama.block_count": np.uint32(0),
        "llama.feed_forward_length": np.uint32(128),
        "llama.attention.head_count": np.uint32(8),
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "llama.context_length": np.uint32(128),
    }
    a = model(**full)
    assert llmconv.verify(a, model(**full, **{"llama.attention.key_length": np.uint32(8)})).same
    del a.metadata["llama.rope.freq_base"]  # 10000 where nothing is said
    assert llmconv.verify(a, model(**full)).same
    other = model(**full, **{"llama.rope.freq_base": np.float32(500000)})
    assert llmconv.verify(a, other).hparams == {"llama.rope.freq_base": (10000.0, 500000.0)}


def test_the_same_model_in_every_format(root: Path, tmp_path: Path) -> None:
    """One model written in each format, F32: every pair verifies, in both directions, by values and by hash."""
    source = root / "examples" / "simple-36k.json"
    files = [tmp_path / name for name in ("m.gguf", "folder", "m.safetensors", "m.msgpack", "m.json")]
    for previous, path in itertools.pairwise([source, *files]):
        llmconv.convert_file(previous, path, outtype="f32")
    for a, b in itertools.permutations(files, 2):
        verdict = llmconv.verify(a, b)
        assert verdict.same, (a.name, b.name, verdict.hparams, verdict.vocab, verdict.counts())
    assert len({llmconv.content_hash(path).model for path in files}) == 1
    llmconv.quantize(files[0], tmp_path / "q.gguf", "Q8_0", force=True)
    verdict = llmconv.verify(source, tmp_path / "q.gguf")
    assert verdict.same  # every matrix is what rounding gives, byte for byte
    assert "rounded" in verdict.counts()
    broken = llmconv.open(tmp_path / "m.msgpack")
    name = "weights.embedding"
    broken.add(broken.tensors[name].map(lambda x: x + 1e-3, broken.tensors[name].type))
    assert not llmconv.verify(source, broken, tolerance=1e-6).same


def test_reading_reports_how_far_it_is() -> None:
    a, b = model(), cast(model(), "F16")
    for read, passes in (
        (lambda report: llmconv.verify(a, b, progress=report), 1),
        (lambda report: llmconv.content_hash(a, progress=report), 1),
        (lambda report: llmconv.statistics(a, progress=report), 1),
    ):
        seen: list[Step] = []
        read(seen.append)
        assert {step.total for step in seen} == {passes * a.nbytes}
        assert seen[-1].done == passes * a.nbytes
        assert {step.item for step in seen} == set(a.tensors)


def test_vocabularies_are_compared() -> None:
    words = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.token_type": np.array([1, 1], np.int32),
    }
    a = model(**words, **{"tokenizer.ggml.tokens": ["a", "b"]})
    b = model(**words, **{"tokenizer.ggml.tokens": ["a", "c"]})
    assert llmconv.verify(a, a).same
    verdict = llmconv.verify(a, b)
    assert any("id 1" in line for line in verdict.vocab)


def test_nan_equals_nan_only_here() -> None:
    x = Tensor.from_array("x", np.array([[1, np.nan]], np.float32))
    y = Tensor.from_array("x", np.array([[1, np.nan]], np.float64))
    assert compare_tensors(x, y).status == "equal"


def test_hash_ignores_container_order_and_width(tmp_path: Path) -> None:
    a = model()
    narrow = cast(a, "BF16")
    wide = cast(narrow, "F32")
    assert content_hash(narrow) == content_hash(wide) == content_hash(cast(wide, "F64"))
    assert content_hash(a).model != content_hash(narrow).model
    path = tmp_path / "m.gguf"
    gguf_file.save(Checkpoint(dict(reversed(a.tensors.items())), a.metadata), path)
    assert llmconv.content_hash(path).model == content_hash(a).model


def test_statistics_against_numpy() -> None:
    rng = np.random.default_rng(5)
    values = rng.standard_normal((3000, 128)) * 3 + 1
    values[0, :8] = [np.nan, np.inf, -np.inf, 0, 0, 0, 500, -500]
    found = tensor_stats(Tensor.from_array("x", values))
    good = values[np.isfinite(values)]
    assert found.nonfinite == 3
    assert found.minimum == -500
    assert found.maximum == 500
    assert found.mean == pytest.approx(good.mean(), rel=1e-12)
    assert found.std == pytest.approx(good.std(), rel=1e-12)
    assert found.zeros == 3 / values.size
    assert found.outliers == 2
    bins = histogram(Tensor.from_array("x", values), 10)
    assert bins.counts.sum() == good.size
    assert (bins.counts == np.histogram(good, 10)[0]).all()


def test_statistics_of_nothing() -> None:
    found = tensor_stats(Tensor.from_array("x", np.full((2, 2), np.nan, np.float32)))
    assert found.nonfinite == 4
    assert found.as_dict()["mean"] is None


def test_diff_names_keys_and_layouts() -> None:
    a, b = model(), cast(model(**{"general.name": "b"}), "F16")
    found = {(d.kind, d.name): (d.a, d.b) for d in llmconv.diff(a, b)}
    assert found["metadata", "general.name"] == (None, "str 'b'")
    assert found["tensor", "output.weight"] == ("F32 [48, 64]", "F16 [48, 64]")
    assert len(found) == 3
    assert llmconv.diff(a, model()) == []


def test_a_certificate_holds_until_its_source_changes(tmp_path: Path) -> None:
    source, path = tmp_path / "a.gguf", tmp_path / "b.gguf"
    gguf_file.save(model(), source)
    made = cast(llmconv.formats.open(source), "F16")
    certify(made, llmconv.formats.open(source), llmconv.formats.open(source), "weights to F16")
    gguf_file.save(made, path)
    assert llmconv.verify_provenance(path, source).ok
    gguf_file.save(model(seed=1), source, force=True)
    found = llmconv.verify_provenance(path, source)
    assert not found.ok
    assert [c.name for c in found.checks if not c.ok] == ["source", "values"]


def test_a_forged_certificate_is_seen() -> None:
    source = model()
    made = cast(source, "Q8_0")
    certify(made, source, source, "none")
    assert [c.name for c in llmconv.verify_provenance(made, source).checks if not c.ok] == ["values"]
    made = cast(source, "Q8_0")  # the rounding is stated, but one weight is not what it gives
    certify(made, source, source, "to Q8_0")
    assert llmconv.verify_provenance(made, source).ok
    name = next(iter(made.tensors))
    blocks = made.tensors[name].blocks(0, made.tensors[name].n_rows).copy()
    blocks[0, 5] ^= 1
    changed = dataclasses.replace(made.tensors[name], read=lambda start, stop: blocks[start:stop], extent=None)
    forged = dataclasses.replace(made, tensors=made.tensors | {name: changed})
    assert [c.name for c in llmconv.verify_provenance(forged, source).checks if not c.ok] == ["values"]
    edited = dataclasses.replace(made, metadata=made.metadata | {"llama.context_length": np.uint32(77)})
    assert [c.name for c in llmconv.verify_provenance(edited, source).checks if not c.ok] == ["model"]
    with pytest.raises(llmconv.BadFile, match="expected a certificate"):
        llmconv.verify_provenance(source, source)
    made.metadata["llmconv.provenance"] = "[" * 5000
    with pytest.raises(llmconv.BadFile, match="no certificate"):
        llmconv.verify_provenance(made, source)


def test_commands_and_exit_codes(tmp_path: Path) -> None:
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    gguf_file.save(model(), a)
    gguf_file.save(model(seed=1), b)
    same = CliRunner().invoke(cli, ["verify", str(a), str(a)])
    assert same.exit_code == 0
    assert "the same model" in same.stdout
    gguf_file.save(cast(model(), "Q8_0"), tmp_path / "q.gguf")
    rounded = CliRunner().invoke(cli, ["verify", str(a), str(tmp_path / "q.gguf")])
    assert "the same model, rounded to Q8_0: " in rounded.stdout
    other = CliRunner().invoke(cli, ["verify", str(a), str(b), "--json"])
    assert other.exit_code == 1
    assert json.loads(other.stdout)["result"]["counts"] == {"different": 3}
    assert CliRunner().invoke(cli, ["diff", str(a), str(b)]).exit_code == 0


def test_edit_in_place_and_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    gguf_file.save(model(**{"general.name": "before"}), path)
    data = {n: t.numpy() for n, t in gguf_file.open(path).tensors.items()}
    result = llmconv.edit(path, set={"general.name": "after!"}, rename={"llama.rope.freq_base": "llama.base"})
    assert result.in_place
    for _ in range(2):
        found = gguf_file.open(path)
        assert found.metadata["general.name"] == "after!"
        assert "llama.base" in found.metadata
        for name, tensor in found.tensors.items():
            assert np.array_equal(tensor.numpy(), data[name])
        result = llmconv.edit(path, set={"general.description": "d" * 300})
    assert not result.in_place or found.metadata.get("general.description")
    with pytest.raises(llmconv.BadFile, match="no metadata key 'nope'"):
        llmconv.edit(path, remove=["nope"])


def test_an_edit_cut_off_in_the_middle_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmconv.formats import edit

    path = tmp_path / "a.gguf"
    gguf_file.save(model(**{"general.name": "before"}), path)
    before = path.read_bytes()

    def half(target: Path, head: bytes) -> None:
        with target.open("r+b") as file:
            file.write(head[: len(head) // 2])
        raise KeyboardInterrupt

    whole = edit._overwrite
    monkeypatch.setattr(edit, "_overwrite", half)
    with pytest.raises(KeyboardInterrupt):
        llmconv.edit(path, set={"general.name": "after!"})
    assert path.read_bytes() != before
    monkeypatch.setattr(edit, "_overwrite", whole)
    assert edit.recover(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("u32:7", np.uint32(7)),
        ("bool:true", True),
        ("str:a:b", "a:b"),
        ("f32:0.5", np.float32(0.5)),
        ("i8:-3", np.int8(-3)),
    ],
)
def test_values_have_the_type_asked_for(text: str, value: Any) -> None:
    from llmconv.formats.edit import parse_value

    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)
    assert (parse_value("u32[]:1,2") == np.array([1, 2], np.uint32)).all()
    assert parse_value('str[]:["a","b"]') == ["a", "b"]
    for wrong in ("u32:-1", "u8:256", "x:1", "bool:2", "7", "u32:1.5"):
        with pytest.raises(llmconv.UsageError):
            parse_value(wrong)


def test_split_and_merge_give_the_model_back(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.gguf", tmp_path / "whole.gguf"
    gguf_file.save(model(), path)
    parts = llmconv.split(path, max_tensors=1)
    assert [p.name for p in parts] == [f"a-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    llmconv.merge(parts[1], whole)
    assert whole.read_bytes() == path.read_bytes()
    with pytest.raises(llmconv.UsageError, match="nothing to split"):
        llmconv.split(path, tmp_path / "x.gguf", max_size=10**9)


@pytest.mark.parametrize(
    ("text", "n"), [("4G", 4 * 10**9), ("1GiB", 2**30), ("1.5k", 1500), ("7", 7), ("2 MB", 2 * 10**6)]
)
def test_sizes(text: str, n: int) -> None:
    assert llmconv.parse_size(text) == n
    for wrong in ("", "G", "-1", "0", "1X"):
        with pytest.raises(llmconv.UsageError):
            llmconv.parse_size(wrong)


def test_inspect_shows_what_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    words = {"tokenizer.ggml.model": "words", "tokenizer.ggml.tokens": ["a", "b"]}
    gguf_file.save(model(**words), path)

    def shown(*options: str) -> Any:
        run = CliRunner().invoke(cli, ["inspect", str(path), *options, "--json"])
        assert run.exit_code == 0, run.output
        return json.loads(run.stdout)["result"]

    assert shown("--hash")["hash"]["model"] == llmconv.content_hash(path).model
    stats = {row["name"]: row for row in shown("--stats")["stats"]}
    assert stats["output.weight"]["maximum"] == pytest.approx(float(model().tensors["output.weight"].numpy().max()))
    assert sum(shown("--histogram", "output.weight")["histogram"]["counts"]) == 48 * 64
    assert [row["token"] for row in shown("--vocab")["vocab"]] == ["a", "b"]
    assert [t["name"] for t in shown("--tensors")["tensors"]] == list(model().tensors)
    assert shown("--metadata")["metadata"]["hyperparameters"]
    for option in ("--hash", "--stats", "--vocab", "--tensors", "--metadata"):
        assert CliRunner().invoke(cli, ["inspect", str(path), option]).exit_code == 0
    wrong = CliRunner().invoke(cli, ["inspect", str(path), "--histogram", "output.weigh"])
    assert "did you mean 'output.weight'" in str(wrong.exception)


@pytest.mark.parametrize(
    ("name", "outtype"), [("m.gguf", "f32"), ("m.gguf", "f64"), ("m.safetensors", "bf16"), ("folder", "f64")]
)
def test_conversions_record_where_they_come_from(root: Path, tmp_path: Path, name: str, outtype: str) -> None:
    source = root / "examples" / "simple-36k.json"
    made = tmp_path / name
    run = CliRunner().invoke(cli, ["convert", str(source), str(made), "--outtype", outtype, "--provenance"])
    assert run.exit_code == 0, run.output
    found = llmconv.verify_provenance(made, source)
    assert found.ok
    assert (found.recorded["rounding"] == "none") == (outtype == "f64")
    assert CliRunner().invoke(cli, ["verify", "--provenance", str(made), str(source)]).exit_code == 0
    again = tmp_path / "again.json"
    llmconv.convert_file(made, again)
    if outtype == "f64":
        assert again.read_bytes() == source.read_bytes()
    with pytest.raises(llmconv.UsageError, match="no place for a certificate"):
        llmconv.convert_file(made, tmp_path / "c.json", provenance=True)
