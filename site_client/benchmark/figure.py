"""The paper's Fig. 3 (accuracy and loss over training, one line an arm), and each arm's AUC with its interval."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from site_client.benchmark.results import ArmResult, Figures
from site_client.benchmark.svg import COLORS, as_svg, line_style, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(arms: Sequence[ArmResult], figures: Mapping[str, Figures], counts: str) -> str:
    """Draw the benchmark's figure.

    Args:
        arms: The arms and trivial rows.
        figures: Of each of them by name.
        counts: Numbers of validation slices and patients, for the title.

    Returns:
        SVG text.

    Raises:
        FiguresMissing: Matplotlib is not installed.
    """
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 7.2))
        (accuracy, training), (validation, auc) = figure.subplots(2, 2)
        trained = [arm for arm in arms if arm.runs[0].epochs]
        _curves(accuracy, trained, "accuracy", "Accuracy at threshold .5", "share of correct labels")
        all_negative = figures[arms[0].name].all_negative.value
        if all_negative is not None:
            accuracy.axhline(all_negative, color="#555555", linestyle=(0, (1, 1)), label='"no hemorrhage" everywhere')
        _curves(
            training, trained, "train_loss", "Training loss (augmented, half of the studies positive)", "loss, nats"
        )
        _curves(validation, trained, "auc_height", "AUC of any at equal height", "AUC")
        _forest(auc, arms, figures)
        handles, labels = accuracy.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(counts, fontsize=9)
        return as_svg(figure, "Accuracy and losses over epochs, and AUC with 95 % interval, by arm")


def _curves(axes: "Axes", arms: Sequence[ArmResult], field: str, title: str, unit: str) -> None:
    """One line a seed; the lines of an arm look alike."""
    from matplotlib.ticker import MaxNLocator

    for index, arm in enumerate(arms):
        for seed, run in enumerate(arm.runs):
            points = [
                (epoch.number, getattr(epoch, field)) for epoch in run.epochs if getattr(epoch, field) is not None
            ]
            label = _label(arm) if seed == 0 else None
            # matplotlib's stubs want each keyword's own type
            axes.plot([x for x, _ in points], [y for _, y in points], label=label, **line_style(index))  # type: ignore[arg-type]
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _label(arm: ArmResult) -> str:
    return arm.name + ("" if arm.has_slices else " (per study)")


def _forest(axes: "Axes", arms: Sequence[ArmResult], figures: Mapping[str, Figures]) -> None:
    """One row an arm: the AUC at equal height, or by study without slices, and its 95 % interval over patients."""
    for index, arm in enumerate(arms):
        auc = figures[arm.name].auc_height if arm.has_slices else figures[arm.name].auc_study
        if auc.value is None:
            continue
        color = COLORS[index % len(COLORS)]
        if auc.low is not None and auc.high is not None:
            axes.plot([auc.low, auc.high], [index, index], color=color, linewidth=1.5)
        axes.plot(auc.value, index, marker=line_style(index)["marker"], color=color)
    axes.axvline(0.5, color="#555555", linestyle=(0, (1, 1)))
    axes.set_yticks(range(len(arms)), [_label(arm) for arm in arms])
    axes.invert_yaxis()
    axes.set_title("AUC of any at equal height, last model")
    axes.set_xlabel("AUC, 95 % interval over patients")
