"""makemore's language models in a state dict: bigrams, MLP, bag of words, RNN and GRU (its transformer is minGPT's).

Token 0 begins and ends a text.  Source: karpathy/makemore, makemore.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmconv.convert.layouts.moves import Model, Move
from llmconv.errors import cut
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["described", "may_be"]

_Shapes = Mapping[str, tuple[int, ...]]
_JOINED = {"rnn": ("cell.xh_to_h",), "gru": ("cell.xh_to_r", "cell.xh_to_z", "cell.xh_to_hbar")}
"""Cells: matrices on input and state side by side, and a first state that was learned (`start`)."""
_WORDS = "wte.weight"
_MARKS = ("cell.xh_to_h.weight", "cell.xh_to_hbar.weight", "context_block.cbow.bias", "mlp.2.weight", "logits")


def may_be(name: str) -> bool:
    """Whether a weight's name is one that tells makemore's models from others."""
    return name.endswith(_MARKS)


def described(checkpoint: Checkpoint) -> Model | None:
    """The model that the weights make; None for another program's."""
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    names = set(shapes)
    if names == {"logits"}:
        return _bigrams(shapes)
    if names >= {_WORDS, "mlp.0.weight", "mlp.2.weight"} and "mlp.2.bias" in names and len(names) == 5:
        return _mlp(shapes)
    if any(name.endswith("cbow.bias") for name in names):
        return _bag(shapes, checkpoint)
    cell = next((c for c, parts in _JOINED.items() if names >= {f"{part}.weight" for part in parts}), None)
    if cell is None or not names >= {"start", _WORDS, "lm_head.weight", "lm_head.bias"}:
        return None
    return _recurrent(cell, shapes)


def _sizes(vocab: int, dim: int, layers: int, width: int, **more: int) -> dict[str, np.uint32]:
    sizes = {"vocab_size": vocab, "embedding_length": dim, "block_count": layers, "feed_forward_length": width}
    return {key: np.uint32(n) for key, n in (sizes | more).items()}


def _wrong(shapes: _Shapes, wanted: _Shapes) -> str:
    """What of a model is not there, or of another shape; "" where all is."""
    if absent := sorted(set(wanted) ^ set(shapes)):
        return f"{cut(absent[0])} is {'missing' if absent[0] in wanted else 'no part of it'}"
    odd = [name for name, shape in wanted.items() if shapes[name] != shape]
    return f"{cut(odd[0])} has shape {list(shapes[odd[0]])}, expected {list(wanted[odd[0]])}" if odd else ""


def _bigrams(shapes: _Shapes) -> Model | None:
    """A row of logits for each token."""
    shape = shapes["logits"]
    if len(shape) != 2 or shape[0] != shape[1]:
        return None
    model = Model(first="[START]", moves=[Move("logits", ("token_embd.weight",))])
    model.keys = {**_sizes(shape[0], shape[0], 0, shape[0]), "recurrent.cell": "table"}
    model.notes.append("taken as makemore's bigrams: logits[a] are those of what follows token a")
    return model


def _mlp(shapes: _Shapes) -> Model:
    """logits = W2 tanh(W1 [x_t, x_t-1, ...] + b1) + b2; the last row of the embedding is of what was before a text."""
    rows, width = (*shapes[_WORDS], 0)[:2]
    dim, joined = (*shapes["mlp.0.weight"], 0)[:2]
    seen, vocab = joined // max(width, 1), rows - 1
    wanted = {_WORDS: (rows, width), "mlp.0.weight": (dim, max(seen, 1) * width), "mlp.0.bias": (dim,)}
    if wrong := _wrong(shapes, {**wanted, "mlp.2.weight": (vocab, dim), "mlp.2.bias": (vocab,)}):
        return Model(lacks=f"it has the names of makemore's MLP, but {wrong}")
    model = Model(first="[START]")
    model.moves = [
        Move(_WORDS, ("token_embd.weight", "blk.0.rnn_start.weight"), f"r{vocab}"),
        Move("mlp.0.weight", ("blk.0.rnn_x.weight",)),
        Move("mlp.0.bias", ("blk.0.rnn_x.bias",)),
        Move("mlp.2.weight", ("output.weight",)),
        Move("mlp.2.bias", ("output.bias",)),
    ]
    model.keys = {**_sizes(vocab, dim, 1, width), "recurrent.cell": "window", "recurrent.activation": "tanh"}
    return model


def _bag(shapes: _Shapes, checkpoint: Checkpoint) -> Model:
    """x = token + position; x += the average of x so far; x += W2 tanh(W1 x + b1) + b2; then the head."""
    block = "context_block."
    (vocab, width), inner = (*shapes.get(_WORDS, ()), 0, 0)[:2], (*shapes.get(f"{block}mlp.c_fc.weight", ()), 0)[0]
    seen = (*shapes.get("wpe.weight", ()), 0)[0]
    wanted: dict[str, tuple[int, ...]] = {
        _WORDS: (vocab, width),
        "wpe.weight": (seen, width),
        f"{block}cbow.bias": (1, seen, seen),
        f"{block}mlp.c_fc.weight": (inner, width),
        f"{block}mlp.c_fc.bias": (inner,),
        f"{block}mlp.c_proj.weight": (width, inner),
        f"{block}mlp.c_proj.bias": (width,),
        "lm_head.weight": (vocab, width),
        "lm_head.bias": (vocab,),
    }
    if wrong := _wrong(shapes, wanted):
        return Model(lacks=f"it has the names of makemore's bag of words, but {wrong}")
    if not np.array_equal(checkpoint.tensors[f"{block}cbow.bias"].numpy()[0], np.tri(seen)):
        return Model(lacks="what its bag of words averages is not all that came before")
    model = Model(first="[START]")
    model.moves = [
        Move(_WORDS, ("token_embd.weight",)),
        Move("wpe.weight", ("position_embd.weight",)),
        Move(f"{block}cbow.bias", (), f"m{seen}"),
        *(
            Move(f"{block}mlp.{own}.{part}", (f"blk.0.{name}.{part}",))
            for own, name in (("c_fc", "ffn_up"), ("c_proj", "ffn_down"))
            for part in ("weight", "bias")
        ),
        Move("lm_head.weight", ("output.weight",)),
        Move("lm_head.bias", ("output.bias",)),
    ]
    sizes = _sizes(vocab, width, 1, inner, context_length=seen)
    model.keys = {**sizes, "recurrent.cell": "mean", "recurrent.activation": "tanh"}
    return model


def _recurrent(cell: str, shapes: _Shapes) -> Model:
    """h = tanh(W [x, h] + b); its GRU has the new state's share where PyTorch's has the old one's."""
    parts = _JOINED[cell]
    (vocab, width), dim = (*shapes[_WORDS], 0)[:2], (shapes["start"] or (0,))[-1]
    wanted: dict[str, tuple[int, ...]] = {_WORDS: (vocab, width), "start": (1, dim)}
    wanted |= {f"{p}.weight": (dim, width + dim) for p in parts} | {f"{p}.bias": (dim,) for p in parts}
    if wrong := _wrong(shapes, {**wanted, "lm_head.weight": (vocab, dim), "lm_head.bias": (vocab,)}):
        return Model(lacks=f"its cells are not of the shapes that makemore's have: {wrong}")
    sign = "n1" if cell == "gru" else ""
    model = Model(first="[START]")
    model.moves = [
        Move(_WORDS, ("token_embd.weight",)),
        Move("start", ("blk.0.rnn_start.weight",), "w"),
        Move(tuple(f"{p}.weight" for p in parts), ("blk.0.rnn_x.weight", "blk.0.rnn_h.weight"), f"c{width}{sign}"),
        Move(tuple(f"{p}.bias" for p in parts), ("blk.0.rnn_h.bias",), sign),
        Move("lm_head.weight", ("output.weight",)),
        Move("lm_head.bias", ("output.bias",)),
    ]
    model.keys = {**_sizes(vocab, dim, 1, width), "recurrent.cell": cell, "recurrent.activation": "tanh"}
    if cell == "gru":
        model.keys |= {"recurrent.gates": "sigmoid", "recurrent.reset_after": False}
    return model
