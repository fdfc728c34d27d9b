"""A site's part in a run: poll, do what the answer asks if it may be done, and say nothing that is not on disk first.

`SiteRounds.step` is one turn of the wheel. It holds nothing in memory that matters: killed anywhere and started again,
the next turn asks, finds its files, and gives the same bytes. So every retry, after an error or a crash, is a turn.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import structlog
from federation.encoding import Layout
from federation.errors import EncodingRefused
from federation.plan import TrainingPlan
from federation.v1 import rounds_pb2

from site_client.agent.egress.calls import DECLINE, FETCH_PLAN, FETCH_ROSTER, POLL, READY
from site_client.agent.egress.egress import Egress
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.rounds.contribution import Contribution, prepare_contribution
from site_client.agent.rounds.dry_run import DryRunSite, run_dry
from site_client.agent.rounds.journal import CurrentRound, RoundJournal
from site_client.agent.rounds.masking import MaskingPhases
from site_client.agent.rounds.models import Models
from site_client.agent.rounds.plans import HeldPlan, PlanDecision, Plans
from site_client.agent.rounds.policy import policy_conflicts
from site_client.config import SiteSettings
from site_client.errors import EgressRefused, ModelMismatch, SpoolRefused, StepRefused
from site_client.metered import Meter
from site_client.records import Job, RunId, Status, Update
from site_client.spool import AgentSide
from site_client.windows import parse_window

_log = structlog.get_logger()

_DECLINABLE = ("PLAN_REFUSED", "POLICY", "TOO_FEW_STUDIES", "NO_LABELS", "TRAINING_FAILED")
_TRAINER_STATES = ("SITE_PREPARING", "SITE_TRAINING", "SITE_PAUSED", "SITE_ATTENTION")


@dataclass(frozen=True)
class Situation:
    """What this site tells about itself: `SiteState` and `StateReason` names, closed lists both."""

    state: str
    reasons: tuple[str, ...] = ()
    progress_percent: int = 0


@dataclass(frozen=True)
class Turn:
    """One step: when to come back, what was asked, and why it was not done, if it was not."""

    wait_s: float
    asked: str | None
    refusal: StepRefused | ModelMismatch | None = None


class Participant:
    """One site in whatever run there is. Not thread-safe; one process at a time."""

    def __init__(
        self,
        egress: Egress,
        identity: SiteIdentity,
        spool: AgentSide,
        settings: SiteSettings,
        clock: Callable[[], datetime],
        is_metered: Callable[[], bool | None] = lambda: None,
    ) -> None:
        folder: Path = settings.folders.agent
        self._egress, self._identity, self._spool, self._settings = egress, identity, spool, settings
        self._clock = clock
        self._windows = [parse_window(text) for text in settings.policy.transfer_windows]
        self._meter = Meter(settings.policy, clock, is_metered)
        self._version = version("hemofed")
        self.plans = Plans(folder / "plans")
        self.models = Models(folder / "models")
        self.book = RoundJournal(folder / "rounds")
        self._scratch = folder / "rehearsal"
        self._masking = MaskingPhases(egress, identity, self.book, settings.policy.cohort_min)
        # The update in hand, and what came of examining it: nothing but a saving, made anew after a start.
        self._examined: tuple[Update, Contribution] | None = None
        self._withdraw_stale_jobs()
        self._seen = self._local_facts()

    def step(self) -> Turn:
        """One poll, and what its answer asks for.

        Errors: Unreachable, Refused, EgressRefused, FederationError. After each the next step starts from what is on
        disk.
        """
        self._seen = self._local_facts()
        reply = self._egress.send(POLL, self._poll_request())
        if reply.roster_epoch > self._identity.roster.epoch:
            self._identity.accept_roster(self._egress.send(FETCH_ROSTER, FETCH_ROSTER.request()))
        agent = self._settings.agent
        wait_s = min(agent.poll_max_s, max(agent.poll_min_s, reply.retry_after_ms / 1000))
        try:
            is_ready = self._act(reply)
        except (StepRefused, ModelMismatch) as refusal:
            return Turn(wait_s, reply.WhichOneof("step"), refusal)
        # The wait that came with an offer is a trainer's; a site that has just said Ready may be the one waited for.
        return Turn(agent.poll_min_s if is_ready else wait_s, reply.WhichOneof("step"))

    def has_news(self) -> bool:
        """Whether something happened here since the last step: an update came, or a word on a plan."""
        return self._local_facts() != self._seen

    def situation(self) -> Situation:
        """What to tell. From files alone."""
        try:
            return self._situation()
        except SpoolRefused:  # the service logs it when the update is looked at
            return Situation("SITE_ATTENTION", ("TRAINING_FAILED",))

    def _situation(self) -> Situation:
        current, status = self.book.current, self._spool.status()
        distrusts = self.plans.distrusts_any() if current is None else self.plans.distrusted(current.run_id)
        if distrusts:
            return Situation("SITE_ATTENTION", ("MODEL_MISMATCH",))
        silent = status is None or self._clock() - status.written_at > self._silence
        if current is None or current.declined is not None:
            return Situation("SITE_ATTENTION", ("TRAINER_SILENT",)) if silent else _when_idle(status)
        if current.attempt > current.refused_attempt:
            return Situation("SITE_MASKING", progress_percent=100)
        update = self._update(current)
        waits = self._transfers_wait_for()
        if waits and (update is not None or not self.models.holds(current.base_model_digest)):
            return Situation("SITE_PAUSED", waits, 0 if update is None else 100)
        if update is not None:
            return Situation("SITE_READY", progress_percent=100)
        if self._waits_for_approval(current):
            return Situation("SITE_AWAITING_APPROVAL")
        return Situation("SITE_ATTENTION", ("TRAINER_SILENT",)) if silent else _while_training(current, status)

    # The poll.

    def _poll_request(self) -> rounds_pb2.PollRequest:
        situation, current = self.situation(), self.book.current
        request = rounds_pb2.PollRequest(
            state=rounds_pb2.SiteState.Value(situation.state),
            reasons=sorted({rounds_pb2.StateReason.Value(name) for name in situation.reasons}),
            progress_percent=situation.progress_percent,
            roster_epoch=self._identity.roster.epoch,
            model_digest=self.models.newest,
            version=self._version[:32],
            ledger_entries=self._egress.ledger.entries,
            ledger_head=bytes.fromhex(self._egress.ledger.head),
        )
        if current is not None:
            request.working_on.CopyFrom(current.ref())
        return request

    def _act(self, reply: rounds_pb2.PollReply) -> bool:
        """Whether it made this site Ready."""
        name = reply.WhichOneof("step")
        if name == "train":
            return self._train(reply.train)
        if name == "close":
            self._close(reply.close)
        elif name is not None:
            self._mask(name, reply)
        return False

    # Train: plan, approval, base model, job.

    def _train(self, step: rounds_pb2.TrainStep) -> bool:
        if self.plans.distrusted(step.round.run_id):
            raise StepRefused("a model of this run did not verify here; `hemofed-site status` says what to do")
        held = self._plan(step)
        _check_step(held.plan, step)
        current = self._begin(step)
        if current.declined is not None:
            self._decline(current, current.declined)
        elif held.decision is PlanDecision.REFUSED:
            self._decline(current, "PLAN_REFUSED")
        elif against := list(policy_conflicts(self._settings.policy, held.plan)):
            _log.warning("plan_declined", round=current.number, why="; ".join(against))
            self._decline(current, "POLICY")
        elif not self._waits_for_approval(current) and not self._transfers_wait_for():
            return self._offer(current, held, step)
        return False

    def _plan(self, step: rounds_pb2.TrainStep) -> HeldPlan:
        held = self.plans.get(step.plan_digest)
        if held is not None:
            return held
        signed = self._egress.send(FETCH_PLAN, rounds_pb2.FetchPlanRequest(plan_digest=step.plan_digest))
        return self.plans.keep(signed, step.plan_digest, self._identity.custodian)

    def _begin(self, step: rounds_pb2.TrainStep) -> CurrentRound:
        before = self.book.current
        current = self.book.begin(
            CurrentRound(
                run_id=RunId(step.round.run_id),
                number=step.round.round,
                plan_digest=step.plan_digest,
                base_model_digest=step.base_model_digest,
                evaluation_only=step.evaluation_only,
            )
        )
        if before is not None and not before.is_of(step.round):
            self._spool.withdraw_job(before.run_id, before.number)
        return current

    def _offer(self, current: CurrentRound, held: HeldPlan, step: rounds_pb2.TrainStep) -> bool:
        """Fetches or computes the base model and hands the round to the trainer; says Ready if it is done already."""
        try:
            self.models.obtain(self._egress, held.plan, step)
        except ModelMismatch:
            self.plans.distrust(current.run_id)
            raise
        job = Job(
            run_id=current.run_id,
            round=current.number,
            evaluation_only=current.evaluation_only,
            base_model_digest=current.base_model_digest,
            plan_digest=current.plan_digest,
        )
        self._spool.offer_job(job, held.signed, self.models.path(current.base_model_digest))
        # Also when the round is offered again because an attempt failed without us: we still hold the update.
        return self._tell_outcome(current)

    # The update: ready or declined.

    def _tell_outcome(self, current: CurrentRound) -> bool:
        """Says Ready, or why not, once the trainer is done; whether it said Ready. Errors: Unreachable, Refused."""
        try:
            update = self._update(current)
            if update is None:
                return False
            if update.outcome == "declined":
                self._decline(current, update.reason)
                return False
            plan = self._current_plan(current).plan
            if update.studies < max(self._settings.policy.studies_min, plan.training.studies_min):
                self._decline(current, "TOO_FEW_STUDIES")
                return False
            contribution = self._contribution(current, update)
            if self._settings.policy.dry_run:
                self._run_dry(current, plan, contribution)
                return False
        except (EgressRefused, SpoolRefused, EncodingRefused) as error:
            _log.warning("update_withheld", round=current.number, why=str(error))
            self._decline(current, "TRAINING_FAILED")
            return False
        self._egress.send(READY, rounds_pb2.ReadyMessage(round=current.ref(attempt=0)))
        return True

    def _run_dry(self, current: CurrentRound, plan: TrainingPlan, contribution: Contribution) -> None:
        """Shows in the ledger what would leave, and takes no part in the round. Errors: EgressRefused."""
        stage = DryRunSite(
            self._identity, self._egress.ledger, self._egress.payloads, self._settings.policy, self._scratch
        )
        run_dry(stage, plan, current, contribution, self._egress.dest)
        _log.info("rehearsed", round=current.number, bytes=contribution.layout.bytes)
        self._decline(current, "POLICY")

    def _decline(self, current: CurrentRound, reason: str | None) -> None:
        declined = reason if reason in _DECLINABLE else "TRAINING_FAILED"
        self.book.save(replace(current, declined=declined))
        self._spool.withdraw_job(current.run_id, current.number)
        number = rounds_pb2.StateReason.Value(declined)
        self._egress.send(DECLINE, rounds_pb2.DeclineMessage(round=current.ref(attempt=0), reason=number))

    def _update(self, current: CurrentRound) -> Update | None:
        update = self._spool.update(current.run_id, current.number)
        return update if update is not None and update.base_model_digest == current.base_model_digest else None

    def _contribution(self, current: CurrentRound, update: Update) -> Contribution:
        """`update` as it goes into the sum; read, hashed and examined once, and kept until the round is over."""
        if self._examined is None or self._examined[0] != update:
            self._examined = update, self._examine(current, update)
        return self._examined[1]

    def _examine(self, current: CurrentRound, update: Update) -> Contribution:
        delta = self._spool.delta(update) if update.outcome == "trained" else None
        if (delta is None) != current.evaluation_only:
            raise EgressRefused("expected a trained update in a training round, and none in the evaluation-only one")
        return prepare_contribution(self._egress.guard, self._current_plan(current).plan, update, delta)

    # Masking.

    def _mask(self, name: str, reply: rounds_pb2.PollReply) -> None:
        current = self.book.current
        if current is None or current.declined is not None:
            raise StepRefused("this site takes no part in the round that is being masked; polling again")
        update = self._update(current)
        if update is None:
            raise StepRefused("this site holds no update for the round that is being masked; polling again")
        plan = self._current_plan(current).plan
        if name == "keys":
            self._masking.keys(plan, reply.keys)
        elif name == "shares":
            self._masking.shares(plan, reply.shares)
        elif name == "upload":
            self._masking.upload(reply.upload, self._contribution(current, update))
        elif name == "confirm":
            self._masking.confirm(reply.confirm)
        else:
            self._masking.reveal(reply.reveal)

    # Close: verify, erase.

    def _close(self, step: rounds_pb2.CloseStep) -> None:
        current = self.book.current
        if current is None or not current.is_of(step.round):
            return
        try:
            if step.outcome == rounds_pb2.CloseStep.PUBLISHED and self.models.holds(current.base_model_digest):
                self._verify(current, step.published)
        except ModelMismatch:
            self.plans.distrust(current.run_id)
            self._erase(current)
            raise
        self._erase(current)

    def _verify(self, current: CurrentRound, opened: rounds_pb2.PublishedSum) -> None:
        """Recomputes the published model. An evaluation-only round publishes the one it judged."""
        if opened.round != current.number:
            raise StepRefused(f"the sum of round {opened.round} does not close round {current.number}; polling again")
        if not current.evaluation_only:
            plan = self._current_plan(current).plan
            self.models.follow(self._egress, plan, current.base_model_digest, opened)
        elif opened.model_digest != current.base_model_digest:
            raise ModelMismatch("an evaluation-only round changed the model; ask the coordinator")

    def _erase(self, current: CurrentRound) -> None:
        """The job goes first: the trainer sees that it is over, and removes the update."""
        self._examined = None
        self._spool.withdraw_job(current.run_id, current.number)
        self.book.close()

    def _local_facts(self) -> tuple[bool, PlanDecision | None]:
        current = self.book.current
        if current is None or current.declined is not None:
            return False, None
        held = self.plans.get(current.plan_digest)
        return self._spool.delivered(current.run_id, current.number), held.decision if held else None

    def _withdraw_stale_jobs(self) -> None:
        current = self.book.current
        for job in self._spool.jobs():
            if current is None or (job.run_id, job.round) != (current.run_id, current.number):
                self._spool.withdraw_job(job.run_id, job.round)

    # Small questions.

    @property
    def _silence(self) -> timedelta:
        return timedelta(seconds=self._settings.agent.trainer_silent_s)

    def _current_plan(self, current: CurrentRound) -> HeldPlan:
        held = self.plans.get(current.plan_digest)
        if held is None:
            raise StepRefused("the plan of the open round is gone from the state folder; restore it from the backup")
        return held

    def _waits_for_approval(self, current: CurrentRound) -> bool:
        asks = self._settings.policy.plan_approval == "ask"
        return asks and self._current_plan(current).decision is not PlanDecision.APPROVED

    def _transfers_wait_for(self) -> tuple[str, ...]:
        """Why models and updates do not move now; empty when they may. A masking that has begun is finished anyway."""
        now = self._clock().astimezone()
        closed = bool(self._windows) and not any(window.contains(now) for window in self._windows)
        costly = self._meter.holds_back()
        return (*(("METERED",) if costly else ()), *(("NET_WINDOW",) if closed else ()))


def _check_step(plan: TrainingPlan, step: rounds_pb2.TrainStep) -> None:
    """What a step may say about a plan. Errors: StepRefused."""
    if step.round.run_id != plan.run_id:
        raise StepRefused("the step is of another run than its plan; nothing was done")
    if step.evaluation_only != plan.evaluates_only(step.round.round):
        raise StepRefused(f"round {step.round.round} of {plan.rounds} is of the wrong kind; nothing was done")
    if step.round.round == 1 and step.base_model_digest != plan.initial_model_digest:
        raise StepRefused("the first round starts from another model than the signed plan names; nothing was done")
    Layout.of_round(plan, step.round.round)


def _when_idle(status: Status | None) -> Situation:
    if status is not None and status.state in ("SITE_PAUSED", "SITE_ATTENTION"):
        return Situation(status.state, status.reasons)
    return Situation("SITE_IDLE")


def _while_training(current: CurrentRound, status: Status | None) -> Situation:
    of_this_round = status is not None and (status.run_id, status.round) == (current.run_id, current.number)
    if status is None or status.state not in _TRAINER_STATES:
        return Situation("SITE_PREPARING")
    return Situation(status.state, status.reasons, status.progress_percent if of_this_round else 0)
