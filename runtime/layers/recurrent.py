"""Recurrent decoders: RNN, GRU and LSTM layers over a token embedding (see `convert.decoders.recurrent` for the names).

What a layer makes of its inputs is one product for all tokens; only the state goes from token to token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmconv.convert.decoders.facts import Decoder
from llmconv.convert.decoders.recurrent import GATES, Recurrent
from llmconv.quant.block import BlockType
from llmconv.runtime.cache import Cache, Step
from llmconv.runtime.linear import Embedding, Linear
from llmconv.runtime.model import Model
from llmconv.runtime.pieces import LayerPieces, Types, grouped

__all__ = ["RecurrentModel", "State"]


class State(Cache):
    """The layers' last outputs (and an LSTM's cells), (batch, dim) each; None before the first token."""

    def __init__(self, decoder: Decoder, batch: int, layers: int):
        super().__init__(decoder, batch, 1)
        self.states = [None] * layers


def _stored(types: Types, name: str) -> tuple[type[BlockType] | None, torch.dtype]:
    """How a weight is stored: blocks of a type, or plain numbers."""
    stored = types.get(name, torch.float32)
    return (None, stored) if isinstance(stored, torch.dtype) else (stored, torch.float32)


class Cell(nn.Module):
    """One layer: `rnn_x` on what it is given, `rnn_h` on its own last output."""

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def __init__(self, decoder: Decoder, spec: Recurrent, index: int, types: Types):
        super().__init__()
        self.spec, self.dim = spec, decoder.shapes[f"blk.{index}.rnn_h.weight"][1]
        for name in ("rnn_x", "rnn_h"):
            full = f"blk.{index}.{name}"
            shape, bias = decoder.shapes.get(f"{full}.weight"), decoder.shapes.get(f"{full}.bias")
            kind, dtype = _stored(types, f"{full}.weight")
            self.register_module(name, Linear(shape, kind, bias, dtype) if shape is not None else None)
        self.register_module("rnn_start", None)
        if (shape := decoder.shapes.get(f"blk.{index}.rnn_start.weight")) is not None:
            kind, dtype = _stored(types, f"blk.{index}.rnn_start.weight")
            self.rnn_start = Embedding((1, shape[-1]), kind, None, dtype)

    def forward(self, x: Tensor, mask: Tensor | None, state: tuple[Tensor, Tensor] | None) -> Any:
        """x: (B, T, width) -> (B, T, dim), and the state after it.   mask: (B, T), False at padding."""
        given = x if self.rnn_x is None else self.rnn_x(x)
        if state is None:
            zero = given.new_zeros(x.shape[0], self.dim)
            first = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
            state = (zero if self.rnn_start is None else self.rnn_start(first, x.dtype), zero)
        out = []
        for t in range(x.shape[1]):
            new = self.step(given[:, t], *state)
            if mask is not None:  # padding leaves the state as it was
                keep = mask[:, t, None]
                new = (torch.where(keep, new[0], state[0]), torch.where(keep, new[1], state[1]))
            state = new
            out.append(state[0])
        return torch.stack(out, 1), state

    def step(self, given: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """One token: given (B, gates * dim), the last output and cell -> the next ones."""
        spec = self.spec
        if spec.cell == "rnn":
            return self.activation(given + self.rnn_h(hidden)), cell
        if spec.cell == "lstm":
            first, forget, new, last = (given + self.rnn_h(hidden)).chunk(GATES["lstm"], -1)
            cell = self.gate(forget) * cell + self.gate(first) * self.activation(new)
            return self.gate(last) * self.activation(cell), cell
        (reset_x, update_x, new_x), dim = given.chunk(GATES["gru"], -1), self.dim
        reset_h, update_h, new_h = self.rnn_h(hidden).chunk(GATES["gru"], -1)
        reset, update = self.gate(reset_x + reset_h), self.gate(update_x + update_h)
        # Before: the reset gate is on the state, and its product is another one.
        product = reset * new_h if spec.reset_after else self.rnn_h(reset * hidden)[:, 2 * dim :]
        new = self.activation(new_x + product)
        return (1 - update) * new + update * hidden, cell

    def activation(self, x: Tensor) -> Tensor:
        return torch.relu(x) if self.spec.activation == "relu" else torch.tanh(x)

    def gate(self, x: Tensor) -> Tensor:
        """A hard sigmoid is a straight line from -2.5 to 2.5 in Keras 2 and TensorFlow.js, from -3 to 3 in Keras 3."""
        if self.spec.gates == "sigmoid":
            return torch.sigmoid(x)
        return ((x / 6 if self.spec.gates == "hard_sigmoid_6" else 0.2 * x) + 0.5).clamp(0, 1)


class _Seeing(LayerPieces):
    """A layer whose state is what it must remember of earlier tokens, not what it computed."""

    def __init__(self, decoder: Decoder, spec: Recurrent, index: int, types: Types):
        super().__init__()
        self.n = spec.window
        for name, parts in grouped(decoder.shapes, f"blk.{index}.").items():
            full = f"blk.{index}.{name}"
            kind, dtype = _stored(types, f"{full}.weight")
            made, shape = (Embedding if name == "rnn_start" else Linear), parts["weight"]
            self.add_module(name, made((1, *shape)[-2:], kind, parts.get("bias"), dtype))


class Window(_Seeing):
    """The last n tokens side by side, the newest first, through one matrix; `rnn_start` for those before the first.

    Its state are the n - 1 last inputs, (B, n - 1, width), the newest last.
    """

    def forward(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> Any:
        if state is None:
            first = torch.zeros(x.shape[0], self.n - 1, dtype=torch.long, device=x.device)
            state = self.rnn_start(first, x.dtype)
        count = x.shape[1]
        if mask is not None:  # tokens first, padding behind them
            order = (~mask).long().argsort(dim=1, stable=True)
            x = x.gather(1, order[..., None].expand_as(x))
        seen = torch.cat([state, x], 1)
        joined = torch.cat([seen[:, self.n - 1 - k :][:, :count] for k in range(self.n)], -1)
        out = torch.tanh(self.rnn_x(joined))
        if mask is None:
            return out, seen[:, count:]
        last = mask.sum(1, keepdim=True) + torch.arange(self.n - 1, device=x.device)
        back = order.argsort(1)[..., None].expand_as(out)
        return out.gather(1, back), seen.gather(1, last[..., None].expand_as(state))


class Mean(_Seeing):
    """The average of what came so far is added, then an MLP.  Its state: the sum, (B, 1, width), and the count."""

    def forward(self, x: Tensor, mask: Tensor | None, state: tuple[Tensor, Tensor] | None) -> Any:
        there = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device) if mask is None else mask.to(x.dtype)
        total, count = (x * there[..., None]).cumsum(1), there.cumsum(1)[..., None]
        if state is not None:
            total, count = total + state[0], count + state[1]
        x = x + total / count.clamp_min(1)
        out = x + self.ffn_down(torch.tanh(self.ffn_up(x)))
        return out, (total[:, -1:], count[:, -1:])


_CELLS = {"window": Window, "mean": Mean}


class RecurrentModel(Model):
    """A recurrent decoder with `Model`'s interface: token ids in, logits out; its cache is a `State`."""

    def __init__(self, decoder: Decoder, types: Types | None = None, dtype: torch.dtype = torch.float32):
        super().__init__(decoder, types, dtype)
        assert decoder.recurrent is not None
        self.spec = decoder.recurrent
        cell = _CELLS.get(self.spec.cell, Cell)
        self.blk = nn.ModuleList(cell(decoder, self.spec, i, types or {}) for i in range(self.spec.layers))

    def cache(self, batch: int = 1, capacity: int = 256) -> State:
        return State(self.decoder, batch, self.spec.layers)

    def hidden(
        self, tokens: Tensor, mask: Tensor | None = None, cache: Cache | None = None, kinds: Tensor | None = None
    ) -> Tensor:
        """The last layer's outputs: (B, T, dim)."""
        states = cache.states if isinstance(cache, State) else [None] * self.spec.layers
        mask = None if mask is None else mask.to(device=tokens.device, dtype=torch.bool)
        x = self.begin(tokens, Step(tokens, mask, cache, self.dtype, {}))
        for i, cell in enumerate(self.blk):
            if self.wants is not None:
                self.wants(i)
            x, states[i] = cell(x, mask, states[i])
        if cache is not None:
            cache.advance(tokens.shape[1])
        return x

    def head(self, hidden: Tensor) -> Tensor:
        """A table's rows are logits already."""
        return hidden if self.spec.cell == "table" else super().head(hidden)

    def through(self, layer: int, x: Tensor, step: Step) -> Tensor:
        """x through one layer, from its first token on."""
        if self.wants is not None:
            self.wants(layer)
        out: Tensor = self.blk[layer](x, None, None)[0]
        return out

    def end(self, x: Tensor) -> Tensor:
        """The last layer's outputs go to the head as they are."""
        return x
