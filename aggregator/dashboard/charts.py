"""Line charts as SVG, drawn on the server: no script, readable without color, and as text by a screen reader."""

import math
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 54, 16, 30, 44
DASHES = ("", "7 4", "2 3", "10 3 2 3", "4 2", "12 4")
_NUMBERS_MAX = 9  # labels under the x axis
DOTS_MAX = 24  # of a line; each has a tooltip
DESCRIBED_MAX = 12  # points of a line that are read out


class Point(NamedTuple):
    """One figure of one model."""

    number: int  # the round that made the model; 0 is the initial one
    value: float
    sites: int  # over how many sites it was measured
    interval: tuple[float, float] | None = None  # around the value


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    name: str
    points: tuple[Point, ...]  # a model without a figure has no point


def line_chart(title: str, unit: str, lines: list[Curve], low: float | None = None, high: float | None = None) -> str:
    """Draw an SVG element. x is the model's number, y the value.

    Lines without a point are left out; with nothing to draw the chart says so. Points have their figure and
    their cohort as a tooltip, of long lines a part of them, evenly spread, with the first and the newest.

    Args:
        title: Read out by screen readers.
        unit: Above the y axis.
        lines: Dash and color of a line follow from its place here.
        low: The y axis begins at this value or below.
        high: The y axis ends at this value or above.
    """
    drawn = [(index, line) for index, line in enumerate(lines) if line.points]
    described = "; ".join(
        f"{line.name} " + ", ".join(map(_describe, _spread(line.points, DESCRIBED_MAX))) for _, line in drawn
    )
    label = escape(f"{title}: {described or 'no figures yet'}")
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    if not drawn:
        return f'{head}<text x="{WIDTH / 2}" y="{HEIGHT / 2}" class="none">no figures yet</text></svg>'
    values = [end for _, line in drawn for point in line.points for end in (point.value, *(point.interval or ()))]
    numbers = [point.number for _, line in drawn for point in line.points]
    ends = [end for end in (low, high) if end is not None]
    scale = _Scale(min(numbers), max(numbers), _ticks(min(values + ends), max(values + ends)))
    return head + _grid(scale, unit) + "".join(_draw(scale, index, line) for index, line in drawn) + "</svg>"


def _spread(points: tuple[Point, ...], count: int) -> tuple[Point, ...]:
    """Return at most `count` of the points, evenly spread, the first and the last among them."""
    if len(points) <= count:
        return points
    return tuple(points[round(place * (len(points) - 1) / (count - 1))] for place in range(count))


@dataclass(frozen=True)
class _Scale:
    first: int
    last: int
    ticks: list[float]

    def x(self, number: int) -> float:
        if self.first == self.last:
            return (LEFT + WIDTH - RIGHT) / 2
        return LEFT + (number - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        bottom, top = self.ticks[0], self.ticks[-1]
        return TOP + (top - value) / (top - bottom) * (HEIGHT - TOP - BOTTOM)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from at most `low` to at least `high`."""
    wanted = max(high - low, 1e-3) / 5  # a constant line has a height, too
    power = 10.0 ** math.floor(math.log10(wanted))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= wanted * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [count * step for count in range(first, max(last, first + 1) + 1)]


def _grid(scale: _Scale, unit: str) -> str:
    # As many decimals as it takes to tell neighbouring ticks apart.
    places = max(1, -math.floor(math.log10(scale.ticks[1] - scale.ticks[0]) + 1e-9))
    parts = [f'<text class="tick" x="6" y="16">{escape(unit)}</text>']
    for value in scale.ticks:
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{y + 4:.1f}">{value:.{places}f}</text>')
    for number in range(scale.first, scale.last + 1, math.ceil((scale.last - scale.first + 1) / _NUMBERS_MAX)):
        parts.append(f'<text class="tick mid" x="{scale.x(number):.1f}" y="{HEIGHT - 26}">{number}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick mid" x="{middle}" y="{HEIGHT - 6}">model after round (0: initial model)</text>')
    return "".join(parts)


def _draw(scale: _Scale, index: int, line: Curve) -> str:
    path = " ".join(f"{scale.x(point.number):.1f},{scale.y(point.value):.1f}" for point in line.points)
    dash = DASHES[index % len(DASHES)]
    style = f'class="line c{index % 6}"' + (f' stroke-dasharray="{dash}"' if dash else "")
    dots = "".join(
        f'<circle class="dot c{index % 6}" cx="{scale.x(point.number):.1f}" cy="{scale.y(point.value):.1f}" r="3.5">'
        f"<title>{escape(line.name)} {_describe(point)}</title></circle>"
        for point in _spread(line.points, DOTS_MAX)
    )
    whiskers = "".join(
        f'<line class="line c{index % 6}" x1="{scale.x(point.number):.1f}" x2="{scale.x(point.number):.1f}" '
        f'y1="{scale.y(point.interval[0]):.1f}" y2="{scale.y(point.interval[1]):.1f}"/>'
        for point in _spread(line.points, DOTS_MAX)
        if point.interval is not None
    )
    return f'<polyline {style} points="{path}"/>{whiskers}{dots}'


def _describe(point: Point) -> str:
    interval = "" if point.interval is None else " ({:.3f} to {:.3f})".format(*point.interval)
    return f"{point.value:.3f}{interval} after round {point.number} ({point.sites} sites)"
