"""Write `simple-36k.json`: an untrained model of simple-llm's shape (36,496 parameters), from a seeded generator.

    python examples/make_sample.py [TARGET]

It stands in for a trained one: real in size, layout and numbers, so that a fresh clone can run the main job at once.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import llmconv
from llmconv.formats.document import cut
from llmconv.formats.json_file import Style

VOCAB, DIM, LAYERS, SEED = 400, 32, 2, 36_496


def words() -> list[str]:
    """Words that can be told apart and pronounced."""
    starts = ["b", "br", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w"]
    made = [a + b + c for a, b, c in product(starts, "aeiou", ["n", "l", "r", "st", "ck"])]
    return ["[PAD]", "[UNK]", "[EOS]", *made[: VOCAB - 3]]


def document() -> dict[str, Any]:
    rng = np.random.default_rng(SEED)

    def matrix(n_in: int, n_out: int) -> list[list[float]]:
        limit = float(np.sqrt(6 / (n_in + n_out)))
        values: list[list[float]] = rng.uniform(-limit, limit, (n_in, n_out)).tolist()
        return values

    def near(value: float, n: int) -> list[float]:
        values: list[float] = (value + 0.01 * rng.standard_normal(n)).tolist()
        return values

    def layer() -> dict[str, Any]:
        norms = {f"layerNorm{i}": {"gamma": near(1, DIM), "beta": near(0, DIM)} for i in (1, 2)}
        return {**{name: matrix(DIM, DIM) for name in ("wq", "wk", "wv", "w1", "w2")}, **norms}

    weights = {
        "embedding": matrix(VOCAB, DIM),
        "transformers": [layer() for _ in range(LAYERS)],
        "output": {"weights": matrix(DIM, VOCAB), "bias": near(0, VOCAB)},
    }
    config = {"vocabSize": VOCAB, "embeddingDim": DIM, "numLayers": LAYERS, "vocab": words()}
    metadata = {"name": "simple-36k", "seed": SEED, "trainingSamples": 0, "source": "examples/make_sample.py"}
    return {"version": "1.0", "config": config, "weights": weights, "metadata": metadata}


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("simple-36k.json")
    tree, tensors = cut(document(), target)
    checkpoint = llmconv.Checkpoint(tensors, {"document": tree, "style": Style()}, "json")
    print(llmconv.save(checkpoint, target, force=True).target)


if __name__ == "__main__":
    main()
