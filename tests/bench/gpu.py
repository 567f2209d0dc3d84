"""What the runtime reaches on a GPU: a prompt at 7B shape, generation from quantized weights, a 7B end to end.

    python tests/bench/gpu.py [--layers 32] [--only prompt,generate,whole,streamed]

Prints a markdown table with the device's name.  Peaks are measured first, on the same device: a large bfloat16 matrix
product, and a large copy (read and write counted).  Exits with a sentence where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

DIM, FF, HEADS, KV, VOCAB = 4096, 11008, 32, 32, 32000


def seconds(fn: Callable[[], Any], rounds: int = 10) -> float:
    """Median of a call's time on the device."""
    for _ in range(3):
        fn()
    found = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        fn()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return sorted(found)[len(found) // 2]


def peaks() -> tuple[float, float]:
    """Matmul operations and memory bytes a second."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    operations = 2 * 8192**3 / seconds(lambda: a @ a)
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    return operations, 2 * x.numel() / seconds(lambda: y.copy_(x))


def model_of(kind: str, layers: int) -> Any:
    """A 7B-shaped model with random weights of a type, made on the device."""
    from llmconv.convert.decoders.describe import describe
    from llmconv.formats.checkpoint import Checkpoint
    from llmconv.formats.tensor import Tensor
    from llmconv.quant.block import by_name
    from llmconv.runtime.model import Model

    stored = by_name(kind)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, DIM), "output_norm.weight": (DIM,)}
    shapes["output.weight"] = (VOCAB, DIM)
    for i in range(layers):
        at = f"blk.{i}."
        shapes |= {at + f"attn_{n}.weight": (DIM, DIM) for n in ("q", "k", "v", "output")}
        shapes |= {
            at + "ffn_gate.weight": (FF, DIM),
            at + "ffn_up.weight": (FF, DIM),
            at + "ffn_down.weight": (DIM, FF),
        }
        shapes |= {at + "attn_norm.weight": (DIM,), at + "ffn_norm.weight": (DIM,)}
    metadata = {
        "general.architecture": "llama", "llama.block_count": layers, "llama.embedding_length": DIM,
        "llama.context_length": 4096, "llama.feed_forward_length": FF, "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV, "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    tensors = {n: Tensor(n, s, by_name("F32"), lambda a, b: np.empty((0, 0), np.uint8)) for n, s in shapes.items()}
    plain = stored.is_plain()
    types = {n: torch.bfloat16 if plain or len(s) < 2 else stored for n, s in shapes.items()}
    with torch.device("meta"):
        model = Model(describe(Checkpoint(tensors, metadata)), types, torch.bfloat16)
    model.to_empty(device="cuda")
    block = torch.from_numpy(stored.encode(np.random.default_rng(0).standard_normal((64, DIM), np.float32) * 0.02))
    for value in model.state_dict().values():
        if value.dtype == torch.uint8:
            flat = value.view(-1)
            flat.copy_(block.cuda().view(-1).repeat(-(-flat.numel() // block.numel()))[: flat.numel()])
        else:
            value.normal_(0, 0.02) if value.dim() > 1 else value.fill_(1)
    return model.eval()


def nbytes(model: Any) -> int:
    """Bytes that one token reads: all weights but the embedding, of which it takes a row."""
    values = model.state_dict()
    return sum(v.numel() * v.element_size() for n, v in values.items() if n != "token_embd.weight")


def prompt(layers: int, peak: float) -> None:
    model, tokens = model_of("BF16", layers), torch.randint(0, VOCAB, (1, 2048), device="cuda")
    with torch.inference_mode():
        took = seconds(lambda: model(tokens))
    weights = sum(v.numel() for n, v in model.state_dict().items() if v.dim() > 1 and n != "token_embd.weight")
    attention = 4 * layers * DIM * 2048**2 / 2
    rate = (2 * weights * 2048 + attention) / took
    print(f"| bf16 prompt, 2048 tokens | {2048 / took:,.0f} tokens/s | {rate / peak:.0%} of the matmul peak | ≥ 50 % |")


def generation(layers: int, bandwidth: float) -> None:
    for kind in ("Q4_K", "Q8_0", "Q4_0", "Q6_K"):
        model = model_of(kind, layers)
        token = torch.zeros(1, 1, dtype=torch.long, device="cuda")
        with torch.inference_mode():
            cache = model.cache(1, 512)
            model(torch.zeros(1, 128, dtype=torch.long, device="cuda"), cache=cache)

            def step(model: Any = model, cache: Any = cache, token: Any = token) -> None:
                model(token, cache=cache)
                cache.cut(128)

            took = seconds(step)
        share = nbytes(model) / took / bandwidth
        goal = "≥ 60 %" if kind in ("Q4_K", "Q8_0") else ""
        print(f"| {kind} generation | {1 / took:,.1f} tokens/s | {share:.0%} of the memory bandwidth | {goal} |")
        del model
        torch.cuda.empty_cache()


def whole(layers: int) -> None:
    """Save a 7B, quantize it, evaluate the result: memory on the device, time of each step."""
    import bench_runtime

    import llmconv
    from llmconv.convert.quantizing.quantize import quantize

    bench_runtime.DIM, bench_runtime.FF, bench_runtime.KV, bench_runtime.VOCAB = DIM, FF, KV, VOCAB
    with tempfile.TemporaryDirectory() as folder:
        source = bench_runtime.make(Path(folder) / "bf16.gguf", layers, "BF16", DIM, VOCAB)
        started = time.perf_counter()
        quantize(source, Path(folder) / "q4.gguf", "Q4_K_M")
        quantized = time.perf_counter() - started
        text = Path(folder) / "text.txt"
        text.write_text(" ".join(f"t{i % 30000 + 3}" for i in range(40000)))
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        model = llmconv.load(Path(folder) / "q4.gguf", "cuda")
        loaded, memory = time.perf_counter() - started, torch.cuda.max_memory_allocated()
        found = llmconv.perplexity(model, text, chunks=8)
        print(f"| quantize to Q4_K_M, {layers} layers | {quantized:.1f} s | | |")
        print(f"| load it | {loaded:.1f} s | {memory / 1e9:.2f} GB on the device | < 5 GB at 32 layers |")
        print(f"| perplexity | {found.tokens_per_second:,.0f} tokens/s | | |")


def bus() -> float:
    """Bytes a second from pinned memory to the device."""
    host = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device="cuda")
    return host.numel() / seconds(lambda: there.copy_(host, non_blocking=True))


def streamed(layers: int) -> None:
    """A bf16 model within a third of its size, against the bus and against the same model on the device."""
    import bench_runtime

    import llmconv

    bench_runtime.DIM, bench_runtime.FF, bench_runtime.KV, bench_runtime.VOCAB = DIM, FF, KV, VOCAB
    with tempfile.TemporaryDirectory() as folder:
        source = bench_runtime.make(Path(folder) / "bf16.gguf", layers, "BF16", DIM, VOCAB)
        text = Path(folder) / "text.txt"
        text.write_text(" ".join(f"t{i % 30000 + 3}" for i in range(40000)))
        found, took, size, speed = {}, {}, source.stat().st_size, bus()
        for memory in (None, size // 3):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            found[memory] = llmconv.perplexity(source, text, chunks=64, device="cuda", memory=memory or "1T").perplexity
            took[memory], peak = time.perf_counter() - started, torch.cuda.max_memory_allocated()
        assert found[None] == found[size // 3], found
        print(f"| within a third | {peak / 1e9:.2f} GB on the device | of {size / 3e9:.2f} GB | same figure |")
        print(f"| bus | {speed / 1e9:.1f} GB/s | | |")
        rate = size / took[size // 3]
        print(f"| a pass over the file | {rate / 1e9:.1f} GB/s | {rate / speed:.0%} of the bus | ≥ 80 % |")
        print(f"| against all on the device | {took[size // 3] / took[None]:.2f}x its time, loading included | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--only", default="prompt,generate,whole,streamed")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device on this machine")
    sys.path.insert(0, str(Path(__file__).parent))
    peak, bandwidth = peaks()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"measured peaks: {peak / 1e12:.0f} TFLOP/s in bfloat16, {bandwidth / 1e12:.2f} TB/s\n")
    print("| what | rate | share | asked |\n|---|---|---|---|")
    if "prompt" in options.only:
        prompt(options.layers, peak)
    if "generate" in options.only:
        generation(options.layers, bandwidth)
    if "whole" in options.only:
        whole(options.layers)
    if "streamed" in options.only:
        streamed(options.layers)


if __name__ == "__main__":
    main()
