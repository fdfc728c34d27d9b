"""`hemofed-site pause` and `resume`: one small file in the state folder, which the trainer reads four times a second.

A pause outlives restarts. A file that cannot be understood pauses too: an administrator wrote it for some reason.
"""

import json
from datetime import datetime, timedelta
from pathlib import Path

from site_client.files import replace_file
from site_client.trainer.idle.readings import OperatorPause

_NAME = "pause.json"
_MODE = 0o644  # an administrator writes it, the trainer's user reads it


def pause(state: Path, now: datetime, length: timedelta | None, *, after_round: bool) -> OperatorPause:
    """Pauses training.

    Args:
        state: the site's state folder.
        now: aware.
        length: of the pause; None: until `resume`.
        after_round: the job in progress may end first.

    Returns:
        The pause that is in force from now on.
    """
    order = OperatorPause(None if length is None else now + length, after_round)
    until = None if order.until is None else order.until.isoformat()
    replace_file(state / _NAME, json.dumps({"until": until, "after_round": after_round}).encode(), _MODE)
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
        record = json.loads((state / _NAME).read_bytes())
        until = None if record["until"] is None else datetime.fromisoformat(record["until"])
        # A time without a zone could be off by hours: it counts as not understood.
        if until is not None and until.utcoffset() is None:
            raise ValueError
        return OperatorPause(until, bool(record["after_round"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return OperatorPause(None)
