"""What servers ask of a folder beyond its layers' own numbers: vLLM's loader joins layers, and cuts them.

The query, key and value projections become one matrix, the gate and up projections too: one scheme for all of them,
and, of NVFP4, one global scale, the largest.  The experts of a layer become one stack with one scheme.  Over several
GPUs, inputs of output and down projections are cut into as many parts, which must hold whole groups.
Source: vLLM's loader (`find_matched_target`, `should_ignore_layer`, `validate_fp8_block_shape`, the schemes).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping

__all__ = ["beside", "ignored", "ragged", "uncut", "unequal", "unequal_experts"]

_JOINED = (
    ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"), ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"), ("in_proj_b", "in_proj_a"),
)  # fmt: skip
_EXPERT = re.compile(r"\.experts\.\d+\..*")
_CUT = ("o_proj", "out_proj", "down_proj", "w2")
"""Layers whose inputs are cut over GPUs; of the others their outputs are."""


def beside(name: str) -> tuple[str, ...]:
    """The weights that are joined with one, itself among them."""
    module, dot, own = name.removesuffix(".weight").rpartition(".")
    together = next((names for names in _JOINED if own in names), (own,))
    return tuple(f"{module}{dot}{each}.weight" for each in together)


def unequal(schemes: Mapping[str, Hashable], what: str) -> list[str]:
    """A note where joined weights differ.   schemes: what must be alike, by weight.   what: that, and what follows."""
    sets = {beside(name) for name in schemes}
    differing = [names for names in sets if len({schemes[n] for n in names if n in schemes}) > 1]
    if not differing:
        return []
    return [f"{len(differing)} sets of layers that vLLM joins (such as q_proj, k_proj and v_proj) differ in {what}"]


def unequal_experts(schemes: Mapping[str, Hashable], what: str) -> list[str]:
    """A note where experts of a layer differ, which are loaded as one stack."""
    sets: dict[str, set[Hashable]] = {}
    for name, scheme in schemes.items():
        if _EXPERT.search(name):
            sets.setdefault(_EXPERT.sub("", name), set()).add(scheme)
    differing = sum(len(found) > 1 for found in sets.values())
    return [f"the experts of {differing} layers, which vLLM loads as one stack, differ in {what}"] if differing else []


def ignored(names: Iterable[str], layers: Iterable[str]) -> list[str]:
    """What `ignore` must say of experts that stay in floats as stacks: vLLM has one module for all of a layer.

    names: of the folder's stacks.   layers: of the weights that are written otherwise.
    """
    stacked = any(re.search(r"\.experts\.\w+$", name) for name in names)
    return [r"re:.*\.experts(\..*)?$"] if stacked and not any(".experts." in name for name in layers) else []


def ragged(rows: Mapping[str, int], side: int) -> list[str]:
    """A note where blocks of so many rows would reach from one joined layer into the next."""
    odd = {beside(name) for name, n in rows.items() if n % side and name != beside(name)[-1]}
    if not odd:
        return []
    return [f"{len(odd)} sets of layers that vLLM joins have rows that are no multiples of {side}: it refuses them"]


def uncut(groups: Mapping[str, tuple[int, int]]) -> list[str]:
    """A note where layers can't be cut for two GPUs.   groups: columns of a weight, and of its groups."""
    odd = [
        name
        for name, (k, group) in groups.items()
        if name.removesuffix(".weight").rpartition(".")[2] in _CUT and (k % 2 or k // 2 % group)
    ]
    if not odd:
        return []
    k, group = groups[odd[0]]
    return [f"{len(odd)} layers of {k} columns in groups of {group} hold no whole groups in each half: one GPU in vLLM"]
