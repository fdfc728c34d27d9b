"""Turns the aggregator's train step into a job for the trainer: plan, approval, policy, base model, spool."""

from collections.abc import Callable, Collection
from typing import Final

import structlog
from federation.encoding import Layout
from federation.limits import DIGEST_BYTES
from federation.plan import TrainingPlan
from federation.release import ReleaseLevel
from federation.v1 import rounds_pb2
from federation.vocabulary import StateReason

from site_client.agent.egress.calls import DECLINE, FETCH_PLAN
from site_client.agent.egress.egress import Egress
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.rounds.journal import CurrentRound
from site_client.agent.rounds.models import Witnesses
from site_client.agent.rounds.plans import HeldPlan, PlanDecision
from site_client.agent.rounds.policy import TransferPolicy
from site_client.agent.rounds.privacy_budget import PrivacyBudget
from site_client.agent.rounds.readiness import Readiness
from site_client.agent.rounds.round_files import RoundFiles
from site_client.config import PolicySettings
from site_client.errors import ModelMismatch, StepRefused
from site_client.records import ROUND_MAX, Job, RunId
from site_client.typed_json import Digest

_log = structlog.get_logger()
_SPOOL_ON_DISK: Final = (
    "the plan opens models on attested machines only, and there the spool lies in memory (tmpfs): a host that writes "
    "the disk could have a model's key encrypted to another trainer; see docs/HOSPITAL.md"
)


class JobOffer:
    """Begins a round and offers its job, or declines the round with a reason."""

    def __init__(
        self,
        files: RoundFiles,
        egress: Egress,
        identity: SiteIdentity,
        policy: PolicySettings,
        transfers: TransferPolicy,
        readiness: Readiness,
        known: Callable[[], Collection[str]],
        budget: PrivacyBudget,
    ) -> None:
        """Take the parts. `known` gives the hospitals of the roster that count for this one now."""
        self._known, self._budget = known, budget
        self._files, self._egress, self._identity = files, egress, identity
        self._policy, self._transfers, self._readiness = policy, transfers, readiness

    def take(self, step: rounds_pb2.TrainStep) -> bool:
        """Carry a train step as far as it goes now; every poll repeats the step until the site is ready.

        Returns:
            Whether the site said Ready.

        Raises:
            StepRefused: The step breaks a promise of the plan or of this site, or the privacy ledger does not verify.
            ModelMismatch: The base model is not the announced one.
            ModelDamaged: It is damaged; the next turn fetches it again.
            Unreachable: The connection broke off; the next turn continues.
            FederationError: The plan or a published sum is refused.
        """
        # First: a run whose model did not verify gets neither a plan nor a job from this site.
        if self._files.plans.distrusted(step.round.run_id):
            raise StepRefused("a model of this run did not verify here; `hemofed-site status` says what to do")
        held = self.check(step)
        self._check_sums(step)
        # Begun before it may be declined: the journal records the answer before it is sent.
        current = self._begin(step)
        # An answer once given is given again: a lost reply must not change it.
        if current.declined is not None:
            self._readiness.decline(current, current.declined)
        elif held.decision is PlanDecision.REFUSED:
            self._readiness.decline(current, StateReason.PLAN_REFUSED)
        elif (answer := self._files.plans.run_answer(current.run_id)) is not None and answer.declined is not None:
            self._readiness.decline(current, answer.declined)
        elif conflicts := self._budget.conflicts(held.plan, current.number):
            _log.warning("plan declined", round=current.number, why="; ".join(conflicts))
            self._readiness.decline(current, StateReason.POLICY)
        elif not self._files.waits_for_approval(current, self._policy) and not self._transfers.held_back_by():
            self._offer(current, held, step)
            # Also when the round is offered again because an attempt failed without us: we still hold the update.
            return self._readiness.answer(current)
        return False

    def check(self, step: rounds_pb2.TrainStep) -> HeldPlan:
        """Hold a step against its signed plan, which is fetched when it is not here. No round begins.

        Raises:
            StepRefused: The step breaks a promise of the plan.
            FederationError: The plan is refused.
        """
        held = self._plan(step)
        _check_step(held.plan, step)
        return held

    def _check_sums(self, step: rounds_pb2.TrainStep) -> None:
        try:
            self._files.sums.check_offer(step.base_model_digest)
        except StepRefused:
            # So that the others do not wait for this site until the deadline.
            declined = rounds_pb2.DeclineMessage(round=step.round, reason=StateReason.POLICY.number)
            self._egress.send(DECLINE, declined)
            raise

    def _plan(self, step: rounds_pb2.TrainStep) -> HeldPlan:
        held = self._files.plans.get(step.plan_digest)
        if held is not None:
            return held
        signed = self._egress.send(FETCH_PLAN, rounds_pb2.FetchPlanRequest(plan_digest=step.plan_digest))
        return self._files.plans.keep(signed, step.plan_digest, self._identity.custodian)

    def _begin(self, step: rounds_pb2.TrainStep) -> CurrentRound:
        previous = self._files.journal.current
        current = self._files.journal.begin(
            CurrentRound(
                run_id=RunId(step.round.run_id),
                number=step.round.round,
                plan_digest=Digest(step.plan_digest),
                base_model_digest=Digest(step.base_model_digest),
                evaluation_only=step.evaluation_only,
                predecessor_digest=Digest(step.predecessor_digest) if step.predecessor_digest else None,
            )
        )
        # After the journal: a crash in between leaves a stale job, which the next start withdraws.
        if previous is not None and not previous.is_of(step.round):
            self._files.spool.withdraw_job(previous.run_id, previous.number)
        return current

    def _offer(self, current: CurrentRound, held: HeldPlan, step: rounds_pb2.TrainStep) -> None:
        """Obtain the base model, then make the job visible to the trainer."""
        try:
            if step.HasField("rollback"):
                self._files.models.follow_rollback(held.plan, step, self._identity.custodian)
            witnesses = Witnesses(self._identity.roster.signing_keys, self._known(), self._policy.cohort_min)
            self._files.models.obtain(self._egress, held.plan, step, witnesses)
            if not self._files.spool.offers(current.run_id, current.number):
                # The trainer gets a second name of this file, which may have lain on the disk for months.
                self._files.model_files.load(held.plan, current.base_model_digest)
        except ModelMismatch:
            # Recorded before the error travels on, so that a restart does not forget it.
            self._files.plans.distrust(current.run_id)
            raise
        job = Job(
            run_id=current.run_id,
            round=current.number,
            evaluation_only=current.evaluation_only,
            base_model_digest=current.base_model_digest,
            plan_digest=current.plan_digest,
        )
        base = self._files.model_files.path(held.plan, current.base_model_digest)
        offered = self._files.spool.offer_job(job, held.signed, base)
        if held.plan.release is not None:
            if held.plan.release.level is ReleaseLevel.CVM and not self._files.spool.is_in_memory:
                raise self._files.content_keys.refused(_SPOOL_ON_DISK)
            # At every turn: a trainer that was started anew has another key.
            self._files.spool.lend_key(offered, self._files.content_keys.of(held.plan, current.base_model_digest))


def _check_step(plan: TrainingPlan, step: rounds_pb2.TrainStep) -> None:
    """Hold a step against the signed plan: the aggregator cannot change run, kind or first model of a round."""
    # Beyond ROUND_MAX the journal's own files could not be read again.
    if not 1 <= step.round.round <= ROUND_MAX:
        raise StepRefused(f"expected a round from 1 to {ROUND_MAX}, got {step.round.round}; nothing was done")
    if step.round.run_id != plan.run_id:
        raise StepRefused("the step is of another run than its plan; nothing was done")
    if step.evaluation_only != plan.evaluates_only(step.round.round):
        raise StepRefused(f"round {step.round.round} of {plan.rounds} is of the wrong kind; nothing was done")
    if step.round.round == 1 and step.base_model_digest != plan.initial_model_digest:
        raise StepRefused("the first round starts from another model than the signed plan names; nothing was done")
    if step.predecessor_digest and (
        plan.gate is None
        or len(step.predecessor_digest) != DIGEST_BYTES
        or plan.initial_model_digest == step.base_model_digest
    ):
        raise StepRefused("expected no model before the base model, or its digest of 32 bytes, got another; refused")
    Layout.of_round(plan, step.round.round)
