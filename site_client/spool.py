"""The spool, the only channel between the two processes of a site: one folder, two one-way streets.

    <spool>/to_trainer/   written by the agent only     job-<run hex>-<round>/   job.json  plan.bin  base.safetensors
                                                        ledger.json, for the agent itself: agent/rounds/rollback.py
    <spool>/to_agent/     written by the trainer only   status.json  sealing.pub
                                                        update-<run hex>-<round>/  update.json  delta.f32

Under a plan with a release level models and updates are sealed: base.sealed and delta.sealed stand in their places, and
key-<16 hex> in a job is its content key, encrypted to the key in sealing.pub. The trainer draws that key at its start
and has it in memory only, so a job that lies here after the trainer's end opens with nothing that lies beside it.


Neither side trusts the other one's files: `UntrustedFolder` follows no link, checks kind and size before it
reads, and turns each fault into SpoolRefused.
Folders are built under a dot name and renamed, files are replaced atomically, so that a reader never sees half of one.
A job that disappears is cancelled; the trainer then removes the update that belongs to it.
`records` holds the schema of every record. A record larger than RECORD_BYTES_MAX is refused before it is parsed.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from federation import sealing
from federation.errors import SealRefused
from federation.hpke import SealingKey
from federation.sealing import SealedKind, SealedName, sealed_size, unwrap_content_key, wrap_content_key
from federation.vocabulary import Outcome
from numpy.typing import NDArray

from site_client.errors import SpoolRefused
from site_client.files import (
    Building,
    is_in_memory,
    lend_file,
    remove,
    replace_file,
    sweep_drafts,
    sync_folder,
    write_file,
    write_in_pieces,
)
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
    "UpdateSeal",
    "histograms_of",
]

_JOB, _UPDATE = "job", "update"
_TRAINER: Final = b"the trainer of this site"  # the receiver of a content key; no site has such a name
# The two service users have one primary group: the other one reads, never writes. No setgid bit: RestrictSUIDSGID=.
_FOLDER_MODE, _FILE_MODE = 0o750, 0o640


@dataclass(frozen=True)
class UpdateSeal:
    """Encrypts the delta of a round whose models are sealed: with its base model it yields the trained one."""

    content_key: bytes = field(repr=False)
    plan_digest: bytes
    base_model_digest: bytes

    @property
    def _sealed_name(self) -> SealedName:
        return SealedName(SealedKind.UPDATE, self.plan_digest, self.base_model_digest)

    def sealed(self, raw: memoryview) -> Iterator[bytes]:
        """Yield the sealed file."""
        return sealing.seal(self.content_key, self._sealed_name, [raw])

    def open_into(self, target: memoryview, file: BinaryIO) -> int:
        """Decrypt a sealed file into `target`; return how many bytes it has.

        Raises:
            SealRefused: It is another file, or has more bytes.
        """
        place = 0
        for frame in sealing.unseal(self.content_key, self._sealed_name, file, len(target)):
            target[place : place + len(frame)] = frame
            place += len(frame)
        return place


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

        Args:
            job: The job.
            signed_plan: Serialized SignedPlan.
            base_model: The model's file; a sealed one ends in `.sealed`.

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
            named = job.sealed_file if base_model.suffix == job.sealed_file.suffix else job.base_file
            lend_file(base_model, draft / named.name, _FILE_MODE)
            # Order does not matter inside the draft: the folder gets its name only when every file is synced.
            write_file(draft / "job.json", to_json(job), _FILE_MODE)
        return replace(job, folder=target)

    def lend_key(self, job: Job, content_key: bytes) -> None:
        """Encrypt the content key of a job on offer to the key that the trainer has now; nothing without one.

        Raises:
            SpoolRefused: The trainer's key is none, or its file cannot be read.
        """
        folder, public_key = self._out / _name(_JOB, job.run_id, job.round), self.trainer_key()
        if public_key is None or not folder.exists():
            return
        path = folder / _key_name(public_key)
        if path.exists():
            return
        try:
            wrapped = wrap_content_key(content_key, _TRAINER, public_key, job.sealed_name)
        except SealRefused as error:
            raise SpoolRefused(f"sealing.pub in the spool: {error}; restart the trainer") from None
        replace_file(path, wrapped, _FILE_MODE)
        for other in folder.glob("key-*"):
            if other != path:
                remove(other)

    @property
    def is_in_memory(self) -> bool:
        """Whether no disk holds the spool: a host that could write its disk could exchange the trainer's key."""
        return is_in_memory(self._out) and is_in_memory(self._in.path)

    def trainer_key(self) -> bytes | None:
        """Return the public key that the trainer drew at its start; None before the first.

        Raises:
            SpoolRefused: Its file cannot be read.
        """
        try:
            return self._in.read("sealing.pub")
        except FileNotFoundError:
            return None

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

    def delta(self, update: Update, parameters: int, seal: UpdateSeal | None = None) -> NDArray[np.float32]:
        """Read the update's delta from the spool.

        Args:
            update: As `update` returned it.
            parameters: D, the numbers that move under the plan.
            seal: Of the round, under a plan with a release level.

        Returns:
            f32[d], read-only, in this process's own memory.

        Raises:
            SpoolRefused: The update has no delta, one of another length, or one without the digest in `update`.
        """
        if update.delta_sha256 is None:
            raise SpoolRefused(f"expected a trained update for round {update.round}, got one without a delta")
        delta = np.empty(parameters, "<f4")
        try:
            folder, size_max = _name(_UPDATE, update.run_id, update.round), delta.nbytes
            if seal is None:
                with self._in.open(folder, "delta.f32", size_max=size_max) as file:
                    # Read and not mapped: the trainer could change a mapped file after the check of its digest, and a
                    # file that it makes shorter would end this process by SIGBUS.
                    held_bytes = file.readinto(delta.data.cast("B"))
            else:
                with self._in.open(folder, "delta.sealed", size_max=sealed_size(size_max)) as file:
                    held_bytes = seal.open_into(delta.data.cast("B"), file)
        except FileNotFoundError:
            raise SpoolRefused(f"the delta of round {update.round} is missing in the spool; retrain") from None
        except SealRefused as error:
            raise SpoolRefused(f"the delta of round {update.round}: {error}; retrain") from None
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

    def publish_key(self, public_key: bytes) -> None:
        """Let the agent know the key to which it encrypts content keys. Those for an earlier key are of no use then."""
        replace_file(self._out / "sealing.pub", public_key, _FILE_MODE)

    def content_key(self, job: Job, key: SealingKey) -> bytes | None:
        """Return the content key of a sealed job, 32 bytes; None as long as the agent has not encrypted it to this key.

        Raises:
            SpoolRefused: It is for another job, or its file cannot be read.
        """
        try:
            wrapped = self._in.read(_name(_JOB, job.run_id, job.round), _key_name(key.public_bytes))
        except FileNotFoundError:
            return None
        try:
            return unwrap_content_key(wrapped, _TRAINER, key, job.sealed_name)
        except SealRefused as error:
            raise SpoolRefused(f"the content key of round {job.round}: {error}; withdraw the job") from None

    def write_status(self, status: Status) -> None:
        """Replace the status.

        Raises:
            SpoolRefused: The record does not follow its schema.
        """
        replace_file(self._out / "status.json", to_json(status), _FILE_MODE)

    def deliver(
        self, update: Update, delta: NDArray[np.float32] | None = None, seal: UpdateSeal | None = None
    ) -> Update:
        """Deliver an update, whole, in place of an earlier one of the same round.

        Args:
            update: Its `delta_sha256` is filled in.
            delta: f32[d] with outcome TRAINED, None with any other.
            seal: Of the job, under a plan with a release level.

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
            if raw is not None and seal is None:
                write_file(draft / "delta.f32", raw, _FILE_MODE)
            elif raw is not None and seal is not None:
                write_in_pieces(draft / "delta.sealed", seal.sealed(raw), _FILE_MODE)
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


def _key_name(public_key: bytes) -> str:
    # By the key that it is for: the trainer sees at once whether the agent knows its newest key.
    return f"key-{hashlib.sha256(public_key).hexdigest()[:16]}"


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
