"""The small SVG charts of the evaluation page.

These are drawn by hand although `benchmark` and `simulate` use matplotlib, for two reasons. A hospital runs `evaluate`,
and its package has no matplotlib. And the colors are CSS custom properties, so the page can switch them in the dark;
matplotlib writes fixed colors. Lines differ in dash as well as in color.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

COLORS: Final = ("#0b5cad", "#b3541e", "#2f7039", "#7b3f98", "#806600", "#c2185b")
DASHES: Final = ("", "7 4", "2 3", "10 3 2 3", "4 2", "12 4")
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 28, 40
_INK, _SOFT, _RULE = "var(--ink, #1b2430)", "var(--soft, #56616f)", "var(--line, #d7dde4)"

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class PlotLine:
    """A line of a chart.

    Attributes:
        name: Not drawn; see `legend`.
        points: Pairs (x, y). Points that are not finite are left out.
        style: Number of its color and dash.
        dots: Whether each point is marked.
    """

    name: str
    points: Points
    style: int = 0
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis with its title. It grows from `low`..`high` to whole ticks."""

    title: str
    low: float
    high: float


def chart(
    title: str, x: Axis, y: Axis, lines: Sequence[PlotLine], size: tuple[int, int] = (340, 270), diagonal: bool = False
) -> str:
    """Draw a chart.

    Args:
        title: Above the chart.
        x: The horizontal axis.
        y: The vertical axis.
        lines: In the order of drawing.
        size: Width and height in px.
        diagonal: Whether to draw the diagonal, which is the line of chance or of perfect calibration.

    Returns:
        A `<g>` element for `picture`.
    """
    scale = _Scale(_ticks(x.low, x.high), _ticks(y.low, y.high), size)
    elements = [words(_LEFT, 16, title, weight="600"), _grid(scale, x, y)]
    if diagonal:
        corners = [(scale.x(value), scale.y(value)) for value in (0.0, 1.0)]
        elements.append(_path(corners, f'stroke="{_SOFT}" stroke-dasharray="3 3"'))
    elements += [_line(scale, line) for line in lines]
    return f"<g>{''.join(elements)}</g>"


def legend(names: Sequence[tuple[str, int]], width: int, step: int = 150) -> tuple[str, int]:
    """Draw a legend in rows of `width` px.

    Args:
        names: Pairs of name and style.
        width: Of a row, in px.
        step: Distance of two names, in px.

    Returns:
        A `<g>` element for `picture`, and its height in px.
    """
    per_row = max(1, width // step)
    elements = []
    for index, (name, style) in enumerate(names):
        x, y = (index % per_row) * step, 14 + 18 * (index // per_row)
        elements.append(_path([(x, y - 4), (x + 26, y - 4)], _stroke(style)) + words(x + 32, y, name))
    return f"<g>{''.join(elements)}</g>", 18 * -(-len(names) // per_row) + 6


def picture(groups: Sequence[tuple[float, float, str]], width: int, height: int, description: str) -> str:
    """Place `<g>` elements at (x, y) in an `<svg>`. Screen readers read the description."""
    placed = "".join(f'<g transform="translate({x:g} {y:g})">{group}</g>' for x, y, group in groups)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(description)}" font-family="system-ui, sans-serif" font-size="11">{placed}</svg>'
    )


def words(x: float, y: float, text: str, anchor: str = "start", weight: str = "400", soft: bool = False) -> str:
    """Draw text at its anchor; `soft` takes the color of secondary text."""
    ink = _SOFT if soft else _INK
    style = f'text-anchor="{anchor}" font-weight="{weight}" fill="{ink}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


@dataclass(frozen=True)
class _Scale:
    x_ticks: list[float]
    y_ticks: list[float]
    size: tuple[int, int]

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return _LEFT + (value - low) / (high - low) * (self.size[0] - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return _TOP + (high - value) / (high - low) * (self.size[1] - _TOP - _BOTTOM)


def _ticks(low: float, high: float) -> list[float]:
    """Ticks at multiples of 1, 2 or 5 times a power of ten, from at most `low` to at least `high`."""
    wanted = max(high - low, 1e-3) / 5
    power = 10.0 ** math.floor(math.log10(wanted))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= wanted * (1 - 1e-9))
    # 1e-9 is room for rounding: .3 / .1 is less than 3 in float64.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [count * step for count in range(first, max(last, first + 1) + 1)]


def _grid(scale: _Scale, x: Axis, y: Axis) -> str:
    width, height = scale.size
    elements = []
    for value in scale.y_ticks:
        at = scale.y(value)
        elements.append(_path([(_LEFT, at), (width - _RIGHT, at)], f'stroke="{_RULE}"'))
        elements.append(words(_LEFT - 6, at + 4, _number(value, scale.y_ticks), "end", soft=True))
    for value in scale.x_ticks:
        elements.append(words(scale.x(value), height - 24, _number(value, scale.x_ticks), "middle", soft=True))
    elements.append(words((_LEFT + width - _RIGHT) / 2, height - 8, x.title, "middle", soft=True))
    elements.append(words(width - _RIGHT, 16, y.title, "end", soft=True))
    return "".join(elements)


def _number(value: float, ticks: list[float]) -> str:
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return f"{value:.{decimals}f}"


def _line(scale: _Scale, line: PlotLine) -> str:
    placed = [(scale.x(x), scale.y(y)) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
    if not placed:
        return ""
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{_color(line.style)}"/>' for x, y in placed)
    return _path(placed, _stroke(line.style)) + (dots if line.dots else "")


def _path(points: Points, stroke: str) -> str:
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" {stroke}/>'


def _stroke(style: int) -> str:
    # Dashes are shifted by one at each turn of the colors, so 36 styles have 36 pairs.
    dash = DASHES[(style + style // len(COLORS)) % len(DASHES)]
    return f'stroke="{_color(style)}" stroke-width="1.8"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _color(style: int) -> str:
    index = style % len(COLORS)
    return f"var(--c{index}, {COLORS[index]})"
