"""The hospital's policy: against a plan, though the custodian has signed it, and against transfers at this moment."""

from collections.abc import Callable, Iterator
from datetime import datetime

from federation import accounting
from federation.pieces import pieces_of
from federation.plan import TrainingPlan
from federation.privacy import Privacy, delta_of_prices
from federation.vocabulary import StateReason

from site_client.agent.privacy.ledger import SpentPrivacy
from site_client.config import PolicySettings
from site_client.metered import Meter
from site_client.windows import parse_window


def policy_conflicts(
    policy: PolicySettings, plan: TrainingPlan, spending: SpentPrivacy, begin: int | None = None
) -> Iterator[str]:
    """Yield one sentence for each rule of the policy that the plan breaks; none when it may be trained.

    Args:
        policy: The hospital's.
        plan: On offer.
        spending: Of this hospital's patients so far.
        begin: Number of the round on offer; None for the first that this site was not charged for.
    """
    unwanted = set(plan.metrics) - set(policy.metrics)
    if unwanted:
        yield f"policy.metrics does not hold {', '.join(sorted(unwanted))}, which the plan wants"
    if plan.cohort.maximum < policy.cohort_min:
        yield f"policy.cohort_min is {policy.cohort_min}, the plan's cohorts have at most {plan.cohort.maximum} sites"
    if plan.privacy is not None:
        begin = spending.last_round(plan.run_id) + 1 if begin is None else begin
        yield from _budget_conflicts(policy, plan, plan.privacy, spending, begin)
        return
    if policy.privacy_required:
        yield "policy.privacy_required is set, the sum of the plan has no noise"
    if policy.epsilon_max > 0:
        yield f"policy.epsilon_max is {policy.epsilon_max:g}, the plan promises no differential privacy at all"


def _budget_conflicts(
    policy: PolicySettings, plan: TrainingPlan, privacy: Privacy, spending: SpentPrivacy, begin: int
) -> Iterator[str]:
    if policy.epsilon_max > 0 and spending.is_unbounded:
        yield (
            f"policy.epsilon_max is {policy.epsilon_max:g}, and these patients have taken part in a run without a bound"
        )
    elif policy.epsilon_max > 0:
        after = spending.epsilon_with(plan, policy.delta, begin)
        if after > policy.epsilon_max:
            yield (
                f"policy.epsilon_max is {policy.epsilon_max:g}, of which {spending.epsilon(policy.delta):.2f} are "
                f"spent; with the rest of this plan it would be {after:.2f}"
            )
    # Only an evaluation that is repeated beyond the plan's last round can come to this.
    spent = spending.validation_price_with(plan, begin)
    delta = delta_of_prices(privacy, plan.rounds, sum(pieces_of(plan.moving.size)))
    if accounting.epsilon(spent, delta) > privacy.epsilon_validation:
        yield f"the evaluations of this run have used up the epsilon of {privacy.epsilon_validation:g} that it has"


class TransferPolicy:
    """The hours in which models and updates may move. Polls go on, and a masking that has begun is finished."""

    def __init__(
        self, policy: PolicySettings, clock: Callable[[], datetime], is_metered: Callable[[], bool | None]
    ) -> None:
        """Take the policy, the clock and the meter.

        Args:
            policy: The hospital's.
            clock: Aware time.
            is_metered: Whether the link costs by the byte; None when nothing on this machine can tell.
        """
        self._clock = clock
        self._windows = [parse_window(text) for text in policy.transfer_windows]
        self._meter = Meter(policy, clock, is_metered)

    def held_back_by(self) -> tuple[StateReason, ...]:
        """Return the reasons why no model or update may move now; empty when they may."""
        # In the zone of this machine: windows mean the wall clock of the hospital.
        now = self._clock().astimezone()
        reasons = []
        if self._meter.holds_back():
            reasons.append(StateReason.METERED)
        if self._windows and not any(window.contains(now) for window in self._windows):
            reasons.append(StateReason.NET_WINDOW)
        return tuple(reasons)
