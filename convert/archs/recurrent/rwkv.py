"""RWKV 6 and 7: a state for each head that decays by what is read, and Qwen 2 with such a state in attention's place.

Where their own files keep products as (in, out), GGUF has (out, in).  RWKV 6 halves what its later layers add, every so
many layers; a GGUF holds the halved weights.  arXiv:2404.05892, arXiv:2503.14456.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import NORMS, norm
from llmconv.convert.tables.architecture import Architecture, HfName, Row, keys, row
from llmconv.convert.tables.loader import HEAD, Loader
from llmconv.convert.tables.ops import Dims, Exchanged, Reshape, Stack, Transpose, Twice
from llmconv.convert.tables.pieces import Pieces
from llmconv.convert.tables.times import Halved
from llmconv.errors import Unsupported

_DECODER: Pieces = {"positions": "none", "norm": "layer", "mlp_norm": "attn_norm_2"}

_CONTEXT = np.uint32(1048576)

_flat = Reshape((1, 1, "n_embd"), ("n_embd",))


def _mix(name: str, hf: str, shape: str, *ops: Any, **more: Any) -> Row:
    return row(f"blk.{{i}}.time_mix_{name}.weight", hf, shape, *ops, **more)


def _lerps(at: str, letters: str, named: str) -> Row:
    """How much of the token before goes into each of a layer's products, all in one tensor."""
    names = tuple(at + named.format(letter) for letter in letters)
    return row("blk.{i}.time_mix_lerp_fused.weight", names, f"{len(letters)}, 1, 1, n_embd", Stack())


def _shifted_by_data(at: str, *swap: Any) -> tuple[Row, ...]:
    """Rows of what RWKV 6 makes of a token to say how much of the one before goes into each product, and of decay."""
    return (
        _mix("lerp_x", at + "time_maa_x", "n_embd", _flat),
        _lerps(at, "wkvrg", "time_maa_{}"),
        _mix("w1", at + "time_maa_w1", "5 * n_mix, n_embd", Transpose(), *swap),
        _mix("w2", at + "time_maa_w2", "5, n_embd, n_mix", Transpose(), *swap),
        _mix("decay", at + "time_decay", "n_embd", _flat),
        _mix("decay_w1", at + "time_decay_w1", "n_decay, n_embd", Transpose()),
        _mix("decay_w2", at + "time_decay_w2", "n_embd, n_decay", Transpose()),
    )


_b6 = "{p}blocks.{i}."

_a6, _f6 = _b6 + "attention.", _b6 + "feed_forward."

_heads = "n_embd // n_wkv"


def _ranks6(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    wide = dims["n_embd"] == 4096
    own.setdefault("time_mix_extra_dim", np.uint32(64 if wide else 32))
    own.setdefault("time_decay_extra_dim", np.uint32(128 if wide else 64))
    if not own.get("feed_forward_length"):
        own["feed_forward_length"] = np.uint32(int(dims["n_embd"] * 3.5) // 32 * 32)


RWKV6 = Architecture(
    "rwkv6",
    (HfName("Rwkv6ForCausalLM", "rwkv6"),),
    keys=keys("""
        block_count                     u32   num_hidden_layers
        embedding_length                u32   hidden_size
        feed_forward_length             u32   intermediate_size
        attention.layer_norm_epsilon    f32   layer_norm_epsilon       1e-5
        rescale_every_n_layers          u32   rescale_every            0
        wkv.head_size                   u32   head_size                64
        time_mix_extra_dim              u32   time_mix_extra_dim
        time_decay_extra_dim            u32   time_decay_extra_dim
    """),
    rows=(
        row("token_embd.weight", "{p}embeddings.weight", "n_vocab, n_embd"),
        *norm("token_embd_norm", "{p}blocks.0.pre_ln"),
        *norm("output_norm", "{p}ln_out"),
        row("output.weight", "head.weight", "n_vocab, n_embd"),
        *norm("blk.{i}.attn_norm", _b6 + "ln1"),
        *norm("blk.{i}.attn_norm_2", _b6 + "ln2"),
        *_shifted_by_data(_a6),
        _mix("first", _a6 + "time_faaaa", f"{_heads}, n_wkv"),
        *(_mix(name, _a6 + f"{name}.weight", "n_embd, n_embd") for name in ("key", "value", "receptance", "gate")),
        *norm("blk.{i}.time_mix_ln", _a6 + "ln_x"),
        _mix("output", _a6 + "output.weight", "n_embd, n_embd", Halved()),
        row("blk.{i}.channel_mix_lerp_k.weight", _f6 + "time_maa_k", "n_embd", _flat),
        row("blk.{i}.channel_mix_lerp_r.weight", _f6 + "time_maa_r", "n_embd", _flat),
        row("blk.{i}.channel_mix_key.weight", _f6 + "key.weight", "n_ff, n_embd"),
        row("blk.{i}.channel_mix_value.weight", _f6 + "value.weight", "n_embd, n_ff", Halved()),
        row("blk.{i}.channel_mix_receptance.weight", _f6 + "receptance.weight", "n_embd, n_embd"),
    ),
    prefixes=("rwkv.",),
    constants={"context_length": _CONTEXT, "attention.head_count": np.uint32(0)},
    finish=_ranks6,
    decoder=_DECODER,
    inert="attention_hidden_size num_attention_heads head_size_divisor context_length max_context_length",
    loader=Loader(needed=HEAD),
)

_q6 = "{p}layers.{i}.self_attn."

_kv = "n_head_kv * n_wkv"


def _ranks_qwen(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    heads = int(config["num_attention_heads"])
    own["wkv.head_size"] = np.uint32(dims["n_embd"] // heads)
    own.setdefault("time_mix_extra_dim", np.uint32(64 if dims["n_embd"] >= 4096 else 32))
    own.setdefault("time_decay_extra_dim", np.uint32(128 if dims["n_embd"] >= 4096 else 64))


def _heads_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["num_attention_heads"] = dims["n_embd"] // max(dims["n_wkv"], 1)


_MLP = tuple(
    row(f"blk.{{i}}.ffn_{name}.weight", "{p}layers.{i}.mlp." + f"{name}_proj.weight", shape)
    for name, shape in (("gate", "n_ff, n_embd"), ("up", "n_ff, n_embd"), ("down", "n_embd, n_ff"))
)

_QWEN_ENDS = (
    row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd"),
    row("output_norm.weight", "{p}norm.weight", "n_embd"),
    row("output.weight", "lm_head.weight", "n_vocab, n_embd", optional="!tie_word_embeddings"),
    *NORMS,
    *_MLP,
)

RWKV6_QWEN2 = Architecture(
    "rwkv6qwen2",
    (HfName("RWKV6Qwen2ForCausalLM", "rwkv6qwen2"),),
    keys=keys("""
        block_count                       u32   num_hidden_layers
        embedding_length                  u32   hidden_size
        feed_forward_length               u32   intermediate_size
        attention.head_count_kv           u32   num_key_value_heads
        attention.layer_norm_rms_epsilon  f32   rms_norm_eps             1e-6
        time_mix_extra_dim                u32   lora_rank_tokenshift
        time_decay_extra_dim              u32   lora_rank_decay
    """),
    loader=Loader(needed=HEAD),
    rows=(
        *_QWEN_ENDS,
        *_shifted_by_data(_q6, Exchanged(5, 0, 3)),
        _mix("receptance", _q6 + "q_proj.weight", "n_embd, n_embd"),
        _mix("key", _q6 + "k_proj.weight", f"{_kv}, n_embd"),
        _mix("value", _q6 + "v_proj.weight", f"{_kv}, n_embd"),
        row("blk.{i}.time_mix_receptance.bias", _q6 + "q_proj.bias", "n_embd", optional="attention_bias"),
        row("blk.{i}.time_mix_key.bias", _q6 + "k_proj.bias", _kv, optional="attention_bias"),
        row("blk.{i}.time_mix_value.bias", _q6 + "v_proj.bias", _kv, optional="attention_bias"),
        _mix("gate", _q6 + "gate.weight", "n_embd, n_embd"),
        _mix("output", _q6 + "o_proj.weight", "n_embd, n_embd"),
    ),
    constants={"context_length": _CONTEXT, "attention.head_count": np.uint32(0), "token_shift_count": np.uint32(1)},
    finish=_ranks_qwen,
    rebuild=_heads_back,
    decoder={"positions": "none"},
    reads="num_attention_heads",
    inert="rope_theta max_window_layers sliding_window use_sliding_window",
)

_a7, _f7 = "{p}layers.{i}.attn.", "{p}layers.{i}.ffn."

_LOW = (("w", "n_decay_rank"), ("g", "n_gate_rank"))


def _low_rank(at: str, letter: str, rank: str, names: tuple[str, ...]) -> tuple[Row, ...]:
    """Rows of a product of low rank, with what is added to it."""
    shapes = {"0": "n_embd", "1": f"{rank}, n_embd", "2": f"n_embd, {rank}"}
    return tuple(
        _mix(f"{letter}{part}", at + theirs, shapes[part]) for part, theirs in zip(("1", "2", "0"), names, strict=False)
    )


def _fla(letter: str) -> tuple[str, ...]:
    names = (f"{letter}_lora.lora.0.weight", f"{letter}_lora.lora.2.weight", f"{letter}_lora.lora.2.bias")
    return names[:2] if letter == "g" else names


def _values(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rates' rows; the first layer's are its values' too, which nobody computes with and llama.cpp asks for."""
    out = []
    for each in rows:
        (form,), name = each.forms, each.gguf[0]
        both = (name, name.replace("time_mix_a", "time_mix_v"))
        doubled = (*form.ops, Twice())
        out.append(Row(both, (type(form)(form.patterns, doubled),), each.shapes * 2, "i == 0"))
        out.append(Row(each.gguf, each.forms, each.shapes, "i > 0"))
    return tuple(out)


def _later(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(Row(each.gguf, each.forms, each.shapes, "i > 0") for each in rows)


def _rank(width: int, power: float, times: float) -> int:
    """The rank that models have of themselves: arXiv:2503.14456, appendix."""
    return max(1, round(float(width**power) * times / 32)) * 32


_RANKS7 = {
    "attention.decay_lora_rank": (0.5, 1.8),
    "attention.iclr_lora_rank": (0.5, 1.8),
    "attention.value_residual_mix_lora_rank": (0.5, 1.3),
    "attention.gate_lora_rank": (0.8, 0.6),
}


def _ranks7(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    for key, (power, times) in _RANKS7.items():
        if key not in own:
            own[key] = np.uint32(_rank(dims["n_embd"], power, times))
    if not own.get("feed_forward_length"):
        own["feed_forward_length"] = np.uint32(4 * dims["n_embd"])


_KEYS7 = keys("""
    block_count                              u32   num_hidden_layers
    embedding_length                         u32   hidden_size
    feed_forward_length                      u32   intermediate_size
    wkv.head_size                            u32   head_dim|head_size               64
    attention.decay_lora_rank                u32   decay_low_rank_dim|lora_rank_decay
    attention.iclr_lora_rank                 u32   a_low_rank_dim|lora_rank_iclr
    attention.value_residual_mix_lora_rank   u32   v_low_rank_dim|lora_rank_value_residual_mix
    attention.gate_lora_rank                 u32   gate_low_rank_dim|lora_rank_gate
""")

RWKV7 = Architecture(
    "rwkv7",
    (HfName("RWKV7ForCausalLM", "rwkv7"), HfName("Rwkv7ForCausalLM", "rwkv7")),
    keys=(*_KEYS7, *keys("attention.layer_norm_epsilon  f32  norm_eps|layer_norm_epsilon  1e-5")),
    rows=(
        row("token_embd.weight", "{p}embeddings.weight", "n_vocab, n_embd"),
        *norm("token_embd_norm", "{p}layers.0.pre_norm"),
        *norm("output_norm", "{p}norm"),
        row("output.weight", "lm_head.weight", "n_vocab, n_embd"),
        *norm("blk.{i}.attn_norm", "{p}layers.{i}.attn_norm"),
        *norm("blk.{i}.attn_norm_2", "{p}layers.{i}.ffn_norm"),
        _lerps(_a7, "rwkvag", "x_{}"),
        *(each for letter, rank in _LOW for each in _low_rank(_a7, letter, rank, _fla(letter))),
        *_values(_low_rank(_a7, "a", "n_iclr_rank", _fla("a"))),
        *_later(_low_rank(_a7, "v", "n_value_rank", _fla("v"))),
        _mix("k_k", _a7 + "k_k", "n_embd"),
        _mix("k_a", _a7 + "k_a", "n_embd"),
        _mix("r_k", _a7 + "r_k", "n_embd", Reshape((_heads, "n_wkv"), ("n_embd",))),
        _mix("receptance", _a7 + "r_proj.weight", "n_embd, n_embd"),
        _mix("key", _a7 + "k_proj.weight", "n_embd, n_embd"),
        _mix("value", _a7 + "v_proj.weight", "n_embd, n_embd"),
        _mix("output", _a7 + "o_proj.weight", "n_embd, n_embd"),
        *norm("blk.{i}.time_mix_ln", _a7 + "g_norm"),
        row("blk.{i}.channel_mix_lerp_k.weight", _f7 + "x_k", "n_embd"),
        row("blk.{i}.channel_mix_key.weight", _f7 + "key.weight", "n_ff, n_embd"),
        row("blk.{i}.channel_mix_value.weight", _f7 + "value.weight", "n_embd, n_ff"),
    ),
    constants={"context_length": _CONTEXT, "attention.head_count": np.uint32(0)},
    kept=(r".*layers\.0\.attn\.v_lora\..*",),
    finish=_ranks7,
    decoder=_DECODER,
    inert="attn attn_mode fuse_norm fuse_cross_entropy hidden_ratio num_heads value_dim norm_first norm_bias",
    loader=Loader(needed=HEAD),
)

_a8 = "{p}layers.{i}.self_attn.time_mixer."


def _ranks8(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if config.get("wkv_version", 7) != 7:
        raise Unsupported(f"config.json: wkv_version is {config['wkv_version']!r:.40}, expected 7")
    if not config.get("wkv_has_gate", True):
        raise Unsupported("config.json: wkv_has_gate is false, which is not known of an arwkv7 model here")
    ranks = {"decay": 64, "iclr": 64, "value_residual_mix": 32, "gate": 128}
    own |= {f"attention.{name}_lora_rank": np.uint32(rank) for name, rank in ranks.items()}


def _raw(letter: str, rank: str) -> tuple[Row, ...]:
    """Rows of a product of low rank whose matrices are kept (in, out)."""
    rows = [
        _mix(f"{letter}1", _a8 + f"{letter}1", f"{rank}, n_embd", Transpose()),
        _mix(f"{letter}2", _a8 + f"{letter}2", f"n_embd, {rank}", Transpose()),
    ]
    if letter != "g":
        rows.append(_mix(f"{letter}0", _a8 + f"{letter}0", "n_embd", _flat))
    return tuple(rows)


ARWKV7 = Architecture(
    "arwkv7",
    (HfName("RwkvHybridForCausalLM", "rwkv_hybrid"),),
    keys=(
        *(key for key in _KEYS7 if not key.gguf.endswith("lora_rank")),
        *keys("attention.layer_norm_rms_epsilon  f32  rms_norm_eps  1e-6"),
    ),
    loader=Loader(needed=HEAD),
    rows=(
        *_QWEN_ENDS,
        _lerps(_a8, "rwkvag", "x_{}"),
        *_raw("w", "n_decay_rank"),
        *_raw("g", "n_gate_rank"),
        *_values(_raw("a", "n_iclr_rank")),
        *_later(_raw("v", "n_value_rank")),
        _mix("k_k", _a8 + "k_k", "n_embd", _flat),
        _mix("k_a", _a8 + "k_a", "n_embd", _flat),
        _mix("r_k", _a8 + "r_k", "n_embd", Reshape((_heads, "n_wkv"), ("n_embd",))),
        *(_mix(name, _a8 + f"{name}.weight", "n_embd, n_embd") for name in ("receptance", "key", "value", "output")),
        row("blk.{i}.time_mix_ln.weight", _a8 + "ln_x.weight", "n_embd", optional=True),
        row("blk.{i}.time_mix_ln.bias", _a8 + "ln_x.bias", "n_embd", optional=True),
    ),
    constants={"context_length": _CONTEXT, "attention.head_count": np.uint32(0), "token_shift_count": np.uint32(1)},
    kept=(r".*layers\.0\.self_attn\.time_mixer\.v[012]",),
    finish=_ranks8,
    decoder={"positions": "none"},
    reads="wkv_version wkv_has_gate",
    inert="num_attention_heads num_key_value_heads rope_theta wkv_layers wkv_has_group_norm wkv_use_vfirst",
)

ARCHITECTURES = (RWKV6, RWKV6_QWEN2, RWKV7, ARWKV7)
