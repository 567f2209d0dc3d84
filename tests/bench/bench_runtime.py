"""Running a Llama of the 1.1B shape: prompts against transformers and llama.cpp, loading against transformers.

    python tests/bench/bench_runtime.py [--layers 22] [--rounds 3] [--threads 1] [--only prompt,load] [--types Q4_0]
    python tests/bench/bench_runtime.py --only widths [--widths 576,1024,2048]

"widths" measures what rounded inputs gain over float ones in our own products, for prompts and single tokens, in Llamas
of several widths.

The default has 4 of the 22 layers, so that it fits a small machine; the ratios hardly depend on it.  Quantized weights
run with inputs as they are and rounded (`activations="int8"`), as llama.cpp always rounds them.  llama.cpp is measured
where llama-cpp-python is installed, transformers where it is.  All in CPU seconds, the sides interleaved.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DIM, FF, HEADS, KV, VOCAB, TOKENS = 2048, 5632, 32, 4, 32000, 512


def make(path: Path, layers: int, kind: str, dim: int = DIM, vocab: int = VOCAB) -> Path:
    """A GGUF of that shape with random weights, tensors stored as `kind`; of another width in proportion."""
    from llmconv.formats.checkpoint import Checkpoint
    from llmconv.formats.gguf import gguf_file
    from llmconv.formats.tensor import Tensor
    from llmconv.quant.block import by_name

    rng = np.random.default_rng(0)
    stored = by_name(kind)
    head = DIM // HEADS
    heads, ff = dim // head, dim * FF // DIM // 256 * 256
    kv = max(1, heads * KV // HEADS) if heads * KV % HEADS == 0 else 1
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, dim)}
    for i in range(layers):
        at = f"blk.{i}."
        shapes |= {at + "attn_norm.weight": (dim,), at + "ffn_norm.weight": (dim,)}
        shapes |= {at + "attn_q.weight": (dim, dim), at + "attn_output.weight": (dim, dim)}
        shapes |= {at + "attn_k.weight": (kv * head, dim), at + "attn_v.weight": (kv * head, dim)}
        shapes |= {
            at + "ffn_gate.weight": (ff, dim),
            at + "ffn_up.weight": (ff, dim),
            at + "ffn_down.weight": (dim, ff),
        }
    shapes |= {"output_norm.weight": (dim,), "output.weight": (vocab, dim)}
    base = rng.standard_normal((FF, max(ff, dim)), np.float32) * np.float32(0.02)

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return Tensor.from_array(name, np.ones(shape, np.float32))
        six = name == "output.weight" and not stored.is_plain() and dim % 256 == 0
        kind_here = by_name("Q6_K") if six else stored

        def read(start: int, stop: int) -> Any:
            rows = np.arange(start, stop) % FF
            return kind_here.encode(np.ascontiguousarray(base[rows, : shape[1]]))

        return Tensor(name, shape, kind_here, read)

    metadata = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.context_length": 2048,
        "llama.embedding_length": dim,
        "llama.feed_forward_length": ff,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": head,
        "llama.vocab_size": vocab,
        "general.file_type": 1,
        # transformers' reader insists on a tokenizer
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(3, vocab))],
        "tokenizer.ggml.scores": np.zeros(vocab, np.float32),
        "tokenizer.ggml.token_type": np.asarray([2, 3, 3] + [1] * (vocab - 3), np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    tensors = {name: tensor(name, shape) for name, shape in shapes.items()}
    gguf_file.save(Checkpoint(tensors, metadata), path, force=True)
    return path


def cpu(fn: Callable[[], Any]) -> float:
    """CPU seconds of a call, all threads."""
    started = time.process_time()
    fn()
    return time.process_time() - started


def ours(path: Path, activations: str = "float", count: int = TOKENS, repeats: int = 1) -> Callable[[], Any]:
    """`count` tokens at once, `repeats` times; single tokens see none before them."""
    import torch

    from llmconv.runtime.load import load

    model = load(path, "cpu", activations=activations)
    tokens = torch.arange(3, 3 + count)[None]

    def call() -> Any:
        with torch.inference_mode():
            return [model(tokens) for _ in range(repeats)]

    return call


def theirs(path: Path) -> Callable[[], Any]:
    """transformers in bfloat16, as it loads the file."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    tokens = torch.arange(3, 3 + TOKENS)[None]

    def call() -> Any:
        with torch.inference_mode():
            return model(tokens).logits

    return call


@functools.cache
def _quiet() -> Any:
    """A log callback that says nothing, kept alive."""
    return ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


def peer(path: Path, threads: int) -> Callable[[], Any]:
    """llama.cpp through llama-cpp-python's C binding: one batch of 512 tokens, logits of all."""
    from llama_cpp import llama_cpp as lib

    lib.llama_log_set(_quiet(), None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = TOKENS
    options.n_threads = options.n_threads_batch = threads
    context = lib.llama_init_from_model(model, options)
    batch = lib.llama_batch_init(TOKENS, 0, 1)
    batch.n_tokens = TOKENS
    for i in range(TOKENS):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 3 + i, i, 1, 0, 1

    def call() -> None:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")

    return call


ASKED = {"BF16": 1.2, "Q4_0": 1.3, "Q4_K": 1.3, "Q8_0": 0.0}
"""Our rate against llama.cpp's, by how the weights are stored."""


def prompts(folder: Path, layers: int, rounds: int, threads: int, types: list[str]) -> None:
    print(f"\nPrompts of {TOKENS} tokens, {layers} layers, {threads} thread(s); tokens per CPU second\n")
    print("| weights | inputs | llmconv | reference | | ratio | asked |\n|---|---|---|---|---|---|---|")
    for kind in types:
        path = make(folder / f"{kind}.gguf", layers, kind)
        inputs = ("float",) if kind == "BF16" else ("float", "int8")
        sides: dict[str, Callable[[], Any]] = {name: ours(path, name) for name in inputs}
        for name, maker in (
            ("llama.cpp", functools.partial(peer, path, threads)),
            ("transformers", functools.partial(theirs, path)),
        ):
            if name == "transformers" and kind != "BF16":
                continue
            try:
                sides[name] = maker()
            except ImportError:
                print(f"{name} is not installed", file=sys.stderr)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for call in sides.values():
            call()
        for _ in range(rounds):
            for name, call in sides.items():
                times[name].append(cpu(call))
        rates = {name: TOKENS / statistics.median(seconds) for name, seconds in times.items()}
        for name in list(sides)[len(inputs) :]:
            wanted = 1.0 if name == "transformers" else ASKED.get(kind, 0.0)
            for mine in inputs:
                goal = f"≥ {wanted}x" if wanted and mine == inputs[-1] else ""
                ratio = rates[mine] / rates[name]
                print(f"| {kind} | {mine} | {rates[mine]:.1f} | {name} | {rates[name]:.1f} | {ratio:.2f}x | {goal} |")
        sys.stdout.flush()
        del sides, call
        gc.collect()
        path.unlink()


def widths(folder: Path, dims: list[int], rounds: int, types: list[str]) -> None:
    """What rounded inputs gain: CPU seconds of float products over those of integer ones, interleaved, medians."""
    import torch

    from llmconv.quant.block import by_name

    print("\nOne thread, 4 layers, a vocabulary of 4096; time with float inputs / time with rounded ones\n")
    print("| width | weights | prompt of 512 | single token |\n|---|---|---|---|")
    for dim in dims:
        for kind in (kind for kind in types if dim % by_name(kind).block_size == 0):
            path = make(folder / f"{kind}-{dim}.gguf", 4, kind, dim, 4096)
            gains = []
            for tokens, repeats in ((TOKENS, 1), (1, 16)):
                sides = {name: ours(path, name, tokens, repeats) for name in ("float", "int8")}
                ratios = []
                for call in sides.values():
                    call()
                for _ in range(rounds):
                    seconds = {name: cpu(call) for name, call in sides.items()}
                    ratios.append(seconds["float"] / seconds["int8"])
                gains.append(f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})")
            print(f"| {dim} | {kind} | {gains[0]} | {gains[1]} |")
            sys.stdout.flush()
            path.unlink()
    assert torch.get_num_threads() == 1


_LOAD = """
import os, re, sys, time
side, path = sys.argv[1:]
import torch

def memory(what):
    return int(re.search(what + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

if side == "llmconv":
    import llmconv.convert.vocab
    from llmconv.runtime.load import load
    load_it = lambda: load(path, "cpu")
else:
    import gguf, transformers
    from transformers import AutoModelForCausalLM, LlamaForCausalLM
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder, name = os.path.split(path)
    load_it = lambda: AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float16)
before, start = memory("VmRSS"), time.process_time()
model = load_it()
print(time.process_time() - start, memory("VmHWM") - before)
"""


def loading(folder: Path, layers: int, rounds: int) -> None:
    path = make(folder / "F16.gguf", layers, "F16")
    size = path.stat().st_size
    path.read_bytes()  # into the page cache
    found: dict[str, list[tuple[float, float]]] = {"llmconv": [], "transformers": []}
    for _ in range(rounds):
        for side in found:
            done = subprocess.run([sys.executable, "-c", _LOAD, side, str(path)], capture_output=True, text=True)
            if done.returncode:
                print(f"{side}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            seconds, grown = map(float, done.stdout.split())
            found[side].append((seconds, grown))
    print(f"\nLoading an F16 GGUF of {size / 1e9:.2f} GB; CPU seconds and growth of the process, median of {rounds}\n")
    print("| | llmconv | transformers | ratio | asked |\n|---|---|---|---|---|")
    if not found["transformers"]:
        found["transformers"] = [(float("nan"), float("nan"))]
    time_ours, time_theirs = (statistics.median(t for t, _ in found[s]) for s in ("llmconv", "transformers"))
    size_ours, size_theirs = (statistics.median(g for _, g in found[s]) / size for s in ("llmconv", "transformers"))
    print(f"| CPU time | {time_ours:.2f} s | {time_theirs:.2f} s | {time_ours / time_theirs:.3f} | ≤ 0.333 |")
    print(f"| memory / file size | {size_ours:.2f} | {size_theirs:.2f} | | < 1.2 |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4, help="22 is the whole model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="prompt,load")
    parser.add_argument("--types", default=",".join(ASKED), help="how weights are stored, for the prompts")
    parser.add_argument("--widths", default="576,1024,2048")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    with tempfile.TemporaryDirectory() as folder:
        if "load" in options.only:
            loading(Path(folder), options.layers, options.rounds)
        if "prompt" in options.only:
            prompts(Path(folder), options.layers, options.rounds, options.threads, options.types.split(","))
        if "widths" in options.only:
            dims = [int(dim) for dim in options.widths.split(",")]
            kinds = [kind for kind in options.types.split(",") if kind != "BF16"]
            widths(Path(folder), dims, max(5, options.rounds), kinds)
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
