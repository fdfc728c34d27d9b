"""The benchmark's table as Markdown and JSON: the paper's columns, and the columns that give them meaning."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from site_client.benchmark.arms import Bench
from site_client.benchmark.figure import draw
from site_client.benchmark.results import ArmResult, Figures, Pair, Results, by_site, figures_of, pairs_of
from site_client.benchmark.svg import FiguresMissing
from site_client.inference.intervals import DRAW_SEED, DRAWS, PATIENTS_MIN, Difference, Estimate, draw_patients
from site_client.inference.patients import positives
from site_client.inference.ranked import Reals
from site_client.ingest.records import StudyRecord

SYNTHETIC: Final = "Synthetic patients: a result on them is never clinical evidence."
REAL: Final = "For research. Not a statement about any patient, and not a validated device."
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


@dataclass(frozen=True)
class BenchmarkOrigin:
    """The origin of the figures.

    Attributes:
        command: That made them.
        synthetic: Whether the patients are phantoms.
        torch: Its version.
        machine: Its architecture.
    """

    command: str
    synthetic: bool
    torch: str
    machine: str


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
    document = _Document(benches, results, figures, against, twins, _curve(results, draws), origin)
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.json").write_text(json.dumps(document.as_json(), indent=1) + "\n")
    counts = f"{document.validation_slices:,} validation slices of {len(results.sites)} patients"
    try:
        (out / "benchmark.svg").write_text(draw(results.arms, figures, counts))
        figure_line = "![Accuracy and loss over epochs, and AUC](benchmark.svg)"
    except FiguresMissing as error:
        figure_line = f"No figure: {error}."
    text = document.as_markdown(figure_line)
    (out / "benchmark.md").write_text(text)
    return text


def _curve(results: Results, draws: Reals) -> dict[int, dict[str, Figures]]:
    """The figures by number of training patients; nothing if there is one number only."""
    if len(results.sizes) < 2:
        return {}
    return {size: {arm.name: figures_of(arm, draws) for arm in arms} for size, arms in results.sizes.items()}


@dataclass(frozen=True)
class _Document:
    """All that the table shows."""

    benches: Sequence[Bench]
    results: Results
    figures: dict[str, Figures]
    against: Sequence[Pair]
    twins: Sequence[Pair]
    curve: dict[int, dict[str, Figures]]
    origin: BenchmarkOrigin

    @property
    def validation_slices(self) -> int:
        """Slices of all held-out studies."""
        return len(self.results.arms[0].runs[0].slices.patients)

    @property
    def training_slices(self) -> int:
        """Slices of the training studies, the mean over folds."""
        return round(sum(bench.training_slices for bench in self.benches) / len(self.benches))

    @property
    def validation(self) -> list[StudyRecord]:
        """Every held-out study."""
        return [study for bench in self.benches for study in bench.split.validation]

    def as_json(self) -> dict[str, object]:
        """Return plain values for json.dumps."""
        settings = asdict(self.benches[0].settings)
        return {
            "notice": SYNTHETIC if self.origin.synthetic else REAL,
            "origin": asdict(self.origin),
            "settings": settings,
            "digests": [bench.digest for bench in self.benches],
            "compute": self.benches[0].compute.name,
            "training": _side(self.benches[0].split.training),
            "validation": _side(self.validation),
            "training_slices": self.training_slices,
            "validation_slices": self.validation_slices,
            "bootstrap_draws": DRAWS,
            "arms": [self._arm_json(arm) for arm in self.results.arms],
            "failed": [asdict(arm) for arm in self.results.failed],
            "against_histogram": [asdict(pair) for pair in self.against],
            "twins": [asdict(pair) for pair in self.twins],
            "learning_curve": {
                size: {name: asdict(figures) for name, figures in arms.items()} for size, arms in self.curve.items()
            },
            "sites": {
                arm: {
                    site: {"auc_height": asdict(height), "auc_study": asdict(study), "patients": count}
                    for site, (height, study, count) in sites.items()
                }
                for arm, sites in by_site(self.results.arms, self.results.sites).items()
            },
        }

    def _arm_json(self, arm: ArmResult) -> dict[str, object]:
        return {
            "arm": arm.name,
            "parameters": arm.runs[0].parameters,
            "evaluated_by": "slices" if arm.has_slices else "studies",
            **asdict(self.figures[arm.name]),
            "runs": [
                {
                    "digest": run.digest,
                    "training_slices_per_s": run.training_slices_per_s,
                    "inference_ms_per_slice": run.inference_ms_per_slice,
                    "by_epoch": [asdict(epoch) for epoch in run.epochs],
                }
                for run in arm.runs
            ],
        }

    def as_markdown(self, figure_line: str) -> str:
        """Return the page."""
        lines = [self._line(arm) for arm in self.results.arms]
        lines += [f"| `{arm.name}` | failed: {arm.reason} |" for arm in self.results.failed]
        paragraphs = [
            "# Benchmark: the paper's table",
            f"{SYNTHETIC if self.origin.synthetic else REAL} Made by",
            f"    {self.origin.command}",
            self._circumstances(),
            "\n".join([f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}", *lines]),
            self._admissible(),
            figure_line,
            "## Against position + histogram, the same patients",
            _pairs_text(self.against, "no arm has slice outputs"),
            "## Sequence against slice-wise, the same patients",
            _pairs_text(self.twins, "no sequence arm was trained beside its slice-wise twin"),
            *self._curve_text(),
            *self._sites_text(),
            "## How to read it",
            _NOTES,
        ]
        return "\n\n".join(paragraphs) + "\n"

    def _line(self, arm: ArmResult) -> str:
        run, figures = arm.runs[0], self.figures[arm.name]
        last = [run.epochs[-1] for run in arm.runs if run.epochs]
        losses = [
            f"{np.mean([getattr(epoch, name) for epoch in last]):.4f}" if last else "–"
            for name in ("train_loss", "validation_loss")
        ]
        speeds = [
            "–" if value is None else f"{value:.1f}"
            for value in (run.training_slices_per_s, run.inference_ms_per_slice)
        ]
        spread = "" if figures.spread is None else f" ±{figures.spread:.3f}"
        cells = [
            f"`{arm.name}`" + ("" if arm.has_slices else " (per study)"),
            f"{self.training_slices + self.validation_slices:,}",
            str(self.benches[0].settings.studies_per_step) if last else "–",
            f"{self.training_slices:,}",
            f"{self.validation_slices:,}",
            str(len(run.epochs)) if last else "–",
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

    def _circumstances(self) -> str:
        settings = self.benches[0].settings
        sides = []
        for name, studies in (("training", self.benches[0].split.training), ("validation", self.validation)):
            counts = ", ".join(f"{label} {count}" for label, count in positives(studies).items())
            patients = len({study.patient_key for study in studies})
            sides.append(f"{name}: {len(studies)} studies of {patients} patients (positive: {counts})")
        seeds = max(len(arm.runs) for arm in self.results.arms)
        split = (
            f"{settings.folds} folds by patient; the training side is that of the first"
            if settings.folds
            else "Split by patient"
        )
        return (
            f"{settings.image_size_px} px, at most {settings.slices_max} slices a study, {seeds} "
            f"{'seed' if seeds == 1 else 'seeds'}. {'; '.join(sides)}. {split}, stratified by the rarest finding. Each "
            f"model is the one {'of the early stop' if settings.patience else 'after the last epoch'}: nothing was "
            f"chosen on the validation patients. torch {self.origin.torch}, {self.benches[0].compute.name}, "
            f"{self.origin.machine}."
        )

    def _admissible(self) -> str:
        trivial = self.results.arms[1]
        height, study = (getattr(self.figures[trivial.name], name).value for name in ("auc_height", "auc_study"))
        if height is None or study is None:
            return "Whether these patients are hard enough is not known: position + histogram has no AUC here."
        admissible = max(height, study) < ADMISSIBLE_AUC
        return (
            f"Position + histogram scores {height:.3f} at equal height and {study:.3f} by study: these patients are "
            + (
                f"hard enough (both below {ADMISSIBLE_AUC})."
                if admissible
                else f"**too easy** (not both below {ADMISSIBLE_AUC}), so figures of an arm mean little."
            )
        )

    def _curve_text(self) -> list[str]:
        if not self.curve:
            return []
        head = (
            "| model | training patients | AUC any | at equal height | by study | log loss |\n|---|---|---|---|---|---|"
        )
        names = list(dict.fromkeys(name for arms in self.curve.values() for name in arms))
        lines = [
            f"| `{name}` | {size} | {_text(arms[name].auc)} | {_text(arms[name].auc_height)} | "
            f"{_text(arms[name].auc_study)} | {_text(arms[name].log_loss)} |"
            for name in names
            for size, arms in self.curve.items()
            if name in arms
        ]
        return ["## Learning curve over patients", "\n".join([head, *lines])]

    def _sites_text(self) -> list[str]:
        table = by_site(self.results.arms, self.results.sites)
        sites = sorted(set(self.results.sites))
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


def _side(studies: Sequence[StudyRecord]) -> dict[str, object]:
    patients = len({study.patient_key for study in studies})
    return {"patients": patients, "studies": len(studies), "positive_studies": positives(studies)}


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


_NOTES: Final = f"""\
- Data set size, train and validation count slices, as in the paper. The batch counts studies, each with all its \
slices or with `--slices-per-study` of them.
- `position` is a logistic regression on the height of a slice, `position + histogram` one on the height and on 24 \
numbers of the histogram of its brain window. An arm that does not beat the second one has not been shown to see blood.
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
