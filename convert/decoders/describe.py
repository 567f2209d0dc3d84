"""The whole decoder of a checkpoint, described."""

from __future__ import annotations

import math

from llmconv.convert import archs
from llmconv.convert.decoders.facts import Decoder, Norm
from llmconv.convert.decoders.layers import layer_of
from llmconv.convert.decoders.ngrams import ngrams_of
from llmconv.convert.decoders.reader import Reader
from llmconv.convert.decoders.recurrent import CELL, recurrent
from llmconv.convert.decoders.shared import Shared
from llmconv.convert.decoders.side import alone
from llmconv.convert.decoders.streams import streams_of
from llmconv.convert.decoders.switched import switch_of
from llmconv.convert.dialects.ones import with_ones
from llmconv.convert.tables import scores
from llmconv.convert.tables.config import usable
from llmconv.convert.tables.pieces import Pieces, head_norm
from llmconv.errors import BadFile, Unsupported, about, at
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["describe"]

_MOST = 1 << 14  # layers, each counted as often as it is gone through

_A = {"eagle3": "an EAGLE-3"}
"""How families that are not run are called, where not by their architecture's name."""


def describe(checkpoint: Checkpoint, pieces: Pieces | None = None) -> Decoder:
    """The decoder that a checkpoint in GGUF's dialect holds.

    pieces: the family's, looked up by `general.architecture` when None.
    Raises `BadFile` when keys or tensors contradict each other, `Unsupported` for an architecture without a table.
    """
    arch = checkpoint.metadata.get("general.architecture")
    where, checkpoint = checkpoint.source or "this model", alone(with_ones(checkpoint))
    if not isinstance(arch, str) or not arch:
        raise BadFile(f"{at(where)}: names no architecture (key 'general.architecture'), so it can't be run")
    read = Reader(checkpoint, arch)
    if pieces is None and read.get(CELL) is None:
        pieces = _pieces(checkpoint, arch, str(where))
    with usable(read.metadata, at(where)):
        return _recurrent(read) if pieces is None else _described(read, pieces)


def _described(read: Reader, pieces: Pieces) -> Decoder:
    arch = read.arch
    n_layers = read.count("block_count", least=1) - read.count("nextn_predict_layers", 0)
    if n_layers < 1:
        raise read.bad(f"key '{arch}.nextn_predict_layers'", "leaves no layer to compute with")
    if n_layers < read.count("block_count") and not any(name.startswith("blk.0.") for name in read.shapes):
        raise Unsupported(
            f"{at(read.where)}: holds a model's layers for further tokens alone, which are not run here; give the "
            "model's own file"
        )
    loops, cycles = read.count("num_loops", 1, 1), None
    if loops * n_layers > _MOST:
        raise read.bad(
            f"key '{arch}.num_loops'", f"is {loops}, expected at most {_MOST // n_layers} for {n_layers} layers"
        )
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
    shared = Shared(read, pieces, n_layers, dim)
    embed_scale = read.optional("embedding_scale") or pieces.get("embed_scale", 1.0)
    residual_scale = read.optional("residual_scale") or pieces.get("residual_depth", 0.0) / math.sqrt(n_layers)
    logit_scale = read.optional("logit_scale") or dim / pieces.get("logit_base", dim)
    if shared.positions == "learned":
        read.shape("position_embd.weight", 2)
    streams = streams_of(read, n_layers, dim)
    if streams is not None and loops > 1:
        raise read.bad(f"key '{arch}.num_loops'", f"is {loops}, which no model with streams of residuals has")
    return Decoder(
        arch=arch,
        dim=dim,
        vocab_size=vocab_size,
        context_length=read.count("context_length", 0),
        norm=norm,
        layers=tuple(layer_of(shared, i) for i in range(n_layers)),
        shapes=read.shapes,
        positions=shared.positions,
        position_offset=int(pieces.get("position_offset", 0)),
        latent_eps=_latent_eps(pieces, norm),
        behind_eps=pieces.get("behind_eps") or None,
        output_norm=str(pieces.get("output_norm", "output_norm")),
        weightless=_weightless(read, pieces),
        embed_scale=math.sqrt(dim) if embed_scale == "sqrt" else float(embed_scale),
        residual_scale=1.0 if pieces.get("scales_kept") else residual_scale or 1.0,
        kept_scale=residual_scale or 1.0 if pieces.get("scales_kept") else 1.0,
        logit_scale=1.0 / logit_scale if pieces.get("logit_scale_divides") else logit_scale,
        final_softcap=read.number("final_logit_softcapping", pieces.get("final_softcap", 0.0)) or None,
        softmax_start=read.number("attention.softmax_start", pieces.get("softmax_start", 0.0)),
        head_norm=head_norm(pieces, vocab_size, read.config),
        ends=not pieces.get("no_end", False),
        layer_words=read.count("vocab_size_per_layer_input", vocab_size),
        passes_float16=bool(pieces.get("passes_float16", False)),
        cycles=cycles,
        loops=loops,
        loop_norm=read.flag("skip_loop_final_norm", False) is not True,
        silent=_silent(pieces, vocab_size),
        headless="side" in pieces or scores.says_no_words(read.config, read.shapes),
        qk_norm=Norm("layer", pieces["qk_layer_norm"]) if "qk_layer_norm" in pieces else None,
        streams=streams,
        ngrams=None if streams is None else ngrams_of(read, dim, streams.count),
        switch=switch_of(read, vocab_size),
        asked=frozenset(read.asked),
    )


def _latent_eps(pieces: Pieces, norm: Norm) -> float | None:
    """The epsilon of norms inside attention, where it is not that of the others."""
    found = pieces.get("latent_eps", 0.0)
    return None if not found or math.isclose(found, norm.eps, rel_tol=1e-6) else found


def _silent(pieces: Pieces, vocab_size: int) -> tuple[int, int] | None:
    """The tokens that a family never says, of a model that has all of them."""
    found = pieces.get("silent")
    return found if found is not None and found[1] <= vocab_size else None


def _recurrent(read: Reader) -> Decoder:
    spec, vocab_size = recurrent(read), read.shape("token_embd.weight", 2)[0]
    positions = "learned" if spec.cell == "mean" else "recurrent"
    norm, context = Norm("layer", 0.0), read.count("context_length", 0)
    return Decoder(read.arch, spec.dim, vocab_size, context, norm, (), read.shapes, positions, recurrent=spec)


def _pieces(checkpoint: Checkpoint, arch: str, where: str) -> Pieces:
    """What a family's table says of its decoder; the file's keys must be what the table takes them for."""
    table = archs.by_gguf(arch)
    if table is None or table.decoder is None:
        raise Unsupported(
            f"{at(where)}: architecture {arch!r} has no decoder here, so it can't be run; convert it, or run it with "
            "another program"
        )
    if "not_run" in table.decoder:
        raise Unsupported(
            f"{at(where)}: {_A.get(arch, f'a {arch}')} model can't be run here ({table.decoder['not_run']}); "
            "convert it, or run it with another program"
        )
    with about(checkpoint.source):
        table.check_keys(checkpoint.metadata)
    return table.decoder


def _weightless(read: Reader, pieces: Pieces) -> tuple[str, ...]:
    """A family's norms without weights; a model of it that has learned some has no others."""
    listed = tuple(pieces.get("weightless", ()))
    learned = {"attn_norm": "blk.0.attn_norm.weight", "ffn_norm": "blk.0.ffn_norm.weight"}
    return () if any(learned.get(name, f"{name}.weight") in read.shapes for name in listed) else listed


def _norm(read: Reader, pieces: Pieces) -> Norm:
    kinds = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
    wanted = pieces.get("norm")
    for kind, key in kinds.items():
        if read.get(key) is not None and wanted in (None, kind):
            return Norm(kind, read.number(key))
    stated = next((read.get(key) for key in kinds.values() if read.get(key) is not None), None)
    if stated is not None:  # under the other kind's name (Phi-3.5-MoE)
        return Norm(str(wanted), float(stated))
    return Norm(pieces.get("norm", "rms"), float(pieces.get("eps", 1e-5)))
