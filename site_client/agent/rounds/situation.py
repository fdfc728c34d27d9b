"""The site's report about itself in every poll: a state, its reasons, progress. From files alone.

The lists of states and reasons are closed: no text, and so no patient value, can travel in a report.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from federation.vocabulary import SiteState, StateReason

from site_client.agent.rounds.journal import CurrentRound
from site_client.agent.rounds.policy import TransferPolicy
from site_client.agent.rounds.round_files import RoundFiles
from site_client.config import SiteSettings
from site_client.errors import SpoolRefused, StateRefused, StepRefused
from site_client.records import Status

# States of a trainer at work on the round; in any other it has not begun.
_TRAINER_STATES: Final = (SiteState.PREPARING, SiteState.TRAINING, SiteState.PAUSED, SiteState.ATTENTION)


@dataclass(frozen=True)
class Situation:
    """A report, as it stands in the status file; all but `refusal` travels in a poll."""

    state: SiteState
    reasons: tuple[StateReason, ...] = ()
    progress_percent: int = 0
    refusal: str = (
        ""  # a sentence for the hospital's eyes: a file of the trainer, or this site's past, is not as it was
    )


_TRAINER_SILENT: Final = Situation(SiteState.ATTENTION, (StateReason.TRAINER_SILENT,))


class SituationReport:
    """Makes the report."""

    def __init__(
        self, files: RoundFiles, transfers: TransferPolicy, settings: SiteSettings, clock: Callable[[], datetime]
    ) -> None:
        self._files, self._transfers, self._clock = files, transfers, clock
        self._policy = settings.policy
        self._silence = timedelta(seconds=settings.agent.trainer_silent_s)

    def now(self) -> Situation:
        """Return the report of this moment."""
        try:
            return self._report()
        except SpoolRefused as error:
            return Situation(SiteState.ATTENTION, (StateReason.TRAINING_FAILED,), refusal=str(error))
        # A file of the state folder is gone or damaged. The poll goes on: its answer may bring the way out.
        except (StateRefused, StepRefused) as error:
            return Situation(SiteState.ATTENTION, refusal=str(error))

    def _report(self) -> Situation:
        # The order is the order of importance to a person at the hospital: the first that holds is reported.
        files, current, status = self._files, self._files.journal.current, self._files.spool.status()
        distrusts = files.plans.distrusts_any() if current is None else files.plans.distrusted(current.run_id)
        if distrusts:
            return Situation(SiteState.ATTENTION, (StateReason.MODEL_MISMATCH,), refusal=files.plans.way_back())
        if files.content_keys.refusal and current is not None:
            return Situation(SiteState.ATTENTION, (StateReason.ATTESTATION,), refusal=files.content_keys.refusal)
        if files.model_files.damage:
            return Situation(SiteState.ATTENTION, (StateReason.MODEL_DAMAGED,), refusal=files.model_files.damage)
        # A trainer that died writes nothing; only the age of its status shows it.
        is_silent = status is None or self._clock() - status.written_at > self._silence
        if current is None or current.declined is not None:
            return _TRAINER_SILENT if is_silent else _without_round(status)
        # In an attempt with keys, which this site has not left.
        if current.attempt > current.refused_attempt:
            return Situation(SiteState.MASKING, progress_percent=100)
        update = files.update_of(current)
        held_back_by = self._transfers.held_back_by()
        held = files.plans.get(current.plan_digest)
        has_base = held is not None and files.model_files.holds(held.plan, current.base_model_digest)
        if held_back_by and (update is not None or not has_base):
            return Situation(SiteState.PAUSED, held_back_by, 0 if update is None else 100)
        if update is not None:
            return Situation(SiteState.READY, progress_percent=100)
        if files.waits_for_approval(current, self._policy):
            return Situation(SiteState.AWAITING_APPROVAL)
        if is_silent:
            return _TRAINER_SILENT
        situation = _in_training(current, status)
        # The pace of a private round would tell how many patients were drawn.
        is_private = files.plan_of(current).plan.privacy is not None
        return replace(situation, progress_percent=0) if is_private else situation


def _without_round(status: Status | None) -> Situation:
    if status is not None and status.state in (SiteState.PAUSED, SiteState.ATTENTION):
        return Situation(status.state, status.reasons)
    return Situation(SiteState.IDLE)


def _in_training(current: CurrentRound, status: Status | None) -> Situation:
    if status is None or status.state not in _TRAINER_STATES:
        return Situation(SiteState.PREPARING)
    is_of_this_round = (status.run_id, status.round) == (current.run_id, current.number)
    return Situation(status.state, status.reasons, status.progress_percent if is_of_this_round else 0)
