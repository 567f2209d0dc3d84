"""What the documentation shows works: the tutorials' commands and Python blocks, in order, in an empty folder."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run
from good_models import CONFIG, write_hf

import llmconv
from llmconv.cli import COMMANDS
from llmconv.convert import archs, layouts
from llmconv.convert.decoders.recurrent import ARCH

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]


@pytest.mark.slow
def test_tutorials_run_in_any_order_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one folder, from the first to the last and back; those that take longest once."""
    pytest.importorskip("torch", reason="the tutorials train and evaluate")
    with_examples(tmp_path, monkeypatch)
    pages = [page for page in TUTORIALS if page.stem != "live" or importlib.util.find_spec("transformers")]
    for page in [*pages, *(page for page in reversed(pages) if page.stem not in ("growing", "half-the-size"))]:
        follow(page)


def with_examples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go into a folder where `examples/` is at hand."""
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("*.gguf"))
    monkeypatch.chdir(folder)


def follow(page: Path, languages: str = "console|python") -> None:
    """Do what a page shows, from top to bottom, in this folder.  In this process: loading torch takes seconds."""
    names = {"__name__": "__main__"}
    for language, block in re.findall(rf"```({languages})\n(.*?)```", page.read_text(), re.DOTALL):
        if language == "python":
            exec(compile(block, f"{page.name}, a block", "exec"), names)
            continue
        for line in block.replace("\\\n", " ").strip().splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["llmconv"]:
                done = run(*words[1:])
                assert done.code == 0, f"{page.name}: {line}\n{done.err}"
            elif words:
                subprocess.run(words, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("page", ["errors", "service"])
def test_the_pages_examples_run(page: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("*.gguf"))
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL):
        for _ in range(2):  # and again, in the same folder
            subprocess.run([sys.executable, "-W", "error", "-c", block], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.slow
def test_publishing_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its block, and each command that its points show, with a file's name for FILE."""
    pytest.importorskip("torch", reason="a sweep measures with torch")
    monkeypatch.chdir(tmp_path)
    write_hf(tmp_path / "TinyLlama", CONFIG | {"max_position_embeddings": 512})
    Path("wiki.txt").write_text("the cat sat on the mat. " * 200)
    page = ROOT / "docs" / "publishing.md"
    follow(page, "sh")
    assert run("convert", "TinyLlama", "FILE.gguf", "--provenance").code == 0
    names = {"FILE": "FILE.gguf", "SOURCE": "TinyLlama", "40G": "40k"}  # of a smaller model
    shown = [line for line in re.findall(r"`(llmconv [^`]*)`", page.read_text()) if "hf://" not in line]
    assert len(shown) >= 5
    for line in shown:
        done = run(*(names.get(word, word) for word in shlex.split(line)[1:]))
        assert done.code == 0, f"{line}\n{done.err}"


def test_the_shell_s_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that its points show, and what it lets a shell evaluate."""
    with_examples(tmp_path, monkeypatch)
    assert run("json-to-gguf", "examples/simple-36k.json", "model.gguf").code == 0
    Path("in.gguf").write_bytes(Path("model.gguf").read_bytes())
    text = (ROOT / "docs" / "shell.md").read_text()
    for line in re.findall(r"`(llmconv [^`]*)`", text):
        words = shlex.split(line.partition("|")[0])[1:]
        done = run(*(word if word != "COMMAND" else "edit" for word in words))
        assert done.code == 0 and (done.out or done.err), f"{line}\n{done.err}"
    (shown,) = re.findall(r"_LLMCONV_COMPLETE=(\w+)", text)
    monkeypatch.setenv("_LLMCONV_COMPLETE", shown)
    assert "complete -o nosort -F _llmconv_completion llmconv" in run().out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_that_are_shown_exist() -> None:
    for page in PAGES:
        for block in re.findall(r"```(?:console|text|sh)\n(.*?)```", page.read_text(), re.DOTALL):
            for name in re.findall(r"^\s*(?:\S*/)?llmconv ([a-z][a-z-]*)", block, re.MULTILINE):
                assert name in COMMANDS, f"{page.name} shows llmconv {name}"


def test_the_api_reference_covers_every_public_name() -> None:
    """The page lists members a module at a time; each must be there, and each public name among them."""
    page = (ROOT / "docs" / "api.md").read_text()
    listed = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+\.[A-Z]\w*)$", page, re.MULTILINE)}
    for module, members in re.findall(r"^::: (\S+)\n    options: \{members: \[([^]]*)\]", page, re.MULTILINE):
        source = importlib.util.find_spec(module)
        assert source is not None and source.origin is not None
        for name in members.split(", "):
            assert re.search(rf"^(?:def|class) {name}\b", Path(source.origin).read_text(), re.MULTILINE), name
            listed.add(name)
    assert not {*llmconv.__all__} - {"__version__"} - listed


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"\S+\.md", nav)) == pages


def test_every_public_name_is_there() -> None:
    for name in llmconv.__all__:
        assert getattr(llmconv, name) is not None
        assert name == "__version__" or (getattr(llmconv, name).__doc__ or "").strip(), f"{name} has no docstring"


def test_every_limit_is_documented(root: Path) -> None:
    from llmconv.formats import limits

    words = (root / "docs" / "reliability.md").read_text()
    for name in (n for n in vars(limits) if n.isupper()):
        value = getattr(limits, name)
        assert f"`{name}`" in words and f"{value:,}" in words, name


def test_the_table_of_layouts_is_the_registry() -> None:
    text = (ROOT / "docs" / "json.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \|.*\| ([a-z ]+) \| ([a-z]+) \|$", text, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(dict.fromkeys(name for name, _, _ in rows))
    assert {name for name, _, _ in rows} == set(layouts.names())
    for name, runs, written in rows:
        if name not in (layouts.NAMED, layouts.PLAIN):
            table = layouts.by_name(name)
            assert runs == "yes" and (table.arch == ARCH or archs.by_gguf(table.arch) is not None)
            assert (written == "anew") == (table.build is not None), name
