"""A plan's figures in words, for the coordinator who writes it and the custodian who signs it. Pure."""

from collections.abc import Sequence

from federation.forecast import PrivacyForecast, Spending, noise_words, privacy_forecast, traffic
from federation.plan import Trainable, TrainingPlan

from aggregator.units import duration, size

NOT_NOISED = "the sum is not noised: nothing bounds what it tells about one patient"


def forecast_words(plan: TrainingPlan) -> list[str]:
    """Describe bytes, deadlines and privacy of a plan, one line each."""
    moves = f"{plan.moving.size:,} of {plan.manifest.size:,} numbers ({plan.training.trainable})"
    if plan.training.trainable is Trainable.ALL:
        moves = f"all {plan.manifest.size:,} numbers"
    bytes_ = traffic(plan)
    forecast = privacy_forecast(plan)
    return [
        f"moves           {moves}",
        f"a site sends    {size(bytes_.up_round)} a round, {size(bytes_.up_run)} in the run",
        f"a site receives {size(bytes_.down_round)} a round (the sum of {plan.cohort.target} sites), "
        f"{size(bytes_.down_run)} in the run, the initial model included",
        f"a round takes   up to {duration(plan.deadlines.training_s)} of training, then five phases of masking of up "
        f"to {duration(plan.deadlines.phase_s)} each" + _grace(plan),
        *([f"privacy         {NOT_NOISED}"] if forecast is None else privacy_words(forecast)),
    ]


def privacy_words(forecast: PrivacyForecast) -> list[str]:
    """Describe what a private plan spends, and how strong its noise is."""
    noise = [
        f"  {cohort.members} sites: {cohort.certain_shares} honest shares are certain, so the noise is "
        f"{cohort.excess:.2f} times what the price needs; r = {cohort.over_signal:.2f}, "
        f"{noise_words(cohort.over_signal)}"
        for cohort in forecast.noise
    ]
    evaluation = "epsilon of evaluation: none, no histograms leave"
    if forecast.validation:
        spent = _spent(forecast.validation, "evaluation")
        evaluation = f"epsilon of evaluation, budget {forecast.validation_budget:g}: {spent}"
    return [
        f"privacy         of one patient, at delta {forecast.delta:g}",
        f"epsilon of training, budget {forecast.train_budget:g}: {_spent(forecast.train, 'round')}",
        evaluation,
        "noise, r = its length in the mean gradient over the clip norm of a patient:",
        *noise,
    ]


def gaussian_words(epsilon: float | None) -> str:
    """Describe the figure that stands beside our own."""
    if epsilon is None:
        return "for a tighter approximation of training's epsilon: pip install 'hemofed[accounting]'"
    return f"training's epsilon as of Gaussian noise (PLD of dp-accounting): {epsilon:.2f}; an approximation, no bound"


def _spent(spendings: Sequence[Spending], unit: str) -> str:
    return ", ".join(f"{spending.epsilon:.2f} after {unit} {spending.count}" for spending in spendings)


def _grace(plan: TrainingPlan) -> str:
    grace_s, least = plan.deadlines.grace_s, plan.cohort.minimum
    return f"; once {least} are ready, none is waited for that was silent for {duration(grace_s)}" if grace_s else ""
