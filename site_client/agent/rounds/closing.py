"""The end of a round at a site: verify the published model and sign it, then erase secrets and update."""

from collections.abc import Iterable
from typing import Final

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
_WITH_SUM: Final = (rounds_pb2.CloseStep.PUBLISHED, rounds_pb2.CloseStep.REFUSED)


class Closing:
    """Carries out the close step. One that comes again, or for another round, does nothing."""

    def __init__(self, files: RoundFiles, egress: Egress, identity: SiteIdentity, readiness: Readiness) -> None:
        self._files, self._egress, self._identity, self._readiness = files, egress, identity, readiness

    def close(self, step: rounds_pb2.CloseStep) -> None:
        """Verify, sign and erase.

        Raises:
            ModelMismatch: The published model is not the one that its sum leads to, or a sum that was said to be
                refused leads to one. The round is erased all the same, and this site takes no further part in the run.
            ModelDamaged: The sum or the base model is damaged. The next turn fetches the sum again, and closes the
                round without the base model.
            StepRefused: The sum is of another round, or of other members than this site has revealed for.
            Unreachable: The download broke off; the next turn continues it.
        """
        current = self._files.journal.current
        if current is None or not current.is_of(step.round):
            return
        if step.outcome in _WITH_SUM:
            _check_sum(current, step)
        # Without plan or base model nothing can be recomputed: the next round then brings both.
        held = self._files.plans.get(current.plan_digest)
        has_all = held is not None and self._files.model_files.holds(held.plan, current.base_model_digest)
        verifies = step.outcome in _WITH_SUM and has_all
        try:
            if verifies:
                self._verify(current, step)
        except ModelMismatch:
            self._files.plans.distrust(current.run_id)
            self._erase(current)
            raise
        self._settle(current, step, verified=verifies)
        self._erase(current)

    def _verify(self, current: CurrentRound, step: rounds_pb2.CloseStep) -> None:
        """Recompute the published model and sign it, or check that a refused sum leads to none.

        An evaluation-only round publishes the model that it evaluated, with its sum. A sum that refuses the base model
        leads back to the one before.
        """
        plan, base, before = self._files.plan_of(current).plan, current.base_model_digest, current.predecessor_digest
        if step.outcome == rounds_pb2.CloseStep.REFUSED:
            self._files.models.check_refused(self._egress, plan, base, step.published, before)
        elif not current.evaluation_only:
            self._files.models.follow(self._egress, plan, base, step.published, before)
            # A model that was fallen back to has the signatures of the round that led to it.
            if step.published.model_digest != before:
                self._sign(current, step)
        else:
            self._files.models.check_evaluation(self._egress, plan, base, step.published, before)

    def _settle(self, current: CurrentRound, step: rounds_pb2.CloseStep, *, verified: bool) -> None:
        """Record how the sum that this site revealed for has ended, if that was shown."""
        if current.revealed_attempt == 0:
            return
        if verified:
            self._files.sums.settle(current, published=step.outcome == rounds_pb2.CloseStep.PUBLISHED)
        elif exposed := self._exposed(current, step.bad_dealings):
            self._files.sums.settle(current, exposed=exposed)

    def _exposed(self, current: CurrentRound, shown: Iterable[secagg_pb2.BadDealing]) -> list[str]:
        """Return the members whose shares of no secret are proven to this site."""
        path = self._files.journal.member_file(current.revealed_attempt)
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
        """Sign the computed model, for sites that were not in the round. Only members of the sum sign."""
        if tuple(step.uploaded) != current.confirmed:
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
        self._files.model_files.drop_arrivals()
        self._files.journal.close()


def _check_sum(current: CurrentRound, step: rounds_pb2.CloseStep) -> None:
    """Refuse a sum of another round, or of other members than those that this site has revealed for."""
    # The sum of another round would lead to a model that no site trained from.
    if step.published.round != current.number:
        raise StepRefused(
            f"the sum of round {step.published.round} does not close round {current.number}; polling again"
        )
    if current.revealed_attempt and (
        tuple(step.uploaded) != current.confirmed or step.published.members != len(current.confirmed)
    ):
        raise StepRefused(
            f"the sum of round {current.number} is said to be of {step.published.members} members, this site has "
            f"confirmed {len(current.confirmed)}; polling again"
        )
