"""`serve` under systemd: ready when it listens, a status in words, alive only while its parts are, stopping."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from federation.notify import Notifier

from aggregator.config import HealthSettings, load_settings
from aggregator.context import open_context
from aggregator.serve import AggregatorServer
from aggregator.sites.authority import Authority
from tests.aggregator.test_serve import Service
from tests.systemd import Systemd, systemd

__all__ = ["systemd"]  # a fixture

# As MemoryDenyWriteExecute= does: from here on no memory becomes executable, prctl(2). 1 where the kernel knows this.
SERVE = """
import ctypes
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
from aggregator.cli import main
main()
"""


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def test_the_service_says_ready_when_it_listens_its_status_that_it_lives_and_that_it_ends(
    systemd: Systemd, service: Service
) -> None:
    environment = {**os.environ, "NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "4000000"}
    command = [sys.executable, "-c", SERVE, "--config", str(service.config), "serve"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            assert systemd.until("READY=1", 60) == ["READY=1"]
            assert service.answers()
            systemd.until("STATUS=0 hospitals, no run")
            for _ in range(3):
                systemd.until("WATCHDOG=1", 10)
            process.send_signal(signal.SIGTERM)
            systemd.until("STOPPING=1", 10)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_a_start_that_is_refused_never_says_ready(systemd: Systemd, service: Service) -> None:
    service.config.write_text(service.config.read_text().replace("[state]", "[stat]"))
    environment = {**os.environ, "NOTIFY_SOCKET": str(systemd.path)}
    command = [sys.executable, "-c", SERVE, "--config", str(service.config), "serve"]
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 1
    assert systemd.next(0.2) is None


def test_a_driver_that_hangs_silences_the_service_and_the_status_says_so(systemd: Systemd, service: Service) -> None:
    hangs, free = threading.Event(), threading.Event()

    def clock() -> datetime:
        if hangs.is_set() and threading.current_thread().name.startswith("driver"):
            free.wait()
        return datetime.now(UTC)

    settings = load_settings(service.config)
    settings = msgspec.structs.replace(settings, health=HealthSettings(driver_silent_max_s=1))
    app = replace(open_context(settings), clock=clock)
    running = AggregatorServer(app, Authority(settings.state.folder / "ca", clock))
    notifier = Notifier(str(systemd.path), watchdog_s=0.04)
    running.start()
    try:
        running.report(notifier)
        assert [systemd.next(1), systemd.next(1)] == ["WATCHDOG=1", "STATUS=0 hospitals, no run"]
        hangs.set()
        while running.driver_silent_s() <= 1:
            threading.Event().wait(0.05)
        for _ in range(3):
            running.report(notifier)
        assert str(systemd.next(1)).startswith("STATUS=expected a look at the rounds within 1 s, the last was 1 s ago")
        assert systemd.next(0.2) is None
        hangs.clear()
        free.set()
        while running.driver_silent_s() > 1:
            threading.Event().wait(0.05)
        running.report(notifier)
        assert systemd.next(1) == "WATCHDOG=1"
    finally:
        hangs.clear()
        free.set()
        running.stop()
