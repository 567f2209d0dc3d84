"""Which numbers rotary positions turn together in a Llama whose names tell, or whose document states it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import llmconv

VOCAB, DIM, HEADS, GROUPS, INNER = 7, 8, 2, 2, 12
SIZE = DIM // HEADS
IDS = [1, 4, 2, 6, 3, 0, 5]
META = {
    "embed": "tok_embeddings", "q": "attention.wq", "k": "attention.wk", "v": "attention.wv", "o": "attention.wo",
    "gate": "feed_forward.w1", "down": "feed_forward.w2", "up": "feed_forward.w3", "first": "attention_norm",
    "second": "ffn_norm", "norm": "norm", "head": "output",
}  # fmt: skip
OWN = META | {"q": "wq", "k": "wk", "v": "wv", "o": "wo", "first": "norm1", "second": "norm2"}
HUGGING_FACE = META | {x: f"self_attn.{x}_proj" for x in "qkvo"} | {"first": "input_layernorm"}


def weights(names: dict[str, str]) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    inner = {"q": (DIM, DIM), "k": (DIM // GROUPS, DIM), "v": (DIM // GROUPS, DIM), "o": (DIM, DIM)}
    inner |= {"gate": (INNER, DIM), "down": (DIM, INNER), "up": (INNER, DIM), "first": (DIM,), "second": (DIM,)}
    shapes = {"embed": (VOCAB, DIM), "norm": (DIM,), "head": (VOCAB, DIM)}
    out = {names[part]: shape for part, shape in shapes.items()}
    out |= {f"layers.{i}.{names[part]}": shape for i in range(2) for part, shape in inner.items()}
    return {f"{name}.weight": np.round(rng.standard_normal(shape), 3) for name, shape in out.items()}


def rotated(x: Any, neighbours: bool) -> Any:
    """x: (T, heads, SIZE), turned as complex numbers."""
    angles = np.arange(len(x))[:, None, None] / 10000 ** (np.arange(0, SIZE, 2) / SIZE)
    pairs = (x[..., 0::2], x[..., 1::2]) if neighbours else np.split(x, 2, -1)
    turned = (pairs[0] + 1j * pairs[1]) * np.exp(1j * angles)
    if not neighbours:
        return np.concatenate([turned.real, turned.imag], -1)
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def expected(w: dict[str, Any], names: dict[str, str], neighbours: bool) -> Any:
    def normed(x: Any, name: str) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"]

    x = w[f"{names['embed']}.weight"][IDS]
    for i in range(2):
        at = {part: w.get(f"layers.{i}.{name}.weight") for part, name in names.items()}
        y = normed(x, f"layers.{i}.{names['first']}")
        q, k, v = ((y @ at[part].T).reshape(len(IDS), -1, SIZE) for part in "qkv")
        q, k, heads = rotated(q, neighbours), rotated(k, neighbours), []
        for h in range(HEADS):
            scores = q[:, h] @ k[:, h // GROUPS].T / np.sqrt(SIZE)
            scores[np.triu_indices(len(IDS), 1)] = -np.inf
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, h // GROUPS])
        x = x + np.concatenate(heads, -1) @ at["o"].T
        y = normed(x, f"layers.{i}.{names['second']}")
        gate = y @ at["gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ at["up"].T)) @ at["down"].T
    return normed(x, names["norm"]) @ w[f"{names['head']}.weight"].T


@pytest.mark.parametrize(
    ("names", "stated", "neighbours", "note"),
    [
        (META, None, True, "those of Meta's Llama"),
        (META, False, False, None),
        (OWN, None, False, "the halves of a head turning together"),
        (OWN, True, True, None),
        (HUGGING_FACE, None, False, None),
    ],
)
def test_pairs_are_neighbours_where_names_or_settings_say_so(
    tmp_path: Path, names: dict[str, str], stated: bool | None, neighbours: bool, note: str | None
) -> None:
    state = weights(names)
    config: dict[str, Any] = {"dim": DIM, "n_layers": 2, "n_heads": HEADS, "norm_eps": 1e-5}
    config |= {} if stated is None else {"rope_interleaved": stated}
    tree = {"config": config, "chars": list("abcdefg"), "weights": {n: x.tolist() for n, x in state.items()}}
    (tmp_path / "m.json").write_text(json.dumps(tree, separators=(",", ":")))
    notes = llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf", outtype="f64").notes
    assert [note in said for said in notes] == ([] if note is None else [True])
    wanted = expected(state, names, neighbours)
    anew = llmconv.open(tmp_path / "m.gguf")
    own = {k: v for k, v in anew.metadata.items() if not k.startswith("llmconv.")}
    llmconv.save(anew.but(metadata=own), tmp_path / "anew.json", layout="microgpt")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "folder")
    for path in ("m.gguf", "anew.json", "folder"):
        with torch.no_grad():
            found = llmconv.load(tmp_path / path, "cpu", "f64")(torch.tensor([IDS]))[0].numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 if path == "m.gguf" else 1e-3)
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == (tmp_path / "m.json").read_bytes()
