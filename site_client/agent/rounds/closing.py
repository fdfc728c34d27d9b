"""The end of a round at a site: verify the published model and sign it, then erase secrets and update."""

from collections.abc import Iterable

import structlog
from federation.certificate import ModelCertificate
from federation.masking_messages import bad_dealing_of
from federation.secagg import Member, SecaggError
from federation.v1 import rounds_pb2, secagg_pb2

from site_client.agent.egress.calls import SIGN_MODEL
from site_client.agent.egress.egress import Egress
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.rounds.journal import CurrentRound
from site_client.agent.rounds.readiness import Readiness
from site_client.agent.rounds.round_files import RoundFiles
from site_client.errors import ModelMismatch, StepRefused

_log = structlog.get_logger()


class Closing:
    """Carries out the close step. One that comes again, or for another round, does nothing."""

    def __init__(self, files: RoundFiles, egress: Egress, identity: SiteIdentity, readiness: Readiness) -> None:
        self._files, self._egress, self._identity, self._readiness = files, egress, identity, readiness

    def close(self, step: rounds_pb2.CloseStep) -> None:
        """Verify, sign and erase.

        Raises:
            ModelMismatch: the published model is not the one that its sum leads to, or a sum that was said to be
                refused leads to one. The round is erased all the same,
                and this site takes no further part in the run.
            StepRefused: the sum is of another round, or of other members than this site has confirmed.
            Unreachable: the download broke off; the next turn continues it.
        """
        current = self._files.journal.current
        if current is None or not current.is_of(step.round):
            return
        is_published = step.outcome == rounds_pb2.CloseStep.PUBLISHED
        try:
            # Without the base model nothing can be recomputed: the next round then brings a whole model.
            holds_base = self._files.models.holds(current.base_model_digest)
            if is_published or step.outcome == rounds_pb2.CloseStep.REFUSED:
                _check_members(current, step)
            if is_published and holds_base:
                self._verify(current, step.published)
                self._sign(current, step)
            if step.outcome == rounds_pb2.CloseStep.REFUSED and holds_base:
                self._verify_refused(current, step.published)
        except ModelMismatch:
            self._files.plans.distrust(current.run_id)
            self._erase(current)
            raise
        self._settle(current, step)
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

    def _verify_refused(self, current: CurrentRound, refused: rounds_pb2.PublishedSum) -> None:
        """Check that the sum leads to no model: an aggregator may not withhold one that it says was spoiled."""
        if refused.round != current.number:
            raise StepRefused(f"the sum of round {refused.round} does not close round {current.number}; polling again")
        plan = self._files.plan_of(current).plan
        self._files.models.check_refused(self._egress, plan, current.base_model_digest, refused)

    def _settle(self, current: CurrentRound, step: rounds_pb2.CloseStep) -> None:
        """Record how the sum that this site revealed for has ended, if that was shown."""
        if current.revealed_attempt == 0:
            return
        if step.outcome in (rounds_pb2.CloseStep.PUBLISHED, rounds_pb2.CloseStep.REFUSED):
            led_on = step.outcome == rounds_pb2.CloseStep.PUBLISHED and not current.evaluation_only
            self._files.sums.settle(current, led_on=led_on)
        elif exposed := self._exposed(current, step.bad_dealings):
            self._files.sums.settle(current, exposed=exposed)

    def _exposed(self, current: CurrentRound, shown: Iterable[secagg_pb2.BadDealing]) -> list[str]:
        """Return the members whose shares of no secret are proven to this site."""
        path = self._files.journal.attempt_folder(current.revealed_attempt) / "member.bin"
        exposed = []
        try:
            member = Member.from_bytes(path.read_bytes(), self._identity.keys.signing)
            for message in shown:
                evidence = bad_dealing_of(message)
                if evidence is not None:
                    member.verify_bad_dealing(evidence)
                    exposed.append(evidence.dealer)
        except (OSError, SecaggError) as error:
            _log.warning("evidence refused", round=current.number, why=str(error))
            return []
        return exposed

    def _sign(self, current: CurrentRound, step: rounds_pb2.CloseStep) -> None:
        """Sign the computed model, for sites that were not in the round. A member of the sum does, and nobody else."""
        if current.evaluation_only or tuple(step.uploaded) != current.confirmed:
            return
        certificate = ModelCertificate(
            plan_digest=current.plan_digest,
            round=current.number,
            base_model_digest=current.base_model_digest,
            model_digest=step.published.model_digest,
            cohort=current.confirmed,
        )
        signature = certificate.sign(self._identity.keys.signing)
        # Before the round is erased: a signature that did not arrive is sent again by the next turn.
        message = rounds_pb2.ModelSignature(round=current.ref(attempt=0), signature=signature)
        self._egress.send(SIGN_MODEL, message)

    def _erase(self, current: CurrentRound) -> None:
        # The job goes first: the trainer sees that the round is over, and removes the update.
        self._readiness.forget()
        self._files.spool.withdraw_job(current.run_id, current.number)
        self._files.models.drop_arrivals()
        self._files.journal.close()


def _check_members(current: CurrentRound, step: rounds_pb2.CloseStep) -> None:
    """Refuse a sum that is said to be of other members than those that this site has revealed for."""
    if current.revealed_attempt and (
        tuple(step.uploaded) != current.confirmed or step.published.members != len(current.confirmed)
    ):
        raise StepRefused(
            f"the sum of round {current.number} is said to be of {step.published.members} members, this site has "
            f"confirmed {len(current.confirmed)}; polling again"
        )
