"""The end of a round at a site: verify the published model, then erase secrets and update."""

from federation.v1 import rounds_pb2

from site_client.agent.egress.egress import Egress
from site_client.agent.rounds.journal import CurrentRound
from site_client.agent.rounds.readiness import Readiness
from site_client.agent.rounds.round_files import RoundFiles
from site_client.errors import ModelMismatch, StepRefused


class Closing:
    """Carries out the close step. One that comes again, or for another round, does nothing."""

    def __init__(self, files: RoundFiles, egress: Egress, readiness: Readiness) -> None:
        self._files, self._egress, self._readiness = files, egress, readiness

    def close(self, step: rounds_pb2.CloseStep) -> None:
        """Verify and erase.

        Raises:
            ModelMismatch: the published model is not the one that its sum leads to. The round is erased all the same,
                and this site takes no further part in the run.
            StepRefused: the published sum is of another round.
            Unreachable: the download broke off; the next turn continues it.
        """
        current = self._files.journal.current
        if current is None or not current.is_of(step.round):
            return
        is_published = step.outcome == rounds_pb2.CloseStep.PUBLISHED
        try:
            # Without the base model nothing can be recomputed: the next round then brings a whole model.
            if is_published and self._files.models.holds(current.base_model_digest):
                self._verify(current, step.published)
        except ModelMismatch:
            self._files.plans.distrust(current.run_id)
            self._erase(current)
            raise
        self._erase(current)

    def _verify(self, current: CurrentRound, published: rounds_pb2.PublishedSum) -> None:
        """Recompute the published model. An evaluation-only round publishes the model that it evaluated."""
        # The sum of another round would lead to a model that no site trained from.
        if published.round != current.number:
            raise StepRefused(
                f"the sum of round {published.round} does not close round {current.number}; polling again"
            )
        if not current.evaluation_only:
            plan = self._files.plan_of(current).plan
            self._files.models.follow(self._egress, plan, current.base_model_digest, published)
        elif published.model_digest != current.base_model_digest:
            raise ModelMismatch("an evaluation-only round changed the model; ask the coordinator")

    def _erase(self, current: CurrentRound) -> None:
        # The job goes first: the trainer sees that the round is over, and removes the update.
        self._readiness.forget()
        self._files.spool.withdraw_job(current.run_id, current.number)
        self._files.journal.close()
