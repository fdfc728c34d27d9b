"""The durable state of the round in progress. A fact is on disk before any message leaves that follows from it.

    <state>/agent/rounds/<run hex>-<round>/
      round.json                       the offer, and this site's answers to it
      attempt-<n>/member.bin           state of secure aggregation, secrets included; overwritten before removal
      attempt-<n>/coins.bin            32 bytes that dither and noise come from; overwritten when the site confirms
    <state>/agent/rounds/closed.json   the last closed round of each run

At most one round is in progress. A closed round never begins again: its update may already be in a sum.

A round whose round.json is damaged is closed for good: without its answers this site could give others. The name of its
folder says which round it is. A damaged closed.json stops the agent: closed rounds would begin again.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeAlias

from federation.limits import COHORT_MAX
from federation.v1.blobs_pb2 import RoundRef
from federation.vocabulary import StateReason
from msgspec import Meta

from site_client.errors import StateRefused, StateUnreadable, StepRefused
from site_client.files import private_folder, remove, replace_file, set_aside, sweep_drafts
from site_client.records import ROUND_MAX, RoundNumber, RunHex, RunId
from site_client.typed_json import Digest, encode_state, read_state

ATTEMPT_MAX: Final = 2**31
Attempt: TypeAlias = Annotated[int, Meta(ge=0, le=ATTEMPT_MAX)]
_ADVICE: Final = "put the state folder of the last backup back, then restart the agent"
_FOLDER: Final = re.compile(r"([0-9a-f]{32})-([1-9][0-9]{0,9})")


@dataclass(frozen=True)
class CurrentRound:
    """The round this site works on."""

    run_id: RunId
    number: RoundNumber
    plan_digest: Digest
    base_model_digest: Digest
    evaluation_only: bool
    predecessor_digest: Digest | None = None  # of the model that the base model is a candidate against
    declined: StateReason | None = None
    attempt: Attempt = 0  # the newest attempt this site has keys in; an older one is dead
    refused_attempt: Attempt = 0  # an attempt this site has left, and erased
    revealed_attempt: Attempt = 0  # the one attempt in which it answered reveal; then no other can follow
    # The cohort of the last attempt that an upload of this site left in. Others may have recovered its sum without
    # this site. It joins a later attempt only with a cohort that proves that they have not, and no longer can.
    # A round that version 0.1.0 began has none.
    uploaded_to: Annotated[tuple[str, ...], Meta(max_length=COHORT_MAX)] = ()
    # The one set of uploads whose sum this site helps to recover, as it signed it; sorted.
    confirmed: Annotated[tuple[str, ...], Meta(max_length=COHORT_MAX)] = ()

    @property
    def offer(self) -> tuple[RunId, RoundNumber, Digest, Digest, bool, Digest | None]:
        """The part of this record that the aggregator's offer decides."""
        return (
            *(self.run_id, self.number, self.plan_digest, self.base_model_digest),
            *(self.evaluation_only, self.predecessor_digest),
        )

    def ref(self, attempt: int | None = None) -> RoundRef:
        """Return this round's name on the wire, with the newest attempt unless another is given."""
        return RoundRef(run_id=self.run_id, round=self.number, attempt=self.attempt if attempt is None else attempt)

    def is_of(self, ref: RoundRef) -> bool:
        """Whether `ref` names this round, in whatever attempt."""
        return (self.run_id, self.number) == (ref.run_id, ref.round)


class RoundJournal:
    """The folder <state>/agent/rounds. `current` is the round in progress, or None."""

    def __init__(self, folder: Path) -> None:
        """Read the files, and finish a close that a crash interrupted.

        Raises:
            StateRefused: closed.json is damaged, or no round can be read from the name of a damaged one's folder.
        """
        self._folder = folder
        private_folder(folder)
        sweep_drafts(folder)
        self.current: CurrentRound | None = None
        # Read at the start, not only when a round begins: a person is there to read the sentence.
        self._closed()
        in_progress = None
        for path in list(folder.glob("*/round.json")):
            try:
                recorded = read_state(CurrentRound, path, _ADVICE)
            except StateUnreadable:
                raise
            except StateRefused as error:
                self._abandon(path, error)
                continue
            if recorded is not None and self._is_closed(recorded):
                # A crash between the line in closed.json and the removal of the folder: its secrets still have to go.
                self.current = recorded
                self.close()
            else:
                in_progress = in_progress or recorded
        self.current = in_progress

    def begin(self, offered: CurrentRound) -> CurrentRound:
        """Begin a round; one that is in progress already stays as it is.

        Raises:
            StepRefused: The round is closed, or was offered before with another plan or base model.
        """
        current = self.current
        if current is not None and current.is_of(offered.ref()):
            if current.offer != offered.offer:
                raise StepRefused(f"round {current.number} was offered before with another plan or base model; refused")
            return current
        if self._is_closed(offered):
            raise StepRefused(
                f"round {offered.number} is over for this site; it takes part in none of its later attempts"
            )
        if current is not None:
            self.close()
        return self.save(offered)

    def save(self, changed: CurrentRound) -> CurrentRound:
        """Make a change durable."""
        replace_file(private_folder(self._path(changed)) / "round.json", encode_state(changed))
        self.current = changed
        return changed

    def close(self) -> None:
        """Close the round for good: record it as closed, overwrite its secrets, remove its folder, in this order."""
        if self.current is None:
            return
        # closed.json first: from this line on the round can never begin again, whatever is left of it.
        self._record_closed(self.current.run_id.hex(), self.current.number)
        # Overwritten before the folder goes: an unlinked file keeps its bytes on the disk.
        self.erase_attempts()
        remove(self._path(self.current))
        self.current = None

    def bar(self, ref: RoundRef) -> None:
        """Close the round in progress, and record this one as closed, whether it ever began here or not.

        Raises:
            StepRefused: `ref` names no round.
        """
        self.close()
        if len(ref.run_id) != RunId.LENGTH or not 1 <= ref.round <= ROUND_MAX:
            raise StepRefused("expected a step of a round, got one of none; polling again")
        self._record_closed(ref.run_id.hex(), ref.round)

    def member_file(self, attempt: int) -> Path:
        """Return where an attempt's state of secure aggregation stands; its folder is made on first use.

        Raises:
            StepRefused: No round is in progress.
        """
        return self._attempt(attempt) / "member.bin"

    def coins_file(self, attempt: int) -> Path:
        """Return where an attempt's coins stand.

        Raises:
            StepRefused: No round is in progress.
        """
        return self._attempt(attempt) / "coins.bin"

    def erase_coins(self, attempt: int) -> None:
        """Overwrite and remove an attempt's coins. Nothing happens when there are none."""
        overwrite(self.coins_file(attempt))
        remove(self.coins_file(attempt))

    def erase_attempts(self) -> None:
        """Overwrite and remove the files of every attempt. Nothing happens when there are none."""
        if self.current is None:
            return
        _erase_attempts(self._path(self.current))

    def _abandon(self, path: Path, error: StateRefused) -> None:
        """Close a round whose record is damaged; the record is kept beside its folder for a person."""
        name = _FOLDER.fullmatch(path.parent.name)
        if name is None:
            raise error
        self._record_closed(name[1], int(name[2]))
        _erase_attempts(path.parent)
        kept = self._folder / f"{path.parent.name}.{path.name}"
        remove(kept)
        path.rename(kept)
        remove(path.parent)
        set_aside(kept, str(error), "the round is over for this site; it takes part in the next one")

    def _record_closed(self, run: str, number: int) -> None:
        closed = self._closed()
        replace_file(self._folder / "closed.json", encode_state(closed | {run: max(number, closed.get(run, 0))}))

    def _attempt(self, attempt: int) -> Path:
        if self.current is None:
            raise StepRefused("there is no round in progress to mask in; polling again")
        return private_folder(self._path(self.current) / f"attempt-{attempt}")

    def _path(self, recorded: CurrentRound) -> Path:
        return self._folder / f"{recorded.run_id.hex()}-{recorded.number}"

    def _is_closed(self, recorded: CurrentRound) -> bool:
        return recorded.number <= self._closed().get(recorded.run_id.hex(), 0)

    def _closed(self) -> dict[str, int]:
        return read_state(dict[RunHex, RoundNumber], self._folder / "closed.json", _ADVICE) or {}


def _erase_attempts(round_folder: Path) -> None:
    # Listed and not counted: the aggregator chooses the numbers of attempts.
    for folder in list(round_folder.glob("attempt-*")):
        for name in ("member.bin", ".member.bin.old", ".member.bin.new", "coins.bin", ".coins.bin.new"):
            overwrite(folder / name)
        remove(folder)


def overwrite(path: Path) -> None:
    """Replace a file's bytes in place with zeros, durably. A best effort: a journal or an SSD may keep old blocks."""
    # A folder in its place has no bytes of ours.
    if not path.is_file():
        return
    with path.open("r+b") as file:
        # In place ("r+b"): a replaced file would leave the old blocks unwritten.
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
