"""Small charts as SVG, by hand: nothing to install, nothing to fetch, sharp on paper.

Colors are custom properties with a fallback, so that a page may turn them dark and a file alone still shows. Lines
differ in dash as well as in color.
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
    """`style` numbers color and dash. `dots`: each point is marked."""

    name: str
    points: Points
    style: int = 0
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """Its words, and the least it shows; it grows to whole ticks around `low` to `high`."""

    title: str
    low: float
    high: float


def chart(
    title: str, x: Axis, y: Axis, lines: Sequence[PlotLine], size: tuple[int, int] = (340, 270), rule: bool = False
) -> str:
    """A `<g>` of the given size, to be placed in an SVG. rule: the diagonal, where chance or calibration would be."""
    scale = _Scale(_ticks(x.low, x.high), _ticks(y.low, y.high), size)
    parts = [words(_LEFT, 16, title, weight="600"), _grid(scale, x, y)]
    if rule:
        parts.append(_path([(scale.x(v), scale.y(v)) for v in (0.0, 1.0)], f'stroke="{_SOFT}" stroke-dasharray="3 3"'))
    parts += [_line(scale, line) for line in lines]
    return f"<g>{''.join(parts)}</g>"


def legend(names: Sequence[tuple[str, int]], width: int, step: int = 150) -> tuple[str, int]:
    """A `<g>` of samples and names, in rows of `width`, and its height."""
    a_row = max(1, width // step)
    parts = []
    for place, (name, style) in enumerate(names):
        x, y = (place % a_row) * step, 14 + 18 * (place // a_row)
        parts.append(_path([(x, y - 4), (x + 26, y - 4)], _stroke(style)) + words(x + 32, y, name))
    return f"<g>{''.join(parts)}</g>", 18 * -(-len(names) // a_row) + 6


def picture(
    parts: Sequence[tuple[float, float, str]], width: int, height: int, spoken: str, alone: bool = False
) -> str:
    """An `<svg>` of `<g>`s at their places. alone: a file of its own, with a background."""
    back = f'<rect width="{width}" height="{height}" fill="#ffffff"/>' if alone else ""
    placed = "".join(f'<g transform="translate({x:g} {y:g})">{part}</g>' for x, y, part in parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(spoken)}" font-family="system-ui, sans-serif" font-size="11">{back}{placed}</svg>'
    )


def words(x: float, y: float, text: str, anchor: str = "start", weight: str = "400", soft: bool = False) -> str:
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
    """Round numbers, 1, 2 or 5 times a power of ten apart, from at most `low` to at least `high`."""
    wanted = max(high - low, 1e-3) / 5
    power = 10.0 ** math.floor(math.log10(wanted))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= wanted * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [count * step for count in range(first, max(last, first + 1) + 1)]


def _grid(scale: _Scale, x: Axis, y: Axis) -> str:
    width, height = scale.size
    parts = []
    for value in scale.y_ticks:
        at = scale.y(value)
        parts.append(_path([(_LEFT, at), (width - _RIGHT, at)], f'stroke="{_RULE}"'))
        parts.append(words(_LEFT - 6, at + 4, _number(value, scale.y_ticks), "end", soft=True))
    for value in scale.x_ticks:
        parts.append(words(scale.x(value), height - 24, _number(value, scale.x_ticks), "middle", soft=True))
    parts.append(words((_LEFT + width - _RIGHT) / 2, height - 8, x.title, "middle", soft=True))
    parts.append(words(width - _RIGHT, 16, y.title, "end", soft=True))
    return "".join(parts)


def _number(value: float, ticks: list[float]) -> str:
    places = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return f"{value:.{places}f}"


def _line(scale: _Scale, line: PlotLine) -> str:
    placed = [(scale.x(x), scale.y(y)) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
    if not placed:
        return ""
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{_color(line.style)}"/>' for x, y in placed)
    return _path(placed, _stroke(line.style)) + (dots if line.dots else "")


def _path(points: Points, stroke: str) -> str:
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" {stroke}/>'


def _stroke(style: int) -> str:
    dash = DASHES[(style + style // len(COLORS)) % len(DASHES)]
    return f'stroke="{_color(style)}" stroke-width="1.8"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _color(style: int) -> str:
    place = style % len(COLORS)
    return f"var(--c{place}, {COLORS[place]})"
