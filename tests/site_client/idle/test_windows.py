"""Time windows: which forms are understood, which are refused with a form that works, and that systemd agrees."""

import re
import shutil
import subprocess
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from site_client.windows import WindowRefused, parse_days, parse_window

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("Mon..Fri 19:00 for 12h", ["2026-11-23T19:00", "2026-11-28T06:59"], ["2026-11-23T18:59", "2026-11-28T07:00"]),
        ("Sat,Sun for 1d", ["2026-11-28T00:00", "2026-11-29T23:59"], ["2026-11-30T00:00", "2026-11-27T23:59"]),
        ("Fri..Sun,Mon 08:00 for 1h", ["2026-11-30T08:10", "2026-11-27T08:00"], ["2026-12-01T08:10"]),
        ("saturday 9:30 for 1h 30min", ["2026-11-28T09:30", "2026-11-28T10:59:59"], ["2026-11-28T11:00"]),
        ("19:00 for 12h", ["2026-11-23T19:00", "2026-11-24T06:59"], ["2026-11-24T07:00", "2026-11-24T18:59:59"]),
        ("Tue 20:00 for 2d", ["2026-11-26T19:59"], ["2026-11-26T20:00", "2026-11-24T19:59"]),
        (" for 6h", ["2026-11-23T05:59:59"], ["2026-11-23T06:00"]),
    ],
)
def test_a_window_is_open_from_its_time_for_its_length(window: str, inside: list[str], outside: list[str]) -> None:
    parsed = parse_window(window)
    assert [moment for moment in inside if not parsed.contains(at(moment))] == []
    assert [moment for moment in outside if parsed.contains(at(moment))] == []


def test_a_night_window_lasts_its_length_through_a_change_of_the_clocks() -> None:
    window = parse_window("Sat 22:00 for 8h")
    started = at("2026-10-24T22:00").astimezone(UTC)  # the night that has an hour twice
    assert window.contains((started + timedelta(hours=7, minutes=59)).astimezone(BERLIN))
    assert not window.contains((started + timedelta(hours=8)).astimezone(BERLIN))


def test_a_window_that_begins_in_the_skipped_hour_begins_an_hour_later() -> None:
    window = parse_window("Sun 02:30 for 1h")
    after_the_change = at("2026-03-29T03:30").astimezone(UTC)
    assert window.contains(after_the_change.astimezone(BERLIN))
    assert not window.contains((after_the_change + timedelta(hours=1)).astimezone(BERLIN))


@pytest.mark.parametrize(
    ("window", "sentence"),
    [
        ("Mon..Fri 19:00", "for <length>"),
        ("19:00 UTC for 1h", "local time only"),
        ("Fri..Mon 10:00 for 1h", "write a list"),
        ("Mo 10:00 for 1h", "expected a weekday"),
        ("25:00 for 1h", "from 00:00 to 23:59"),
        ("10:61 for 1h", "from 00:00 to 23:59"),
        ("10:00:00.5 for 1h", "got '10:00:00.5'"),
        ("10:00 for ever", "a length such as"),
        ("10:00 for 2 fortnights", "the units"),
        ("10:00 for 0s", "a length of up to"),
        ("10:00 for 5w", "a length of up to"),
        (f"10:00 for {'9' * 5000}s", "a length such as"),
        ("", "for <length>"),
    ],
)
def test_a_mistake_is_refused_with_one_sentence(window: str, sentence: str) -> None:
    with pytest.raises(WindowRefused, match=re.escape(sentence)) as refusal:
        parse_window(window)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "window",
    [
        "*-12-24..31 for 1d",
        "2026-12-01 20:00 for 2d",
        "*-*~01 for 1d",
        "*:0/15 for 5min",
        "daily for 6h",
        "Mon *-*-* 9..16/2:30 for 1h",
        "10:00:30 for 1h",
        "4,16:05 for 1h",
    ],
)
def test_a_form_of_systemd_that_is_not_understood_is_refused_with_forms_that_are(window: str) -> None:
    with pytest.raises(WindowRefused) as refusal:
        parse_window(window)
    examples = re.findall(r'"([^"]+ for [^"]+)"', str(refusal.value))
    assert len(examples) >= 3
    for example in examples:
        parse_window(example)


def test_days_are_one_day_or_a_range_in_order() -> None:
    assert parse_days("2026-12-24") == (date(2026, 12, 24), date(2026, 12, 24))
    assert parse_days("2026-12-24..2027-01-01") == (date(2026, 12, 24), date(2027, 1, 1))
    for odd in ("2026-12-24..2026-12-01", "2026-12-24..", "christmas", "2026-12-24..2026-13-01", ""):
        with pytest.raises(WindowRefused, match="expected days such as"):
            parse_days(odd)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("expression", ["Mon..Fri 19:00", "Fri..Sun,Mon 08:00", "Sat,Sun", "22:30", "Wednesday 7:05"])
def test_systemd_begins_at_the_same_moments(expression: str) -> None:
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
        start = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        assert window.contains(start)
        last = window.last_start(start - timedelta(seconds=1))
        assert last is None or last <= before  # nothing in between
        before = start
