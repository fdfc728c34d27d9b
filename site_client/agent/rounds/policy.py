"""The hospital's policy: against a plan, whoever signed it, and against transfers at this moment."""

from collections.abc import Callable, Iterator
from datetime import datetime

from federation.plan import TrainingPlan
from federation.vocabulary import StateReason

from site_client.config import PolicySettings
from site_client.metered import Meter
from site_client.windows import parse_window


def policy_conflicts(policy: PolicySettings, plan: TrainingPlan) -> Iterator[str]:
    """Yield one sentence for each rule of the policy that the plan breaks; none when it may be trained."""
    unwanted = set(plan.metrics) - set(policy.metrics)
    if unwanted:
        yield f"policy.metrics does not hold {', '.join(sorted(unwanted))}, which the plan wants"
    if plan.cohort.maximum < policy.cohort_min:
        yield f"policy.cohort_min is {policy.cohort_min}, the plan's cohorts have at most {plan.cohort.maximum} sites"
    if policy.epsilon_max > 0:
        # No plan of this version has a field for it; one that gets it is compared here.
        yield f"policy.epsilon_max is {policy.epsilon_max:g}, the plan promises no differential privacy at all"


class TransferPolicy:
    """When models and updates may move. Polls go on, and a masking that has begun is finished."""

    def __init__(
        self, policy: PolicySettings, clock: Callable[[], datetime], is_metered: Callable[[], bool | None]
    ) -> None:
        """Take the policy, the clock and the meter.

        Args:
            policy: the hospital's.
            clock: aware time.
            is_metered: whether the link costs by the byte; None when nothing on this machine can tell.
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
