"""Opening and copying: ours beside the gguf package and beside a plain file copy, interleaved in one run.

python tests/bench/bench_formats.py [--gb 2] [--folder DIR] [--rounds 3]

Needs about 2.2 times `--gb` of free disk in DIR (a temporary folder by default), all of it removed at the end.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name

VOCAB = Path(__file__).resolve().parents[3] / "shared" / "data" / "vocabs" / "ggml-vocab-llama-bpe.gguf"


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def made_vocabulary(folder: Path) -> Path:
    """A vocabulary of 128,256 tokens and 280,147 merges, for where the real one is absent."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 16, 128_256 + 280_147)
    letters = "".join(map(chr, rng.integers(97, 123, int(lengths.sum()))))
    ends = np.cumsum(lengths)
    words = [letters[end - n : end] for end, n in zip(ends, lengths, strict=True)]
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": words[:128_256],
        "tokenizer.ggml.token_type": np.ones(128_256, np.int32),
        "tokenizer.ggml.merges": words[128_256:],
    }
    path = folder / "vocabulary.gguf"
    gguf_file.save(Checkpoint(metadata=metadata), path)
    return path


def opening(folder: Path, rounds: int) -> list[str]:
    path = VOCAB if VOCAB.exists() else made_vocabulary(folder)
    theirs, ours, decoded = [], [], []
    for _ in range(rounds):
        theirs.append(seconds(lambda: gguf.GGUFReader(path)))
        ours.append(seconds(lambda: gguf_file.open(path)))
        decoded.append(seconds(lambda: list(gguf_file.open(path).metadata["tokenizer.ggml.tokens"])))
    a, b, c = (statistics.median(x) for x in (theirs, ours, decoded))
    return [
        f"| open {path.name} (128,256 tokens, 280,147 merges) | gguf.GGUFReader {a * 1e3:.0f} ms | {b * 1e3:.1f} ms "
        f"| {a / b:.0f}x faster | ≥ 20x |",
        f"| the same, and decode every token | gguf.GGUFReader {a * 1e3:.0f} ms | {c * 1e3:.1f} ms "
        f"| {a / c:.0f}x faster | |",
    ]


def made_model(path: Path, nbytes: int) -> None:
    """A float32 model of random bytes (finite ones: a cast must not warn)."""
    rows, columns = 4096, 4096
    count = max(1, nbytes // (rows * columns * 4))
    values = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
    checkpoint = Checkpoint(dialect="plain", metadata={"format": "pt"})
    for i in range(count):
        checkpoint.add(Tensor.from_array(f"blk.{i}.ffn_up.weight", values))
    safetensors_file.save(checkpoint, path)


def convert(source: Path, target: Path, outtype: str | None = None) -> None:
    checkpoint = safetensors_file.open(source)
    checkpoint.metadata = {"general.architecture": "llama"}
    if outtype:
        checkpoint.tensors = {name: t.astype(by_name(outtype)) for name, t in checkpoint.tensors.items()}
    gguf_file.save(checkpoint, target, force=True)


def copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def peak_mb(source: Path, target: Path, outtype: str | None) -> float:
    """Peak resident memory of a fresh process that converts; Linux's own count."""
    code = (
        "import sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); import bench_formats\n"
        f"bench_formats.convert(Path({str(source)!r}), Path({str(target)!r}), {outtype!r})\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )  # not ru_maxrss: a child begins with its parent's
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return int(out) / 1024


def copying(folder: Path, gigabytes: float, rounds: int) -> list[str]:
    source, target = folder / "model.safetensors", folder / "out.gguf"
    made_model(source, int(gigabytes * 1e9))
    size = source.stat().st_size / 1e9
    times: dict[str, list[float]] = {"copy": [], "same": [], "f16": []}
    actions: dict[str, Callable[[], None]] = {
        "copy": lambda: copy(source, target),
        "same": lambda: convert(source, target),
        "f16": lambda: convert(source, target, "F16"),
    }
    copy(source, target)  # everything in the page cache, for all alike
    for _ in range(rounds):
        for name, action in actions.items():
            target.unlink(missing_ok=True)
            os.sync()
            times[name].append(seconds(action))
    base = statistics.median(times["copy"])
    lines = []
    for name, outtype, what, asked in (
        ("same", None, "F32 safetensors to F32 GGUF", "≤ 1.5x"),
        ("f16", "F16", "F32 safetensors to F16 GGUF", ""),
    ):
        target.unlink(missing_ok=True)
        peak = peak_mb(source, target, outtype)
        took = statistics.median(times[name])
        ratio = statistics.median(b / a for a, b in zip(times["copy"], times[name], strict=True))
        lines.append(
            f"| {what}, {size:.2f} GB | shutil.copyfile + fsync {base:.2f} s | {took:.2f} s "
            f"| {ratio:.2f}x its time | {asked} |"
        )
        lines.append(f"| peak memory of that | | {peak:.0f} MB | | < 300 MB |")
    return lines


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-formats-") as name:
        folder = Path(name)
        lines = opening(folder, options.rounds) + copying(folder, options.gb, options.rounds)
    print(f"{processor()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, medians of {options.rounds}\n")
    print("| what | reference | llmconv | ratio | asked |\n|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
