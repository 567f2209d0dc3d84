"""The rotary positions of a layer, described."""

from __future__ import annotations

import dataclasses
import math

from llmconv.convert.decoders.facts import Rope
from llmconv.convert.decoders.reader import short
from llmconv.convert.decoders.shared import Shared

__all__ = ["rope_of"]


def rope_of(shared: Shared, i: int, head_dim: int) -> Rope | None:
    read, pieces = shared.read, shared.pieces
    windowed, every = shared.windowed[i], pieces.get("no_rope_every", 0)
    listed = read.flags("rope.layers", shared.n)
    if listed is None:
        listed = read.config.get("no_rope_layers")  # which says which do have it
    if shared.positions != "rope":
        return None
    stated = read.flags("attention.rope_pattern", shared.n)
    if stated is not None and not stated[i]:
        return None
    if isinstance(listed, list) and len(listed) >= shared.n and every:
        if not listed[i]:
            return None
    elif (every and (i + 1) % every == 0) or not (windowed or _turns_without_window(shared, i)):
        return None
    dims = read.count("rope.dimension_count", head_dim) or head_dim
    part = 1 if windowed else pieces.get("full_turn_part", 1)
    dims = read.count("rope.dimension_count_swa", min(dims, head_dim)) if windowed else int(dims * part)
    if dims > head_dim or dims % 2:
        raise read.bad(f"key '{read.arch}.rope.dimension_count'", f"is {dims}, but heads have {head_dim} dimensions")
    base = read.number("rope.freq_base", pieces.get("rope_base", 10000.0))
    if pieces.get("rope_stretched") and (alpha := read.optional("rope.scaling.alpha")):
        base *= alpha ** (dims / (dims - 2))
    scaled = True
    if windowed:
        base = read.number("rope.freq_base_swa", pieces.get("window_rope_base", base))
        scaled = pieces.get("window_rope_scaled", True)
    pairs = pieces.get("rope") == "pairs" or bool(read.flag("rope.interleaved"))
    pairs = pairs and not (_three_fold(shared) and pieces.get("folded_halves"))
    if of_runs := read.optional("attention.compress_rope_freq_base"):
        scaled = bool(read.per_layer("attention.compress_ratios", i + 1, 0)[i])
        base = of_runs if scaled else base
    plain = Rope(dims, base, pairs)
    if not scaled:
        magnitude = read.number("rope.scaling.attn_factor", 1.0) if pieces.get("windows_magnified") else 1.0
        return dataclasses.replace(plain, divided=False, attn_factor=magnitude)
    rope = _scaled(shared, plain)
    return dataclasses.replace(rope, attn_factor=1.0) if of_runs else rope


def _three_fold(shared: Shared) -> bool:
    """Whether positions have parts of their own for time, height and width."""
    return all(n > 0 for n in shared.read.per_layer("rope.dimension_sections", 2, 0))


def _turns_without_window(shared: Shared, i: int) -> bool:
    """Whether a layer that attends to everything has rotary positions."""
    match shared.pieces.get("rope_layers"):
        case "windowed or dense":
            return f"blk.{i}.ffn_gate_inp.weight" not in shared.read.shapes
        case "windowed":
            return False
        case "windowed if any":
            return not shared.window
    return True


def _scaled(shared: Shared, rope: Rope) -> Rope:
    """The rope with the file's scaling."""
    read = shared.read
    kind = str(read.text("rope.scaling.type", "linear"))
    if "rope_factors_long.weight" in read.shapes:
        kind = "longrope"
    settings = read.config.get("rope") or {}
    if settings.get("rope_type") == "dynamic" and read.get("rope.scaling.type") is None:
        kind = "dynamic"  # GGUF has no word for it
    factor = read.number("rope.scaling.factor", read.number("rope.scale_linear", 1.0)) or 1.0
    if factor < 0:
        raise read.bad(f"key '{read.arch}.rope.scaling.factor'", f"is {factor:g}, expected a positive number")
    if kind not in ("none", "linear", "dynamic", "yarn", "longrope"):
        raise read.bad(f"key '{read.arch}.rope.scaling.type'", f"is {short(kind)}, which is no kind known here")
    attn = read.number("rope.scaling.attn_factor", 1.0)
    if kind == "yarn" and factor > 1:
        multiplier = read.number("rope.scaling.yarn_log_multiplier", 0.0)
        if not multiplier:
            attn *= 1 + 0.1 * math.log(factor)
        elif not shared.pieces.get("yarn_magnitudes_cancel"):
            unit = shared.pieces.get("yarn_log_unit", 1.0)
            attn *= (1 + 0.1 * math.log(factor)) / (1 + unit * multiplier * math.log(factor))
    if kind == "linear" and factor == 1:
        kind = "none"
    if kind == "dynamic":
        factor = float(settings.get("factor", factor))
    return dataclasses.replace(
        rope,
        scaling=kind,
        factor=factor,
        original_context=read.count("rope.scaling.original_context_length", read.count("context_length", 0)),
        attn_factor=attn,
        beta_fast=read.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=read.number("rope.scaling.yarn_beta_slow", 1.0),
        truncate=bool(read.flag("rope.scaling.yarn_truncate", shared.pieces.get("yarn_truncate", True))),
    )
