"""A state folder that was put back to an earlier day: noticed, and kept out of masking until a person has decided.

After a restored backup or snapshot this site no longer knows the answers that it has given. Asked again, it could
reveal a second time in one attempt, or join a second sum of one round. Its egress ledger shows the loss, because the
ledger only grows: it is shorter than before, or has another head at a length that it had before. Two marks, a length
and a head each, tell of the time before:

    <spool>/to_trainer/ledger.json   outside the state folder; written by this agent at each turn, read by this agent.
                                     It has a length and a head of the privacy ledger too
    PollReply.ledger_*_seen          the longest ledger that this site has reported to the aggregator
    <state>/agent/rolled_back.json   the last loss that was noticed

With the notice the round in progress is closed here for good. So is the first round of a signed plan that is offered
afterwards, and every other one on its base model: the lost state may have been in a sum on it. After `hemofed-site
ledger acknowledge` this site takes part in rounds on a later model.

An aggregator that lies can stop this site by an invented mark, but cannot make it reveal. It can withhold its mark;
then the one in the spool notices a state folder that was restored alone. If the whole machine was restored and the
aggregator lies, the site may answer twice. The protocol counts such a site among the corrupt ones, of which it bears
fewer than a third of a cohort.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import structlog
from federation.limits import DIGEST_BYTES
from federation.v1 import rounds_pb2
from federation.vocabulary import StateReason
from msgspec import Meta

from site_client.agent.egress.calls import DECLINE
from site_client.agent.egress.egress import Egress
from site_client.agent.privacy.ledger import PrivacyLedger
from site_client.agent.rounds.round_files import RoundFiles
from site_client.errors import ConfigRefused, LedgerBroken, StateRefused, StateUnreadable, StepRefused
from site_client.files import refresh_file, replace_file
from site_client.records import AwareTime
from site_client.typed_json import Digest, encode, encode_state, read_state

_log = structlog.get_logger()
_ADVICE: Final = (
    "find out what damaged it, then type `hemofed-site ledger acknowledge`: this site then sits out the next round "
    "that is offered, and all others on its base model"
)
_LENGTH_MAX: Final = 2**63 - 1
_Length: TypeAlias = Annotated[int, Meta(ge=0, le=_LENGTH_MAX)]
_Hex: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Witness(StrEnum):
    """The party that remembers a longer or another ledger."""

    SPOOL = "the mark in this machine's spool"
    AGGREGATOR = "the aggregator"
    RECORD = "the damaged record of an earlier loss"


class LedgerName(StrEnum):
    """The ledger that shows the loss."""

    EGRESS = "egress ledger"
    PRIVACY = "privacy ledger"


@dataclass(frozen=True)
class Rollback:
    """A loss that was noticed."""

    noticed_at: AwareTime
    witness: Witness
    seen_entries: _Length  # of the ledger that the witness remembers
    held_entries: _Length  # of the one that is here
    acknowledged: bool = False  # an administrator knows why
    barred_base: Digest | None = None  # of the first round that was offered since, which is closed here for good
    of: LedgerName = LedgerName.EGRESS

    @property
    def sentence(self) -> str:
        """The loss, and the remedy, in one sentence."""
        return (
            f"the state folder was put back to an earlier day: its {self.of} has {self.held_entries} entries, and "
            f"{self.witness} remembers another one of {self.seen_entries}; this site takes part in no round until an "
            "administrator has found out why and typed `hemofed-site ledger acknowledge`"
        )


@dataclass(frozen=True)
class _Mark:
    """The ledger as it was at some turn, of the identity that has this signing key."""

    key: _Hex
    entries: _Length
    head: _Hex
    charges: _Length  # entries of the privacy ledger
    charges_head: _Hex


class RollbackWatch:
    """Compares the ledger with what is remembered of it, and admits steps."""

    def __init__(
        self,
        folder: Path,
        spool: Path,
        egress: Egress,
        privacy: PrivacyLedger,
        files: RoundFiles,
        clock: Callable[[], datetime],
    ) -> None:
        """Compare the ledger with the mark in the spool.

        Args:
            folder: The agent's state folder.
            spool: The site's; its street to the trainer exists.
            egress: The only way out; its ledger is compared.
            privacy: The privacy ledger, compared with the spool's mark alone: no other party knows of it.
            files: Of this site; the round in progress is closed when a loss is noticed.
            clock: Aware time.

        Raises:
            StateRefused: rolled_back.json is damaged.
        """
        self._file, self._mark_file = folder / "rolled_back.json", spool / "to_trainer" / "ledger.json"
        self._egress, self._ledger, self._files, self._clock = egress, egress.ledger, files, clock
        self._privacy = privacy
        self._known = (0, "")  # a mark that fits this ledger: comparing it again would read the file
        mark = self._mark()
        if mark is None:
            return
        # Another identity had another egress ledger, or continued this one under another key. The charges are of the
        # same patients under any key.
        if mark.key == self._ledger.key and not self._ledger.had(mark.entries, mark.head):
            self._notice(Witness.SPOOL, mark.entries)
        elif not self._has_charges(mark):
            self._notice(Witness.SPOOL, mark.charges, LedgerName.PRIVACY)

    def look(self, reply: rounds_pb2.PollReply) -> None:
        """Compare the ledger with the aggregator's mark, then write the spool's.

        The spool's mark comes before the turn's other messages: a state from before this turn is shorter than it.
        """
        seen = min(reply.ledger_entries_seen, _LENGTH_MAX), reply.ledger_head_seen.hex()
        # No mark before the first report; no need to compare what was compared at the turn before.
        if seen[0] > 0 and seen != self._known:
            record = read_rollback(self._file.parent)
            is_of_known_loss = record is not None and seen[0] <= record.seen_entries
            if self._ledger.had(*seen):
                self._known = seen
            elif not is_of_known_loss:
                self._notice(Witness.AGGREGATOR, seen[0])
        try:
            charges = self._privacy.mark()
        except LedgerBroken:  # whatever would be charged is refused; the mark of before stays
            return
        # At each turn: this ledger is not kept open, and a person may put an older one back under a running agent.
        before = self._mark()
        if before is not None and not self._has_charges(before):
            self._notice(Witness.SPOOL, before.charges, LedgerName.PRIVACY)
        mark = _Mark(self._ledger.key, self._ledger.entries, self._ledger.head, *charges)
        # Not synced, which would cost a disk write at every turn: after a power cut an older mark is still a true one.
        refresh_file(self._mark_file, encode(mark))

    def admit(self, reply: rounds_pb2.PollReply, check_offer: Callable[[rounds_pb2.TrainStep], object]) -> None:
        """Let a step pass when no loss stands against it.

        Args:
            reply: Holds the step.
            check_offer: Refuses a train step that is not one of its signed plan.

        Raises:
            StepRefused: A loss is not acknowledged; or the step is of the first round that was offered after it, or of
                another one on the same base model; or `check_offer` refused it.
            FederationError: `check_offer` refused the plan.
        """
        record = read_rollback(self._file.parent)
        if record is None:
            return
        offer = reply.train if reply.HasField("train") else None
        if offer is not None and record.barred_base is None:
            if len(offer.base_model_digest) != DIGEST_BYTES:
                raise StepRefused(f"expected a base model's digest of {DIGEST_BYTES} bytes, got another; polling again")
            # First: the one bar must not be spent on a round that there is not.
            check_offer(offer)
            self._files.journal.bar(offer.round)
            # After the journal: a crash in between bars the round once more.
            record = replace(record, barred_base=Digest(offer.base_model_digest))
            replace_file(self._file, encode_state(record))
        is_barred = offer is not None and offer.base_model_digest == record.barred_base
        if offer is not None and (is_barred or not record.acknowledged):
            refusal = rounds_pb2.DeclineMessage(round=offer.round, reason=StateReason.POLICY.number)
            self._egress.send(DECLINE, refusal)  # so that the others do not wait for this site
        if not record.acknowledged:
            raise StepRefused(record.sentence)
        if is_barred:
            raise StepRefused(
                "this site may have been in a sum on this base model before its state folder was put back; it takes "
                "part again when the base model is another one"
            )

    def stopped_by(self) -> str:
        """Return the sentence about a loss that is not acknowledged; empty when there is none."""
        record = read_rollback(self._file.parent)
        return "" if record is None or record.acknowledged else record.sentence

    def _notice(self, witness: Witness, seen_entries: int, of: LedgerName = LedgerName.EGRESS) -> None:
        held = self._ledger.entries if of is LedgerName.EGRESS else self._privacy.mark()[0]
        record = Rollback(self._clock(), witness, seen_entries, held, of=of)
        _log.error("state folder rolled back", why=record.sentence)
        replace_file(self._file, encode_state(record))
        # After the record: a crash in between notices the loss again, or finds it on record.
        self._files.journal.close()
        self._files.spool.withdraw_others(None, 0)

    def _has_charges(self, mark: _Mark) -> bool:
        try:
            return self._privacy.had(mark.charges, mark.charges_head)
        except LedgerBroken:  # each step that would be charged says so
            return True

    def _mark(self) -> _Mark | None:
        try:
            return read_state(_Mark, self._mark_file, "")
        except StateRefused:  # emptied by a power cut
            _log.warning("ledger mark damaged", file=self._mark_file.name)
            return None


def read_rollback(folder: Path) -> Rollback | None:
    """Read the last loss that was noticed; None when there was none.

    Raises:
        StateRefused: The file is damaged.
    """
    return read_state(Rollback, folder / "rolled_back.json", _ADVICE)


def acknowledge(folder: Path) -> Rollback:
    """Record that an administrator knows why the state folder was put back.

    Raises:
        ConfigRefused: No loss waits for it.
        StateUnreadable: The file cannot be read.
    """
    try:
        record = read_rollback(folder)
    except StateUnreadable:
        raise
    except StateRefused:
        # What it barred is not known any more: the next round that is offered is barred in its place.
        record = Rollback(datetime.now(UTC), Witness.RECORD, 0, 0)
    if record is None or record.acknowledged:
        raise ConfigRefused("no loss of the state folder waits to be acknowledged; there is nothing to do")
    replace_file(folder / "rolled_back.json", encode_state(replace(record, acknowledged=True)))
    return record
