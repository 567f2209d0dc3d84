"""Models larger than memory, and several processes: what they cost, and what they bring.

    python tests/bench/bench_streamed.py [--layers 18] [--dim 1152] [--memory 350M] [--tokens 2048] [--rounds 2]
    python tests/bench/bench_streamed.py --only scaling
    python tests/bench/bench_streamed.py --only calibrate

The first table: `perplexity` of a bf16 Llama with random weights and a vocabulary of 32,000, with and without a limit
of memory, in processes of their own and in turn; wall and CPU seconds, the plan's figures, and the peak above that of a
tiny model.  The file is in the page cache.  The second: `quantize` and `perplexity` by one process and by two that
torchrun starts, a thread each; strong: the same work; weak: a half of it for the one.  Seconds are those of the work
itself, without starting Python and torch.  The third: `calibrate` and `quantize --calibration` so, with two layers of a
small model; the files must be equal.  Each less than four minutes on two processors with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

PROGRAM = """
import json, re, sys, time
import llmconv
path, text, memory, threads = sys.argv[1:]
import torch
torch.set_num_threads(int(threads))
model = llmconv.load(path, "cpu", memory=memory)
started, busy = time.perf_counter(), time.process_time()
found = llmconv.perplexity(model, text, context=512)
plan = None if model.wants is None else model.wants.plan
high = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
print(json.dumps({"value": found.perplexity, "wall": time.perf_counter() - started, "cpu": time.process_time() - busy,
                  "peak": high, "planned": plan and plan.peak, "read": plan and plan.read}))
"""
SHARED = """
import hashlib, json, os, sys, time
import torch
import llmconv
what, path, text, out, chunks = sys.argv[1:]
value = 0
torch.set_num_threads(1)
model = llmconv.load(path, "cpu") if what == "perplexity" else None
known = llmconv.Calibration.open(out + ".kept") if what == "rounding" else None
if what == "calibrate":
    import torch.fx.experimental.symbolic_shapes  # which a first backward pass imports
with llmconv.together() as team:
    if team is not None:
        team.agree()
    started, busy = time.perf_counter(), time.process_time()
    if what == "perplexity":
        value = llmconv.perplexity(model, text, context=512, chunks=int(chunks)).perplexity
    elif what == "calibrate":
        llmconv.calibrate(path, text, chunks=int(chunks), device="cpu").save(out + ".kept", force=True)
    else:
        llmconv.quantize(path, out, "Q4_K_M", force=True, jobs=1, calibration=known)
    wall, cpu = time.perf_counter() - started, time.process_time() - busy
    cpus = [cpu] if team is None else team.all(cpu)
if what in ("calibrate", "rounding"):
    value = hashlib.sha256(open(out + ".kept" * (what == "calibrate"), "rb").read()).hexdigest()
if os.environ.get("RANK", "0") == "0":
    print(json.dumps({"value": value, "wall": wall, "cpu": sum(cpus), "longest": max(cpus)}))
"""


def make(path: Path, layers: int, dim: int, vocabulary: int = 32000) -> Path:
    """A Llama with random bf16 weights, and words as its vocabulary."""
    from llmconv.convert.vocab import from_words
    from llmconv.formats.gguf import gguf_file
    from llmconv.formats.tensor import Tensor
    from llmconv.quant.plain import BF16
    from llmconv.runtime.training.config import TrainConfig
    from llmconv.runtime.training.initial import fresh_checkpoint

    vocab = from_words(["[PAD]", "[UNK]", "[EOS]", *(f"w{i}" for i in range(vocabulary - 3))])
    shape = {"dim": dim, "layers": layers, "heads": 6 * max(1, dim // 768), "ffn": 8 * dim // 3 // 256 * 256}
    config = TrainConfig(data="-", output="-", preset="llama-15m", context=512, **shape)  # type: ignore[arg-type]
    made = fresh_checkpoint(config, vocab)
    base = np.random.default_rng(0).standard_normal((1024, max(dim, shape["ffn"])), np.float32) * np.float32(0.02)

    def drawn(tensor: Tensor) -> Tensor:
        """The same shape with numbers that cost nothing to draw."""
        columns = tensor.shape[-1]
        read = lambda a, b: BF16.encode(base.take(range(a, b), 0, mode="wrap")[:, :columns])  # noqa: E731
        return Tensor(tensor.name, tensor.shape, BF16, read)

    narrow = {n: drawn(t) if len(t.shape) > 1 else t for n, t in made.tensors.items()}
    gguf_file.save(made.but(tensors=narrow), path)
    return path


def run(program: str, *arguments: object, processes: int = 1) -> dict[str, Any]:
    """What the program's first process prints."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "program.py"
        path.write_text(program)
        started = [] if processes == 1 else ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        made = subprocess.run(
            [sys.executable, *started, str(path), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    if made.returncode:
        raise SystemExit(made.stderr[-2000:])
    found: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return found


def streamed(large: Path, tiny: Path, text: Path, options: Any) -> None:
    base = run(PROGRAM, tiny, text, "1T", options.threads)["peak"]
    print("| model | memory | wall s | CPU s | peak above a tiny model's | planned | read |")
    print("|---|---|---|---|---|---|---|")
    values, ratios = set(), []
    for _ in range(options.rounds):
        pair = []
        for memory in ("1T", options.memory):
            found = run(PROGRAM, large, text, memory, options.threads)
            pair.append(found)
            values.add(found["value"])
            cells = [f"{large.stat().st_size / 1e9:.2f} GB", "all" if memory == "1T" else memory]
            cells += [f"{found['wall']:.1f}", f"{found['cpu']:.1f}", f"{(found['peak'] - base) / 1e6:,.0f} MB"]
            cells += [f"{found[k] / 1e6:,.0f} MB" if found[k] else "" for k in ("planned", "read")]
            print("| " + " | ".join(cells) + " |", flush=True)
        ratios.append([pair[1][kind] / pair[0][kind] for kind in ("wall", "cpu")])
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    same = "the same figure" if len(values) == 1 else f"OTHER FIGURES: {values}"
    print(f"\nlayer by layer: {wall:.2f}x the wall seconds, {cpu:.2f}x the CPU seconds (asked: 1.2x); {same}\n")


def scaling(folder: Path, half: Path, whole: Path, text: Path, options: Any) -> None:
    """A model of half the layers, or half of the chunks, is half of the work."""
    print("| command | scaling | 1 process, wall s | CPU s | 2 processes | CPU s of both | speedup or efficiency |")
    print("|---|---|---|---|---|---|---|")
    run(SHARED, "quantize", half, text, folder / "out.gguf", 0)  # kernels are compiled by whoever comes first
    chunks = options.tokens // 512 * 2  # for one process; two have a batch of four chunks each, or more
    work = {
        ("quantize to Q4_K_M", "strong"): (("quantize", whole, 1), ("quantize", whole, 1)),
        ("quantize to Q4_K_M", "weak"): (("quantize", half, 1), ("quantize", whole, 1)),
        ("perplexity", "strong"): (("perplexity", half, chunks), ("perplexity", half, chunks)),
        ("perplexity", "weak"): (("perplexity", half, chunks // 2), ("perplexity", half, chunks)),
    }
    for (name, kind), (one, two) in work.items():
        pairs = []
        for _ in range(options.rounds):
            pairs.append([
                run(SHARED, what, path, text, folder / "out.gguf", n, processes=count)
                for (what, path, n), count in ((one, 1), (two, 2))
            ])  # fmt: skip
        (a, b) = ([statistics.median(pair[i][key] for pair in pairs) for key in ("wall", "cpu")] for i in (0, 1))
        ratio = statistics.median(pair[0]["wall"] / pair[1]["wall"] for pair in pairs)
        said = f"{ratio:.2f}x faster" if kind == "strong" else f"{ratio:.0%}"
        if kind == "strong":
            assert all(pair[0]["value"] == pair[1]["value"] for pair in pairs)
        print(f"| {name} | {kind} | {a[0]:.1f} | {a[1]:.1f} | {b[0]:.1f} | {b[1]:.1f} | {said} |", flush=True)


def calibrating(folder: Path, text: Path, options: Any) -> None:
    """Statistics and rounding of two layers, 576 wide as SmolLM2's; a fourth of its vocabulary."""
    print("| command | 1 process, wall s | CPU s | 2 processes | CPU s of both | one's | faster | by CPU | files |")
    print("|---|---|---|---|---|---|---|---|---|")
    model, out = make(folder / "small.gguf", 2, 576, 12000), folder / "out.gguf"
    run(SHARED, "quantize", model, text, out, 0)
    for what, name in (("calibrate", "calibrate"), ("rounding", "quantize --calibration")):
        pairs = [[run(SHARED, what, model, text, out, 16, processes=n) for n in (1, 2)] for _ in range(options.rounds)]
        keys = ("wall", "cpu", "longest")
        (a, b) = ([statistics.median(pair[i][key] for pair in pairs) for key in keys] for i in (0, 1))
        wall, cpu = (statistics.median(one[k] / two[k] for one, two in pairs) for k in ("wall", "longest"))
        same = "equal" if len({part["value"] for pair in pairs for part in pair}) == 1 else "OTHERS"
        cells = [f"{a[0]:.1f}", f"{a[1]:.1f}", *(f"{x:.1f}" for x in b), f"{wall:.2f}x", f"{cpu:.2f}x", same]
        print("| " + " | ".join([name, *cells]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 18), ("dim", 1152), ("tokens", 2048), ("rounds", 2), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", default="350M")
    parser.add_argument("--only", default="streamed,scaling,calibrate")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        words = np.random.default_rng(1).integers(0, 31000, 2 * options.tokens + 8)
        text.write_text(" ".join(f"w{i}" for i in words))
        if "calibrate" in options.only:
            text.with_name("words.txt").write_text(" ".join(f"w{i % 11000}" for i in np.tile(words, 4)[:8300]))
            calibrating(folder, text.with_name("words.txt"), options)
        if not {"streamed", "scaling"} & {*options.only.split(",")}:
            return
        large = make(folder / "large.gguf", options.layers, options.dim)
        if "streamed" in options.only:
            short = folder / "short.txt"
            short.write_text(" ".join(f"w{i}" for i in words[: options.tokens + 8]))
            streamed(large, make(folder / "tiny.gguf", 1, 384), short, options)
        if "scaling" in options.only:
            half = make(folder / "half.gguf", options.layers // 2, options.dim)
            scaling(folder, half, large, text, options)


if __name__ == "__main__":
    main()
