"""What this site remembers of the round in progress. Everything is on disk before anything about it is said.

    <state>/agent/rounds/<run hex>-<round>/
      round.json                       what was offered, and what was answered to it
      attempt-<n>/member.bin           secure aggregation's own state, secrets included; overwritten before removal
    <state>/agent/rounds/closed.json   per run, the last round that is over for this site

At most one round is open. A round that was closed is never opened again: its update may already be in a sum.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from federation.v1.blobs_pb2 import RoundRef

from site_client.errors import StepRefused
from site_client.files import private_folder, remove, replace_file, sweep_drafts
from site_client.records import RunId


@dataclass(frozen=True)
class CurrentRound:
    """The round this site works on."""

    run_id: RunId
    number: int
    plan_digest: bytes
    base_model_digest: bytes
    evaluation_only: bool
    declined: str | None = None  # StateReason name
    attempt: int = 0  # the newest attempt this site has keys in; an older one is dead
    refused_attempt: int = 0  # an attempt this site has left, and erased
    revealed_attempt: int = 0  # the one attempt in which it answered reveal; then no other can follow
    # The cohort of the last attempt that an upload of this site left in. Others may have opened it without a word to
    # this site; it joins a later attempt only with a cohort that proves that they have not, and cannot any more.
    uploaded_to: tuple[str, ...] = ()

    def ref(self, attempt: int | None = None) -> RoundRef:
        return RoundRef(run_id=self.run_id, round=self.number, attempt=self.attempt if attempt is None else attempt)

    def is_of(self, ref: RoundRef) -> bool:
        return (self.run_id, self.number) == (ref.run_id, ref.round)


class RoundJournal:
    """The folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        private_folder(folder)
        sweep_drafts(folder)
        self.current: CurrentRound | None = self._read_current()

    def begin(self, fresh: CurrentRound) -> CurrentRound:
        """Opens a round; one that is open already stays as it is. Errors: StepRefused."""
        if self.current is not None and self.current.is_of(fresh.ref()):
            self._require_same(self.current, fresh)
            return self.current
        if fresh.number <= self._closed().get(fresh.run_id.hex(), 0):
            raise StepRefused(
                f"round {fresh.number} is over for this site; it takes part in none of its later attempts"
            )
        if self.current is not None:
            self.close()
        return self.save(fresh)

    def save(self, changed: CurrentRound) -> CurrentRound:
        """Makes a change durable."""
        folder = self._path(changed)
        folder.mkdir(exist_ok=True, mode=0o700)
        replace_file(folder / "round.json", _to_json(changed))
        self.current = changed
        return changed

    def close(self) -> None:
        """Ends the round for good: remembers that it is over, overwrites its secrets, removes its folder."""
        if self.current is None:
            return
        closed = self._closed() | {self.current.run_id.hex(): self.current.number}
        replace_file(self._folder / "closed.json", json.dumps(closed).encode())
        for attempt in range(1, self.current.attempt + 1):
            self.erase_attempt(attempt)
        remove(self._path(self.current))
        self.current = None

    def attempt_folder(self, attempt: int) -> Path:
        """Made on first use. Only while a round is open."""
        if self.current is None:
            raise StepRefused("there is no open round to mask in; polling again")
        folder = self._path(self.current) / f"attempt-{attempt}"
        folder.mkdir(exist_ok=True, mode=0o700)
        return folder

    def erase_attempt(self, attempt: int) -> None:
        """Overwrites and removes what the attempt left. Nothing happens when there is nothing."""
        if self.current is None:
            return
        folder = self._path(self.current) / f"attempt-{attempt}"
        if folder.exists():
            for name in ("member.bin", ".member.bin.old", ".member.bin.new"):
                overwrite(folder / name)
            remove(folder)

    def _path(self, one: CurrentRound) -> Path:
        return self._folder / f"{one.run_id.hex()}-{one.number}"

    def _read_current(self) -> CurrentRound | None:
        found = [_of_json(path.read_bytes()) for path in self._folder.glob("*/round.json")]
        closed = self._closed()
        for over in [one for one in found if one.number <= closed.get(one.run_id.hex(), 0)]:
            # A crash between remembering that it is over and removing it.
            self.current = over
            self.close()
        alive = [one for one in found if one.number > closed.get(one.run_id.hex(), 0)]
        return alive[0] if alive else None

    def _closed(self) -> dict[str, int]:
        path = self._folder / "closed.json"
        return {str(run): int(last) for run, last in json.loads(path.read_bytes()).items()} if path.exists() else {}

    @staticmethod
    def _require_same(held: CurrentRound, offered: CurrentRound) -> None:
        blank = {"declined": None, "attempt": 0, "refused_attempt": 0, "revealed_attempt": 0, "uploaded_to": ()}
        if replace(held, **blank) != offered:  # type: ignore[arg-type]  # the keys and values are OpenRound's
            raise StepRefused(f"round {held.number} was offered before with another plan or base model; refused")


def overwrite(path: Path) -> None:
    """Replaces a file's bytes in place with zeros, durably. A best effort: a journal or an SSD may keep old blocks."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())


def _to_json(one: CurrentRound) -> bytes:
    plain = {key: value.hex() if isinstance(value, bytes) else value for key, value in asdict(one).items()}
    return json.dumps(plain, sort_keys=True).encode()


def _of_json(data: bytes) -> CurrentRound:
    record: dict[str, Any] = json.loads(data)
    for key in ("run_id", "plan_digest", "base_model_digest"):
        record[key] = bytes.fromhex(record[key])
    record["uploaded_to"] = tuple(record.get("uploaded_to", ()))  # a round opened by version 0.1.0 has none
    return CurrentRound(**record)
