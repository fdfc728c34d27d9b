"""Turns the trainer's update into an answer: this site is ready, or declines the round with a reason.

A reason is one of DECLINE_REASONS. The trainer may state others of the vocabulary; they leave as TRAINING_FAILED.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import structlog
from federation.errors import EncodingRefused
from federation.plan import TrainingPlan
from federation.v1 import rounds_pb2
from federation.vocabulary import DECLINE_REASONS, Outcome, StateReason
from numpy.typing import NDArray

from site_client.agent.egress.calls import DECLINE, READY
from site_client.agent.egress.egress import Egress
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.rounds.contribution import Contribution, prepare_contribution
from site_client.agent.rounds.dry_run import DryRunSite, run_dry
from site_client.agent.rounds.journal import CurrentRound
from site_client.agent.rounds.round_files import RoundFiles
from site_client.config import PolicySettings
from site_client.errors import EgressRefused, SpoolRefused
from site_client.records import NO_HISTOGRAMS, Update
from site_client.spool import UpdateSeal

_log = structlog.get_logger()
_OF_DATA: Final = (StateReason.TOO_FEW_STUDIES, StateReason.NO_LABELS)


class Readiness:
    """Examines the update of the round in progress, and answers the aggregator."""

    def __init__(
        self, files: RoundFiles, egress: Egress, identity: SiteIdentity, policy: PolicySettings, scratch: Path
    ) -> None:
        """Take the parts that an answer needs.

        Args:
            files: Of this site.
            egress: Where the answer leaves.
            identity: Of this site, for a dry run.
            policy: The hospital's.
            scratch: A folder for dry runs, empty between them.
        """
        self._files, self._egress, self._identity = files, egress, identity
        self._policy, self._scratch = policy, scratch
        # The examined update: clipping and hashing it again for each phase would read the whole vector each time.
        self._examined: tuple[Update, Contribution] | None = None

    def answer(self, current: CurrentRound) -> bool:
        """Say Ready, or decline, once the trainer has delivered.

        Returns:
            Whether the site said Ready.

        Raises:
            LinkError: The answer did not arrive; the next turn repeats it.
        """
        try:
            update = self._files.update_of(current)
            if update is None:
                return False
            plan = self._files.plan_of(current).plan
            if (reason := self._reason_against(plan, update)) is not None:
                self.decline(current, reason)
                return False
            # Examined before Ready: a cohort would wait in vain for an update that the guard withholds.
            contribution = self.contribution(current, update)
            if self._policy.dry_run:
                self._run_dry(current, plan, contribution)
                return False
        except (EgressRefused, SpoolRefused, EncodingRefused) as error:
            _log.warning("update withheld", round=current.number, why=str(error))
            self.decline(current, StateReason.TRAINING_FAILED)
            return False
        # Nothing to record first: Ready may be repeated, and says only what the spool holds.
        self._egress.send(READY, rounds_pb2.ReadyMessage(round=current.ref(attempt=0)))
        return True

    def _reason_against(self, plan: TrainingPlan, update: Update) -> StateReason | None:
        """Return the reason why this site's data do not suffice; of a private run its one answer, in every round."""
        answer = self._files.plans.run_answer(plan.run_id) if plan.privacy is not None else None
        if answer is not None:
            return answer.declined
        reason = update.reason
        if update.outcome != Outcome.DECLINED and update.studies < max(
            self._policy.studies_min, plan.training.studies_min
        ):
            reason = StateReason.TOO_FEW_STUDIES
        # A training that failed says nothing of the data; the next round may be this site's first.
        if plan.privacy is not None and reason in (None, *_OF_DATA):
            self._files.plans.answer_run(plan.run_id, reason)
        return reason

    def decline(self, current: CurrentRound, reason: StateReason | None) -> None:
        """Take no part in this round: recorded first, then the job is withdrawn, then the aggregator is told."""
        # A reason outside the list could tell more about this hospital than a decline has to.
        declined = reason if reason in DECLINE_REASONS else StateReason.TRAINING_FAILED
        # Order: on disk, then the trainer stops, then the aggregator hears it. Each may be repeated after a crash.
        self._files.journal.save(replace(current, declined=declined))
        self._files.spool.withdraw_job(current.run_id, current.number)
        self._egress.send(DECLINE, rounds_pb2.DeclineMessage(round=current.ref(attempt=0), reason=declined.number))

    def contribution(self, current: CurrentRound, update: Update) -> Contribution:
        """Return `update` as it goes into the sum; examined once, and kept until `forget`.

        Raises:
            EgressRefused: The guard does not let it leave, or it is of the wrong kind for this round.
            SpoolRefused: The delta does not have the digest in `update`.
            EncodingRefused: The delta is not finite.
        """
        if self._examined is None or self._examined[0] != update:
            plan = self._files.plan_of(current).plan
            usable, delta = self._usable(current, plan, update)
            # The evaluation-only round has no place for a delta in its upload.
            if (delta is None) != current.evaluation_only:
                raise EgressRefused(
                    "expected a trained update in a training round, and none in the evaluation-only one"
                )
            contribution = prepare_contribution(
                self._egress.guard, plan, current.number, usable, delta, current.predecessor_digest
            )
            self._examined = update, contribution
        return self._examined[1]

    def _usable(
        self, current: CurrentRound, plan: TrainingPlan, update: Update
    ) -> tuple[Update, NDArray[np.float32] | None]:
        """Return the update and its delta; in a private run that this site has accepted, one of no patient if need be.

        There a decline would tell that this site's data have changed. A part of noise alone tells nothing.
        """
        try:
            is_trained = update.outcome == Outcome.TRAINED
            seal = None
            if plan.release is not None and is_trained:
                content_key = self._files.content_keys.of(plan, current.base_model_digest)
                seal = UpdateSeal(content_key, plan.digest, current.base_model_digest)
            delta = self._files.spool.delta(update, plan.moving.size, seal) if is_trained else None
            if plan.privacy is None or update.outcome != Outcome.DECLINED:
                return update, delta
            why = f"the trainer declined with {update.reason}"
        except SpoolRefused as error:
            if plan.privacy is None:
                raise
            why = str(error)
        _log.warning("private round without patients", round=current.number, why=why)
        outcome = Outcome.EVALUATED if current.evaluation_only else Outcome.TRAINED
        empty = replace(update, outcome=outcome, reason=None, histograms=NO_HISTOGRAMS)
        return empty, None if current.evaluation_only else np.zeros(plan.moving.size, np.float32)

    def forget(self) -> None:
        """Drop the examined update from memory, when its round is over."""
        self._examined = None

    def _run_dry(self, current: CurrentRound, plan: TrainingPlan, contribution: Contribution) -> None:
        """Record in the ledger all that would leave, and decline the round."""
        site = DryRunSite(self._identity, self._egress.ledger, self._egress.payloads, self._policy, self._scratch)
        run_dry(site, plan, current, contribution, self._egress.dest)
        _log.info("dry run finished", round=current.number, bytes=contribution.layout.bytes)
        self.decline(current, StateReason.POLICY)
