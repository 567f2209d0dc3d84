"""The decoder: one module, assembled from the pieces that `convert.decoders.Decoder` names.

Modules carry GGUF's tensor names, so `state_dict()` keys are the names of a canonical checkpoint:
`blk.0.attn_q.weight`. A `Block` holds the union of all pieces, None where a model lacks one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmconv.convert.decoders.facts import Decoder, Layer, Norm as NormSpec
from llmconv.convert.decoders.streams import Streams
from llmconv.convert.reports.streaming import EMBEDDING, HEAD
from llmconv.errors import UsageError
from llmconv.runtime import products
from llmconv.runtime.cache import Cache, Step
from llmconv.runtime.layers import altup, cycles, layer_vectors, ngrams, streams
from llmconv.runtime.layers.attention import self_attention
from llmconv.runtime.layers.channel_mix import channel_mix
from llmconv.runtime.layers.convolution import short_convolution
from llmconv.runtime.layers.mlp import activation, dense_and_experts, feed_forward
from llmconv.runtime.layers.norms import Norm
from llmconv.runtime.layers.positions import sinusoidal
from llmconv.runtime.layers.runs import runs_attention
from llmconv.runtime.layers.switch import Lora, Switched, Turned, instead, turned_on
from llmconv.runtime.pieces import CLASSIFIER, END_VECTORS, ENDS, VECTORS, LayerPieces, Pieces, Types, grouped, piece
from llmconv.runtime.scans.scan import scan

__all__ = ["MIXERS", "Block", "Halfway", "Model"]


def _linear(block: LayerPieces, x: Tensor, step: Step) -> Tensor:
    out: Tensor = block.attn_output(x)
    return out


MIXERS = {
    "attention": self_attention,
    "runs": runs_attention,
    "convolution": short_convolution,
    "scan": scan,
    "linear": _linear,
}
"""What mixes tokens, by the names of `Layer.mixers`."""


class Halfway(NamedTuple):
    """A layer's work before its MLP, (B, T, dim) each.

    kept: what the MLP's results are added to.   normed: what it is given; None where there is none.   entered: what
    came into the layer.   attended: what is added with it, in layers whose halves run side by side.   tokens: (B, T)
    ids.   back: how the results go into streams of residuals, where there are several.
    """

    kept: Tensor
    normed: Tensor | None
    entered: Tensor
    attended: Tensor | None = None
    tokens: Tensor | None = None
    back: streams.Back | None = None


def _index_eps(spec: Layer) -> float:
    """The epsilon of an indexer's LayerNorm."""
    mla = spec.attention.mla
    return 1e-6 if mla is None or mla.indexer is None else mla.indexer.eps


class Block(LayerPieces):
    """One layer.  Every piece is an attribute, None when the layer has no such tensor."""

    def __init__(self, decoder: Decoder, index: int, types: Types):
        super().__init__()
        self.index, self.spec = index, decoder.layers[index]
        self.residual_scale, self.kept_scale = decoder.residual_scale, decoder.kept_scale
        self.streams = decoder.streams
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
        if self.spec.attention.indexing:
            self.indexer = Pieces()
        for name in self.spec.attention.indexing:
            full = f"blk.{index}.indexer.{name}"
            if f"{full}.bias" in decoder.shapes:  # a LayerNorm
                made: nn.Module = Norm(
                    NormSpec("layer", _index_eps(self.spec)), decoder.shapes[f"{full}.weight"], bias=True
                )
            else:
                made = piece(name, {"weight": decoder.shapes[f"{full}.weight"]}, decoder, types, full)
            self.indexer.add_module(name, made)
        for name in ("attn_norm", "ffn_norm", "attn_k_norm"):
            if name in decoder.weightless and not (name == "ffn_norm" and self.spec.parallel):
                self.add_module(name, Norm(decoder.norm))
        if self.spec.attention.value_norm and self.spec.attention.borrows is None:
            self.add_module("attn_v_norm", Norm(decoder.norm))
        if decoder.streams is not None:
            self.add_module("hc_norm", Norm(decoder.norm))
        if self.spec.attention.length_one:
            self.add_module("length_one", Norm(decoder.norm))
        if self.spec.mlp is not None and self.spec.mlp.apart:
            self.add_module("router_norm", Norm(decoder.norm))
        if self.spec.mlp is not None and self.spec.mlp.activation not in ("swiglu_oai", "xielu", "situ"):
            activation(self.spec.mlp.activation)  # refuse now rather than in the middle of a run

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: (B, T, dim) -> (B, T, dim); of several streams (B, T, streams, dim), of AltUp's (streams, B, T, dim)."""
        if self.altup_router is not None:
            return altup.layer(self, x, step)
        half = self.before_mlp(x, step)
        x = self.after_mlp(half, self._mlp(half, step))
        if self.spec.halved:
            x = x / 2
        if self.inp_gate is not None:
            x = x + layer_vectors.made(self, x, step)
        if self.layer_output_scale is None:
            return x
        scale: Tensor = self.layer_output_scale.weight.to(x.dtype)
        return x + step.embedded * scale if self.spec.skips else x * scale

    def _mlp(self, half: Halfway, step: Step) -> Tensor | None:
        if half.normed is None:
            return None
        if self.spec.mlp is not None and self.spec.mlp.shifted:
            return channel_mix(self, half.normed, step)
        if self.spec.mlp is not None and self.spec.mlp.apart:
            return dense_and_experts(self, half.kept)
        return feed_forward(self, half.normed, half.entered, half.tokens)

    def before_mlp(self, x: Tensor, step: Step) -> Halfway:
        """The first half: up to what the MLP is given."""
        if self.streams is not None:
            return self._before_mlp_of_streams(self.streams, x, step)
        if self.spec.norm_after:
            x = self.attn_norm(x + self_attention(self, x, step))
            return Halfway(x, x, x)
        normed = x if self.attn_norm is None or self.spec.swapped else self.attn_norm(x)
        # Falcon-40B norms apart for attention (attn_norm_2) and for the MLP (attn_norm).
        apart = self.spec.parallel and self.attn_norm_2 is not None
        attended = self._mixed(self.attn_norm_2(x) if apart else normed, step)
        mlp_norm = getattr(self, self.spec.mlp_norm)
        if self.post_attention_norm is not None and self.post_attention_norm is not mlp_norm:
            attended = self.post_attention_norm(attended)
        inside = self.spec.norms_inside
        if inside and self.attn_output_norm is not None:
            attended = self.attn_output_norm(attended)
        if self.spec.swapped:
            x = self._added(x, self.attn_norm(attended))
            return Halfway(x, x, x)
        if self.spec.parallel:
            return Halfway(x, normed if mlp_norm is None else mlp_norm(x), x, attended)
        entered, kept = x, normed if self.spec.residual_after_norm else x
        x = self._added(kept, attended)
        if self.attn_output_norm is not None and self.attn_output_norm is not mlp_norm and not inside:
            x = self.attn_output_norm(x)
        if self.spec.normed_again and self.attn_norm_2 is not None:
            x = self.attn_norm_2(entered + x)
        if self.spec.mlp is None:
            return Halfway(x, None, x)
        normed = x if mlp_norm is None else mlp_norm(x)
        return Halfway(normed if self.spec.residual_after_norm else x, normed, entered)

    def _before_mlp_of_streams(self, spec: Streams, x: Tensor, step: Step) -> Halfway:
        one, back = streams.entered(self, spec, "attn", x)
        x = back(self._mixed(one if self.attn_norm is None else self.attn_norm(one), step))
        one, back = streams.entered(self, spec, "ffn", x)
        return Halfway(x, one if self.ffn_norm is None else self.ffn_norm(one), one, None, step.tokens, back)

    def after_mlp(self, half: Halfway, inner: Tensor | None) -> Tensor:
        """The second half: what the MLP gave, added.   inner: (B, T, dim), None where the layer has no MLP."""
        if inner is None:
            return half.kept
        if half.back is not None:
            return half.back(inner)
        if self.spec.norm_after:
            return self.ffn_norm(half.kept + inner)  # type: ignore[no-any-return]
        if half.attended is not None:
            return half.kept + (half.attended + inner) * self.residual_scale
        inside = self.spec.norms_inside
        if self.spec.swapped:
            inner = self.ffn_norm(inner)
        if self.post_ffw_norm is not None:
            inner = self.post_ffw_norm(inner)
        if inside and self.layer_output_norm is not None:
            inner = self.layer_output_norm(inner)
        x = self._added(half.kept, inner)
        return x if self.layer_output_norm is None or inside else self.layer_output_norm(x)

    def _mixed(self, x: Tensor, step: Step) -> Tensor:
        """What the layer's mixers make of x, added up; zeros where it has none."""
        if not self.spec.mixers:
            return torch.zeros_like(x)
        first, *others = (MIXERS[name](self, x, step) for name in self.spec.mixers)
        return sum(others, start=first)

    def _added(self, x: Tensor, made: Tensor) -> Tensor:
        kept = x * self.kept_scale if self.kept_scale != 1 else x
        return kept + (made * self.residual_scale if self.residual_scale != 1 else made)


class Model(Pieces):
    """A decoder: token ids in, logits out.

    decoder: what it is made of.  types: how its tensors are stored (see `Types`).
    `tokenizer`, `metadata`, `where` (what messages call it) and `notes` (what was decided for it, and should be known)
    come with a loaded model; `dtype` is what it computes in.   `wants`, in one whose weights are left in the file, is
    called with a layer's number, `EMBEDDING` or `HEAD` before that part is used (see `runtime.streamed`).
    """

    wants: Callable[[int | str], None] | None = None
    home: torch.device | None = None
    """The device of one whose weights come and go."""

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
        for name in ("per_layer_token_embd", "per_layer_model_proj", "per_layer_proj_norm", *altup.ENDS):
            self.register_module(name, None)
        for name in END_VECTORS:
            self.register_module(name, None)
        self.register_module(CLASSIFIER, None)
        self.register_module("hrm", None)
        for name, parts in grouped(decoder.shapes, "").items():
            if name != "hrm" or decoder.cycles is None:
                self.add_module(name, piece(name, parts, decoder, types, name))
        for name, parts in grouped(decoder.shapes, f"{CLASSIFIER}.").items():
            if name in ("norm", "output"):
                if self.cls is None:
                    self.add_module(CLASSIFIER, Pieces())
                self.cls.add_module(name, piece(name, parts, decoder, types, f"{CLASSIFIER}.{name}"))
        if decoder.cycles is not None:
            self.hrm = cycles.Start(decoder.dim, decoder.norm)
        for name in ("token_embd_norm", "output_norm"):
            if name in decoder.weightless:
                self.add_module(name, Norm(decoder.norm))
        if decoder.streams is not None:
            self.hc_norm = Norm(decoder.norm)
        self.blk = nn.ModuleList(Block(decoder, i, types) for i in range(len(decoder.layers)))
        self.turned = Turned()
        for module in self.modules():
            if isinstance(module, Lora | Switched):
                module.turned = self.turned
        for name in ("rope_freqs", "rope_factors_long", "rope_factors_short"):
            shape = decoder.shapes.get(f"{name}.weight")
            if shape is not None:
                self.register_buffer(name, torch.ones(shape))

    @property
    def device(self) -> torch.device:
        return self.home or self.token_embd.device

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
        step = self.step(tokens, mask, cache)
        x = self.begin(tokens, step, kinds)
        if self.decoder.cycles is not None:
            x = cycles.gone_through(self, x, step)
        else:
            for going in range(self.decoder.loops):
                x = self.end(x) if going and self.decoder.loop_norm else x
                step.gone = going * len(self.blk)
                for i in range(len(self.blk)):
                    x = self.through(i, x, step)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.end(x)

    def step(self, tokens: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Step:
        """What the layers need to know of where the tokens (B, T) stand."""
        divisors = {name: t for name, t in self._buffers.items() if t is not None}
        return Step(tokens, mask, cache, self.dtype, divisors)

    def through(self, layer: int, x: Tensor, step: Step) -> Tensor:
        """x through one layer, (B, T, dim) -> (B, T, dim)."""
        if self.wants is not None:
            self.wants(layer)
        if self.decoder.switch is not None:
            self.turned.adapters = self._turned_on(step)
        if self.decoder.ngrams is not None and self.decoder.ngrams.layer == layer:
            block: Any = self.blk[layer]
            x = ngrams.added(block, self.per_layer_token_embd, self.decoder.ngrams, x, step)
        out: Tensor = self.blk[layer](x, step)
        return out

    def _turned_on(self, step: Step) -> Tensor:
        """The step's adapters, looked up once."""
        assert self.decoder.switch is not None
        if step.adapters is None:
            step.adapters = turned_on(self.decoder.switch, len(self.blk), step)
        return step.adapters

    def end(self, x: Tensor) -> Tensor:
        """What the last layer gives, as the head takes it."""
        if self.altup_proj is not None:
            x = altup.merged(self, x)
        if self.decoder.streams is not None:
            x = streams.merged(self, self.decoder.streams, x)
        norm = getattr(self, self.decoder.output_norm)
        return x if norm is None else norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab) of hidden states (..., dim); `UsageError` for an encoder, which says no words."""
        if self.decoder.headless and self.cls is not None:
            raise UsageError(f"{self.where}: is a classifier, which says no words; llmconv embed gives its scores")
        if self.decoder.headless:
            raise UsageError(
                f"{self.where}: of a {self.decoder.arch} model the encoder is run here, which says no words; llmconv "
                "embed gives its vectors"
            )
        if self.wants is not None:
            self.wants(HEAD)
        if self.output_in is not None:
            hidden = self.output_in(hidden)
        return self.said(self.token_embd.project(hidden) if self.output is None else self.output(hidden))

    def said(self, logits: Tensor) -> Tensor:
        """Logits as the head's product gives them, (..., vocab), with what the model does to them."""
        spec = self.decoder
        if spec.head_norm:
            logits = logits / self._lengths_of_head().to(logits.dtype)
        if spec.logit_scale != 1:
            logits = logits * spec.logit_scale
        if spec.final_softcap is not None:
            logits = spec.final_softcap * torch.tanh(logits / spec.final_softcap)
        if spec.silent is not None:
            never = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            never[slice(*spec.silent)] = True
            logits = logits.masked_fill(never, torch.finfo(logits.dtype).min)
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

    def begin(self, tokens: Tensor, step: Step, kinds: Tensor | None = None) -> Tensor:
        """What the first layer is given: (B, T, dim) for ids (B, T), with their types."""
        if self.wants is not None:
            self.wants(EMBEDDING)
        spec = self.decoder
        if spec.switch is not None:
            tokens = instead(spec.switch, tokens)
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
        if self.token_embd_norm is not None and spec.output_norm != "token_embd_norm":
            x = self.token_embd_norm(x)
        step.embedded = x
        if spec.streams is not None:
            return streams.spread(spec.streams, x)
        if self.per_layer_token_embd is not None:
            step.per_layer = layer_vectors.vectors(self, tokens, x)
        return x if self.altup_proj is None else altup.spread(self, x)

    def extra_repr(self) -> str:
        return (
            f"{self.decoder.arch}, {len(self.blk)} layers, dim {self.decoder.dim}, vocabulary {self.decoder.vocab_size}"
        )
