"""Recurrent language models of PyTorch's layers in a state dict: an `Embedding`, `RNN`, `GRU` or `LSTM`, a `Linear`.

The cell is seen by how many gates its matrices have; everything lies as in GGUF (`convert.tables.recurrent`).  Names of
the parts are the program's own: `encoder.weight`, `lstm.weight_ih_l0`, `fc.bias`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from llmconv.convert.layouts.moves import Model, Move
from llmconv.convert.tables.recurrent import GATES
from llmconv.errors import cut
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["described"]

_PART = re.compile(r"(.+\.)?(weight|bias)_(ih|hh)_l(\d+)")
_EMBEDDING = re.compile(r"emb|enc|wte|tok", re.IGNORECASE)
_JOINED = {"rnn": ("cell.xh_to_h",), "gru": ("cell.xh_to_r", "cell.xh_to_z", "cell.xh_to_hbar")}
"""makemore's cells: matrices on input and state side by side, and a first state that was learned (`start`)."""
_OURS = {"ih": "rnn_x", "hh": "rnn_h"}
_CELLS = {gates: cell for cell, gates in GATES.items()}


def described(checkpoint: Checkpoint) -> Model | None:
    """The language model that a state dict makes; None for any other."""
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    parts = {name: found for name in shapes if (found := _PART.fullmatch(name)) is not None}
    first = next((n for n, f in parts.items() if f[2] == "weight" and f[3] == "hh" and f[4] == "0"), None)
    others = [name for name in shapes if name not in parts]
    tables = [name for name in others if name.endswith("weight") and len(shapes[name]) == 2]
    if (model := _makemore(shapes)) is not None:
        return model
    if first is None or len(tables) != 2 or shapes[tables[0]][0] != shapes[tables[1]][0]:
        return None
    rows, dim = shapes[first]
    embed = next((name for name in tables if _EMBEDDING.search(name)), tables[0])
    head = tables[1 - tables.index(embed)]
    gates = rows // max(dim, 1)
    bias = head.removesuffix("weight") + "bias"
    if {parts[n][1] for n in parts} != {parts[first][1]} or gates not in _CELLS or rows != gates * dim:
        return Model(lacks="its recurrent layers are of a kind that is not computed here")
    if extra := [name for name in others if name not in (embed, head, bias)]:
        return Model(lacks=f"{cut(extra[0])} is no part of a recurrent language model")
    if shapes[head][1] != dim:
        return Model(lacks=f"{cut(head)} takes {shapes[head][1]} numbers, and the layers give {dim}")
    model = Model(moves=[Move(embed, ("token_embd.weight",)), Move(head, ("output.weight",))])
    model.moves += [Move(bias, ("output.bias",))] if bias in shapes else []
    model.moves += [Move(name, (f"blk.{int(f[4])}.{_OURS[f[3]]}.{f[2]}",)) for name, f in parts.items()]
    layers = 1 + max(int(found[4]) for found in parts.values())
    sizes = {"vocab_size": shapes[head][0], "embedding_length": dim, "block_count": layers}
    model.keys = {key: np.uint32(n) for key, n in (sizes | {"feed_forward_length": shapes[embed][1]}).items()}
    model.keys |= {"recurrent.cell": _CELLS[gates], "recurrent.activation": "tanh"}
    if gates == GATES["rnn"]:
        model.notes.append(
            "nothing in the file says so: it is taken that its layers have tanh, as PyTorch's usually have"
        )
    return model


def _makemore(shapes: Mapping[str, tuple[int, ...]]) -> Model | None:
    """makemore's recurrent models, and the reasons against its others; None for another program's.

    h = tanh(W [x, h] + b); its GRU has the new state's share where PyTorch's has the old one's.  Source:
    karpathy/makemore, makemore.py.
    """
    names = set(shapes)
    if names >= {"wte.weight", "mlp.0.weight", "mlp.2.weight"} and "mlp.2.bias" in names and len(names) == 5:
        return Model(lacks="it sees a window of tokens through one MLP (makemore's), which is not computed here")
    if any(name.endswith("cbow.bias") for name in names):
        return Model(lacks="its blocks average what they see (makemore's bag of words), which is not computed here")
    cell = next((c for c, parts in _JOINED.items() if names >= {f"{part}.weight" for part in parts}), None)
    ends = {"start", "wte.weight", "lm_head.weight", "lm_head.bias"}
    if cell is None or not names >= ends:
        return None
    parts = _JOINED[cell]
    wanted = {f"{part}.{x}" for part in parts for x in ("weight", "bias")} | ends
    (vocab, width), dim = shapes["wte.weight"], shapes["start"][-1]
    whole = all(shapes.get(f"{p}.weight") == (dim, width + dim) and shapes.get(f"{p}.bias") == (dim,) for p in parts)
    if names != wanted or not whole or shapes["lm_head.weight"] != (vocab, dim):
        return Model(lacks="its cells are not of the shapes that makemore's have")
    sign = "n1" if cell == "gru" else ""
    model = Model(first="[START]")
    model.moves = [
        Move("wte.weight", ("token_embd.weight",)),
        Move("start", ("blk.0.rnn_start.weight",)),
        Move(tuple(f"{p}.weight" for p in parts), ("blk.0.rnn_x.weight", "blk.0.rnn_h.weight"), f"c{width}{sign}"),
        Move(tuple(f"{p}.bias" for p in parts), ("blk.0.rnn_h.bias",), sign),
        Move("lm_head.weight", ("output.weight",)),
        Move("lm_head.bias", ("output.bias",)),
    ]
    sizes = {"vocab_size": vocab, "embedding_length": dim, "block_count": 1, "feed_forward_length": width}
    model.keys = {key: np.uint32(n) for key, n in sizes.items()}
    model.keys |= {"recurrent.cell": cell, "recurrent.activation": "tanh"}
    if cell == "gru":
        model.keys |= {"recurrent.gates": "sigmoid", "recurrent.reset_after": False}
    return model
