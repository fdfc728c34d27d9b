"""The log: one line an event, with the traceback where one was promised, and no local variable in it."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from aggregator.logging_setup import RepetitionLimit, configure_logging, limit_repetition

AGGREGATOR = Path(__file__).resolve().parents[2] / "aggregator"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def configuration() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def fail() -> None:
    secret = "a key that must stay here"
    raise OSError(len(secret))


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_traceback_is_logged_without_local_variables(stream: io.StringIO) -> None:
    configure_logging(stream)
    try:
        fail()
    except OSError:
        structlog.get_logger().exception("step failed", round_id=3)
    logged = stream.getvalue()
    assert "Traceback (most recent call last)" in logged
    assert "in fail" in logged
    assert "a key that" not in logged.replace('secret = "a key that must stay here"', "")
    assert "step failed" in logged


def test_an_event_is_one_line_of_json_with_a_time_in_utc() -> None:
    stream = io.StringIO()
    configure_logging(stream)
    structlog.get_logger().info("run started", run="00", rounds=2)
    [line] = stream.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {"event": "run started", "level": "info", "run": "00", "rounds": 2}


def test_every_message_is_constant_and_lower_case() -> None:
    """A program that counts events reads the message; what varies stands in fields."""
    calls = [
        call
        for path in AGGREGATOR.rglob("*.py")
        for call in re.findall(r"\blog\.(?:debug|info|warning|error|exception)\(\s*([^,)]+)", path.read_text())
    ]
    assert len(calls) > 10
    assert [call for call in calls if not re.fullmatch(r'"[a-z][a-z0-9 ]+[a-z]"', call)] == []


def test_an_event_gets_its_lines_a_minute_and_the_next_minute_says_how_many_were_left_out() -> None:
    now = [0.0]
    limit = RepetitionLimit(3, lambda: now[0])
    for _ in range(3):
        assert limit(None, "info", {"event": "call refused"}) == {"event": "call refused"}
    for _ in range(997):
        with pytest.raises(structlog.DropEvent):
            limit(None, "info", {"event": "call refused"})
    assert limit(None, "info", {"event": "run started"}) == {"event": "run started"}
    now[0] = 60.0
    assert limit(None, "info", {"event": "call refused"}) == {"event": "call refused", "left_out": 997}
    assert limit(None, "info", {"event": "call refused"}) == {"event": "call refused"}


def test_the_limit_holds_for_the_log_that_serve_writes() -> None:
    stream = io.StringIO()
    configure_logging(stream)
    limit_repetition(10)
    for _ in range(100_000):
        structlog.get_logger().warning("connection refused")
    assert len(stream.getvalue().splitlines()) == 10
