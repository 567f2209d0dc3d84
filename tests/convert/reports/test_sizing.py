"""Parameter counts as published, sizes as written."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import hf_models
import numpy as np
import pytest
import tiny_models
from click.testing import CliRunner

import llmconv
from llmconv import formats
from llmconv.cli import cli
from llmconv.convert import archs
from llmconv.convert.reports.sizing import QUANTIZED, Shape, shape_of, size_report, training_memory
from llmconv.convert.tables.presets import PRESETS, preset
from llmconv.convert.translate import translate
from llmconv.convert.writing.cast import Rounding, cast
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name

PUBLISHED = {
    "simple-36k": 36_496,
    "gpt2-small": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_published_counts(name: str, count: int) -> None:
    assert llmconv.size(name).parameters == count


@pytest.mark.parametrize(("name", "billions", "slack"), [("gpt3-small", 0.125, 0.01), ("gpt3-175b", 175, 0.01)])
def test_gpt3_as_its_paper_rounds(name: str, billions: float, slack: float) -> None:
    assert llmconv.size(name).parameters == pytest.approx(billions * 1e9, rel=slack)


def test_a_gpt2_block_counts_both_ffn_matrices() -> None:
    """The report this project started from forgot one: 4,718,592 instead of 7,077,888 and norms and biases."""
    block = llmconv.size("gpt2-small").per_layer
    assert block["total"] == 7_087_872
    assert block["ffn"] == 2 * 768 * 3072 + 768 + 3072
    dims, shape = 768, shape_of(preset("gpt2-small"))
    matrices = sum(int(np.prod(s)) for n, s in shape.tensors.items() if n.startswith("blk.0.") and len(s) == 2)
    assert matrices == 12 * dims * dims == 7_077_888


@pytest.mark.parametrize("name", PRESETS)
def test_parts_add_up(name: str) -> None:
    report = size_report(shape_of(preset(name)))
    assert sum(report.parts.values()) == report.parameters
    assert sum(n for part, n in report.per_layer.items() if part != "total") == report.per_layer["total"]
    assert report.weights["F32"] == 4 * report.parameters
    assert report.active == report.parameters


@pytest.fixture(scope="module")
def shapes(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A legacy JSON model with its words, and a GGUF whose rows are no whole blocks of the K types."""
    shape = shape_of(preset("simple-1m-causal"))
    checkpoint = Checkpoint(metadata=dict(shape.metadata))
    for tensor, dims in shape.tensors.items():
        checkpoint.add(Tensor.from_array(tensor, np.zeros(dims, np.float32)))
    path = tmp_path_factory.mktemp("shapes") / "causal.gguf"
    gguf_file.save(checkpoint, path)
    return {"json": root / "examples" / "simple-36k.json", "gguf": path}


@pytest.mark.parametrize("source", ["json", "gguf"])
def test_sizes_of_a_checkpoint_are_those_of_its_conversions(
    source: str, shapes: dict[str, Path], tmp_path: Path
) -> None:
    files = llmconv.size(shapes[source]).files
    if source == "gguf":
        assert files["gguf as stored"] == shapes[source].stat().st_size
    for kind in ("F32", "F16"):
        target = tmp_path / f"{kind}.gguf"
        llmconv.convert_file(shapes[source], target, outtype=kind.lower())
        assert files[f"gguf {kind}"] == target.stat().st_size, kind
        llmconv.convert_file(shapes[source], tmp_path / kind, outtype=kind.lower())
        written = (tmp_path / kind / "model.safetensors").stat().st_size
        assert files[f"safetensors {kind}"] == written
        assert llmconv.size(tmp_path / kind).files[f"safetensors {kind}"] == written
    for made in llmconv.quantize(shapes[source], tmp_path, QUANTIZED, dry_run=True).outputs:
        assert files[f"gguf {made.type}"] == made.size, made.type


def test_sizes_of_a_preset_are_those_of_its_float16_file(tmp_path: Path) -> None:
    shape = shape_of(preset("simple-1m-causal"))
    checkpoint = Checkpoint(metadata=dict(shape.metadata))
    for tensor, dims in shape.tensors.items():
        checkpoint.add(Tensor.from_array(tensor, np.zeros(dims, np.float32)))
    path = tmp_path / "m.gguf"
    gguf_file.save(cast(checkpoint, "f16", Rounding(), to="gguf"), path)
    files = size_report(shape).files
    assert files["gguf F16"] == path.stat().st_size
    for made in llmconv.quantize(path, tmp_path, QUANTIZED, dry_run=True).outputs:
        assert files[f"gguf {made.type}"] == made.size, made.type


def test_rows_that_are_no_whole_blocks_take_what_stands_in() -> None:
    """1600 columns are no multiple of 256: Q5_0 for Q4_K, Q8_0 for Q6_K, not sixteen bits."""
    weights = llmconv.size("gpt2-xl").weights
    assert weights["Q4_K"] < 1.03 * weights["Q5_0"]
    assert weights["Q6_K"] <= weights["Q8_0"]
    assert list(weights)[:3] == ["F64", "F32", "F16"]


@pytest.mark.parametrize("kind", ["F32", "F16"])
@pytest.mark.parametrize("name", ["gpt2-small", "llama-15m", "llama2-7b", "simple-1m"])
def test_safetensors_size_is_exact(name: str, kind: str, tmp_path: Path) -> None:
    """As a folder that is really written, under Hugging Face's names; the sizes are a tiny model's of each family."""
    base = preset(name)
    small = {"embedding_length": 32, "block_count": 2, "feed_forward_length": 48, "attention.head_count": 4}
    small |= {"attention.head_count_kv": 4, "rope.dimension_count": 8, "vocab_size": 50, "context_length": 64}
    keys = {**base.keys, **{k: v for k, v in small.items() if k in base.keys}}
    shape = shape_of(dataclasses.replace(base, keys=keys))
    checkpoint = Checkpoint(metadata=dict(shape.metadata), dialect="gguf")
    for tensor, dims in shape.tensors.items():
        checkpoint.add(Tensor.from_array(tensor, np.zeros(dims, np.float32)).astype(by_name(kind)))
    made = translate(checkpoint, "hf")
    folder = tmp_path / "folder"
    formats.by_name("safetensors").save(made, folder)
    written = (folder / "model.safetensors").stat().st_size
    assert size_report(shape).files[f"safetensors {kind}"] == written
    # Of the folder itself, whatever type it was stored in.
    assert llmconv.size(folder).files[f"safetensors {kind}"] == written


def test_json_is_estimated_as_measured(root: Path) -> None:
    path = root / "examples" / "simple-36k.json"
    assert llmconv.size(path).files["json"] == pytest.approx(path.stat().st_size, rel=0.02)


def test_experts_count_by_use() -> None:
    arch = "llama"
    keys = {"block_count": 1, "expert_count": 8, "expert_used_count": 2}
    metadata = {"general.architecture": arch} | {f"{arch}.{k}": v for k, v in keys.items()}
    shape = Shape("moe", arch, {"blk.0.ffn_up_exps.weight": (8, 16, 4), "output.weight": (10, 4)}, metadata, False, {})
    report = size_report(shape)
    assert report.parameters == 8 * 64 + 40
    assert report.active == 2 * 64 + 40


def test_sharding_divides_the_states() -> None:
    shape = shape_of(preset("llama2-7b"))
    one, eight = training_memory(shape, context=128), training_memory(shape, context=128, devices=8)
    assert one.weights == 4 * 6_738_415_616
    assert one.optimizer == 2 * one.weights
    assert eight.weights == one.weights // 8
    assert eight.activations == one.activations


def test_activations_are_as_wide_as_what_is_computed_in() -> None:
    """What torch keeps is measured in tests/runtime/training/test_training_memory.py."""
    shape = shape_of(preset("gpt2-small"))
    two, four = (training_memory(shape, batch=64, context=128, activation_bytes=n).activations for n in (2, 4))
    assert two < four < 2 * two  # the residual and the norms stay float32
    assert training_memory(shape, context=128, checkpointing=True).activations < two
    assert training_memory(shape, optimizer_bytes=4).optimizer == 4 * 124_439_808


def test_command_prints_json_and_tables() -> None:
    run = CliRunner().invoke(cli, ["size", "gpt2-small", "--json"])
    assert json.loads(run.stdout)["result"]["parameters"] == 124_439_808
    run = CliRunner().invoke(
        cli, ["size", "--vocab", "50257", "--dim", "768", "--layers", "12", "--heads", "12", "--ffn", "3072", "--json"]
    )
    assert json.loads(run.stdout)["result"]["parameters"] == 124_439_808
    run = CliRunner().invoke(cli, ["size", "simple-36k", "gpt2-small", "--markdown"])
    assert "| total | 36,496 | 124,439,808 |" in run.stdout


def test_config_json(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096,
        "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False,
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert llmconv.size(path).parameters == 6_738_415_616


@pytest.mark.filterwarnings("ignore")  # transformers' own deprecations
@pytest.mark.parametrize("name", tiny_models.variants_later(tiny_models.MODELS))
def test_a_config_json_counts_what_transformers_counts(name: str, tmp_path: Path) -> None:
    """Every family; without the poolers and heads of BERT, which GGUF has no place for (`Architecture.kept`)."""
    torch = pytest.importorskip("torch", reason="counts as transformers does")
    transformers = pytest.importorskip("transformers", reason="counts as transformers does")
    tiny = tiny_models.MODELS[name]
    config = transformers.AutoConfig.for_model(tiny.model_type, **tiny.config)
    auto = tiny_models.automatic(tiny)
    with torch.device("meta"):
        model = auto.from_config(config)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(config.to_json_string()) | {"architectures": [type(model).__name__]}))
    kept = () if tiny.task == "SequenceClassification" else archs.by_gguf(tiny.gguf).kept
    counted = {n: p.numel() for n, p in model.named_parameters() if not any(re.fullmatch(k, n) for k in kept)}
    if any("exp_probs_b" in row.gguf[0] and not row.optional for row in archs.by_gguf(tiny.gguf).rows):
        counted |= {n: b.numel() for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")}
    counted |= {n: b.numel() for n, b in model.named_buffers() if n.endswith(".tid2eid")}
    left = (".alpha_p", ".alpha_n")  # keys of a GGUF
    counted = {n: size for n, size in counted.items() if ".visual." not in n}
    if any("attn_sinks" in row.gguf[0] and row.optional for row in archs.by_gguf(tiny.gguf).rows):
        left += (".sinks", ".attention_sink_bias")  # which not all such models have
    counted = {n: size for n, size in counted.items() if not n.endswith(left)}
    report = llmconv.size(path)
    before_the_first = 2 * 64 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0  # positions
    vectors = getattr(config, "hidden_size_per_layer_input", 0) * config.num_hidden_layers if "gemma3n" in name else 0
    padding = (96 - getattr(config, "vocab_size_per_layer_input", 96)) * vectors  # rows of zeros of a GGUF
    assert report.parameters == sum(counted.values()) - before_the_first + padding
    assert shape_of(json.loads(path.read_text())).dim("n_vocab") == 96


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gpt2-smal"], "did you mean gpt2-small"),
        (["nowhere/model.gguf"], "no such file"),
        (["--vocab", "5"], "also needs dim"),
        (["--vocab", "5", "--dim", "10", "--layers", "1", "--heads", "3"], "width 10 is no multiple of 3 heads"),
        (["--arch", "lama", "--vocab", "5", "--dim", "8", "--layers", "1", "--heads", "2"], "did you mean llama"),
        (["--arch", "deepseek2", "--vocab", "5", "--dim", "8", "--layers", "1", "--heads", "2"], "need more sizes"),
        ([], "nothing to size"),
    ],
)
def test_bad_targets(arguments: list[str], words: str) -> None:
    run = CliRunner().invoke(cli, ["size", *arguments])
    assert isinstance(run.exception, llmconv.LlmconvError)
    assert words in str(run.exception)


def test_a_gguf_with_a_tensor_that_its_folder_says_in_config_json_has_sizes_too(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    folder = hf_models.model(hf_models.LLAMA | {"rope_scaling": scaling | {"original_max_position_embeddings": 16}})
    made = translate(folder, "gguf")
    assert "rope_freqs.weight" in made.tensors
    llmconv.save(made, tmp_path / "model.gguf")
    sizes = size_report(shape_of(formats.open(tmp_path / "model.gguf"))).files
    back = translate(formats.open(tmp_path / "model.gguf"), "hf")
    llmconv.save(cast(back, "f32", Rounding(), to="hf"), tmp_path / "again")
    assert sizes["safetensors F32"] == (tmp_path / "again" / "model.safetensors").stat().st_size
