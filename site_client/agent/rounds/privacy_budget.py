"""The hospital's policy and its privacy ledger against a round: whether it may be charged, and that it was."""

from federation.plan import TrainingPlan

from site_client.agent.privacy.ledger import PrivacyLedger
from site_client.agent.rounds.policy import policy_conflicts
from site_client.config import PolicySettings
from site_client.errors import LedgerBroken, StepRefused


class PrivacyBudget:
    """Asks the policy before a round, and charges the ledger before its upload leaves."""

    def __init__(self, policy: PolicySettings, ledger: PrivacyLedger) -> None:
        self._policy, self._ledger = policy, ledger

    def conflicts(self, plan: TrainingPlan, number: int) -> list[str]:
        """Return one sentence for each rule of the policy against this round of a plan and those after it.

        Raises:
            StepRefused: The privacy ledger does not verify.
        """
        try:
            return list(policy_conflicts(self._policy, plan, self._ledger.spending(), number))
        except LedgerBroken as error:
            raise _stopped(error) from error

    def charge(self, plan: TrainingPlan, number: int) -> None:
        """Charge a round, durably, if the policy still allows it. Charging it again does nothing.

        Raises:
            StepRefused: The policy is against it, or the privacy ledger does not verify.
        """
        # The policy may have changed since the round was offered.
        if conflicts := self.conflicts(plan, number):
            raise StepRefused(f"nothing was sent: {'; '.join(conflicts)}")
        try:
            self._ledger.charge(plan, number)
        except LedgerBroken as error:
            raise _stopped(error) from error


def _stopped(error: LedgerBroken) -> StepRefused:
    return StepRefused(f"{error}; until then this site takes part in no round")
