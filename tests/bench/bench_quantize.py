"""The whole command against llama-quantize: seconds, peak memory, and the time that writing as many bytes takes.

    python tests/bench/bench_quantize.py [--millions 300] [--rounds 3] [--jobs 2] [--types Q4_K_M Q6_K Q8_0 Q4_0]

Each round runs, one after another: the reference (`llama_model_quantize` alone is timed, in a process of its own, and
then the flush to the disk that it leaves undone); our command (all of it is timed, interpreter start and flush
included); and a plain write of as many bytes, flushed.  Each begins when the disk has nothing left to do for the one
before.  Outputs are compared byte for byte.  The table gives medians; on a machine with other work the processor
seconds say more than the others.  Without llama-cpp-python the reference's columns stay empty.
"""

from __future__ import annotations

import argparse
import filecmp
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

REFERENCE = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import llama_quantize
llama_quantize.library()
started, used = time.perf_counter(), time.process_time()
assert llama_quantize.quantize(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], jobs=int(sys.argv[5]))
seconds, used = time.perf_counter() - started, time.process_time() - used
os.fsync(os.open(sys.argv[3], os.O_RDONLY))
print(seconds, used, time.perf_counter() - started)
"""


def make_model(path: Path, millions: int) -> Path:
    """A Llama in F16 of about that many million weights, rows of 2048 and 5632, normally distributed."""
    embd, ff, kv, vocab = 2048, 5632, 256, 16384
    per_layer = 2 * embd * embd + 2 * embd * kv + 3 * embd * ff
    layers = max(1, round((millions * 1e6 - 2 * vocab * embd) / per_layer))
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    writer.add_context_length(2048)
    writer.add_embedding_length(embd)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(32)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (vocab, embd), "output": (vocab, embd), "output_norm": (embd,)}
    for i in range(layers):
        shapes |= {
            f"blk.{i}.{name}": shape
            for name, shape in {
                "attn_q": (embd, embd),
                "attn_k": (kv, embd),
                "attn_v": (kv, embd),
                "attn_output": (embd, embd),
                "ffn_gate": (ff, embd),
                "ffn_up": (ff, embd),
                "ffn_down": (embd, ff),
                "attn_norm": (embd,),
                "ffn_norm": (embd,),
            }.items()
        }
    for name, shape in shapes.items():
        dtype = np.dtype(np.float16 if len(shape) > 1 else np.float32)
        writer.add_tensor_info(f"{name}.weight", shape, dtype, math.prod(shape) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    out = writer.fout[0]
    writer.write_padding(out, out.tell())
    for shape in shapes.values():
        if len(shape) == 1:
            out.write(np.ones(shape, np.float32).tobytes())
            continue
        for start in range(0, shape[0], 512):
            rows = rng.standard_normal((min(512, shape[0] - start), shape[1]), np.float32) * np.float32(0.02)
            out.write(rows.astype(np.float16).tobytes())
    writer.close()
    return path


def run(words: list[str]) -> tuple[float, float, float, str]:
    """Seconds, processor seconds, peak memory in MB, standard output."""
    os.sync()  # the reference leaves its output to be written; who comes next should not wait for that
    with tempfile.TemporaryFile() as file:
        started = time.perf_counter()
        process = subprocess.Popen(words, stdout=file, env=ENVIRONMENT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{words[:4]} failed")
        file.seek(0)
        return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, file.read().decode()


def write_alone(path: Path, size: int) -> float:
    """Seconds to write that many bytes and flush them to the disk."""
    data = np.random.default_rng(0).integers(0, 256, 4 << 20, np.uint8).tobytes()
    os.sync()
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, len(data)):
            file.write(data[: size - start])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=300, help="weights of the model (1100 for the usual 1.1B)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--types", nargs="+", default=["Q4_K_M", "Q6_K", "Q8_0", "Q4_0"])
    parser.add_argument("--folder", type=Path, help="where to put the files; a temporary folder by default")
    args = parser.parse_args()
    import llama_quantize

    peer = llama_quantize.available()
    if not peer:
        print(llama_quantize.MISSING, file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        source = make_model(folder / "model-f16.gguf", args.millions)
        size = source.stat().st_size
        rows: dict[str, dict[str, list[float]]] = {t: {} for t in args.types}
        for kind in args.types:  # compile, and let the input settle in the page cache
            ours(source, folder, kind, args.jobs)
        for _ in range(args.rounds):
            for kind in args.types:
                out = folder / f"{kind}.gguf"
                measured: dict[str, float] = {}
                if peer:
                    (folder / "theirs.gguf").unlink(missing_ok=True)
                    words = [sys.executable, "-c", REFERENCE, str(HERE.parent / "support"), str(source)]
                    *_, memory, text = run([*words, str(folder / "theirs.gguf"), kind, str(args.jobs)])
                    seconds, used, flushed = map(float, text.split())
                    measured |= {"theirs": seconds, "flushed": flushed, "their CPU": used, "their MB": memory}
                seconds, used, memory = ours(source, folder, kind, args.jobs)
                measured |= {"ours": seconds, "our CPU": used, "our MB": memory}
                if peer and not filecmp.cmp(folder / "theirs.gguf", out, shallow=False):
                    raise SystemExit(f"{kind}: the outputs differ")
                measured["write"] = write_alone(folder / "alone", out.stat().st_size)
                for key, value in measured.items():
                    rows[kind].setdefault(key, []).append(value)
        report(rows, size, args)


def ours(source: Path, folder: Path, kind: str, jobs: int) -> tuple[float, float, float]:
    out = folder / f"{kind}.gguf"
    out.unlink(
        missing_ok=True
    )  # giving an old file's blocks back takes time, which neither the peer nor a write spends
    words = [sys.executable, "-m", "llmconv", "quantize", str(source), "-t", kind, "-o", str(out)]
    return run([*words, "-j", str(jobs), "-q"])[:3]


def report(rows: dict[str, dict[str, list[float]]], size: int, args: argparse.Namespace) -> None:
    print(f"{args.jobs} threads, {size / 1e9:.2f} GB of F16, medians of {args.rounds} interleaved rounds; ", end="")
    print("every output equal to the reference's, byte for byte.\n")
    print("| type | llama-quantize | flushed | llmconv | faster | both flushed | its CPU | ours | less ", end="")
    print("| a write | ours / write | peak memory |")
    print("|---" * 12 + "|")
    for kind, row in rows.items():
        m = {key: statistics.median(values) for key, values in row.items()}
        theirs = [""] * 5
        if "theirs" in m:
            theirs = [f"{m['theirs']:.2f} s", f"{m['flushed']:.2f} s"]
            theirs += [f"{m[which] / m['ours']:.1f}x" for which in ("theirs", "flushed")]
            theirs += [f"{m['their CPU']:.2f} s"]
        less = f"{m['their CPU'] / m['our CPU']:.1f}x" if "theirs" in m else ""
        cells = [kind, *theirs[:2], f"{m['ours']:.2f} s", *theirs[2:], f"{m['our CPU']:.2f} s", less]
        cells += [f"{m['write']:.2f} s", f"{m['ours'] / m['write']:.2f}", f"{m['our MB']:.0f} MB"]
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
