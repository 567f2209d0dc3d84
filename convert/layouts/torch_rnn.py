"""Recurrent language models of PyTorch's layers in a state dict: an `Embedding`, `RNN`, `GRU` or `LSTM`, a `Linear`.

The cell is seen by how many gates its matrices have; everything lies as in GGUF (`convert.decoders.recurrent`).  Names
of the parts are the program's own: `encoder.weight`, `lstm.weight_ih_l0`, `fc.bias`.
"""

from __future__ import annotations

import re

import numpy as np

from llmconv.convert.decoders.recurrent import GATES
from llmconv.convert.layouts import makemore
from llmconv.convert.layouts.moves import Model, Move
from llmconv.errors import cut
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["described"]

_PART = re.compile(r"(.+\.)?(weight|bias)_(ih|hh)_l(\d+)")
_EMBEDDING = re.compile(r"emb|enc|wte|tok", re.IGNORECASE)
_OURS = {"ih": "rnn_x", "hh": "rnn_h"}
_CELLS = {gates: cell for cell, gates in GATES.items()}


def described(checkpoint: Checkpoint) -> Model | None:
    """The language model that a state dict makes; None for any other."""
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    parts = {name: found for name in shapes if (found := _PART.fullmatch(name)) is not None}
    first = next((n for n, f in parts.items() if f[2] == "weight" and f[3] == "hh" and f[4] == "0"), None)
    others = [name for name in shapes if name not in parts]
    tables = [name for name in others if name.endswith("weight") and len(shapes[name]) == 2]
    if (model := makemore.described(checkpoint)) is not None:
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
