"""The run's results, read from the aggregator's rows and the sites' status files: figures, table, success."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.runs.metrics import Report
from aggregator.runs.plans import plan_of
from aggregator.runs.privacy_status import PrivacyStatus, privacy_status
from aggregator.states import ModelStanding, RoundState, RunState
from aggregator.store import round_rows, run_rows
from aggregator.store.tables import Round, Run


@dataclass(frozen=True)
class ModelFigures:
    """Figures of one model on the cohort's validation patients; None where too few cases were counted."""

    auc_any: float | None
    weighted_log_loss: float | None


@dataclass(frozen=True)
class RoundFigures:
    """Figures of one published round. `before`, `after`: of its base model, and of the model that it published."""

    round: int
    cohort: tuple[str, ...]
    before: ModelFigures
    after: ModelFigures
    train_loss: float | None
    bytes_up_per_site: int
    bytes_down_per_site: int
    phase_s: Mapping[str, float]


@dataclass(frozen=True)
class RunResults:
    """Results of the whole run.

    Attributes:
        completed: Or aborted.
        reason: Of an aborted run.
        rounds: Published training rounds.
        model_digest: Hex digest of the last model.
        site_digests: Hex digest of the model that each site holds.
        privacy: What was spent, noise and alarm; None without --privacy.
        refused: By the round that made it, why a model was refused; empty without --poison.
    """

    completed: bool
    reason: str | None
    rounds: tuple[RoundFigures, ...]
    model_digest: str
    site_digests: Mapping[str, str]
    privacy: PrivacyStatus | None
    refused: Mapping[int, str]

    @property
    def improved(self) -> bool:
        """Whether the last model ranks held-out patients better than the first."""
        if not self.rounds:
            return False
        first, last = self.rounds[0].before.auc_any, self.rounds[-1].after.auc_any
        return first is not None and last is not None and last > first

    @property
    def agreed(self) -> bool:
        """Whether every site computed the very model that the aggregator published."""
        return set(self.site_digests.values()) == {self.model_digest}


def collect(app: AppContext, site_digests: Mapping[str, str]) -> RunResults:
    """Collects the results of the newest run.

    Args:
        app: The aggregator's store.
        site_digests: Hex digest of the model that each site holds, by the site's name.
    """
    with app.store.read() as session:
        run = run_rows.all_runs(session)[-1]
        # Without the evaluation-only round at the end, which trains nothing and only measures the last model.
        training = [row for row in round_rows.of_run(session, run.run_id) if row.number <= plan_of(run).rounds]
        by_digest = _model_figures(session, run)
        figures = [_round_figures(session, row, by_digest) for row in training if row.state is RoundState.PUBLISHED]
        digest = run_rows.newest_model(session, run.run_id).digest.hex()
        privacy = privacy_status(session, run)
        refused = _refused(session, run)
    completed = run.state is RunState.COMPLETED
    return RunResults(completed, run.reason, tuple(figures), digest, dict(site_digests), privacy, refused)


def write_json(results: RunResults, path: Path) -> None:
    """Writes the figures as one JSON object. Metrics of `round` N are those of the model that round N published."""
    rounds = [
        {
            "round": figures.round,
            "cohort": list(figures.cohort),
            "auc_any": figures.after.auc_any,
            "weighted_log_loss": figures.after.weighted_log_loss,
            "bytes_up_per_site": figures.bytes_up_per_site,
            "bytes_down_per_site": figures.bytes_down_per_site,
            "phase_s": dict(figures.phase_s),
        }
        for figures in results.rounds
    ]
    document = {
        "rounds": rounds,
        "model_digest": results.model_digest,
        "site_digests": dict(results.site_digests),
        "privacy": None if results.privacy is None else asdict(results.privacy),
        "refused": dict(results.refused),
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def table(results: RunResults) -> str:
    """Formats the global model before and after each round."""
    head = (
        f"{'round':>5}  {'AUC any':>16}  {'weighted log loss':>18}  {'train loss':>10}  {'up':>9}  {'down':>9}  cohort"
    )
    return "\n".join([head, *(_row(figures) for figures in results.rounds)])


def _model_figures(session: Session, run: Run) -> dict[bytes, ModelFigures]:
    """Reads the metrics by model digest."""
    by_digest = {}
    # In the order of rounds: a model that was measured twice, after an abandoned round, keeps the later figures.
    for row in round_rows.metrics_of_run(session, run.run_id):
        report = json.loads(row.report)
        auc = report["labels"].get("any", {}).get("auc")
        by_digest[row.model_digest] = ModelFigures(auc, report.get("weighted_log_loss"))
    return by_digest


def _refused(session: Session, run: Run) -> dict[int, str]:
    """Reads which models were refused, by the round that made each, and why."""
    numbers = {
        model.digest: model.round_number
        for model in run_rows.models(session, run.run_id)
        if model.standing is ModelStanding.REFUSED
    }
    judged = [
        (row.model_digest, Report.from_json(row.report).gate) for row in round_rows.metrics_of_run(session, run.run_id)
    ]
    return {numbers[digest]: gate.words() for digest, gate in judged if digest in numbers and gate is not None}


def _round_figures(session: Session, row: Round, by_digest: Mapping[bytes, ModelFigures]) -> RoundFigures:
    # Seats with an upload: sites that declined or were late have no part in the sum.
    seats = [seat for seat in round_rows.seats(session, row.id) if seat.upload_claim is not None]
    # A cohort below the plan's minimum publishes no figures of its model.
    unknown = ModelFigures(None, None)
    metrics = {metrics.round_id: metrics for metrics in round_rows.metrics_of_run(session, row.run_id)}.get(row.id)
    return RoundFigures(
        round=row.number,
        cohort=tuple(seat.site for seat in seats),
        before=by_digest.get(row.base_model, unknown),
        after=by_digest.get(row.next_model or b"", unknown),
        train_loss=None if metrics is None else metrics.train_loss,
        bytes_up_per_site=max((seat.bytes_up for seat in seats), default=0),
        bytes_down_per_site=max((seat.bytes_down for seat in seats), default=0),
        phase_s={time.state.value: round(time.seconds, 3) for time in round_rows.phase_times(session, row.id)},
    )


def _row(figures: RoundFigures) -> str:
    before, after = figures.before, figures.after
    auc = f"{_figure(before.auc_any)} -> {_figure(after.auc_any)}"
    loss = f"{_figure(before.weighted_log_loss)} -> {_figure(after.weighted_log_loss)}"
    size = f"{_megabytes(figures.bytes_up_per_site):>9}  {_megabytes(figures.bytes_down_per_site):>9}"
    scores = f"{auc:>16}  {loss:>18}  {_figure(figures.train_loss):>10}"
    return f"{figures.round:>5}  {scores}  {size}  {', '.join(figures.cohort)}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
