"""The spool, the only channel between the two processes of a site: one folder, two one-way streets.

    <spool>/to_trainer/   written by the agent only     job-<run hex>-<round>/   job.json  plan.bin  base.safetensors
    <spool>/to_agent/     written by the trainer only   status.json
                                                        update-<run hex>-<round>/  update.json  delta.f32

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
from site_client.files import Building, lend_file, remove, replace_file, sweep_drafts, write_file
from site_client.records import (
    RECORD_BYTES_MAX,
    Histograms,
    Job,
    RunId,
    Status,
    Update,
    from_json,
    histograms_of,
    to_json,
)
from site_client.typed_json import Digest, read_bounded

__all__ = ["AgentSide", "Histograms", "Job", "RunId", "Status", "TrainerSide", "Update", "histograms_of"]

_JOB, _UPDATE = "job", "update"
# The two service users have one primary group: the other one reads, never writes. No setgid bit: RestrictSUIDSGID=.
_FOLDER_MODE, _FILE_MODE = 0o750, 0o640


class AgentSide:
    """The agent's end: offers jobs, reads status and updates."""

    def __init__(self, spool: Path) -> None:
        self._out = _folder(spool / "to_trainer")
        self._in = spool / "to_agent"

    def clear_drafts(self) -> None:
        """Remove half-built jobs that a crash left.

        Only the agent at its start may call it: no other process can tell a crash from an offer being built.
        """
        sweep_drafts(self._out)

    @staticmethod
    def peek(spool: Path) -> Status | None:
        """Return the trainer's newest status without creating a folder; None before the first.

        Raises:
            SpoolRefused: the record does not follow its schema.
        """
        path = spool / "to_agent" / "status.json"
        return from_json(Status, read_bounded(path, RECORD_BYTES_MAX)) if path.exists() else None

    def offer_job(self, job: Job, signed_plan: bytes, base_model: Path) -> Job:
        """Make the job visible, whole. Offering the same job again changes nothing.

        Raises:
            SpoolRefused: another job of this round is on offer.
        """
        # Idempotent: after a crash the agent offers the same job again, and the trainer may already be at work on it.
        target = self._out / _name(_JOB, job.run_id, job.round)
        if target.exists():
            offered = _read_job(target)
            if replace(offered, folder=job.folder) != job:
                raise SpoolRefused(f"expected one job for round {job.round}, got a second one; withdraw the first")
            return offered
        with Building(target, _FOLDER_MODE) as draft:
            write_file(draft / "plan.bin", signed_plan, _FILE_MODE)
            lend_file(base_model, draft / "base.safetensors", _FILE_MODE)
            # Order does not matter inside the draft: the folder gets its name only when every file is synced.
            write_file(draft / "job.json", to_json(job), _FILE_MODE)
        return replace(job, folder=target)

    def withdraw_job(self, run_id: RunId, round: int) -> None:
        """Cancel the job, or remove a finished one. Nothing happens when there is none."""
        remove(self._out / _name(_JOB, run_id, round))

    def jobs(self) -> list[Job]:
        """Return every job on offer, oldest round first.

        Raises:
            SpoolRefused: a record does not follow its schema.
        """
        return _jobs(self._out)

    def status(self) -> Status | None:
        """Return the trainer's newest status; None before the first.

        Raises:
            SpoolRefused: the record does not follow its schema.
        """
        return self.peek(self._in.parent)

    def update(self, run_id: RunId, round: int) -> Update | None:
        """Return the update that the trainer delivered for this round; None before it did.

        Raises:
            SpoolRefused: the record does not follow its schema.
        """
        path = self._in / _name(_UPDATE, run_id, round) / "update.json"
        return from_json(Update, read_bounded(path, RECORD_BYTES_MAX)) if path.exists() else None

    def delivered(self, run_id: RunId, round: int) -> bool:
        """Whether the trainer has delivered an update for this round. Does not read it."""
        return (self._in / _name(_UPDATE, run_id, round)).exists()

    def delta(self, update: Update) -> NDArray[np.float32]:
        """Map the update's delta from the spool.

        Returns:
            f32[d], read-only.

        Raises:
            SpoolRefused: the update has no delta, or its bytes do not have the digest in `update`.
        """
        path = self._in / _name(_UPDATE, update.run_id, update.round) / "delta.f32"
        if update.delta_sha256 is None:
            raise SpoolRefused(f"expected a trained update for round {update.round}, got one without a delta")
        size_bytes = path.stat().st_size  # only whole numbers can be mapped
        delta = np.empty(0, "<f4") if not size_bytes or size_bytes % 4 else np.memmap(path, dtype="<f4", mode="r")
        # The digest is checked at every reading: the spool is the boundary to the side that reads patient data.
        if hashlib.sha256(delta.data).digest() != update.delta_sha256:
            raise SpoolRefused(f"delta.f32 of round {update.round} does not have the digest its update names; retrain")
        return delta


class TrainerSide:
    """The trainer's end: reads jobs, writes status and updates."""

    def __init__(self, spool: Path) -> None:
        self._out = _folder(spool / "to_agent")
        self._in = spool / "to_trainer"

    def clear_drafts(self) -> None:
        """Remove half-built updates that a crash left.

        Only the trainer's service may call it, before it has a worker that builds one.
        """
        sweep_drafts(self._out)

    def jobs(self) -> list[Job]:
        """Return every job on offer, oldest round first. A job that is gone is cancelled.

        Raises:
            SpoolRefused: a record does not follow its schema.
        """
        return _jobs(self._in)

    def write_status(self, status: Status) -> None:
        """Replace the status.

        Raises:
            SpoolRefused: the record does not follow its schema.
        """
        replace_file(self._out / "status.json", to_json(status), _FILE_MODE)

    def deliver(self, update: Update, delta: NDArray[np.float32] | None = None) -> Update:
        """Deliver an update, whole, in place of an earlier one of the same round.

        Args:
            update: its `delta_sha256` is filled in.
            delta: f32[d] with outcome TRAINED, None with any other.

        Returns:
            The update with its `delta_sha256`.

        Raises:
            SpoolRefused: a delta with another outcome, or none with TRAINED.
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
            if not (self._in / path.name.replace(_UPDATE, _JOB, 1)).exists():
                remove(path)


def _folder(path: Path) -> Path:
    if not path.exists():
        # Not mkdir(mode=...), which the umask would narrow.
        path.mkdir(parents=True)
        path.chmod(_FOLDER_MODE)
    return path


def _name(kind: str, run_id: bytes, round: int) -> str:
    return f"{kind}-{run_id.hex()}-{round}"


def _jobs(folder: Path) -> list[Job]:
    jobs = []
    for path in folder.glob(f"{_JOB}-*"):
        if re.fullmatch(r"job-[0-9a-f]{32}-[0-9]+", path.name) is None:
            continue
        try:
            jobs.append(_read_job(path))
        except FileNotFoundError:  # withdrawn between the listing and the reading: that is how a job is cancelled
            continue
    return sorted(jobs, key=lambda job: (job.run_id, job.round))


def _read_job(folder: Path) -> Job:
    job = replace(from_json(Job, read_bounded(folder / "job.json", RECORD_BYTES_MAX)), folder=folder)
    # A folder copied by hand under another name must not make the trainer train a round twice.
    if folder.name != _name(_JOB, job.run_id, job.round):
        raise SpoolRefused("job.json names another round than its folder; withdraw the job")
    return job
