"""Write the benchmark's table: Markdown, JSON and a figure."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from site_client.benchmark.arms import Bench
from site_client.benchmark.document import BenchmarkOrigin, Document
from site_client.benchmark.figure import draw
from site_client.benchmark.markdown import as_markdown
from site_client.benchmark.results import Figures, Results, figures_of, pairs_of
from site_client.benchmark.svg import FiguresMissing
from site_client.inference.intervals import DRAW_SEED, DRAWS, draw_patients
from site_client.inference.ranked import Reals


def write_table(out: Path, benches: Sequence[Bench], results: Results, origin: BenchmarkOrigin) -> str:
    """Write benchmark.md, benchmark.json and, where matplotlib is installed, benchmark.svg.

    Args:
        out: The folder.
        benches: Those of the table by fold: of the first seed and the largest number of training patients.
        results: See `Results`.
        origin: See `BenchmarkOrigin`.

    Returns:
        The Markdown text.
    """
    draws = draw_patients(len(results.sites), DRAWS, np.random.default_rng(DRAW_SEED))
    figures = {arm.name: figures_of(arm, draws) for arm in results.arms}
    against, twins = pairs_of(results.arms, draws)
    document = Document(benches, results, figures, against, twins, _curve(results, draws), origin)
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.json").write_text(json.dumps(document.as_json(), indent=1) + "\n")
    counts = f"{document.validation_slices:,} validation slices of {len(results.sites)} patients"
    try:
        (out / "benchmark.svg").write_text(draw(results.arms, figures, counts))
        figure_line = "![Accuracy and loss over epochs, and AUC](benchmark.svg)"
    except FiguresMissing as error:
        figure_line = f"No figure: {error}."
    text = as_markdown(document, figure_line)
    (out / "benchmark.md").write_text(text)
    return text


def _curve(results: Results, draws: Reals) -> dict[int, dict[str, Figures]]:
    """The figures by number of training patients; nothing if there is one number only."""
    if len(results.sizes) < 2:
        return {}
    return {size: {arm.name: figures_of(arm, draws) for arm in arms} for size, arms in results.sizes.items()}
