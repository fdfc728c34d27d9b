"""A disk that is full or read-only: one sentence, growing pauses, and a service that stays up."""

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from federation.notify import Notifier
from structlog.testing import capture_logs

from site_client.agent.service import AgentService
from site_client.config import SiteSettings, parse
from site_client.disk_watch import DiskWatch, is_of_disk
from site_client.trainer.service import TrainerService
from tests.site_client.agent.conftest import Consortium

WAIT_S = 60.0


@pytest.fixture
def settings(tmp_path: Path) -> SiteSettings:
    folders = '[folders]\nstate = "state"\nspool = "spool"\ncache = "cache"\nexport = "export"\n'
    return parse(
        f'name = "mercy"\n[aggregator]\naddress = "127.0.0.1:9"\n[agent]\npoll_max_s = 0.2\n{folders}', tmp_path
    )


@contextmanager
def refusing(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[list[float]]:
    """A kernel that gives every write, opening for writing and rename of a state file this error; their times."""
    times: list[float] = []

    def refused(*_: object, **__: object) -> None:
        times.append(time.monotonic())
        raise OSError(number, os.strerror(number), "/export/DOE^JANE")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", refused)
        patch.setattr("site_client.files._write", refused)
        patch.setattr(Path, "write_bytes", refused)
        yield times


def wait_for(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_refusal_is_logged_once_and_its_pauses_grow_to_a_minute(number: int) -> None:
    watch = DiskWatch(Notifier())
    error = OSError(number, os.strerror(number), "/export/DOE^JANE")
    assert is_of_disk(error)
    with capture_logs() as logs:
        waits = [watch.refused(error) for _ in range(9)]
        watch.works()
        watch.works()
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert [event["event"] for event in logs] == ["disk refused", "disk works again"]
    assert "DOE" not in str(logs)


def test_other_errors_are_none_of_a_disk() -> None:
    assert not is_of_disk(OSError(errno.ENOENT, "gone"))
    assert not is_of_disk(ConnectionError("cut"))
    assert not is_of_disk(ValueError())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_the_agent_says_once_that_its_disk_refuses_and_goes_on_when_it_does_not(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    identity = Consortium().enrol(settings.folders.agent / "identity")
    service = AgentService(settings, identity, lambda: datetime.now(UTC))
    with capture_logs() as logs:
        thread = threading.Thread(target=service.run, daemon=True)
        with refusing(monkeypatch, number) as times:
            thread.start()
            wait_for(lambda: len(times) > 6)
            assert thread.is_alive()
        entries = service._ledger.entries
        wait_for(lambda: service._ledger.entries > entries)
        service.stop()
        thread.join(WAIT_S)
    events = [event["event"] for event in logs if event["log_level"] in ("warning", "error")]
    assert events.count("disk refused") == 1
    assert events.count("status not written") <= 1
    assert not any("exc_info" in event for event in logs)
    assert "DOE" not in str(logs)


def test_the_trainer_says_once_that_its_disk_refuses_and_still_asks_the_gate(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings.folders.trainer.mkdir(parents=True)
    (tmp_path / "site.toml").write_text('name = "mercy"\n')
    service = TrainerService(settings, tmp_path / "site.toml", lambda: datetime.now(UTC))
    asked = itertools.count()
    sample, turns = service._watch.sample, [0]

    def counted(*arguments: object, **named: object) -> object:
        turns[0] = next(asked)
        return sample(*arguments, **named)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(service._watch, "sample", counted)
    with capture_logs() as logs:
        thread = threading.Thread(target=service.run, daemon=True)
        thread.start()
        wait_for(lambda: turns[0] > 2)
        with refusing(monkeypatch, errno.ENOSPC) as times:
            wait_for(lambda: len(times) > 1)
            before = turns[0]
            wait_for(lambda: turns[0] > before + 8)
            assert len(times) <= 4
        wait_for(lambda: any(event["event"] == "disk works again" for event in logs))
        service.stopping.set()
        thread.join(WAIT_S)
    assert not thread.is_alive()
    assert [event["event"] for event in logs].count("disk refused") == 1
    assert "DOE" not in str(logs)
