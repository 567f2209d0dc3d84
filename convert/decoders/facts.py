"""The facts that a decoder is described by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmconv.convert.decoders.ngrams import Ngrams
from llmconv.convert.decoders.pooled import Pools, Runs
from llmconv.convert.decoders.recurrent import Recurrent
from llmconv.convert.decoders.scans import Scan
from llmconv.convert.decoders.streams import Streams
from llmconv.convert.decoders.switched import Switch

__all__ = [
    "Attention",
    "Blocks",
    "Decoder",
    "Experts",
    "Growth",
    "Indexer",
    "Layer",
    "Mla",
    "Mlp",
    "Norm",
    "Relative",
    "Rope",
]


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation: `kind` is "rms" or "layer"; its weight and bias exist when their tensors do."""

    kind: str
    eps: float


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions over the first `dims` of a head (of the last ones in MLA).

    scaling: "none", "linear", "dynamic", "yarn", "longrope"; Llama 3's is "none" with a tensor of `rope_freqs`.
    attn_factor multiplies cos and sin.
    """

    dims: int
    base: float
    interleaved: bool
    scaling: str = "none"
    factor: float = 1.0
    original_context: int = 0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    divided: bool = True
    """Whether a tensor of divisors, where the file has one, is for this layer."""


@dataclass(frozen=True, slots=True)
class Indexer:
    """Of longer texts a token sees `used` tokens, which `heads` heads of `dims` numbers choose (DeepSeek V3.2).

    pairs: neighbours of a head turn together, not its halves.   own: the layer has one; others see what that of an
    earlier layer chose (GLM-5).   at_end: a head's last numbers turn, not its first (HY V4).   eps: of its keys' norm.
    """

    heads: int
    dims: int
    used: int
    pairs: bool
    own: bool
    at_end: bool = False
    eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class Mla:
    """Latent attention: keys and values are rebuilt from `kv_rank` numbers, `rope_dims` more are shared."""

    kv_rank: int
    nope_dims: int
    rope_dims: int
    indexer: Indexer | None = None


@dataclass(frozen=True, slots=True)
class Blocks:
    """Of longer texts a token sees `used` blocks of `size` tokens, which an indexer chooses for each of its heads; the
    `local` nearest are always among them (MiniMax M3).  dims: of the indexer's heads."""

    heads: int
    dims: int
    size: int
    used: int
    local: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Queries grow with their position p: times 1 + scale · ln(1 + floor(p / length)) (Llama 4, Ministral 3)."""

    scale: float
    length: int
    offset: int = 0
    """What the position is counted from: p + offset."""


@dataclass(frozen=True, slots=True)
class Relative:
    """Distances in `buckets`, half of them for tokens behind: near ones alone, far ones together up to `farthest`."""

    buckets: int
    farthest: int
    own: bool
    """Whether the layer has a table; else it takes that of a layer before."""


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention.  scale: what q·k is multiplied by.  window: how many tokens it sees, itself included."""

    n_head: int
    n_head_kv: int
    head_dim: int
    value_dim: int
    scale: float
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    clamp: float | None = None
    clamp_normed: bool = False
    rope: Rope | None = None
    alibi: float | None = None
    alibi_quirk: bool = False
    softmax_start: float = 0.0
    norm_after_rope: bool = False
    growth: Growth | None = None
    gate: str = "sigmoid"
    """What opens the gate on what attention gives, where there is one: "sigmoid" or "softplus"."""
    value_scale: float = 1.0
    mla: Mla | None = None
    gated: bool = False
    """Each head's query comes with a gate of its result (Qwen3-Next)."""
    value_norm: bool = False
    """Values are normed, without weights; they are the keys where there is no matrix of theirs (Gemma 4)."""
    borrows: int | None = None
    """The layer whose keys and values it reads, having none of its own."""
    chunk: int | None = None
    """The text is cut into chunks of so many tokens, of which it sees its own alone (Llama 4)."""
    length_one: bool = False
    """Queries and keys are normed without weights (Llama 4)."""
    blocks: Blocks | None = None
    pools: Pools | None = None
    runs: Runs | None = None
    lends: bool = False
    """Whether another layer borrows its keys and values."""
    by_head: bool = False
    """attn_qkv gives each head's query, key and value together, not all queries first (NeoBERT as its folder is)."""
    relative: Relative | None = None
    """A bias on the scores by how far apart two tokens are (T5), from this layer's table or the last one's before."""

    @property
    def indexing(self) -> tuple[str, ...]:
        """The tensors of the layer's indexer, behind `indexer.`."""
        if self.runs is not None:
            return ("attn_q_b", "proj") if self.runs.used else ()
        if self.blocks is not None or (self.pools is not None and not self.pools.weighed):
            return ("q_proj", "k_proj", "q_norm", "k_norm")
        if self.pools is not None:
            return ("attn_q_b", "attn_k", "k_norm", "proj") if self.pools.own else ()
        own = self.mla is not None and self.mla.indexer is not None and self.mla.indexer.own
        return ("attn_q_b", "attn_k", "k_norm", "proj") if own else ()


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture: `used` of `count` experts a token.  `groups` > 1: chosen only within the best `groups_used` groups.

    group_by: how many of its experts, added, say how good a group is (one in DeepSeek-V2, two in V3).
    """

    count: int
    used: int
    gating: str
    normalize: bool
    scale: float = 1.0
    groups: int = 1
    group_by: int = 1
    groups_used: int = 1
    jitter: float = 0.0
    """How near rivals of a chosen expert are, of gating "sparsemixer"."""
    softcap: float | None = None
    """The router's logits are capped at it."""
    clamp: float = 0.0
    """What the gate is clamped to from above, and the up branch on both sides, where not 0; `shared_clamp` likewise."""
    shared_clamp: float = 0.0
    clamp_first: bool = False
    router_first: bool = False
    """The router reads what comes into the layer, not what the experts read."""
    weighed_before: bool = False
    """What goes into an expert is weighed, not what comes out of it (Llama 4)."""
    shared_average: bool = False
    """The shared experts and the chosen ones are averaged instead of summed."""
    told: bool = False
    """A table says which experts each word goes to (DeepSeek V4's first layers)."""
    together: int = 0
    """So many neighbouring experts share a small one (GroveMoE), whose result counts `small_scale` times."""
    small_scale: float = 0.0
    chained: bool = False
    """Small experts read what the others gave, and are weighed by the experts of their own numbers (llama.cpp)."""


@dataclass(frozen=True, slots=True)
class Mlp:
    """`gate`: "none", "apart" (ffn_gate), "fused" (ffn_up holds gate and up) or "behind" (up and gate)."""

    activation: str
    gate: str
    experts: Experts | None = None
    beside: float = 0.0
    """Not 0: a dense feed-forward stands beside the experts; the sum of both is multiplied by this."""
    apart: bool = False
    """A dense feed-forward and experts have norms of their own before and behind (Gemma 4)."""
    cut: float | None = None
    """What of the gate is not above its mean by so many standard deviations is cut off (Gemma 3n)."""
    numbers: tuple[float, ...] = ()
    """Of the activation: of xIELU alpha_p, alpha_n (before softplus), beta and eps, as the layer has learned them; of
    SiTU what the gate and the up branch are bounded by."""
    clamp: float = 0.0
    """What a dense one's gate is clamped to from above, and its up branch on both sides, where not 0 (GLM 5 Next)."""
    shifted: bool = False
    """Each number is mixed with that of the token before (RWKV)."""


@dataclass(frozen=True, slots=True)
class Layer:
    """mlp: None where a layer has none (Mamba).   mixers: what mixes tokens, added up: see `runtime.model.MIXERS`."""

    attention: Attention
    mlp: Mlp | None
    parallel: bool
    mlp_norm: str = "ffn_norm"
    """The tensor of the norm before the MLP; gpt-oss calls it post_attention_norm."""
    norm_after: bool = False
    """attn_norm and ffn_norm stand behind the residual sums (OPT-350M) instead of before the sublayers."""
    mixers: tuple[str, ...] = ("attention",)
    scan: Scan | None = None
    norms_inside: bool = False
    """attn_output_norm and layer_output_norm are of what the sublayers give, not of the residual sums."""
    residual_after_norm: bool = False
    """What the norms before the sublayers give is added to what the sublayers give (BLOOM can), not what they get."""
    stream: int = 0
    """Of several streams that go through the layers (Gemma 3n), the one that is computed."""
    skips: bool = False
    """The embedding is added to what comes out, times layer_output_scale (Talkie)."""
    normed_again: bool = False
    """What came into the layer is added once more behind attn_output_norm, and attn_norm_2 is of that sum (Jina)."""
    swapped: bool = False
    """attn_norm and ffn_norm are of what the sublayers give, not of what they are given (Chameleon 34B)."""
    halved: bool = False
    """What comes out of the layer is halved (RWKV 6)."""


def _waits(mla: Mla | None) -> bool:
    """Whether a layer sees what another's indexer chose."""
    return mla is not None and mla.indexer is not None and not mla.indexer.own


def _waits_for_pools(pools: Pools | None) -> bool:
    return pools is not None and not pools.own


@dataclass(frozen=True)
class Decoder:
    """A whole decoder.  `shapes`: every tensor by canonical name; a piece that has no tensor here is not there."""

    arch: str
    dim: int
    vocab_size: int
    context_length: int
    norm: Norm
    layers: tuple[Layer, ...]
    shapes: Mapping[str, tuple[int, ...]]
    positions: str = "rope"
    position_offset: int = 0
    latent_eps: float | None = None
    """The epsilon of the norms inside attention (of latents, of lightning's results), where not that of the others."""
    behind_eps: float | None = None
    """The epsilon of the norms behind the sublayers, where it is not that of the others."""
    output_norm: str = "output_norm"
    """The tensor of the norm before the head."""
    weightless: tuple[str, ...] = ()
    """Norms without weights, by the names that they would have."""
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    kept_scale: float = 1.0
    """Of what sublayers' results are added to, as `residual_scale` is of these results (MiniMax-01)."""
    logit_scale: float = 1.0
    final_softcap: float | None = None
    softmax_start: float = 0.0
    head_norm: bool = False
    """The rows of the head are scaled to length 1 (Baichuan 2's NormHead)."""
    ends: bool = True
    """Whether special tokens are chosen at all, and an end-of-text one ends a text."""
    layer_words: int = 0
    """The tokens that have vectors for each layer; the others take the first one's."""
    passes_float16: bool = False
    """What it computes inside passes float16's largest number, 65504."""
    cycles: tuple[int, int] | None = None
    """How often the slower of two stacks of layers is gone through, and the faster one before each time (HRM)."""
    loops: int = 1
    """How often the layers are gone through, with keys and values of their own each time (Nanbeige 4.2)."""
    loop_norm: bool = True
    """The norm before the head stands between these goings too."""
    silent: tuple[int, int] | None = None
    """Tokens that are never said: from one number up to another (Chameleon's of images)."""
    qk_norm: Norm | None = None
    """The norms of queries and keys, where they are of another kind or epsilon than the others."""
    headless: bool = False
    """It says no words: what is run is the encoder of a model whose decoder says them, or has no head in the file."""
    recurrent: Recurrent | None = None
    """What takes the place of `layers` in a recurrent decoder."""
    streams: Streams | None = None
    ngrams: Ngrams | None = None
    switch: Switch | None = None
    asked: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    """The keys that were asked for, without the architecture's name: the file's others change nothing here."""

    @property
    def passes(self) -> int:
        """How many times layers are gone through, which have keys and values each time."""
        slow, fast = self.cycles or (1, 1)
        return len(self.layers) // 2 * slow * (fast + 1) if self.cycles else self.loops * len(self.layers)

    @property
    def causal(self) -> bool:
        return all(layer.attention.causal for layer in self.layers)

    @property
    def layers_alone(self) -> bool:
        """Whether a layer needs nothing but what the one before gives: no other's keys, no vectors for each layer."""
        borrowing = any(
            layer.attention.borrows is not None
            or layer.skips
            or (layer.attention.relative is not None and not layer.attention.relative.own)
            or (layer.scan is not None and layer.scan.kind == "rwkv7")
            or _waits(layer.attention.mla)
            or _waits_for_pools(layer.attention.pools)
            for layer in self.layers
        )
        return (
            self.recurrent is None
            and self.cycles is None
            and self.loops == 1
            and not borrowing
            and "per_layer_token_embd.weight" not in self.shapes
        )

    @property
    def tied(self) -> bool:
        """Whether the head is the token embedding."""
        return "output.weight" not in self.shapes
