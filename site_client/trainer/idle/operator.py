"""`hemofed-site pause` and `resume`: one small file in the state folder, which the trainer reads four times a second.

A pause outlives restarts. A file that cannot be understood pauses too: somebody wanted something.
"""

from datetime import datetime, timedelta
from pathlib import Path

from site_client.files import replace_file
from site_client.trainer.idle.readings import OperatorPause
from site_client.typed_json import decode, encode, read_bounded

_NAME = "pause.json"
_MODE = 0o644  # written by an administrator, read by the trainer's user


def pause(state: Path, now: datetime, length: timedelta | None, *, after_round: bool) -> OperatorPause:
    """Pauses training, for a length or until `resume`; `after_round` lets the job at hand end first."""
    order = OperatorPause(None if length is None else now + length, after_round)
    replace_file(state / _NAME, encode(order), _MODE)
    return order


def resume(state: Path) -> bool:
    """Takes the pause back; False when there was none."""
    try:
        (state / _NAME).unlink()
    except FileNotFoundError:
        return False
    return True


def current(state: Path) -> OperatorPause | None:
    """The pause in force, or one that has ended by itself; None without any."""
    try:
        return decode(OperatorPause, read_bounded(state / _NAME), whole=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return OperatorPause(None)
