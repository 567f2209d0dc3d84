"""What people type: other tools' names and orders, forgotten units, streams, options that would do nothing."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.shell_completion import ShellComplete
from simple_model import document

import llmconv
from llmconv import cli


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Any:
    """Run a command line where model.json and model.gguf are; (exit code, output, messages)."""
    monkeypatch.chdir(tmp_path)
    Path("model.json").write_text(json.dumps(document(heads=2)))
    llmconv.convert_file("model.json", "model.gguf")

    def run(line: str, given: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        capsysbinary.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(line.split())
        out, err = capsysbinary.readouterr()
        return int(stop.value.code or 0), out.decode(), err.decode()

    return run


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("convert model.json x.gguf --outtype fp16", "did you mean f16?"),
        ("convert model.json x.gguf --outtype q8_0", "llmconv quantize MODEL -t Q8_0"),
        ("quantize model.gguf -t int4", "did you mean Q4_K_M?"),
        ("quantize model.gguf x.gguf 4bit", "did you mean Q4_K_M?"),
        ("sweep model.gguf model.json --types Q8_0,q4km", "did you mean Q4_K_M"),
        ("convert model.json foo.ggfu", "did you mean .gguf? Or end a folder's name in /"),
        ("convert model.json foo.onnx", "names no format that can be written"),
        ("split model.gguf --max-size 100", "give a unit: 100M"),
        ("convert model.json f/ --max-shard-size 5", "give a unit: 5M"),
        ("inspect modl.gguf", "did you mean model.gguf?"),
        (
            "inspect meta-llama/Llama-3.2-1B",
            "no such file; for the Hub's repository write hf://meta-llama/Llama-3.2-1B",
        ),
        ("inspect -", "'-', a stream, is of no use here"),
        ("convert - < x", "one word"),
        ("-q inspect model.gguf", "'-q' is no option of llmconv itself; write it behind the command"),
        ("detokenize model.gguf 1 x", "'x' is not a valid integer"),
        ("convert model.gguf x.safetensors --vocab model.json", "--vocab has no effect on a GGUF"),
        ("convert model.gguf x.safetensors --config model.json", "--config has no effect on a GGUF"),
        ("convert model.gguf x.safetensors --layout plain", "--layout plain has no effect on a GGUF"),
        ("convert model.json x.gguf --pre gpt2", "--pre has no effect on json"),
        ("quantize model.gguf -t Q8_0 --vocab model.json", "--vocab has no effect on a GGUF"),
        ("quantize model.gguf -t Q8_0 --tensor-type nonesuch=Q4_0", "--tensor-type 'nonesuch=Q4_0' matches no tensor"),
        ("quantize model.gguf", "Missing option '-t'"),
        ("quantize model.gguf a b Q8_0", "one word too many"),
        ("edit model.gguf --set no.such.key=12", "has no key 'no.such.key' whose type could be kept"),
    ],
)
def test_mistakes_are_answered(run: Any, line: str, said: str) -> None:
    if line == "convert - < x":
        line, said = "convert -", "has no name to call the output by"
    before = {p.name for p in Path().iterdir()}
    code, out, err = run(line)
    assert code in (1, 2) and said in err and err.count("\n") == 1 and out == ""
    assert {p.name for p in Path().iterdir()} == before


def test_a_folder_that_is_gone(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, out, err = run("quantize ../model.gguf -t Q8_0")
    assert (code, out) == (
        1,
        "",
    ) and err == "llmconv: the folder that the command was started in is gone; go to another\n"


def test_help_and_version_as_other_tools_have_them(run: Any) -> None:
    assert run("help") == run("--help")
    assert run("help edit") == run("edit --help")
    assert run("version") == run("-V") == run("--version")


def test_quantize_takes_llama_quantize_s_order(run: Any) -> None:
    assert run("quantize model.gguf one.gguf q8_0 2")[0] == 0
    assert run("quantize model.gguf -t Q8_0 -o two.gguf")[0] == 0
    assert Path("one.gguf").read_bytes() == Path("two.gguf").read_bytes()
    assert run("quantize model.gguf Q8_0")[0] == 0 and Path("model-Q8_0.gguf").exists()


def test_a_run_that_quantized_nothing_says_so(run: Any) -> None:
    assert "nothing was quantized" in run("quantize model.gguf -t F32 -o same.gguf")[2]


def test_edit_keeps_a_key_s_type(run: Any) -> None:
    model = llmconv.open("model.gguf")
    model.metadata |= {"a.u8": np.uint8(3), "a.f": np.float32(1), "a.b": True, "a.s": "x", "a.l": np.int16([1, 2])}
    model.metadata["a.t"] = ["one", "two"]
    llmconv.save(model, "keys.gguf")
    line = 'edit keys.gguf --set a.u8=4 --set a.f=2.5 --set a.b=false --set a.s=http://y --set a.l=3,4 --set a.t=["z"]'
    assert run(line)[0] == 0
    found = llmconv.open("keys.gguf").metadata
    assert type(found["a.u8"]) is np.uint8 and found["a.u8"] == 4 and found["a.f"] == np.float32(2.5)
    assert found["a.b"] is False and found["a.s"] == "http://y" and list(found["a.t"]) == ["z"]
    assert found["a.l"].dtype == np.int16 and found["a.l"].tolist() == [3, 4]
    assert "expected 0 to 255" in run("edit keys.gguf --set a.u8=300")[2]


def test_edit_knows_the_keys_that_can_be_nothing_but_texts(run: Any) -> None:
    """Where the file has none whose type could be kept: those of the specification, and all of safetensors."""
    assert run('edit model.gguf --set general.license=mit --set general.tags=["tiny","json"]')[0] == 0
    found = llmconv.open("model.gguf").metadata
    assert found["general.license"] == "mit" and list(found["general.tags"]) == ["tiny", "json"]
    run("convert model.gguf lone.safetensors")
    assert run("edit lone.safetensors --set my.number=12")[0] == 0
    assert llmconv.open("lone.safetensors").metadata["my.number"] == "12"


def test_streams_where_they_make_sense(run: Any) -> None:
    text = Path("model.json").read_bytes()
    assert run("json-to-gguf - piped.gguf --outtype f64", text)[0] == 0
    code, out, err = run("gguf-to-json piped.gguf -")
    assert code == 0 and json.loads(out) == json.loads(text) and "23 tensors" in err
    assert run("tokenize model.gguf - --ids", b"the cat") == run("tokenize model.gguf --ids", b"the cat")
    assert run("tokenize model.gguf --json-texts -", b'["a"]')[0] == 0
    ids = run("tokenize model.gguf the --ids")[1]
    assert run("detokenize model.gguf -", ids.encode()) == run(f"detokenize model.gguf {ids}")
    assert "'one' is not a valid integer" in run("detokenize model.gguf -", b"1 one")[2]
    assert not Path("-").exists()


def test_folders_by_a_slash_a_version_or_being_there(run: Any) -> None:
    Path("there.ggfu").mkdir()
    for name in ("new.model/", "Tiny-1.1B", "tiny-v1.0", "plain", "there.ggfu"):
        assert run(f"convert model.json {name}")[0] == 0, name
        assert Path(name, "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("args", "begun", "offered"),
    [
        (["quantize", "model.gguf", "-t"], "q4_k", ["Q4_K_M", "Q4_K_S"]),
        (["sweep", "a", "b", "--types"], "Q8_0,iq4", ["Q8_0,IQ4_NL", "Q8_0,IQ4_XS"]),
        (["size"], "gpt2-s", ["gpt2-small"]),
        (["json-to-gguf", "model.json", "--layout"], "simple-llm-", ["simple-llm-multi-head"]),
        (["convert", "a", "--pre"], "llama-b", ["llama-bpe"]),
        (["edit", "model.gguf", "--set"], "general.arch", ["general.architecture="]),
        (["edit", "model.gguf", "--remove"], "general.arch", ["general.architecture"]),
    ],
)
def test_completion_knows_names(run: Any, args: list[str], begun: str, offered: list[str]) -> None:
    found = ShellComplete(cli.cli, {}, "llmconv", "_LLMCONV_COMPLETE").get_completions(args, begun)
    assert [item.value for item in found if item.type != "file"] == offered


def test_metavars_are_alike() -> None:
    """The same kind of value is called the same in every command's help."""
    alike = {
        "--jobs": "N",
        "--imatrix": "FILE",
        "--device": "NAME",
        "--context": "N",
        "--pre": "NAME",
        "--layout": "NAME",
    }
    for name in cli.COMMANDS:
        command = cli.cli.get_command(click.Context(cli.cli), name)
        assert command is not None
        for param in command.params:
            if isinstance(param, click.Option) and param.opts[-1] in alike:
                assert param.metavar == alike[param.opts[-1]], f"{name} {param.opts[-1]}"


def test_the_first_use_of_a_kernel_says_that_it_compiles(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once at a terminal, kept from pipes and --quiet; programs find it in the log."""
    from llmconv.quant.kernels.compiling import cache

    log = logging.getLogger("llmconv.kernels")
    said: list[str] = []
    monkeypatch.setattr(cli.click, "echo", lambda text, err=False: said.append(text))
    for terminal, words, times in ((True, [], 1), (False, [], 0), (True, ["-q"], 0)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda here=terminal: here, raising=False)
        monkeypatch.setattr(log, "handlers", [])
        said.clear()
        cli._say_what_compiles(words)
        log.info("compiling one")
        log.info("compiling two")
        assert len(said) == times and all("warmup" in text for text in said)
    with caplog.at_level(logging.INFO, "llmconv.kernels"), pytest.raises(ZeroDivisionError):
        entry = cache.Entry("q32", "encode_q8_0")
        monkeypatch.setattr(cache, "cache_folder", lambda: None)
        entry.compiled = lambda dtype: 1 / 0  # type: ignore[assignment, return-value]
        entry._new(np.dtype(np.float32))
    assert "compiling q32.encode_q8_0 for this processor, once" in caplog.text


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As on the first day, for these kernels; compiling one only says so.  Gives what was compiled."""
    from llmconv.quant.kernels.compiling import cache

    compiled: list[str] = []

    def compile(entry: Any, dtype: Any) -> Any:
        compiled.append(entry.name)
        return loaded[entry, dtype]

    loaded: dict[Any, Any] = {}

    def forget(*entries: Any) -> list[str]:
        for entry in entries:
            loaded.update({(entry, dtype): entry.load(dtype) for dtype in [np.dtype(np.float32), *entry._codes]})
            monkeypatch.setattr(entry, "_codes", {})
        monkeypatch.setattr(cache.Entry, "_kept", lambda self, dtype: None)
        monkeypatch.setattr(cache.Entry, "_new", compile)
        return compiled

    return forget


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def wide(run: Any) -> Path:
    """A model with rows of 256, and its Q4_K, which has been made once."""
    model = llmconv.Checkpoint(metadata={"general.architecture": "some"})
    for name in "ab":
        model.add(llmconv.Tensor.from_array(f"{name}.weight", np.ones((16, 256), np.float32)))
    llmconv.save(model, "wide.gguf")
    llmconv.quantize("wide.gguf", "once.gguf", "Q4_K")
    return Path("wide.gguf")


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("how", ["", " --json"])  # with a bar of its own, and without
def test_a_bar_counts_the_kernels_that_a_run_compiles(
    run: Any, wide: Path, nothing_compiled: Any, monkeypatch: pytest.MonkeyPatch, terminal: bool, how: str
) -> None:
    """Those of it, before it begins; a second run finds them and shows nothing."""
    from llmconv.quant.kernels import kquants, q32, search

    compiled = nothing_compiled(search.search_affine, kquants.pack_q45_k, q32.encode_q8_0)
    monkeypatch.setattr(logging.getLogger("llmconv.kernels"), "filters", [])
    for line, there in (("quantize wide.gguf new.gguf Q4_K", terminal), ("quantize wide.gguf again.gguf Q4_K", False)):
        shown = _Terminal() if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", shown)
        assert run(line + how)[0] == 0
        bar = shown.getvalue()
        assert compiled == ["search_affine", "pack_q45_k"]
        assert ("0/2" in bar) == ("1/2" in bar) == bar.startswith("compiling kernels") == ("compile:" in bar) == there
        assert bar.count("\n") == there
    assert Path("new.gguf").read_bytes() == Path("again.gguf").read_bytes() == Path("once.gguf").read_bytes()


def test_compiling_can_be_cancelled(wide: Path, nothing_compiled: Any) -> None:
    from llmconv.quant.kernels import search

    def stop(step: llmconv.Step) -> None:
        raise llmconv.Cancelled(f"{step.what} {step.item}, {step.done} of {step.total} {step.unit}")

    compiled = nothing_compiled(search.search_affine)
    with pytest.raises(llmconv.Cancelled, match="compile search_affine, 0 of "):
        llmconv.quantize(wide, "small.gguf", "Q4_K", progress=stop)
    assert compiled == [] and not Path("small.gguf").exists()
