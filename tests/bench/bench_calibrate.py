"""What calibrating a model is worth: KL divergence to the float model, against an importance matrix from the same text.

    python tests/bench/bench_calibrate.py MODEL CALIBRATION-TEXT TEST-TEXT [--types Q4_0,Q4_K_M] [--chunks 32]

MODEL is any file that llmconv opens; what is quantized in it counts as the original, dequantized to F16.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Run:
    """One command's output, CPU seconds and peak memory in MB."""

    out: dict[str, Any]
    cpu: float
    peak: float


def llmconv(*words: Any) -> Run:
    """A command with --json, in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(writer, 1)
        os.execv(sys.executable, [sys.executable, "-m", "llmconv", *map(str, words), "--json"])
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"llmconv {' '.join(map(str, words))} failed: {text}")
    found = json.loads(text)
    return Run(found.get("result", found), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("text")
    options.add_argument("test")
    options.add_argument("--types", default="Q4_0")
    options.add_argument("--efforts", default="fast,standard")
    options.add_argument("--context", type=int, default=512)
    options.add_argument("--chunks", type=int, default=32)
    options.add_argument("--test-chunks", type=int, default=20)
    options.add_argument("--keep-embedding", action="store_true", help="token_embd stays Q8_0, plainly rounded")
    given = options.parse_args()
    window = ["-c", given.context, "--chunks", given.chunks]
    with tempfile.TemporaryDirectory() as folder:
        f16, matrix = Path(folder, "f16.gguf"), Path(folder, "imatrix.gguf")
        llmconv("quantize", given.model, "-o", f16, "-t", "F16", "--allow-requantize")
        collected = llmconv("imatrix", f16, given.text, "-o", matrix, *window)
        ways = {"importance matrix": (["--imatrix", matrix], collected)}
        for effort in given.efforts.split(","):
            kept = Path(folder, f"{effort}.calibration")
            ways[f"calibrated, {effort}"] = (
                ["--calibration", kept],
                llmconv("calibrate", f16, given.text, "-o", kept, "--effort", effort, *window),
            )
        print(f"{given.chunks * given.context:,} tokens; test: {given.test_chunks} chunks of {given.context}\n")
        print("| type | method | bytes | PPL ratio | mean KLD | of imatrix's | 99 % | same top | CPU s | peak MB |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for kind in given.types.split(","):
            base = 0.0
            for name, (how, before) in ways.items():
                out = Path(folder, "q.gguf")
                pure = ["--pure", "--token-embedding-type", "Q8_0"] if given.keep_embedding else []
                made = llmconv("quantize", f16, "-o", out, "-t", kind, "-f", *pure, *how)
                found = llmconv("compare", f16, out, given.test, "-c", given.context, "--chunks", given.test_chunks).out
                base = base or found["mean_kld"]
                print(
                    f"| {kind} | {name} | {out.stat().st_size:,} | {found['perplexity_ratio']:.4f} "
                    f"| {found['mean_kld']:.5f} ± {found['mean_kld_stderr']:.5f} | {found['mean_kld'] / base:.3f} "
                    f"| {found['kld_99']:.4f} | {100 * found['top1_agreement']:.2f} % "
                    f"| {before.cpu:.0f} + {made.cpu:.0f} | {max(before.peak, made.peak):,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
