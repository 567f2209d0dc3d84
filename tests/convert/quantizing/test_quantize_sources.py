"""What `quantize` reads besides files, and the certificate that it can leave in what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import synthetic
from click.testing import CliRunner

import llmconv
from llmconv import formats
from llmconv.cli import cli
from llmconv.convert.quantizing.quantize import quantize
from llmconv.errors import UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("model") / "m-f16.gguf", n_layer=1, n_vocab=64)


def in_memory(path: Path) -> Checkpoint:
    """The same model with its weights in arrays."""
    opened = formats.open(path)
    tensors = {n: Tensor.from_array(n, np.array(t.numpy())) for n, t in opened.tensors.items()}
    return Checkpoint(tensors, dict(opened.metadata))


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_open_model_gives_what_its_file_gives(model: Path, tmp_path: Path, jobs: int) -> None:
    quantize(model, tmp_path / "file.gguf", "Q4_K_M")
    for name, source in (("open.gguf", formats.open(model)), ("memory.gguf", in_memory(model))):
        made = quantize(source, tmp_path / name, "Q4_K_M", jobs=jobs)
        assert made.source == source.source
        assert (tmp_path / name).read_bytes() == (tmp_path / "file.gguf").read_bytes()
        assert json.loads(json.dumps(made.as_dict()))["source"] == (str(model) if name == "open.gguf" else None)


def test_a_model_in_memory_has_no_name_and_no_file(model: Path, tmp_path: Path) -> None:
    source = in_memory(model)
    with pytest.raises(UsageError, match="name the output"):
        quantize(source, None, "Q8_0")
    with pytest.raises(UsageError, match="give the path"):
        quantize(source, tmp_path / "q.gguf", "Q8_0", resumable=True)
    assert [p.name for p in quantize(source, tmp_path, ["Q8_0", "Q4_0"]).outputs[1].paths] == ["model-Q4_0.gguf"]


def test_an_open_folder_becomes_int8(shared: Path, tmp_path: Path) -> None:
    folder = shared / "stories260K" / "hf"
    quantize(formats.open(folder), tmp_path / "a.safetensors", "INT8")
    quantize(folder, tmp_path / "b.safetensors", "INT8")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def without_vocabulary(path: Path, source: Path) -> Path:
    """The model with no tokens: the synthetic ones are of no kind that `verify` could compare."""
    opened = formats.open(source)
    metadata = {k: v for k, v in opened.metadata.items() if not k.startswith("tokenizer.")}
    gguf_file.save(Checkpoint(opened.tensors, metadata), path)
    return path


def test_a_certificate_names_the_source_and_the_type(model: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    model = without_vocabulary(tmp_path / "m.gguf", model)
    words = ["quantize", str(model), "-t", "Q8_0", "-t", "COPY", "-o", str(tmp_path), "--provenance", "-q"]
    assert run(cli, words).exit_code == 0
    roundings = {}
    for kind in ("Q8_0", "COPY"):
        path = tmp_path / f"m-{kind}.gguf"
        found = llmconv.verify_provenance(path, model)
        assert found.ok, found.checks
        roundings[kind] = found.recorded["rounding"]
        assert found.recorded["source"] == model.name
        plain = quantize(model, tmp_path / "plain.gguf", kind, force=True)
        made, without = formats.open(path), formats.open(plain.output.paths[0])
        assert set(made.metadata) - set(without.metadata) == {"llmconv.provenance"}
        assert all((t.blocks() == without.tensors[n].blocks()).all() for n, t in made.tensors.items())
    assert roundings == {"Q8_0": "to Q8_0", "COPY": "none"}
    assert run(cli, ["verify", "--provenance", str(tmp_path / "m-Q8_0.gguf"), str(model)]).exit_code == 0
    weights = synthetic.write(tmp_path / "seed1.gguf", n_layer=1, n_vocab=64, seed=1)
    other = without_vocabulary(tmp_path / "other.gguf", weights)
    found = llmconv.verify_provenance(tmp_path / "m-Q8_0.gguf", other)
    assert [c.name for c in found.checks if not c.ok] == ["source", "values"]


def test_a_certificate_counts_in_the_size_of_a_dry_run(model: Path, tmp_path: Path) -> None:
    plan = quantize(model, tmp_path / "q.gguf", "Q8_0", provenance=True, dry_run=True)
    made = quantize(model, tmp_path / "q.gguf", "Q8_0", provenance=True)
    assert plan.output.size == made.output.size == (tmp_path / "q.gguf").stat().st_size


def test_what_a_certificate_cannot_say(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prune_layers"):
        quantize(model, tmp_path / "q.gguf", "Q8_0", provenance=True, prune_layers=[0])
    with pytest.raises(UsageError, match="INT8"):
        quantize(model, tmp_path / "q", "INT8", provenance=True)
