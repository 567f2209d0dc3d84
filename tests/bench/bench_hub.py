"""Quantizing through a Hub on this machine, behind a link of so many bytes a second, against the download alone.

    python tests/bench/bench_hub.py [--size 1.5G] [--rate 100M] [--type Q4_K_M] [--rounds 1]

Makes a Llama folder of bf16 shards and serves it from a process of its own at the rate of the link.  Each row is a
process of its own: the plain download (huggingface_hub's, into a folder), the quantization straight from `hf://`, the
quantization of the folder on the disk, and the quantization with its output sent back in parts.  Wall and CPU seconds,
the peak of the process, and the most bytes that it had on the disk.  Asked: the wall of the second at most 1.15x of the
first's, memory below 400 MB, and no more than the output on the disk.  The server takes its share of the processors.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from hub_taking import FullHub

PROGRAMS = {
    "download": "from huggingface_hub import snapshot_download; snapshot_download('org/toy', local_dir='copy')",
    "quantize hf://": "import llmconv; llmconv.quantize('hf://org/toy', 'out.gguf', kind)",
    "quantize the folder": "import llmconv; llmconv.quantize(folder, 'out.gguf', kind)",
    "quantize hf:// to hf://": (
        "import llmconv; "
        "llmconv.quantize('hf://org/toy', 'hf://me/toy-GGUF', kind, split_max_size=int(part), force=True)"
    ),
}
MEASURED = """
import json, re, sys, time
kind, folder, part = sys.argv[1:]
started, busy = time.perf_counter(), time.process_time()
{program}
high = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
print(json.dumps({{"wall": time.perf_counter() - started, "cpu": time.process_time() - busy, "peak": high}}))
"""


def make(folder: Path, size: int) -> None:
    """A Llama of about so many bytes in bf16; its rows repeat, which costs nothing to draw and nothing to quantize."""
    import llmconv
    from llmconv.formats.tensor import Tensor
    from llmconv.quant.plain import BF16

    dim, ffn, words = 2048, 5632, 32000
    layers = max(1, (size // 2 - 2 * words * dim) // (4 * dim * dim + 3 * dim * ffn))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": dim, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": words,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    }  # fmt: skip
    base = np.random.default_rng(0).standard_normal((1024, ffn), np.float32) * np.float32(0.02)

    def drawn(name: str, *shape: int) -> Tensor:
        def read(a: int, b: int) -> Any:
            return BF16.encode(np.ascontiguousarray(base.take(range(a, b), 0, mode="wrap")[:, : shape[-1]]))

        return Tensor(f"{name}.weight", shape, BF16, read)

    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (words, dim),
        "lm_head": (words, dim),
        "model.norm": (dim,),
    }
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {at + "input_layernorm": (dim,), at + "post_attention_layernorm": (dim,)}
        shapes |= {at + f"self_attn.{n}_proj": (dim, dim) for n in "qkvo"}
        shapes |= {at + "mlp.gate_proj": (ffn, dim), at + "mlp.up_proj": (ffn, dim), at + "mlp.down_proj": (dim, ffn)}
    made = llmconv.Checkpoint(dialect="hf", files={"config.json": json.dumps(config).encode()})
    for name in sorted(shapes):
        made.add(drawn(name, *shapes[name]))
    llmconv.save(made, folder, max_shard_size=500_000_000)


def serve(folder: Path, rate: float, pipe: Any) -> None:
    with FullHub(folder) as hub:
        for path in folder.iterdir():
            hub.digest(path)
        hub.rate = rate
        pipe.send(hub.url)
        pipe.recv()


def run(what: str, folder: Path, kind: str, part: int, url: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        home = {"HF_HOME": f"{name}/home", "HF_ENDPOINT": url, "HF_TOKEN": "t", "HF_HUB_DISABLE_XET": "1"}
        env = {**os.environ, **home, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        code = MEASURED.format(program=PROGRAMS[what])
        argv = [sys.executable, "-W", "ignore", "-c", code, kind, str(folder), str(part)]
        with subprocess.Popen(argv, cwd=name, env=env, stdout=subprocess.PIPE, text=True) as child:
            most, done = 0, threading.Event()

            def watch() -> None:
                nonlocal most
                while not done.wait(0.05):
                    most = max(most, _on_disk(Path(name)))

            watcher = threading.Thread(target=watch)
            watcher.start()
            out = child.communicate()[0]
            done.set()
            watcher.join()
        return json.loads(out.splitlines()[-1]) | {"disk": most}


def _on_disk(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*"):
        try:
            found += path.stat().st_size if path.is_file() else 0
        except OSError:  # gone meanwhile
            continue
    return found


def main() -> None:
    from llmconv.formats.limits import parse_size

    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=parse_size, default=parse_size("1.5G"))
    parser.add_argument("--rate", type=parse_size, default=parse_size("100M"))
    parser.add_argument("--part", type=parse_size, default=parse_size("100M"))
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "toy"
        make(folder, given.size)
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.get_context("fork").Process(target=serve, args=(folder, given.rate, theirs))
        server.start()
        url = ours.recv()
        found: dict[str, list[dict[str, Any]]] = {what: [] for what in PROGRAMS}
        started = time.monotonic()
        for _ in range(given.rounds):
            for what, rows in found.items():
                rows.append(run(what, folder, given.type, given.part, url))
        ours.send(None)
        server.join()
        bytes_in = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    print(
        f"{bytes_in / 1e9:.2f} GB to {given.type} at {given.rate / 1e6:.0f} MB/s, {time.monotonic() - started:.0f} s\n"
    )
    print("| what | wall | CPU | wall to the download's | peak memory | most on the disk |\n|---|---|---|---|---|---|")
    plain = statistics.median(row["wall"] for row in found["download"])
    for what, rows in found.items():
        wall, cpu = (statistics.median(row[key] for row in rows) for key in ("wall", "cpu"))
        peak, disk = (max(row[key] for row in rows) / 1e6 for key in ("peak", "disk"))
        print(f"| {what} | {wall:.1f} s | {cpu:.1f} s | {wall / plain:.2f}x | {peak:.0f} MB | {disk:.0f} MB |")


if __name__ == "__main__":
    main()
