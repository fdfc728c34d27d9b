"""`hemofed-site pause` and `resume`: one small file in the state folder, which the trainer reads four times a second.

A pause outlives restarts. A file that cannot be understood pauses too: an administrator wrote it for some reason.
"""

from datetime import datetime, timedelta
from pathlib import Path

from site_client.files import replace_file
from site_client.trainer.idle.readings import OperatorPause
from site_client.typed_json import SIZE_MAX, decode, encode
from site_client.untrusted_files import read_regular

_NAME = "pause.json"
_MODE = 0o644  # an administrator writes it, the trainer's user reads it


def pause(state: Path, now: datetime, length: timedelta | None, *, after_round: bool) -> OperatorPause:
    """Pauses training.

    Args:
        state: The site's state folder.
        now: Aware.
        length: Of the pause; None: until `resume`.
        after_round: The job in progress may end first.

    Returns:
        The pause that is in force from now on.
    """
    order = OperatorPause(None if length is None else now + length, after_round)
    replace_file(state / _NAME, encode(order), _MODE)
    return order


def resume(state: Path) -> bool:
    """Ends the pause; False when there was none."""
    try:
        (state / _NAME).unlink()
    except FileNotFoundError:
        return False
    return True


def current(state: Path) -> OperatorPause | None:
    """Reads the pause in force, or one whose time is over; None without any."""
    try:
        return decode(OperatorPause, read_regular(state / _NAME, SIZE_MAX), whole=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return OperatorPause(None)
