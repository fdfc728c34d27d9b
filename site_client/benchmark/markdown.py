"""The benchmark's table as Markdown: the paper's columns, and the columns that give them meaning."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from site_client.benchmark.document import REAL, SYNTHETIC, Document
from site_client.benchmark.results import ArmResult, Pair, by_site
from site_client.inference.intervals import DRAWS, PATIENTS_MIN, Difference, Estimate
from site_client.inference.patients import positives

ADMISSIBLE_AUC: Final = 0.75  # of position + histogram, at equal height and by study
_COLUMNS: Final = [
    "model",
    "data set size",
    "batch",
    "train",
    "validation",
    "epochs",
    "train loss",
    "validation loss",
    "accuracy",
    "all negative",
    "AUC any",
    "at equal height",
    "by study",
    "AP any",
    "log loss",
    "parameters",
    "training slices/s",
    "inference ms/slice",
]


def as_markdown(document: Document, figure_line: str) -> str:
    """Write the page.

    Args:
        document: See `Document`.
        figure_line: The line where the figure stands.
    """
    lines = [_line(document, arm) for arm in document.results.arms]
    lines += [f"| `{arm.name}` | failed: {arm.reason} |" for arm in document.results.failed]
    paragraphs = [
        "# Benchmark: the paper's table",
        f"{SYNTHETIC if document.origin.synthetic else REAL} Made by",
        f"    {document.origin.command}",
        *([_UNFINISHED] if document.results.stopped else []),
        _circumstances(document),
        "\n".join([f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}", *lines]),
        _admissible(document),
        figure_line,
        "## Against position + histogram, and against lite, the same patients",
        _pairs_text(document.against, "no arm has slice outputs"),
        "## Sequence against slice-wise, the same patients",
        _pairs_text(document.twins, "no sequence arm was trained beside its slice-wise twin"),
        *_curve_text(document),
        *_sites_text(document),
        "## How to read it",
        _NOTES,
    ]
    return "\n\n".join(paragraphs) + "\n"


def _line(document: Document, arm: ArmResult) -> str:
    run, figures = arm.runs[0], document.figures[arm.name]
    last = [run.epochs[-1] for run in arm.runs if run.epochs]
    losses = [
        f"{np.mean([getattr(epoch, name) for epoch in last]):.4f}" if last else "–"
        for name in ("train_loss", "validation_loss")
    ]
    speeds = [
        "–" if value is None else f"{value:.1f}" for value in (run.training_slices_per_s, run.inference_ms_per_slice)
    ]
    spread = "" if figures.spread is None else f" ±{figures.spread:.3f}"
    cells = [
        f"`{arm.name}`" + ("" if arm.has_slices else " (per study)"),
        f"{document.training_slices + document.validation_slices:,}",
        str(document.benches[0].settings.studies_per_step) if last else "–",
        f"{document.training_slices:,}",
        f"{document.validation_slices:,}",
        str(run.epochs[-1].number) if last else "–",
        *losses,
        _text(figures.accuracy),
        _text(figures.all_negative),
        _text(figures.auc),
        _text(figures.auc_height) + (spread if arm.has_slices else ""),
        _text(figures.auc_study) + ("" if arm.has_slices else spread),
        _text(figures.ap),
        _text(figures.log_loss),
        f"{run.parameters:,}",
        *speeds,
    ]
    return f"| {' | '.join(cells)} |"


def _circumstances(document: Document) -> str:
    settings = document.benches[0].settings
    sides = []
    for name, studies in (("training", document.benches[0].split.training), ("validation", document.validation)):
        counts = ", ".join(f"{label} {count}" for label, count in positives(studies).items())
        patients = len({study.patient_key for study in studies})
        sides.append(f"{name}: {len(studies)} studies of {patients} patients (positive: {counts})")
    seeds = max(len(arm.runs) for arm in document.results.arms)
    split = (
        f"{settings.folds} folds by patient; the training side is that of the first"
        if settings.folds
        else "Split by patient"
    )
    return (
        f"{settings.image_size_px} px, at most {settings.slices_max} slices a study, {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}. {'; '.join(sides)}. {split}, stratified by the rarest finding. Each "
        f"model is the one {'of the early stop' if settings.patience else 'after the last epoch'}: nothing was "
        f"chosen on the validation patients. torch {document.origin.torch}, {document.benches[0].compute.name}, "
        f"{document.origin.machine}."
    )


def _admissible(document: Document) -> str:
    trivial = document.results.arms[1]
    height, study = (getattr(document.figures[trivial.name], name).value for name in ("auc_height", "auc_study"))
    if height is None or study is None:
        return "Whether these patients are hard enough is not known: position + histogram has no AUC here."
    admissible = max(height, study) < ADMISSIBLE_AUC
    return f"Position + histogram scores {height:.3f} at equal height and {study:.3f} by study: these patients are " + (
        f"hard enough (both below {ADMISSIBLE_AUC})."
        if admissible
        else f"**too easy** (not both below {ADMISSIBLE_AUC}), so figures of an arm mean little."
    )


def _curve_text(document: Document) -> list[str]:
    if not document.curve:
        return []
    head = "| model | training patients | AUC any | at equal height | by study | log loss |\n|---|---|---|---|---|---|"
    names = list(dict.fromkeys(name for arms in document.curve.values() for name in arms))
    lines = [
        f"| `{name}` | {size} | {_text(arms[name].auc)} | {_text(arms[name].auc_height)} | "
        f"{_text(arms[name].auc_study)} | {_text(arms[name].log_loss)} |"
        for name in names
        for size, arms in document.curve.items()
        if name in arms
    ]
    return ["## Learning curve over patients", "\n".join([head, *lines])]


def _sites_text(document: Document) -> list[str]:
    table = by_site(document.results.arms, document.results.sites)
    sites = sorted(set(document.results.sites))
    if len(sites) < 2:
        return []
    head = f"| model | {' | '.join(sites)} |\n|---|{'---|' * len(sites)}"
    lines = [
        f"| `{arm}` | "
        + " | ".join(f"{_text(own[site][0], ends=False)} / {_text(own[site][1])}" for site in sites)
        + " |"
        for arm, own in table.items()
    ]
    return ["## By site: AUC of any at equal height / by study", "\n".join([head, *lines])]


def _pairs_text(pairs: Sequence[Pair], none: str) -> str:
    if not pairs:
        return f"Nothing to compare: {none}."
    head = "| arm | against | log loss | AUC any | at equal height | by study |\n|---|---|---|---|---|---|"
    lines = [
        f"| `{pair.arm}` | `{pair.other}` | "
        + " | ".join(_difference(figure) for figure in (pair.log_loss, pair.auc, pair.auc_height, pair.auc_study))
        + " |"
        for pair in pairs
    ]
    return "\n".join([head, *lines]) + "\n\nBelow 0 in log loss, or above 0 in AUC: the first is better."


def _text(figure: Estimate | Difference, sign: bool = False, ends: bool = True) -> str:
    if figure.value is None:
        return f"none ({figure.reason})"
    spec = "+.3f" if sign else ".3f"
    if figure.low is None or figure.high is None or not ends:
        return f"{figure.value:{spec}}"
    return f"{figure.value:{spec}} ({figure.low:{spec}} to {figure.high:{spec}})"


def _difference(difference: Difference) -> str:
    return _text(difference, sign=True) + ("" if difference.p is None else f", p {difference.p:.3f}")


_UNFINISHED: Final = (
    "**Unfinished: the run was stopped.** The last arm stands as it was evaluated last, after the epochs in its row. "
    "Others may be missing."
)
_NOTES: Final = f"""\
- Data set size, train and validation count slices, as in the paper. The batch counts studies, each with all its \
slices or with `--slices-per-study` of them.
- `position` is a logistic regression on the height of a slice, `position + histogram` one on the height and on 24 \
numbers of the histogram of its brain window. An arm that does not beat the second one has not been shown to see blood.
- A row "slice head alone" is the arm above it without its recurrence: the same weights, which no gradient of the \
recurrence has moved. Its answer for a study is the smooth maximum over its slices.
- At equal height: over pairs of slices in the same twentieth of the head. The height alone has .5 there.
- Both losses are the reported loss: slices plus half of the study. The training loss is a mean over the last epoch, \
augmented and with half of the studies positive. The validation loss is on the patients at their own prevalence.
- Accuracy is the share of slice labels that a threshold of .5 gets right. The column beside it is the accuracy of the \
answer "no hemorrhage" everywhere. An accuracy near that one is no evidence.
- AUC, AP and log loss (weighted as in RSNA 2019) are per slice, with 95 % intervals over patients: value ± t × \
standard error of {DRAWS} bootstrap draws, on an unbounded scale. With fewer than {PATIENTS_MIN} positive or \
negative patients there is no interval. They cover the choice of patients, not that of the training; ± is the standard \
deviation over seeds. An arm marked "per study" has no slice outputs, so its figures are per study.
- Probabilities are corrected for the difference between the prevalence in training and that of its patients. No \
temperature is fitted.
- Times are processor seconds per thread on a CPU, and wall-clock seconds on a GPU. Another program on the same GPU \
makes them larger: `tests/benchmarks/arms.py` measures each arm by itself."""
