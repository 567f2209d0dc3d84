"""Layers that servers join into one when they load a folder: these must be stored alike.

vLLM reads the query, key and value projections into one matrix, and the gate and up projections: one scheme for all of
them, and, of NVFP4, one global scale, the largest.  Source: vLLM's loader (`find_matched_target`, the NVFP4 schemes).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

__all__ = ["beside", "unequal"]

_JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


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
