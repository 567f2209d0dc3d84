"""What a recurrent decoder is made of: the ancestors of today's models, whose layers carry a state from token to token.

Names in GGUF, layer `i`, G gates stacked in PyTorch's order (rnn: 1; gru: reset, update, new; lstm: in, forget, cell,
out):

    token_embd.weight (vocab, width)         what the first layer is given; of one-hot inputs, its products at once
    blk.i.rnn_x.weight (G * dim, width)      on what the layer below gives; absent at layer 0 of one-hot inputs
    blk.i.rnn_h.weight (G * dim, dim)        on the layer's own last output
    blk.i.rnn_x.bias, blk.i.rnn_h.bias       (G * dim), each optional
    blk.i.rnn_start.weight (1, dim)          or (dim): the state before the first token; zeros where absent
    output.weight (vocab, dim), output.bias

Before them came models that see tokens through a window, an average, or one at a time (makemore's); they take the same
place, as a single layer whose state is what it must remember:

    window  blk.0.rnn_x.weight (dim, n * width), .bias    on what the last n tokens give, the newest first, then tanh;
            blk.0.rnn_start.weight (1, width)             stands for each token before the first
    mean    position_embd.weight (n, width)               added to the embedding; x + the average of it so far, then
            blk.0.ffn_up, blk.0.ffn_down                  x + down(tanh(up(x))), both with biases
    table   token_embd.weight (vocab, vocab)              the logits after each token; no layer, no output.weight

Keys, after the architecture's name: `recurrent.cell`, `recurrent.activation` (tanh, relu), `recurrent.gates` (sigmoid,
hard_sigmoid of Keras 2, hard_sigmoid_6 of Keras 3), `recurrent.reset_after` (a GRU's reset gate is applied to the
product, as in PyTorch, not to the state).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ARCH", "CELL", "GATES", "SIZES", "Recurrent", "recurrent", "shapes"]

ARCH = "char-rnn"
"""`general.architecture` of recurrent character models."""
CELL = "recurrent.cell"
SIZES = "recurrent.sizes"
"""The layers' sizes, where they differ; `embedding_length` is the last one's."""
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
_CELLS = (*GATES, "window", "mean", "table")
_ACTIVATIONS, _SIGMOIDS = ("tanh", "relu"), ("sigmoid", "hard_sigmoid", "hard_sigmoid_6")


@dataclass(frozen=True, slots=True)
class Recurrent:
    """cell: "rnn", "gru", "lstm", "window", "mean" or "table".   layers: how many.   dim: of the last.

    window: how many tokens a window sees.   Others: see the keys above.
    """

    cell: str
    layers: int
    dim: int
    activation: str = "tanh"
    gates: str = "sigmoid"
    reset_after: bool = True
    window: int = 0


def shapes(metadata: Mapping[str, Any], one_hot: bool = False) -> dict[str, tuple[int, ...]]:
    """The tensors of a model with layers of one size, by its keys.   one_hot: whether its inputs are."""
    vocab, dim, layers, width = (
        int(metadata[f"{ARCH}.{key}"])
        for key in ("vocab_size", "embedding_length", "block_count", "feed_forward_length")
    )
    rows = GATES[str(metadata[f"{ARCH}.{CELL}"])] * dim
    out: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, rows if one_hot else width)}
    for i in range(layers):
        if i or not one_hot:
            out[f"blk.{i}.rnn_x.weight"] = (rows, dim if i else width)
        out |= {f"blk.{i}.rnn_h.weight": (rows, dim), f"blk.{i}.rnn_h.bias": (rows,)}
    return out | {"output.weight": (vocab, dim), "output.bias": (vocab,)}


def recurrent(read: Any) -> Recurrent:
    """The description by a file's keys and shapes, which must agree.   read: a reader of `decoders.reader`."""

    def one_of(key: str, known: tuple[str, ...]) -> str:
        value = read.get(key, known[0])
        if value not in known:
            raise read.bad(f"key '{read.arch}.{key}'", f"is {value!r:.60}, expected one of {', '.join(known)}")
        return str(value)

    cell = one_of(CELL, _CELLS)
    if cell not in GATES:
        return _SEEING[cell](read)
    layers, dim = read.count("block_count", least=1), read.shape("output.weight", 2)[1]
    vocab, width = read.shape("token_embd.weight", 2)
    if read.shape("output.weight", 2)[0] != vocab:
        raise read.bad("tensor 'output.weight'", f"has {read.shapes['output.weight'][0]} rows, expected {vocab}")
    for i in range(layers):
        own = read.shape(f"blk.{i}.rnn_h.weight", 2)
        size = dim if i == layers - 1 else own[1]
        rows = GATES[cell] * size
        bias = ((rows,), None)
        if own != (rows, size):
            raise read.bad(f"tensor 'blk.{i}.rnn_h.weight'", f"has shape {list(own)}, expected {[rows, size]}")
        if i or f"blk.{i}.rnn_x.weight" in read.shapes:
            found = read.shape(f"blk.{i}.rnn_x.weight", 2)
            if found != (rows, width):
                raise read.bad(f"tensor 'blk.{i}.rnn_x.weight'", f"has shape {list(found)}, expected {[rows, width]}")
        elif width != rows:
            raise read.bad(
                "tensor 'token_embd.weight'", f"has rows of {width}, expected {rows}: its inputs are one-hot"
            )
        if read.shapes.get(f"blk.{i}.rnn_start.weight", (size,)) not in ((1, size), (size,)):
            raise read.bad(f"tensor 'blk.{i}.rnn_start.weight'", f"has another shape than {[1, size]}")
        for name in ("rnn_x", "rnn_h"):
            if read.shapes.get(f"blk.{i}.{name}.bias") not in bias:
                raise read.bad(f"tensor 'blk.{i}.{name}.bias'", f"has another shape than {[rows]}")
        width = size
    reset = read.flag("recurrent.reset_after", True)
    activation, gates = one_of("recurrent.activation", _ACTIVATIONS), one_of("recurrent.gates", _SIGMOIDS)
    return Recurrent(cell, layers, dim, activation, gates, bool(reset))


def _window(read: Any) -> Recurrent:
    (vocab, width), dim = read.shape("token_embd.weight", 2), read.shape("output.weight", 2)[1]
    seen = read.shape("blk.0.rnn_x.weight", 2)[1] // max(width, 1)
    _expect(
        read,
        {
            "output.weight": (vocab, dim),
            "blk.0.rnn_x.weight": (dim, max(seen, 1) * width),
            "blk.0.rnn_x.bias": (dim,),
        },
    )
    if (start := read.shape("blk.0.rnn_start.weight")) not in ((1, width), (width,)):
        raise read.bad("tensor 'blk.0.rnn_start.weight'", f"has shape {list(start)}, expected {[1, width]}")
    return Recurrent("window", 1, dim, window=seen)


def _mean(read: Any) -> Recurrent:
    (vocab, width), inner = read.shape("token_embd.weight", 2), read.shape("blk.0.ffn_up.weight", 2)[0]
    _expect(
        read,
        {
            "output.weight": (vocab, width),
            "position_embd.weight": (read.shape("position_embd.weight", 2)[0], width),
            "blk.0.ffn_up.weight": (inner, width),
            "blk.0.ffn_up.bias": (inner,),
            "blk.0.ffn_down.weight": (width, inner),
            "blk.0.ffn_down.bias": (width,),
        },
    )
    return Recurrent("mean", 1, width)


def _table(read: Any) -> Recurrent:
    vocab = read.shape("token_embd.weight", 2)[0]
    _expect(read, {"token_embd.weight": (vocab, vocab)})
    return Recurrent("table", 0, vocab)


_SEEING = {"window": _window, "mean": _mean, "table": _table}


def _expect(read: Any, wanted: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in wanted.items():
        if read.shape(name) != shape:
            raise read.bad(f"tensor '{name}'", f"has shape {list(read.shape(name))}, expected {list(shape)}")
