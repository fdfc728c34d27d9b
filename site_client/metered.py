"""Whether the way to the network costs by the byte, as NetworkManager knows it. Holds back transfers, not training."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from site_client.bus import Bus, BusError
from site_client.config import PolicySettings

_NETWORK: Final = "org.freedesktop.NetworkManager"
_METERED: Final = {1: True, 2: False, 3: True, 4: False}  # NMMetered: yes, no, guessed yes, guessed no; 0 unknown
_ASK_EVERY: Final = timedelta(seconds=15)


def is_metered(bus: Bus) -> bool | None:
    """None: nobody knows, NetworkManager does not run here or cannot tell."""
    try:
        return _METERED.get(bus.get(_NETWORK, "/org/freedesktop/NetworkManager", _NETWORK, "Metered"))
    except BusError:
        return None


class Meter:
    """Whether the policy holds transfers back because of what they cost. Asks the bus at most every 15 s."""

    def __init__(self, policy: PolicySettings, clock: Callable[[], datetime], ask: Callable[[], bool | None]) -> None:
        self._policy, self._clock, self._ask = policy, clock, ask
        self._asked_at: datetime | None = None
        self._answer: bool | None = None

    def holds_back(self) -> bool:
        """UNKNOWN holds back only if `metered_unknown` says so."""
        if self._policy.metered == "ignore":
            return False
        now = self._clock()
        # A clock that was set back asks again, too.
        if self._asked_at is None or not timedelta(0) <= now - self._asked_at < _ASK_EVERY:
            self._answer, self._asked_at = self._ask(), now
        return self._policy.metered_unknown == "wait" if self._answer is None else self._answer
