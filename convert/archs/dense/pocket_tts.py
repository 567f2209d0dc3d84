"""Pocket TTS's backbone: of words and of sounds' latents it makes what other matrices make the next latent of.

Behind the words' vectors stand those that begin a voice and a sound; the latter is a latent, seen through the matrix
that all latents go through.  Its folder has no config.json (see `convert.tables.implied`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import norm
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Beginnings, Dims, Split
from llmconv.convert.tables.rows import Form
from llmconv.convert.vocab.model import TokenType, Vocab

_at = "{p}transformer.layers.{i}."
_qkv = tuple(f"blk.{{i}}.attn_{one}.weight" for one in "qkv")
_WORDS, _VOICE = "{p}conditioner.embed.weight", "{p}bos_before_voice"
_BEGINNING = ("{p}bos_emb", "{p}input_linear.weight")


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["vectors_behind_words"] = np.uint32(1 + bool(config.get("insert_bos_before_voice")))


def _named(config: Mapping[str, Any], vocab: Vocab) -> Vocab:
    """The vocabulary, its last tokens named: the padding's row, and what stands behind it."""
    names = ["<|pad|>", *["<|bos_before_voice|>"] * bool(config["insert_bos_before_voice"]), "<|audio_bos|>"]
    first, count = len(vocab) - len(names), len(names)
    types = np.full(len(vocab), TokenType.NORMAL, np.int32) if vocab.types is None else vocab.types.copy()
    scores = np.zeros(len(vocab), np.float32) if vocab.scores is None else vocab.scores.copy()
    types[first:], scores[first:] = TokenType.CONTROL, -1000.0
    flags = vocab.flags | {"bos": False, "eos": False}
    return dataclasses.replace(
        vocab, tokens=[*vocab.tokens[:-count], *names], types=types, scores=scores, special={}, flags=flags
    )


POCKET_TTS = Architecture(
    "pockettts",
    (HfName("PocketTTSModel", "pockettts"),),
    keys=keys("""
        block_count                     u32   num_hidden_layers
        context_length                  u32   max_position_embeddings
        embedding_length                u32   hidden_size
        feed_forward_length             u32   intermediate_size
        attention.head_count            u32   num_attention_heads
        attention.layer_norm_epsilon    f32   layer_norm_eps
        rope.freq_base                  f32   rope_theta
        vocab_size                      u32   vocab_size
        latent_length                   u32   latent_size
    """),
    rows=(
        row(
            "token_embd.weight",
            (_WORDS, _VOICE, *_BEGINNING),
            "n_vocab, n_embd",
            Beginnings(1, "d_latent"),
            alt=(Form((_WORDS, *_BEGINNING), (Beginnings(0, "d_latent"),), where="n_behind == 1"),),
        ),
        *norm("output_norm", "{p}out_norm"),
        *norm("blk.{i}.attn_norm", _at + "norm1"),
        row(_qkv, _at + "self_attn.in_proj.weight", ("n_embd, n_embd",) * 3, Split(("n_embd", "n_embd", "n_embd"))),
        row("blk.{i}.attn_output.weight", _at + "self_attn.out_proj.weight", "n_embd, n_embd"),
        *norm("blk.{i}.ffn_norm", _at + "norm2"),
        row("blk.{i}.ffn_up.weight", _at + "linear1.weight", "n_ff, n_embd"),
        row("blk.{i}.ffn_down.weight", _at + "linear2.weight", "n_embd, n_ff"),
    ),
    prefixes=("flow_lm.",),
    unsaid=True,
    finish=_finish,
    named=_named,
    decoder={"not_run": "it says no words; another model makes sound of what it gives"},
    reads="insert_bos_before_voice",
    inert="audio_config",
)

ARCHITECTURES = (POCKET_TTS,)
