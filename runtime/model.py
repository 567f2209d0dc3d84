"""The decoder: one module, assembled from the pieces that `convert.tables.decoder.Decoder` names.

Modules carry GGUF's tensor names, so `state_dict()` keys are the names of a canonical checkpoint:
`blk.0.attn_q.weight`. A `Block` holds the union of all pieces, None where a model lacks one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmconv.convert.tables.decoder import Decoder
from llmconv.errors import UsageError
from llmconv.runtime import products
from llmconv.runtime.attention import self_attention
from llmconv.runtime.cache import Cache, Step
from llmconv.runtime.convolution import short_convolution
from llmconv.runtime.mlp import activation, feed_forward
from llmconv.runtime.norms import Norm
from llmconv.runtime.pieces import CLASSIFIER, ENDS, VECTORS, LayerPieces, Pieces, Types, grouped, piece
from llmconv.runtime.positions import sinusoidal
from llmconv.runtime.scans.scan import scan

__all__ = ["MIXERS", "Block", "Model"]


def _linear(block: LayerPieces, x: Tensor, step: Step) -> Tensor:
    out: Tensor = block.attn_output(x)
    return out


MIXERS = {"attention": self_attention, "convolution": short_convolution, "scan": scan, "linear": _linear}
"""What mixes tokens, by the names of `Layer.mixers`."""


class Block(LayerPieces):
    """One layer.  Every piece is an attribute, None when the layer has no such tensor."""

    def __init__(self, decoder: Decoder, index: int, types: Types):
        super().__init__()
        self.index, self.spec, self.residual_scale = index, decoder.layers[index], decoder.residual_scale
        shapes = grouped(decoder.shapes, f"blk.{index}.")
        for name, parts in shapes.items():
            if "" in parts and name in VECTORS:
                del self._modules[name]
                self.register_parameter(name, nn.Parameter(torch.zeros(parts[""])))
                continue
            self.add_module(name, piece(name, parts, decoder, types, f"blk.{index}.{name}"))
        if "convolution" in self.spec.mixers:
            self.shortconv = Pieces()
            for name, parts in grouped(decoder.shapes, f"blk.{index}.shortconv.").items():
                self.shortconv.add_module(name, piece(name, parts, decoder, types, f"blk.{index}.shortconv.{name}"))
        for name in ("attn_norm", "ffn_norm"):
            if name in decoder.weightless and not (name == "ffn_norm" and self.spec.parallel):
                self.add_module(name, Norm(decoder.norm))
        if self.spec.mlp is not None and self.spec.mlp.activation not in ("swiglu_oai", "xielu"):
            activation(self.spec.mlp.activation)  # refuse now rather than in the middle of a run

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: (B, T, dim) -> (B, T, dim)."""
        if self.spec.norm_after:
            x = self.attn_norm(x + self_attention(self, x, step))
            return self.ffn_norm(x + feed_forward(self, x, x))  # type: ignore[no-any-return]
        normed = x if self.attn_norm is None else self.attn_norm(x)
        # Falcon-40B norms apart for attention (attn_norm_2) and for the MLP (attn_norm).
        attended = self._mixed(normed if self.attn_norm_2 is None else self.attn_norm_2(x), step)
        mlp_norm = getattr(self, self.spec.mlp_norm)
        if self.post_attention_norm is not None and self.post_attention_norm is not mlp_norm:
            attended = self.post_attention_norm(attended)
        inside = self.spec.norms_inside
        if inside and self.attn_output_norm is not None:
            attended = self.attn_output_norm(attended)
        if self.spec.parallel:
            inner = feed_forward(self, normed if mlp_norm is None else mlp_norm(x), x)
            return x + (attended + inner) * self.residual_scale
        entered, kept = x, normed if self.spec.residual_after_norm else x
        x = self._added(kept, attended)
        if self.attn_output_norm is not None and self.attn_output_norm is not mlp_norm and not inside:
            x = self.attn_output_norm(x)
        if self.spec.mlp is None:
            return x
        normed = x if mlp_norm is None else mlp_norm(x)
        inner = feed_forward(self, normed, entered)
        if self.post_ffw_norm is not None:
            inner = self.post_ffw_norm(inner)
        if inside and self.layer_output_norm is not None:
            inner = self.layer_output_norm(inner)
        x = normed if self.spec.residual_after_norm else x
        x = self._added(x, inner)
        return x if self.layer_output_norm is None or inside else self.layer_output_norm(x)

    def _mixed(self, x: Tensor, step: Step) -> Tensor:
        """What the layer's mixers make of x, added up; zeros where it has none."""
        if not self.spec.mixers:
            return torch.zeros_like(x)
        first, *others = (MIXERS[name](self, x, step) for name in self.spec.mixers)
        return sum(others, start=first)

    def _added(self, x: Tensor, made: Tensor) -> Tensor:
        return x + (made * self.residual_scale if self.residual_scale != 1 else made)


class Model(Pieces):
    """A decoder: token ids in, logits out.

    decoder: what it is made of.  types: how its tensors are stored (see `Types`).
    `tokenizer`, `metadata`, `where` (what messages call it) and `notes` (what was decided for it, and should be known)
    come with a loaded model; `dtype` is what it computes in.
    """

    def __init__(self, decoder: Decoder, types: Types | None = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        types = types or {}
        self.decoder, self.dtype = decoder, dtype
        self.metadata: dict[str, Any] = {}
        self.tokenizer: Any = None
        self.where = "this model"
        self.notes: list[str] = []
        self._head_lengths: Tensor | None = None
        for name in ("token_embd", "position_embd", "token_types", "token_embd_norm", "output_norm", "output", *ENDS):
            self.register_module(name, None)
        self.register_module(CLASSIFIER, None)
        for name, parts in grouped(decoder.shapes, "").items():
            self.add_module(name, piece(name, parts, decoder, types, name))
        for name, parts in grouped(decoder.shapes, f"{CLASSIFIER}.").items():
            if name in ("norm", "output"):
                if self.cls is None:
                    self.add_module(CLASSIFIER, Pieces())
                self.cls.add_module(name, piece(name, parts, decoder, types, f"{CLASSIFIER}.{name}"))
        for name in ("token_embd_norm", "output_norm"):
            if name in decoder.weightless:
                self.add_module(name, Norm(decoder.norm))
        self.blk = nn.ModuleList(Block(decoder, i, types) for i in range(len(decoder.layers)))
        for name in ("rope_freqs", "rope_factors_long", "rope_factors_short"):
            shape = decoder.shapes.get(f"{name}.weight")
            if shape is not None:
                self.register_buffer(name, torch.ones(shape))

    @property
    def device(self) -> torch.device:
        weight: Tensor = self.token_embd.weight
        return weight.device

    @property
    def context_length(self) -> int:
        return self.decoder.context_length

    @property
    def most_tokens(self) -> int | None:
        """How many tokens it can take at once: as many as it has learned positions; None: any number."""
        if self.decoder.positions != "learned":
            return None
        return int(self.position_embd.shape[0]) - self.decoder.position_offset

    def cache(self, batch: int = 1, capacity: int = 256) -> Cache:
        """A key-value cache for this model; `UsageError` for one that looks ahead."""
        if not self.decoder.causal:
            raise UsageError(f"a {self.decoder.arch} model sees all tokens at once, so it can't use a cache")
        return Cache(self.decoder, batch, capacity)

    def hidden(
        self, tokens: Tensor, mask: Tensor | None = None, cache: Cache | None = None, kinds: Tensor | None = None
    ) -> Tensor:
        """The last layer's output, normed: (B, T, dim).  Arguments as `forward`; kinds: (B, T), types of tokens."""
        divisors = {name: t for name, t in self._buffers.items() if t is not None}
        step = Step(tokens, mask, cache, self.dtype, divisors)
        x = self._embed(tokens, step, kinds)
        for block in self.blk:
            x = block(x, step)
        if cache is not None:
            cache.advance(tokens.shape[1])
        norm = getattr(self, self.decoder.output_norm)
        return x if norm is None else norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab) of hidden states (..., dim)."""
        if self.output_in is not None:
            hidden = self.output_in(hidden)
        logits: Tensor = self.token_embd.project(hidden) if self.output is None else self.output(hidden)
        spec = self.decoder
        if spec.head_norm:
            logits = logits / self._lengths_of_head().to(logits.dtype)
        if spec.logit_scale != 1:
            logits = logits * spec.logit_scale
        if spec.final_softcap is not None:
            logits = spec.final_softcap * torch.tanh(logits / spec.final_softcap)
        return logits

    def _lengths_of_head(self) -> Tensor:
        """The length of each row of the head, (vocab,) float32; kept while nothing trains it."""
        if self.training:
            self._head_lengths = None
            return self._measured_head()
        if self._head_lengths is None:
            with torch.inference_mode(False), torch.no_grad():  # it outlives this call
                self._head_lengths = self._measured_head()
        return self._head_lengths

    def _measured_head(self) -> Tensor:
        head = self.token_embd if self.output is None else self.output
        slabs = (products.dense(rows, head.block_type, torch.float32) for rows in head.weight.split(4096))
        return torch.cat([slab.norm(dim=1) for slab in slabs]).clamp_min(1e-12)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits of every position.

        tokens: (B, T) int64 token ids.
        mask: (B, T) bool, False at padding (either side); None when all are tokens.
        cache: what was seen before; extended by these tokens.

        Returns (B, T, vocab) in `dtype`.
        """
        return self.head(self.hidden(tokens, mask, cache))

    def _embed(self, tokens: Tensor, step: Step, kinds: Tensor | None = None) -> Tensor:
        spec = self.decoder
        x: Tensor = self.token_embd(tokens, self.dtype)
        if self.token_embd_in is not None:
            x = self.token_embd_in(x)
        if spec.embed_scale != 1:
            x = x * torch.tensor(spec.embed_scale, dtype=x.dtype, device=x.device)
        if spec.positions == "learned":
            most = self.most_tokens
            if most is not None and step.end > most:
                raise UsageError(f"{step.end} tokens are more than the {most} positions that this model has learned")
            x = x + self.position_embd(step.positions + spec.position_offset, self.dtype)
        elif spec.positions == "sinusoidal":
            x = x + sinusoidal(step.positions, spec.dim, self.dtype)
        if self.token_types is not None:
            x = x + self.token_types(torch.zeros_like(tokens) if kinds is None else kinds, self.dtype)
        if self.token_embd_norm is None or spec.output_norm == "token_embd_norm":
            return x
        return self.token_embd_norm(x)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return (
            f"{self.decoder.arch}, {len(self.blk)} layers, dim {self.decoder.dim}, vocabulary {self.decoder.vocab_size}"
        )
