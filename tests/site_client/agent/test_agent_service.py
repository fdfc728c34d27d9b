"""The agent as it runs: what it tells systemd, with nobody at the other end of the line."""

import itertools
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path

from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.service import AgentService
from site_client.config import SiteSettings, parse
from site_client.notify import Notifier


def test_an_unreached_aggregator_leaves_a_ready_and_living_agent_that_says_why(
    tmp_path: Path, identity: SiteIdentity
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening: refused at once
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        folders = '[folders]\nstate = "state"\nspool = "spool"\n'
        settings = parse(f'name = "mercy"\n[aggregator]\naddress = "{address}"\n{folders}', tmp_path)
        heard = _run(settings, identity, tmp_path / "notify")
    assert heard[0] == "READY=1"
    assert heard[-1] == "STOPPING=1"
    assert heard.count("WATCHDOG=1") >= 2
    assert any(line.startswith("STATUS=") and f"no answer from {address}" in line for line in heard)


def _run(settings: SiteSettings, identity: SiteIdentity, path: Path) -> list[str]:
    """What is said until the agent has lived a little and told its trouble; the notifier's clock runs fast."""
    heard: list[str] = []
    fast = itertools.count(0, 100)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(15)
        notifier = Notifier(str(path), watchdog_s=200, monotonic=lambda: float(next(fast)))
        service = AgentService(settings, identity, lambda: datetime.now(UTC), notifier)
        running = threading.Thread(target=service.run, daemon=True)
        running.start()
        try:
            while heard[-1:] != ["STOPPING=1"]:
                heard.append(systemd.recv(4096).decode())
                if heard.count("WATCHDOG=1") >= 2 and any("no answer" in line for line in heard):
                    service.stop()
        finally:
            service.stop()
            running.join(20)
    return heard
