"""Time windows in systemd's calendar syntax: "Mon..Fri 19:00 for 12h", "Sat,Sun for 1d", "*-12-24..31 for 1d".

A window is a calendar expression (systemd.time(7), *Calendar Events*) that says when it opens, the word `for`, and how
long it stays open. Understood: weekdays (names, lists, `..` ranges), dates and times of numbers, `*`, lists, `..`
ranges and `/` steps, and the shorthands `hourly daily weekly monthly quarterly semiannually yearly`. Refused with one
sentence: time zones (local time holds), `~` (days from the end of a month), and fractions of seconds.

Pure: `now` is passed in, aware, in the zone whose wall clock counts. An opening that falls into the hour a change to
summer time leaves out opens an hour later.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SHORTHANDS: Final = {
    "hourly": "*-*-* *:00:00",
    "daily": "*-*-* 00:00:00",
    "weekly": "Mon *-*-* 00:00:00",
    "monthly": "*-*-01 00:00:00",
    "quarterly": "*-01,04,07,10-01 00:00:00",
    "semiannually": "*-01,07-01 00:00:00",
    "yearly": "*-01-01 00:00:00",
    "annually": "*-01-01 00:00:00",
}
_UNITS_S: Final = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hr": 3600, "d": 86_400, "w": 604_800}
_LONGEST: Final = timedelta(days=31)


class WindowRefused(ValueError):
    """A window that is not understood; the message is one sentence."""


@dataclass(frozen=True)
class Window:
    """When it opens (every field a set of allowed numbers; `years` None: every year) and for how long."""

    text: str
    weekdays: frozenset[int]  # 0 Monday .. 6 Sunday
    years: frozenset[int] | None
    months: frozenset[int]
    days: frozenset[int]
    hours: tuple[int, ...]  # ascending, as are the next two
    minutes: tuple[int, ...]
    seconds: tuple[int, ...]
    length: timedelta

    def contains(self, now: datetime) -> bool:
        opened = self.last_start(now)
        return opened is not None and now.astimezone(UTC) - opened.astimezone(UTC) < self.length

    def last_start(self, now: datetime) -> datetime | None:
        """The newest opening at or before `now` that `length` may still reach from; None without one."""
        for back in range(self.length.days + 2):
            day = now.date() - timedelta(days=back)
            latest = now.time().replace(microsecond=0) if back == 0 else time(23, 59, 59)
            moment = self._latest(latest)
            if self._starts_on(day) and moment is not None:
                return datetime.combine(day, moment, now.tzinfo)
        return None

    def _starts_on(self, day: date) -> bool:
        in_year = self.years is None or day.year in self.years
        return in_year and day.month in self.months and day.day in self.days and day.weekday() in self.weekdays

    def _latest(self, limit: time) -> time | None:
        """The latest opening time of a day that is not after `limit`."""
        for hour in reversed(self.hours):
            for minute in reversed(self.minutes):
                if (hour, minute) > (limit.hour, limit.minute):
                    continue
                for second in reversed(self.seconds):
                    if (moment := time(hour, minute, second)) <= limit:
                        return moment
        return None


def parse_window(text: str) -> Window:
    """Reads one window. Errors: WindowRefused."""
    expression, found, length = text.partition(" for ")
    if not found:
        raise WindowRefused(
            f'expected "<when it opens> for <how long>", such as "Mon..Fri 19:00 for 12h", got {text!r}'
        )
    words = _SHORTHANDS.get(expression.strip().lower(), expression).split()
    weekdays = _weekdays(words.pop(0), text) if words and words[0][:1].isalpha() else frozenset(range(7))
    day = words.pop(0) if words and ":" not in words[0] else "*-*-*"
    clock = words.pop(0) if words and ":" in words[0] else "00:00:00"
    if words:
        raise WindowRefused(f"expected weekdays, date, time, got also {words[0]!r} in {text!r}; local time holds")
    years, months, days = _date(day, text)
    hours, minutes, seconds = _time(clock, text)
    return Window(text, weekdays, years, months, days, hours, minutes, seconds, _length(length, text))


def _weekdays(word: str, text: str) -> frozenset[int]:
    found: set[int] = set()
    for item in word.split(","):
        first, dots, last = item.partition("..")
        start = _weekday(first, text)
        end = _weekday(last, text) if dots else start
        if end < start:  # systemd refuses it too
            raise WindowRefused(f"expected weekdays from Mon to Sun in order, got {item!r} in {text!r}; write a list")
        found |= set(range(start, end + 1))
    return frozenset(found)


def _weekday(name: str, text: str) -> int:
    matches = [index for index, day in enumerate(_DAYS) if len(name) >= 3 and day.startswith(name.lower())]
    if len(matches) != 1:
        raise WindowRefused(f"expected a weekday such as Mon, got {name!r} in {text!r}")
    return matches[0]


def _date(word: str, text: str) -> tuple[frozenset[int] | None, frozenset[int], frozenset[int]]:
    parts = word.split("-")
    if len(parts) == 2:
        parts = ["*", *parts]
    if len(parts) != 3:
        raise WindowRefused(f"expected a date such as *-*-01 or 2026-12-24, got {word!r} in {text!r}")
    years = None if parts[0] == "*" else frozenset(_numbers(parts[0], 1970, 2199, text))
    return years, frozenset(_numbers(parts[1], 1, 12, text)), frozenset(_numbers(parts[2], 1, 31, text))


def _time(word: str, text: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    parts = word.split(":")
    if len(parts) == 2:
        parts = [*parts, "00"]
    if len(parts) != 3:
        raise WindowRefused(f"expected a time such as 19:00, got {word!r} in {text!r}")
    return _numbers(parts[0], 0, 23, text), _numbers(parts[1], 0, 59, text), _numbers(parts[2], 0, 59, text)


def _numbers(part: str, low: int, high: int, text: str) -> tuple[int, ...]:
    """Numbers a component allows: `*`, N, N..M, each with an optional /step, joined by commas."""
    found: set[int] = set()
    for item in part.split(","):
        match = re.fullmatch(r"(\*|[0-9]{1,4})(?:\.\.([0-9]{1,4}))?(?:/([0-9]{1,4}))?", item)
        if match is None or (match[1] == "*" and match[2]):
            raise WindowRefused(f"expected *, a number, N..M or N/step, got {item!r} in {text!r}")
        start = low if match[1] == "*" else int(match[1])
        open_end = match[1] == "*" or match[3] is not None
        end = int(match[2]) if match[2] else high if open_end else start
        step = int(match[3] or 1)
        if not low <= start <= end <= high or step == 0:
            raise WindowRefused(f"expected numbers from {low} to {high}, got {item!r} in {text!r}")
        found |= set(range(start, end + 1, step))
    return tuple(sorted(found))


def _length(text: str, whole: str) -> timedelta:
    parts = re.findall(r"([0-9]+)\s*([a-z]+)\s*", text.strip())
    if not parts or "".join(text.split()) != "".join(number + unit for number, unit in parts):
        raise WindowRefused(f'expected a length such as 12h or "1h 30min", got {text!r} in {whole!r}')
    unknown = [unit for _, unit in parts if unit not in _UNITS_S]
    if unknown:
        raise WindowRefused(f"expected the units s, min, h, d, w, got {unknown[0]!r} in {whole!r}")
    length = timedelta(seconds=sum(int(number) * _UNITS_S[unit] for number, unit in parts))
    if not timedelta(0) < length <= _LONGEST:
        raise WindowRefused(f"expected a length of up to {_LONGEST.days} days, got {text.strip()!r} in {whole!r}")
    return length
