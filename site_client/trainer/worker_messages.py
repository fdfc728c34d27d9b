"""Messages from the worker to the service: one JSON line each, on the worker's standard output.

This file must not import torch: the service reads the messages and has to stay light.
"""

import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from federation.vocabulary import SiteState
from msgspec import Meta

from site_client.records import Count
from site_client.typed_json import decode, encode


@dataclass(frozen=True)
class WorkerMessage:
    """State of the work, progress of local training, and the number of studies that are ready."""

    state: SiteState = SiteState.PREPARING
    percent: Annotated[int, Meta(ge=0, le=100)] = 0
    step: Count = 0
    steps: Count = 0
    loss: float | None = None
    studies: Count = 0


SendMessage = Callable[[WorkerMessage], None]


@dataclass
class TrainingSpeed:
    """Speed of one worker's training, measured on its own steps.

    A resumed worker starts at the step of its checkpoint, and it prepares studies first. Neither counts, because the
    measurement begins with the worker's first message of training.
    """

    first: tuple[int, float] | None = None  # step of the first message of training, and its time in seconds
    last: tuple[int, float] | None = None

    def observe(self, message: WorkerMessage, now_s: float) -> None:
        """Takes one message into account.

        Args:
            message: Any message of the worker; only those of training count.
            now_s: Seconds of a monotonic clock.
        """
        if message.state == SiteState.TRAINING:
            self.last = (message.step, now_s)
            self.first = self.first or self.last

    def seconds_left(self, message: WorkerMessage) -> int | None:
        """Estimates the seconds until the last step, or gives None before the second step and outside training."""
        first, last = self.first, self.last
        if message.state != SiteState.TRAINING or first is None or last is None or last[0] <= first[0]:
            return None
        return round((last[1] - first[1]) / (last[0] - first[0]) * (message.steps - message.step))


def hand_over(process: "subprocess.Popen[str]", content_key: bytes | None) -> None:
    """Sends a new process the content key of its job through the pipe to its standard input, and closes the pipe."""
    # Popen was given a pipe for standard input.
    assert process.stdin is not None
    # A process that has died already is noticed by its status.
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write("" if content_key is None else content_key.hex())


def as_line(message: WorkerMessage) -> str:
    """Writes a message as one line of JSON, without the line's end."""
    return encode(message).decode()


def from_line(line: str) -> WorkerMessage:
    """Reads a line that `as_line` wrote.

    Raises:
        ValueError: The line is no message.
    """
    return decode(WorkerMessage, line)
