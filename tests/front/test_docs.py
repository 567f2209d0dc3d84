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

import llmconv
from llmconv.cli import COMMANDS
from llmconv.convert import archs, layouts
from llmconv.convert.decoders.recurrent import ARCH

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda p: p.stem)
def test_tutorials_run(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the tutorials train and evaluate")
    """Once, and again in the same folder where that costs no training."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("*.gguf"))
    blocks = re.findall(r"```(console|python)\n(.*?)```", page.read_text(), re.DOTALL)
    for language, block in blocks if "llmconv train" in page.read_text() else [*blocks, *blocks]:
        if language == "python":
            runs = [[sys.executable, "-c", block]]
        else:
            lines = [shlex.split(line, comments=True) for line in block.strip().splitlines()]
            runs = [[sys.executable, "-m", "llmconv", *w[1:]] if w[0] == "llmconv" else w for w in lines]
        for run in runs:
            done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=280)
            assert done.returncode == 0, f"{shlex.join(run)}\n{done.stderr}"


@pytest.mark.parametrize("page", ["errors", "service"])
def test_the_pages_examples_run(page: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("*.gguf"))
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL):
        for _ in range(2):  # and again, in the same folder
            subprocess.run([sys.executable, "-W", "error", "-c", block], cwd=tmp_path, check=True, capture_output=True)


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
