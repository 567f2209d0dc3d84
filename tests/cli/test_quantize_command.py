"""The `quantize` command: its options, its output, several types at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from click.testing import CliRunner
from commands import command
from folders import only
from synthetic import broken

from llmconv.cli import cli
from llmconv.convert.quantizing.quantize import quantize
from llmconv.errors import LlmconvError, OutputError, Unsupported, UsageError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("model") / "m-f16.gguf", n_layer=2, n_vocab=64)


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


def test_a_plan_leaves_nothing_out_unsaid() -> None:
    def said(*more: str) -> str:
        done = run("quantize", "simple-36k", "-t", "Q8_0", "--plan", 2, *more)
        return str(done.output) + str(done.exception or "")

    assert "the shared disk is not counted (--disk)" in said("-o", "out.gguf", "-f")
    assert "the shared disk is busy for " in said("--disk", "1K")
    assert "--plan knows nothing of --calibrate; leave it out" in said("--calibrate", "text.txt")
    assert "--plan is of one type" in said("-t", "Q4_0")


def test_the_commands_help_lists_every_type() -> None:
    from llmconv.quant.filetypes import FILE_TYPES

    text = run("quantize", "--help").output
    assert all(name in text for name in FILE_TYPES)


def test_a_bad_layer_list_is_a_usage_error(model: Path) -> None:
    done = command("quantize", model, "-t", "Q8_0", "--prune-layers", "a,b")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "'a,b' is not a list" in done.stderr
