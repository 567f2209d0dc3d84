"""Repacking a GPTQ folder to a GGUF, with and without its proof, beside a flushed copy of the larger side.

python tests/bench/bench_repack.py [--layers 4] [--folder DIR] [--jobs 2]

Prints seconds, the peak of memory of the process, and the ratio to the copy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import llmconv
from llmconv import formats
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

DIM, FFN, GROUP = 4096, 11008, 128


def model(path: Path, layers: int) -> int:
    """A Llama of 4 bits, symmetric; its weights."""
    rng = np.random.default_rng(0)
    made, count = Checkpoint(dialect="plain"), 0
    shapes = {f"self_attn.{x}_proj": (DIM, DIM) for x in "qkvo"}
    shapes |= {"mlp.gate_proj": (FFN, DIM), "mlp.up_proj": (FFN, DIM), "mlp.down_proj": (DIM, FFN)}
    for i in range(layers):
        for name, (n, k) in shapes.items():
            stem = f"model.layers.{i}.{name}"
            groups, count = k // GROUP, count + n * k
            words = rng.integers(-(1 << 31), 1 << 31, (k // 8, n), dtype=np.int32)
            made.add(Tensor.from_array(f"{stem}.qweight", words))
            made.add(Tensor.from_array(f"{stem}.qzeros", np.full((groups, n // 8), 0x77777777, np.int32)))
            made.add(Tensor.from_array(f"{stem}.scales", rng.uniform(0.01, 0.1, (groups, n)).astype(np.float16)))
        for name in ("input_layernorm", "post_attention_layernorm"):
            made.add(Tensor.from_array(f"model.layers.{i}.{name}.weight", np.ones(DIM, np.float16)))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        made.add(Tensor.from_array(name, rng.standard_normal((1000, DIM)).astype(np.float16)))
    made.add(Tensor.from_array("model.norm.weight", np.ones(DIM, np.float16)))
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": DIM, "vocab_size": 1000}
    config |= {"intermediate_size": FFN, "num_hidden_layers": layers, "num_attention_heads": 32, "rms_norm_eps": 1e-5}
    config |= {"num_key_value_heads": 32, "max_position_embeddings": 512, "tie_word_embeddings": False}
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    formats.by_name("safetensors").save(made, path / "model.safetensors")
    return count


def copied(source: Path, target: Path) -> float:
    start = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        start = time.perf_counter()
        result = llmconv.quantize(args.only / "in", args.only / "out.gguf", "REPACK", jobs=args.jobs, force=True)
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = used.ru_utime + used.ru_stime
        print(
            f"{time.perf_counter() - start:.2f} s, {cpu:.1f} of CPU, {used.ru_maxrss >> 10} MB, {result.output.proof}"
        )
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        count = model(folder / "in", args.layers)
        for _ in range(2):
            subprocess.run([sys.executable, __file__, "--only", folder, "--jobs", str(args.jobs)], check=True)
            seconds = copied(folder / "out.gguf", folder / "copy.gguf")
            print(
                f"copy, flushed: {seconds:.2f} s of {(folder / 'out.gguf').stat().st_size >> 20} MB; {count:,} weights"
            )


if __name__ == "__main__":
    main()
