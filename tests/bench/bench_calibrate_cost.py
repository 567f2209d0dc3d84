"""What calibrating costs, by layers: CPU seconds, peak memory, and the predicted loss that is left.

    python tests/bench/bench_calibrate_cost.py MODEL TEXT [--layers 2,6] [--chunks 8] [--type Q4_0] [--made]

MODEL's first layers, as F16, are calibrated and rounded, but for the embedding; two numbers of layers say what one
costs and, about, all of them.  With `--made` they are random layers of the 1.1B shape, with MODEL's vocabulary.  With
another checkout's folder as PYTHONPATH: its figures.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bench_calibrate import llmconv
from bench_runtime import make

from llmconv import open as open_model, save

LAYERS = 22
"""Of the 1.1B shape."""


def made(vocabulary: dict[str, Any], path: Path, layers: int) -> None:
    """A Llama of that shape as F16, with the vocabulary of another model's keys."""
    opened = open_model(make(path.with_suffix(".made"), layers, "F16", vocab=len(vocabulary["tokenizer.ggml.tokens"])))
    kept = {key: value for key, value in opened.metadata.items() if not key.startswith("tokenizer")}
    save(opened.but(metadata=kept | vocabulary), path, force=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("text")
    options.add_argument("--layers", default="2,6")
    options.add_argument("--chunks", type=int, default=8)
    options.add_argument("--context", type=int, default=512)
    options.add_argument("--type", default="Q4_0")
    options.add_argument("--effort", default="standard")
    options.add_argument("--made", action="store_true")
    given = options.parse_args()
    metadata = open_model(given.model).metadata
    vocabulary = {key: value for key, value in metadata.items() if key.startswith("tokenizer")}
    stated = next(value for key, value in metadata.items() if key.endswith(".block_count"))
    total = LAYERS if given.made else int(stated)
    print(f"{given.chunks * given.context:,} tokens, {given.type}, {given.effort}; of {total} layers\n")
    print("| layers | statistics, CPU s | MB | rounding, CPU s | MB | predicted loss, plainly | left |")
    print("|---" * 7 + "|")
    found: list[tuple[int, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        f16, kept, out = (Path(folder, name) for name in ("f16.gguf", "kept", "out.gguf"))
        for layers in map(int, given.layers.split(",")):
            rest = ",".join(map(str, range(layers, total)))
            cut = ["--prune-layers", rest] if rest else []
            if given.made:
                made(vocabulary, f16, layers)
            else:
                llmconv("quantize", given.model, "-o", f16, "-t", "F16", "--allow-requantize", "-f", *cut)
            window = ["-c", given.context, "--chunks", given.chunks, "--effort", given.effort]
            known = llmconv("calibrate", f16, given.text, "-o", kept, "--force", *window)
            how = ["--pure", "--token-embedding-type", "F16", "-j", 1]
            done = llmconv("quantize", f16, "-o", out, "-t", given.type, "-f", "--calibration", kept, *how)
            rows = [t for t in done.out["outputs"][0]["tensors"] if t.get("loss_after") is not None]
            before, after = (sum(t[key] for t in rows) for key in ("loss_before", "loss_after"))
            found.append((layers, known.cpu, done.cpu))
            print(
                f"| {layers} | {known.cpu:.1f} | {known.peak:,.0f} | {done.cpu:.1f} | {done.peak:,.0f} "
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
