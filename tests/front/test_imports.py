"""The rooms import only what the design allows, and the front door stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

from sources import nodes, tree
from synthetic import write

ROOT = Path(__file__).resolve().parents[2]
LOWER = {
    "quant": {"quant"},
    "formats": {"quant", "formats"},
    "convert": {"quant", "formats", "convert"},
    "runtime": {"quant", "formats", "convert", "runtime"},
}
FRONT = {"errors", "progress", "show", "__version__"}
"""Of the front door, what every room may import."""
HEAVY = {"torch", "transformers", "click", "matplotlib"}
TORCH = ROOT / "quant" / "gpu.py"
"""The one file below runtime/ that is for torch's users only."""
FILES = sorted(p for room in LOWER for p in (ROOT / room).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports (anywhere in it, or at its top level)."""
    found: set[str] = set()
    for node in tree(path).body if top_level_only else nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_rooms_import_only_lower_floors() -> None:
    for path in FILES:
        room = path.relative_to(ROOT).parts[0]
        for name in imports(path):
            parts = name.split(".")
            assert parts[0] not in LOWER, f"{path}: import {name} must be absolute (llmconv.{name})"
            if parts[0] == "llmconv" and parts[1] not in FRONT:
                assert parts[1] in LOWER[room], f"{path}: {room}/ must not import {name}"


def test_heavy_libraries_stay_in_their_room() -> None:
    for path in FILES:
        room, names = path.relative_to(ROOT).parts[0], {n.split(".")[0] for n in imports(path)}
        if room != "runtime" and path != TORCH:
            top = {n.split(".")[0] for n in imports(path, top_level_only=True)}
            assert not top & HEAVY, f"{path} loads {top & HEAVY} when imported"
        assert "numba" not in names or "kernels" in path.parts, f"{path}: numba belongs to quant/kernels"


def test_import_llmconv_is_light() -> None:
    code = "import sys, llmconv; print(sorted({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "numba", "click", "transformers", "numpy"} & set(ast.literal_eval(out))


def loaded(*words: str) -> set[str]:
    """The modules that a command has imported when it ends."""
    code = f"import sys; from llmconv.__main__ import main\nsys.argv = {['llmconv', *words]}\n"
    code += "try: main()\nexcept SystemExit as end: assert not end.code\nprint(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(ast.literal_eval(out.splitlines()[-1]))


def test_commands_import_what_they_need(tmp_path: Path) -> None:
    """Of a start, imports are nearly all: what a GGUF's quantizing loads is 0.1 s of CPU."""
    assert not {"numpy", "torch", "llmconv.formats"} & loaded("--help")
    source, target = tmp_path / "a.gguf", str(tmp_path / "b.gguf")
    write(source, n_vocab=32)
    loaded("quantize", str(source), "-o", target, "-t", "Q8_0")  # its kernels are compiled by now
    found = loaded("quantize", str(source), "-o", target, "-t", "Q8_0", "-f")
    assert not {"numba", "hashlib", "html", "simdjson"} & found
    rooms = {".".join(name.split(".")[:3]) for name in found if name.startswith("llmconv.")}
    assert not {"llmconv.convert.vocab", "llmconv.convert.cards", "llmconv.formats.documents"} & rooms
    found = loaded("inspect", str(source))
    assert not {"llmconv.api", "llmconv.convert.scaled.unpack", "hashlib", "torch"} & found


def test_every_package_is_installed() -> None:
    """setuptools is told each package by name: one that is missing there works here and not where it is installed."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {p.parent.relative_to(ROOT).parts for room in ("llmconv", *LOWER) for p in (ROOT / room).rglob("*.py")}
    named = {".".join(parts if parts[0] == "llmconv" else ("llmconv", *parts)) for parts in there}
    links = {f"llmconv.{room}" for room in LOWER}
    assert set(told["packages"]) == named | links
    assert told["package-dir"] == {f"llmconv.{room}": room for room in LOWER}
    assert all((ROOT / "llmconv" / room).resolve() == ROOT / room for room in LOWER)
