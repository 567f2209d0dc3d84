"""Whole runs of `perplexity` and `compare` against llama.cpp's own tool: read, tokenise, run, softmax, print.

    python tests/bench/bench_perplexity.py MODEL.gguf TEXT --llama-perplexity PATH [--against OTHER.gguf] [--chunks 8]

CPU seconds of whole processes, one thread each, in turn; tokens per CPU second, medians.  The tool is llama.cpp's
`llama-perplexity`, built from the sources that llama-cpp-python carries (cmake, target `llama-perplexity`).  With
`--against` the divergence of OTHER from MODEL: one run of ours, two of the tool's (the first writes all logits down).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_CONTEXT = 512


def cpu_seconds(*commands: Sequence[str]) -> float:
    """Of child processes, one after the other; their threads are one each."""
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for command in commands:
        done = subprocess.run(command, env=os.environ | alone, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr[-400:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--llama-perplexity", type=Path, required=True)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    folder = tempfile.TemporaryDirectory()
    logits, chunks = str(Path(folder.name) / "logits"), str(given.chunks)

    def ours(command: str, models: Sequence[Path], activations: str) -> list[list[str]]:
        files = [*map(str, models), str(given.text)]
        window = ["-c", str(_CONTEXT), "--chunks", chunks, "--device", "cpu", "--activations", activations]
        return [[sys.executable, "-m", "llmconv", command, *files, *window]]

    def theirs(model: Path, *more: str) -> list[str]:
        window = ["-c", str(_CONTEXT), "--chunks", chunks, "-t", "1", "-tb", "1"]
        return [str(given.llama_perplexity), "-m", str(model), "-f", str(given.text), *window, *more]

    sides = {
        ("perplexity", "llama-perplexity"): [theirs(given.model)],
        ("perplexity", "llmconv, int8"): ours("perplexity", [given.model], "int8"),
        ("perplexity", "llmconv, float"): ours("perplexity", [given.model], "float"),
    }
    if given.against:
        both = [given.model, given.against]
        sides[("compare", "llama-perplexity, twice")] = [
            theirs(given.model, "--kl-divergence-base", logits),
            theirs(given.against, "--kl-divergence-base", logits, "--kl-divergence"),
        ]
        sides[("compare", "llmconv, int8")] = ours("compare", both, "int8")
        sides[("compare", "llmconv, float")] = ours("compare", both, "float")
    seconds: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
    for _ in range(given.rounds):
        for side, commands in sides.items():
            seconds[side].append(cpu_seconds(*commands))
    tokens = given.chunks * _CONTEXT
    print(f"| {given.model.name}, {given.chunks} chunks of {_CONTEXT} | | tokens per CPU second | ratio |")
    print("|---|---|---|---|")
    reference: list[float] = []
    for (work, name), taken in seconds.items():
        if name.startswith("llama-"):
            reference = taken
        ratio = statistics.median(a / b for a, b in zip(reference, taken, strict=True))
        print(f"| {work} | {name} | {tokens / statistics.median(taken):.0f} | {ratio:.2f}x |")


if __name__ == "__main__":
    main()
