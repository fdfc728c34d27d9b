"""The spool, the only channel between the two processes of a site: one folder, two one-way streets.

    <spool>/to_trainer/   written by the agent only     job-<run hex>-<round>/   job.json  plan.bin  base.safetensors
                                                        ledger.json, for the agent itself: agent/rounds/rollback.py
    <spool>/to_agent/     written by the trainer only   status.json
                                                        update-<run hex>-<round>/  update.json  delta.f32

Neither side trusts the other one's files: `UntrustedFolder` follows no link, checks kind and size before it
reads, and turns each fault into SpoolRefused.
Folders are built under a dot name and renamed, files are replaced atomically, so that a reader never sees half of one.
A job that disappears is cancelled; the trainer then removes the update that belongs to it.
`records` holds the schema of every record. A record larger than RECORD_BYTES_MAX is refused before it is parsed.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from federation.vocabulary import Outcome
from numpy.typing import NDArray

from site_client.errors import SpoolRefused
from site_client.files import Building, lend_file, remove, replace_file, sweep_drafts, sync_folder, write_file
from site_client.records import (
    RECORD_BYTES_MAX,
    Histograms,
    Job,
    PredecessorComparison,
    RunId,
    Status,
    Update,
    from_json,
    histograms_of,
    to_json,
)
from site_client.typed_json import Digest
from site_client.untrusted_files import UntrustedFolder

__all__ = [
    "AgentSide",
    "Histograms",
    "Job",
    "PredecessorComparison",
    "RunId",
    "Status",
    "TrainerSide",
    "Update",
    "histograms_of",
]

_JOB, _UPDATE = "job", "update"
# The two service users have one primary group: the other one reads, never writes. No setgid bit: RestrictSUIDSGID=.
_FOLDER_MODE, _FILE_MODE = 0o750, 0o640


class AgentSide:
    """The agent's end: offers jobs, reads status and updates."""

    def __init__(self, spool: Path) -> None:
        self._out = _folder(spool / "to_trainer")
        self._own = UntrustedFolder(spool, "to_trainer", RECORD_BYTES_MAX)
        self._in = UntrustedFolder(spool, "to_agent", RECORD_BYTES_MAX)

    def clear_drafts(self) -> None:
        """Remove half-built jobs that a crash left.

        Only the agent at its start may call it: no other process can tell a crash from an offer being built.
        """
        sweep_drafts(self._out)

    @staticmethod
    def peek(spool: Path) -> Status | None:
        """Return the trainer's newest status without creating a folder; None before the first.

        Raises:
            SpoolRefused: The record does not follow its schema, or its file cannot be read.
        """
        try:
            return from_json(Status, UntrustedFolder(spool, "to_agent", RECORD_BYTES_MAX).read("status.json"))
        except FileNotFoundError:
            return None

    def offer_job(self, job: Job, signed_plan: bytes, base_model: Path) -> Job:
        """Make the job visible, whole. Offering the same job again changes nothing.

        Raises:
            SpoolRefused: Another job of this round is on offer.
        """
        # Idempotent: after a crash the agent offers the same job again, and the trainer may already be at work on it.
        target = self._out / _name(_JOB, job.run_id, job.round)
        if target.exists():
            offered = _read_job(self._own, target.name)
            if replace(offered, folder=job.folder) != job:
                raise SpoolRefused(f"expected one job for round {job.round}, got a second one; withdraw the first")
            return offered
        with Building(target, _FOLDER_MODE) as draft:
            write_file(draft / "plan.bin", signed_plan, _FILE_MODE)
            lend_file(base_model, draft / "base.safetensors", _FILE_MODE)
            # Order does not matter inside the draft: the folder gets its name only when every file is synced.
            write_file(draft / "job.json", to_json(job), _FILE_MODE)
        return replace(job, folder=target)

    def offers(self, run_id: RunId, round: int) -> bool:
        """Whether a job of this round is on offer."""
        return (self._out / _name(_JOB, run_id, round)).exists()

    def withdraw_job(self, run_id: RunId, round: int) -> None:
        """Cancel the job, or remove a finished one. Nothing happens when there is none."""
        remove(self._out / _name(_JOB, run_id, round))

    def withdraw_others(self, run_id: RunId | None, round: int) -> None:
        """Withdraw every job but this one; each one when `run_id` is None. A damaged job goes as well."""
        kept = "" if run_id is None else _name(_JOB, run_id, round)
        for path in self._out.glob(f"{_JOB}-*"):
            if path.name != kept:
                remove(path)

    def jobs(self) -> list[Job]:
        """Return every job on offer, oldest round first.

        Raises:
            SpoolRefused: A record does not follow its schema.
        """
        return _jobs(self._own)

    def status(self) -> Status | None:
        """Return the trainer's newest status; None before the first.

        Raises:
            SpoolRefused: The record does not follow its schema, or its file cannot be read.
        """
        return self.peek(self._in.root)

    def update(self, run_id: RunId, round: int) -> Update | None:
        """Return the update that the trainer delivered for this round; None before it did.

        Raises:
            SpoolRefused: The record is missing, does not follow its schema, or its file cannot be read.
        """
        if not self.delivered(run_id, round):
            return None
        try:
            return from_json(Update, self._in.read(_name(_UPDATE, run_id, round), "update.json"))
        except FileNotFoundError:
            # Its folder gets its name only when it is whole: no honest trainer leaves one without a record.
            raise SpoolRefused(f"the update of round {round} in the spool has no record; retrain") from None

    def delivered(self, run_id: RunId, round: int) -> bool:
        """Whether the trainer has delivered an update for this round. Does not read it, and raises nothing."""
        return self._in.has(_name(_UPDATE, run_id, round))

    def delta(self, update: Update, parameters: int) -> NDArray[np.float32]:
        """Read the update's delta from the spool.

        Args:
            update: As `update` returned it.
            parameters: D, the numbers that move under the plan.

        Returns:
            f32[d], read-only, in this process's own memory.

        Raises:
            SpoolRefused: The update has no delta, one of another length, or one without the digest in `update`.
        """
        if update.delta_sha256 is None:
            raise SpoolRefused(f"expected a trained update for round {update.round}, got one without a delta")
        delta = np.empty(parameters, "<f4")
        try:
            with self._in.open(_name(_UPDATE, update.run_id, update.round), "delta.f32", size_max=delta.nbytes) as file:
                # Read and not mapped: the trainer could change a mapped file after the check of its digest, and a file
                # that it makes shorter would end this process by SIGBUS.
                held_bytes = file.readinto(delta.data.cast("B"))
        except FileNotFoundError:
            raise SpoolRefused(f"delta.f32 of round {update.round} is missing in the spool; retrain") from None
        if held_bytes != delta.nbytes:
            raise SpoolRefused(
                f"expected {delta.nbytes} bytes in delta.f32 of round {update.round}, as the plan has it, "
                f"got {held_bytes}; retrain"
            )
        # The digest is checked at every reading: the spool is the boundary to the side that reads patient data.
        if hashlib.sha256(delta.data).digest() != update.delta_sha256:
            raise SpoolRefused(f"delta.f32 of round {update.round} does not have the digest its update names; retrain")
        delta.flags.writeable = False
        return delta


class TrainerSide:
    """The trainer's end: reads jobs, writes status and updates."""

    def __init__(self, spool: Path) -> None:
        self._out = _folder(spool / "to_agent")
        self._in = UntrustedFolder(spool, "to_trainer", RECORD_BYTES_MAX)

    def clear_drafts(self) -> None:
        """Remove half-built updates that a crash left.

        Only the trainer's service may call it, before it has a worker that builds one.
        """
        sweep_drafts(self._out)

    def jobs(self) -> list[Job]:
        """Return every job on offer, oldest round first. A job that is gone is cancelled.

        Raises:
            SpoolRefused: A record does not follow its schema.
        """
        return _jobs(self._in)

    def write_status(self, status: Status) -> None:
        """Replace the status.

        Raises:
            SpoolRefused: The record does not follow its schema.
        """
        replace_file(self._out / "status.json", to_json(status), _FILE_MODE)

    def deliver(self, update: Update, delta: NDArray[np.float32] | None = None) -> Update:
        """Deliver an update, whole, in place of an earlier one of the same round.

        Args:
            update: Its `delta_sha256` is filled in.
            delta: f32[d] with outcome TRAINED, None with any other.

        Returns:
            The update with its `delta_sha256`.

        Raises:
            SpoolRefused: A delta with another outcome, or none with TRAINED.
        """
        if (delta is not None) != (update.outcome == Outcome.TRAINED):
            raise SpoolRefused(f'a delta goes with "trained" and with nothing else, got outcome "{update.outcome}"')
        target = self._out / _name(_UPDATE, update.run_id, update.round)
        raw = None if delta is None else np.ascontiguousarray(delta, dtype="<f4").data.cast("B")
        # The digest is taken here, so that the agent can tell a torn or changed file from a delivered one.
        whole = replace(update, delta_sha256=None if raw is None else Digest(hashlib.sha256(raw).digest()))
        record = to_json(whole)
        remove(target)
        with Building(target, _FOLDER_MODE) as draft:
            if raw is not None:
                write_file(draft / "delta.f32", raw, _FILE_MODE)
            write_file(draft / "update.json", record, _FILE_MODE)
        return whole

    def delivered(self, run_id: RunId, round: int) -> bool:
        """Whether an update for this round lies in the spool."""
        return (self._out / _name(_UPDATE, run_id, round)).exists()

    def sweep(self) -> None:
        """Remove every update whose job is gone."""
        for path in self._out.glob(f"{_UPDATE}-*"):
            if not self._in.has(path.name.replace(_UPDATE, _JOB, 1)):
                remove(path)


def _folder(path: Path) -> Path:
    if not path.exists():
        # Not mkdir(mode=...), which the umask would narrow.
        path.mkdir(parents=True)
        path.chmod(_FOLDER_MODE)
        sync_folder(path.parent)
    return path


def _name(kind: str, run_id: bytes, round: int) -> str:
    return f"{kind}-{run_id.hex()}-{round}"


def _jobs(street: UntrustedFolder) -> list[Job]:
    jobs = []
    for name in street.names():
        if re.fullmatch(r"job-[0-9a-f]{32}-[0-9]+", name) is None:
            continue
        try:
            jobs.append(_read_job(street, name))
        except FileNotFoundError:  # withdrawn between the listing and the reading: that is how a job is cancelled
            continue
    return sorted(jobs, key=lambda job: (job.run_id, job.round))


def _read_job(street: UntrustedFolder, name: str) -> Job:
    job = replace(from_json(Job, street.read(name, "job.json")), folder=street.path / name)
    # A folder copied by hand under another name must not make the trainer train a round twice.
    if name != _name(_JOB, job.run_id, job.round):
        raise SpoolRefused("job.json names another round than its folder; withdraw the job")
    return job
