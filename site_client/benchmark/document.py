"""All that a benchmark's table shows, and its JSON form."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from site_client.benchmark.arms import Bench
from site_client.benchmark.results import ArmResult, Figures, Pair, Results, by_site
from site_client.inference.intervals import DRAWS
from site_client.inference.patients import positives
from site_client.ingest.records import StudyRecord

SYNTHETIC: Final = "Synthetic patients: a result on them is never clinical evidence."
REAL: Final = "For research. Not a statement about any patient, and not a validated device."


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


@dataclass(frozen=True)
class Document:
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
            "stopped": self.results.stopped,
            "failed": [asdict(arm) for arm in self.results.failed],
            "against": [asdict(pair) for pair in self.against],
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


def _side(studies: Sequence[StudyRecord]) -> dict[str, object]:
    patients = len({study.patient_key for study in studies})
    return {"patients": patients, "studies": len(studies), "positive_studies": positives(studies)}
