"""One token after another: ours by a table of instructions and by torch, beside llama.cpp.

    python tests/bench/bench_tokens.py --model SmolLM2-135M-Instruct.Q4_1.gguf [--threads 1,2] [--rounds 5]
    python tests/bench/bench_tokens.py --types Q4_0,Q4_1,Q4_K,Q8_0,BF16 [--layers 4]
    python tests/bench/bench_tokens.py --model ... --busy

Each side makes `--tokens` tokens after a prompt of 16, sides in turn, in processes of their own; the least of the
rounds counts, in seconds of the clock and of the processors.  Ours include choosing the token (greedily).  "busy" runs
another process beside them that takes a processor.  Without a model: Llamas of the 1.1B shape with fewer layers and
random weights.  GB/s: the bytes of all matrices, which a token goes by once, by the clock; what one thread reads at
most is said before (the C library's memchr over 512 MB).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_runtime import _quiet, make

PROMPT = 16


def ours(path: str, threads: int, activations: str, compiled: bool) -> Callable[[int], None]:
    """A function that makes so many tokens, greedily."""
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command has it
    import torch

    from llmconv.runtime.generate import stepper
    from llmconv.runtime.load import load
    from llmconv.runtime.sampling import Sampling, choose

    torch.set_num_threads(threads)
    model = load(path, "cpu", activations=activations)
    greedy, chance = Sampling(temperature=0), torch.Generator()

    def call(count: int) -> None:
        with torch.inference_mode():
            cache = model.cache(1, PROMPT + count + 1)
            token = int(model(torch.arange(3, 3 + PROMPT)[None], cache=cache)[0, -1].argmax())
            step = stepper(model, cache) if compiled else None
            started = time.perf_counter(), time.process_time()
            for _ in range(count):
                logits = model(torch.tensor([[token]]), cache=cache)[0] if step is None else step(token)
                token = choose(logits[0], (), greedy, None, chance)
            told(started, count)

    return call


def theirs(path: str, threads: int) -> Callable[[int], None]:
    """llama.cpp through its C binding."""
    from llama_cpp import llama_cpp as lib

    lib.llama_log_set(_quiet(), None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = 512
    options.n_threads = options.n_threads_batch = threads
    context = lib.llama_init_from_model(model, options)
    batch = lib.llama_batch_init(PROMPT, 0, 1)

    def run(tokens: list[int], start: int) -> int:
        import numpy as np

        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
            batch.logits[i] = i == len(tokens) - 1
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        return int(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (size,)).argmax())

    def call(count: int) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        token = run(list(range(3, 3 + PROMPT)), 0)
        started = time.perf_counter(), time.process_time()
        for i in range(count):
            token = run([token], PROMPT + i)
        told(started, count)

    return call


def told(started: tuple[float, float], count: int) -> None:
    """Seconds a token since then, of the clock and of the processors, for who asked."""
    print(
        json.dumps([(time.perf_counter() - started[0]) / count, (time.process_time() - started[1]) / count]), flush=True
    )


def serve(path: str, side: str, threads: int) -> None:
    """In a process of its own: as many tokens as each line of the input asks for."""
    kind, _, activations = side.partition(" ")
    call = theirs(path, threads) if kind == "llama.cpp" else ours(path, threads, activations, kind == "table")
    for line in sys.stdin:
        call(int(line))


def compared(path: Path, threads: int, sides: list[str], rounds: int, tokens: int) -> dict[str, tuple[float, float]]:
    """Seconds a token, of the clock and of the processors, the least of interleaved rounds."""
    command = [sys.executable, __file__, "--serve", str(path), "--threads", str(threads), "--side"]
    running = {side: subprocess.Popen([*command, side], stdin=-1, stdout=-1, text=True) for side in sides}
    found: dict[str, list[list[float]]] = {side: [] for side in sides}

    def asked(process: Any, count: int) -> list[float]:
        process.stdin.write(f"{count}\n")
        process.stdin.flush()
        answer: list[float] = json.loads(process.stdout.readline())
        return answer

    for process in running.values():
        asked(process, 2)
    for _ in range(rounds):
        for side, process in running.items():
            found[side].append(asked(process, tokens))
    for process in running.values():
        process.stdin.close()
        process.wait()
    return {side: (min(f[0] for f in runs), min(f[1] for f in runs)) for side, runs in found.items()}


def reading() -> float:
    """Bytes a second that one thread reads, in large pages where the system has such."""
    import numpy as np

    many = np.full(512 << 20, 1, np.uint8)
    look = ctypes.CDLL(None).memchr
    look.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    taken = []
    for _ in range(8):
        started = time.thread_time()
        look(many.ctypes.data, 2, many.size)
        taken.append(time.thread_time() - started)
    return many.size / min(taken)


def gone_by(path: Path) -> int:
    """Bytes of the matrices that a token is multiplied with."""
    from llmconv.formats.gguf import gguf_file

    tensors = gguf_file.open(path).tensors
    untied = {"token_embd.weight"} if "output.weight" in tensors else set()
    return sum(t.nbytes for name, t in tensors.items() if len(t.shape) == 2 and name not in untied)


SIDES = ("torch float", "torch int8", "table float", "table int8", "llama.cpp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--types", default="Q4_0,Q4_1,Q4_K,Q8_0,BF16")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--busy", action="store_true", help="beside a process that takes a processor")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.side, int(options.threads))
        return
    print(f"one thread reads {reading() / 1e9:.1f} GB/s\n")
    print("| model | threads | side | tokens/s | CPU ms a token | to llama.cpp | CPU to llama.cpp | GB/s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        if options.model:
            models = {Path(options.model).stem: Path(options.model)}
        else:
            models = {
                kind: make(Path(folder) / f"{kind}.gguf", options.layers, kind) for kind in options.types.split(",")
            }
        for name, path in models.items():
            for threads in map(int, options.threads.split(",")):
                other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if options.busy else None
                found = compared(path, threads, options.sides.split(","), options.rounds, options.tokens)
                if other:
                    other.kill()
                clock, cpu = found.get("llama.cpp", (float("nan"), float("nan")))
                for side, (seconds, used) in found.items():
                    ratios = f"{clock / seconds:.2f}x | {cpu / used:.2f}x | {gone_by(path) / seconds / 1e9:.1f}"
                    print(
                        f"| {name} | {threads} | {side} | {1 / seconds:.1f} | {1e3 * used:.1f} | {ratios} |", flush=True
                    )


if __name__ == "__main__":
    main()
