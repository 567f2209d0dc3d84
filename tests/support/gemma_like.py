"""A vocabulary as Gemma's are, of any size."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def gemma_like(n: int, runs_last: bool = True) -> dict[str, Any]:
    """The GGUF keys of a vocabulary of `n` tokens as Gemma's are: specials, bytes, words with scores, and runs of
    newlines, spaces and tabs that are user-defined."""
    chance = random.Random(0)
    runs = [c * k for c in "\n \t" for k in range(2, 32)]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    types = [3, 3, 3, 2, 3, 3]
    tokens += [f"<0x{b:02X}>" for b in range(256)]
    types += [6] * 256
    letters = list("▁etaoinshrdlucmfwypvbgkjqxz0123456789.,:\n\tABCDEFGHIJKLMNOPQRSTUVWXYZäöüé你好")
    pieces = dict.fromkeys(letters)
    words = list(pieces)
    room = n - len(tokens) - len(runs)
    while len(pieces) < room:
        made = words[int(len(words) * chance.random() ** 3)] + words[int(min(len(words), 4000) * chance.random())]
        if "▁" in made[1:] or len(made) > 16 or set(made) & {"\n", "\t"}:
            continue
        if made not in pieces:
            pieces[made] = None
            words.append(made)
    normal = list(pieces)
    scores = [0.0] * len(tokens)
    body = [(t, 1, -float(i)) for i, t in enumerate(normal[len(letters) :] + letters)]
    user = [(t, 4, -1000.0) for t in runs]
    rows = body + user if runs_last else user + body
    tokens += [t for t, _, _ in rows]
    types += [y for _, y, _ in rows]
    scores += [s for _, _, s in rows]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(2),
        "tokenizer.ggml.eos_token_id": np.uint32(1),
        "tokenizer.ggml.unknown_token_id": np.uint32(3),
        "tokenizer.ggml.padding_token_id": np.uint32(0),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }
