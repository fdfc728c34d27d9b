"""Figures with matplotlib: one style, and SVG files that are equal byte for byte for equal data.

matplotlib is the extra `figures`. The package that hospitals install has none, so it is imported inside functions only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is too pale for a line on white.
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: Final = ("-", "--", "-.", ":")  # two lines never differ in color alone
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")


class FiguresMissing(RuntimeError):
    """matplotlib is not installed."""


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of all figures.

    Raises:
        FiguresMissing: Matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise FiguresMissing("expected matplotlib to draw figures, got none; install 'hemofed[figures]'") from error
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",  # text stays text: searchable, and read by screen readers
            "svg.hashsalt": "hemofed",  # otherwise element ids are random
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.grid": True,
            "grid.color": "#e2e2e2",
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.constrained_layout.use": True,
            "legend.frameon": False,
        }
    ):
        yield


def as_svg(figure: "Figure", description: str) -> str:
    """Return the figure as SVG text.

    Args:
        figure: Drawn inside `style`.
        description: Of the content, for readers who do not see it.
    """
    text = StringIO()
    # Without these entries the file would hold the date and matplotlib's version.
    metadata = {"Date": None, "Creator": "hemofed", "Description": description}
    figure.savefig(text, format="svg", metadata=metadata)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def line_style(index: int) -> dict[str, object]:
    """Return color, dash and marker of the line with this number, as arguments of `Axes.plot`."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.5,
    }
