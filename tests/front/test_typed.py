"""The front door is typed: what a type checker reads is what is loaded, and a wrong keyword is an error."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
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
    quantized = llmconv.quantize("a.gguf", type="Q4_K_M").output
    assert_type((quantized.size, quantized.bits_per_weight), tuple[int, float])
except llmconv.MissingTensor as error:
    assert_type(error.tensor, str)
words = llmconv.tokenizer("a.gguf")
assert_type(words.decode(words.encode("one")), str)
with_torch = llmconv.load("a.gguf")
assert_type(llmconv.perplexity(with_torch, llmconv.Text("one two")).perplexity, float)
assert_type(llmconv.compare("a.gguf", with_torch, "text.txt").mean_kld, float)
assert_type(llmconv.generate(with_torch, "one", max_tokens=3).text, str)


def progress(step: llmconv.Step) -> None:
    if step.done == step.total:
        raise llmconv.Cancelled("enough")


llmconv.verify("a.gguf", "b.gguf", progress=progress)
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
    # The project's own settings and cache: what a check of the whole has left there is not looked at again.
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary"]
    files = [str(tmp_path / "right.py"), *(str(tmp_path / f"wrong{n}.py") for n in range(len(lines)))]
    done = subprocess.run([sys.executable, "-m", "mypy", *options, *files], capture_output=True, text=True, cwd=ROOT)
    found = {Path(line.split(":")[0]).stem for line in done.stdout.splitlines() if str(tmp_path) in line}
    assert found == {f"wrong{n}" for n in range(len(lines))}, done.stdout


def _pyright() -> list[str]:
    found = next((name for name in ("basedpyright", "pyright") if importlib.util.find_spec(name)), None)
    if found is None:
        pytest.skip("pyright is not installed (pip install basedpyright, which brings its own node)")
    return [sys.executable, "-m", found]


def _diagnostics(folder: Path, files: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    """What pyright, strict, says of modules that import llmconv: file -> (severity, message) each."""
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "include": list(files)}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    for name, text in files.items():
        (folder / name).write_text(text)
    command = [*_pyright(), "--outputjson", "--pythonpath", sys.executable, "--project", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if not done.stdout.lstrip().startswith("{"):
        pytest.skip(f"pyright does not start here: {(done.stderr or done.stdout).strip()[-200:]}")
    said: dict[str, list[tuple[str, str]]] = {name: [] for name in files}
    for one in json.loads(done.stdout)["generalDiagnostics"]:
        said[Path(one["file"]).name].append((one["severity"], one["message"]))
    return said


@pytest.mark.slow
def test_pyright_sees_the_front_door(tmp_path: Path) -> None:
    """No error in a program that is right, one in each that is wrong, and a type for whatever is hovered over."""
    names = sorted(llmconv._PUBLIC)
    hovered = "import llmconv\n" + "".join(f"reveal_type(llmconv.{name})\n" for name in names)
    wrong = {f"wrong{n}.py": f"import llmconv\n{line}\n" for n, line in enumerate(WRONG.values())}
    said = _diagnostics(tmp_path, {"right.py": RIGHT, "hovered.py": hovered, **wrong})
    assert [one for one in said["right.py"] if one[0] == "error"] == []
    assert all(any(severity == "error" for severity, _ in said[name]) for name in wrong), said
    types = [message for severity, message in said["hovered.py"] if severity == "information"]
    assert len(types) == len(names) and not [m for m in types if re.search(r"\bUnknown\b", m) or 'is "Any"' in m], types
