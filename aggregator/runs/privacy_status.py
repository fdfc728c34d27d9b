"""The privacy that a run has spent so far, the strength of its noise, and signs that it learns nothing.

Every site books the same costs: a round counts as soon as a masked word may have left a site, and an abandoned one as
well. The costs of other runs stay in a hospital's own ledger.
"""

from dataclasses import dataclass

from federation.forecast import (
    NOISE_MAX,
    CohortNoise,
    Spending,
    cohort_noise,
    noise_words,
    train_spent,
    validation_spent,
)
from sqlalchemy.orm import Session

from aggregator.runs.forecast_words import NOT_NOISED
from aggregator.runs.metrics import Report
from aggregator.runs.plans import plan_of
from aggregator.states import RoundState
from aggregator.store import round_rows, run_rows
from aggregator.store.tables import Run

# From here on a masked upload may have left a site.
_CHARGED = (RoundState.UPLOAD, RoundState.CONFIRM, RoundState.REVEAL, RoundState.AGGREGATING, RoundState.PUBLISHED)


@dataclass(frozen=True)
class NoisedEvaluation:
    """The noised AUC of `any` of one model, with its interval of 95 %."""

    model_number: int  # the round that made the model; 0 is the initial one
    sites: int
    auc: float
    low: float
    high: float


@dataclass(frozen=True)
class PrivacyStatus:
    """The privacy of a run so far.

    Attributes:
        delta: Of both budgets.
        train: Rounds that count, and their epsilon.
        train_budget: Epsilon.
        validation: Evaluations that count, and their epsilon.
        validation_budget: Epsilon.
        noise: In the newest published sum; before the first one, in that of the wanted cohort.
        evaluations: In the order of their rounds; those whose AUC the noise drowned are left out.
        alarms: Sentences that say why the run may learn nothing; empty while nothing speaks for it.
    """

    delta: float
    train: Spending
    train_budget: float
    validation: Spending
    validation_budget: float
    noise: CohortNoise
    evaluations: tuple[NoisedEvaluation, ...]
    alarms: tuple[str, ...]

    @property
    def initial(self) -> NoisedEvaluation | None:
        """The evaluation of the initial model; None without one."""
        return _initial(self.evaluations)


def privacy_status(session: Session, run: Run) -> PrivacyStatus | None:
    """Read the privacy of a run; None for a plan without [privacy]."""
    plan = plan_of(run)
    if plan.privacy is None:
        return None
    charged = round_rows.reached(session, run.run_id, *_CHARGED)
    trained = sum(not plan.evaluates_only(number) for number in charged)
    evaluated = 0
    if plan.privacy.epsilon_validation:
        evaluated = sum(plan.privacy.evaluates(number, plan.rounds) for number in charged)
    rows = round_rows.of_run(session, run.run_id)
    members = [row.members for row in rows if row.members is not None]
    noise = cohort_noise(plan, members[-1] if members else plan.cohort.target)
    evaluations = _evaluations(session, run)
    return PrivacyStatus(
        delta=plan.privacy.delta,
        train=Spending(trained, train_spent(plan, trained)),
        train_budget=plan.privacy.epsilon_train,
        validation=Spending(evaluated, validation_spent(plan, evaluated)),
        validation_budget=plan.privacy.epsilon_validation,
        noise=noise,
        evaluations=evaluations,
        alarms=_alarms(noise, evaluations),
    )


def status_words(status: PrivacyStatus | None) -> list[str]:
    """Describe the privacy of a run, one sentence a line, alarms last; for a run without noise one line says that."""
    if status is None:
        return [f"privacy: {NOT_NOISED}"]
    spent = f"{status.train.epsilon:.2f} of {status.train_budget:g} after {_counted(status.train, 'round')}"
    validation = "none, no histograms leave"
    if status.validation_budget:
        counted = _counted(status.validation, "evaluation")
        validation = f"{status.validation.epsilon:.2f} of {status.validation_budget:g} after {counted}"
    noise = status.noise
    aucs = [
        f"{f'after round {evaluation.model_number}' if evaluation.model_number else 'initial model'} "
        f"{evaluation.auc:.3f} ({evaluation.low:.3f} to {evaluation.high:.3f})"
        for evaluation in status.evaluations
    ]
    return [
        f"epsilon of a patient at delta {status.delta:g}: training {spent}; evaluation {validation}",
        f"noise over signal r = {noise.over_signal:.2f} with {noise.members} sites: {noise_words(noise.over_signal)}",
        f"AUC any with noise: {', '.join(aucs) or 'none yet'}",
        *(f"warning: {alarm}" for alarm in status.alarms),
    ]


def _counted(spending: Spending, unit: str) -> str:
    return f"{spending.count} {unit}{'s' * (spending.count != 1)}"


def _evaluations(session: Session, run: Run) -> tuple[NoisedEvaluation, ...]:
    # By digest: after an abandoned round the next one judges an older model.
    number_of = {model.digest: model.round_number for model in run_rows.models(session, run.run_id)}
    evaluations = []
    for metrics in round_rows.metrics_of_run(session, run.run_id):
        label = Report.from_json(metrics.report).labels.get("any")
        if label is None or label.auc is None or label.auc_low is None or label.auc_high is None:
            continue
        number = number_of[metrics.model_digest]
        evaluations.append(NoisedEvaluation(number, metrics.cohort_size, label.auc, label.auc_low, label.auc_high))
    return tuple(evaluations)


def _initial(evaluations: tuple[NoisedEvaluation, ...]) -> NoisedEvaluation | None:
    return next((evaluation for evaluation in evaluations if evaluation.model_number == 0), None)


def _alarms(noise: CohortNoise, evaluations: tuple[NoisedEvaluation, ...]) -> tuple[str, ...]:
    alarms = []
    if noise.over_signal > NOISE_MAX:
        alarms.append(
            f"The noise of this run eats its signal: with {noise.members} sites it is {noise.over_signal:.2f} times as "
            f"long as a patient's gradient (r > {NOISE_MAX:g})."
        )
    first = _initial(evaluations)
    if first is not None and evaluations[-1].high < first.low:
        last = evaluations[-1]
        alarms.append(
            f"The run makes its model worse: the AUC after round {last.model_number} is {last.auc:.3f} ({last.low:.3f} "
            f"to {last.high:.3f}), below that of the initial model, {first.auc:.3f} ({first.low:.3f} to "
            f"{first.high:.3f})."
        )
    return tuple(alarms)
