"""The wait after a failure. Failures in a row double it; a failure after some progress counts as the first."""

import secrets
from collections.abc import Callable

FIRST_S = 1.0
LONGEST_S = 60.0  # a masking phase of ten minutes must not pass while a site waits for its next try


def _spread() -> float:
    return 0.5 + secrets.randbelow(500) / 1000


class Backoff:
    """Counts failures in a row. `spread` gives a factor from 0.5 to 1, so that sites do not all return at once."""

    def __init__(self, longest_s: float = LONGEST_S, spread: Callable[[], float] = _spread) -> None:
        self._longest_s, self._spread = longest_s, spread
        self._progress = 0
        self.failures = 0

    def failed(self, progress: int) -> float:
        """Count a failure.

        Args:
            progress: Grows while a transfer moves bytes. So a line that breaks off again and again, and moves bytes in
                between, is tried at once each time.

        Returns:
            Seconds until the next try.
        """
        if progress > self._progress:
            self.failures = 0
        self._progress = progress
        self.failures += 1
        # The exponent is bounded before it is used: 2.0 ** 1024 is an error, and comes after a day without a network.
        return min(self._longest_s, FIRST_S * 2.0 ** min(self.failures - 1, 16)) * self._spread()

    def succeeded(self) -> None:
        """Begin to count anew."""
        self.failures = 0
