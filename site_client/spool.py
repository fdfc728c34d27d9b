"""The only door between the two processes of a site: one folder, two one-way streets.

    <spool>/to_trainer/   written by the agent only     job-<run hex>-<round>/   job.json  plan.bin  base.safetensors
    <spool>/to_agent/     written by the trainer only   status.json
                                                        update-<run hex>-<round>/  update.json  delta.f32

Folders are built under a dot name and renamed, files are replaced atomically, so that a reader never sees half of one.
A job that disappears is cancelled; the trainer then removes the update that belongs to it.
`records` says what may be written.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from site_client.errors import SpoolRefused
from site_client.files import Building, lend_file, remove, replace_file, sweep_drafts, write_file
from site_client.records import Histograms, Job, Outcome, RunId, Status, Update, from_json, histograms_of, to_json

__all__ = [
    "AgentSide",
    "Histograms",
    "Job",
    "Outcome",
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
        self._in = spool / "to_agent"

    def clear_drafts(self) -> None:
        """Removes what a crash left half built. For the agent at its start: nobody else may know what is in hand."""
        sweep_drafts(self._out)

    @staticmethod
    def peek(spool: Path) -> Status | None:
        """The trainer's last word, for somebody who only looks."""
        path = spool / "to_agent" / "status.json"
        return from_json(Status, path.read_bytes()) if path.exists() else None

    def offer_job(self, job: Job, signed_plan: bytes, base_model: Path) -> Job:
        """Makes the job visible, whole. Offering the same job again changes nothing; a different one is refused."""
        target = self._out / _name(_JOB, job.run_id, job.round)
        if target.exists():
            held = _read_job(target)
            if replace(held, folder=job.folder) != job:
                raise SpoolRefused(f"expected one job for round {job.round}, got a second one; withdraw the first")
            return held
        with Building(target, _FOLDER_MODE) as draft:
            write_file(draft / "plan.bin", signed_plan, _FILE_MODE)
            lend_file(base_model, draft / "base.safetensors", _FILE_MODE)
            write_file(draft / "job.json", to_json(job), _FILE_MODE)
        return replace(job, folder=target)

    def withdraw_job(self, run_id: RunId, round: int) -> None:
        """Cancels the job, or tidies up after it. Nothing happens when there is none."""
        remove(self._out / _name(_JOB, run_id, round))

    def jobs(self) -> list[Job]:
        """Every job on offer, oldest round first."""
        return _jobs(self._out)

    def status(self) -> Status | None:
        """The trainer's last word; None before its first."""
        path = self._in / "status.json"
        return from_json(Status, path.read_bytes()) if path.exists() else None

    def update(self, run_id: RunId, round: int) -> Update | None:
        """What the trainer delivered for this round; None as long as it has not."""
        path = self._in / _name(_UPDATE, run_id, round) / "update.json"
        return from_json(Update, path.read_bytes()) if path.exists() else None

    def delivered(self, run_id: RunId, round: int) -> bool:
        """Whether the trainer has delivered something for this round, without reading it."""
        return (self._in / _name(_UPDATE, run_id, round)).exists()

    def delta(self, update: Update) -> NDArray[np.float32]:
        """f32[d], read-only, mapped from the spool; refused when its bytes do not have the digest in `update`."""
        path = self._in / _name(_UPDATE, update.run_id, update.round) / "delta.f32"
        if update.delta_sha256 is None:
            raise SpoolRefused(f"expected a trained update for round {update.round}, got one without a delta")
        size_bytes = path.stat().st_size  # only whole numbers can be mapped
        delta = np.empty(0, "<f4") if not size_bytes or size_bytes % 4 else np.memmap(path, dtype="<f4", mode="r")
        if hashlib.sha256(delta.data).digest() != update.delta_sha256:
            raise SpoolRefused(f"delta.f32 of round {update.round} does not have the digest its update names; retrain")
        return delta


class TrainerSide:
    """The trainer's end: reads jobs, writes status and updates."""

    def __init__(self, spool: Path) -> None:
        self._out = _folder(spool / "to_agent")
        self._in = spool / "to_trainer"

    def clear_drafts(self) -> None:
        """Removes what a crash left half built. For the trainer's service at its start, before it has a worker."""
        sweep_drafts(self._out)

    def jobs(self) -> list[Job]:
        """Every job on offer, oldest round first. A job that is gone is cancelled."""
        return _jobs(self._in)

    def write_status(self, status: Status) -> None:
        """Replaces the last status."""
        replace_file(self._out / "status.json", to_json(status), _FILE_MODE)

    def deliver(self, update: Update, delta: NDArray[np.float32] | None = None) -> Update:
        """Hands an update over, whole, in place of an earlier one of the same round; fills in `delta_sha256`.

        `delta` f32[d] goes with outcome "trained" and with no other.
        """
        if (delta is not None) != (update.outcome == "trained"):
            raise SpoolRefused(f'a delta goes with "trained" and with nothing else, got outcome "{update.outcome}"')
        target = self._out / _name(_UPDATE, update.run_id, update.round)
        raw = None if delta is None else np.ascontiguousarray(delta, dtype="<f4").data.cast("B")
        whole = replace(update, delta_sha256=None if raw is None else hashlib.sha256(raw).digest())
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
        """Removes every update whose job is gone."""
        for path in self._out.glob(f"{_UPDATE}-*"):
            if not (self._in / path.name.replace(_UPDATE, _JOB, 1)).exists():
                remove(path)


def _folder(path: Path) -> Path:
    if not path.exists():
        path.mkdir(parents=True)
        path.chmod(_FOLDER_MODE)
    return path


def _name(kind: str, run_id: bytes, round: int) -> str:
    return f"{kind}-{run_id.hex()}-{round}"


def _jobs(folder: Path) -> list[Job]:
    found = [path for path in folder.glob(f"{_JOB}-*") if re.fullmatch(r"job-[0-9a-f]{32}-[0-9]+", path.name)]
    return sorted(_readable(found), key=lambda job: (job.run_id, job.round))


def _readable(folders: list[Path]) -> Iterator[Job]:
    for folder in folders:
        try:
            yield _read_job(folder)
        except FileNotFoundError:  # withdrawn between the listing and the reading: that is how a job is cancelled
            continue


def _read_job(folder: Path) -> Job:
    job = replace(from_json(Job, (folder / "job.json").read_bytes()), folder=folder)
    if folder.name != _name(_JOB, job.run_id, job.round):
        raise SpoolRefused("job.json names another round than its folder; withdraw the job")
    return job
