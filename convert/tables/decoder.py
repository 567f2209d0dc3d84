"""What a decoder is made of, read from a checkpoint in GGUF's dialect: no torch, no weights, only facts.

`describe(checkpoint)` gives a `Decoder`; the runtime assembles it, and anyone may print it.  Three sources are asked,
in this order: the file's keys, the tensors it holds (a bias, a gate or a q/k norm exists when its tensor does), and the
`decoder` pieces of the architecture's table for what neither says.  The pieces are the keys of `Pieces`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmconv.convert import archs
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.config import Settings, normalized, usable
from llmconv.convert.tables.keys import whole
from llmconv.convert.tables.pieces import Pieces, activation, head_norm
from llmconv.convert.tables.recurrent import CELL, Recurrent, recurrent
from llmconv.convert.tables.scans import Scan, scan_of
from llmconv.convert.tables.windows import every_nth
from llmconv.errors import BadFile, Unsupported, at
from llmconv.formats.checkpoint import Checkpoint

__all__ = [
    "Attention",
    "Decoder",
    "Experts",
    "Growth",
    "Layer",
    "Mla",
    "Mlp",
    "Norm",
    "Pieces",
    "Rope",
    "Scan",
    "describe",
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
class Mla:
    """Latent attention: keys and values are rebuilt from `kv_rank` numbers, `rope_dims` more are shared."""

    kv_rank: int
    nope_dims: int
    rope_dims: int
    top_k: int = 0
    """Not 0: of longer texts it sees only so many tokens, which an indexer chooses (DeepSeek V3.2)."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Queries grow with their position p: times 1 + scale · ln(1 + floor(p / length)) (Llama 4, Ministral 3)."""

    scale: float
    length: int
    offset: int = 0
    """What the position is counted from: p + offset."""


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
    lends: bool = False
    """Whether another layer borrows its keys and values."""


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


@dataclass(frozen=True, slots=True)
class Mlp:
    """`gate`: "none", "apart" (ffn_gate) or "fused" (ffn_up holds gate and up)."""

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
    """What the layer has learned of its activation: of xIELU alpha_p, alpha_n (before softplus), beta and eps."""


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
    swapped: bool = False
    """attn_norm and ffn_norm are of what the sublayers give, not of what they are given (Chameleon 34B)."""


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
    """The epsilon of the latents' norms, where it is not that of the others."""
    behind_eps: float | None = None
    """The epsilon of the norms behind the sublayers, where it is not that of the others."""
    output_norm: str = "output_norm"
    """The tensor of the norm before the head."""
    weightless: tuple[str, ...] = ()
    """Norms without weights, by the names that they would have."""
    embed_scale: float = 1.0
    residual_scale: float = 1.0
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
    silent: tuple[int, int] | None = None
    """Tokens that are never said: from one number up to another (Chameleon's of images)."""
    qk_norm: Norm | None = None
    """The norms of queries and keys, where they are of another kind or epsilon than the others."""
    recurrent: Recurrent | None = None
    """What takes the place of `layers` in a recurrent decoder."""

    @property
    def passes(self) -> int:
        """How many times layers are gone through, which have keys and values each time."""
        slow, fast = self.cycles or (1, 1)
        return len(self.layers) // 2 * slow * (fast + 1) if self.cycles else len(self.layers)

    @property
    def causal(self) -> bool:
        return all(layer.attention.causal for layer in self.layers)

    @property
    def layers_alone(self) -> bool:
        """Whether a layer needs nothing but what the one before gives: no other's keys, no vectors for each layer."""
        borrowing = any(layer.attention.borrows is not None or layer.skips for layer in self.layers)
        return (
            self.recurrent is None
            and self.cycles is None
            and not borrowing
            and "per_layer_token_embd.weight" not in self.shapes
        )

    @property
    def tied(self) -> bool:
        """Whether the head is the token embedding."""
        return "output.weight" not in self.shapes


class _Reader:
    """Typed access to a checkpoint's keys, with errors that name the file and the key."""

    def __init__(self, checkpoint: Checkpoint, arch: str):
        self.metadata, self.arch = Settings(checkpoint.metadata), arch
        self.where = checkpoint.source or "this model"
        self.shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        self.config = self._config()

    def _config(self) -> dict[str, Any]:
        """The config.json that the model came with: it says what GGUF's keys can't, when it is there."""
        try:
            found = json.loads(self.metadata.get(own_keys.CONFIG, "{}"))
        except (ValueError, TypeError):
            return {}
        return normalized(found) if isinstance(found, dict) else {}

    def bad(self, item: str, message: str) -> BadFile:
        return BadFile(f"{at(self.where, item)} {message}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `{arch}.key` (of `key` itself when it is absent), numpy scalars unwrapped."""
        value = self.metadata.get(f"{self.arch}.{key}", default)
        return value.item() if isinstance(value, np.generic) else value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.bad(f"key '{self.arch}.{key}'", f"is {_short(value)}, expected a number; is the file whole?")
        return float(value)

    def count(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.number(key, default)
        if value != int(value) or not least <= value < 1 << 31:
            raise self.bad(f"key '{self.arch}.{key}'", f"is {value:g}, expected a whole number of at least {least}")
        return int(value)

    def optional(self, key: str) -> float | None:
        """A number where 0 means "none"."""
        return self.number(key, 0) or None

    def per_layer(self, key: str, n: int, default: int) -> list[int]:
        """A number for all layers, or an array of one each."""
        value = self.get(key, default)
        if isinstance(value, np.ndarray | list | tuple):
            try:
                values = [whole(v) for v in value]
            except TypeError:
                raise self.bad(f"key '{self.arch}.{key}'", f"is {_short(value)}, expected whole numbers") from None
            if len(values) < n:
                raise self.bad(f"key '{self.arch}.{key}'", f"has {len(values)} entries for {n} layers")
            return values[:n]
        return [self.count(key, default)] * n

    def shape(self, name: str, rank: int | None = None) -> tuple[int, ...]:
        found = self.shapes.get(name)
        if found is None:
            raise self.bad(f"tensor '{name}'", "is missing, and the model can't run without it")
        if rank is not None and len(found) != rank:
            raise self.bad(f"tensor '{name}'", f"has shape {list(found)}, expected {rank} dimensions")
        return found

    def expect(self, name: str, rows: int, why: str) -> None:
        """The tensor, when it is there, has that many output rows."""
        found = self.shapes.get(name)
        if found is not None and (len(found) != 2 or found[0] != rows):
            raise self.bad(f"tensor '{name}'", f"has shape {list(found)}, expected {rows} rows ({why})")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 40 else text[:37] + "..."


def describe(checkpoint: Checkpoint, pieces: Pieces | None = None) -> Decoder:
    """The decoder that a checkpoint in GGUF's dialect holds.

    pieces: the family's, looked up by `general.architecture` when None.
    Raises `BadFile` when keys or tensors contradict each other, `Unsupported` for an architecture without a table.
    """
    arch = checkpoint.metadata.get("general.architecture")
    where = checkpoint.source or "this model"
    if not isinstance(arch, str) or not arch:
        raise BadFile(f"{at(where)}: names no architecture (key 'general.architecture'), so it can't be run")
    read = _Reader(checkpoint, arch)
    if pieces is None and read.get(CELL) is None:
        pieces = _pieces(arch, str(where))
    with usable(read.metadata, at(where)):
        return _recurrent(read) if pieces is None else _described(read, pieces)


def _described(read: _Reader, pieces: Pieces) -> Decoder:
    arch = read.arch
    n_layers = read.count("block_count", least=1) - read.count("nextn_predict_layers", 0)
    if n_layers < 1:
        raise read.bad(f"key '{arch}.nextn_predict_layers'", "leaves no layer to compute with")
    if n_layers < read.count("block_count") and not any(name.startswith("blk.0.") for name in read.shapes):
        raise Unsupported(
            f"{at(read.where)}: holds a model's layers for further tokens alone, which are not run here; give the "
            "model's own file"
        )
    if read.count("num_loops", 1) > 1:
        raise Unsupported(
            f"{at(read.where)}: its layers are gone through {read.count('num_loops')} times, which is "
            "not known to the runtime; convert it, or run it with another program"
        )
    cycles = None
    if stack := read.count("hrm.layers_per_stack", 0):
        n_layers, cycles = 2 * stack, (read.count("hrm.h_cycles", least=1), read.count("hrm.l_cycles", least=1))
    vocab_size, width = read.shape("token_embd.weight", 2)
    # OPT-350M's words are narrower than its layers: token_embd_in widens them, output_in narrows them again.
    dim = read.shape("token_embd_in.weight", 2)[0] if "token_embd_in.weight" in read.shapes else width
    if read.count("embedding_length", dim) != dim:
        stated = read.count("embedding_length")
        raise read.bad("tensor 'token_embd.weight'", f"has rows of {dim}, but '{arch}.embedding_length' is {stated}")
    if "output.weight" in read.shapes and read.shape("output.weight", 2)[1] != width:
        raise read.bad("tensor 'output.weight'", f"has rows of {read.shapes['output.weight'][1]}, expected {width}")
    norm = _norm(read, pieces)
    kinds = _Layers(read, pieces, n_layers, dim)
    embed_scale = read.optional("embedding_scale") or pieces.get("embed_scale", 1.0)
    residual_scale = read.optional("residual_scale") or pieces.get("residual_depth", 0.0) / math.sqrt(n_layers)
    logit_scale = read.optional("logit_scale") or dim / pieces.get("logit_base", dim)
    positions = _positions(read, pieces, n_layers)
    if positions == "learned":
        read.shape("position_embd.weight", 2)
    return Decoder(
        arch=arch,
        dim=dim,
        vocab_size=vocab_size,
        context_length=read.count("context_length", 0),
        norm=norm,
        layers=tuple(kinds.layer(i) for i in range(n_layers)),
        shapes=read.shapes,
        positions=positions,
        position_offset=int(pieces.get("position_offset", 0)),
        latent_eps=pieces.get("latent_eps") or None,
        behind_eps=pieces.get("behind_eps") or None,
        output_norm=str(pieces.get("output_norm", "output_norm")),
        weightless=_weightless(read, pieces),
        embed_scale=math.sqrt(dim) if embed_scale == "sqrt" else float(embed_scale),
        residual_scale=residual_scale or 1.0,
        logit_scale=1.0 / logit_scale if pieces.get("logit_scale_divides") else logit_scale,
        final_softcap=read.optional("final_logit_softcapping"),
        softmax_start=read.number("attention.softmax_start", pieces.get("softmax_start", 0.0)),
        head_norm=head_norm(pieces, vocab_size, read.config),
        ends=not pieces.get("no_end", False),
        layer_words=read.count("vocab_size_per_layer_input", vocab_size),
        passes_float16=bool(pieces.get("passes_float16", False)),
        cycles=cycles,
        silent=_silent(pieces, vocab_size),
        qk_norm=Norm("layer", pieces["qk_layer_norm"]) if "qk_layer_norm" in pieces else None,
    )


def _silent(pieces: Pieces, vocab_size: int) -> tuple[int, int] | None:
    """The tokens that a family never says, of a model that has all of them."""
    found = pieces.get("silent")
    return found if found is not None and found[1] <= vocab_size else None


def _recurrent(read: _Reader) -> Decoder:
    spec, vocab_size = recurrent(read), read.shape("token_embd.weight", 2)[0]
    positions = "learned" if spec.cell == "mean" else "recurrent"
    norm, context = Norm("layer", 0.0), read.count("context_length", 0)
    return Decoder(read.arch, spec.dim, vocab_size, context, norm, (), read.shapes, positions, recurrent=spec)


def _pieces(arch: str, where: str) -> Pieces:
    table = archs.by_gguf(arch)
    if table is None or table.decoder is None:
        raise Unsupported(
            f"{at(where)}: architecture {arch!r} has no decoder here, so it can't be run; convert it, or run it with "
            "another program"
        )
    if "not_run" in table.decoder:
        raise Unsupported(
            f"{at(where)}: a {arch} model can't be run here ({table.decoder['not_run']}); convert it, or run it with "
            "another program"
        )
    return table.decoder


def _weightless(read: _Reader, pieces: Pieces) -> tuple[str, ...]:
    """A family's norms without weights; a model of it that has learned some has no others."""
    listed = tuple(pieces.get("weightless", ()))
    learned = {"attn_norm": "blk.0.attn_norm.weight", "ffn_norm": "blk.0.ffn_norm.weight"}
    return () if any(learned.get(name, f"{name}.weight") in read.shapes for name in listed) else listed


_STATED = {"sinusoidal-interleaved": "sinusoidal"}
"""Kinds of positions that files call otherwise."""


def _positions(read: _Reader, pieces: Pieces, n_layers: int) -> str:
    """ "rope", "learned", "sinusoidal", "alibi" or "none": a stated ALiBi bias decides, then what the file states."""
    stated = str(read.get("position_embedding", pieces.get("positions", "rope")))
    stated = _STATED.get(stated, stated)
    if stated not in ("rope", "learned", "sinusoidal", "alibi", "none"):
        raise read.bad(f"key '{read.arch}.position_embedding'", f"is {_short(stated)}, which is no kind known here")
    if "positions_when" in pieces and read.get(pieces["positions_when"]) is False:
        return "none"
    bias = read.optional("attention.max_alibi_bias")
    if bias or pieces.get("alibi_at") == n_layers:
        return "alibi"
    if stated == "alibi" and read.get("attention.max_alibi_bias") is not None:
        return "learned" if "position_embd.weight" in read.shapes else "none"
    return stated


def _norm(read: _Reader, pieces: Pieces) -> Norm:
    kinds = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
    wanted = pieces.get("norm")
    for kind, key in kinds.items():
        if read.get(key) is not None and wanted in (None, kind):
            return Norm(kind, read.number(key))
    stated = next((read.get(key) for key in kinds.values() if read.get(key) is not None), None)
    if stated is not None:  # under the other kind's name (Phi-3.5-MoE)
        return Norm(str(wanted), float(stated))
    return Norm(pieces.get("norm", "rms"), float(pieces.get("eps", 1e-5)))


_GATINGS = {1: "softmax", 2: "sigmoid", 3: "softmax_weight"}


class _Layers:
    """Describes layer by layer; what all layers share is read once."""

    def __init__(self, read: _Reader, pieces: Pieces, n_layers: int, dim: int):
        self.read, self.pieces, self.n, self.dim = read, pieces, n_layers, dim
        self.positions = _positions(read, pieces, n_layers)
        self.heads = read.per_layer("attention.head_count", n_layers, 1)
        self.heads_kv = [
            kv or h for kv, h in zip(read.per_layer("attention.head_count_kv", n_layers, 0), self.heads, strict=True)
        ]
        self.window = read.count("attention.sliding_window", 0)
        if self.window and pieces.get("window_both_sides"):
            self.window = self.window // 2 + 1
        self.windowed = self._windowed()
        parallel = read.get("use_parallel_residual")
        self.parallel = bool(pieces.get("parallel", False) if parallel is None else parallel)
        self.activation = self._activation()

    def _windowed(self) -> list[bool]:
        """Which layers see only a window."""
        usual = self.pieces.get("window_pattern")
        pattern = self.read.get("attention.sliding_window_pattern", usual)
        if not self.window or pattern is None:
            return [False] * self.n
        kinds = self.read.config.get("layer_types") if pattern is usual and usual else None
        if isinstance(kinds, list) and len(kinds) >= self.n:  # a GGUF of before the pattern was written
            return [kind == "sliding_attention" for kind in kinds[: self.n]]
        if isinstance(pattern, np.ndarray | list | tuple):
            if len(pattern) < self.n:
                raise self.read.bad("key 'attention.sliding_window_pattern'", f"has no entry for all {self.n} layers")
            return [bool(flag) for flag in pattern[: self.n]]
        return every_nth(int(pattern), self.pieces, self.n)

    def _activation(self) -> str:
        own = str(self.pieces.get("activation", "silu"))
        stated = self.read.get("hidden_activation", self.read.get("activation"))
        setting = self.pieces.get("activation_key", "hidden_act")
        if stated is None and setting and own != "swiglu_oai":
            stated = self.read.config.get(setting)
        return own if stated is None else activation(stated)

    def layer(self, i: int) -> Layer:
        mlp_norm = str(self.pieces.get("mlp_norm", "ffn_norm"))
        after = self.read.get("norm_before") is False
        residual = self.read.get("residual_after_norm") is True
        mixers, scan = self._mixers(i)
        attention = self._attention(i) if "attention" in mixers else self._none()
        mlp = self._mlp(i) if self._has_mlp(i, mixers) else None
        if self.pieces.get("single") and not mixers:
            mlp_norm = "attn_norm"
        return Layer(
            attention,
            mlp,
            self.parallel,
            mlp_norm,
            after,
            mixers,
            scan,
            norms_inside=bool(self.pieces.get("norms_inside", False)),
            residual_after_norm=residual,
            stream=self.read.count("altup.active_idx", 0),
            skips=bool(self.pieces.get("skips_embedding", False)),
            swapped=self.read.get("swin_norm") is True,
        )

    def _mixers(self, i: int) -> tuple[tuple[str, ...], Scan | None]:
        """What mixes tokens in a layer, and its scan."""
        shapes, scan = self.read.shapes, scan_of(self.read, i, bool(self.pieces.get("scan_norms_by_model")))
        if scan is not None and self.pieces.get("activation_key", "hidden_act") == "hidden_act":
            scan = dataclasses.replace(scan, activation=self.activation)
        attends = any(f"blk.{i}.attn_{name}.weight" in shapes for name in ("q", "kv_a_mqa"))
        if f"blk.{i}.shortconv.conv.weight" in shapes:
            return ("convolution",), None
        if self.pieces.get("may_skip") and f"blk.{i}.attn_k.weight" not in shapes:
            return (("linear",) if f"blk.{i}.attn_output.weight" in shapes else ()), None
        if scan is not None:
            attends = attends and scan.kind != "kda"
            return (("scan", "attention") if attends else ("scan",)), scan
        return (() if self.pieces.get("single") and not attends else ("attention",)), None

    def _has_mlp(self, i: int, mixers: tuple[str, ...]) -> bool:
        """A layer without one is known of scans, and of families whose layers are one thing each or may lack some."""
        there = any(f"blk.{i}.ffn_{name}.weight" in self.read.shapes for name in ("down", "gate_inp"))
        if self.pieces.get("may_skip"):
            return there
        return there or not mixers or not ("scan" in mixers or self.pieces.get("single"))

    def _none(self) -> Attention:
        """What a cache must know of a layer without attention: a convolution's is that of one head."""
        causal = bool(self.read.get("attention.causal", self.pieces.get("causal", True)))
        return Attention(n_head=1, n_head_kv=1, head_dim=self.dim, value_dim=1, scale=1.0, causal=causal)

    def _attention(self, i: int) -> Attention:
        read, pieces = self.read, self.pieces
        n_head, n_kv = self.heads[i], self.heads_kv[i]
        if n_head < 1 or n_kv < 1 or n_head % n_kv:
            raise read.bad(f"layer {i}", f"has {n_head} heads for {n_kv} key-value heads, not a multiple")
        if read.get("attention.key_length") is None and self.dim % n_head:
            raise read.bad(f"layer {i}", f"has {n_head} heads in {self.dim} dimensions, not a multiple")
        near = "_swa" if self.windowed[i] else ""
        head_dim = read.count("attention.key_length", self.dim // n_head, 1)
        value_dim = read.count("attention.value_length", head_dim, 1)
        head_dim = read.count(f"attention.key_length{near}", head_dim, 1)
        value_dim = read.count(f"attention.value_length{near}", value_dim, 1)
        borrows, lends = self._lending(i)
        mla = None
        if f"blk.{i}.attn_kv_a_mqa.weight" in read.shapes:
            kv_rank, rope_dims = read.count("attention.kv_lora_rank", least=1), read.count("rope.dimension_count")
            head_dim = read.count("attention.key_length_mla", head_dim)
            value_dim = read.count("attention.value_length", self.dim // n_head)
            value_dim = read.count("attention.value_length_mla", value_dim)
            n_kv = n_head
            top_k = read.count("attention.indexer.top_k", 0)
            mla = Mla(kv_rank, head_dim - rope_dims, rope_dims, top_k)
            if mla.nope_dims < 1:
                raise read.bad(f"layer {i}", f"has heads of {head_dim}, fewer than its {rope_dims} rotary dimensions")
        else:
            self._check_projections(i, n_head, n_kv, head_dim, value_dim, borrows is not None)
        usual = 1 / head_dim ** pieces.get("scale_power", 0.5)
        scale, rope = pieces.get("attention_scale", usual), self._rope(i, head_dim)
        if pieces.get("scale_by_model") == self.n:
            scale = 1 / math.sqrt(self.dim / n_head)
        if read.config.get("query_pre_attn_scalar"):
            scale = float(read.config["query_pre_attn_scalar"]) ** -0.5
        log_multiplier = read.number("rope.scaling.yarn_log_multiplier", 0.0)
        if mla and rope and rope.scaling == "yarn" and log_multiplier:
            scale *= (1 + log_multiplier * math.log(rope.factor)) ** 2
        if rope and rope.factor > 1 and pieces.get("magnitude_in_scores"):
            scale *= (rope.attn_factor if rope.scaling == "yarn" else 1 + 0.1 * math.log(rope.factor)) ** 2
        alibi = None
        if self.positions == "alibi":
            alibi = read.number("attention.max_alibi_bias", pieces.get("alibi_bias", 8.0)) or None
        return Attention(
            n_head=n_head,
            n_head_kv=n_kv,
            head_dim=head_dim,
            value_dim=value_dim,
            scale=self._stated_scale(i) or scale,
            causal=bool(read.get("attention.causal", pieces.get("causal", True))),
            window=self.window if self.windowed[i] else None,
            softcap=read.optional("attn_logit_softcapping"),
            clamp=read.optional("attention.clamp_kqv"),
            clamp_normed=bool(pieces.get("clamp_normed", False)),
            rope=rope,
            alibi=alibi,
            alibi_quirk=bool(pieces.get("alibi_quirk", False)),
            softmax_start=read.number("attention.softmax_start", pieces.get("softmax_start", 0.0)),
            norm_after_rope=bool(pieces.get("qk_norm_after_rope", False)),
            growth=self._growth(rope is None),
            gate=str(pieces.get("attention_gate", "sigmoid")),
            value_scale=read.optional("attention.value_scale") or 1.0,
            mla=mla,
            gated=self._gated(i),
            value_norm=bool(pieces.get("value_norm", False)),
            borrows=borrows,
            lends=lends,
            chunk=self._chunk(rope is not None),
            length_one=rope is not None and self._length_one(),
        )

    def _lending(self, i: int) -> tuple[int | None, bool]:
        """The layer whose keys and values a layer reads: the last of its kind that has some; and whether it is one."""
        first = self.n - self.read.count(
            "attention.shared_kv_layers", max(0, self.n - self.pieces.get("lends_from", self.n))
        )
        if first == self.n:
            return None, False
        if i >= first and self.pieces.get("lends_last_two"):
            return first - 1 - self.windowed[i], False
        if i >= first:
            kin = [k for k in range(first) if self.windowed[k] == self.windowed[i]]
            if not kin:
                raise self.read.bad(f"layer {i}", "reads keys of an earlier layer of its kind, and there is none")
            return kin[-1], False
        return None, not any(self.windowed[k] == self.windowed[i] for k in range(i + 1, first))

    def _gated(self, i: int) -> bool:
        return bool(self.pieces.get("gated_queries")) and f"blk.{i}.attn_q.weight" in self.read.shapes

    def _chunk(self, turns: bool) -> int | None:
        """How long the chunks are that a layer sees, where it has rotary positions and the family such chunks."""
        usual = self.pieces.get("chunk", 0)
        return (self.read.count("attention.chunk_size", usual) or None) if turns and usual else None

    def _length_one(self) -> bool:
        """Whether queries and keys are normed; the larger Llama 4's are not, and llama.cpp knows it by its experts."""
        usual = self.read.count("expert_count", 0) != 128
        return bool(self.pieces.get("length_one") and self.read.get("attention.qk_norm", usual))

    def _growth(self, still: bool) -> Growth | None:
        if usual := self.pieces.get("growth_without_rope"):
            by = self.read.number("attention.temperature_scale", 0.1)
            length = self.read.count("attention.temperature_length", int(usual))
            return Growth(by, length, 1) if still and by and length else None
        scale = self.read.optional("attention.temperature_scale")
        context = self.read.count("rope.scaling.original_context_length", self.read.count("context_length", 0))
        length = self.read.count("attention.temperature_length", context)
        return Growth(scale, length) if scale and length else None

    def _stated_scale(self, i: int) -> float | None:
        """What the file says q·k is multiplied by: a number, or one for each layer."""
        value = self.read.get("attention.scale")
        if not isinstance(value, np.ndarray | list | tuple):
            return self.read.optional("attention.scale") or self.read.optional("attention.output_scale")
        try:
            return float(value[i])
        except (IndexError, TypeError, ValueError):
            raise self.read.bad("key 'attention.scale'", f"has no number for layer {i}") from None

    def _check_projections(self, i: int, n_head: int, n_kv: int, head_dim: int, value_dim: int, borrows: bool) -> None:
        read, start = self.read, f"blk.{i}.attn_"
        sizes = {"q": (1 + self._gated(i)) * n_head * head_dim, "k": n_kv * head_dim, "v": n_kv * value_dim}
        if f"{start}qkv.weight" in read.shapes:
            read.expect(f"{start}qkv.weight", sum(sizes.values()), f"{n_head} + {n_kv} + {n_kv} heads of {head_dim}")
            return
        if borrows:
            sizes = {"q": sizes["q"]}
        elif self.pieces.get("value_norm") and f"{start}v.weight" not in read.shapes:
            del sizes["v"]
        for part, rows in sizes.items():
            read.shape(f"{start}{part}.weight", 2)
            read.expect(f"{start}{part}.weight", rows, f"{rows // head_dim} heads of {head_dim}")

    def _rope(self, i: int, head_dim: int) -> Rope | None:
        read, pieces = self.read, self.pieces
        windowed, every = self.windowed[i], pieces.get("no_rope_every", 0)
        listed = read.get("rope.layers", read.config.get("no_rope_layers"))  # the setting says which do have it
        if self.positions != "rope":
            return None
        stated = read.get("attention.rope_pattern")
        if isinstance(stated, np.ndarray | list | tuple) and i < len(stated) and not stated[i]:
            return None
        listed = listed.tolist() if isinstance(listed, np.ndarray) else listed
        if isinstance(listed, list) and len(listed) >= self.n and every:
            if not listed[i]:
                return None
        elif (every and (i + 1) % every == 0) or not (windowed or self._turns_without_window(i)):
            return None
        dims = read.count("rope.dimension_count", head_dim) or head_dim
        part = 1 if windowed else pieces.get("full_turn_part", 1)
        dims = read.count("rope.dimension_count_swa", min(dims, head_dim)) if windowed else int(dims * part)
        if dims > head_dim or dims % 2:
            raise read.bad(
                f"key '{read.arch}.rope.dimension_count'", f"is {dims}, but heads have {head_dim} dimensions"
            )
        base = read.number("rope.freq_base", pieces.get("rope_base", 10000.0))
        if alpha := read.optional("rope.scaling.alpha"):
            base *= alpha ** (dims / (dims - 2))
        scaled = True
        if windowed:
            base = read.number("rope.freq_base_swa", pieces.get("window_rope_base", base))
            scaled = pieces.get("window_rope_scaled", True)
        # Three-fold positions are halves apart, also in families whose plain ones are neighbours (GLM-4V).
        stated = pieces.get("rope") == "pairs" or bool(read.get("rope.interleaved"))
        pairs = stated and read.get("rope.dimension_sections") is None
        plain = Rope(dims, base, pairs)
        return self._scaled(plain) if scaled else dataclasses.replace(plain, divided=False)

    def _turns_without_window(self, i: int) -> bool:
        """Whether a layer that attends to everything has rotary positions."""
        match self.pieces.get("rope_layers"):
            case "windowed or dense":
                return f"blk.{i}.ffn_gate_inp.weight" not in self.read.shapes
            case "windowed":
                return False
            case "windowed if any":
                return not self.window
        return True

    def _scaled(self, rope: Rope) -> Rope:
        """The rope with the file's scaling."""
        read = self.read
        kind = str(read.get("rope.scaling.type", "linear"))
        if "rope_factors_long.weight" in read.shapes:
            kind = "longrope"
        settings = read.config.get("rope") or {}
        if settings.get("rope_type") == "dynamic" and read.get("rope.scaling.type") is None:
            kind = "dynamic"  # GGUF has no word for it
        factor = read.number("rope.scaling.factor", read.number("rope.scale_linear", 1.0)) or 1.0
        if factor < 0:
            raise read.bad(f"key '{read.arch}.rope.scaling.factor'", f"is {factor:g}, expected a positive number")
        if kind not in ("none", "linear", "dynamic", "yarn", "longrope"):
            raise read.bad(f"key '{read.arch}.rope.scaling.type'", f"is {_short(kind)}, which is no kind known here")
        attn = read.number("rope.scaling.attn_factor", 1.0)
        if kind == "yarn" and factor > 1:
            multiplier = read.number("rope.scaling.yarn_log_multiplier", 0.0)
            if not multiplier:
                attn *= 1 + 0.1 * math.log(factor)
            elif not self.pieces.get("yarn_magnitudes_cancel"):
                attn *= (1 + 0.1 * math.log(factor)) / (1 + multiplier * math.log(factor))
        if kind == "linear" and factor == 1:
            kind = "none"
        if kind == "dynamic":
            factor = float(settings.get("factor", factor))
        return dataclasses.replace(
            rope,
            scaling=kind,
            factor=factor,
            original_context=read.count("rope.scaling.original_context_length", read.count("context_length", 0)),
            attn_factor=attn,
            beta_fast=read.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=read.number("rope.scaling.yarn_beta_slow", 1.0),
            truncate=bool(read.get("rope.scaling.yarn_truncate", self.pieces.get("yarn_truncate", True))),
        )

    def _mlp(self, i: int) -> Mlp:
        read, start = self.read, f"blk.{i}.ffn_"
        if f"{start}gate_inp.weight" in read.shapes:
            gate = "apart" if f"{start}gate_exps.weight" in read.shapes else "fused"
            if gate == "fused" and f"{start}gate_up_exps.weight" not in read.shapes:
                gate = "none"
            beside = self.pieces.get("beside", 0.0) if f"{start}up.weight" in read.shapes else 0.0
            apart = f"blk.{i}.pre_ffw_norm_2.weight" in read.shapes
            return Mlp(self.activation, gate, self._experts(i), beside, apart)
        ff, up = read.shape(f"{start}down.weight", 2)[1], read.shape(f"{start}up.weight", 2)[0]
        if f"{start}gate.weight" in read.shapes:
            read.expect(f"{start}gate.weight", ff, "as many as ffn_down has columns")
            gate = "apart"
        else:
            gate = "fused" if up == 2 * ff else "none"
        read.expect(f"{start}up.weight", 2 * ff if gate == "fused" else ff, "as many as ffn_down has columns")
        numbers = self._numbers(i) if self.activation == "xielu" else ()
        return Mlp(self.activation, gate, cut=self._cut(i), numbers=numbers)

    def _cut(self, i: int) -> float | None:
        key = "activation_sparsity_scale"
        if self.read.get(key) is None:
            return 1.6448536 if i < self.pieces.get("cut_layers", 0) else None
        found = self._of_layer(key, i)
        return found if math.isfinite(found) else None  # minus infinity: nothing

    def _of_layer(self, key: str, i: int) -> float:
        """A number for all layers or for each; 0 where the file has none."""
        value = self.read.get(key, 0.0)
        try:
            return float(value[i] if isinstance(value, np.ndarray | list | tuple) else value)
        except (IndexError, TypeError, ValueError):
            raise self.read.bad(f"key '{self.read.arch}.{key}'", f"has no number for layer {i}") from None

    def _numbers(self, i: int) -> tuple[float, ...]:
        found = []
        for name in ("alpha_p", "alpha_n", "beta", "eps"):
            value = self.read.metadata.get(f"xielu.{name}")
            try:
                found.append(float(value[i] if isinstance(value, np.ndarray | list | tuple) else value))
            except (IndexError, TypeError, ValueError):
                raise self.read.bad(f"key 'xielu.{name}'", f"has no number for layer {i}") from None
        return tuple(found)

    def _experts(self, i: int) -> Experts:
        read, pieces = self.read, self.pieces
        count = read.shape(f"blk.{i}.ffn_gate_inp.weight", 2)[0]
        used = read.per_layer("expert_used_count", i + 1, 0)[i]
        if used < 1:
            raise read.bad(f"key '{read.arch}.expert_used_count'", f"is {used} for layer {i}, expected at least 1")
        if used > count:
            raise read.bad(f"key '{read.arch}.expert_used_count'", f"is {used}, but there are {count} experts")
        number = read.get("expert_gating_func")
        gating = _GATINGS.get(number or 0) if number else pieces.get("gating", "softmax")
        if not number and "gating" not in pieces and f"blk.{i}.exp_probs_b.bias" in read.shapes:
            gating = "sigmoid"  # the bias that steers the choice came with sigmoid scores (DeepSeek-V3)
        if gating is None:
            raise read.bad(f"key '{read.arch}.expert_gating_func'", f"is {number}, expected 1, 2 or 3")
        normalize = read.get("expert_weights_norm")
        if normalize is None:
            normalize = read.config.get("norm_topk_prob", pieces.get("normalize_experts", False))
        groups = read.count("expert_group_count", 1) or 1
        if count % groups:
            raise read.bad(f"key '{read.arch}.expert_group_count'", f"is {groups}, but there are {count} experts")
        return Experts(
            count=count,
            used=used,
            gating=gating,
            normalize=bool(normalize),
            scale=read.optional("expert_weights_scale") or 1.0,
            groups=groups,
            group_by=min(pieces.get("group_by", 2 if gating == "sigmoid" else 1), count // groups),
            groups_used=read.count("expert_group_used_count", groups) or groups,
            jitter=float(read.config.get("router_jitter_noise") or 0.01) if gating == "sparsemixer" else 0.0,
            softcap=read.optional("router_logit_softcapping") if pieces.get("router_capped") else None,
            clamp=self._of_layer("swiglu_clamp_exp", i),
            shared_clamp=self._of_layer("swiglu_clamp_shexp", i),
            clamp_first=bool(pieces.get("clamp_first", False)),
            router_first=bool(pieces.get("router_first", False)),
            shared_average=bool(pieces.get("shared_average", False)),
            weighed_before=bool(pieces.get("weighed_before", False)),
        )
