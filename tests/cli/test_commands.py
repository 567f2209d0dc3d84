"""The command: a thin coat, whose help, summaries, refusals and exit codes are what users see."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from simple_model import document

import llmconv
from llmconv import cli
from llmconv.cli.options import human

DIRECTIONS = [
    name for name in cli.COMMANDS if "-to-" in name and name.split("-to-")[0] in ("json", "gguf", "safetensors")
]
ENDING = {"json": "json", "gguf": "gguf", "safetensors": "safetensors"}


class Result:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command line in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(list(args))
        out, err = capsys.readouterr()
        return Result(int(stop.value.code or 0), out, err)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(document(heads=2), separators=(",", ":")))
    return path


def test_there_are_six_directions() -> None:
    assert len(DIRECTIONS) == 6


@pytest.mark.parametrize("name", DIRECTIONS)
def test_every_direction(run: Any, model: Path, name: str) -> None:
    source, target = name.split("-to-")
    if source != "json":
        assert run("convert", "model.json", f"model.{source}", "--outtype", "f64").code == 0
    result = run(name, f"model.{ENDING[source]}", f"out.{ENDING[target]}")
    assert result.code == 0 and result.err == ""
    line = result.out.strip()
    assert "\n" not in line and line.startswith(f"out.{ENDING[target]}: 23 tensors, 287 weights, ") and " s" in line
    assert ("largest relative rounding" in line) == (source == "json")
    opened = llmconv.open(f"out.{ENDING[target]}")
    assert opened.format == target and len(opened.tensors) == 23


def test_writing_over_a_folder_removes_the_old_model_and_nothing_else(run: Any, model: Path) -> None:
    Path("folder").mkdir()
    old = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "vocab.txt", "generation_config.json")
    others = ("notes.txt", "other.safetensors", "adapter_model.safetensors", "data.json")
    for name in (*old, *others):
        (Path("folder") / name).write_text("x")
    assert run("convert", "model.json", "folder").code == 1
    assert run("convert", "model.json", "folder", "--force").code == 0
    there = {p.name for p in Path("folder").iterdir()}
    assert not there & set(old) and set(others) <= there and "model.safetensors" in there


def test_diff_keeps_to_a_terminal_s_lines(run: Any, model: Path) -> None:
    assert run("json-to-gguf", "model.json").code == 0
    assert run("edit", "model.gguf", "--set", f"a=str:{'x' * 5000}", "-o", "b.gguf").code == 0
    result = run("diff", "model.gguf", "b.gguf")
    assert result.code == 1 and max(map(len, result.out.splitlines())) < 300 and "characters)" in result.out
    assert "x" * 5000 in run("diff", "model.gguf", "b.gguf", "--json").out


def test_the_summary_names_what_was_written(run: Any, model: Path) -> None:
    assert run("convert", "model.json", "m.gguf", "--split-max-tensors", "12").out.startswith(
        "m-00001-of-00002.gguf and 1 more: 23 tensors, "
    )
    Path("one.json").write_text("[[0.5, 1], [2, 3]]")
    assert run("json-to-gguf", "one.json", "--layout", "plain").out.startswith("one.gguf: 1 tensor, 4 weights, ")


def test_default_names_are_beside_the_input(run: Any, model: Path) -> None:
    (model.parent / "sub").mkdir()
    model.rename("sub/m.v1.json")
    assert run("json-to-gguf", "sub/m.v1.json").code == 0
    assert run("gguf-to-safetensors", "sub/m.v1.gguf").code == 0
    assert run("convert", "sub/m.v1.safetensors", "sub/folder").code == 0
    assert run("safetensors-to-gguf", "sub/folder").code == 0
    assert {p.name for p in Path("sub").iterdir()} == {
        "m.v1.json", "m.v1.gguf", "m.v1.safetensors", "folder", "folder.gguf"
    }  # fmt: skip


def test_the_target_may_be_given_with_o(run: Any, model: Path) -> None:
    assert run("json-to-gguf", "model.json", "-o", "x.gguf").code == 0 and Path("x.gguf").exists()
    assert run("json-to-gguf", "model.json", "y.gguf", "-o", "x.gguf").code == 2


def test_a_name_says_the_format(run: Any, model: Path) -> None:
    assert run("json-to-gguf", "model.json", "-o", "x.gguf", "--outtype", "f64").code == 0
    assert run("gguf-to-json", "x.gguf", "x.msgpack").code == 0 and llmconv.open("x.msgpack").format == "msgpack"
    assert run("convert", "x.msgpack", "again.json").code == 0
    assert json.loads(Path("again.json").read_text()) == json.loads(model.read_text())
    for command, source, name, found in (
        ("json-to-gguf", "model.json", "y.json", "json, not for gguf"),
        ("json-to-gguf", "model.json", "y.safetensors", "safetensors, not for gguf"),
        ("json-to-safetensors", "model.json", "y.gguf", "gguf, not for safetensors"),
        ("gguf-to-json", "x.gguf", "y.gguf", "gguf, not for json"),
    ):
        result = run(command, source, name)
        assert result.code == 2 and f"{name}: is a name for {found}; " in result.err and not Path(name).exists()
    assert run("json-to-gguf", "model.json", "no-ending").code == 0 and llmconv.open("no-ending").format == "gguf"


def test_existing_files_need_force(run: Any, model: Path) -> None:
    Path("model.gguf").write_text("precious")
    result = run("json-to-gguf", "model.json")
    assert result.code == 1 and "exists already; use --force" in result.err and result.out == ""
    assert Path("model.gguf").read_text() == "precious"
    assert run("json-to-gguf", "model.json", "--force").code == 0
    result = run("convert", "model.json", "model.json", "--force")
    assert result.code == 1 and "is the input itself" in result.err and len(model.read_text()) > 1000


def test_a_folder_written_over_keeps_nothing_of_the_old_model(run: Any, model: Path) -> None:
    assert run("convert", "model.json", "folder").code == 0
    assert run("convert", "model.json", "folder").code == 1
    Path("folder/config.json").write_text("{}")
    Path("folder/model-00001-of-00002.safetensors").write_text("stale")
    Path("folder/notes.txt").write_text("mine")
    assert run("convert", "model.json", "folder", "--force").code == 0
    assert not Path("folder/model-00001-of-00002.safetensors").exists() and Path("folder/notes.txt").exists()
    assert run("convert", "folder", "back.json").code == 0


def test_the_input_is_never_written_over(run: Any, model: Path) -> None:
    assert run("convert", "model.json", "folder").code == 0
    before = {p.name: p.read_bytes() for p in Path("folder").iterdir()}
    for source in ("folder", "folder/model.safetensors"):
        result = run("convert", source, "folder", "--force")
        assert result.code == 1 and "holds the input itself" in result.err
    assert {p.name: p.read_bytes() for p in Path("folder").iterdir()} == before


def test_a_note_where_only_values_come_back(run: Any, model: Path) -> None:
    assert run("json-to-gguf", "model.json", "a.gguf", "--outtype", "f64").err == ""
    model.write_text(model.read_text().replace("[", "[ ", 1))
    result = run("json-to-gguf", "model.json", "b.gguf", "--outtype", "f64")
    assert result.code == 0 and "comes back with the same values, not the same bytes" in result.err
    assert run("json-to-gguf", "model.json", "c.gguf").err == ""


def test_quiet_verbose_and_json(run: Any, model: Path) -> None:
    quiet = run("json-to-gguf", "model.json", "a.gguf", "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    verbose = run("json-to-gguf", "model.json", "b.gguf", "-v")
    assert "types: 23 F32" in verbose.out
    machine = json.loads(run("json-to-gguf", "model.json", "c.gguf", "--json").out)["result"]
    assert machine["target"] == "c.gguf" and machine["n_elements"] == 287 and machine["types"] == {"F32": 23}
    assert 0 < machine["rounding"] < 2**-24 and machine["nbytes"] == Path("c.gguf").stat().st_size


def test_split_and_sharded(run: Any, model: Path) -> None:
    assert run("json-to-gguf", "model.json", "s.gguf", "--split-max-tensors", "10").code == 0
    assert len(list(Path().glob("s-0000?-of-00003.gguf"))) == 3
    assert run("convert", "s-00001-of-00003.gguf", "folder", "--max-shard-size", "400B").code == 0
    assert Path("folder/model.safetensors.index.json").exists()
    parts = sum(p.stat().st_size for p in Path().glob("s-0000?-of-00003.gguf"))
    assert llmconv.inspect_file("s-00002-of-00003.gguf")["size"] == parts
    assert llmconv.convert_file("s-00003-of-00003.gguf", "one.gguf").source_size == parts
    assert run("json-to-gguf", "model.json", "t.gguf", "--split-max-size", "big").code == 2


BAD: dict[str, tuple[str | bytes, str]] = {
    "ragged": ('{"weights":{"wq":[[1,2],[3]]}}', "weights.wq is ragged"),
    "no model": ("[[0.5, 1], [2, 3]]", "is no model of a known layout"),
    "NaN": ('{"w":[NaN]}', "w[0] is NaN"),
    "cut": ('{"w":[1,', "it is cut short"),
    "empty": ("", "is empty"),
    "binary": (b"\x00\x01\x02\x03", "is no model file of a known format"),
    "text": ("hello", "is no model file of a known format"),
    "zip": (b"PK\x05\x06" + bytes(18), "is a zip archive"),
    "comma": ('{"w":[[1,2],[3,4],]}', "a comma before the closing bracket"),
    "comma in an object": ('{"w":[[1,2],[3,4]],\n }', "a comma before the closing bracket"),
    "control characters": ('{"a\\u001b[31m":[[1],[2,3]]}', "\\x1b[31m is ragged"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_no_output(run: Any, tmp_path: Path, case: str) -> None:
    raw, message = BAD[case]
    Path("bad.json").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    for command in (["json-to-gguf", "bad.json"], ["convert", "bad.json", "folder"], ["inspect", "bad.json"]):
        result = run(*command)
        if command[0] == "inspect" and case == "no model":
            continue  # it shows what is there
        assert result.code == 1 and result.out == ""
        assert result.err.startswith("llmconv: bad.json: ") and result.err.count("\n") == 1 and message in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["bad.json"]


def test_usage_errors_exit_with_2(run: Any, model: Path) -> None:
    for args, message in (
        (["convert"], "Missing argument"),
        (["jsno-to-gguf"], "did you mean 'json-to-gguf'?"),
        (["json-to-gguf", "model.json", "--outtype", "f8"], "f8"),
        (["convert", "model.json", "x.bin"], "names no format"),
        (["json-to-gguf", "model.json", "--layout", "x"], "unknown layout 'x'"),
        (["gguf-to-json", "model.json"], "is json, not gguf; use llmconv convert"),
    ):
        result = run(*args)
        assert result.code == 2 and message in result.err, args
    assert run("convert", "none.json", "x.gguf").code == 1


def test_no_arguments_show_the_help(run: Any) -> None:
    result = run()
    assert result.code == 2 and result.out == ""
    assert result.err.startswith("Usage: llmconv [OPTIONS]") and "\n  json-to-gguf" in result.err


def test_usage_errors_say_where_to_look(run: Any) -> None:
    assert run("inspect").err == "llmconv: Missing argument 'FILE'; see llmconv inspect --help\n"
    assert run("--nope").err.endswith("; see llmconv --help\n")


def test_inspect(run: Any, model: Path) -> None:
    for name in ("model.json", "m.gguf", "m.safetensors", "folder"):
        if name != "model.json":
            run("convert", "model.json", name)
        text = run("inspect", name).out
        assert "simple-llm" in text and "287 in 23 tensors" in text and "7 tokens, words" in text and "4x4" in text
        report = json.loads(run("inspect", name, "--json").out)["result"]
        assert report["architecture"] == "simple-llm" and report["parameters"] == 287
        assert report["hyperparameters"]["embedding_length"] == 4 and report["vocabulary"]["size"] == 7
        assert len(report["tensors"]) == 23 and report["nbytes"] > 800
    Path("n.json").write_text("[[0.5, 1], [2, 3]]")
    result = run("inspect", "n.json")
    assert result.code == 0 and "note: " in result.out and "values" in result.out


def test_tokenize_and_detokenize(run: Any, model: Path) -> None:
    words = json.loads(model.read_text())["config"]["vocab"]
    assert run("json-to-gguf", "model.json").code == 0
    text = f"{words[4]} {words[5]} nonsense"
    for name in ("model.json", "model.gguf"):
        found = json.loads(run("tokenize", name, text, "--json").out)["result"]
        assert found["ids"][:2] == [4, 5] and len(found["pieces"]) == 3
        assert run("tokenize", name, text, "--ids").out.split() == [str(i) for i in found["ids"]]
        assert len(run("tokenize", name, text).out.splitlines()) == 3
        assert run("detokenize", name, "4", "5").out.split() == [words[4], words[5]]
    Path("texts.json").write_text(json.dumps([text, "", words[4]]))
    lists = run("tokenize", "model.gguf", "--json-texts", "texts.json")
    assert json.loads(lists.out) == [found["ids"], [], [4]] and lists.out.startswith("[[")
    Path("texts.json").write_text('{"a": 1}')
    for args, code, message in (
        (["--json-texts", "texts.json"], 1, "texts.json: expected a JSON list of strings"),
        (["--json-texts", "none.json"], 1, "none.json: no such file"),
        (["x", "--json-texts", "texts.json"], 2, "not both"),
    ):
        refused = run("tokenize", "model.gguf", *args)
        assert (refused.code, refused.out) == (code, "") and message in refused.err
    assert "is not in the vocabulary" in run("detokenize", "model.gguf", "99").err


def test_the_gguf_packages_dump_reads_our_files(run: Any, model: Path) -> None:
    assert run("json-to-gguf", "model.json").code == 0
    script = shutil.which("gguf-dump", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("gguf-dump is not beside this Python")
    done = subprocess.run([script, "--json", "model.gguf"], capture_output=True, text=True, check=True)
    dump = json.loads(done.stdout)
    assert dump["metadata"]["general.architecture"]["value"] == "simple-llm" and len(dump["tensors"]) == 23


def test_no_progress_bar_without_a_terminal(run: Any, model: Path) -> None:
    assert run("json-to-gguf", "model.json").err == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_progress_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from llmconv.cli.options import Bar
    from llmconv.progress import Step

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Bar(label="model") as progress:
        assert progress is not None
        progress(Step("convert", 10, 100, "bytes", "a"))
        assert capsys.readouterr().err == ""  # not before a second has passed
        time.sleep(1.1)
        progress(Step("convert", 75, 100, "bytes", "blk.0", {"loss": 2.5}))
        shown = capsys.readouterr().err
        assert "75%" in shown and "blk.0" in shown and "loss 2.5" in shown
    with Bar(quiet=True) as progress:
        assert progress is None


def test_a_weight_that_overflows_is_named_with_its_file(run: Any) -> None:
    Path("w.json").write_text("[[70000.0, 1], [2, 3]]")
    result = run("json-to-gguf", "w.json", "--layout", "plain", "--outtype", "f16")
    assert result.code == 1 and result.err.startswith("llmconv: w.json: tensor ") and "70000 at [0, 0]" in result.err
    assert not Path("w.gguf").exists()


SHORT = {"--output": "-o", "--force": "-f", "--jobs": "-j", "--quiet": "-q", "--verbose": "-v", "--help": "-h"}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_has_examples_and_options_have_the_same_names(name: str) -> None:
    if name == "train":
        pytest.importorskip("torch", reason="the options of training are the torch side's")
    text = CliRunner().invoke(cli.cli, [name, "--help"]).output
    assert re.search(rf"Examples?:\s+llmconv {name}\b", text)
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None and command.get_short_help_str(100) == cli.COMMANDS[name][1]
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help and (SHORT.get(param.opts[-1]) in (None, param.opts[0]))
    options = {o for p in command.params for o in p.opts}
    assert "--quiet" in options or name in ("tokenize", "detokenize", "inspect", "size", "presets", "embed")
    assert "--json" in options or name in ("detokenize", "warmup")


def test_version_and_completion() -> None:
    script = shutil.which("llmconv", path=str(Path(sys.executable).parent)) or "llmconv"
    version = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.strip().endswith(llmconv.__version__)
    env = {**os.environ, "_LLMCONV_COMPLETE": "bash_complete", "COMP_WORDS": "llmconv json-to", "COMP_CWORD": "1"}
    done = subprocess.run([script], capture_output=True, text=True, env=env, timeout=30)
    assert "json-to-gguf" in done.stdout and "json-to-safetensors" in done.stdout


def test_the_front_door_is_quick() -> None:
    """With a wide margin; tests/bench/bench_json.py measures."""

    def best(*args: str) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, *args], capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        return min(times)

    empty = best("-c", "pass")
    assert best("-c", "import llmconv") - empty < 0.3
    assert best("-c", "from llmconv.cli import main; main(['--help'])") - empty < 1.0


def test_sizes_for_people() -> None:
    assert [human(n) for n in (0, 999, 1000, 1_167_516, 10**9, 10**13)] == [
        "0 B", "999 B", "1.0 kB", "1.2 MB", "1.0 GB", "10.00 TB"
    ]  # fmt: skip
