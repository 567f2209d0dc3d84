"""DeciLM and Nemotron-NAS: a Llama of layers as wide as a search found best, some without attention or at all empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.archs.parts import NORMS, attention, gated_mlp
from llmconv.convert.tables.architecture import HfName, keys, row
from llmconv.convert.tables.ops import Dims
from llmconv.errors import BadFile

_at = "{p}layers.{i}."


def _width(times: float | None, n_embd: int) -> int:
    """Two thirds of a multiple of the model's width, in multiples of 256."""
    return 0 if times is None else 256 * ((int(2 * times * n_embd / 3) + 255) // 256)


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    size = np.uint32(dims["n_embd"] // dims["n_head"])
    own["rope.dimension_count"] = np.uint32(config.get("head_dim") or size)
    if isinstance(kv := config.get("num_key_value_heads_per_layer"), list):
        own["attention.head_count_kv"] = np.asarray(kv, np.int32)
    blocks = config.get("block_configs")
    if not isinstance(blocks, list):
        return
    if len(blocks) != dims["n_layer"]:
        raise BadFile(f"config.json: block_configs has {len(blocks)} entries for {dims['n_layer']} layers")
    heads, heads_kv = [], []
    for block in blocks:
        group, linear = block["attention"]["n_heads_in_group"], block["attention"].get("replace_with_linear")
        heads.append(dims["n_head"] if group is not None or linear is True else 0)
        heads_kv.append(0 if group is None else dims["n_head"] // group)
    own["attention.head_count"], own["attention.head_count_kv"] = (
        np.asarray(heads, np.int32),
        np.asarray(heads_kv, np.int32),
    )
    widths = [_width(block["ffn"]["ffn_mult"], dims["n_embd"]) for block in blocks]
    own["feed_forward_length"] = np.asarray(widths, np.int32)
    own["attention.key_length"] = own["attention.value_length"] = size


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    heads, kv = own["attention.head_count"], own.get("attention.head_count_kv")
    widths = own.get("feed_forward_length")
    if not isinstance(widths, np.ndarray):
        if isinstance(kv, np.ndarray):
            config["num_key_value_heads_per_layer"] = [int(n) for n in kv]
            config["num_key_value_heads"] = int(kv.max())
        return
    total, kv = int(np.max(heads)), np.asarray(kv)
    config["num_attention_heads"] = total
    for name in ("num_key_value_heads", "intermediate_size"):
        config.pop(name, None)
    config["block_configs"] = [
        {
            "attention": {
                "n_heads_in_group": total // int(n_kv) if n_kv else None,
                "no_op": not n,
                "replace_with_linear": bool(n and not n_kv),
            },
            "ffn": {"ffn_mult": 3 * int(width) / 2 / dims["n_embd"] if width else None, "no_op": not width},
        }
        for n, n_kv, width in zip(heads, kv, widths, strict=True)
    ]


DECI = LLAMA.variant(
    "deci",
    HfName("DeciLMForCausalLM", "nemotron-nas"),
    HfName("DeciLMForCausalLM", "deci"),
    drop=(*NOT_DENSE, *(r.gguf[0] for r in attention() if r.gguf[0].endswith(".bias"))),
    keys=keys("feed_forward_length  u32  intermediate_size\nattention.head_count_kv  u32  num_key_value_heads"),
    rows=(
        row(NORMS[0].gguf[0], NORMS[0].forms[0].patterns[0], "n_embd", when="n_head"),
        row(NORMS[1].gguf[0], NORMS[1].forms[0].patterns[0], "n_embd", when="n_ff"),
        *(
            row(r.gguf[0], r.forms[0].patterns[0], r.shapes[0], *r.forms[0].ops, when="n_head_kv")
            for r in attention(permuted=True)[:3]
        ),
        row(
            "blk.{i}.attn_output.weight", _at + "self_attn.o_proj.weight", "n_embd, n_head * head_dim", when="n_head_kv"
        ),
        *gated_mlp(when="n_ff"),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"may_skip": True},
    reads="block_configs num_key_value_heads_per_layer head_dim",
).extended(
    (
        row(
            "blk.{i}.attn_output.weight",
            _at + "self_attn.linear_attn.weight",
            "n_embd, n_embd",
            when="n_head and not n_head_kv",
        ),
    )
)

ARCHITECTURES = (DECI,)
