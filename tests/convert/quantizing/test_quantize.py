"""The quantizing pipeline: whole files, one read for several outputs, rules, pruning, splits, memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import synthetic
from folders import digest, only
from synthetic import sparse

import llmconv
from llmconv import formats
from llmconv.convert.quantizing.quantize import quantize
from llmconv.errors import BadFile
from llmconv.formats.gguf import gguf_file
from llmconv.progress import Step


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("model") / "m-f16.gguf", n_layer=2, n_vocab=64)


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


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of its own memory as Linux tells it")
def test_memory_stays_bounded(tmp_path: Path) -> None:
    source, small = sparse(tmp_path / "big.gguf", 2.0), sparse(tmp_path / "small.gguf", 0.01)
    script = (
        "import sys; from llmconv.convert.quantizing.quantize import quantize; "
        "quantize(sys.argv[1], sys.argv[2], ['Q4_K_M', 'Q8_0'], jobs=4); "
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )  # not ru_maxrss: a child begins with its parent's, and the tests' own process has loaded torch
    words = [sys.executable, "-c", script, str(source), str(tmp_path / "{type}.gguf")]
    once = [*words[:3], str(small), str(tmp_path / "small-{type}.gguf")]
    subprocess.run(once, check=True, capture_output=True)  # compiling kernels takes memory of its own, the first time
    megabytes = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) // 1024
    assert megabytes < 400


def test_the_public_names() -> None:
    assert llmconv.quantize is quantize and callable(llmconv.warmup)
