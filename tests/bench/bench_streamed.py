"""A model layer by layer: time against the same model in memory, and the most memory of either.

    python tests/bench/bench_streamed.py [--layers 18] [--dim 2304] [--memory 500M] [--tokens 4096] [--rounds 1]

Makes a bf16 Llama with random weights and a vocabulary of 32,000, runs `perplexity` in processes of their own with and
without the limit, and prints wall and CPU seconds, the plan's figures and the peak of the process above that of a tiny
model.  The file is in the page cache.
"""

from __future__ import annotations

import argparse
import json
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
print(json.dumps({"ppl": found.perplexity, "wall": time.perf_counter() - started, "cpu": time.process_time() - busy,
                  "peak": high, "planned": plan and plan.peak, "read": plan and plan.read}))
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


def run(path: Path, text: Path, memory: str, threads: int) -> dict[str, Any]:
    made = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(text), memory, str(threads)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise SystemExit(made.stderr[-2000:])
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 18), ("dim", 2304), ("tokens", 4096), ("rounds", 1), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", default="500M")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        words = np.random.default_rng(1).integers(0, 31000, options.tokens + 8)
        text.write_text(" ".join(f"w{i}" for i in words))
        tiny = make(folder / "tiny.gguf", 1, 384)
        large = make(folder / "large.gguf", options.layers, options.dim)
        base = run(tiny, text, "1T", options.threads)["peak"]
        print("| model | memory | wall s | CPU s | peak above a tiny model's | planned | read |")
        print("|---|---|---|---|---|---|---|")
        values = set()
        for _ in range(options.rounds):
            for memory in ("1T", options.memory):
                found = run(large, text, memory, options.threads)
                values.add(found["ppl"])
                cells = [f"{large.stat().st_size / 1e9:.2f} GB", "all" if memory == "1T" else memory]
                cells += [f"{found['wall']:.1f}", f"{found['cpu']:.1f}", f"{(found['peak'] - base) / 1e6:,.0f} MB"]
                cells += [f"{found[k] / 1e6:,.0f} MB" if found[k] else "" for k in ("planned", "read")]
                print("| " + " | ".join(cells) + " |", flush=True)
        print(f"\nperplexities: {values}")


if __name__ == "__main__":
    main()
