"""Whether the network costs by the byte, as NetworkManager reports it. Holds back transfers, not training."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from site_client.bus import Bus, BusError
from site_client.config import PolicySettings

_NETWORK: Final = "org.freedesktop.NetworkManager"
_METERED: Final = {1: True, 2: False, 3: True, 4: False}  # NMMetered: yes, no, guessed yes, guessed no; 0 unknown
_ASK_EVERY: Final = timedelta(seconds=15)


def is_metered(bus: Bus) -> bool | None:
    """Ask NetworkManager; None when it does not run here or cannot tell."""
    try:
        return _METERED.get(bus.get(_NETWORK, "/org/freedesktop/NetworkManager", _NETWORK, "Metered"))
    # No NetworkManager is normal on servers; `metered_unknown` decides then.
    except BusError:
        return None


class Meter:
    """Applies the policy about links that cost by the byte. Asks the bus at most every 15 s."""

    def __init__(self, policy: PolicySettings, clock: Callable[[], datetime], ask: Callable[[], bool | None]) -> None:
        self._policy, self._clock, self._ask = policy, clock, ask
        self._asked_at: datetime | None = None
        self._answer: bool | None = None

    def holds_back(self) -> bool:
        """Whether transfers have to wait. An unknown answer holds them back only if `metered_unknown` is "wait"."""
        if self._policy.metered == "ignore":
            return False
        now = self._clock()
        # The difference is negative after the clock was set back; then the bus is asked again, too.
        if self._asked_at is None or not timedelta(0) <= now - self._asked_at < _ASK_EVERY:
            self._answer, self._asked_at = self._ask(), now
        return self._policy.metered_unknown == "wait" if self._answer is None else self._answer
