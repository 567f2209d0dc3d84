"""GPTs that people wrote themselves: one set of rows, whatever the parts are called and however the matrices stand.

`spelling` finds the parts.  There are microgpt (RMSNorms, no biases), what has exactly GPT-2's parts (minGPT, nanoGPT
and their ports), and any other with LayerNorms; those that a page may want written again have a table of their own.
Which activation an MLP has no weight shows: a document may state it, known programs are known by their looks
(`_known`), and else it is guessed, which a note says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmconv.convert.layouts.base import Field, Form, Layout, Words, row
from llmconv.convert.layouts.settings import (
    BOS,
    EPSILON,
    activation,
    guess,
    heads_and_positions,
    interleaved,
    places,
    sizes,
    turning,
    vocabulary,
)
from llmconv.convert.layouts.spelling import ROW, TURNED, Spelled
from llmconv.convert.layouts.written import LECTURE, MICROGPT_NAMES, NANOGPT, NDARRAY, PLAYGROUND, writer
from llmconv.convert.tables.ops import Concat, Op, Reshape, Split, Stack, Transpose
from llmconv.errors import BadFile
from llmconv.formats.tensor import Tensor

_BLOCK = "blk.{i}."
_Q, _KV = "n_head * head_dim", "n_head_kv * head_dim"


def _matrix(name: str, n_out: str, n_in: str, optional: bool = False) -> Any:
    """A matrix [out][in], or [in][out] in the document."""
    return row(name, name, f"{n_out}, {n_in}", optional=optional, alt=(Form((name + TURNED,), (Transpose(),)),))


def _vector(name: str, size: str) -> Any:
    """A vector, or one row, in the document; few have all."""
    return row(name, name, size, optional=True, alt=(Form((name + ROW,), (Reshape((1, size), (size,)),)),))


def _linear(name: str, n_out: str, n_in: str, optional: bool = False) -> Any:
    return (_matrix(f"{name}.weight", n_out, n_in, optional), _vector(f"{name}.bias", n_out))


def _norm(name: str) -> Any:
    return (_vector(f"{name}.weight", "n_embd"), _vector(f"{name}.bias", "n_embd"))


def _qkv(part: str, per_head: tuple[str, ...]) -> Any:
    """Queries, keys and values joined as GPT-2 has them; the document's may be joined, apart, or apart for each head.

    per_head: the shape of one head's.
    """
    name, apart = f"{_BLOCK}attn_qkv.{part}", tuple(f"{_BLOCK}attn_{x}.{part}" for x in "qkv")
    one_each = tuple(f"{_BLOCK}attn_{x}.{{q}}.{part}" for x in "qkv")
    join: tuple[Op, ...] = (Concat(("n_embd",) * 3),)
    stack = (Stack(kinds=3), Reshape(("n_head", *per_head), ("n_embd", *per_head[1:])), *join)
    forms = [Form(apart, join), Form(one_each, stack)]
    if part == "weight":
        forms = [Form((name + TURNED,), (Transpose(),)), *forms]
        forms += [Form(tuple(n + TURNED for n in f.patterns), (Transpose(), *f.ops)) for f in forms[1:]]
    else:
        forms = [Form((name + ROW,), (Reshape((1, "3 * n_embd"), ("3 * n_embd",)),)), *forms]
    shape = "3 * n_embd, n_embd" if part == "weight" else "3 * n_embd"
    return row(name, name, shape, optional=part == "bias", alt=tuple(forms))


def _apart() -> Any:
    """Queries, keys and values apart, with heads of their own number; the document's may be joined."""
    names = tuple(f"{_BLOCK}attn_{x}.weight" for x in "qkv")
    joined = f"{_BLOCK}attn_qkv.weight"
    split = Split((_Q, _KV, _KV))
    return row(
        names,
        names,
        (f"{_Q}, n_embd", f"{_KV}, n_embd", f"{_KV}, n_embd"),
        alt=(
            Form(tuple(n + TURNED for n in names), (Transpose(),)),
            Form((joined,), (split,)),
            Form((joined + TURNED,), (Transpose(), split)),
        ),
    )


_ENDS = (
    row("token_embd.weight", "token_embd.weight", "n_vocab, n_embd"),
    row("position_embd.weight", "position_embd.weight", "n_ctx, n_embd", optional=True,
        alt=(Form(("position_embd.weight" + ROW,), (Reshape((1, "n_ctx", "n_embd"), ("n_ctx", "n_embd")),)),)),
)  # fmt: skip
_MLP = (
    *_linear(_BLOCK + "ffn_gate", "n_ff", "n_embd", optional=True),
    *_linear(_BLOCK + "ffn_up", "n_ff", "n_embd"),
    *_linear(_BLOCK + "ffn_down", "n_embd", "n_ff"),
)
_ROWS = (
    *_ENDS,
    *_norm("output_norm"),
    *_linear("output", "n_vocab", "n_embd", optional=True),
    *_norm(_BLOCK + "attn_norm"),
    _qkv("weight", ("head_dim", "n_embd")),
    _qkv("bias", ("head_dim",)),
    *_linear(_BLOCK + "attn_output", "n_embd", "n_embd"),
    *_norm(_BLOCK + "ffn_norm"),
    *_MLP,
)
_MICRO_ROWS = (
    *_ENDS,
    _vector("output_norm.weight", "n_embd"),
    _matrix("output.weight", "n_vocab", "n_embd", optional=True),
    _vector(_BLOCK + "attn_norm.weight", "n_embd"),
    _apart(),
    _matrix(_BLOCK + "attn_output.weight", "n_embd", _Q),
    _vector(_BLOCK + "ffn_norm.weight", "n_embd"),
    *_MLP[::2],
)

_PARTS = (
    "token_embd.weight",
    ("blk.0.attn_q.weight", "blk.0.attn_qkv.weight", "blk.0.attn_q.0.weight"),
    "blk.0.attn_output.weight",
    "blk.0.ffn_up.weight",
    "blk.0.ffn_down.weight",
)
_NORMS = ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")
_BIASES = tuple(f"blk.0.{x}.bias" for x in ("attn_norm", "attn_output", "ffn_norm", "ffn_up", "ffn_down"))


def _words(**more: Any) -> Words:
    return Words(vocabulary(), unk=None, lowercase=False, separator="", **more)


# microgpt


def _is_micro(found: Spelled) -> str:
    """RMSNorms, if norms have weights at all, and no biases."""
    norms = [path for name, path in found.names.items() if "norm.weight" in name]
    if any(part.endswith(".bias") for part in found.parts):
        return "no biases"
    return "" if not norms or all(re.search(r"rms|norm", path, re.IGNORECASE) for path in norms) else "RMSNorms"


_NANOCHAT = (
    "has the names of nanochat, which also norms its queries and keys and caps its logits; that is not computed here, "
    "--layout plain converts it under its own names"
)


def _complete_micro(own: dict[str, Any], tensors: Mapping[str, Tensor], paths: Sequence[str]) -> list[str]:
    notes, gated = [], any(".ffn_gate." in name for name in tensors)
    heads_and_positions(own, {name: t.shape for name, t in tensors.items()})
    if "hidden_activation" not in own:
        own["hidden_activation"] = "silu" if gated else "relu"
        if not gated:
            notes.append(guess("its MLP has ReLU, as microgpt's", "relu2 if it has microgpt's first, squared ones"))
    if "position_embd.weight" in tensors or "position_embd.weight" + ROW in tensors:
        own["position_embedding"] = "learned"
    else:
        if any(re.search(r"\bc_q\b", path) for path in paths) and not any("norm" in name for name in tensors):
            raise BadFile(_NANOCHAT)
        own["position_embedding"] = "rope"
        own.setdefault("rope.freq_base", np.float32(10000.0))
        notes += turning(own, paths)
    return notes


MICROGPT = Layout(
    "microgpt",
    "microgpt in any spelling, and its variants with rotary positions, gates, norms with weights",
    "microgpt",
    marks=_PARTS,
    fields=(
        *sizes(),
        activation(),
        interleaved(),
        Field("attention.layer_norm_rms_epsilon", EPSILON, "f32", default=1e-5),
        Field(
            "rope.freq_base", places("rope_theta", "ropeTheta", "rope_base", "ropeBase", "theta"), "f32", optional=True
        ),
    ),
    rows=_MICRO_ROWS,
    roots=(),
    constants={"attention.causal": True},
    words=_words(extra=("[BOS]",), starts=("[BOS]", "<BOS>", "<bos>", "<s>", "BOS"), start=BOS),
    spells=True,
    fits=_is_micro,
    complete=_complete_micro,
    build=writer(MICROGPT_NAMES, _MICRO_ROWS),
)


# GPTs with LayerNorms

_HAS_NORMS = (*_PARTS, *_NORMS[:2])


def _known(tensors: Mapping[str, Tensor], paths: Sequence[str]) -> tuple[str, bool]:
    """The MLP's activation of the program that the names look like, and whether that is sure.

    Karpathy's lecture and the Rust book's GPT have ReLU; minGPT, and nanoGPT at first, GELU by its tanh formula (both
    keep their mask as "attn.bias"); nanoGPT since June 2023 the exact one; GPT-2's own layout ([in][out]) the formula.
    """
    if any(re.search(r"heads\.\d+\.(key|query)", path) for path in paths):
        return "relu", True
    if any("w_qkv" in path for path in paths) and any("w_1" in path for path in paths):
        return "relu", True
    if any(re.search(r"\.attn\.(masked_)?bias$", path) for path in paths):
        return "gelu_tanh", False
    if any("c_attn" in path for path in paths):
        return ("gelu_tanh", True) if any("attn_qkv.weight" + TURNED in name for name in tensors) else ("gelu", False)
    return "gelu_tanh", False


_OTHERWISE = {"gelu": "gelu_tanh for minGPT's formula", "gelu_tanh": "gelu for the exact one, or relu"}


def _complete(own: dict[str, Any], tensors: Mapping[str, Tensor], paths: Sequence[str]) -> list[str]:
    notes = []
    if "hidden_activation" not in own:
        found, sure = _known(tensors, paths)
        gated = any(".ffn_gate." in name for name in tensors)
        own["hidden_activation"] = "silu" if gated else found
        if not sure and not gated:
            notes.append(guess(f"its MLP has {found}", _OTHERWISE[found]))
    learned = any(name.startswith("position_embd.weight") for name in tensors)
    stated = own.get("position_embedding")
    if learned == (stated in (None, "learned")):
        own["position_embedding"] = "learned" if learned else stated
        notes += turning(own, paths) if stated == "rope" else []
    elif learned:
        raise BadFile(
            f"position_embedding is {stated!r}, but there is a table of learned positions; correct one of them"
        )
    else:
        raise BadFile(
            "has no table of positions, and nothing says what it has instead; say position_embedding (sinusoidal, rope "
            "or none) in a file for --config, or use --layout plain"
        )
    return notes


_POSITIONS = Field(
    "position_embedding",
    places("position_embedding", "position_encoding", "positional_encoding", "pos_encoding", "position_embedding_type"),
    "str",
    values={name: name for name in ("learned", "sinusoidal", "rope", "none")},
    optional=True,
)


def _gpt(name: str, title: str, arch: str, **more: Any) -> Layout:
    return Layout(
        name,
        title,
        arch,
        marks=_HAS_NORMS,
        fields=(
            *sizes(),
            activation(),
            _POSITIONS,
            interleaved(),
            Field("attention.layer_norm_epsilon", EPSILON, "f32", default=1e-5),
        ),
        rows=_ROWS,
        roots=(),
        constants={} if arch == "gpt2" else {"attention.causal": True},
        words=_words(),
        spells=True,
        complete=_complete,
        default=False,
        **more,
    )


def _is_gpt2(found: Spelled) -> str:
    """Exactly GPT-2's parts: every bias but the head's, learned positions, a last norm, no gate."""
    qkv = found.has("blk.0.attn_qkv.bias") or found.has(*(f"blk.0.attn_{x}.bias" for x in "qkv"))
    if not qkv or not found.has(*_BIASES, "output_norm.weight", "output_norm.bias", "position_embd.weight"):
        return "every bias that GPT-2 has"
    return "no output.bias, no gate" if found.has("output.bias") or found.has("blk.0.ffn_gate.weight") else ""


def _looks_like(pattern: str) -> Any:
    return lambda found: "" if any(re.search(pattern, path) for path in found.names.values()) else f"names as {pattern}"


GPT2 = _gpt(
    "nanogpt",
    "what has exactly GPT-2's parts: minGPT, nanoGPT, GPT-2 and their ports, [out][in] or [in][out]",
    "gpt2",
    fits=_is_gpt2,
    build=writer(NANOGPT, _ROWS),
)
LECTURE_GPT = _gpt(
    "lecture",
    "Karpathy's lecture GPT: blocks.0.sa.heads.0.key.weight, ffwd.net.0",
    "small-gpt",
    fits=_looks_like(r"heads\.\d+\.key"),
    build=writer(LECTURE, _ROWS),
)
NDARRAY_GPT = _gpt(
    "ndarray",
    "a Rust GPT's ndarrays: {tokenizer, model: {config, tok_emb, blocks: [{w_qkv, ...}]}}, [in][out]",
    "small-gpt",
    fits=_looks_like(r"w_qkv"),
    build=writer(NDARRAY, _ROWS),
)
PLAYGROUND_GPT = _gpt(
    "playground",
    "a numpy GPT: {cfg: {V, T, L, H, E}, chars, params: {b0_wq, ...}}, [in][out]",
    "small-gpt",
    fits=_looks_like(r"\bb0_wq"),
    build=writer(PLAYGROUND, _ROWS),
)
OTHER_GPT = _gpt("gpt", "any other pre-norm GPT with LayerNorms, whatever its parts are called", "small-gpt")

LAYOUTS = (MICROGPT, GPT2, LECTURE_GPT, NDARRAY_GPT, PLAYGROUND_GPT, OTHER_GPT)
