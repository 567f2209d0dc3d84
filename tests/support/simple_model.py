"""What simple-llm computes, in plain numpy and float64: the reference that converted files are held against."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmconv.convert.translate import translate
from llmconv.formats.checkpoint import Checkpoint


def logits(checkpoint: Checkpoint, ids: list[int]) -> Any:
    """(positions, vocabulary) float64, from a checkpoint of any dialect, by GGUF's names and keys."""
    model = translate(checkpoint, "gguf")
    keys = {k.removeprefix("simple-llm."): v for k, v in model.metadata.items()}
    assert model.metadata["general.architecture"] == "simple-llm" and keys["attention.causal"] is False
    w = {name: t.numpy().astype(np.float64) for name, t in model.tensors.items()}
    heads, n = int(keys["attention.head_count"]), int(keys["embedding_length"])
    eps = float(str(keys["attention.layer_norm_epsilon"]))  # 1e-8, which single precision holds only nearly
    half = np.arange(n) // 2 * 2 / n
    angle = np.arange(len(ids))[:, None] / np.power(10000, half)
    x = w["token_embd.weight"][ids] + np.where(np.arange(n) % 2 == 0, np.sin(angle), np.cos(angle))

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return scaled * w[name + ".weight"] + w[name + ".bias"]

    def split(x: Any) -> Any:
        return x.reshape(len(ids), heads, n // heads).transpose(1, 0, 2)

    for i in range(int(keys["block_count"])):
        at = f"blk.{i}."
        q, k, v = (split(x @ w[f"{at}attn_{name}.weight"].T) for name in "qkv")
        scores = q @ k.transpose(0, 2, 1) * float(keys["attention.scale"])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True) + float(keys["attention.softmax_start"])
        mixed = (weights @ v).transpose(1, 0, 2).reshape(len(ids), n)
        if at + "attn_output.weight" in w:
            mixed = mixed @ w[at + "attn_output.weight"].T
        x = norm(x + mixed, at + "attn_output_norm")
        hidden = np.maximum(x @ w[at + "ffn_up.weight"].T, 0)
        x = norm(x + hidden @ w[at + "ffn_down.weight"].T, at + "layer_output_norm")
    return x @ w["output.weight"].T + w["output.bias"]


def document(
    *, vocab: int = 7, dim: int = 4, layers: int = 2, heads: int = 0, seed: int = 0, scale: float = 0.3
) -> dict[str, Any]:
    """A random simple-llm document; heads > 0: version 2.0 with several heads."""
    rng = np.random.default_rng(seed)

    def numbers(*shape: int) -> Any:
        return (rng.standard_normal(shape) * scale).tolist()

    def layer() -> dict[str, Any]:
        norms = {f"layerNorm{i}": {"gamma": numbers(dim), "beta": numbers(dim)} for i in (1, 2)}
        feed = {"w1": numbers(dim, dim), "w2": numbers(dim, dim)}
        if not heads:
            return {**{name: numbers(dim, dim) for name in ("wq", "wk", "wv")}, **feed, **norms}
        split = {name: numbers(heads, dim, dim // heads) for name in ("wq", "wk", "wv")}
        return {"type": "multi-head", "multiHeadAttention": {**split, "wo": numbers(dim, dim)}, **feed, **norms}

    words = ["[PAD]", "[UNK]", "[EOS]", *(f"word{i}" for i in range(vocab - 3))]
    config: dict[str, Any] = {"vocabSize": vocab, "embeddingDim": dim, "numLayers": layers}
    if heads:
        config["numHeads"] = heads
    config["vocab"] = words
    output = {"weights": numbers(dim, vocab), "bias": numbers(vocab)}
    weights = {"embedding": numbers(vocab, dim), "transformers": [layer() for _ in range(layers)], "output": output}
    return {"version": "2.0" if heads else "1.0", "config": config, "weights": weights}
