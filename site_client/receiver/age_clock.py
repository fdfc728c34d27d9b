"""The time by which received files age. It follows the clock of the machine, but no jump of it.

A clock set a year ahead would make every file old at once, and no removed file comes back when it is set right.
So this time moves toward the machine's clock at most twice as fast as time passes, and where they differ, the earlier
one counts: files stay too long rather than too short. It is kept on disk, because a jump and a long stop of the
receiver look alike. After a stop it lags, and is level again when the receiver has run for as long.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from site_client.files import replace_file

_CATCHES_UP: Final = 2.0  # seconds a second


class AgeClock:
    """One for a receiver; for one thread."""

    def __init__(
        self, file: Path, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Go on where the last receiver stopped, or begin at the machine's clock.

        Args:
            file: Holds the time between two runs. Without it the machine's clock is believed, so a person who has seen
                to that clock may remove the file.
            wall: Unix time of the machine.
            monotonic: Seconds that never go back.
        """
        self._file, self._wall, self._monotonic = file, wall, monotonic
        self._now_s = _read(file, default_s=wall())
        self._looked_s = monotonic()

    def now_s(self) -> float:
        """Move on by what has passed since the last call.

        Returns:
            Unix time, never later than the machine's.

        Raises:
            OSError: The file cannot be written. No file may be removed by a time that a restart would forget.
        """
        looked_s, wall_s = self._monotonic(), self._wall()
        most_s = _CATCHES_UP * (looked_s - self._looked_s)
        # Back no faster than ahead: a machine that boots in 1970 and is corrected would never be level again.
        self._now_s += min(max(wall_s - self._now_s, -most_s), most_s)
        self._looked_s = looked_s
        replace_file(self._file, f"{self._now_s:.0f}\n".encode())
        return min(wall_s, self._now_s)

    @property
    def lag_s(self) -> float:
        """By how much the machine's clock is ahead; negative where it was set back."""
        return self._wall() - self._now_s


def _read(file: Path, default_s: float) -> float:
    try:
        kept_s = float(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return default_s
    return kept_s if math.isfinite(kept_s) else default_s
