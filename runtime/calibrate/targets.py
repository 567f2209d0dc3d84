"""What a rounded layer should give: the float layer's results, as far as the inputs that it will get can say them.

Layers before are rounded, so a matrix W gets inputs x̂ in place of x.  W + s W E[(x - x̂) x̂'] (E[x̂ x̂'] + r)⁻¹ is nearer
to W x than W is.  On few tokens that is partly made up: strength s and ridge r are those that are best on the batches
held out, which may be none of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmconv.runtime.calibrate.inputs import clipped
from llmconv.runtime.calibrate.layered import Between
from llmconv.runtime.calibrate.matrices import ToRound
from llmconv.runtime.calibrate.moments import add_moments, mirrored
from llmconv.runtime.calibrate.shared import Sum, turns
from llmconv.runtime.calibrate.units import Unit
from llmconv.runtime.linear import Linear

__all__ = ["Shift", "aimed", "shifts_of", "target"]

Floats = NDArray[np.float32]

_RIDGES = (0.01, 0.1, 1.0)
"""Tried, as shares of the mean diagonal."""
_HELD_OUT = 4
"""One batch of so many is held out; with one batch alone there is nothing to choose on."""
_MOST_COLUMNS = 4096
"""Four sums of so many squared are kept."""


class Shift:
    """Sums over tokens, those to learn of and those held out.   h: of x̂ x̂'.   off: of (x - x̂) x̂'."""

    def __init__(self, columns: int):
        self.h, self.off = ([Sum(torch.zeros(columns, columns), True) for _ in range(2)] for _ in range(2))

    def add(self, exact: Tensor, given: Tensor, weights: Tensor | None, held_out: bool) -> None:
        add_moments(self.h[held_out].here, given, weights)
        left = exact - given if weights is None else (exact - given) * weights[:, None]
        self.off[held_out].here.add_((left.t() @ given).cpu())

    def ran(self, some: range) -> None:
        """After batches that ran side by side."""
        for total in (*self.h, *self.off):
            total.add(some)

    def whole(self) -> None:
        for total in self.h:
            mirrored(total.whole())
        for total in self.off:
            total.whole()


def shifts_of(
    unit: Unit, names: Collection[str], weights: Mapping[str, Tensor], exact: Between, given: Between
) -> dict[str, Shift]:
    """Of the linear layers among `names`; experts', to which other tokens may go, are left out.

    exact, given: the states that enter the unit in the float model, and after rounded layers.   weights: of tokens.
    """
    if len(given) < 2:
        return {}
    modules = {name: unit.modules[name] for name in sorted(names)}
    widths = {n: m.shape[-1] for n, m in modules.items() if isinstance(m, Linear) and m.shape[-1] <= _MOST_COLUMNS}
    found = {name: Shift(width) for name, width in widths.items()}
    counts = {name: clipped(weights.get(name)) for name in found}

    def run(i: int) -> None:
        first, tokens = given.before(i)
        before, now = (_given(unit, found, *states[i]) for states in (exact, given))
        for name, x in now.items():
            count = counts[name]
            at = 0 if count is None else len(count) * first // tokens
            own = None if count is None else count[at : at + len(x)].to(x.device)
            found[name].add(before[name], x, own, i % _HELD_OUT == 1)

    for some in turns(len(given), run):
        for shift in found.values():
            shift.ran(some)
    for shift in found.values():
        shift.whole()
    return found


def _given(unit: Unit, names: Collection[str], states: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """What a batch gives those layers, (tokens, columns) each."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str, x: Tensor, y: Tensor | None, part: int | None) -> None:
        if name in names and y is not None:
            found.setdefault(name, []).append(x.detach().reshape(-1, x.shape[-1]).float())

    unit.watched(states, tokens, keep)
    return {name: torch.cat(parts) for name, parts in found.items()}


def aimed(tensor: ToRound, shift: Shift) -> ToRound:
    """The tensor, of one matrix, with its target in the place of its weights."""
    whole = functools.cache(lambda: target(tensor.numbers()[0], shift))
    return dataclasses.replace(tensor, read=lambda _, rows: whole()[rows])


def target(weights: Floats, shift: Shift) -> Floats:
    """Weights (rows, columns) -> what to round in their place; themselves where no shift helps on what is held out."""
    w = torch.from_numpy(weights)
    _, best, ridge = max((_gain(w, shift, ridge) for ridge in _RIDGES), key=lambda found: found[0])
    if not best > 0:
        return weights
    h, off = (parts[0].here + parts[1].here for parts in (shift.h, shift.off))
    return np.ascontiguousarray((w + best * _moved(w, h, off, ridge)).numpy())


def _moved(w: Tensor, h: Tensor, off: Tensor, ridge: float) -> Tensor:
    """W E[(x - x̂) x̂'] (E[x̂ x̂'] + r)⁻¹."""
    held = h.double()
    held.diagonal().add_(ridge * held.diagonal().mean())
    moved: Tensor = torch.cholesky_solve((w @ off).t().double(), torch.linalg.cholesky(held)).t().float()
    return moved


def _gain(w: Tensor, shift: Shift, ridge: float) -> tuple[float, float, float]:
    """By how much the best strength from none to all lowers the error on what is held out; that strength; the ridge."""
    h, off = shift.h[0].here, shift.off[0].here
    if not bool(h.diagonal().mean() > 0):
        return 0.0, 0.0, ridge
    moved = _moved(w, h, off, ridge)
    slope = float((moved * (w @ shift.off[1].here)).sum(dtype=torch.float64))
    curve = float((moved * (moved @ shift.h[1].here)).sum(dtype=torch.float64))
    best = min(max(slope / curve, 0.0), 1.0) if curve > 0 else 0.0
    return 2 * best * slope - best * best * curve, best, ridge
