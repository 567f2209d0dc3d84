"""Qwen 4 (experimental): Qwen 3.5's delta rules and experts, streams of residuals for norms, a table of n-grams.

What attends has an indexer whose queries and keys come from one matrix; one layer adds rows of a table that runs of
words choose by a hash.  The table's size follows from the settings: its heads have as many rows as primes say.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import shifted
from llmconv.convert.archs.recurrent.qwen_next import QWEN35_MOE
from llmconv.convert.tables.architecture import Architecture, HfName, Row, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Chunks, Dims, Reshape, Split
from llmconv.convert.tables.scalars import WholeNumbers
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_full = "recurrent == 0 or (recurrent < 0 and (i + 1) % interval == 0)"

_here = "ple_at and i == ple_at - 1"

_table = "{p}layers.{w}.ple.ple_embedding."

_hidden = "n_hc * n_embd"

_read = "n_ple * (n_gram - 1) * n_gram_heads"


@functools.lru_cache(4)
def _rows_of_table(base: int, heads: int, multiple: int) -> int:
    """How many rows a table has whose heads have as many as the primes from `base` on, padded."""
    if not (0 < base < 1 << 31 and 0 < heads <= 256 and 0 < multiple < 1 << 31):
        raise ValueError("no sizes of a table")
    total, number = 0, base - 1
    for _ in range(heads):
        number += 1
        while not _is_prime(number):
            number += 1
        total += number
    return -(-total // multiple) * multiple


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % n for n in range(2, math.isqrt(number) + 1))


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        kinds = ["full_attention" if kind == "indexed_attention" else kind for kind in kinds]
    assert QWEN35_MOE.finish is not None
    QWEN35_MOE.finish(own, {**config, "layer_types": kinds}, dims)
    count = min(dims["n_layer"], 1 << 16)
    recurrent = own.get("attention.recurrent_layers")
    if recurrent is None:
        recurrent = [(i + 1) % dims["interval"] != 0 for i in range(count)]
    ratio = int(config["indexer_compress_ratio"])
    own["attention.compress_ratios"] = np.asarray([0 if on else ratio for on in recurrent], np.int32)
    gate = config.get("output_gate_type") or config.get("hidden_act") or "silu"
    if gate != "sigmoid":
        own["ssm.output_gate"] = str(gate)
    if config.get("norm_topk_prob") is False:
        own["expert_weights_norm"] = False
    _finish_table(own, config)


def _finish_table(own: dict[str, Any], config: Mapping[str, Any]) -> None:
    """The keys of the table of n-grams, where a layer has one."""
    layers = config.get("ple_layer_ids") or []
    if not layers:
        for key in [key for key in own if key.startswith("ple.")]:
            del own[key]
        return
    if len(layers) > 1:
        raise Unsupported(f"config.json: ple_layer_ids lists {len(layers)} layers; a GGUF has a place for one table")
    own["ple.layers"] = np.asarray([int(i) - 1 for i in layers], np.int32)
    end = config["eos_token_id"]
    own["ple.eos_token_id"] = np.uint32(end[0] if isinstance(end, list) else end)
    heads = (int(own["ple.ngram_size"]) - 1) * int(own["ple.heads_per_ngram"])
    width = int(config.get("ple_embed_dim") or own["embedding_length"])
    own["embedding_length_per_layer_input"] = np.uint32(width // heads)
    base, multiple = config.get("ngram_vocab_size_base"), config.get("make_ngram_vocab_size_divisible_by")
    rows = _rows_of_table(int(20_000_000 if base is None else base), heads, int(128 if multiple is None else multiple))
    own["ple.table_rows"] = np.uint32(rows)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    assert QWEN35_MOE.rebuild is not None
    QWEN35_MOE.rebuild(config, own, dims)
    ratios = np.ravel(own.get("attention.compress_ratios", 0))
    config["indexer_compress_ratio"], config["indexer_kv_heads"] = int(max(ratios)), 1
    config["norm_topk_prob"] = bool(own.get("expert_weights_norm", True))
    config["output_gate_type"] = str(own.get("ssm.output_gate", "sigmoid"))
    if not dims["ple_at"]:
        config["ple_layer_ids"] = []
        return
    config["ple_layer_ids"] = [dims["ple_at"]]
    config["ple_embed_dim"] = dims["n_ple"] * (dims["n_gram"] - 1) * dims["n_gram_heads"]
    config["eos_token_id"] = int(own["ple.eos_token_id"])
    config["split_ngram_parts"] = dims["n_parts"]
    sizes = np.ravel(own.get("ple.head_vocab_sizes", 0))
    config["ngram_vocab_size_base"] = int(sizes[0])
    config["make_ngram_vocab_size_divisible_by"] = _multiple(int(sizes.sum()), dims["ple_rows"])


def _multiple(total: int, rows: int) -> int:
    """A number to whose multiple `total` was padded."""
    likely = (128, *(1 << k for k in range(32)), rows)
    return next((n for n in likely if n and -(-total // n) * n == rows), 1)


def _told(tensors: Mapping[str, Any], dims: Dims) -> dict[str, Any]:
    """How many rows the table has, and that it was one."""
    table = tensors.get("per_layer_token_embd.weight")
    return {} if table is None else {"ple.table_rows": np.uint32(table.shape[0]), "ple.table_parts": np.uint32(1)}


def _mixer(gguf: str, theirs: str, inject: bool = True) -> tuple[Row, ...]:
    """Rows of what makes one of the streams, and says how much of a block's result goes into each."""
    own = (
        *shifted((row(gguf + "_norm.weight", theirs + "hc_norm.weight", _hidden),)),
        row(gguf + "_down.weight", theirs + "input_mix_weight_down.weight", f"hc_rank, {_hidden}"),
        row(gguf + "_up.weight", theirs + "input_mix_weight_up.weight", f"{_hidden}, hc_rank"),
    )
    return (*own, row(gguf + "_inject.weight", theirs + "block_inject_weight.weight", f"n_hc, {_hidden}"))[: 3 + inject]


_WITHOUT = ("output_norm.weight", "blk.{i}.attn_norm.weight", "blk.{i}.post_attention_norm.weight")

_indexer = _at + "self_attn.indexer."

QWEN4EXP = Architecture(
    "qwen4exp",
    (
        HfName("Qwen4ExpForConditionalGeneration", "qwen4_exp"),
        HfName("Qwen4ExpForCausalLM", "qwen4_exp_text"),
    ),
    keys=(
        *(key for key in QWEN35_MOE.keys if key.gguf != "nextn_predict_layers"),
        *keys("""
            vocab_size                       u32   vocab_size
            hyper_connection.count           u32   hc_count               4
            hyper_connection.low_rank        u32   hc_lowrank             320
            attention.indexer.head_count     u32   indexer_n_heads
            attention.indexer.key_length     u32   indexer_head_dim
            attention.indexer.top_k          u32   indexer_budget
            ple.ngram_size                   u32   ngram_size             3
            ple.heads_per_ngram              u32   heads_per_ngram        8
            ple.conv_kernel                  u32   ple_conv_kernel_size   4
            ple.image_token_id               u32   image_token_id
            ple.table_parts                  u32   split_ngram_parts      512
        """),
    ),
    rows=(
        *(r for r in QWEN35_MOE.rows if r.gguf[0] not in _WITHOUT and not r.forms[0].patterns[0].startswith("mtp.")),
        *_mixer("output_hc", "{p}hyper_connection_mixer.", inject=False),
        *_mixer("blk.{i}.hc_attn", _at + "attn_hyper_connection."),
        *_mixer("blk.{i}.hc_ffn", _at + "mlp_hyper_connection."),
        row(
            ("blk.{i}.indexer.q_proj.weight", "blk.{i}.indexer.k_proj.weight"),
            _indexer + "index_qk_proj.weight",
            ("index_heads * index_dim, n_embd", "index_dim, n_embd"),
            Split(("index_heads * index_dim", "index_dim")),
            when=_full,
        ),
        *shifted(
            tuple(
                row(
                    f"blk.{{i}}.indexer.{part}_norm.weight",
                    _indexer + f"{part}_layernorm.weight",
                    "index_dim",
                    when=_full,
                )
                for part in "qk"
            )
        ),
        row(
            "per_layer_token_embd.weight",
            _table + "ngram_embedding.shard_{z}.weight",
            "ple_rows, n_ple",
            Chunks("ple_rows", "n_parts"),
            when="ple_at",
        ),
        row("blk.{i}.ple_key.weight", _at + "ple.key_proj.weight", f"{_hidden}, {_read}", when=_here),
        row("blk.{i}.ple_value.weight", _at + "ple.value_proj.weight", f"n_embd, {_read}", when=_here),
        *shifted(
            tuple(
                row(f"blk.{{i}}.ple_norm_{part}.weight", _at + f"ple.norm_{part}.weight", _hidden, when=_here)
                for part in ("key", "query", "conv")
            ),
            ".weight",
        ),
        row(
            "blk.{i}.ple_conv1d.weight",
            _at + "ple.conv1d.weight",
            f"{_hidden}, ple_kernel",
            Reshape((_hidden, 1, "ple_kernel"), (_hidden, "ple_kernel")),
            when=_here,
        ),
    ),
    scalars=tuple(
        WholeNumbers(f"qwen4exp.ple.{key}", _table + theirs, size)
        for key, theirs, size in (
            ("layer_multipliers", "layer_multipliers", "n_gram"),
            ("head_offsets", "ngram_heads_offsets", "(n_gram - 1) * n_gram_heads"),
            ("head_vocab_sizes", "ngram_heads_vocab_sizes", "(n_gram - 1) * n_gram_heads"),
        )
    ),
    prefixes=("model.language_model.", "model.", "language_model.model.", ""),
    unplaced=(r"mtp\..*",),
    finish=_finish,
    rebuild=_rebuild,
    told=_told,
    decoder={
        "gated_queries": True,
        "normalize_experts": True,
        "delta_gate": "sigmoid",
    },
    inside="qwen4_exp_text",
    reads="layer_types linear_value_head_dim partial_rotary_factor mrope_section mrope_interleaved ple_layer_ids"
    " ple_embed_dim indexer_compress_ratio ngram_vocab_size_base make_ngram_vocab_size_divisible_by eos_token_id"
    " output_gate_type norm_topk_prob",
    inert="number_of_conv_states mamba_ssm_dtype seed mtp_num_hidden_layers mtp_use_dedicated_embeddings",
    fixed={"attn_output_gate": True, "indexer_kv_heads": 1},
    loader=Loader(refused=QWEN35_MOE.loader.refused, unread=("ssm.output_gate", "expert_weights_norm")),
)

ARCHITECTURES = (QWEN4EXP,)
