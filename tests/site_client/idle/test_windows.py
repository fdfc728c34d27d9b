"""Windows in systemd's calendar syntax: what is understood, what is refused, and that systemd agrees."""

import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from site_client.windows import WindowRefused, parse_window

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("window", "open_at", "closed_at"),
    [
        ("Mon..Fri 19:00 for 12h", ["2026-11-23T19:00", "2026-11-28T06:59"], ["2026-11-23T18:59", "2026-11-28T07:00"]),
        ("Sat,Sun for 1d", ["2026-11-28T00:00", "2026-11-29T23:59"], ["2026-11-30T00:00", "2026-11-27T23:59"]),
        ("Fri..Sun,Mon 08:00 for 1h", ["2026-11-30T08:10", "2026-11-27T08:00"], ["2026-12-01T08:10"]),
        ("*-12-24..31 for 1d", ["2026-12-24T12:00", "2027-12-31T23:00"], ["2026-12-23T12:00", "2027-01-01T00:00"]),
        ("2026-12-01 20:00 for 2d", ["2026-12-03T19:59"], ["2026-12-03T20:00", "2027-12-01T21:00"]),
        ("*:0/15 for 5min", ["2026-11-23T10:15", "2026-11-23T10:34:59"], ["2026-11-23T10:35", "2026-11-23T10:14"]),
        ("daily for 6h", ["2026-11-23T05:59:59"], ["2026-11-23T06:00"]),
        ("Mon *-*-* 9..16/2:30 for 1h 30min", ["2026-11-23T09:30", "2026-11-23T16:59"], ["2026-11-23T17:00"]),
    ],
)
def test_a_window_is_open_when_it_says_so(window: str, open_at: list[str], closed_at: list[str]) -> None:
    parsed = parse_window(window)
    assert [moment for moment in open_at if not parsed.contains(at(moment))] == []
    assert [moment for moment in closed_at if parsed.contains(at(moment))] == []


def test_a_night_window_lasts_its_length_through_a_change_of_the_clocks() -> None:
    window = parse_window("Sat 22:00 for 8h")
    opened = at("2026-10-24T22:00").astimezone(UTC)  # the night that has an hour twice
    assert window.contains((opened + timedelta(hours=7, minutes=59)).astimezone(BERLIN))
    assert not window.contains((opened + timedelta(hours=8)).astimezone(BERLIN))


@pytest.mark.parametrize(
    ("window", "sentence"),
    [
        ("Mon..Fri 19:00", "for <how long>"),
        ("19:00 UTC for 1h", "local time holds"),
        ("*-*~01 for 1d", "N..M or N/step"),
        ("Fri..Mon 10:00 for 1h", "write a list"),
        ("Mo 10:00 for 1h", "expected a weekday"),
        ("25:00 for 1h", "from 0 to 23"),
        ("10:00:00.5 for 1h", "got '00.5'"),
        ("10:00 for ever", "a length such as"),
        ("10:00 for 2 fortnights", "the units"),
        ("10:00 for 0s", "a length of up to"),
        ("10:00 for 5w", "a length of up to"),
        ("*/0-01 for 1d", "from"),
        ("", "for <how long>"),
    ],
)
def test_what_is_not_understood_is_refused_with_one_sentence(window: str, sentence: str) -> None:
    with pytest.raises(WindowRefused, match=re.escape(sentence)) as refusal:
        parse_window(window)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize(
    "expression",
    [
        "Mon..Fri 19:00",
        "Fri..Sun,Mon 08:00",
        "*-12-24..31",
        "*:0/15",
        "daily",
        "Mon *-*-* 9..16/2:30",
        "quarterly",
        "Tue *-*-01..07 4,16:05:30",
        "*-1..12/3-10/7 00/6:00",
    ],
)
def test_systemd_opens_at_the_same_moments(expression: str) -> None:
    window = parse_window(f"{expression} for 1s")
    base = datetime(2026, 11, 23, 14, 7, tzinfo=UTC)
    answer = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=8", f"--base-time={base:%Y-%m-%d %H:%M:%S} UTC", expression],
        capture_output=True,
        text=True,
        check=True,
        env={"TZ": "UTC", "PATH": "/usr/bin:/bin", "LC_ALL": "C"},
    ).stdout
    moments = re.findall(r"(?:elapse|Iteration #\d+|Iter\. #\d+): \w{3} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", answer)
    assert len(moments) == 8, answer
    before = base
    for text in moments:
        opening = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        assert window.contains(opening)
        if opening - before > timedelta(days=32):
            before = opening - timedelta(days=32)
        last = window.last_start(opening - timedelta(seconds=1))
        assert last is None or last <= before  # nothing in between
        before = opening
