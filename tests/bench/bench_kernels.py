"""Encoding and decoding of every block type, one core, against ggml's own library and `gguf.dequantize`.

python tests/bench/bench_kernels.py [TYPE ...]

Prints a markdown table: medians of CPU time of one thread, all contestants taking turns in one run.  The
reference's encoder needs llama-cpp-python (or LLMCONV_GGML, the path of a libggml-base); without it its columns
stay empty.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
import ggml

from llmconv.quant import BlockType, by_name, types

ROWS, COLUMNS, ROUNDS = 512, 4096, 9


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        flags = next(line for line in lines if line.startswith("flags")).split()
        return f"{name}, {'AVX-512' if 'avx512f' in flags else 'AVX2' if 'avx2' in flags else 'SSE'}"
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def medians(contestants: dict[str, tuple[int, Callable[[], object]]]) -> dict[str, float]:
    """Name -> weights a second; each contestant is (weights, call)."""
    for _, call in contestants.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, (_, call) in contestants.items():
            start = time.thread_time()
            call()
            seconds[name].append(time.thread_time() - start)
    return {name: contestants[name][0] / statistics.median(seconds[name]) for name in contestants}


def encode_cells(block: BlockType, rows: np.ndarray, importance: np.ndarray | None, peer: bool) -> list[str]:
    out = np.empty((ROWS, block.row_bytes(COLUMNS)), np.uint8)
    few = 32 if peer and (block.block_size == 256 or importance is not None) else ROWS
    contestants = {"ours": (rows.size, lambda: block.encode(rows, importance, out))}
    if peer:
        contestants["ggml"] = (few * COLUMNS, lambda: ggml.encode(block.ggml_id, rows[:few], importance))
    speed = medians(contestants)
    ours = f"{speed['ours'] / 1e6:.0f}"
    return [ours, f"{speed['ggml'] / 1e6:.1f}", f"{speed['ours'] / speed['ggml']:.1f}x"] if peer else [ours, "", ""]


def decode_cells(block: BlockType, blocks: np.ndarray) -> list[str]:
    import gguf

    out = np.empty((ROWS, COLUMNS), np.float32)
    contestants = {"ours": (out.size, lambda: block.decode(blocks, out))}
    try:
        kind = gguf.GGMLQuantizationType(block.ggml_id)
        gguf.dequantize(blocks[:1], kind)
        contestants["gguf"] = (64 * COLUMNS, lambda: gguf.dequantize(blocks[:64], kind))
    except (NotImplementedError, ValueError):  # a type that the package can't decode, or doesn't know yet
        pass
    speed = medians(contestants)
    ratio = f"{speed['ours'] / speed['gguf']:.1f}x" if "gguf" in speed else ""
    return [f"{speed['ours'] * 4 / 1e9:.1f}", ratio]


WARM = """
import time
start = time.process_time()
import numpy as np
from llmconv.quant import by_name
rows = np.zeros((16, 256), np.float32)
before = time.process_time()
by_name("Q4_K").encode(rows)
first = time.process_time()
by_name("Q6_K").encode(rows)
print(f"{first - before:.2f} s for the first type (most of it LLVM's import), "
      f"{time.process_time() - first:.2f} s for the second")
"""


def warm_start() -> str:
    """CPU time that cached kernels add to a fresh process."""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", WARM], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main(names: list[str]) -> None:
    blocks = [by_name(n) for n in names] or [t for t in types() if not t.is_plain() and t.ggml_id is not None]
    peer = ggml.find() is not None
    print(f"{cpu_name()}; {ROWS} x {COLUMNS} float32 weights.", "" if peer else f"({ggml.MISSING}.)")
    print()
    print("| type | encode, M weights/s | ggml | ratio | with importance | ggml | ratio | decode, GB/s | vs gguf |")
    print("|---|---|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((ROWS, COLUMNS)) * 0.02).astype(np.float32)
    importance = rng.random(COLUMNS).astype(np.float32)
    for block in blocks:
        cells = [block.name]
        plain = block.can_encode() and not block.needs_importance
        weighted = block.can_encode() and block.uses_importance
        cells += encode_cells(block, rows, None, peer) if plain else [""] * 3
        cells += encode_cells(block, rows, importance, peer) if weighted else [""] * 3
        if block.can_encode():
            data = block.encode(rows, importance)
        else:
            data = rng.integers(0, 255, (ROWS, block.row_bytes(COLUMNS)), dtype=np.uint8)
        with np.errstate(all="ignore"):
            cells += decode_cells(block, data)
        print("|", " | ".join(cells), "|", flush=True)
    print()
    print(f"Warm start, kernels cached: {warm_start()}.")


if __name__ == "__main__":
    main(sys.argv[1:])
