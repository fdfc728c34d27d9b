"""All that the agent keeps on disk about rounds: plans, models, the journal, and its end of the spool.

The parts of a round read and write these files and hold nothing else that matters. So a process that was killed
anywhere goes on where it was, after one poll.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from site_client.agent.egress.egress import Egress
from site_client.agent.evidence import Attest
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.rounds.journal import CurrentRound, RoundJournal
from site_client.agent.rounds.model_files import ModelFiles
from site_client.agent.rounds.models import Models
from site_client.agent.rounds.plans import HeldPlan, PlanDecision, Plans
from site_client.agent.rounds.released_keys import ReleasedKeys
from site_client.agent.rounds.revealed_sums import RevealedSums
from site_client.config import PolicySettings
from site_client.errors import StepRefused
from site_client.records import Update
from site_client.spool import AgentSide


@dataclass(frozen=True)
class RoundFiles:
    """The files of one site."""

    plans: Plans
    model_files: ModelFiles
    models: Models
    content_keys: ReleasedKeys
    journal: RoundJournal
    sums: RevealedSums
    spool: AgentSide

    @classmethod
    def in_folder(
        cls,
        folder: Path,
        spool: AgentSide,
        egress: Egress,
        identity: SiteIdentity,
        clock: Callable[[], datetime],
        attest: Attest,
    ) -> "RoundFiles":
        """Use the agent's state folder, and drop jobs and downloads of rounds that it no longer works on.

        Raises:
            StateRefused: The journal is damaged.
        """
        rounds = folder / "rounds"
        journal, sums = RoundJournal(rounds), RevealedSums(rounds)
        content_keys = ReleasedKeys(folder / "models", egress, identity, clock, attest)
        model_files = ModelFiles(folder / "models", content_keys)
        models = Models(folder / "models", model_files)
        files = cls(Plans(folder / "plans"), model_files, models, content_keys, journal, sums, spool)
        current = files.journal.current
        # A crash between the journal and the spool leaves such a job; the trainer would train it for hours in vain.
        if current is None:
            files.model_files.drop_arrivals()  # of a round that was closed while a crash kept its download
        spool.withdraw_others(None if current is None else current.run_id, 0 if current is None else current.number)
        return files

    def plan_of(self, current: CurrentRound) -> HeldPlan:
        """Return the plan of the round in progress.

        Raises:
            StepRefused: Its file is gone.
        """
        held = self.plans.get(current.plan_digest)
        if held is None:
            raise StepRefused(
                "the plan of the round in progress is gone from the state folder; it is fetched when the aggregator "
                "offers a round under it again"
            )
        return held

    def waits_for_approval(self, current: CurrentRound, policy: PolicySettings) -> bool:
        """Whether the policy asks for a decision on the plan that is not made yet.

        Raises:
            StepRefused: The plan's file is gone.
        """
        return policy.plan_approval == "ask" and self.plan_of(current).decision is not PlanDecision.APPROVED

    def update_of(self, current: CurrentRound) -> Update | None:
        """Return the trainer's update for the round in progress; None before it came.

        Raises:
            SpoolRefused: The record does not follow its schema.
        """
        update = self.spool.update(current.run_id, current.number)
        # An update from another base model is a leftover: it would not fit the sum.
        return update if update is not None and update.base_model_digest == current.base_model_digest else None
