"""`hemofed-site join` of one hospital, which waits until the custodian has signed a roster with it."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

JOIN_TRIES = 4
JOIN_AGAIN_S = 3.0  # an aggregator is back by then


class StepFailed(RuntimeError):
    """A command that the demo ran failed; the message holds the command's last line."""


@dataclass
class Join:
    """The command, in a process of its own; started again when the aggregator was not there."""

    command: Sequence[str]
    environment: Mapping[str, str]
    tries_left: int = JOIN_TRIES
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        """Starts it."""
        self._start()

    def has_ended(self) -> bool:
        """Tells whether the hospital is enrolled.

        Raises:
            StepFailed: It cannot join.
        """
        if self.process.poll() is None:
            return False
        if self.process.returncode == 0:
            return True
        _, errors = self.process.communicate()
        if not self.tries_left:
            raise StepFailed(f"{Path(self.command[0]).name} join: {last_line(errors)}")
        # The aggregator may have died; the same token resumes the enrolment.
        time.sleep(JOIN_AGAIN_S)
        self._start()
        return False

    def stop(self) -> None:
        """Ends it, wherever it is."""
        self.process.kill()
        self.process.communicate()

    def _start(self) -> None:
        self.tries_left -= 1
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=dict(self.environment)
        )


def last_line(output: str) -> str:
    """Gives the sentence of a refusal; the lines above it are logs."""
    return (output.strip() or "no output").splitlines()[-1]
