"""What the worker tells the service: one JSON line a note. Free of torch, so that the service stays light."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from federation.vocabulary import SiteState
from msgspec import Meta

from site_client.config import SiteSettings
from site_client.records import Count, Job
from site_client.typed_json import decode, encode


@dataclass(frozen=True)
class WorkerMessage:
    """State of the work, progress of local training, and how many studies are ready."""

    state: SiteState = SiteState.PREPARING
    percent: Annotated[int, Meta(ge=0, le=100)] = 0
    step: Count = 0
    steps: Count = 0
    loss: float | None = None
    studies: Count = 0


@dataclass
class TrainingSpeed:
    """How fast this worker trains, from its own steps: those before a checkpoint and the time of preparing are not."""

    first: tuple[int, float] | None = None  # the step of its first note of training, and when
    last: tuple[int, float] | None = None

    def hear(self, note: WorkerMessage, now_s: float) -> None:
        """`now_s`: of a monotonic clock."""
        if note.state == SiteState.TRAINING:
            self.last = (note.step, now_s)
            self.first = self.first or self.last

    def seconds_left(self, note: WorkerMessage) -> int | None:
        """None before the second step, and outside training."""
        first, last = self.first, self.last
        if note.state != SiteState.TRAINING or first is None or last is None or last[0] <= first[0]:
            return None
        return round((last[1] - first[1]) / (last[0] - first[0]) * (note.steps - note.step))


Tell = Callable[[WorkerMessage], None]


def as_line(note: WorkerMessage) -> str:
    """Return the message as one line of JSON."""
    return encode(note).decode()


def from_line(line: str) -> WorkerMessage:
    """Read a line.

    Raises:
        ValueError: the line is no message.
    """
    return decode(WorkerMessage, line)


def job_folder(settings: SiteSettings, job: Job) -> Path:
    """Checkpoints of a job and the hash of its dataset; the service removes it when the job is gone."""
    return settings.folders.trainer / "jobs" / f"{job.run_id.hex()}-{job.round}"
