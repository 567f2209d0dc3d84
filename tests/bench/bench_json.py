"""Opening a big JSON model against json.load + numpy, writing it, and how fast the front door opens.

    python tests/bench/bench_json.py [ROUNDS]

Makes a model of 10 million numbers in about 300 MB (JSON.stringify's layout, indent 2) in a temporary folder, reads it
ROUNDS times each way in turn, each time in a process of its own, and prints medians (of start-up times the best).
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import llmconv
from llmconv.formats.documents.document import Slot
from llmconv.formats.json_file import Style

NUMBERS = 10_000_000
OURS = """
from llmconv.formats import json_file
import numpy, orjson, simdjson
start = time.process_time()
c = json_file.open(Path(sys.argv[1]))
spent = time.process_time() - start
assert c.n_elements == int(sys.argv[2]), c
"""
THEIRS = """
import json, numpy
start = time.process_time()
w = json.load(open(sys.argv[1]))["weights"]
arrays = [numpy.array(w["embedding"]), numpy.array(w["output"]["weights"])]
spent = time.process_time() - start
assert sum(a.size for a in arrays) == int(sys.argv[2])
"""
FRAME = """
import resource, sys, time
from pathlib import Path
{body}
print(spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def make(path: Path) -> tuple[int, float]:
    """Write a document with two matrices of NUMBERS in all: how many they are, and the seconds of CPU it took."""
    rng = np.random.default_rng(0)
    columns = 128
    rows = NUMBERS // 2 // columns
    tensors = {
        "weights.embedding": llmconv.Tensor.from_array(
            "weights.embedding", rng.standard_normal((rows, columns)) * 0.05
        ),
        "weights.output.weights": llmconv.Tensor.from_array(
            "weights.output.weights", rng.standard_normal((columns, rows)) * 0.05
        ),
    }
    embedding, output = (Slot(name, tensor.shape) for name, tensor in tensors.items())
    config = {"vocabSize": rows, "embeddingDim": columns, "vocab": ["a", "b"]}
    document = {"version": "1.0", "config": config, "weights": {"embedding": embedding, "output": {"weights": output}}}
    checkpoint = llmconv.Checkpoint(tensors, {"document": document, "style": Style()}, "json")
    start = time.process_time()
    llmconv.save(checkpoint, path)
    return rows * columns * 2, time.process_time() - start


def measure(body: str, path: Path, count: int) -> tuple[float, float]:
    """(seconds of CPU, peak bytes) in a process of its own."""
    command = [sys.executable, "-c", FRAME.format(body=body), str(path), str(count)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(out[0]), float(out[1])


def startup(*args: str) -> tuple[float, float]:
    """Milliseconds from start to end of a process: on the clock, and of CPU."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *args], capture_output=True, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall * 1000, (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1000


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "big.json"
        count, writing = make(path)
        size = os.path.getsize(path)
        pairs = [(measure(OURS, path, count), measure(THEIRS, path, count)) for _ in range(rounds)]
        ours, theirs = (statistics.median(p[i][0] for p in pairs) for i in (0, 1))
        peak, their_peak = (max(p[i][1] for p in pairs) / size for i in (0, 1))
        print("| what | reference | llmconv | ratio | asked |\n|---|---|---|---|---|")
        print(
            f"| open {size / 1e6:.0f} MB of JSON, {count / 1e6:.0f} million numbers (CPU) "
            f"| json.load + numpy {theirs:.2f} s | {ours:.2f} s | {theirs / ours:.1f}x less | ≥ 5x |"
        )
        print(f"| peak memory of that | {their_peak:.2f}x the file | {peak:.2f}x the file | | < 2.2x |")
        print(f"| write it again (CPU) | | {writing:.2f} s | {size / 1e6 / writing:.0f} MB/s | |")
    finally:
        shutil.rmtree(folder)
    commands = {"empty": ["-c", "pass"], "import": ["-c", "import llmconv"], "help": ["-m", "llmconv", "--help"]}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(4 * rounds):
        for name, command in commands.items():
            times[name].append(startup(*command))
    wall, cpu = ({name: min(t[i] for t in times[name]) for name in times} for i in (0, 1))
    reference = f"python -c pass {wall['empty']:.0f} ms (CPU {cpu['empty']:.0f})"
    more, more_cpu = wall["import"] - wall["empty"], cpu["import"] - cpu["empty"]
    print(f"| import llmconv | {reference} | {more:.0f} ms (CPU {more_cpu:.0f}) on top | | < 50 ms |")
    print(f"| llmconv --help, all of it | {reference} | {wall['help']:.0f} ms (CPU {cpu['help']:.0f}) | | < 150 ms |")


if __name__ == "__main__":
    main()
