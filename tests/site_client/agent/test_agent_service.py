"""The agent as it runs: its messages to systemd, without an aggregator at the other end of the line."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from federation.vocabulary import SiteState

from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.service import AgentService
from site_client.agent.status_file import read_status
from site_client.config import SiteSettings, parse
from site_client.notify import Notifier


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[SiteSettings]:
    """Of an aggregator that refuses connections at once, with short waits between two tries."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        folders = '[folders]\nstate = "state"\nspool = "spool"\n[agent]\npoll_max_s = 0.2\n'
        yield parse(f'name = "mercy"\n[aggregator]\naddress = "{address}"\n{folders}', tmp_path)


class Systemd:
    """The other end of the notify socket, and the agent that sends to it."""

    def __init__(self, receiver: socket.socket, service: AgentService) -> None:
        self._receiver, self.service = receiver, service
        self.messages: list[str] = []

    def receive_until(self, condition: Callable[[list[str]], bool]) -> None:
        """Receive until the messages since this call fulfil the condition."""
        start = len(self.messages)
        while not condition(self.messages[start:]):
            self.messages.append(self._receiver.recv(4096).decode())


@contextmanager
def running(settings: SiteSettings, identity: SiteIdentity, path: Path) -> Iterator[Systemd]:
    """An agent in a thread, stopped at the end; its notifier's clock runs fast."""
    fast = itertools.count(0, 100)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(15)
        notifier = Notifier(str(path), watchdog_s=200, monotonic=lambda: float(next(fast)))
        service = AgentService(settings, identity, lambda: datetime.now(UTC), notifier)
        thread = threading.Thread(target=service.run, daemon=True)
        thread.start()
        try:
            yield Systemd(receiver, service)
        finally:
            service.stop()
            thread.join(20)


def status_with(words: str) -> Callable[[list[str]], bool]:
    return lambda messages: any(line.startswith("STATUS=") and words in line for line in messages)


def test_without_an_aggregator_the_agent_is_ready_and_alive_and_reports_why(
    tmp_path: Path, identity: SiteIdentity, settings: SiteSettings
) -> None:
    with running(settings, identity, tmp_path / "notify") as systemd:
        systemd.receive_until(status_with(f"no answer from {settings.aggregator.address}"))
        systemd.receive_until(lambda messages: messages.count("WATCHDOG=1") >= 2)
        systemd.service.stop()
        systemd.receive_until(lambda messages: messages[-1:] == ["STOPPING=1"])
    assert systemd.messages[0] == "READY=1"


def test_a_file_damaged_meanwhile_is_reported_and_the_agent_goes_on_when_it_is_mended(
    tmp_path: Path, identity: SiteIdentity, settings: SiteSettings
) -> None:
    history = settings.folders.agent / "models" / "history.json"
    with running(settings, identity, tmp_path / "notify") as systemd:
        systemd.receive_until(status_with("no answer"))
        history.write_text("{")
        systemd.receive_until(status_with("attention; history.json in the state folder is damaged"))
        status = read_status(settings.folders.agent)
        assert status is not None
        assert status.state is SiteState.ATTENTION
        history.unlink()
        systemd.receive_until(status_with("no answer"))
