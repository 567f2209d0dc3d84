"""The house stays as it was drawn: no import circle, no crowded folder, no long list of parameters inside."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sources import nodes, tree

import llmconv

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("llmconv", "convert", "quant", "formats", "runtime")
MOST_FILES = 22
MOST_PARAMETERS = 8
FRONT_DOOR = (
    "llmconv/api.py",
    "llmconv/reports.py",
    "llmconv/tools.py",
    "llmconv/cli/",
    "quant/kernels/",
    "runtime/triton_kernels.py",
)
"""Where long lists are right: public keywords, the command's options, and code that numba or Triton compiles."""


def modules() -> dict[str, Path]:
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            inside = path.relative_to(ROOT)
            if room == "llmconv" and len(inside.parts) > 1 and inside.parts[1] in ROOMS:
                continue  # the links to the other rooms
            parts = inside.with_suffix("").parts
            name = ".".join(parts if room == "llmconv" else ("llmconv", *parts))
            found[name.removesuffix(".__init__")] = path
    return found


def running(module: ast.Module) -> Iterator[ast.AST]:
    """Every statement that runs: not what stands under `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = [module]
    while waiting:
        node = waiting.pop()
        for part in ("body", "handlers", "orelse", "finalbody", "cases"):
            for child in getattr(node, part, ()):
                if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                    yield child
                    waiting.append(child)


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the house that a file imports, anywhere in it."""
    out: set[str] = set()
    for node in running(tree(path)):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            out |= {name if name in known else node.module for name in full}
    return out & set(known) - {"llmconv"}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Tarjan's strongly connected components of more than one module."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            found.append(stack[at:])
            del stack[at:]

    for name in graph:
        if name not in index:
            visit(name)
    return [sorted(group) for group in found if len(group) > 1]


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_import_circles() -> None:
    sys.setrecursionlimit(10_000)
    known = modules()
    assert circles({name: imported(path, known) - {name} for name, path in known.items()}) == []


def test_no_crowded_folder() -> None:
    widths = Counter(path.parent.relative_to(ROOT) for path in modules().values())
    assert {str(folder): n for folder, n in widths.items() if n > MOST_FILES} == {}


def test_few_parameters_inside() -> None:
    public = {name.rpartition(".")[2] for name in llmconv.__all__}  # whose keywords are how people call them
    for path in modules().values():
        if str(path.relative_to(ROOT)).startswith(FRONT_DOOR):
            continue
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in public:
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len([n for n in names if n not in ("self", "cls")])
                assert count <= MOST_PARAMETERS, f"{path}:{node.lineno}: {node.name} has {count} parameters"
