"""Fuzz the readers with atheris (pip install 'llmconv[fuzz]'), 500 MB and 5 s for each input.

    python tests/fuzz/run.py [gguf safetensors json msgpack] [--seconds 60]

The seeds are tests/fuzz/corpus; an input that breaks a reader is put there as crash-*, where the ordinary tests find
it from then on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("gguf", "safetensors", "json", "msgpack")


def fuzz(name: str, seconds: int) -> subprocess.CompletedProcess[str]:
    """One run; its exit status is not 0 when something was found."""
    seeds = HERE / "corpus" / name
    with tempfile.TemporaryDirectory() as grown:
        return subprocess.run(
            [
                sys.executable, HERE / f"fuzz_{name}.py", grown, seeds, f"-max_total_time={seconds}", "-timeout=5",
                "-rss_limit_mb=500", "-malloc_limit_mb=500", "-max_len=65536", "-print_final_stats=1",
                f"-artifact_prefix={seeds}/",
            ],
            capture_output=True,
            text=True,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], default=NAMES)
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    options = parser.parse_args()
    bad = 0
    for name in options.names or NAMES:
        done = fuzz(name, options.seconds)
        stats = [line for line in done.stderr.splitlines() if line.startswith(("stat::", "Done"))]
        print(f"{name}: {'ok' if done.returncode == 0 else 'FOUND SOMETHING'}", *stats, sep="\n  ", flush=True)
        if done.returncode:
            print(done.stderr[-4000:])
        bad |= done.returncode != 0
    sys.exit(bad)


if __name__ == "__main__":
    main()
