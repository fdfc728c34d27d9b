"""The figure of a report: AUC over passes on the left, AUC with intervals by population and arm on the right."""

import math

from deploy.simulation.summary import ARMS, Summary
from site_client.benchmark.svg import as_svg, line_style, style

_POPULATIONS = {"sites": "mean of\nfive sites", "worst": "worst\nsite", "unseen": "unseen\nsite U"}
_SPREAD = 0.22  # distance of two arms, in units of the distance of two populations


def draw(summary: Summary) -> str:
    """Draw the figure of a simulation.

    Returns:
        SVG text.

    Raises:
        FiguresMissing: Matplotlib is not installed.
    """
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 4.2))
        curves, intervals = figure.subplots(1, 2, sharey=True)
        passes = max(len(curve) for curve in summary.curves.values()) - 1
        for index, arm in enumerate(ARMS):
            look = line_style(index)
            curve = summary.curves[arm]
            # The federated curve has one point a round, the others one a pass; all cover the same passes.
            step = passes / max(1, len(curve) - 1)
            known = [(number * step, value) for number, value in enumerate(curve) if math.isfinite(value)]
            every = max(1, len(known) // 12)
            curves.plot([x for x, _ in known], [y for _, y in known], label=arm, markevery=every, **look)
            for column, population in enumerate(_POPULATIONS):
                auc = summary.auc[population][arm]
                x = column + _SPREAD * (index - 1)
                if auc.low is not None and auc.high is not None:
                    intervals.plot([x, x], [auc.low, auc.high], color=look["color"], linewidth=1.5)
                intervals.plot(x, auc.value, marker=look["marker"], color=look["color"])
        curves.set_title("Validation slices, mean over seeds")
        curves.set_xlabel("passes over the training studies")
        curves.set_ylabel("AUC of any")
        patients = sum(summary.test_patients.values())
        intervals.set_title(f"Test slices of {patients} patients, 95 % interval")
        intervals.set_xticks(range(len(_POPULATIONS)), list(_POPULATIONS.values()))
        intervals.grid(axis="x", visible=False)
        figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=len(ARMS))
        return as_svg(figure, "AUC of any over training, and on test patients with intervals, by arm")
