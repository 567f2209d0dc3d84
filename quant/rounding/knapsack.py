"""Choosing a type for each tensor so that the sum of losses is least within a number of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Offer", "choose", "smallest"]

_UNITS, _MOST_UNITS = 20_000, 400_000
_EACH = 250
"""Units of the budget that a table has for each tensor: rounding sizes up to them wastes at most a 250th of it."""


@dataclass(frozen=True)
class Offer:
    """What a tensor may become.   sizes: bytes; losses: what each costs; of each at least one."""

    sizes: Sequence[int]
    losses: Sequence[float]


def smallest(offers: Sequence[Offer]) -> int:
    """The bytes of the smallest choice there is."""
    return sum(min(offer.sizes) for offer in offers)


def choose(offers: Sequence[Offer], budget: int) -> list[int] | None:
    """The number chosen of each offer, of at most `budget` bytes together; None where nothing fits.

    By dynamic programming over the budget in units, sizes rounded up, then by what fits into the rest exactly.
    """
    if smallest(offers) > budget:
        return None
    found = _by_table(offers, budget) or [int(np.argmin(offer.sizes)) for offer in offers]
    return _filled(offers, found, budget)


def _by_table(offers: Sequence[Offer], budget: int) -> list[int] | None:
    units = min(_MOST_UNITS, max(_UNITS, _EACH * len(offers)))
    unit = max(1, -(-budget // units))
    room = budget // unit
    best = np.zeros(room + 1)
    picks: list[NDArray[np.int16]] = []
    for offer in offers:
        new, pick = np.full(room + 1, np.inf), np.full(room + 1, -1, np.int16)
        for i, (size, loss) in enumerate(zip(offer.sizes, offer.losses, strict=True)):
            units_taken = -(-size // unit)
            if units_taken > room:
                continue
            with_it = np.full(room + 1, np.inf)
            with_it[units_taken:] = best[: room + 1 - units_taken] + loss
            better = with_it < new
            new[better], pick[better] = with_it[better], i
        best = new
        picks.append(pick)
    if not np.isfinite(best[room]):
        return None
    at, chosen = int(np.argmin(best)), []
    for offer, pick in zip(reversed(offers), reversed(picks), strict=True):
        i = int(pick[at])
        chosen.append(i)
        at -= -(-offer.sizes[i] // unit)
    return chosen[::-1]


def _filled(offers: Sequence[Offer], chosen: list[int], budget: int) -> list[int]:
    """Better choices for what is left of the budget, the most gain a byte first."""
    left = budget - sum(offer.sizes[i] for offer, i in zip(offers, chosen, strict=True))
    while True:
        best, gain = None, 0.0
        for n, (offer, now) in enumerate(zip(offers, chosen, strict=True)):
            for i, (size, loss) in enumerate(zip(offer.sizes, offer.losses, strict=True)):
                more, less = size - offer.sizes[now], offer.losses[now] - loss
                if more <= left and less > 0 and less / max(more, 1) > gain:
                    best, gain = (n, i, more), less / max(more, 1)
        if best is None:
            return chosen
        chosen[best[0]] = best[1]
        left -= best[2]
