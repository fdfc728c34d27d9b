"""What came of the run, read from the aggregator's rows and the sites' own status: figures, table, verdict."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.runs.plans import plan_of
from aggregator.states import RoundState, RunState
from aggregator.store import round_rows, run_rows
from aggregator.store.tables import Round, Run


@dataclass(frozen=True)
class DemoJudgement:
    """What the cohort's validation patients say of one model."""

    auc_any: float | None
    weighted_log_loss: float | None


@dataclass(frozen=True)
class RoundFigures:
    round: int
    cohort: tuple[str, ...]
    before: DemoJudgement
    after: DemoJudgement
    train_loss: float | None
    bytes_up_per_site: int
    bytes_down_per_site: int
    phase_s: Mapping[str, float]


@dataclass(frozen=True)
class Results:
    completed: bool
    reason: str | None
    rounds: tuple[RoundFigures, ...]
    model_digest: str
    site_digests: Mapping[str, str]

    @property
    def improved(self) -> bool:
        """Whether the last model ranks held-out patients better than the first."""
        if not self.rounds:
            return False
        first, last = self.rounds[0].before.auc_any, self.rounds[-1].after.auc_any
        return first is not None and last is not None and last > first

    @property
    def agreed(self) -> bool:
        """Whether every site computed the very model the aggregator published."""
        return set(self.site_digests.values()) == {self.model_digest}


def collect(hub: AppContext, site_digests: Mapping[str, str]) -> Results:
    with hub.store.read() as session:
        run = run_rows.all_runs(session)[-1]
        training = [row for row in round_rows.of_run(session, run.run_id) if row.number <= plan_of(run).rounds]
        judged = _judgements(session, run)
        figures = [_figures(session, row, judged) for row in training if row.state is RoundState.PUBLISHED]
        digest = run_rows.newest_model(session, run.run_id).digest.hex()
    return Results(run.state is RunState.COMPLETED, run.reason, tuple(figures), digest, dict(site_digests))


def write_json(results: Results, path: Path) -> None:
    """The figures as one JSON object; `round` N's metrics are those of the model that round N published."""
    document = {
        "rounds": [_as_json(figures) for figures in results.rounds],
        "model_digest": results.model_digest,
        "site_digests": dict(results.site_digests),
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def table(results: Results) -> str:
    """The global model before and after each round."""
    head = (
        f"{'round':>5}  {'AUC any':>16}  {'weighted log loss':>18}  {'train loss':>10}  {'up':>9}  {'down':>9}  cohort"
    )
    return "\n".join([head, *(_row(figures) for figures in results.rounds)])


def _judgements(session: Session, run: Run) -> dict[bytes, DemoJudgement]:
    """By model digest. A model judged twice, after an abandoned round, keeps the later judgement."""
    judged = {}
    for row in round_rows.metrics_of_run(session, run.run_id):
        report = json.loads(row.report)
        auc = report["labels"].get("any", {}).get("auc")
        judged[row.model_digest] = DemoJudgement(auc, report.get("weighted_log_loss"))
    return judged


def _figures(session: Session, row: Round, judged: Mapping[bytes, DemoJudgement]) -> RoundFigures:
    seats = [seat for seat in round_rows.seats(session, row.id) if seat.upload_claim is not None]
    nothing = DemoJudgement(None, None)
    metrics = {each.round_id: each for each in round_rows.metrics_of_run(session, row.run_id)}.get(row.id)
    return RoundFigures(
        round=row.number,
        cohort=tuple(seat.site for seat in seats),
        before=judged.get(row.base_model, nothing),
        after=judged.get(row.next_model or b"", nothing),
        train_loss=None if metrics is None else metrics.train_loss,
        bytes_up_per_site=max((seat.bytes_up for seat in seats), default=0),
        bytes_down_per_site=max((seat.bytes_down for seat in seats), default=0),
        phase_s={time.state.value: round(time.seconds, 3) for time in round_rows.phase_times(session, row.id)},
    )


def _as_json(figures: RoundFigures) -> dict[str, object]:
    return {
        "round": figures.round,
        "cohort": list(figures.cohort),
        "auc_any": figures.after.auc_any,
        "weighted_log_loss": figures.after.weighted_log_loss,
        "bytes_up_per_site": figures.bytes_up_per_site,
        "bytes_down_per_site": figures.bytes_down_per_site,
        "phase_s": dict(figures.phase_s),
    }


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
