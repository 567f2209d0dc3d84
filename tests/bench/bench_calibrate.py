"""What calibrating a model is worth: KL divergence to the float model, against an importance matrix from the same text.

    python tests/bench/bench_calibrate.py MODEL CALIBRATION-TEXT TEST-TEXT… [--types Q4_0,Q4_K_M] [--chunks 32,64]

MODEL is any file that llmconv opens; what is quantized in it counts as the original, dequantized to F16.  Rows that
`--kept FILE` has from an earlier run are not measured again.  A row's share is of the importance matrix's divergence
with the first number of chunks.  With `--llama FOLDER` of llama.cpp's programs also what llama-perplexity finds on the
same text (it rounds what goes into matrices to 8 bits), with `--stock` too the importance matrix's file is theirs:
llama-quantize's with a matrix of llama-imatrix.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KEYS = ("model", "text", "test", "context", "chunks", "test_chunks", "type", "method", "embedding")
"""What a row is of."""
MATRIX, STOCK, PLAIN = "importance matrix", "llama-quantize --imatrix", "no text"

_LABELS = {"mean": "Mean    KLD:", "99": "99.0%   KLD:", "ratio": "Mean PPL(Q)/PPL(base)"}
"""Of what llama-perplexity says, what a row takes."""
_TRIES = 5
"""It sometimes ends before its last lines are out."""


@dataclass
class Run:
    """One command's output, CPU seconds and peak memory in MB."""

    out: dict[str, Any]
    cpu: float
    peak: float


def started(command: list[str], errors_too: bool = False) -> tuple[str, float, float]:
    """A program's output, CPU seconds and peak memory in MB."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(writer, 1)
        if errors_too:
            os.dup2(writer, 2)
        os.execv(command[0], command)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as file:
        text = file.read()
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed: {text[-2000:]}")
    return text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def llmconv(*words: Any) -> Run:
    """A command with --json, in a process of its own."""
    text, cpu, peak = started([sys.executable, "-m", "llmconv", *map(str, words), "--json"])
    found = json.loads(text)
    return Run(found.get("result", found), cpu, peak)


class Llama:
    """llama.cpp's programs on one float model, one thread each."""

    def __init__(self, bin: Path, original: Path, folder: Path):
        self.bin, self.original, self.folder = bin, original, folder

    def run(self, name: str, *words: Any) -> Run:
        said, cpu, peak = started([str(self.bin / name), *map(str, words)], errors_too=True)
        return Run({"said": said}, cpu, peak)

    def divergence(self, path: Path, test: str, window: list[Any]) -> dict[str, float]:
        """What llama-perplexity --kl-divergence says of a file."""
        logits = self.folder / f"{Path(test).stem}-{window[1]}x{window[3]}.logits"
        if not logits.exists():
            made = ["--kl-divergence-base", logits.with_suffix(".part")]
            self.run("llama-perplexity", "-m", self.original, "-f", test, "-t", 1, *window, *made)
            logits.with_suffix(".part").rename(logits)
        words = ["-m", path, "-f", test, "-t", 1, *window, "--kl-divergence-base", logits, "--kl-divergence"]
        for _ in range(_TRIES):
            said = self.run("llama-perplexity", *words).out["said"]
            found = {name: re.search(re.escape(label) + r"[ :]*([-\d.]+)", said) for name, label in _LABELS.items()}
            numbers = {f"llama_{name}": float(number[1]) for name, number in found.items() if number}
            if len(numbers) == len(_LABELS):
                return numbers
        raise SystemExit(f"llama-perplexity did not say all of {', '.join(_LABELS.values())} of {path}: {said[-2000:]}")


class Bench:
    """One model and text, in a temporary folder; what several rows need is made once, when the first needs it."""

    def __init__(self, given: argparse.Namespace, folder: Path):
        self.given, self.folder = given, folder
        self.base = STOCK if given.stock else MATRIX
        self.f16 = functools.cache(self._f16)
        self.known = functools.cache(self._known)
        self.made = functools.cache(self._made)
        self.llama = functools.cache(lambda: Llama(given.llama, self.f16(), folder))

    def once(self, path: Path, make: Callable[[], Run]) -> Run:
        """What making a file has cost, now or in an earlier run that left it in the same --folder."""
        kept = path.with_name(path.name + ".cost")
        if not (path.exists() and kept.exists()):
            found = make()
            kept.write_text(json.dumps([found.cpu, found.peak]))
        return Run({}, *json.loads(kept.read_text()))

    def _f16(self) -> Path:
        path = self.folder / "f16.gguf"
        words = ("quantize", self.given.model, "-o", path, "-t", "F16", "--allow-requantize", "-f")
        self.once(path, lambda: llmconv(*words))
        return path

    def _known(self, method: str, chunks: int) -> tuple[list[Any], Run]:
        """The statistics that a method quantizes by, and what they cost."""
        window = ["-c", self.given.context, "--chunks", chunks]
        path = self.folder / f"{chunks}.{method.split(', ')[-1].replace(' ', '-')}"
        if method == PLAIN:
            return [], Run({}, 0, 0)
        if method == MATRIX:
            words = ("imatrix", self.f16(), self.given.text, "-o", path, "-f", *window)
            return ["--imatrix", path], self.once(path, lambda: llmconv(*words))
        if method == STOCK:
            path = self.folder / f"{chunks}.stock.gguf"
            words = ("-m", self.f16(), "-f", self.given.text, "-o", path, "-t", 1, *window)
            return ["--imatrix", path], self.once(path, lambda: self.llama().run("llama-imatrix", *words))
        how = ("-o", path, "-f", "--effort", method.split(", ")[1])
        words = ("calibrate", self.f16(), self.given.text, *how, *window)
        return ["--calibration", path], self.once(path, lambda: llmconv(*words))

    def _made(self, kind: str, method: str, chunks: int) -> tuple[Path, Run]:
        """The file; a mix is as large as the importance matrix's of that type."""
        out = self.folder / f"{kind}-{method}-{chunks}.gguf".replace(" ", "-")
        how = self.known(method.removesuffix(", mix"), chunks)[0]
        kept = ["--pure", "--token-embedding-type", "Q8_0"] if self.given.keep_embedding else []
        if method == STOCK:
            return out, self.once(out, lambda: self.llama().run("llama-quantize", *how, self.f16(), out, kind, 1))
        if method.endswith(", mix"):
            size = self.made(kind, self.base, int(self.given.chunks.split(",")[0]))[0].stat().st_size
            types = ["--types", self.given.mix_types] if self.given.mix_types else []
            words = ("quantize", self.f16(), "-o", out, "-f", "--target-size", size, *types, *how)
        else:
            words = ("quantize", self.f16(), "-o", out, "-f", "-t", kind, *kept, *how)
        return out, self.once(out, lambda: llmconv(*words))

    def row(self, key: Row, test: str) -> Row:
        """What `llmconv compare` finds, and what the file has cost."""
        kind, method, chunks = key["type"], key["method"], key["chunks"]
        path, made = self.made(kind, method, chunks)
        before = self.known(method.removesuffix(", mix"), chunks)[1]
        window = ["-c", self.given.context, "--chunks", self.given.test_chunks]
        found = llmconv("compare", self.f16(), path, test, *window).out
        names = ("perplexity_ratio", "mean_kld", "mean_kld_stderr", "kld_99", "top1_agreement")
        costs = {"statistics": before.cpu, "quantize": made.cpu, "peak": max(before.peak, made.peak)}
        return key | {"bytes": path.stat().st_size} | {name: found[name] for name in names} | costs

    def by_llama(self, key: Row, test: str) -> Row:
        """What llama-perplexity finds."""
        path = self.made(key["type"], key["method"], key["chunks"])[0]
        window = ["-c", self.given.context, "--chunks", self.given.llama_chunks or self.given.test_chunks]
        return self.llama().divergence(path, test, window)

    def rows(self) -> Iterator[tuple[Row, str]]:
        given = self.given
        calibrated = []
        for effort in given.efforts.split(","):
            calibrated += [f"calibrated, {effort}", *([f"calibrated, {effort}, mix"] if given.mix else [])]
        first = [self.base, *([PLAIN] * given.plain)]
        for i, chunks in enumerate(map(int, given.chunks.split(","))):
            for kind in given.types.split(","):
                for method in [*(first if i == 0 or given.every else []), *calibrated]:
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
    found.add_argument("--plain", action="store_true", help="a row without any text, too")
    found.add_argument("--every", action="store_true", help="an importance matrix of each number of chunks")
    found.add_argument("--llama", type=Path, help="the folder of llama-perplexity, llama-imatrix, llama-quantize")
    found.add_argument("--llama-chunks", type=int, help="of the test, for llama-perplexity [as --test-chunks]")
    found.add_argument("--stock", action="store_true", help="llama.cpp's own file as the other side; needs --llama")
    found.add_argument("--folder", type=Path, help="where files stay, for a later run of the same model and texts")
    found.add_argument("--kept", type=Path, help="rows of earlier runs, to which new ones are added")
    return found.parse_args()


def shown(row: Row, base: Row) -> str:
    tokens = row["chunks"] * row["context"]
    stock = ""
    if "llama_mean" in row:
        share = row["llama_mean"] / base["llama_mean"] if base.get("llama_mean") else float("nan")
        stock = f" {row['llama_mean']:.6f} | {share:.3f} | {row['llama_99']:.5f} | {row['llama_ratio']:.4f} |"
    return (
        f"| {row['test']} | {tokens:,} | {row['type']} | {row['method']} | {row['bytes']:,} "
        f"| {row['perplexity_ratio']:.4f} | {row['mean_kld']:.6f} ± {row['mean_kld_stderr']:.6f} "
        f"| {row['mean_kld'] / base['mean_kld']:.3f} | {row['kld_99']:.5f} | {100 * row['top1_agreement']:.2f} % "
        f"| {row['statistics']:.0f} + {row['quantize']:.0f} | {row['peak']:,.0f} |{stock}"
    )


def main() -> None:
    given = options()
    rows: dict[tuple[Any, ...], Row] = {}
    if given.kept and given.kept.exists():
        for line in given.kept.read_text().splitlines():
            row = json.loads(line)
            rows[tuple(row[k] for k in KEYS)] = row
    head = "| test | tokens | type | method | bytes | PPL ratio | mean KLD | share | 99 % | same top | CPU s | MB |"
    head += " llama's KLD | share | 99 % | PPL ratio |" if given.llama else ""
    print(head)
    print("|---" * (head.count("|") - 1) + "|")
    bases: dict[tuple[Any, ...], Row] = {}
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(given, given.folder or Path(temporary))
        bench.folder.mkdir(parents=True, exist_ok=True)
        for key, test in bench.rows():
            place = tuple(key.values())
            row = rows.get(place) or bench.row(key, test)
            if given.llama and "llama_mean" not in row:
                row = row | bench.by_llama(key, test)
            if given.kept and rows.get(place) != row:
                with given.kept.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            place = (key["chunks"] if given.every else 0, key["type"], key["test"])
            print(shown(row, bases.setdefault(place, row)), flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
