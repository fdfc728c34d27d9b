"""The benchmark's table as Markdown and JSON: the paper's columns, and the columns that give them meaning."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from federation.labels import ANY, LABELS

from site_client.benchmark.arms import Bench, FailedArm, FinishedArm
from site_client.benchmark.figure import draw
from site_client.benchmark.settings import TWINS
from site_client.benchmark.svg import FiguresMissing
from site_client.inference.intervals import (
    DRAWS,
    Difference,
    Estimate,
    accuracy,
    compare,
    compare_log_loss,
    draw_patients,
    estimate,
    weighted_log_loss,
)
from site_client.inference.measures import Measure
from site_client.inference.patients import positives
from site_client.inference.ranked import Reals

SYNTHETIC: Final = "Synthetic patients: a result on them is never clinical evidence."
REAL: Final = "For research. Not a statement about any patient, and not a validated device."
_DRAW_SEED: Final = 20_240_229
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
    "AP any",
    "log loss",
    "parameters",
    "training slices/s",
    "inference ms/slice",
]


@dataclass(frozen=True)
class BenchmarkOrigin:
    """The origin of the figures.

    Attributes:
        command: That made them.
        synthetic: Whether the patients are phantoms.
        validation_slices: Their number.
        torch: Its version.
        machine: Its architecture.
    """

    command: str
    synthetic: bool
    validation_slices: int
    torch: str
    machine: str


@dataclass(frozen=True)
class Side:
    """The counts of the training or of the validation studies."""

    patients: int
    studies: int
    positive_studies: dict[str, int]


@dataclass(frozen=True)
class BenchmarkRow:
    """A finished arm's last model on the validation slices, with 95 % intervals over patients."""

    arm: FinishedArm
    accuracy: Estimate
    all_negative: Estimate
    auc: Estimate
    ap: Estimate
    log_loss: Estimate


@dataclass(frozen=True)
class Pair:
    """A sequence arm minus its slice-wise twin, on the same draws of patients."""

    arm: str
    twin: str
    log_loss: Difference
    auc: Difference


def write_table(out: Path, bench: Bench, arms: Sequence[FinishedArm | FailedArm], origin: BenchmarkOrigin) -> str:
    """Write benchmark.md, benchmark.json and, where matplotlib is installed, benchmark.svg.

    Args:
        out: The folder.
        bench: See `Bench`.
        arms: In the order of the table.
        origin: See `BenchmarkOrigin`.

    Returns:
        The Markdown text.
    """
    finished = [arm for arm in arms if isinstance(arm, FinishedArm)]
    patients = len({study.patient_key for study in bench.split.validation})
    draws = draw_patients(patients, DRAWS, np.random.default_rng(_DRAW_SEED))
    rows = [_row_of(arm, draws) for arm in finished]
    pairs = _pairs(finished, draws)
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.json").write_text(json.dumps(_as_json(bench, arms, rows, pairs, origin), indent=1) + "\n")
    counts = f"{origin.validation_slices:,} validation slices of {patients} patients"
    try:
        figure = draw(finished, [row.auc for row in rows], rows[0].all_negative.value if rows else None, counts)
        (out / "benchmark.svg").write_text(figure)
        figure_line = "![Accuracy and loss over epochs, and AUC](benchmark.svg)"
    except FiguresMissing as error:
        figure_line = f"No figure: {error}."
    text = _markdown(bench, arms, rows, pairs, origin, figure_line)
    (out / "benchmark.md").write_text(text)
    return text


def _row_of(arm: FinishedArm, draws: Reals) -> BenchmarkRow:
    column = arm.rows.column(ANY)
    return BenchmarkRow(
        arm,
        *accuracy(arm.rows),
        estimate([column], Measure.AUC, draws),
        estimate([column], Measure.AP, draws),
        weighted_log_loss([arm.rows], draws),
    )


def _pairs(finished: Sequence[FinishedArm], draws: Reals) -> list[Pair]:
    by_name = {arm.name: arm.slices for arm in finished}
    return [
        Pair(
            arm,
            twin,
            compare_log_loss([by_name[arm]], [by_name[twin]], draws),
            compare([by_name[arm].column(ANY)], [by_name[twin].column(ANY)], Measure.AUC, draws),
        )
        for arm, twin in TWINS.items()
        if arm in by_name and twin in by_name
    ]


# --- JSON ---------------------------------------------------------------------------------------------------------


def _as_json(
    bench: Bench,
    arms: Sequence[FinishedArm | FailedArm],
    rows: Sequence[BenchmarkRow],
    pairs: Sequence[Pair],
    origin: BenchmarkOrigin,
) -> dict[str, object]:
    return {
        "notice": SYNTHETIC if origin.synthetic else REAL,
        "origin": asdict(origin),
        "settings": asdict(bench.settings),
        "digest": bench.digest,
        "compute": bench.compute.name,
        "training": asdict(_side(bench, "training")),
        "validation": asdict(_side(bench, "validation")),
        "training_slices": bench.training_slices,
        "bootstrap_draws": DRAWS,
        "arms": [_arm_json(row) for row in rows],
        "failed": [{"arm": arm.name, "reason": arm.reason} for arm in arms if isinstance(arm, FailedArm)],
        "pairs": [asdict(pair) for pair in pairs],
    }


def _side(bench: Bench, name: str) -> Side:
    studies = getattr(bench.split, name)
    return Side(len({study.patient_key for study in studies}), len(studies), positives(studies))


def _arm_json(row: BenchmarkRow) -> dict[str, object]:
    arm = row.arm
    return {
        "arm": arm.name,
        "digest": arm.digest,
        "parameters": arm.parameters,
        "training_slices_per_s": arm.training_slices_per_s,
        "inference_ms_per_slice": arm.inference_ms_per_slice,
        **{name: asdict(getattr(row, name)) for name in ("accuracy", "all_negative", "auc", "ap", "log_loss")},
        "evaluated_by": "slices" if len(arm.slices.patients) else "studies",
        "positive": {name: int((arm.rows.labels[:, index] == 1).sum()) for index, name in enumerate(LABELS)},
        "by_epoch": [asdict(epoch) for epoch in arm.epochs],
    }


# --- Markdown -----------------------------------------------------------------------------------------------------


def _markdown(
    bench: Bench,
    arms: Sequence[FinishedArm | FailedArm],
    rows: Sequence[BenchmarkRow],
    pairs: Sequence[Pair],
    origin: BenchmarkOrigin,
    figure_line: str,
) -> str:
    by_name = {row.arm.name: row for row in rows}
    lines = [
        _line(bench, by_name[arm.name], origin)
        if isinstance(arm, FinishedArm)
        else f"| `{arm.name}` | failed: {arm.reason} |"
        for arm in arms
    ]
    paragraphs = [
        "# Benchmark: the paper's table",
        f"{SYNTHETIC if origin.synthetic else REAL} Made by",
        f"    {origin.command}",
        _circumstances(bench, origin),
        "\n".join([f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}", *lines]),
        figure_line,
        "## Sequence against slice-wise, the same patients",
        _pairs_text(pairs),
        "## How to read it",
        _NOTES,
    ]
    return "\n\n".join(paragraphs) + "\n"


def _line(bench: Bench, row: BenchmarkRow, origin: BenchmarkOrigin) -> str:
    arm, last = row.arm, row.arm.epochs[-1]
    cells = [
        f"`{arm.name}`" + ("" if len(arm.slices.patients) else " (per study)"),
        f"{bench.training_slices + origin.validation_slices:,}",
        str(bench.settings.studies_per_step),
        f"{bench.training_slices:,}",
        f"{origin.validation_slices:,}",
        str(len(arm.epochs)),
        f"{last.train_loss:.4f}",
        f"{last.validation_loss:.4f}",
        _text(row.accuracy),
        _text(row.all_negative),
        _text(row.auc),
        _text(row.ap),
        _text(row.log_loss),
        f"{arm.parameters:,}",
        f"{arm.training_slices_per_s:.1f}",
        f"{arm.inference_ms_per_slice:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _circumstances(bench: Bench, origin: BenchmarkOrigin) -> str:
    sides = []
    for name in ("training", "validation"):
        side = _side(bench, name)
        counts = ", ".join(f"{label} {count}" for label, count in side.positive_studies.items())
        sides.append(f"{name}: {side.studies} studies of {side.patients} patients (positive: {counts})")
    settings = bench.settings
    return (
        f"{settings.image_size_px} px, at most {settings.slices_max} slices a study, seed {settings.seed}. "
        f"{'; '.join(sides)}. Split by patient, stratified by the rarest finding. Each model is the one after the last "
        f"epoch: nothing was chosen on the validation patients. torch {origin.torch}, {bench.compute.name}, "
        f"{origin.machine}."
    )


def _pairs_text(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return "No sequence arm was trained beside its slice-wise twin."
    head = "| sequence arm | slice-wise twin | log loss | p | AUC any | p |\n|---|---|---|---|---|---|"
    lines = [
        f"| `{pair.arm}` | `{pair.twin}` | {_text(pair.log_loss, sign=True)} | {_p_value(pair.log_loss)} | "
        f"{_text(pair.auc, sign=True)} | {_p_value(pair.auc)} |"
        for pair in pairs
    ]
    return "\n".join([head, *lines]) + "\n\nBelow 0 in log loss, or above 0 in AUC: the sequence arm is better."


def _text(figure: Estimate | Difference, sign: bool = False) -> str:
    if figure.value is None:
        return f"none ({figure.reason})"
    spec = "+.3f" if sign else ".3f"
    if figure.low is None or figure.high is None:
        return f"{figure.value:{spec}}"
    return f"{figure.value:{spec}} ({figure.low:{spec}} to {figure.high:{spec}})"


def _p_value(difference: Difference) -> str:
    return "–" if difference.p is None else f"{difference.p:.3f}"


_NOTES: Final = """\
- Data set size, train and validation count slices, as in the paper. The batch counts studies, each with all its \
slices or with `--slices-per-study` of them.
- Both losses are the reported loss: slices plus half of the study. The training loss is a mean over the last epoch, \
augmented and with half of the studies positive. The validation loss is on the patients at their own prevalence.
- Accuracy is the share of slice labels that a threshold of .5 gets right. The column beside it is the accuracy of the \
answer "no hemorrhage" everywhere. An accuracy near that one is no evidence.
- AUC, AP and log loss (weighted as in RSNA 2019) are per slice, with 95 % intervals from 2000 bootstrap draws of \
validation patients, each with all slices. They cover the choice of patients, not that of the training. An arm marked \
"per study" has no slice outputs, so its figures are per study.
- Probabilities are corrected for the difference between the prevalence in training and that of its patients. No \
temperature is fitted.
- Times are processor seconds per thread on a CPU, and wall-clock seconds on a GPU. Another program on the same GPU \
makes them larger: `tests/benchmarks/arms.py` measures each arm by itself."""
