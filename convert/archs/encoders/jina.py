"""Jina's embedding models: BERTs with ALiBi and gated MLPs (version 2), XLM-R with rotary positions (version 3).

Version 2 comes in two kinds.  The first has a matrix of gate and up (`gated_layers`); the later one (for code, with
normed queries and keys) has up and gate (`up_gated_layer`), which llama.cpp would take for the first kind's, so they
are written apart.  Version 3 holds an adapter (LoRA) for each task, which travel along (`convert.writing.tasks`).
Sources: jinaai/jina-bert-implementation, jina-bert-v2-qk-post-norm, xlm-roberta-flash-implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.encoders.bert import BERT
from llmconv.convert.archs.heads import rebuild
from llmconv.convert.archs.parts import norm
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims, Split
from llmconv.convert.tables.rows import Form, Row
from llmconv.errors import BadFile

_at = "{p}encoder.layer.{i}."
_GATE, _AGAIN = "blk.0.ffn_gate.weight", "blk.{i}.attn_norm_2.weight"


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["attention.causal"] = False
    if config.get("up_gated_layer"):
        own["feed_forward_apart"] = True


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    rebuild(config, own, dims)
    config |= {"position_embedding_type": "alibi", "feed_forward_type": "geglu", "emb_pooler": "mean"}


def _told(tensors: Mapping[str, Any], dims: Dims) -> dict[str, Any]:
    return {"feed_forward_apart": True} if _GATE in tensors else {}


def _either(gguf: str, first: str, later: str, shape: str, **more: Any) -> Row:
    return row(gguf, _at + first, shape, alt=(Form((_at + later,), beside=_AGAIN),), **more)


def _optional(gguf: str, theirs: str) -> tuple[Row, ...]:
    """The norms that the later kind has."""
    return tuple(
        row(f"{gguf}.{part}", f"{_at}{theirs}.{part}", "n_embd", optional="up_gated_layer")
        for part in ("weight", "bias")
    )


JINA_V2 = BERT.variant(
    "jina-bert-v2",
    HfName("JinaBertForMaskedLM", "bert"),
    HfName("JinaBertModel", "bert"),
    drop=(
        *("position_embd.weight", "token_types.weight"),
        *(name for r in BERT.rows for name in r.gguf if name.startswith(("blk.", "cls."))),
    ),
    rows=(
        row("token_types.weight", "{p}embeddings.token_type_embeddings.weight", "n_token_types, n_embd"),
        *(
            row(f"blk.{{i}}.attn_{gguf}.{part}", f"{_at}attention.{theirs}.{part}", shape)
            for gguf, theirs in (
                ("q", "self.query"),
                ("k", "self.key"),
                ("v", "self.value"),
                ("output", "output.dense"),
            )
            for part, shape in (("weight", "n_embd, n_embd"), ("bias", "n_embd"))
        ),
        *_optional("blk.{i}.attn_q_norm", "attention.self.layer_norm_q"),
        *_optional("blk.{i}.attn_k_norm", "attention.self.layer_norm_k"),
        *norm("blk.{i}.attn_output_norm", _at + "attention.output.LayerNorm"),
        *_optional("blk.{i}.attn_norm_2", "layer_norm_1"),
        _either(
            "blk.{i}.ffn_up.weight",
            "mlp.gated_layers.weight",
            "mlp.up_gated_layer.weight",
            "2 * n_ff, n_embd",
            when="not ff_apart",
        ),
        row(
            ("blk.{i}.ffn_up.weight", "blk.{i}.ffn_gate.weight"),
            _at + "mlp.up_gated_layer.weight",
            ("n_ff, n_embd", "n_ff, n_embd"),
            Split(("n_ff", "n_ff")),
            when="ff_apart",
        ),
        _either("blk.{i}.ffn_down.weight", "mlp.wo.weight", "mlp.down_layer.weight", "n_embd, n_ff"),
        _either("blk.{i}.ffn_down.bias", "mlp.wo.bias", "mlp.down_layer.bias", "n_embd"),
        _either("blk.{i}.layer_output_norm.weight", "mlp.layernorm.weight", "layer_norm_2.weight", "n_embd"),
        _either("blk.{i}.layer_output_norm.bias", "mlp.layernorm.bias", "layer_norm_2.bias", "n_embd"),
    ),
    prefixes=("", "bert."),
    kept=(r"(bert\.)?pooler\.dense\.(weight|bias)", r"cls\..*"),
    finish=_finish,
    rebuild=_rebuild,
    told=_told,
    decoder={"positions": "alibi", "normed_again": True, "gate_behind": "attn_norm_2"},
    reads="position_embedding_type feed_forward_type up_gated_layer",  # said by tensors: `present`
    inert="emb_pooler attn_implementation model_max_length type_vocab_size",
    fixed={"position_embedding_type": "alibi", "feed_forward_type": "geglu"},
)


# ------------------------------------------------------------------------------------------------------- version 3

_layer = "{p}encoder.layers.{i}."
_WEIGHT = ".parametrizations.weight.original"


def _adapted(gguf: str, theirs: str, shape: str) -> Row:
    """A weight under the name that it has where adapters stand beside it, or under its plain one."""
    return row(gguf, theirs + _WEIGHT, shape, alt=(Form((theirs + ".weight",)),))


def _linear(gguf: str, theirs: str, out: str, into: str) -> tuple[Row, Row]:
    return _adapted(f"{gguf}.weight", theirs, f"{out}, {into}"), row(f"{gguf}.bias", f"{theirs}.bias", out)


def _finish3(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["attention.causal"] = False
    padding = config.get("pad_token_id", 1)
    if not isinstance(padding, int) or not 0 <= padding < dims["n_ctx"] - 1:
        raise BadFile(f"config.json: pad_token_id is {padding!r:.40}, expected one before the last position")
    own["context_length"] = np.uint32(dims["n_ctx"] - padding - 1)


def _rebuild3(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    rebuild(config, own, dims)
    config |= {"pad_token_id": 1, "max_position_embeddings": dims["n_ctx"] + 2, "position_embedding_type": "rotary"}


def _is_version_3(config: Mapping[str, Any]) -> bool:
    return bool(config.get("lora_adaptations")) or config.get("position_embedding_type") == "rotary"


JINA_V3 = Architecture(
    "jina-bert-v3",
    (HfName("XLMRobertaModel", "xlm-roberta"),),
    keys=keys("""
        block_count                     u32   num_hidden_layers
        context_length                  u32   max_position_embeddings
        embedding_length                u32   hidden_size
        feed_forward_length             u32   intermediate_size
        attention.head_count            u32   num_attention_heads
        attention.layer_norm_epsilon    f32   layer_norm_eps            1e-5
        rope.freq_base                  f32   rotary_emb_base           10000
        token_type_count                u32   type_vocab_size           1
    """),
    rows=(
        _adapted("token_embd.weight", "{p}embeddings.word_embeddings", "n_vocab, n_embd"),
        _adapted("token_types.weight", "{p}embeddings.token_type_embeddings", "n_token_types, n_embd"),
        *norm("token_embd_norm", "{p}emb_ln"),
        *_linear("blk.{i}.attn_qkv", _layer + "mixer.Wqkv", "3 * n_embd", "n_embd"),
        *_linear("blk.{i}.attn_output", _layer + "mixer.out_proj", "n_embd", "n_embd"),
        *norm("blk.{i}.attn_output_norm", _layer + "norm1"),
        *_linear("blk.{i}.ffn_up", _layer + "mlp.fc1", "n_ff", "n_embd"),
        *_linear("blk.{i}.ffn_down", _layer + "mlp.fc2", "n_embd", "n_ff"),
        *norm("blk.{i}.layer_output_norm", _layer + "norm2"),
    ),
    prefixes=("roberta.", ""),
    dropped=(r".*\.rotary_emb\.inv_freq", r".*embeddings\.position_ids"),
    kept=(
        r"(roberta\.)?pooler\.dense\..*",
        r".*\.parametrizations\.weight\.0\.lora_[AB]",
        r"lm_head\..*",
    ),
    tied=True,
    finish=_finish3,
    rebuild=_rebuild3,
    fits=_is_version_3,
    decoder={"norm": "layer", "causal": False, "activation": "gelu"},
    reads="lora_adaptations task_instructions lora_alpha lora_rank position_embedding_type pad_token_id",
    inert="lora_dropout_p lora_main_params_trainable load_trained_adapters matryoshka_dimensions truncate_dim"
    " emb_pooler use_reentrant use_flash_attn",
    fixed={"position_embedding_type": "rotary", "is_decoder": False, "add_cross_attention": False},
    loader=Loader(),
)

ARCHITECTURES = (JINA_V2, JINA_V3)
