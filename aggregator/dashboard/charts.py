"""Line charts as SVG, drawn on the server: no script, readable without color, and as text by a screen reader."""

from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 34
DASHES = ("", "6 4", "2 3", "10 3 2 3")


@dataclass(frozen=True)
class Line:
    name: str
    points: tuple[tuple[int, float], ...]  # (model number, value); gaps are simply absent


def line_chart(title: str, unit: str, lines: list[Line], low: float | None = None, high: float | None = None) -> str:
    """An SVG element. x is the model's number, y the value; `low` and `high` fix the axis where it has natural ends.

    Lines without a point are left out; with nothing to draw the chart says so.
    """
    drawn = [line for line in lines if line.points]
    label = escape(f"{title}: " + "; ".join(_spoken(line) for line in drawn) if drawn else f"{title}: no figures yet")
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    if not drawn:
        return f'{head}<text x="{WIDTH / 2}" y="{HEIGHT / 2}" class="none">no figures yet</text></svg>'
    values = [value for line in drawn for _, value in line.points]
    numbers = [number for line in drawn for number, _ in line.points]
    bottom, top = _ends(values, low, high)
    scale = _Scale(min(numbers), max(numbers), bottom, top)
    body = [_grid(scale, unit)] + [_draw(scale, index, line) for index, line in enumerate(drawn)]
    return head + "".join(body) + "</svg>"


@dataclass(frozen=True)
class _Scale:
    first: int
    last: int
    bottom: float
    top: float

    def x(self, number: int) -> float:
        span = max(1, self.last - self.first)
        return LEFT + (number - self.first) / span * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        inside = min(max(value, self.bottom), self.top)
        return TOP + (self.top - inside) / (self.top - self.bottom) * (HEIGHT - TOP - BOTTOM)


def _ends(values: list[float], low: float | None, high: float | None) -> tuple[float, float]:
    bottom = min(values) if low is None else low
    top = max(values) if high is None else high
    if top - bottom < 1e-9:
        return bottom - 0.5, top + 0.5
    margin = 0.08 * (top - bottom)
    return (bottom - margin if low is None else bottom, top + margin if high is None else top)


def _grid(scale: _Scale, unit: str) -> str:
    parts = []
    for step in range(5):
        value = scale.bottom + (scale.top - scale.bottom) * step / 4
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{value:.2f}</text>')
    every = max(1, (scale.last - scale.first) // 8)
    for number in range(scale.first, scale.last + 1, every):
        parts.append(f'<text class="tick mid" x="{scale.x(number):.1f}" y="{HEIGHT - 16}">{number}</text>')
    parts.append(f'<text class="tick mid" x="{WIDTH / 2}" y="{HEIGHT - 2}">model after round · {escape(unit)}</text>')
    return "".join(parts)


def _draw(scale: _Scale, index: int, line: Line) -> str:
    places = [(scale.x(number), scale.y(value)) for number, value in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = DASHES[index % len(DASHES)]
    style = f'class="line c{index % 6}"' + (f' stroke-dasharray="{dash}"' if dash else "")
    dots = "".join(f'<circle class="dot c{index % 6}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
    return f'<polyline {style} points="{path}"/>{dots}'


def _spoken(line: Line) -> str:
    return f"{line.name} " + ", ".join(f"{value:.3f} after round {number}" for number, value in line.points)
