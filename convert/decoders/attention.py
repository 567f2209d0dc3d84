"""The attention of a layer, described."""

from __future__ import annotations

import math

from llmconv.convert.decoders.facts import Attention, Blocks, Growth, Indexer, Mla, Relative, Rope
from llmconv.convert.decoders.pooled import pools_of, runs_of
from llmconv.convert.decoders.rope import rope_of
from llmconv.convert.decoders.shared import Shared

__all__ = ["attention_of"]


def attention_of(shared: Shared, i: int) -> Attention:
    read, pieces = shared.read, shared.pieces
    n_head, n_kv = shared.heads[i], shared.heads_kv[i]
    if n_head < 1 or n_kv < 1 or n_head % n_kv:
        raise read.bad(f"layer {i}", f"has {n_head} heads for {n_kv} key-value heads, not a multiple")
    if read.get("attention.key_length") is None and shared.dim % n_head:
        raise read.bad(f"layer {i}", f"has {n_head} heads in {shared.dim} dimensions, not a multiple")
    near = "_swa" if shared.windowed[i] else ""
    head_dim = read.count("attention.key_length", shared.dim // n_head, 1)
    value_dim = read.count("attention.value_length", head_dim, 1)
    head_dim = read.count(f"attention.key_length{near}", head_dim, 1)
    value_dim = read.count(f"attention.value_length{near}", value_dim, 1)
    borrows, lends = _lending(shared, i)
    mla = runs = None
    if f"blk.{i}.attn_kv_a_mqa.weight" in read.shapes:
        kv_rank, rope_dims = read.count("attention.kv_lora_rank", least=1), read.count("rope.dimension_count")
        kv_rank = read.count(f"attention.kv_lora_rank{near}", kv_rank, 1)
        head_dim = read.count("attention.key_length_mla", head_dim)
        head_dim = read.count(f"attention.key_length_mla{near}", head_dim)
        value_dim = read.count("attention.value_length", shared.dim // n_head)
        value_dim = read.count("attention.value_length_mla", value_dim)
        value_dim = read.count(f"attention.value_length_mla{near}", value_dim)
        n_kv = n_head
        mla = Mla(kv_rank, head_dim - rope_dims, rope_dims, _indexer(shared, i))
        if mla.nope_dims < 1:
            raise read.bad(f"layer {i}", f"has heads of {head_dim}, fewer than its {rope_dims} rotary dimensions")
    elif f"blk.{i}.attn_kv.weight" in read.shapes:
        runs = runs_of(read, i, n_head, head_dim)
    else:
        _check_projections(shared, i, n_head, n_kv, head_dim, value_dim, borrows is not None)
    rope = rope_of(shared, i, head_dim)
    alibi = None
    if shared.positions == "alibi":
        alibi = read.number("attention.max_alibi_bias", pieces.get("alibi_bias", 8.0)) or None
    return Attention(
        n_head=n_head,
        n_head_kv=n_kv,
        head_dim=head_dim,
        value_dim=value_dim,
        scale=_stated_scale(shared, i) or _usual_scale(shared, n_head, head_dim, rope, mla is not None),
        causal=_causal(shared, i),
        window=shared.window if shared.windowed[i] else None,
        softcap=read.number("attn_logit_softcapping", pieces.get("attention_softcap", 0.0)) or None,
        clamp=read.optional("attention.clamp_kqv"),
        clamp_normed=bool(pieces.get("clamp_normed", False)),
        rope=rope,
        alibi=alibi,
        alibi_quirk=bool(pieces.get("alibi_quirk", False)),
        softmax_start=read.number("attention.softmax_start", pieces.get("softmax_start", 0.0)),
        norm_after_rope=bool(pieces.get("qk_norm_after_rope", False)),
        growth=_growth(shared, rope is None),
        gate=str(pieces.get("attention_gate", "sigmoid")),
        value_scale=read.optional("attention.value_scale") or 1.0,
        mla=mla,
        gated=_gated(shared, i),
        value_norm=bool(pieces.get("value_norm", False)),
        borrows=borrows,
        lends=lends,
        chunk=_chunk(shared, rope is not None),
        length_one=rope is not None and _length_one(shared, i),
        by_head=bool(pieces.get("qkv_by_head")) and read.count("attention.qkv_groups", 1) == 1,
        relative=_relative(shared, i, n_head),
        blocks=_blocks(shared, i, n_head),
        pools=None if runs else pools_of(read, i),
        runs=runs,
    )


def _causal(shared: Shared, i: int) -> bool:
    stated = bool(shared.read.flag("attention.causal", shared.pieces.get("causal", True)))
    return stated or bool(shared.pieces.get("causal_without_window") and not shared.windowed[i])


def _relative(shared: Shared, i: int, n_head: int) -> Relative | None:
    """The bias by distance of a family that has one; the first layer must have its table."""
    farthest = shared.pieces.get("farthest", 0)
    if not farthest:
        return None
    name = f"blk.{i}.attn_rel_b.weight"
    if i and name not in shared.read.shapes:
        return Relative(0, farthest, own=False)
    buckets, heads = shared.read.shape(name, 2)
    if heads != n_head or buckets < 4 or buckets % 2:
        expected = f"an even number of buckets for {n_head} heads"
        raise shared.read.bad(f"tensor '{name}'", f"has shape {[buckets, heads]}, expected {expected}")
    return Relative(buckets, farthest, own=True)


def _indexer(shared: Shared, i: int) -> Indexer | None:
    """What chooses tokens of long texts, by the file's keys; the layer's own where it has the tensors."""
    read, start, key = shared.read, f"blk.{i}.indexer.", "attention.indexer."
    if not (used := read.count(f"{key}top_k", 0)) or read.count(f"{key}kpool", 0) or shared.windowed[i]:
        return None
    heads, dims = read.count(f"{key}head_count", least=1), read.count(f"{key}key_length", least=1)
    if (turning := read.count("rope.dimension_count", 0)) > dims:
        raise read.bad(f"key '{read.arch}.{key}key_length'", f"is {dims}, fewer than the {turning} that turn")
    pairs, own = shared.pieces.get("indexer_rope") == "pairs", f"{start}attn_q_b.weight" in read.shapes
    if own:
        read.expect(f"{start}attn_q_b.weight", heads * dims, f"{heads} heads of {dims}")
        for name, rows in (("attn_k", dims), ("proj", heads)):
            read.shape(f"{start}{name}.weight", 2)
            read.expect(f"{start}{name}.weight", rows, f"{heads} heads of {dims}")
        for part in ("weight", "bias"):
            read.shape(f"{start}k_norm.{part}", 1)
    eps = read.number("attention.layer_norm_rms_epsilon") if shared.pieces.get("indexer_eps_by_model") else 1e-6
    return Indexer(heads, dims, used, pairs, own, bool(shared.pieces.get("indexer_rope_at_end")), eps)


def _blocks(shared: Shared, i: int, n_head: int) -> Blocks | None:
    """The blocks of tokens that an indexer chooses, where a layer has one that does."""
    read, start, key = shared.read, f"blk.{i}.indexer.", "attention.indexer."
    if f"{start}q_proj.weight" not in read.shapes or read.get("attention.compress_ratios") is not None:
        return None
    heads, dims = read.count(f"{key}head_count", least=1), read.count(f"{key}key_length", least=1)
    read.expect(f"{start}q_proj.weight", heads * dims, f"{heads} heads of {dims}")
    read.expect(f"{start}k_proj.weight", dims, "one head")
    for name, rank in (("k_proj", 2), ("q_norm", 1), ("k_norm", 1)):
        read.shape(f"{start}{name}.weight", rank)
    if n_head % heads:
        raise read.bad(f"key '{read.arch}.{key}head_count'", f"is {heads}, which {n_head} heads are no multiple of")
    size, used = read.count(f"{key}block_size", least=1), read.count(f"{key}top_k", least=1)
    return Blocks(heads, dims, size, used, min(read.count(f"{key}local_blocks", 1), used))


def _lending(shared: Shared, i: int) -> tuple[int | None, bool]:
    """The layer whose keys and values a layer reads: the last of its kind that has some; and whether it is one."""
    if not shared.pieces.get("lends"):
        return None, False
    first = shared.n - shared.read.count(
        "attention.shared_kv_layers", max(0, shared.n - shared.pieces.get("lends_from", shared.n))
    )
    if first == shared.n:
        return None, False
    if i >= first and shared.pieces.get("lends_last_two"):
        return first - 1 - shared.windowed[i], False
    if i >= first:
        kin = [k for k in range(first) if shared.windowed[k] == shared.windowed[i]]
        if not kin:
            raise shared.read.bad(f"layer {i}", "reads keys of an earlier layer of its kind, and there is none")
        return kin[-1], False
    return None, not any(shared.windowed[k] == shared.windowed[i] for k in range(i + 1, first))


def _gated(shared: Shared, i: int) -> bool:
    return bool(shared.pieces.get("gated_queries")) and f"blk.{i}.attn_q.weight" in shared.read.shapes


def _chunk(shared: Shared, turns: bool) -> int | None:
    """How long the chunks are that a layer sees, where it has rotary positions and the family such chunks."""
    usual = shared.pieces.get("chunk", 0)
    return (shared.read.count("attention.chunk_size", usual) or None) if turns and usual else None


def _length_one(shared: Shared, i: int) -> bool:
    """Whether queries and keys are normed; the larger Llama 4's are not, and llama.cpp knows it by its experts."""
    if f"blk.{i}.attn_kv.weight" in shared.read.shapes:  # DeepSeek V4's queries
        return True
    usual = shared.read.count("expert_count", 0) != 128
    return bool(shared.pieces.get("length_one") and shared.read.flag("attention.qk_norm", usual))


def _growth(shared: Shared, still: bool) -> Growth | None:
    if usual := shared.pieces.get("growth_without_rope"):
        by = shared.read.number("attention.temperature_scale", 0.1)
        length = shared.read.count("attention.temperature_length", int(usual))
        return Growth(by, length, 1) if still and by and length else None
    scale = shared.read.optional("attention.temperature_scale")
    context = shared.read.count("rope.scaling.original_context_length", shared.read.count("context_length", 0))
    length = shared.read.count("attention.temperature_length", context)
    return Growth(scale, length) if scale and length else None


def _usual_scale(shared: Shared, n_head: int, head_dim: int, rope: Rope | None, latent: bool) -> float:
    """What q·k is multiplied by in the family; YaRN's magnitude too, where it is not in the rotations."""
    read, pieces = shared.read, shared.pieces
    scale = float(pieces.get("attention_scale", 1 / head_dim ** pieces.get("scale_power", 0.5)))
    if pieces.get("scale_by_model") == shared.n:
        scale = 1 / math.sqrt(shared.dim / n_head)
    if read.config.get("query_pre_attn_scalar"):
        scale = float(read.config["query_pre_attn_scalar"]) ** -0.5
    log_multiplier = read.number("rope.scaling.yarn_log_multiplier", 0.0)
    if latent and rope and rope.scaling == "yarn" and log_multiplier:
        scale *= (1 + log_multiplier * math.log(rope.factor)) ** 2
    if rope and rope.factor > 1 and pieces.get("magnitude_in_scores"):
        scale *= (rope.attn_factor if rope.scaling == "yarn" else 1 + 0.1 * math.log(rope.factor)) ** 2
    return scale


def _stated_scale(shared: Shared, i: int) -> float | None:
    """What the file says q·k is multiplied by: a number, or one for each layer."""
    read = shared.read
    found = read.of_layer("attention.scale", i) or read.optional("attention.output_scale")
    if found is not None and found < 0:
        raise read.bad(f"key '{read.arch}.attention.scale'", f"is {found:g}, expected a number above 0")
    return found


def _check_projections(
    shared: Shared, i: int, n_head: int, n_kv: int, head_dim: int, value_dim: int, borrows: bool
) -> None:
    read, start = shared.read, f"blk.{i}.attn_"
    sizes = {"q": (1 + _gated(shared, i)) * n_head * head_dim, "k": n_kv * head_dim, "v": n_kv * value_dim}
    if f"{start}qkv.weight" in read.shapes:
        read.expect(f"{start}qkv.weight", sum(sizes.values()), f"{n_head} + {n_kv} + {n_kv} heads of {head_dim}")
        return
    if borrows:
        sizes = {"q": sizes["q"]}
    elif shared.pieces.get("value_norm") and f"{start}v.weight" not in read.shapes:
        del sizes["v"]
    for part, rows in sizes.items():
        read.shape(f"{start}{part}.weight", 2)
        read.expect(f"{start}{part}.weight", rows, f"{rows // head_dim} heads of {head_dim}")
