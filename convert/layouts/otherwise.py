"""Settings which say that a model computes otherwise than the layout that its weights look like.

Norms of queries, caps of logits, ALiBi and a good deal more have no weights: without a look at what is stated such a
model would be run, and be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llmconv.convert.layouts.base import look
from llmconv.convert.layouts.settings import OBJECTS

__all__ = ["OF_GPTS", "otherwise"]

OF_GPTS = ("microgpt", "gpt2", "small-gpt", "blocks")
"""Architectures of whose models the settings are asked: their blocks have norms in front, and see what came before."""

_OFF = frozenset({"", "none", "no", "false", "off", "null"})
_MOST = 1000
"""Keys of an object that holds settings, at most."""


def otherwise(documents: Sequence[tuple[str, Any]], own: Mapping[str, Any]) -> tuple[str, str, Any] | None:
    """(file, path, value) of the first setting that contradicts the keys of the layout; None where none does.

    own: the layout's keys, without the architecture's prefix.
    """
    for where, document in documents:
        for path, value in _settings(document):
            means = _MEANS.get(_plain(path.rsplit(".", 1)[-1]))
            if means is not None and isinstance(value, str | int | float | bool) and not means(value, own):
                return where, path, value
    return None


def _settings(document: Any) -> Iterator[tuple[str, Any]]:
    for place in OBJECTS:
        node = look(document, place[:-1]) if place else document
        if isinstance(node, dict) and len(node) <= _MOST:
            yield from ((place + key, value) for key, value in node.items())


def _plain(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())


def _off(value: Any, _: Any = None) -> bool:
    return _plain(value) in _OFF if isinstance(value, str) else not value


def _on(value: Any, _: Any) -> bool:
    return not _off(value) and value not in ("post", "last")


def _one(value: Any, _: Any) -> bool:
    return _off(value) or (value is not True and value == 1)


def _at_most_one(value: Any, _: Any) -> bool:
    return _off(value) or value == 1


def _causal(value: Any, own: Mapping[str, Any]) -> bool:
    return _on(value, own) == bool(own.get("attention.causal", True))


def _both_ways(value: Any, own: Mapping[str, Any]) -> bool:
    return not _causal(value, own)


def _window(value: Any, own: Mapping[str, Any]) -> bool:
    return _off(value) or (not isinstance(value, str) and (value < 0 or value >= own.get("context_length", math.inf)))


def _positions(value: Any, own: Mapping[str, Any]) -> bool:
    kinds = {"learn": "learned", "absolute": "learned", "ro": "rope", "sin": "sinusoidal", "none": "none"}
    if not isinstance(value, str):
        return True
    said = next((kind for start, kind in kinds.items() if _plain(value).startswith(start)), None)
    return said is not None and str(own.get("position_embedding", "learned")).startswith(said)


def _rotary(value: Any, own: Mapping[str, Any]) -> bool:
    return isinstance(value, float) or _on(value, own) == (own.get("position_embedding") == "rope")


def _norm(value: Any, own: Mapping[str, Any]) -> bool:
    if not isinstance(value, str):
        return True
    rms = "attention.layer_norm_rms_epsilon" in own
    return "rms" in _plain(value) if rms else _plain(value) in ("layer", "layernorm", "ln", "prelayernorm", "preln")


def _rms(value: Any, own: Mapping[str, Any]) -> bool:
    return _on(value, own) == ("attention.layer_norm_rms_epsilon" in own)


def _head(value: Any, own: Mapping[str, Any]) -> bool:
    width = own.get("attention.key_length", int(own["embedding_length"]) // max(1, int(own["attention.head_count"])))
    return isinstance(value, str) or value == width


def _attention_scale(value: Any, own: Mapping[str, Any]) -> bool:
    width = int(own["embedding_length"]) // max(1, int(own["attention.head_count"]))
    usual = 1 / math.sqrt(int(own.get("attention.key_length", width)))
    return isinstance(value, str | bool) or math.isclose(value, usual, rel_tol=1e-3)


_NAMES: tuple[tuple[Callable[[Any, Mapping[str, Any]], bool], str], ...] = (
    (
        _off,
        "qknorm useqknorm qklayernorm normalizeqk qkrmsnorm softcap logitsoftcap logitssoftcap "
        "finallogitsoftcapping logitcap softcapping attnlogitsoftcapping attnsoftcap alibi usealibi ropescaling "
        "parallelresidual useparallelresidual parallelblock parallelattn postnorm usepostnorm postln normlast moe "
        "usemoe",
    ),
    (_at_most_one, "nexperts nexpert numexperts numlocalexperts"),
    (
        _one,
        "embeddingscale embedscale scaleemb scaleembeddings scaleembedding embscale embeddingmultiplier "
        "residualscale residualmultiplier logitscale logitsscaling outputscale rotarypct rotarypercent "
        "partialrotaryfactor ropefraction",
    ),
    (
        _on,
        "normfirst prenorm preln useprenorm usenorm useresidual residual residuals scaleattention scaleattn "
        "scaleattnweights",
    ),
    (_causal, "causal iscausal causalmask usecausalmask autoregressive"),
    (_both_ways, "bidirectional"),
    (_window, "window windowsize slidingwindow attentionwindow localwindow slidingwindowsize"),
    (
        _positions,
        "positionembedding positionencoding positionalencoding posencoding posenc positionembeddingtype "
        "posembedding posemb postype positiontype",
    ),
    (_rotary, "rope userope rotary userotary ropeenabled useropeembeddings"),
    (_norm, "norm normtype normalization normkind normlayer layernormtype"),
    (_rms, "rmsnorm usermsnorm"),
    (_head, "headdim headsize dhead dimhead dimperhead headwidth"),
    (_attention_scale, "attentionscale attnscale attentionmultiplier softmaxscale"),
)
"""What settings say, by their names in small letters alone: whether a value agrees with the layout's keys."""
_MEANS = {name: agrees for agrees, names in _NAMES for name in names.split()}
