"""Results over seeds and folds, and the figures that the table shows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final

import numpy as np
from federation.labels import ANY
from numpy.typing import NDArray

from site_client.benchmark.finished import Epoch, FailedArm, FinishedArm
from site_client.benchmark.settings import TWINS
from site_client.benchmark.slice_head import SUFFIX
from site_client.benchmark.trivial import HISTOGRAM
from site_client.inference.intervals import (
    DRAW_SEED,
    DRAWS,
    PATIENTS_MIN,
    Difference,
    Estimate,
    accuracy,
    compare,
    compare_log_loss,
    degrees_of_freedom,
    draw_patients,
    estimate,
    weighted_log_loss,
)
from site_client.inference.measures import Measure
from site_client.inference.ranked import Reals
from site_client.inference.scores import Column, Scored

_SMALL: Final = "lite"  # an arm of thirty times as many parameters has to be worth them
NO_SLICES: Final = "no slice outputs"
FEW_PATIENTS: Final = f"below {PATIENTS_MIN} positive or negative patients"


@dataclass(frozen=True)
class ArmResult:
    """An arm, or a trivial row, at one number of training patients.

    Attributes:
        name: Of its architecture, or of the trivial row.
        runs: One a seed, each scored on every patient that was held out.
    """

    name: str
    runs: tuple[FinishedArm, ...]

    @property
    def has_slices(self) -> bool:
        """Whether it answers for slices."""
        return bool(len(self.runs[0].slices.patients))

    @property
    def slices(self) -> list[Column]:
        """`any` of slices by run."""
        return [run.slices.column(ANY) for run in self.runs]

    @property
    def studies(self) -> list[Column]:
        """`any` of studies by run."""
        return [run.studies.column(ANY) for run in self.runs]

    @property
    def rows(self) -> list[Scored]:
        """Scores of slices by run; of studies for an arm without slice outputs."""
        return [run.rows for run in self.runs]


@dataclass(frozen=True)
class Figures:
    """An arm on the held-out patients: means over its runs, with 95 % intervals over patients.

    Attributes:
        accuracy: At a threshold of .5.
        all_negative: The accuracy of the answer "no hemorrhage" everywhere.
        auc: Of `any`.
        auc_height: Of `any` at equal height.
        auc_study: Of `any`, of studies.
        ap: Of `any`.
        log_loss: Weighted, of RSNA 2019.
        spread: Standard deviation of `auc_height` over seeds, or of `auc_study` without slices; None with one seed.
    """

    accuracy: Estimate
    all_negative: Estimate
    auc: Estimate
    auc_height: Estimate
    auc_study: Estimate
    ap: Estimate
    log_loss: Estimate
    spread: float | None


@dataclass(frozen=True)
class Pair:
    """One arm minus another on the same draws of patients."""

    arm: str
    other: str
    log_loss: Difference
    auc: Difference
    auc_height: Difference
    auc_study: Difference


def pool_folds(folds: Sequence[FinishedArm], patients: Sequence[int]) -> FinishedArm:
    """Join the folds of one seed: every patient is scored once, by the model that has not read it.

    Args:
        folds: In order.
        patients: The number of held-out patients of each fold.
    """
    if len(folds) == 1:
        return folds[0]
    starts = np.concatenate([[0], np.cumsum(patients)[:-1]])

    def joined(parts: Sequence[Scored]) -> Scored:
        return Scored(
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.patients + start for part, start in zip(parts, starts, strict=True)]),
            np.concatenate([part.heights for part in parts]),
        )

    epochs = zip(*(fold.epochs for fold in folds), strict=False)  # an early stop ends the folds at different epochs
    return replace(
        folds[0],
        epochs=tuple(_mean_epoch(same) for same in epochs),
        digest="",
        training_slices_per_s=_mean(fold.training_slices_per_s for fold in folds),
        inference_ms_per_slice=_mean(fold.inference_ms_per_slice for fold in folds),
        slices=joined([fold.slices for fold in folds]),
        studies=joined([fold.studies for fold in folds]),
    )


def _mean_epoch(epochs: Sequence[Epoch]) -> Epoch:
    means = {
        name: _mean(getattr(epoch, name) for epoch in epochs) for name in Epoch.__dataclass_fields__ if name != "number"
    }
    return replace(epochs[0], **means)  # type: ignore[arg-type]  # each mean is None only where its field may be


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean; None if a value is None."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return fmean(known) if len(known) == len(listed) else None


def figures_of(arm: ArmResult, draws: Reals) -> Figures:
    """Compute an arm's figures with draws f64[D,patients]."""
    rows = [scored.column(ANY) for scored in arm.rows]
    main = Measure.AUC_HEIGHT if arm.has_slices else Measure.AUC
    values = [estimate([column], main).value for column in rows]
    known = [value for value in values if value is not None]
    return Figures(
        *_mean_accuracy(arm),
        estimate(rows, Measure.AUC, draws),
        estimate(rows, Measure.AUC_HEIGHT, draws) if arm.has_slices else Estimate(None, reason=NO_SLICES),
        estimate(arm.studies, Measure.AUC, draws),
        estimate(rows, Measure.AP, draws),
        weighted_log_loss(arm.rows, draws),
        float(np.std(known, ddof=1)) if len(known) > 1 else None,
    )


def _mean_accuracy(arm: ArmResult) -> tuple[Estimate, Estimate]:
    by_run = [accuracy(scored) for scored in arm.rows]
    own = [figure.value for figure, _ in by_run if figure.value is not None]
    return (Estimate(fmean(own)) if own else by_run[0][0]), by_run[0][1]


def pairs_of(arms: Sequence[ArmResult], draws: Reals) -> tuple[list[Pair], list[Pair]]:
    """Compare each arm with position + histogram and `lite`, and each sequence arm with its twin and its slice head."""
    by_name = {arm.name: arm for arm in arms}
    histogram = by_name.get(HISTOGRAM)
    trained = [arm for arm in arms if arm.runs[0].epochs]
    against = [] if histogram is None else [_pair(arm, histogram, draws) for arm in trained]
    small = by_name.get(_SMALL)
    against += [] if small is None else [_pair(arm, small, draws) for arm in trained if not arm.name.startswith(_SMALL)]
    others = [(arm, other) for arm, twin in TWINS.items() for other in (twin, f"{arm}{SUFFIX}")]
    twins = [_pair(by_name[arm], by_name[other], draws) for arm, other in others if arm in by_name and other in by_name]
    return against, twins


def _pair(first: ArmResult, second: ArmResult, draws: Reals) -> Pair:
    none = Difference(None, reason=NO_SLICES)
    both_slices = first.has_slices and second.has_slices
    slices = first.slices, second.slices
    return Pair(
        first.name,
        second.name,
        compare_log_loss(first.rows, second.rows, draws) if both_slices else none,
        compare(*slices, Measure.AUC, draws) if both_slices else none,
        compare(*slices, Measure.AUC_HEIGHT, draws) if both_slices else none,
        compare(first.studies, second.studies, Measure.AUC, draws),
    )


def by_site(
    arms: Sequence[ArmResult], sites: Sequence[str]
) -> Mapping[str, Mapping[str, tuple[Estimate, Estimate, int]]]:
    """Compute AUC of `any` at equal height and by study for each site with enough patients.

    Args:
        arms: Of one number of training patients.
        sites: The site of each held-out patient, by the patient's number.

    Returns:
        For each arm and site: of slices, of studies, and the number of patients.
    """
    names = np.array(sites)
    table: dict[str, dict[str, tuple[Estimate, Estimate, int]]] = {}
    for arm in arms:
        table[arm.name] = {}
        for site in sorted(set(sites)):
            own = names == site
            draws = draw_patients(int(own.sum()), DRAWS, np.random.default_rng(DRAW_SEED))
            slices, studies = (
                [_of_patients(column, own) for column in columns] for columns in (arm.slices, arm.studies)
            )
            height = _enough(slices, Measure.AUC_HEIGHT, draws) if arm.has_slices else Estimate(None, reason=NO_SLICES)
            table[arm.name][site] = height, _enough(studies, Measure.AUC, draws), int(own.sum())
    return table


def _enough(columns: Sequence[Column], measure: Measure, draws: Reals) -> Estimate:
    """A figure of one site; none with too few patients for an interval, for without one it would mislead."""
    if degrees_of_freedom(columns[0].positive_patients, columns[0].negative_patients) is None:
        return Estimate(None, reason=FEW_PATIENTS)
    return estimate(columns, measure, draws)


def _of_patients(column: Column, chosen: NDArray[np.bool_]) -> Column:
    """The rows of some patients, who are numbered anew."""
    inside = chosen[column.patients]
    numbers = np.cumsum(chosen) - 1
    heights = column.heights[inside] if len(column.heights) else column.heights
    return Column(
        column.probabilities[inside],
        column.truth[inside],
        numbers[column.patients[inside]],
        int(chosen.sum()),
        heights,
    )


@dataclass(frozen=True)
class Results:
    """All results of a benchmark.

    Attributes:
        sizes: The arms, trivial rows first, by number of training patients, ascending. The last one is the table's.
        failed: Arms that could not be trained here.
        sites: The site of each held-out patient.
        stopped: Whether the run was stopped: its last arm is unfinished, and others may be missing.
    """

    sizes: Mapping[int, Sequence[ArmResult]]
    failed: Sequence[FailedArm]
    sites: Sequence[str]
    stopped: bool

    @property
    def arms(self) -> Sequence[ArmResult]:
        """The arms at the largest number of training patients."""
        return self.sizes[max(self.sizes)]
