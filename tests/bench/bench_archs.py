"""Hugging Face -> GGUF and back: ours beside a file copy and beside llama.cpp's converter, interleaved in one run.

LLMCONV_LLAMA_CPP=… python tests/bench/bench_archs.py [--params 300e6] [--folder DIR] [--rounds 3]

Makes a bf16 Llama of about that many parameters in two shards of random numbers.  Needs about 7 times its size of free
disk in DIR (a temporary folder by default), all of it removed at the end.  Without LLMCONV_LLAMA_CPP (a folder with
llama.cpp's `conversion/`), the reference's row is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

OURS = """
import sys
from pathlib import Path
from llmconv import formats
from llmconv.convert import translate
source, target, to = sys.argv[1:4]
checkpoint = translate.translate(formats.open(source), to)
if to == "gguf":
    formats.by_name("gguf").save(checkpoint, Path(target), force=True)
else:
    formats.by_name("safetensors").save(checkpoint, Path(target), force=True, max_shard_size=int(sys.argv[4]))
"""

REFERENCE = """
import sys
from pathlib import Path
import torch
from conversion import ModelBase, ModelType, TextModel, get_model_architecture, get_model_class
import gguf
with torch.inference_mode():
    folder = Path(sys.argv[1])
    cls = get_model_class(get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT))
    cls.set_vocab = lambda self: None
    cls(folder, gguf.LlamaFileType.MOSTLY_BF16, Path(sys.argv[2])).write()
"""

COPY = "import shutil, sys\nfor f in sys.argv[2:]: shutil.copy(f, sys.argv[1])\n"

# Our outputs are on the disk when they get their names; a copy that promises as much flushes too.
FLUSHED = """
import os, shutil, sys
for f in sys.argv[2:]:
    with open(shutil.copy(f, sys.argv[1]), "rb+") as copy:
        os.fsync(copy.fileno())
"""

# What a process that does nothing but import costs, so that the reader can take it off.
MEASURE = """
import json, os, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
if code.returncode: sys.exit(code.stderr.decode()[-2000:])
print(json.dumps([time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""


def make(folder: Path, params: float) -> int:
    """A Llama with the proportions of TinyLlama, fewer layers and columns; the number of its parameters."""
    width = 2048 if params > 6e8 else 1024
    ff, heads, kv, vocab = width * 11 // 4, width // 64, width // 256, 32000
    layer = 2 * width * width + 2 * width * kv * 64 + 3 * width * ff + 2 * width
    layers = max(1, round((params - 2 * vocab * width) / layer))
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((vocab, width), np.float32).astype(ml_dtypes.bfloat16)

    def weight(*shape: int) -> Any:
        return np.ascontiguousarray(noise.reshape(-1)[: int(np.prod(shape))].reshape(shape))

    shards: list[dict[str, Any]] = [{}, {}]
    shards[0]["model.embed_tokens.weight"] = weight(vocab, width)
    for i in range(layers):
        at, shard = f"model.layers.{i}.", shards[2 * i // layers]
        for name, shape in {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (kv * 64, width),
            "self_attn.v_proj": (kv * 64, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (ff, width),
            "mlp.up_proj": (ff, width),
            "mlp.down_proj": (width, ff),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }.items():
            shard[f"{at}{name}.weight"] = weight(*shape)
    shards[1] |= {"model.norm.weight": weight(width), "lm_head.weight": weight(vocab, width)}
    index = {}
    for k, shard in enumerate(shards):
        name = f"model-0000{k + 1}-of-00002.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        index |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(t.size for shard in shards for t in shard.values())


def measured(code: str, *arguments: Any, path: str = "") -> tuple[float, float, float]:
    """(seconds, CPU seconds, peak MB) of a Python process of its own."""
    env = {**os.environ, "PYTHONPATH": path} if path else dict(os.environ)
    command = [sys.executable, "-c", MEASURE, sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(done.stderr)
    wall, cpu, peak = json.loads(done.stdout)
    return wall, cpu, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=float, default=300e6)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=options.folder))
    home = os.environ.get("LLMCONV_LLAMA_CPP", "")
    path = os.pathsep.join([str(Path(home) / "gguf-py"), home]) if (Path(home) / "conversion").is_dir() and home else ""
    runs: dict[str, list[tuple[float, float, float]]] = {}
    try:
        count = make(work / "hf", options.params)
        shards = sorted((work / "hf").glob("*.safetensors"))
        shard_size = sum(f.stat().st_size for f in shards) // 3
        for _ in range(options.rounds):
            (work / "copy").mkdir()
            for name, code, arguments, where in (
                ("copying the shards", COPY, (work / "copy", *shards), ""),
                ("copying the shards, flushed to the disk", FLUSHED, (work / "copy", *shards), ""),
                ("llmconv, HF → GGUF", OURS, (work / "hf", work / "ours.gguf", "gguf"), ""),
                ("llama.cpp's converter, HF → GGUF", REFERENCE, (work / "hf", work / "theirs.gguf"), path),
                ("llmconv, GGUF → HF, 4 shards", OURS, (work / "ours.gguf", work / "back", "hf", shard_size), ""),
            ):
                if code is REFERENCE and not where:
                    continue
                runs.setdefault(name, []).append(measured(code, *arguments, path=where))
            for gone in ("copy", "back"):
                shutil.rmtree(work / gone)
    finally:
        shutil.rmtree(work)
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in runs.items()}
    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in info if "model name" in line), platform.machine())
    copy, reference = (
        medians["copying the shards, flushed to the disk"],
        medians.get("llama.cpp's converter, HF → GGUF"),
    )
    print(f"A bf16 Llama of {count / 1e6:.0f}M parameters in 2 shards; {cpu}, {os.cpu_count()} cores; median of "
          f"{options.rounds} interleaved runs, each a process of its own.\n")  # fmt: skip
    print("| | seconds | against copying | CPU seconds | CPU against llama.cpp's | peak memory |")
    print("|---|---|---|---|---|---|")
    for name, (wall, used, peak) in medians.items():
        less = f"{reference[1] / used:.1f}x less" if reference else ""
        print(f"| {name} | {wall:.2f} | {wall / copy[0]:.2f}x | {used:.2f} | {less} | {peak:.0f} MB |")


if __name__ == "__main__":
    main()
