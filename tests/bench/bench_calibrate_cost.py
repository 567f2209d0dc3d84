"""What calibrating costs, by layers: CPU seconds, peak memory, and the predicted loss that is left.

    python tests/bench/bench_calibrate_cost.py MODEL TEXT [--layers 2,6] [--chunks 8] [--type Q4_0]

MODEL's first layers, as F16, are calibrated and rounded, but for the embedding; two numbers of layers say what one
costs and, about, all of them.  With another checkout's folder as PYTHONPATH: its figures.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench_calibrate import llmconv

from llmconv import open as open_model


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("text")
    options.add_argument("--layers", default="2,6")
    options.add_argument("--chunks", type=int, default=8)
    options.add_argument("--context", type=int, default=512)
    options.add_argument("--type", default="Q4_0")
    options.add_argument("--effort", default="standard")
    given = options.parse_args()
    metadata = open_model(given.model).metadata
    total = int(next(value for key, value in metadata.items() if key.endswith(".block_count")))
    print(f"{given.chunks * given.context:,} tokens, {given.type}, {given.effort}; of {total} layers\n")
    print("| layers | statistics, CPU s | MB | rounding, CPU s | MB | predicted loss, plainly | left |")
    print("|---" * 7 + "|")
    found: list[tuple[int, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        f16, kept, out = (Path(folder, name) for name in ("f16.gguf", "kept", "out.gguf"))
        for layers in map(int, given.layers.split(",")):
            rest = ",".join(map(str, range(layers, total)))
            cut = ["--prune-layers", rest] if rest else []
            llmconv("quantize", given.model, "-o", f16, "-t", "F16", "--allow-requantize", "-f", *cut)
            window = ["-c", given.context, "--chunks", given.chunks, "--effort", given.effort]
            known = llmconv("calibrate", f16, given.text, "-o", kept, "--force", *window)
            how = ["--pure", "--token-embedding-type", "F16", "-j", 1]
            made = llmconv("quantize", f16, "-o", out, "-t", given.type, "-f", "--calibration", kept, *how)
            rows = [t for t in made.out["outputs"][0]["tensors"] if t.get("loss_after") is not None]
            before, after = (sum(t[key] for t in rows) for key in ("loss_before", "loss_after"))
            found.append((layers, known.cpu, made.cpu))
            print(
                f"| {layers} | {known.cpu:.1f} | {known.peak:,.0f} | {made.cpu:.1f} | {made.peak:,.0f} "
                f"| {before:.4g} | {after / before:.2%} |",
                flush=True,
            )
    if len(found) > 1:
        (few, a, b), (many, c, d) = found[0], found[-1]
        one = [(c - a) / (many - few), (d - b) / (many - few)]
        all_of = [c + one[0] * (total - many), d + one[1] * (total - many)]
        print(f"\na layer: {one[0]:.1f} + {one[1]:.1f} CPU s; all {total}: {all_of[0]:.0f} + {all_of[1]:.0f}")


if __name__ == "__main__":
    main()
