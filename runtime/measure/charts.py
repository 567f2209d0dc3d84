"""Charts as SVG, small and without a library: points with error bars and labels that keep out of each other's way.

Colours follow the reader's: light or dark, in a page or as a picture of its own.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["Panel", "Point", "svg"]

WIDTH, HEIGHT = 560, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 18, 40, 48
_LETTER = 6.3
"""Width of a label's letter, more or less."""
_STYLE = """
.chart{font:12px system-ui,sans-serif;--ink:#222;--faint:#8885;--one:#0b62c4;--two:#c2350f;--back:#fff}
@media(prefers-color-scheme:dark){.chart{--ink:#e6e6e6;--faint:#9996;--one:#6cb2ff;--two:#ff8f66;--back:#16181b}}
.chart text{fill:var(--ink)}.chart .title{font-size:14px;font-weight:600}.chart .back{fill:var(--back)}
.chart .grid{stroke:var(--faint);stroke-width:1}.chart .level{stroke:var(--ink);stroke-dasharray:5 4}
.chart .bar,.chart .line{stroke:var(--one);fill:none;stroke-width:1.5}.chart .dot{fill:var(--one)}
.chart .marked .bar,.chart .edge,.chart .line.other{stroke:var(--two)}.chart .marked .dot{fill:var(--two)}
.chart .edge{fill:none;stroke-width:1.5;opacity:.6}.chart .lead{stroke:var(--faint)}
"""


@dataclass(frozen=True)
class Point:
    """x, y: where;  error: of y, one standard error;  label: beside it;  marked: in the other colour."""

    x: float
    y: float
    error: float = 0.0
    label: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    points: scattered.  edge: through these goes a line.  level: a horizontal line, and what it is.
    lines: curves, by name.   log: whether y is logarithmic.
    """

    title: str
    x: str
    y: str
    points: Sequence[Point] = ()
    edge: Sequence[Point] = ()
    level: tuple[float, str] | None = None
    lines: dict[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    log: bool = False


def svg(panels: Sequence[Panel], title: str) -> str:
    """The panels side by side, as one SVG."""
    width = WIDTH * len(panels)
    drawn = "".join(f'<g transform="translate({WIDTH * i} 0)">{_Axes(p).draw()}</g>' for i, p in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}"><style>{_STYLE}</style>'
        f'<rect class="back" width="{width}" height="{HEIGHT}"/>{drawn}</svg>\n'
    )


class _Axes:
    def __init__(self, panel: Panel):
        self.panel = panel
        curves = [xy for line in panel.lines.values() for xy in line]
        xs = [p.x for p in panel.points] + [x for x, _ in curves]
        ys = [y for p in panel.points for y in (p.y - p.error, p.y + p.error)] + [y for _, y in curves]
        if panel.level is not None:
            ys.append(panel.level[0])
        self.least = min((y for y in (*(p.y for p in panel.points), *(y for _, y in curves)) if y > 0), default=1e-9)
        self.x0, self.x1 = _room([x for x in xs if math.isfinite(x)])
        self.y0, self.y1 = _room([self.scaled(y) for y in ys if math.isfinite(y)])

    def scaled(self, y: float) -> float:
        """A y as it is laid out; on a logarithmic axis what is not above 0 lies at its foot."""
        return math.log10(max(y, self.least / 2)) if self.panel.log else y

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x0) / (self.x1 - self.x0) * (WIDTH - _LEFT - _RIGHT)
        up = (min(max(self.scaled(y), self.y0), self.y1) - self.y0) / (self.y1 - self.y0) * (HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + across, 1), round(HEIGHT - _BOTTOM - up, 1)

    def draw(self) -> str:
        return "".join((*self._frame(), *self._curves(), *self._points()))

    def _frame(self) -> Iterator[str]:
        panel, right, foot = self.panel, WIDTH - _RIGHT, HEIGHT - _BOTTOM
        yield f'<text class="title" x="{_LEFT}" y="22">{html.escape(panel.title)}</text>'
        for value in _ticks(self.x0, self.x1):
            x = self.at(value, 10**self.y0 if panel.log else self.y0)[0]
            yield f'<path class="grid" d="M{x} {_TOP}V{foot}"/>'
            yield f'<text x="{x}" y="{foot + 17}" text-anchor="middle">{_said(value)}</text>'
        for value in _ticks(self.y0, self.y1, whole=panel.log):
            real = 10**value if panel.log else value
            y = self.at(self.x0, real)[1]
            yield f'<path class="grid" d="M{_LEFT} {y}H{right}"/>'
            yield f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{_said(real)}</text>'
        yield f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{html.escape(panel.x)}</text>'
        yield f'<text transform="translate(14 {(_TOP + foot) / 2}) rotate(-90)" text-anchor="middle">'
        yield f"{html.escape(panel.y)}</text>"
        if panel.level is not None:
            y = self.at(self.x0, panel.level[0])[1]
            yield f'<path class="level" d="M{_LEFT} {y}H{right}"/>'
            yield f'<text x="{_LEFT + 6}" y="{y - 5}">{html.escape(panel.level[1])}</text>'

    def _curves(self) -> Iterator[str]:
        if self.panel.edge:
            yield f'<path class="edge" d="{self._through((p.x, p.y) for p in self.panel.edge)}"/>'
        for i, (name, line) in enumerate(self.panel.lines.items()):
            kind = "line other" if i else "line"
            yield f'<path class="{kind}" d="{self._through(line)}"/>'
            if len(self.panel.lines) > 1:
                y = _TOP + 16 * (i + 1)
                yield f'<path class="{kind}" d="M{WIDTH - 150} {y - 4}h20"/>'
                yield f'<text x="{WIDTH - 124}" y="{y}">{html.escape(name)}</text>'

    def _through(self, points: Iterable[tuple[float, float]]) -> str:
        return "M" + " ".join(f"{x:g},{y:g}" for x, y in (self.at(*xy) for xy in points))

    def _points(self) -> Iterator[str]:
        places = [self.at(p.x, p.y) for p in self.panel.points]
        taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
        if self.panel.level is not None:
            x, y = self.at(self.x0, self.panel.level[0])
            taken.append((x, y - 18, x + 12 + _LETTER * len(self.panel.level[1]), y))
        for point, (x, y) in zip(self.panel.points, places, strict=True):
            yield f'<g class="{"marked" if point.marked else "other"}">'
            if point.error > 0:
                high, low = self.at(point.x, point.y + point.error)[1], self.at(point.x, point.y - point.error)[1]
                yield f'<path class="bar" d="M{x} {low}V{high}M{x - 4} {high}h8M{x - 4} {low}h8"/>'
            yield f'<circle class="dot" cx="{x}" cy="{y}" r="4"/>'
            if point.label:
                box = _free(x, y, point.label, taken)
                taken.append(box)
                if math.hypot(box[0] - x, box[3] - y) > 24:
                    yield f'<path class="lead" d="M{x} {y}L{box[0]:.1f} {box[3] - 5:.1f}"/>'
                yield f'<text x="{box[0]:.1f}" y="{box[3] - 4:.1f}">{html.escape(point.label)}</text>'
            yield "</g>"


Box = tuple[float, float, float, float]


def _free(x: float, y: float, label: str, taken: Sequence[Box]) -> Box:
    """The nearest place for a label beside a point in which nothing is; left, top, right, bottom."""
    wide, high = _LETTER * len(label) + 4, 15.0
    sides = [(7, -7), (7, 20), (-7 - wide, -7), (-7 - wide, 20), (-wide / 2, -9), (-wide / 2, 24)]
    best, least = None, math.inf
    for step in range(12):
        for dx, dy in sides:
            box = (
                x + dx,
                y + dy - high + step * math.copysign(13, dy),
                x + dx + wide,
                y + dy + step * math.copysign(13, dy),
            )
            if box[0] < _LEFT or box[2] > WIDTH or box[1] < _TOP - 12 or box[3] > HEIGHT - _BOTTOM:
                continue
            shared = sum(_shared(box, other) for other in taken)
            if shared == 0:
                return box
            if shared < least:
                best, least = box, shared
    return best or (x + 7, y - 7 - high, x + 7 + wide, y - 7)


def _shared(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _room(values: Sequence[float]) -> tuple[float, float]:
    """A range with the values and some air in it."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    air = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    return low - air, high + air


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """About six round numbers in a range."""
    step = 10.0 ** math.floor(math.log10((high - low) / 5))
    step *= next((m for m in (1, 2, 5) if (high - low) / (step * m) <= 7), 10)
    if whole:
        step = max(1.0, math.ceil(step))
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _said(value: float) -> str:
    text = f"{value:.4g}"
    return text if abs(value) < 1e-12 or 1e-4 <= abs(value) < 1e5 else f"{value:.0e}".replace("e-0", "e-")
