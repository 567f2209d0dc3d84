"""Repacking beside a flushed copy of the larger side, and packed sources of a quantization beside the same in F16.

python tests/bench/bench_repack.py [--layers 3] [--rounds 3] [--folder DIR] [--jobs 2] [--repacking]

Prints the tables of README.md, in under four minutes on two processors with nothing else to do; with `--repacking` the
first alone, for which `--layers 12` (2.4 billion weights, 8 GB of disk) takes two.  Seconds and processor
seconds are the least of interleaved rounds, each a process of its own; those of a process that only imports llmconv
stand above: with `--layers 1` they are half of all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmconv import formats
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

DIM, FFN, GROUP = 4096, 11008, 128
WAYS = (
    ("gptq", "a.gguf", "REPACK"),
    ("awq", "b.gguf", "REPACK"),
    ("packed", "c.gguf", "REPACK"),
    ("gptq", "d", "W4A16"),
    ("a.gguf", "e", "W4A16"),
    ("a.gguf", "f", "MLX"),
)
QUANTIZED = {"Q8_0": 0, "Q4_K_M": 2}
"""Types, and of how many rounds they are left out, as they take so long."""
_RUN = """
import sys, time
start = time.perf_counter()
import llmconv
source, target, kind, jobs = sys.argv[1:]
result = llmconv.quantize(source, target, kind, jobs=int(jobs), force=True)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # rusage counts the parent's too
print(time.perf_counter() - start, int(peak.split()[1]) >> 10, result.output.proof)
"""
_VERIFY = """
import sys, time
start = time.perf_counter()
import llmconv
assert llmconv.verify(*sys.argv[1:]).same
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.perf_counter() - start, int(peak.split()[1]) >> 10)
"""
_START = """
import time
start = time.perf_counter()
import llmconv.convert.quantizing.to_repacked, llmconv.convert.quantizing.repack
import llmconv.convert.archs
print(time.perf_counter() - start, 0)
"""
_COPY = """
import os, shutil, sys, time
start = time.perf_counter()
shutil.copyfile(sys.argv[1], sys.argv[2])
with open(sys.argv[2], "rb") as file:
    os.fsync(file.fileno())
print(time.perf_counter() - start, 0)
"""


def repeated(few: Any, *shape: int) -> Any:
    """Random numbers over and over, of which none are drawn that nothing depends on."""
    return np.resize(few, shape)


def words(rng: Any, *shape: int) -> Any:
    return repeated(rng.integers(-(1 << 31), 1 << 31, 99991, np.int32), *shape)


def scales(rng: Any, *shape: int) -> Any:
    return repeated(rng.uniform(0.01, 0.1, 9973).astype(np.float16), *shape)


def gptq(rng: Any, n: int, k: int) -> dict[str, Any]:
    zeros = np.full((k // GROUP, n // 8), 0x77777777, np.int32)
    return {"qweight": words(rng, k // 8, n), "qzeros": zeros, "scales": scales(rng, k // GROUP, n)}


def act_order(rng: Any, n: int, k: int) -> dict[str, Any]:
    return gptq(rng, n, k) | {"g_idx": (rng.permutation(k) // GROUP).astype(np.int32)}


def awq(rng: Any, n: int, k: int) -> dict[str, Any]:
    zeros = words(rng, k // GROUP, n // 8)
    return {"qweight": words(rng, k, n // 8), "qzeros": zeros, "scales": scales(rng, k // GROUP, n)}


def packed(rng: Any, n: int, k: int) -> dict[str, Any]:
    shape = np.int64([n, k])
    return {"weight_packed": words(rng, n, k // 8), "weight_scale": scales(rng, n, k // GROUP), "weight_shape": shape}


def halves(rng: Any, n: int, k: int) -> dict[str, Any]:
    return {"weight": repeated((rng.standard_normal(99991, np.float32) * 0.02).astype(np.float16), n, k)}


def model(path: Path, layers: int, stored: Callable[[Any, int, int], dict[str, Any]], settings: Any) -> int:
    """A Llama whose layers are stored that way; its weights."""
    rng = np.random.default_rng(0)
    made, count = Checkpoint(dialect="plain"), 0
    shapes = {f"self_attn.{x}_proj": (DIM, DIM) for x in "qkvo"}
    shapes |= {"mlp.gate_proj": (FFN, DIM), "mlp.up_proj": (FFN, DIM), "mlp.down_proj": (DIM, FFN)}
    for i in range(layers):
        for name, (n, k) in shapes.items():
            count += n * k
            for end, array in stored(rng, n, k).items():
                made.add(Tensor.from_array(f"model.layers.{i}.{name}.{end}", array))
        for name in ("input_layernorm", "post_attention_layernorm"):
            made.add(Tensor.from_array(f"model.layers.{i}.{name}.weight", np.ones(DIM, np.float16)))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        made.add(Tensor.from_array(name, rng.standard_normal((1000, DIM)).astype(np.float16)))
    made.add(Tensor.from_array("model.norm.weight", np.ones(DIM, np.float16)))
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": DIM, "vocab_size": 1000}
    config |= {"intermediate_size": FFN, "num_hidden_layers": layers, "num_attention_heads": 32, "rms_norm_eps": 1e-5}
    config |= {"num_key_value_heads": 32, "max_position_embeddings": 512, "tie_word_embeddings": False}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config | ({"quantization_config": settings} if settings else {})))
    formats.by_name("safetensors").save(made, path / "model.safetensors")
    return count


def run(program: str, *arguments: Any) -> tuple[float, float, int]:
    """Seconds, processor seconds and megabytes of a process, whose modules are compiled already, as where installed."""
    kept = {n: v for n, v in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
    kept["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "llmconv-bench-pycache")
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], check=True, capture_output=True, env=kept
    )
    after = os.times()
    seconds, megabytes, *_ = done.stdout.decode().split(maxsplit=2)
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return float(seconds), used, int(megabytes)


def removed(path: Path) -> Path:
    """Where nothing is: what writes over another file takes fresh pages from the system, and a copy would not."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return path


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.iterdir())


def largest(path: Path) -> Path:
    return path if path.is_file() else max(path.iterdir(), key=lambda p: p.stat().st_size)


def least(found: list[tuple[float, float, int]]) -> tuple[float, float, int]:
    return min(f[0] for f in found), min(f[1] for f in found), max(f[2] for f in found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repacking", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        model(folder / "gptq", args.layers, gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP})
        model(folder / "awq", args.layers, awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP})
        count = model(folder / "packed", args.layers, packed, {"quant_method": "compressed-tensors"})
        if not args.repacking:
            settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True}
            model(folder / "act-order", args.layers, act_order, settings)
            model(folder / "f16", args.layers, halves, None)
        for source, target, kind in WAYS:  # kernels and modules are compiled once, targets are there for the others
            run(_RUN, folder / source, folder / target, kind, args.jobs)
        starts = [run(_START) for _ in range(args.rounds)]
        print(f"{count / 1e6:.0f} million weights, {args.jobs} threads, least of {args.rounds} rounds; ", end="")
        print(f"load {os.getloadavg()[0]:.1f}; Python and llmconv's modules alone: {least(starts)[1]:.2f} CPU s\n")
        print("| from | to | s | CPU s | flushed copy, s | CPU s | s, ratio | CPU ns a weight | peak MB |")
        print("|---|---|---|---|---|---|---|---|---|")
        found: dict[tuple[str, str, str], tuple[list[Any], list[Any]]] = {way: ([], []) for way in WAYS}
        for _ in range(args.rounds):
            for way, (ours, copies) in found.items():
                source, target, kind = way
                ours.append(run(_RUN, folder / source, removed(folder / target), kind, args.jobs))
                larger = max((largest(folder / source), largest(folder / target)), key=size)
                copies.append(run(_COPY, larger, removed(folder / "copy")))
        for (source, _, kind), (ours, copies) in found.items():
            (s, cpu, peak), (copy_s, copy_cpu, _) = least(ours), least(copies)
            called = "GGUF, Q4_0" if source.endswith("gguf") else source
            to = "GGUF" if kind == "REPACK" else kind
            print(
                f"| {called} | {to} | {s:.2f} | {cpu:.2f} | {copy_s:.2f} | {copy_cpu:.2f} | {s / copy_s:.2f} | "
                f"{1e9 * (cpu - least(starts)[1]) / count:.1f} | {peak} |"
            )
        if args.repacking:
            return
        print("\n| quantized to | from F16, CPU s | from AWQ | more | from GPTQ | more | in act-order | more |")
        print("|---|---|---|---|---|---|---|---|")
        for kind, rounds in QUANTIZED.items():
            sources: dict[str, list[tuple[float, float, int]]] = {"f16": [], "awq": [], "gptq": [], "act-order": []}
            for _ in range(max(1, args.rounds - rounds)):
                for source, times in sources.items():
                    times.append(run(_RUN, folder / source, folder / "q.gguf", kind, args.jobs))
            floats, *others = (least(times)[1] for times in sources.values())
            print(f"| {kind} | {floats:.2f} |", *(f"{t:.2f} | {t / floats - 1:+.0%} |" for t in others))
        print("\n| verify | s | CPU s | peak MB |\n|---|---|---|---|")
        for source, target, _ in WAYS:
            s, cpu, peak = run(_VERIFY, folder / source, folder / target)
            print(f"| {source} and {target} | {s:.2f} | {cpu:.2f} | {peak} |")


if __name__ == "__main__":
    main()
