"""What a converted model does that llama.cpp will not: its file is described as we read it and as its loader does.

`Loader` (in the architecture's table) says which keys llama.cpp leaves unread, which tensors it has no place for and
what it computes whatever a file says; where the two descriptions differ, a note says how.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llmconv.convert import archs
from llmconv.convert.decoders.describe import describe
from llmconv.convert.decoders.facts import Decoder, Layer
from llmconv.convert.tables import own_keys, scores
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.loader import unread_of
from llmconv.convert.tables.pieces import Pieces
from llmconv.convert.tables.rows import at_layer
from llmconv.convert.tables.windows import PATTERN
from llmconv.errors import LlmconvError, more
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["beyond_llama_cpp", "of_others", "otherwise_in_a_folder", "otherwise_in_llama_cpp"]


def beyond_llama_cpp(arch: Architecture, checkpoint: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """Notes about a GGUF made from a model of this (normalized) configuration."""
    if not arch.loader.exists:
        return []
    of_all = arch.dims_of(checkpoint.metadata)
    dims = at_layer(of_all, 0)
    refused = arch.loader.strange(checkpoint.tensors, dims)
    notes = []
    if scores.SCORE in arch.rows and scores.NAME in checkpoint.tensors:
        if arch.gguf in scores.IN_LLAMA_CPP:
            if own_keys.RERANKER not in checkpoint.metadata:
                notes.append("llama.cpp gives the softmax of its labels' scores, which is 1 where there is one label")
        else:
            refused.append(scores.NAME)
    if f"{arch.gguf}.moe_layers" in checkpoint.metadata and "moe_layers" not in arch.loader.untold:
        notes.append("some layers have a plain feed-forward instead of experts; llama.cpp will not load this file")
    if refused:
        notes.append(f"llama.cpp has no place for {refused[0]}{more(refused)}, so it will not load this file")
    if unused := arch.loader.unused(checkpoint.tensors, dims):
        notes.append(f"llama.cpp computes without {unused[0]}{more(unused)}")
    if missing := arch.loader.missing(checkpoint.tensors, of_all):
        notes.append(f"llama.cpp needs {missing[0]}{more(missing)}, so it will not load this file")
    groups, used = (checkpoint.metadata.get(f"{arch.gguf}.expert_group_{n}count", 1) for n in ("", "used_"))
    if groups > 1 and used >= groups:
        notes.append("experts are chosen out of all groups of them, which llama.cpp takes for a fault: it will stop")
    notes += [f"llama.cpp wants {what}, so it will not load this file" for what in arch.loader.unfit(dims)]
    own = {key.removeprefix(f"{arch.gguf}.") for key in checkpoint.metadata}
    notes += [f"{what}, which llama.cpp will not do" for what in arch.loader.left_undone(own)]
    pattern = checkpoint.metadata.get(f"{arch.gguf}.{PATTERN}")
    lacking = arch.loader.nowhere(checkpoint.tensors)
    notes += [f"no layer has {what}, without which llama.cpp will stop" for what in lacking]
    always = arch.loader.always_windows or PATTERN in arch.loader.unread
    if always and pattern is not None and not np.any(pattern):
        notes.append("no layer has a window, for which this family's code in llama.cpp is not made: it will stop")
    rope = config.get("rope") or {}
    if rope.get("rope_type") == "dynamic" and f"{arch.gguf}.rope.scaling.type" not in checkpoint.metadata:
        notes.append("beyond its context its rotary positions are scaled dynamically, which llama.cpp will not do")
    try:
        ours = describe(checkpoint)
        unread = _unread(arch, ours)
        said = list(_otherwise(arch, checkpoint, ours, unread - {PATTERN}, refused))
        notes += [f"{what}, which llama.cpp will not do" for what in said]
        if PATTERN in unread:
            old = _as_llama_cpp(arch, checkpoint, unread, refused)
            notes += [
                f"{what}, which releases of llama.cpp that read no pattern from the file will not do"
                for what in _differences(ours, old)
                if what not in said
            ]
    except LlmconvError:
        pass  # it can't be run here either; whoever tries is told why
    return notes


def of_others(checkpoint: Checkpoint) -> Decoder | None:
    """What a GGUF that somebody else made says of its model; None for one of ours, and for one that can't be run."""
    if own_keys.CONFIG in checkpoint.metadata:
        return None
    try:
        return describe(checkpoint)
    except LlmconvError:
        return None


def otherwise_in_llama_cpp(checkpoint: Checkpoint, ours: Decoder | None) -> list[str]:
    """Notes about a GGUF that somebody else made: what it says of its model (`ours`), and llama.cpp does otherwise."""
    arch = archs.by_gguf(str(checkpoint.metadata.get("general.architecture")))
    if ours is None or arch is None or not arch.loader.exists:
        return []
    try:
        found = _otherwise(arch, checkpoint, ours, _unread(arch, ours) - {PATTERN})
        return [f"{what}, which llama.cpp will not do" for what in found]
    except LlmconvError:
        return []


def otherwise_in_a_folder(checkpoint: Checkpoint, ours: Decoder | None, again: Mapping[str, Any]) -> list[str]:
    """Notes about what a GGUF that somebody else made says of its model (`ours`), and the folder made of it does not.

    again: the keys that the folder gives when it is converted back.
    """
    start = f"{checkpoint.metadata.get('general.architecture')}."
    if ours is None or not any(key.startswith(start) for key in again):
        return []
    others = {key: value for key, value in checkpoint.metadata.items() if not key.startswith(start)}
    said = others | {key: value for key, value in again.items() if key.startswith(start)}
    try:
        theirs = describe(checkpoint.but(metadata=said))
        return [f"{what}, which config.json does not say" for what in _differences(ours, theirs)]
    except LlmconvError:
        return []


def _unread(arch: Architecture, ours: Decoder) -> set[str]:
    """The keys that llama.cpp leaves unread in a file of this model."""
    windows = {"attention.sliding_window"} if arch.loader.windows_at not in (None, 0, len(ours.layers)) else set()
    return {*unread_of(arch.gguf), *arch.loader.unread, *windows} - {*arch.loader.untold}


def _otherwise(
    arch: Architecture, checkpoint: Checkpoint, ours: Decoder, unread: set[str], refused: Sequence[str] = ()
) -> Iterator[str]:
    """What the file says in our reading, and llama.cpp computes otherwise."""
    yield from _differences(ours, _as_llama_cpp(arch, checkpoint, unread, refused))
    if any(layer.attention.window and not layer.attention.causal for layer in ours.layers):
        yield "its windows reach to both sides"


def _as_llama_cpp(arch: Architecture, checkpoint: Checkpoint, unread: set[str], refused: Sequence[str]) -> Decoder:
    """The file as llama.cpp's loader understands it."""
    keys = {f"{arch.gguf}.{key}" for key in unread}
    seen = {k: v for k, v in checkpoint.metadata.items() if k not in keys and not k.startswith(own_keys.OWN)}
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in refused}
    pieces: Pieces = {**arch.decoder, "windows_magnified": True, "group_by": 2, **arch.loader.pieces}
    pieces.pop("head_norm_vocab", None)
    return describe(dataclasses.replace(checkpoint, metadata=seen, tensors=tensors), pieces)


_WHOLE: tuple[tuple[str, str], ...] = (
    ("head_norm", "Baichuan 2 scales the rows of its head to length 1"),
    ("final_softcap", "its logits are capped at {}"),
    ("logit_scale", "its logits are scaled by {}"),
    ("embed_scale", "its embeddings are scaled by {}"),
    ("latent_eps", "the norms inside its attention have the epsilon {}"),
    ("residual_scale", "its residuals are scaled by {}"),
    ("positions", "its positions are of the kind {!r}"),
    ("loops", "its layers are gone through {} times"),
)


def _rotary(part: str, scaling: str = "") -> Callable[[Layer], Any]:
    """A part of a layer's rotary positions; None where it has none, or not of this scaling."""

    def of(layer: Layer) -> Any:
        rope = layer.attention.rope
        return None if rope is None or (scaling and rope.scaling != scaling) else getattr(rope, part)

    return of


def _experts(layer: Layer) -> Any:
    return layer.mlp and layer.mlp.experts


def _activation(layer: Layer) -> Any:
    return layer.mlp.activation if layer.mlp is not None else layer.scan and layer.scan.activation


def _borrowed(layer: Layer) -> str:
    return "its own" if layer.attention.borrows is None else f"layer {layer.attention.borrows}"


def _seen(layer: Layer) -> str:
    window = layer.attention.window
    return "all tokens" if window is None else f"a window of {window} tokens"


_PER_LAYER: tuple[tuple[Callable[[Layer], Any], str], ...] = (
    (_activation, "{where} the activation {!r} of the configuration (not {other!r})"),
    (lambda layer: layer.scan and layer.scan.norm_eps, "{where} norms inside its scans with the epsilon {}"),
    (_seen, "{where} attention over {} (not {other})"),
    (lambda layer: layer.mlp and layer.mlp.cut is not None, "{where} all but the largest of a gate cut off: {}"),
    (lambda layer: (layer.mlp and layer.mlp.cut) or 0.0, "{where} a gate cut off below {:.6g} standard deviations"),
    (lambda layer: layer.stream, "{where} the stream {} computed (not {other})"),
    (lambda layer: layer.attention.chunk or 0, "{where} attention to chunks of {} tokens (not {other})"),
    (lambda layer: layer.attention.length_one, "{where} queries and keys normed without weights: {}"),
    (lambda layer: layer.attention.growth or "", "{where} queries that grow by {!r}"),
    (lambda layer: _borrowed(layer), "{where} the keys and values of {} (not of {other})"),
    (lambda layer: layer.attention.value_scale, "{where} values times {} (not {other})"),
    (lambda layer: layer.attention.causal, "{where} attention that is causal: {}"),
    (lambda layer: layer.attention.scale, "{where} attention scores times {:.6g} (not {other:.6g})"),
    (lambda layer: layer.attention.softcap or "no number", "{where} attention scores capped at {}"),
    (lambda layer: layer.attention.clamp or "no number", "{where} queries, keys and values clamped at {}"),
    (lambda layer: layer.attention.alibi or 0, "{where} ALiBi with the exponent {}"),
    (lambda layer: layer.attention.rope is not None, "{where} rotary positions: {}"),
    (_rotary("base"), "{where} the rotary base {}"),
    (_rotary("interleaved"), "{where} neighbours that turn together: {}"),
    (lambda layer: layer.scan and layer.scan.gate, "{where} gates on its delta rules' results opened by {}"),
    (_rotary("factor", "linear"), "{where} rotary scaling by {}"),
    (_rotary("factor", "yarn"), "{where} rotary scaling by {}"),
    (_rotary("attn_factor"), "{where} rotations times {} (not {other}), YaRN's attention_factor"),
    (_rotary("beta_fast", "yarn"), "{where} YaRN's beta_fast {}"),
    (_rotary("beta_slow", "yarn"), "{where} YaRN's beta_slow {}"),
    (_rotary("truncate", "yarn"), "{where} YaRN's truncate {}"),
    (lambda layer: layer.parallel, "{where} attention and feed-forward in parallel: {}"),
    (lambda layer: layer.residual_after_norm, "{where} residuals taken after the norm: {}"),
    (lambda layer: layer.swapped, "{where} norms behind attention and feed-forward: {}"),
    (lambda layer: _experts(layer) and _experts(layer).normalize, "{where} experts' weights made to sum to 1: {}"),
    (lambda layer: _experts(layer) and _experts(layer).gating, "{where} experts chosen by {}"),
    (
        lambda layer: _experts(layer) and not _experts(layer).chained,
        "{where} small experts that read what others do: {}",
    ),
    (lambda layer: _experts(layer) and _experts(layer).scale, "{where} experts' sum times {} (not {other})"),
    (lambda layer: (_experts(layer) and _experts(layer).softcap) or 0.0, "{where} its router's logits capped at {}"),
    (lambda layer: (_experts(layer) and _experts(layer).clamp) or 0.0, "{where} experts' gates clamped at {}"),
    (
        lambda layer: (_experts(layer) and _experts(layer).shared_clamp) or 0.0,
        "{where} the gates of shared experts clamped at {}",
    ),
    (
        lambda layer: _experts(layer) and _experts(layer).groups > 1 and _experts(layer).group_by,
        "{where} groups of experts judged by the best {} (not {other}) of each",
    ),
)


def _differences(ours: Decoder, theirs: Decoder) -> Iterator[str]:
    for name, text in _WHOLE:
        if not _same(getattr(ours, name), getattr(theirs, name)):
            yield text.format(getattr(ours, name))
    if len(ours.layers) != len(theirs.layers):
        yield f"it has {len(ours.layers)} layers"
        return
    for part, text in _PER_LAYER:
        found: dict[tuple[Any, Any], list[int]] = {}
        for i, (one, other) in enumerate(zip(ours.layers, theirs.layers, strict=True)):
            if not _same(part(one), part(other)) and (part(one) is None) == (part(other) is None):
                found.setdefault((part(one), part(other)), []).append(i)
        if found:
            (value, instead), layers = next(iter(found.items()))
            yield text.format(value, where=_where(layers, len(ours.layers)), other=instead)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same in float32, as which files state numbers."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def _where(layers: list[int], count: int) -> str:
    if len(layers) == count:
        return "it has"
    some = ", ".join(map(str, layers[:6])) + (", ..." if len(layers) > 6 else "")
    return f"layer{'s' if len(layers) > 1 else ''} {some} {'have' if len(layers) > 1 else 'has'}"
