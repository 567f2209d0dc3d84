"""Block types of other packages: found by entry point when somebody asks, and used like ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from contributing import example

TOY = (
    example("class TOY4(BlockType)")
    + """
class TOYLESS(TOY4):
    "The same, but no number: no GGUF holds it."
    name, ggml_id = "TOYLESS", None
"""
)
POINTS = """[llmconv.types]
TOY4 = toy:TOY4
TOYLESS = toy:TOYLESS
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Runs Python code beside an installed package with these entry points; what it prints."""

    def run(code: str, points: str = POINTS) -> str:
        site = tmp_path / "site"
        about = site / "toy-1.0.dist-info"
        about.mkdir(parents=True, exist_ok=True)
        (site / "toy.py").write_text(TOY)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(points)
        start = f"import sys; sys.path.insert(0, {str(site)!r})\n"
        words = [sys.executable, "-c", start + code]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


def test_a_type_is_imported_when_asked_for(run: Callable[..., str]) -> None:
    code = """
from llmconv.quant import by_ggml_id, by_name, names
by_name("Q4_K"), by_name("q8_0"), by_ggml_id(0)
print("toy" in sys.modules)
kind = by_name("toy4")
print(kind is by_ggml_id(1004), kind.can_encode(), "TOY4" in names(), "TOYLESS" in names())
import numpy as np
rows = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
near = kind.decode(kind.encode(rows.astype(np.float16)))
print(near.shape, bool(np.abs(near - rows).max() < np.abs(rows).max() / 13), kind.encode(rows).shape)
"""
    assert run(code).splitlines() == ["False", "True True True True", "(3, 64) True (3, 96)"]


def test_a_gguf_holds_a_type_that_has_a_number(run: Callable[..., str]) -> None:
    """Quantized, inspected, verified, and read by another process that was told of nothing."""
    code = """
import numpy as np, llmconv
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor
rng = np.random.default_rng(0)
made = Checkpoint(metadata={"general.architecture": "x"})
for name in ("blk.0.ffn_up.weight", "output.weight"):
    made.add(Tensor.from_array(name, rng.standard_normal((4, 64)).astype(np.float32)))
gguf_file.save(made, "m.gguf")
llmconv.quantize("m.gguf", "q.gguf", "TOY4", pure=True)
report = llmconv.verify("m.gguf", "q.gguf")
print(report.same, report.counts(), {t.type_b for t in report.tensors}, all(t.relative < 0.1 for t in report.tensors))
print("TOY4" in str(llmconv.inspect_file("q.gguf")))
try:
    llmconv.quantize("m.gguf", "w.gguf", "TOYLESS", pure=True)
except llmconv.UsageError as error:
    print(error)
"""
    verified, inspected, refused = run(code).splitlines()
    assert verified == "True {'rounded': 2} {'TOY4'} True" and inspected == "True"
    assert refused.startswith("unknown file type 'TOYLESS'; ")
    assert run("import llmconv; print(llmconv.open('q.gguf').tensors['output.weight'].numpy().shape)") == "(4, 64)\n"


def test_a_broken_package_stops_nobody(run: Callable[..., str]) -> None:
    code = """
from llmconv.quant import by_name, entry_points, names
by_name("Q4_K")
print(len(names()) > 30, by_name("TOY4").name)
try:
    by_name("Q4_Z")
except Exception as error:
    print(type(error).__name__)
print(entry_points.problems())
"""
    points = "[llmconv.types]\nbad = toy.not_there:X\nTOY4 = toy:TOY4\n"
    found = run(code, points)
    assert found.startswith("True TOY4\nUnknownName\n")
    assert found.count("toy.not_there:X (llmconv.types) is left out") == 1
