"""What readers make of malformed files: ours, the gguf package's, and safetensors.safe_open, on one corpus.

    python tests/bench/bench_malformed.py

Each file is read in a process of its own with 5 seconds of processor time and 500 MB of new memory.  A file counts as
handled cleanly when the reader raises an exception that it documents (llmconv: LlmconvError; gguf: ValueError;
safetensors: SafetensorError, or ValueError); as traceback when anything else comes out; as hang or crash when it
exceeds a limit or dies of a signal; as accepted when it reads names, shapes, types and metadata without a word.
"""

from __future__ import annotations

import importlib.metadata
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

OURS = """
import sys
from llmconv.errors import LlmconvError
import llmconv.formats.{module} as module
limit()
try:
    found = module.open(sys.argv[1]); [(t.name, t.shape, t.type) for t in found.tensors.values()]
except LlmconvError:
    sys.exit(3)
"""
GGUF = """
import sys
from gguf import GGUFReader
limit()
try:
    found = GGUFReader(sys.argv[1])
    [(t.name, t.shape, t.tensor_type) for t in found.tensors]; [f.contents() for f in found.fields.values()]
except ValueError:
    sys.exit(3)
"""
SAFETENSORS = """
import sys
from safetensors import safe_open, SafetensorError
limit()
try:
    with safe_open(sys.argv[1], "np") as found:
        found.metadata(); [(k, found.get_slice(k).get_shape(), found.get_slice(k).get_dtype()) for k in found.keys()]
except (SafetensorError, ValueError):
    sys.exit(3)
"""
LIMIT = """
import resource
def limit():
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20),) * 2)
    time = resource.getrusage(resource.RUSAGE_SELF); spent = int(time.ru_utime + time.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + 5, spent + 6))
"""
OUTCOMES = ("handled cleanly", "traceback", "hang, crash or memory", "silently accepted")


def outcome(program: str, path: Path) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-c", LIMIT + program, path], capture_output=True, text=True, timeout=30,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return OUTCOMES[2]
    if done.returncode < 0 or "MemoryError" in done.stderr or "PanicException" in done.stderr:
        return OUTCOMES[2]
    return {0: OUTCOMES[3], 3: OUTCOMES[0]}.get(done.returncode, OUTCOMES[1])


def main() -> None:
    import faulty_gguf
    import faulty_safetensors

    version = importlib.metadata.version
    rows = []
    for kind, table, suffix, peer, program in (
        ("GGUF", faulty_gguf.BAD, ".gguf", f"gguf {version('gguf')}, GGUFReader", GGUF),
        (
            "safetensors", faulty_safetensors.BAD, ".safetensors",
            f"safetensors {version('safetensors')}, safe_open", SAFETENSORS,
        ),
    ):  # fmt: skip
        module = "gguf_file" if kind == "GGUF" else "safetensors_file"
        counts: dict[str, Counter[str]] = {"llmconv": Counter(), peer: Counter()}
        with tempfile.TemporaryDirectory() as folder:
            for raw, _ in table.values():
                path = Path(folder, f"bad{suffix}")
                path.write_bytes(raw)
                counts["llmconv"][outcome(OURS.format(module=module), path)] += 1
                counts[peer][outcome(program, path)] += 1
        for reader, found in counts.items():
            cells = " | ".join(str(found[name]) for name in OUTCOMES)
            rows.append(f"| {kind}, {len(table)} files | {reader} | {cells} |")
    print("| corpus | reader | " + " | ".join(OUTCOMES) + " |")
    print("|---|---|" + "---:|" * len(OUTCOMES))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
