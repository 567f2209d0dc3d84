"""Train `simple-36k.json`, the sample model, on `corpus.txt`: 36,496 parameters in the legacy program's own format.

    python examples/make_sample.py [FOLDER]

Also writes `pairs.json`, the (input, target) pairs that it is trained on: five words, and the same a word later.
Takes less than a minute on two CPU cores; needs torch.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import llmconv

WINDOW = 5
HERE = Path(__file__).parent


def pairs(text: str) -> list[dict[str, str]]:
    """Every window of the text and its successor."""
    words = text.lower().split()
    windows = [" ".join(words[i : i + WINDOW]) for i in range(len(words) - WINDOW + 1)]
    return [{"input": a, "target": b} for a, b in itertools.pairwise(windows)]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    data = folder / "pairs.json"
    data.write_text(json.dumps(pairs((HERE / "corpus.txt").read_text("utf-8")), indent=1, ensure_ascii=False) + "\n")
    with tempfile.TemporaryDirectory() as work:
        config = llmconv.TrainConfig(
            data=str(data),
            output=work,
            preset="simple-36k",
            steps=300,
            batch_size=64,
            lr=0.01,
            weight_decay=0.0,
            export="json",
            export_type="f64",
            device="cpu",
            tensorboard=False,
            plot=False,
        )
        result = llmconv.train(config)
        shutil.copyfile(result.exports[0], folder / "simple-36k.json")
    print(f"pair perplexity {result.val_perplexity:.4f} after {result.seconds:.0f} s")


if __name__ == "__main__":
    main()
