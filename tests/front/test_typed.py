"""The front door is typed: what a type checker reads is what is loaded, and a wrong keyword is an error."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llmconv

ROOT = Path(__file__).resolve().parents[2]


def test_the_typed_names_are_the_loaded_ones() -> None:
    tree = ast.parse((ROOT / "llmconv" / "__init__.py").read_text())
    blocks = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    typed = {
        alias.asname or alias.name: node.module
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == llmconv._PUBLIC


RIGHT = """
import llmconv
from typing import assert_type

result = llmconv.convert_file("a.json", "a.gguf", outtype="f16", force=True)
assert_type(result, llmconv.Result)
assert_type(llmconv.open("a.gguf").tensors["x"], llmconv.Tensor)
try:
    llmconv.quantize("a.gguf", type="Q4_K_M")
except llmconv.MissingTensor as error:
    assert_type(error.tensor, str)
"""
WRONG = {
    "an unknown keyword": 'llmconv.quantize("a", outtyp="f16")',
    "an unknown name": "llmconv.convert_fil('a')",
    "a wrong type": "llmconv.open(3)",
    "a wrong result": 'x: int = llmconv.verify("a", "b")',
}


@pytest.mark.slow
def test_a_type_checker_sees_the_front_door(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    (tmp_path / "right.py").write_text(RIGHT)
    lines = [f"import llmconv\n{line}\n" for line in WRONG.values()]
    for number, text in enumerate(lines):
        (tmp_path / f"wrong{number}.py").write_text(text)
    options = ["--strict", "--ignore-missing-imports", "--cache-dir", str(tmp_path / "cache"), "--no-error-summary"]
    files = [str(tmp_path / "right.py"), *(str(tmp_path / f"wrong{n}.py") for n in range(len(lines)))]
    done = subprocess.run([sys.executable, "-m", "mypy", *options, *files], capture_output=True, text=True, cwd=ROOT)
    found = {Path(line.split(":")[0]).stem for line in done.stdout.splitlines() if str(tmp_path) in line}
    assert found == {f"wrong{n}" for n in range(len(lines))}, done.stdout
