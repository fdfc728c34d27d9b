"""Whether the way to the network costs by the byte, as NetworkManager knows it. Holds back transfers, not training."""

from typing import Final

from site_client.bus import Bus, BusError

_NETWORK: Final = "org.freedesktop.NetworkManager"
_METERED: Final = {1: True, 2: False, 3: True, 4: False}  # NMMetered: yes, no, guessed yes, guessed no; 0 unknown


def is_metered(bus: Bus) -> bool | None:
    """None: nobody knows, NetworkManager does not run here or cannot tell."""
    try:
        return _METERED.get(bus.get(_NETWORK, "/org/freedesktop/NetworkManager", _NETWORK, "Metered"))
    except BusError:
        return None
