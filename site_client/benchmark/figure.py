"""The paper's Fig. 3: accuracy and loss over training, an arm a line."""

import math
from collections.abc import Sequence
from typing import Final

from site_client.benchmark.arms import Done
from site_client.inference.drawing import Axis, PlotLine, chart, legend, picture

_WIDTH: Final = 1020
_PANEL: Final = (340, 270)
_SAMPLE, _LETTER = 48, 7  # px of the legend: a line with its margins, a letter at the most


def draw(arms: Sequence[Done], all_negative: float | None) -> str:
    """SVG text. The dotted line on the left is what answering "no hemorrhage" everywhere scores."""
    epochs = max((epoch.number for arm in arms for epoch in arm.epochs), default=1)
    x = Axis("epoch", 1, max(2, epochs))
    panels = [
        _panel("Accuracy on validation slices", x, arms, "accuracy", all_negative),
        _panel("Training loss", x, arms, "train_loss"),
        _panel("Validation loss", x, arms, "validation_loss"),
    ]
    names = [(arm.arm, place) for place, arm in enumerate(arms)]
    names += [("all negative", len(arms))] if all_negative is not None else []
    longest = max(len(name) for name, _ in names) if names else 0
    key, height = legend(names, _WIDTH - 40, step=_SAMPLE + _LETTER * longest)
    parts = [(_PANEL[0] * place, 4, panel) for place, panel in enumerate(panels)]
    spoken = "Accuracy, training loss and validation loss over epochs, by arm; the figures are in the table"
    return picture([*parts, (46, _PANEL[1] + 10, key)], _WIDTH, _PANEL[1] + height + 14, spoken, alone=True) + "\n"


def _panel(title: str, x: Axis, arms: Sequence[Done], name: str, flat: float | None = None) -> str:
    lines = []
    for place, arm in enumerate(arms):
        points = [(epoch.number, getattr(epoch, name)) for epoch in arm.epochs if getattr(epoch, name) is not None]
        lines.append(PlotLine(arm.arm, points, place, dots=True))
    if flat is not None:
        lines.append(PlotLine("all negative", [(x.low, flat), (x.high, flat)], len(arms)))
    values = [value for line in lines for _, value in line.points if math.isfinite(value)]
    return chart(title, x, Axis("", min(values, default=0.0), max(values, default=1.0)), lines, _PANEL)
