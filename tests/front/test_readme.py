"""What the README shows is what happens."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run
from good_models import write_hf

import llmconv
from llmconv.convert import layouts


def blocks(root: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (root / "README.md").read_text("utf-8"), re.DOTALL)


@pytest.fixture
def folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which `examples/` is at hand, to write into freely."""
    (tmp_path / "examples").mkdir()
    for path in (root / "examples").iterdir():
        if path.is_file() and path.suffix != ".gguf":  # what the first command left
            (tmp_path / "examples" / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_examples_run(root: Path, folder: Path) -> None:
    examples = blocks(root, "python")
    assert len(examples) >= 3
    for code in [*examples, *reversed(examples)]:  # in any order, twice, in one folder
        subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, timeout=60)
    assert (folder / "again.json").read_bytes() == (folder / "examples/simple-36k.json").read_bytes()


def test_the_first_command_is_the_main_job(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llmconv.cli import main

    commands = blocks(root, "console")[0].strip().splitlines()
    assert len(commands) == 2 and "pytest" in commands[1]
    words = shlex.split(commands[0].split("&&")[-1])
    assert words[0].endswith("/llmconv")
    with pytest.raises(SystemExit) as stop:
        main(words[1:])
    assert not stop.value.code
    shown = blocks(root, "text")[0].strip()
    assert re.sub(r"[\d.]+ s$", "", capsys.readouterr().out.strip()) == re.sub(r"[\d.]+ s$", "", shown)
    assert llmconv.open("examples/simple-36k.gguf").n_elements == 36_496


def test_the_sample_knows_its_pairs(root: Path) -> None:
    pytest.importorskip("torch", reason="perplexity is measured with torch")
    examples = root / "examples"
    measured = llmconv.perplexity(examples / "simple-36k.json", examples / "pairs.json", device="cpu")
    assert measured.perplexity < 1.2


def test_the_commands_of_converting_are_to_be_typed(root: Path, folder: Path) -> None:
    """Where somebody has files of these names; and again, when they say that what is there may be replaced."""
    (folder / "model.json").write_bytes((folder / "examples" / "simple-36k.json").read_bytes())
    write_hf(folder / "TinyLlama")
    lines = [line for line in blocks(root, "console")[1].splitlines() if line.startswith("llmconv")]
    assert len(lines) >= 6
    for more in ([], ["-f"]):
        for line in lines:
            words = shlex.split(line, comments=True)[1:]
            done = run(*words, *(more if words[0] != "inspect" else []))
            assert done.code == 0, f"{line}\n{done.err}"
    assert (folder / "again.json").read_bytes() == (folder / "model.json").read_bytes()


@pytest.mark.slow
def test_the_script_trains_such_a_sample(root: Path, tmp_path: Path) -> None:
    """Not byte for byte: processors add in different orders.  The pairs are the same, and so is the model's kind."""
    pytest.importorskip("torch", reason="the sample is trained with torch")
    subprocess.run([sys.executable, str(root / "examples" / "make_sample.py"), str(tmp_path)], check=True, timeout=500)
    assert (tmp_path / "pairs.json").read_bytes() == (root / "examples" / "pairs.json").read_bytes()
    made, shipped = (llmconv.open(folder / "simple-36k.json") for folder in (tmp_path, root / "examples"))
    documents = [dict(model.metadata["document"]) for model in (made, shipped)]
    records = [document.pop("metadata") for document in documents]  # of the training: when, how long
    assert documents[0] == documents[1]
    assert list(records[0]) == list(records[1])
    assert {t.name: t.shape for t in made.tensors.values()} == {t.name: t.shape for t in shipped.tensors.values()}
    assert llmconv.perplexity(tmp_path / "simple-36k.json", tmp_path / "pairs.json", device="cpu").perplexity < 1.5


def test_every_layout_is_listed(root: Path) -> None:
    text = (root / "README.md").read_text("utf-8")
    assert all(f"`{name}`" in text for name in layouts.names())


def test_every_command_that_is_named_exists(root: Path) -> None:
    from llmconv.cli import COMMANDS

    table = (root / "README.md").read_text("utf-8").split("## What it does")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z]+(?:-[a-z]+)*)(?: SRC DST)?`", table))
    assert named and named <= set(COMMANDS), named - set(COMMANDS)


def test_links_lead_somewhere(root: Path) -> None:
    for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "docs/json.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", (root / name).read_text("utf-8")):
            assert ((root / name).parent / link).exists(), f"{name}: {link}"
