"""dots 3 Note: latent attention of two shapes, with an indexer or a window, gates for each head, DeepSeek's experts.

Where config.json says that latents are rescaled, a GGUF's norms hold the product.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.experts.deepseek import DEEPSEEK2
from llmconv.convert.archs.experts.deepseek_sparse import INDEXER_KEYS, indexer
from llmconv.convert.archs.parts import NEXTN, each_layer
from llmconv.convert.tables.architecture import HfName, Row, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims, Only, Split, Transpose
from llmconv.convert.tables.times import Times
from llmconv.convert.tables.windows import PATTERN
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_attn = _at + "self_attn."

_further = "i >= n_layer - n_nextn"

_window = f"swa or {_further}"

_KINDS = {"sliding_attention": True, "full_attention": False, "indexed_attention": False}


def _windows(config: Mapping[str, Any], count: int) -> list[bool]:
    """Which layers see a window."""
    kinds = config.get("layer_types")
    if kinds is None:
        return [i >= 2 and i % 4 != 1 for i in range(count)]
    if not isinstance(kinds, list) or len(kinds) < count or set(kinds) - set(_KINDS):
        raise Unsupported(f"config.json: layer_types is {kinds!r:.60}, expected one of {', '.join(_KINDS)} a layer")
    return [_KINDS[kind] for kind in kinds[:count]]


_USUAL = {
    "num_attention_heads": 64,
    "q_lora_rank": 1024,
    "kv_lora_rank": 1024,
    "head_dim": 256,
    "qk_nope_head_dim": 192,
    "v_head_dim": 128,
}


def _of_windows(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of layers with a window: `swa_...`, or those of such a layer in `per_layer_config`."""
    layers = config.get("per_layer_config")
    stated: Mapping[str, Any] = {}
    if isinstance(layers, Mapping):  # where only what differs is said
        stated = {**config, **next(iter(layers.values()), {})}
    found = {name: int(config.get(f"swa_{name}", stated.get(name, usual))) for name, usual in _USUAL.items()}
    turning = config.get("swa_qk_rope_head_dim", stated.get("qk_rope_head_dim"))
    found["qk_rope_head_dim"] = found["head_dim"] - found["qk_nope_head_dim"] if turning is None else int(turning)
    return found


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    count, further = min(dims["n_layer"], 1 << 16), int(own.get("nextn_predict_layers") or 0)
    windows, sizes = _windows(config, count), _of_windows(config)
    for name in ("q_lora_rank", "qk_rope_head_dim"):
        if sizes[name] != config.get(name):
            raise Unsupported(f"config.json: {name} is {config.get(name)}, with a window {sizes[name]}; expected one")
    if int(config.get("n_group") or 1) > 1:
        raise Unsupported("config.json: n_group is more than 1, which no GGUF of the family can say")
    shared = config.get("moe_shared_expert_intermediate_size", config.get("shared_experts_intermediate_size"))
    if shared not in (None, int(config["moe_intermediate_size"])):
        raise Unsupported(
            f"config.json: shared experts are {shared} wide, others {config['moe_intermediate_size']}, which no GGUF "
            "of the family can say"
        )
    assert DEEPSEEK2.finish is not None
    DEEPSEEK2.finish(own, config, dims)
    heads = [sizes["num_attention_heads"] if on else int(config["num_attention_heads"]) for on in windows]
    own["attention.head_count"] = np.asarray(heads + [sizes["num_attention_heads"]] * further, np.int32)
    own[PATTERN] = np.asarray(windows, np.bool_)
    own["attention.indexer.types"] = np.asarray([not on for on in windows], np.bool_)
    rank, rope = sizes["kv_lora_rank"], sizes["qk_rope_head_dim"]
    own["attention.kv_lora_rank_swa"] = np.uint32(rank)
    own["attention.key_length_swa"] = np.uint32(rank + rope)
    own["attention.value_length_swa"] = np.uint32(rank)
    own["attention.key_length_mla_swa"] = np.uint32(sizes["qk_nope_head_dim"] + rope)
    own["attention.value_length_mla_swa"] = np.uint32(sizes["v_head_dim"])
    if config.get("apply_mla_qkv_lora_rescale", True):
        for name, size in (("query", config["q_lora_rank"]), ("latent", config["kv_lora_rank"]), ("window", rank)):
            own[f"scaled_by.{name}"] = np.float32(math.sqrt(dims["n_embd"] / size))


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    heads = [*each_layer(own, "attention.head_count")]
    windows = [bool(on) for on in np.ravel(own[PATTERN])]
    assert DEEPSEEK2.rebuild is not None
    DEEPSEEK2.rebuild(config, own, dims)
    config.update(architectures=["Dots3NoteTextForCausalLM"], model_type="dots3_note_text")
    count = config["num_hidden_layers"]
    config["layer_types"] = ["sliding_attention" if on else "full_attention" for on in windows[:count]]
    full = [n for n, on in zip(heads, windows, strict=False) if not on]
    near = [n for n, on in zip(heads, windows, strict=False) if on]
    config["num_attention_heads"] = config["num_key_value_heads"] = full[0] if full else heads[0]
    config["swa_num_attention_heads"] = config["swa_num_key_value_heads"] = near[0] if near else heads[-1]
    rope = dims["n_rot"]
    config["swa_kv_lora_rank"], config["swa_q_lora_rank"] = dims["kv_lora_swa"], dims["q_lora"]
    config["swa_qk_rope_head_dim"], config["swa_qk_nope_head_dim"] = rope, dims["nope_swa"] - rope
    config["swa_head_dim"], config["swa_v_head_dim"] = dims["nope_swa"], dims["v_mla_swa"]
    config["moe_shared_expert_intermediate_size"] = config["moe_intermediate_size"]
    config["apply_mla_qkv_lora_rescale"] = "scaled_by.query" in own
    config["swa_rope_theta"] = config.pop("rope_local_base_freq", 50000.0)


def _norm(gguf: str, theirs: str, size: str, factor: str, when: str = "") -> Row:
    return row(f"blk.{{i}}.{gguf}.weight", _attn + f"{theirs}.weight", size, Times((factor,)), when=when)


def _latent(when: str, end: str, factor: str) -> tuple[Row, ...]:
    """Rows of keys and values, by the sizes of layers with or without a window."""
    width, rank, nope, value = f"kv_lora{end} + n_rot", f"kv_lora{end}", f"nope{end} - n_rot", f"v_mla{end}"
    return (
        row("blk.{i}.attn_q_b.weight", _attn + "q_b_proj.weight", f"n_head * nope{end}, q_lora", when=when),
        row("blk.{i}.attn_kv_a_mqa.weight", _attn + "kv_a_proj_with_mqa.weight", f"{width}, n_embd", when=when),
        _norm("attn_kv_a_norm", "kv_a_layernorm", rank, factor, when),
        row(
            ("blk.{i}.attn_k_b.weight", "blk.{i}.attn_v_b.weight"),
            _attn + "kv_b_proj.weight",
            (f"n_head, {rank}, {nope}", f"n_head, {value}, {rank}"),
            Split((nope, value), "n_head", gguf_stacked=True),
            Only(0, Transpose()),
            when=when,
        ),
        row("blk.{i}.attn_output.weight", _attn + "o_proj.weight", f"n_embd, n_head * {value}", when=when),
    )


_OWN = ("attn_q", "attn_k", "attn_v", "attn_output", "nextn")
"""How the names of DeepSeek's tensors begin that are others here."""


def _of_experts(each: Row) -> Row:
    """Layers for further tokens have a dense block, as the first ones."""
    if "n_dense" not in each.when:
        return each
    dense = each.when == "i < n_dense"
    return dataclasses.replace(
        each, when=f"i < n_dense or {_further}" if dense else f"{each.when} and not ({_further})"
    )


DOTS3 = dataclasses.replace(
    DEEPSEEK2.variant(
        "dots3note",
        HfName("Dots3NoteForCausalLM", "dots3_note"),
        HfName("Dots3NoteForConditionalGeneration", "dots3_note"),
        HfName("Dots3NoteTextForCausalLM", "dots3_note_text"),
        keys=(
            *INDEXER_KEYS,
            *keys("""
                attention.sliding_window   u32   sliding_window_size|sliding_window   512
                rope.freq_base             f32   rope_theta                           80000000
                rope.freq_base_swa         f32   rope_local_base_freq                 50000
            """),
        ),
        finish=_finish,
        rebuild=_rebuild,
        decoder={"indexer_rope": "pairs"},
        loader=Loader(pieces={"indexer_rope": "halves"}),
        reads="layer_types indexed_attention partial_rotary_factor per_layer_config sliding_window n_group"
        " apply_mla_qkv_lora_rescale" + "".join(f" swa_{name}" for name in (*_USUAL, "qk_rope_head_dim")),
        inert="topk_group swa_num_key_value_heads swa_rope_theta moe_shared_expert_intermediate_size"
        " shared_experts_intermediate_size use_sliding_window",
        fixed={
            "attention_bias": False,
            "use_dsa": True,
            "k_rope_only_layernorm": True,
            "attention_gate_type": "headwise",
            "swa_attention_gate_type": "headwise",
        },
    ),
    rows=(
        *(_of_experts(r) for r in DEEPSEEK2.rows if not r.gguf[0].removeprefix("blk.{i}.").startswith(_OWN)),
        row("blk.{i}.attn_q_a.weight", _attn + "q_a_proj.weight", "q_lora, n_embd"),
        _norm("attn_q_a_norm", "q_a_layernorm", "q_lora", "query"),
        row("blk.{i}.attn_k_norm.weight", _attn + "k_rope_only_layernorm.weight", "n_rot"),
        row("blk.{i}.attn_gate.weight", _attn + "g_proj.weight", "n_head, n_embd"),
        *_latent(f"not ({_window})", "", "latent"),
        *_latent(_window, "_swa", "window"),
        *indexer(f"index_full and not ({_further})"),
        *(r for r in NEXTN if "embed_tokens" not in r.gguf[0] and "shared_head_head" not in r.gguf[0]),
        row(
            "blk.{i}.nextn.embed_tokens.weight",
            "{p}mtp.embed_tokens.weight",
            "n_vocab, n_embd",
            when=_further,
        ),
    ),
)

ARCHITECTURES = (DOTS3,)
