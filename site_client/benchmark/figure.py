"""The paper's Fig. 3 (accuracy and loss over training, one line an arm), and each arm's AUC with its interval."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from site_client.benchmark.arms import FinishedArm
from site_client.benchmark.svg import COLORS, as_svg, line_style, style
from site_client.inference.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(arms: Sequence[FinishedArm], aucs: Sequence[Estimate], all_negative: float | None, counts: str) -> str:
    """Draw the benchmark's figure.

    Args:
        arms: The arms.
        aucs: AUC of `any` of each arm.
        all_negative: Accuracy of the answer "no hemorrhage" everywhere; None if unknown.
        counts: Numbers of validation slices and patients, for the title.

    Returns:
        SVG text.

    Raises:
        FiguresMissing: matplotlib is not installed.
    """
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 7.2))
        (accuracy, training), (validation, auc) = figure.subplots(2, 2)
        _curves(accuracy, arms, "accuracy", "Accuracy at threshold .5", "share of correct labels")
        if all_negative is not None:
            accuracy.axhline(all_negative, color="#555555", linestyle=(0, (1, 1)), label='"no hemorrhage" everywhere')
        _curves(training, arms, "train_loss", "Training loss (augmented, half of the studies positive)", "loss, nats")
        _curves(validation, arms, "validation_loss", "Validation loss", "loss, nats")
        _forest(auc, arms, aucs)
        handles, labels = accuracy.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(counts, fontsize=9)
        return as_svg(figure, "Accuracy and losses over epochs, and AUC with 95 % interval, by arm")


def _curves(axes: "Axes", arms: Sequence[FinishedArm], field: str, title: str, unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for index, arm in enumerate(arms):
        points = [(epoch.number, getattr(epoch, field)) for epoch in arm.epochs if getattr(epoch, field) is not None]
        # matplotlib's stubs want each keyword's own type
        axes.plot([x for x, _ in points], [y for _, y in points], label=_label(arm), **line_style(index))  # type: ignore[arg-type]
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _label(arm: FinishedArm) -> str:
    return arm.name + ("" if len(arm.slices.patients) else " (per study)")


def _forest(axes: "Axes", arms: Sequence[FinishedArm], aucs: Sequence[Estimate]) -> None:
    """One row an arm: the AUC and its 95 % interval over patients."""
    for index, auc in enumerate(aucs):
        if auc.value is None:
            continue
        color = COLORS[index % len(COLORS)]
        if auc.low is not None and auc.high is not None:
            axes.plot([auc.low, auc.high], [index, index], color=color, linewidth=1.5)
        axes.plot(auc.value, index, marker=line_style(index)["marker"], color=color)
    axes.axvline(0.5, color="#555555", linestyle=(0, (1, 1)))
    axes.set_yticks(range(len(arms)), [_label(arm) for arm in arms])
    axes.invert_yaxis()
    axes.set_title("AUC of any, last epoch")
    axes.set_xlabel("AUC, 95 % interval over patients")
