"""Rotary settings that several families state: Llama 3.1's divided frequencies, rotary over a part of each head."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Made
from llmconv.convert.tables.config import look_up
from llmconv.convert.tables.ops import Dims
from llmconv.errors import BadFile


def _llama3(
    factor: float, low: float, high: float, original: int, base: float, dim: int, number: type = np.float32
) -> Any:
    """Llama 3.1's divisors of each rotary frequency (Meta's `apply_scaling`), in float32 as the reference computes.

    number: what the steps between the frequency and its divisor are computed in.
    """
    if not base > 0:
        raise ValueError(f"a rope base of {base:g}")
    freqs = np.float32(1) / np.float32(base) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    long_wave, short_wave = original / low, original / high
    out = []
    for freq in freqs:
        wave = number(2 * math.pi) / number(freq)
        if wave < short_wave:
            out.append(1.0)
        elif wave > long_wave:
            out.append(factor)
        else:
            smooth = (number(original) / wave - number(low)) / number(high - low)
            out.append(float(number(1) / ((number(1) - smooth) / number(factor) + smooth)))
    return np.asarray(out, np.float32)


def _make_rope_freqs(config: Mapping[str, Any], dims: Dims) -> Any:
    return llama3_divisors(config, dims["n_rot"])


def llama3_divisors(config: Mapping[str, Any], n_rot: int, number: type = np.float32) -> Any:
    """Llama 3.1's divisors for that many rotary dimensions; None where the configuration has none; see `_llama3`."""
    rope = config.get("rope") or {}
    if str(rope.get("rope_type", "")).lower() != "llama3":
        return None
    factors = []
    for name, default in (("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0)):
        factors.append(float(rope.get(name, default)))
        if not factors[-1] > 0:
            raise ValueError("expected a number above 0")
    factor, low, high = factors
    return _llama3(
        factor,
        low,
        high,
        int(rope.get("original_max_position_embeddings", 8192)),
        float(rope.get("rope_theta", 10000.0)),
        n_rot,
        number,
    )


def _read_rope_freqs(values: Any, config: dict[str, Any]) -> None:
    """The factor is the largest divisor; context and high factor are those that give these values, else 8192 and 4."""
    values = np.asarray(values, np.float32).reshape(-1)
    factor, base = float(values.max()), float(config.get("rope_theta", 10000.0))

    def fits(original: int, high: float) -> bool:
        return bool(np.allclose(_llama3(factor, 1.0, high, original, base, 2 * values.size), values, rtol=1e-5))

    usual = (8192, *(1 << k for k in range(5, 21)))
    likely = ((n, high) for high in _HIGH for n in (*usual, *_originals(values, factor, base, high)))
    original, high = next((pair for pair in likely if fits(*pair)), (8192, _HIGH[0]))
    config["rope_scaling"] = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


_HIGH = (4.0, 32.0)  # of Llama 3.1 and later, of Step 3.5


def _originals(values: Any, factor: float, base: float, high: float) -> list[int]:
    """The original contexts of which divisors between 1 and the factor speak, by `_llama3` turned around."""
    between = np.flatnonzero((values > 1.001) & (values < factor * 0.999))
    waves = 2 * math.pi * base ** (between / values.size)
    smooth = (1 / values[between] - 1 / factor) / (1 - 1 / factor) if factor != 1 else values[between]
    return [round(float(n)) for n in waves * (smooth * (high - 1.0) + 1.0) if 1 <= n < 1 << 31]


ROPE_FREQS = Made("rope_freqs.weight", _make_rope_freqs, _read_rope_freqs)

Finish = Callable[[dict[str, Any], Mapping[str, Any], Dims], None]
"""What `Architecture.finish` and `rebuild` are."""


def partial_rotary(names: str, default: float) -> tuple[Finish, Finish]:
    """The `finish` and `rebuild` of a family; `names` are the configuration's, "a|b", the first written back."""
    wanted = tuple(names.split("|"))

    def finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
        fraction = look_up(config, wanted)
        fraction = default if fraction is None else fraction
        if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise BadFile(f"config.json: {wanted[0]} is {fraction!r}, expected a number above 0 and at most 1")
        own["rope.dimension_count"] = np.uint32(int(fraction * dims["head_dim"]))

    def rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
        if dims["head_dim"]:
            config[wanted[0]] = dims["n_rot"] / dims["head_dim"]

    return finish, rebuild


def yarn_magnitudes(own: dict[str, Any], rope: Mapping[str, Any], unit: float) -> None:
    """YaRN: mscale_all_dim, squared, scales the attention; cos and sin are scaled by its quotient with mscale alone.

    unit: what the key's number is of mscale_all_dim: 0.1 of DeepSeek, 1 of Mistral.
    """
    multiplier = rope.get("mscale_all_dim")
    if multiplier is None:
        return
    own["rope.scaling.yarn_log_multiplier"] = np.float32(unit * multiplier)
    if multiplier and own.get("rope.scaling.type") == "yarn":
        factor = float(own["rope.scaling.factor"])
        usual = 1 + 0.1 * math.log(factor) if factor > 1 else 1.0
        wanted = float(own.pop("rope.scaling.attn_factor", 1.0)) * usual
        if unit == 1.0:  # llama.cpp divides by it once more
            wanted *= (1 + 0.1 * multiplier * math.log(max(factor, 1.0))) / usual
        if not math.isclose(wanted, 1.0, rel_tol=1e-6):
            own["rope.scaling.attn_factor"] = np.float32(wanted)


def magnitudes_back(config: dict[str, Any], own: Mapping[str, Any]) -> None:
    """The way back of `yarn_magnitudes` where the unit is DeepSeek's."""
    multiplier = own.get("rope.scaling.yarn_log_multiplier")
    if multiplier is not None and "rope_scaling" in config:
        config["rope_scaling"]["mscale_all_dim"] = round(float(multiplier) / 0.1, 6)
        if multiplier:
            config["rope_scaling"]["attention_factor"] = float(own.get("rope.scaling.attn_factor", 1.0))


def rope_sections(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """How many rotary dimensions turn by time, height and width, which are all the same for a text."""
    found = (config.get("rope") or {}).get("mrope_section")
    if found is not None:
        own["rope.dimension_sections"] = np.asarray([*found, 0, 0, 0, 0][:4], np.int32)


def sections_back(config: dict[str, Any], own: Mapping[str, Any]) -> bool:
    """The way back of `rope_sections`; whether there are any."""
    if (sections := own.get("rope.dimension_sections")) is None:
        return False
    scaling = config.setdefault("rope_scaling", {"rope_type": "default"})
    scaling["mrope_section"] = [int(n) for n in sections][:3]
    return True
