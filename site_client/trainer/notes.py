"""What the worker tells the service: one JSON line a note. Free of torch, so that the service stays light."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from site_client.config import Settings
from site_client.spool import Job


@dataclass(frozen=True)
class Note:
    """State of the work: a SiteState name, progress of local training, and how many studies are ready."""

    state: str = "SITE_PREPARING"
    percent: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    studies: int = 0


Tell = Callable[[Note], None]


def as_line(note: Note) -> str:
    return json.dumps(asdict(note))


def from_line(line: str) -> Note:
    return Note(**json.loads(line))


def job_folder(settings: Settings, job: Job) -> Path:
    """Checkpoints of a job and the hash of its dataset; the service removes it when the job is gone."""
    return settings.folders.trainer / "jobs" / f"{job.run_id.hex()}-{job.round}"
