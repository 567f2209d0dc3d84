"""What calibrating a model is worth: KL divergence to the float model, against an importance matrix from the same text.

    python tests/bench/bench_calibrate.py MODEL CALIBRATION-TEXT TEST-TEXT… [--types Q4_0,Q4_K_M] [--chunks 32,64]

MODEL is any file that llmconv opens; what is quantized in it counts as the original, dequantized to F16.  Rows that
`--kept FILE` has from an earlier run are not measured again.  A row's share is of the importance matrix's divergence.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KEYS = ("model", "text", "test", "context", "chunks", "test_chunks", "type", "method", "embedding")
"""What a row is of."""


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


class Bench:
    """One model and text, in a temporary folder; what several rows need is made once, when the first needs it."""

    def __init__(self, given: argparse.Namespace, folder: Path):
        self.given, self.folder = given, folder
        self.f16 = functools.cache(self._f16)
        self.known = functools.cache(self._known)
        self.made = functools.cache(self._made)

    def _f16(self) -> Path:
        path = self.folder / "f16.gguf"
        llmconv("quantize", self.given.model, "-o", path, "-t", "F16", "--allow-requantize")
        return path

    def _known(self, method: str, chunks: int) -> tuple[list[Any], Run]:
        """The statistics that a method quantizes by, and what they cost."""
        window = ["-c", self.given.context, "--chunks", chunks]
        if method == "importance matrix":
            path = self.folder / f"{chunks}.imatrix"
            return ["--imatrix", path], llmconv("imatrix", self.f16(), self.given.text, "-o", path, *window)
        effort = method.split(", ")[1]
        path = self.folder / f"{chunks}.{effort}"
        how = ("-o", path, "--effort", effort)
        return ["--calibration", path], llmconv("calibrate", self.f16(), self.given.text, *how, *window)

    def _made(self, kind: str, method: str, chunks: int) -> tuple[Path, Run]:
        """The file; a mix is as large as the importance matrix's of that type."""
        out = self.folder / f"{kind}-{method}-{chunks}.gguf".replace(" ", "-")
        how = self.known(method.removesuffix(", mix"), chunks)[0]
        kept = ["--pure", "--token-embedding-type", "Q8_0"] if self.given.keep_embedding else []
        if method.endswith(", mix"):
            size = self.made(kind, "importance matrix", chunks)[0].stat().st_size
            types = ["--types", self.given.mix_types] if self.given.mix_types else []
            return out, llmconv("quantize", self.f16(), "-o", out, "--target-size", size, *types, *how)
        return out, llmconv("quantize", self.f16(), "-o", out, "-t", kind, *kept, *how)

    def row(self, key: Row, test: str) -> Row:
        kind, method, chunks = key["type"], key["method"], key["chunks"]
        path, made = self.made(kind, method, chunks)
        before = self.known(method.removesuffix(", mix"), chunks)[1]
        window = ["-c", self.given.context, "--chunks", self.given.test_chunks]
        found = llmconv("compare", self.f16(), path, test, *window).out
        names = ("perplexity_ratio", "mean_kld", "mean_kld_stderr", "kld_99", "top1_agreement")
        costs = {"statistics": before.cpu, "quantize": made.cpu, "peak": max(before.peak, made.peak)}
        return key | {"bytes": path.stat().st_size} | {name: found[name] for name in names} | costs

    def rows(self) -> Iterator[tuple[Row, str]]:
        given = self.given
        methods = ["importance matrix"]
        for effort in given.efforts.split(","):
            methods += [f"calibrated, {effort}", *([f"calibrated, {effort}, mix"] if given.mix else [])]
        for chunks in map(int, given.chunks.split(",")):
            for kind in given.types.split(","):
                for method in methods:
                    for test in given.test:
                        values = (Path(given.model).name, Path(given.text).name, Path(test).name, given.context)
                        values = (*values, chunks, given.test_chunks, kind, method, bool(given.keep_embedding))
                        yield dict(zip(KEYS, values, strict=True)), test


def options() -> argparse.Namespace:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("model")
    found.add_argument("text")
    found.add_argument("test", nargs="+")
    found.add_argument("--types", default="Q4_0")
    found.add_argument("--efforts", default="fast,standard")
    found.add_argument("--context", type=int, default=512)
    found.add_argument("--chunks", default="32", help="of the calibration; several numbers: a row for each")
    found.add_argument("--test-chunks", type=int, default=20)
    found.add_argument("--keep-embedding", action="store_true", help="all matrices of the type, token_embd as Q8_0")
    found.add_argument("--mix", action="store_true", help="a mix of types in as many bytes, too")
    found.add_argument("--mix-types", default="", help="of the mix, as --types of llmconv quantize")
    found.add_argument("--kept", type=Path, help="rows of earlier runs, to which new ones are added")
    return found.parse_args()


def shown(row: Row, base: float) -> str:
    tokens = row["chunks"] * row["context"]
    return (
        f"| {row['test']} | {tokens:,} | {row['type']} | {row['method']} | {row['bytes']:,} "
        f"| {row['perplexity_ratio']:.4f} | {row['mean_kld']:.5f} ± {row['mean_kld_stderr']:.5f} "
        f"| {row['mean_kld'] / base:.3f} | {row['kld_99']:.4f} | {100 * row['top1_agreement']:.2f} % "
        f"| {row['statistics']:.0f} + {row['quantize']:.0f} | {row['peak']:,.0f} |"
    )


def main() -> None:
    given = options()
    rows: dict[tuple[Any, ...], Row] = {}
    if given.kept and given.kept.exists():
        for line in given.kept.read_text().splitlines():
            row = json.loads(line)
            rows[tuple(row[k] for k in KEYS)] = row
    print(
        "| test | tokens | type | method | bytes | PPL ratio | mean KLD | of imatrix's | 99 % | same top | CPU s | MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    bases: dict[tuple[Any, ...], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given, Path(folder))
        for key, test in bench.rows():
            place = tuple(key.values())
            if place not in rows:
                rows[place] = bench.row(key, test)
                if given.kept:
                    with given.kept.open("a") as file:
                        file.write(json.dumps(rows[place]) + "\n")
            row = rows[place]
            base = bases.setdefault((key["chunks"], key["type"], key["test"]), row["mean_kld"])
            print(shown(row, base), flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
