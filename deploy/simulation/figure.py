"""The figure of a report: curves over passes on the left, intervals by measure and arm on the right. Plain SVG."""

import math
from collections.abc import Sequence
from typing import Final

from deploy.simulation.summary import ARMS, Summary

_COLORS: Final = {"local": "#b35900", "federated": "#1f5fa8", "central": "#3c7a3c"}
_WIDTH, _HEIGHT = 860, 330
_TOP, _BOTTOM = 30, 280
_LEFT_PANEL, _RIGHT_PANEL = (60, 440), (520, 840)
_MEASURES: Final = ("sites", "worst", "unseen")


def draw(summary: Summary) -> str:
    """SVG text. Both panels share one scale of AUC, chosen to hold everything drawn."""
    values = [value for curve in summary.curves.values() for value in curve if math.isfinite(value)]
    for row in summary.auc.values():
        values += [edge for figure in row.values() for edge in (figure.low, figure.high) if math.isfinite(edge)]
    low, high = math.floor(min(values) * 20) / 20, math.ceil(max(values) * 20) / 20

    def y(value: float) -> float:
        return _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)

    ticks = [low + 0.05 * step for step in range(round((high - low) / 0.05) + 1)]
    scale = [(value, y(value)) for value in ticks]
    parts = [_axes(_LEFT_PANEL, scale, "AUC of any on validation slices, by passes over the data")]
    parts += [_axes(_RIGHT_PANEL, scale, "AUC of any on test slices, 95 % interval")]
    parts += [_curve(arm, [(i, y(v)) for i, v in enumerate(summary.curves[arm])]) for arm in ARMS]
    for column, measure in enumerate(_MEASURES):
        middle = _RIGHT_PANEL[0] + (column + 0.5) * (_RIGHT_PANEL[1] - _RIGHT_PANEL[0]) / len(_MEASURES)
        parts.append(_words(middle, _BOTTOM + 18, measure, "middle"))
        for place, arm in enumerate(ARMS):
            figure = summary.auc[measure][arm]
            parts.append(_interval(middle + 22 * (place - 1), y(figure.value), y(figure.low), y(figure.high), arm))
    for place, arm in enumerate(ARMS):
        parts.append(f'<circle cx="{70 + 110 * place}" cy="{_HEIGHT - 12}" r="4" fill="{_COLORS[arm]}"/>')
        parts.append(_words(80 + 110 * place, _HEIGHT - 8, arm))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
    background = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>'
    return "\n".join([f'{head} font-size="12">', background, *parts, "</svg>"]) + "\n"


def _axes(panel: tuple[int, int], scale: Sequence[tuple[float, float]], title: str) -> str:
    left, right = panel
    lines = [_words((left + right) / 2, _TOP - 12, title, "middle")]
    for value, height in scale:
        lines.append(f'<path d="M{left} {height:.1f}H{right}" stroke="#dddddd"/>')
        lines.append(_words(left - 6, height + 4, f"{value:.2f}", "end"))
    return "\n".join(lines)


def _curve(arm: str, points: Sequence[tuple[int, float]]) -> str:
    left, right = _LEFT_PANEL
    step = (right - left) / max(1, len(points) - 1)
    known = [(left + index * step, height) for index, height in points if math.isfinite(height)]
    path = " ".join(f"{x:.1f},{height:.1f}" for x, height in known)
    end = "" if arm != ARMS[0] else "\n" + _words(right, _BOTTOM + 18, str(len(points) - 1), "end")
    return f'<polyline points="{path}" fill="none" stroke="{_COLORS[arm]}" stroke-width="2"/>{end}'


def _interval(x: float, value: float, low: float, high: float, arm: str) -> str:
    color = _COLORS[arm]
    return (
        f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{color}" stroke-width="2"/>'
        f'<circle cx="{x:.1f}" cy="{value:.1f}" r="4" fill="{color}"/>'
    )


def _words(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
