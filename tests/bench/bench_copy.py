"""The encoders that do little with each weight, beside copying as many bytes as they read and write.

    python tests/bench/bench_copy.py [--rounds 30] [--rows 4096]

One thread's CPU time, the least of interleaved rounds over 64 MB of float32, which no cache holds.  Asked: 0.80.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from llmconv.quant import by_name

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", type=int, default=4096)
    options = parser.parse_args()
    weights = np.random.default_rng(0).standard_normal((options.rows, 4096), np.float32) * np.float32(0.02)
    source = weights.reshape(-1).view(np.uint8)
    target, least = np.zeros_like(source), dict[str, float]()

    def measure(name: str, work: Callable[[], object]) -> None:
        started = time.process_time()
        work()
        least[name] = min(least.get(name, np.inf), time.process_time() - started)

    outs = {name: np.zeros((options.rows, by_name(name).row_bytes(4096)), np.uint8) for name in TYPES}
    for _ in range(options.rounds):
        for name, out in outs.items():
            half = (source.size + out.size) // 2  # read and written once each
            measure(f"copy {name}", lambda half=half: np.copyto(target[:half], source[:half]))  # type: ignore[misc]
            measure(name, lambda name=name, out=out: by_name(name).encode(weights, out=out))  # type: ignore[misc]
        measure("copy", lambda: np.copyto(target, source))
    print(
        "| type | M weights/s | copying as many bytes / encoding | copying the weights / encoding |\n|---|---|---|---|"
    )
    for name in TYPES:
        ratios = f"{least[f'copy {name}'] / least[name]:.2f} | {least['copy'] / least[name]:.2f}"
        print(f"| {name} | {weights.size / least[name] / 1e6:.0f} | {ratios} |")


if __name__ == "__main__":
    main()
