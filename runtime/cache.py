"""The key-value cache, and what a step of the model needs to know about where its tokens stand."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmconv.convert.decoders.facts import Attention, Decoder, Growth, Rope
from llmconv.errors import UsageError
from llmconv.runtime.layers.positions import alibi_slopes, rope_tables

__all__ = ["Cache", "Step"]


class Cache:
    """Keys and values of the tokens seen so far: two (batch, kv heads, capacity, head dim) a layer.

    `length` tokens are filled; `valid` (batch, length) says which of them are tokens rather than padding.  A cache
    grows by itself; `capacity` saves the growing (of the first 4096 tokens), and says how long the text is planned to
    be.  MLA layers keep their latent vectors instead: one "head"; scans, their `states` after the last token; an
    indexer's keys stand behind the layers' keys, and what an MLP was last given behind the scans' states.
    """

    def __init__(self, decoder: Decoder, batch: int = 1, capacity: int = 256):
        self.batch, self.capacity, self.planned, self.length = batch, max(1, min(capacity, 4096)), capacity, 0
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * (2 * decoder.passes)
        self.states: list[tuple[Tensor, ...] | None] = [None] * (2 * len(decoder.layers))
        self.valid: Tensor | None = None

    def keep(self, index: int, *states: Tensor) -> None:
        """The states of layer `index` after the tokens of this step."""
        with torch.inference_mode(False):  # they outlive this call
            self.states[index] = tuple(state.detach().clone() for state in states)

    def extend(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) keys and values of layer `index` after `length`; all of them, old and new."""
        end = self.length + key.shape[2]
        stored = self.layers[index]
        if stored is None or stored[0].shape[2] < end:
            self._plan(end)
            stored = (self._grown(key, stored and stored[0]), self._grown(value, stored and stored[1]))
            self.layers[index] = stored
        stored[0][:, :, self.length : end] = key
        stored[1][:, :, self.length : end] = value
        return stored[0][:, :, :end], stored[1][:, :, :end]

    def reserve(self, tokens: int) -> None:
        """Room for so many more in every layer that has keys."""
        self._plan(self.length + tokens)
        for index, stored in enumerate(self.layers):
            if stored is not None and stored[0].shape[2] < self.length + tokens:
                self.layers[index] = (self._grown(stored[0], stored[0]), self._grown(stored[1], stored[1]))

    def _plan(self, end: int) -> None:
        if end > self.capacity:
            self.capacity = end + end // 4

    def _grown(self, new: Tensor, old: Tensor | None) -> Tensor:
        """Room for `capacity` tokens like `new`, and in it what `old` holds."""
        with torch.inference_mode(False):  # it outlives this call
            room = torch.empty(*new.shape[:2], self.capacity, new.shape[3], dtype=new.dtype, device=new.device)
        if old is not None:
            room[:, :, : self.length] = old[:, :, : self.length]
        return room

    def advance(self, tokens: int) -> None:
        """Count the tokens that all layers have appended."""
        self.length += tokens

    def cut(self, length: int) -> None:
        """Forget everything after the first `length` tokens; `UsageError` where a state can't be taken back."""
        if length < self.length and any(state is not None for state in self.states):
            raise UsageError("a recurrent model keeps no earlier states, so it can't go back in a text")
        self.length = min(self.length, length)
        if self.valid is not None:
            self.valid = self.valid[:, : self.length]


class Step:
    """One call of the model: positions of its tokens and of the keys they may see; masks and tables made once each.

    mask: (B, T) bool, False at padding; None when there is none.
    divisors: the model's divisors of rotary frequencies, by tensor name.
    """

    def __init__(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        dtype: torch.dtype,
        divisors: Mapping[str, Tensor],
    ):
        self.divisors = divisors
        self.tokens = tokens
        batch, count = tokens.shape
        self.cache, self.dtype, self.device = cache, dtype, tokens.device
        past = cache.length if cache else 0
        if mask is not None:
            mask = mask.to(device=tokens.device, dtype=torch.bool)
        old = cache.valid if cache else None
        if mask is not None or old is not None:
            if old is None:
                old = torch.ones(batch, past, dtype=torch.bool, device=tokens.device)
            if mask is None:
                mask = torch.ones(batch, count, dtype=torch.bool, device=tokens.device)
            self.valid: Tensor | None = torch.cat((old, mask), 1)
            self.key_positions = (self.valid.long().cumsum(1) - 1).clamp_(min=0)
            if cache:
                cache.valid = self.valid
        else:
            self.valid = None
            self.key_positions = torch.arange(past + count, device=tokens.device)[None]
        self.positions = self.key_positions[:, past:]  # (B or 1, T)
        self.past, self.count, self.end = past, count, past + count
        # Rotated keys can't be turned back, so a cache that will pass the original context starts with long factors.
        self.planned = max(self.end, cache.planned if cache else 0)
        self._masks: dict[tuple[bool, int | None, int | None], Tensor | None] = {}
        self._tables: dict[Rope, tuple[Tensor, Tensor]] = {}
        self._order: Tensor | None = None
        self.lent: dict[int, tuple[Tensor, Tensor]] = {}
        """Keys and values that other layers borrow, by layer."""
        self.gone = 0
        """How many layers were gone through before those that are gone through again (HRM, Nanbeige)."""
        self.embedded: Tensor
        """(B, T, dim): what the first layer was given, in models whose layers add it again."""
        self.distances: Tensor
        """(B or 1, H, T, S): a bias on the scores, of the last layer that had one of its own (T5)."""
        self.first_values: Tensor | None = None
        """The first layer's values of the tokens, in models whose other layers mix them with their own (RWKV 7)."""
        self.chosen: Tensor | None = None
        """The keys that the last indexer chose, (B, 1, T, S) bool; None: all."""
        self.adapters: Tensor | None = None
        """(B, T): the adapter that each token has, in models whose tokens turn adapters on."""
        self.per_layer: Tensor | None = None
        """(B, T, layers, numbers): vectors of the tokens for each layer."""
        self.packed = self.valid is not None and not bool(self.valid[:, past:].all())
        """Whether some of this step's tokens are padding, so that scans see the others moved together."""

    @property
    def order(self) -> Tensor:
        """(B, T): where this step's tokens stand, padding last."""
        if self._order is None:
            assert self.valid is not None
            self._order = (~self.valid[:, self.past :]).long().argsort(dim=1, stable=True)
        return self._order

    @property
    def counts(self) -> Tensor:
        """(B,): how many of this step's are tokens."""
        assert self.valid is not None
        return self.valid[:, self.past :].sum(1)

    def rope(self, rope: Rope) -> tuple[Tensor, Tensor]:
        """cos and sin of this step's tokens."""
        if rope not in self._tables:
            if rope.scaling == "longrope":
                divisors = self.divisors.get(
                    "rope_factors_long" if self.planned > rope.original_context else "rope_factors_short"
                )
            else:
                divisors = self.divisors.get("rope_freqs") if rope.divided else None
            self._tables[rope] = rope_tables(rope, self.positions, self.end, divisors, self.dtype)
        return self._tables[rope]

    def growth(self, growth: Growth) -> Tensor:
        """(B or 1, 1, T, 1): what queries are multiplied by."""
        passed = ((self.positions + growth.offset) // growth.length).to(torch.float32)
        return (1 + growth.scale * passed.log1p()).to(self.dtype)[:, None, :, None]

    def mask(self, causal: bool, window: int | None, chunk: int | None = None) -> Tensor | None:
        """(B or 1, 1, T, S) bool, True where a token may look; None when it may look everywhere."""
        if window is not None and self.end <= window and causal:
            window = None
        if chunk is not None and self.end <= chunk:
            chunk = None
        key = (causal, window, chunk)
        if key not in self._masks:
            mine, keys = self.positions[:, None, :, None], self.key_positions[:, None, None, :]
            allowed: Tensor | None = None
            if causal and self.count > 1:
                allowed = keys <= mine
            if window is not None:
                near = keys > mine - window
                if not causal:
                    near = near & (keys < mine + window)
                allowed = near if allowed is None else allowed & near
            if chunk is not None:
                same = keys // chunk == mine // chunk
                allowed = same if allowed is None else allowed & same
            if self.valid is not None:
                real = self.valid[:, None, None, :]
                if allowed is not None:
                    # Padding sees itself, so that its softmax is not empty.
                    itself = torch.arange(self.end, device=self.device) == torch.arange(
                        self.past, self.end, device=self.device
                    ).unsqueeze(1)
                    allowed = (allowed & real) | itself
                else:
                    allowed = real
            self._masks[key] = allowed
        return self._masks[key]

    def plain_causal(self, attention: Attention) -> bool:
        """Whether attention is causal over exactly these tokens, so that no mask need be written out."""
        window = attention.window
        return (
            attention.causal
            and self.past == 0
            and self.count > 1
            and self.valid is None
            and (window is None or self.end <= window)
            and (attention.chunk is None or self.end <= attention.chunk)
        )

    def alibi(self, attention: Attention) -> Tensor:
        """(B or 1, H, T, S): what ALiBi adds to the scores."""
        assert attention.alibi is not None
        slopes = alibi_slopes(attention.n_head, attention.alibi, self.device)[None, :, None, None]
        if attention.alibi_quirk:
            bias = slopes.bfloat16() * self.key_positions[:, None, None, :]
            return bias.to(self.dtype) * attention.scale
        distance = self.key_positions[:, None, None, :] - self.positions[:, None, :, None]
        if not attention.causal:
            distance = -distance.abs()
        return (slopes * distance).to(self.dtype)
