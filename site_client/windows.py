"""Time windows, such as "Mon..Fri 19:00 for 12h" or "Sat,Sun for 1d", and days without training.

A window is `[<weekdays>] [<HH:MM>] for <length>`: weekdays as a list of names and `..` ranges, every day without them;
midnight without a time. The grammar is a part of systemd's calendar events (systemd.time(7)), and means the same.

The functions are pure: `now` is a parameter, aware, in the zone whose wall clock counts. When summer time skips the
hour in which a window begins, the window begins one hour later.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_UNITS_S: Final = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hr": 3600, "d": 86_400, "w": 604_800}
_LONGEST: Final = timedelta(days=31)
_EXAMPLES: Final = 'write it like "Mon..Fri 19:00 for 12h", "Sat,Sun for 1d" or "22:30 for 8h"'


class WindowRefused(ValueError):
    """A window or a range of days that is not understood. The message is one sentence."""


@dataclass(frozen=True)
class Window:
    """A daily time of opening on some weekdays, and the time for which the window stays open."""

    weekdays: frozenset[int]  # 0 Monday .. 6 Sunday
    begins: time
    length: timedelta

    def contains(self, now: datetime) -> bool:
        """Whether the window is open at `now`."""
        started = self.last_start(now)
        # Subtracted in UTC: a night with a change of the clocks is an hour longer or shorter on the wall.
        return started is not None and now.astimezone(UTC) - started.astimezone(UTC) < self.length

    def last_start(self, now: datetime) -> datetime | None:
        """Return the newest start at or before `now` from which `length` may still reach it, or None."""
        # Two more than whole days: the window may have begun yesterday, and a day of 25 hours may separate the two.
        for days_back in range(self.length.days + 2):
            day = now.date() - timedelta(days=days_back)
            has_begun = days_back > 0 or self.begins <= now.time()
            if has_begun and day.weekday() in self.weekdays:
                return datetime.combine(day, self.begins, now.tzinfo)
        return None


def parse_window(text: str) -> Window:
    """Read one window.

    Raises:
        WindowRefused: `text` is not of the form that the module's docstring shows.
    """
    start, separator, length = text.partition(" for ")
    words = start.split()
    if not separator:
        raise WindowRefused(f'expected "<weekdays> <HH:MM> for <length>", got {text!r}; {_EXAMPLES}')
    weekdays = frozenset(range(7))
    if words and words[0][0].isalpha():
        weekdays = _weekdays(words.pop(0), text)
    begins = time()
    if words and ":" in words[0]:
        begins = _time(words.pop(0), text)
    if words:
        raise WindowRefused(f"expected weekdays and a local time only, got also {words[0]!r} in {text!r}; {_EXAMPLES}")
    return Window(weekdays, begins, _length(length, text))


def parse_days(text: str) -> tuple[date, date]:
    """Read a day, "2026-12-24", or a range, "2026-12-24..2027-01-01".

    Returns:
        The first and the last day.

    Raises:
        WindowRefused: `text` is neither, or the range ends before it begins.
    """
    first, dots, last = text.partition("..")
    try:
        days = date.fromisoformat(first), date.fromisoformat(last if dots else first)
    except ValueError:
        days = date.max, date.min
    if days[0] > days[1]:
        raise WindowRefused(f'expected days such as "2026-12-24..2027-01-01", got {text!r}')
    return days


def _weekdays(word: str, text: str) -> frozenset[int]:
    weekdays: set[int] = set()
    for item in word.split(","):
        first, dots, last = item.partition("..")
        start = _weekday(first, text)
        end = _weekday(last, text) if dots else start
        if end < start:  # systemd refuses it too
            raise WindowRefused(f"expected weekdays from Mon to Sun in order, got {item!r} in {text!r}; write a list")
        weekdays |= set(range(start, end + 1))
    return frozenset(weekdays)


def _weekday(name: str, text: str) -> int:
    matches = [number for number, day in enumerate(_WEEKDAYS) if len(name) >= 3 and day.startswith(name.lower())]
    if len(matches) != 1:
        raise WindowRefused(f"expected a weekday such as Mon, got {name!r} in {text!r}; {_EXAMPLES}")
    return matches[0]


def _time(word: str, text: str) -> time:
    match = re.fullmatch(r"([0-9]{1,2}):([0-9]{2})", word)
    hour, minute = (int(match[1]), int(match[2])) if match else (24, 0)
    if hour > 23 or minute > 59:
        raise WindowRefused(f"expected a time from 00:00 to 23:59, got {word!r} in {text!r}; {_EXAMPLES}")
    return time(hour, minute)


def _length(length: str, text: str) -> timedelta:
    pairs = re.findall(r"([0-9]{1,9})\s*([a-z]+)\s*", length.strip())
    if not pairs or "".join(length.split()) != "".join(number + unit for number, unit in pairs):
        raise WindowRefused(f'expected a length such as 12h or "1h 30min", got {length!r} in {text!r}')
    unknown = [unit for _, unit in pairs if unit not in _UNITS_S]
    if unknown:
        raise WindowRefused(f"expected the units s, min, h, d, w, got {unknown[0]!r} in {text!r}")
    total_s = sum(int(number) * _UNITS_S[unit] for number, unit in pairs)
    if not 0 < total_s <= _LONGEST.total_seconds():
        raise WindowRefused(f"expected a length of up to {_LONGEST.days} days, got {length.strip()!r} in {text!r}")
    return timedelta(seconds=total_s)
