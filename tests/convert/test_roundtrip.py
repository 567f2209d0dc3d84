"""The main job, on the real models: every direction, byte for byte; logits as the original program computes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from hypothesis.extra import numpy as npst
from simple_model import logits

import llmconv
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

MODELS = ["default-400.v1.json", "default-400.v2.msgpack", "multi-head-567.v2.json", "multi-head-567.v2.msgpack"]
OTHERS = ["forge-transformer_weights.json", "microgpt-weights.json", "transformer_desde_cero-gpt_weights.json"]
MIDDLES = ["model.gguf", "model.safetensors", "folder", "again.gguf"]


def back_and_forth(source: Path, tmp_path: Path, middle: str, outtype: str = "f64") -> bytes:
    there = llmconv.convert_file(source, tmp_path / middle, outtype=outtype)
    assert there.rounding == 0
    back = tmp_path / f"back{source.suffix}"
    llmconv.convert_file(tmp_path / middle, back)
    return back.read_bytes()


@pytest.mark.parametrize("middle", MIDDLES[:3])
@pytest.mark.parametrize("name", MODELS)
def test_real_models_come_back_byte_for_byte(shared: Path, tmp_path: Path, name: str, middle: str) -> None:
    source = shared / "simple-llm" / name
    assert back_and_forth(source, tmp_path, middle) == source.read_bytes()


@pytest.mark.parametrize("middle", MIDDLES[:3])
@pytest.mark.parametrize("name", OTHERS)
def test_other_programs_models_come_back_byte_for_byte(shared: Path, tmp_path: Path, name: str, middle: str) -> None:
    source = shared / "json" / name
    assert back_and_forth(source, tmp_path, middle) == source.read_bytes()


def test_a_longer_way_round(shared: Path, tmp_path: Path) -> None:
    source = shared / "simple-llm" / MODELS[0]
    steps = ["a.gguf", "b.safetensors", "c.gguf", "folder", "d.gguf", "e.json"]
    here = source
    for step in steps:
        llmconv.convert_file(here, tmp_path / step, outtype="f64" if here == source else "auto")
        here = tmp_path / step
    assert here.read_bytes() == source.read_bytes()


def test_messagepack_and_json_are_the_same_documents(shared: Path, tmp_path: Path) -> None:
    folder = shared / "simple-llm"
    llmconv.convert_file(folder / "multi-head-567.v2.json", tmp_path / "m.msgpack")
    assert (tmp_path / "m.msgpack").read_bytes() == (folder / "multi-head-567.v2.msgpack").read_bytes()
    llmconv.convert_file(folder / "multi-head-567.v2.msgpack", tmp_path / "m.json")
    assert (tmp_path / "m.json").read_bytes() == (folder / "multi-head-567.v2.json").read_bytes()


@pytest.mark.parametrize("target", ["", "m.gguf", "m.safetensors", "folder"])
@pytest.mark.parametrize("name", ["default-400.v1.json", "multi-head-567.v2.json"])
def test_logits_are_the_original_programs(shared: Path, tmp_path: Path, name: str, target: str) -> None:
    source = shared / "simple-llm" / name
    if target:
        llmconv.convert_file(source, tmp_path / target, outtype="f64")
        source = tmp_path / target
    reference = json.loads((shared / "simple-llm" / f"{name.split('.')[0]}.reference.json").read_text())
    checkpoint = llmconv.open(source)
    assert len(reference["cases"]) == 12
    for case in reference["cases"]:
        np.testing.assert_allclose(logits(checkpoint, case["tokens"]), case["logits"], rtol=0, atol=1e-9)


def test_single_precision_says_what_it_rounds(shared: Path, tmp_path: Path) -> None:
    source = shared / "simple-llm" / MODELS[0]
    result = llmconv.convert_file(source, tmp_path / "m.gguf")
    before, after = llmconv.open(source), llmconv.open(tmp_path / "m.gguf")
    assert result.types == {"F32": 21} and result.source_size == 1_167_516 and result.size < 160_000
    values = np.concatenate([t.numpy().reshape(-1) for t in before.tensors.values()])
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(values.astype(np.float32) - values) / np.abs(values)
    assert result.rounding == pytest.approx(np.nanmax(error), rel=1e-12)
    assert after.n_elements == 36_496


def test_other_readers_accept_our_files(shared: Path, tmp_path: Path) -> None:
    source = shared / "simple-llm" / "multi-head-567.v2.json"
    llmconv.convert_file(source, tmp_path / "m.gguf")
    llmconv.convert_file(source, tmp_path / "m.safetensors")
    ours = llmconv.open(tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.architecture"].contents() == "simple-llm"
    words = json.loads(source.read_text())["config"]["vocab"]
    assert reader.fields["tokenizer.ggml.tokens"].contents() == words
    assert [t.name for t in reader.tensors] == list(ours.tensors)
    for theirs in reader.tensors:
        assert np.array_equal(theirs.data, ours.tensors[theirs.name].numpy())
    dump = subprocess.run(
        [sys.executable, "-c", "from gguf.scripts.gguf_dump import main; main()", str(tmp_path / "m.gguf")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "simple-llm.attention.head_count = 4" in dump.stdout and "blk.1.layer_output_norm.bias" in dump.stdout
    with safetensors.safe_open(tmp_path / "m.safetensors", "np") as file:
        wq = file.get_tensor("model.layers.1.self_attn.q_proj.weight")
    assert np.array_equal(wq, ours.tensors["blk.1.attn_q.weight"].numpy())
    first_head = np.array(json.loads(source.read_text())["weights"]["transformers"][1]["multiHeadAttention"]["wq"][0])
    assert np.array_equal(wq[:16], first_head.T.astype(np.float32))  # rows are outputs, a head's together


# Random checkpoints through every pair of formats

FLOATS = {"<f8": st.floats(allow_nan=False, allow_infinity=False)} | {
    f"<f{w}": st.floats(allow_nan=False, allow_infinity=False, width=8 * w) for w in (4, 2)
}
INTS = ["<i1", "<i2", "<i4"]


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    names = draw(st.lists(st.text("abc._0[]é\"'", min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
    out = Checkpoint(
        dialect="plain", metadata=draw(st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=2))
    )
    for name in names:
        shape = draw(npst.array_shapes(max_dims=3, max_side=4))
        dtype = draw(st.sampled_from([*FLOATS, *INTS]))
        array = draw(npst.arrays(dtype, shape, elements=FLOATS.get(dtype)))
        out.add(Tensor.from_array(name, array))
    return out


ENDINGS = ("gguf", "safetensors", "json", "msgpack")


@settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(checkpoint=checkpoints(), way=st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=3))
def test_random_checkpoints_survive_any_way(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint, way: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("way")
    llmconv.save(checkpoint, folder / "0.safetensors")
    here = folder / "0.safetensors"
    for i, ending in enumerate([*way, "safetensors"], 1):
        llmconv.convert_file(here, folder / f"{i}.{ending}")
        here = folder / f"{i}.{ending}"
    back = llmconv.open(here)
    assert back.metadata == checkpoint.metadata
    assert list(back.tensors) == list(checkpoint.tensors) or set(back.tensors) == set(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        assert back.tensors[name].type is tensor.type and back.tensors[name].shape == tensor.shape
        assert np.array_equal(back.tensors[name].blocks(), tensor.blocks()), name
