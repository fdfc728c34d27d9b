"""A site's part in a run: poll, take the step that the answer asks for, record every fact before it is sent.

`Participant.step` is one turn. The object holds nothing in memory that matters: killed anywhere and started again, the
next turn polls, finds its files, and sends the same bytes. So every retry, after an error or a crash, is one more turn.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version

from federation.errors import FederationError
from federation.limits import SECAGG_VERSION
from federation.v1 import rounds_pb2
from federation.vocabulary import SiteState

from site_client.agent.egress.calls import FETCH_ROSTER, POLL
from site_client.agent.egress.egress import Egress
from site_client.agent.evidence import Attest, SnpMachine
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.privacy.ledger import PrivacyLedger
from site_client.agent.rounds.closing import Closing
from site_client.agent.rounds.job_offer import JobOffer
from site_client.agent.rounds.masking import MaskingPhases
from site_client.agent.rounds.plans import PlanDecision
from site_client.agent.rounds.policy import TransferPolicy
from site_client.agent.rounds.privacy_budget import PrivacyBudget
from site_client.agent.rounds.readiness import Readiness
from site_client.agent.rounds.rollback import RollbackWatch
from site_client.agent.rounds.round_files import RoundFiles
from site_client.agent.rounds.situation import Situation, SituationReport
from site_client.config import SiteSettings
from site_client.errors import ModelMismatch, SiteError, SpoolRefused, StateRefused, StepRefused
from site_client.spool import AgentSide


@dataclass(frozen=True)
class Turn:
    """The result of one step.

    Attributes:
        wait_s: The pause until the next.
        asked: The step that was asked for.
        refusal: Of that step, if it was refused.
        aggregator_time_ms: The aggregator's clock, since 1970; 0 where it does not tell.
    """

    wait_s: float
    asked: str | None
    refusal: StepRefused | ModelMismatch | SpoolRefused | StateRefused | None = None
    aggregator_time_ms: int = 0


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
        attest: Attest | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            egress: The only way out.
            identity: Of this site.
            spool: The agent's side.
            settings: Of this site.
            clock: Aware time.
            is_metered: Whether the link costs by the byte; None when nothing on this machine can tell.
            attest: Makes evidence of this machine; None: its secure processor.

        Raises:
            StateRefused: The journal is damaged.
        """
        folder, policy = settings.folders.agent, settings.policy
        self._egress, self._identity, self._agent, self._policy = egress, identity, settings.agent, policy
        self._version = version("hemofed")[:32]
        files = RoundFiles.in_folder(
            folder, spool, egress, identity, clock, attest or SnpMachine(settings.agent.snp_certificates)
        )
        transfers = TransferPolicy(policy, clock, is_metered)
        self._report = SituationReport(files, transfers, settings, clock)
        self._readiness = Readiness(files, egress, identity, policy, folder / "dry_run")
        privacy = PrivacyLedger(folder, identity.keys.signing, clock, settings.training.validation_fraction)
        budget = PrivacyBudget(policy, privacy)
        self._job_offer = JobOffer(files, egress, identity, policy, transfers, self._readiness, self.known, budget)
        self._clock = clock
        self._masking = MaskingPhases(
            egress, identity, files.journal, files.sums, policy.cohort_min, self.known, budget.charge
        )
        self._closing = Closing(files, egress, identity, self._readiness)
        self._files, self.plans, self.journal = files, files.plans, files.journal
        self.models, self.model_files = files.models, files.model_files
        self.content_keys = files.content_keys
        self._rollback = RollbackWatch(folder, settings.folders.spool, egress, privacy, files, clock)
        self._seen = self._local_facts()
        self.suspended = False  # by the coordinator, as the last poll's answer said

    def step(self) -> Turn:
        """Poll once, and take the step that the answer asks for.

        After an error the next step starts from what is on disk.

        Raises:
            LinkError: A call did not succeed.
            EgressRefused: The guard did not let a message leave.
            FederationError: The aggregator sent something that no machine of the consortium may accept.
        """
        # Before the poll: a change during the poll is then news afterwards, and not lost.
        self._seen = self._local_facts()
        reply = self._egress.send(POLL, self._poll_request())
        self.suspended = reply.suspended
        self._rollback.look(reply)
        # Before the step, which may name a roster of this epoch.
        if reply.roster_epoch > self._identity.roster.epoch:
            self._identity.accept_roster(self._egress.send(FETCH_ROSTER, FETCH_ROSTER.request()))
        self._identity.known_sites.observe(self._identity.roster, self._clock())
        asked = reply.WhichOneof("step")
        # The aggregator proposes, within the hospital's own bounds.
        wait_s = min(self._agent.poll_max_s, max(self._agent.poll_min_s, reply.retry_after_ms / 1000))
        try:
            self._rollback.admit(reply, self._job_offer.check)
            is_ready = self._take(asked, reply)
        except (StepRefused, ModelMismatch, SpoolRefused, StateRefused) as refusal:
            return Turn(wait_s, asked, refusal, reply.aggregator_time_ms)
        # The wait that came with an offer is a trainer's; a site that has just said Ready may be the one waited for.
        return Turn(self._agent.poll_min_s if is_ready else wait_s, asked, None, reply.aggregator_time_ms)

    def has_news(self) -> bool:
        """Whether an update or a decision on a plan came since the last step."""
        try:
            return self._local_facts() != self._seen
        except (SiteError, FederationError, OSError):
            return True  # a damaged file: the next step raises it, where the caller expects errors

    def known(self) -> frozenset[str]:
        """Return the hospitals of the roster that count for this one now."""
        return self._identity.known_sites.known(self._identity.roster, self._policy, self._clock())

    @property
    def rolled_back(self) -> str:
        """Return how the run of the round in progress went back to an earlier model; empty when it did not."""
        current = self.journal.current
        followed = None if current is None else self.models.rollbacks.newest(current.run_id)
        return "" if followed is None else followed.words()

    def situation(self) -> Situation:
        """Return this site's report about itself."""
        try:
            stopped_by = self._rollback.stopped_by()
        except StateRefused as error:
            stopped_by = str(error)
        return Situation(SiteState.ATTENTION, refusal=stopped_by) if stopped_by else self._report.now()

    def _poll_request(self) -> rounds_pb2.PollRequest:
        situation, current = self.situation(), self.journal.current
        request = rounds_pb2.PollRequest(
            state=situation.state.number,
            # Sorted, so that equal situations give equal bytes in the ledger.
            reasons=sorted({reason.number for reason in situation.reasons}),
            progress_percent=situation.progress_percent,
            roster_epoch=self._identity.roster.epoch,
            model_digest=self.model_files.newest,
            version=self._version,
            ledger_entries=self._egress.ledger.entries,
            ledger_head=bytes.fromhex(self._egress.ledger.head),
            secagg=SECAGG_VERSION,
        )
        if current is not None:
            # After a restart of either side the aggregator learns from this in which round the site is.
            request.working_on.CopyFrom(current.ref())
        return request

    def _take(self, asked: str | None, reply: rounds_pb2.PollReply) -> bool:
        """Take the step; whether the site said Ready in it."""
        if asked not in (None, "close"):
            self._require_roster()
        if asked == "train":
            return self._job_offer.take(reply.train)
        if asked == "close":
            self._closing.close(reply.close)
        elif asked is not None:
            self._mask(asked, reply)
        return False

    def _require_roster(self) -> None:
        """Refuse every step under a roster that has ended: the aggregator may withhold one that removes a site."""
        roster = self._identity.roster
        if roster.has_expired(self._clock()):
            raise StepRefused(
                f"the roster ended on {roster.expires_at:%Y-%m-%d}, so this site takes part in nothing; ask the "
                "coordinator for a new one, signed by the custodian"
            )

    def _mask(self, phase: str, reply: rounds_pb2.PollReply) -> None:
        current = self.journal.current
        if current is None or current.declined is not None:
            raise StepRefused("this site takes no part in the round that is being masked; polling again")
        update = self._files.update_of(current)
        if update is None:
            raise StepRefused("this site holds no update for the round that is being masked; polling again")
        # The plan from disk, verified when it was kept; a masking step brings none.
        plan = self._files.plan_of(current).plan
        if phase == "keys":
            self._masking.keys(plan, reply.keys)
        elif phase == "shares":
            self._masking.shares(plan, reply.shares)
        elif phase == "upload":
            self._masking.upload(plan, reply.upload, self._readiness.contribution(current, update))
        elif phase == "confirm":
            self._masking.confirm(plan, reply.confirm)
        else:
            self._masking.reveal(reply.reveal)

    def _local_facts(self) -> tuple[bool, PlanDecision | None, bytes | None]:
        """Return the facts that a person or the trainer may change between two polls."""
        current = self.journal.current
        if current is None or current.declined is not None:
            return False, None, None
        held = self.plans.get(current.plan_digest)
        has_update = self._files.spool.delivered(current.run_id, current.number)
        # A trainer that was started anew waits for the content key of its job.
        key = None
        # A hostile trainer's file must not keep the agent from polling; `lend_key` says what is wrong with it.
        with suppress(SpoolRefused):
            key = self._files.spool.trainer_key() if held is not None and held.plan.release is not None else None
        return has_update, held.decision if held else None, key
