"""The units, and what the services tell systemd on a real socket; a hung loop's silence, too."""

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from federation.notify import Notifier
from federation.vocabulary import SiteState, StateReason

from aggregator.config import AggregatorSettings, LimitsSettings
from aggregator.serve import DESCRIPTORS_KEPT, DESCRIPTORS_PER_CONNECTION
from site_client.agent.status_file import AgentStatus, in_words
from site_client.config import load
from site_client.receiver.settings import ReceiverSettings
from site_client.status import gather, render_text
from site_client.trainer.service import TrainerService
from tests.aggregator.test_stop import STOPS_WITHIN_S
from tests.systemd import Systemd, systemd

__all__ = ["systemd"]  # a fixture

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze not installed")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folders = '\n[folders]\nstate = "state"\nspool = "spool"\ncache = "cache"\nexport = "export"\n'
    never = '\n[idle]\nblackout = ["2000-01-01..2999-12-31"]\n'
    path = tmp_path / "site.toml"
    path.write_text('name = "north"\n' + folders + never)
    return path


# What is said.


def test_each_word_is_one_datagram(systemd: Systemd) -> None:
    notifier = Notifier(str(systemd.path))
    notifier.ready()
    notifier.status("two\nlines  in one")
    notifier.stopping()
    assert [systemd.next(1) for _ in range(3)] == ["READY=1", "STATUS=two lines in one", "STOPPING=1"]


def test_an_abstract_socket_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0hemofed-test-{os.getpid()}")
        Notifier(f"@hemofed-test-{os.getpid()}").ready()
        listening.settimeout(1)
        assert listening.recv(64) == b"READY=1"


def test_a_status_is_said_once_until_it_changes_and_never_longer_than_a_line(systemd: Systemd) -> None:
    notifier = Notifier(str(systemd.path))
    for words in ("idle", "idle", "x" * 5000, "idle"):
        notifier.status(words)
    heard = [systemd.next(0.2) for _ in range(4)]
    assert heard == ["STATUS=idle", "STATUS=" + "x" * 300, "STATUS=idle", None]


def test_alive_is_said_four_times_in_the_time_systemd_waits(systemd: Systemd) -> None:
    now = [0.0]
    notifier = Notifier(str(systemd.path), watchdog_s=60, monotonic=lambda: now[0])
    for second in range(61):
        now[0] = float(second)
        notifier.alive()
    assert [systemd.next(0.2) for _ in range(6)] == ["WATCHDOG=1"] * 5 + [None]


def test_without_a_watchdog_or_without_systemd_nothing_is_sent(systemd: Systemd) -> None:
    Notifier(str(systemd.path)).alive()
    Notifier().ready()
    assert systemd.next(0.2) is None


def test_a_longer_patience_is_asked_for_only_where_the_unit_has_less(systemd: Systemd) -> None:
    notifier = Notifier(str(systemd.path), watchdog_s=600)
    notifier.allow(180)
    notifier.allow(900)
    assert systemd.next(1) == "WATCHDOG_USEC=900000000"
    assert (notifier.watchdog_s, systemd.next(0.2)) == (900, None)


def test_a_socket_that_is_gone_ends_no_service(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "gone"), watchdog_s=1)
    notifier.ready()
    notifier.status("idle")
    notifier.alive()


def test_children_do_not_inherit_the_way_to_systemd(systemd: Systemd) -> None:
    environment = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.of_service(environment).watchdog_s == 60
    assert environment == {}
    assert Notifier.of_service({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}).watchdog_s == 0


def test_the_agents_line_holds_state_reasons_round_and_the_last_error() -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    view = AgentStatus(
        now, SiteState.PAUSED, (StateReason.NET_WINDOW,), None, 3, None, 1, now, None, "no answer from hub:8443", 7
    )
    assert in_words(view) == "paused: NET_WINDOW; round 3; no answer from hub:8443"


# The trainer, as it runs.


def test_the_trainer_says_ready_why_it_does_not_train_that_it_lives_and_that_it_ends(
    systemd: Systemd, config: Path
) -> None:
    environment = {**os.environ, "NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "1000000"}
    command = [sys.executable, "-m", "site_client.cli", "trainer", "--config", str(config)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as trainer:
        try:
            systemd.until("READY=1")
            assert "no training on 2000-01-01..2999-12-31" in systemd.until("STATUS=paused")[-1]
            for _ in range(3):
                systemd.until("WATCHDOG=1", 5)
            trainer.send_signal(signal.SIGTERM)
            systemd.until("STOPPING=1", 10)
            assert trainer.wait(20) == 0
        finally:
            trainer.kill()


def test_a_trainer_with_the_example_s_settings_stands_by_reads_nothing_and_says_what_to_edit(
    systemd: Systemd, tmp_path: Path
) -> None:
    config = tmp_path / "site.toml"
    folders = '\n[folders]\nstate = "state"\nspool = "spool"\ncache = "cache"\nexport = "export"\n'
    config.write_text('name = "example-hospital"\n' + folders)
    environment = {**os.environ, "NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "1000000"}
    command = [sys.executable, "-m", "site_client.cli", "trainer", "--config", str(config)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as trainer:
        try:
            assert systemd.until("STATUS=")[0] == "READY=1"
            systemd.until("WATCHDOG=1", 5)
            assert sorted(path.name for path in tmp_path.iterdir()) == ["notify", "site.toml"]
            trainer.send_signal(signal.SIGTERM)
            assert trainer.wait(20) == 0
        finally:
            trainer.kill()
    assert "not configured yet: edit" in render_text(gather(load(config)))


@pytest.mark.parametrize("service", ["agent", "trainer"])
def test_settings_that_somebody_has_to_mend_end_a_service_for_good(service: str, config: Path) -> None:
    command = [sys.executable, "-m", "site_client.cli", service, "--config", str(config)]
    unit = (UNITS / f"hemofed-{service}.service").read_text()
    for_good = int(re.findall(r"^RestartPreventExitStatus=(\d+)$", unit, re.MULTILINE)[0])
    config.write_text(config.read_text().replace("name =", "nmae ="))
    mistyped = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (mistyped.returncode, "unknown" in mistyped.stderr) == (for_good, True)


def test_a_trainer_whose_folder_is_taken_may_try_again(config: Path) -> None:
    state = load(config).folders.trainer
    state.mkdir(parents=True)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "site_client.cli", "trainer", "--config", str(config)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1


class _Hung(TrainerService):
    """A trainer whose third turn never ends."""

    def __init__(self, config: Path, notifier: Notifier) -> None:
        super().__init__(load(config), config, lambda: datetime.now(UTC), notifier)
        self.turns, self.hangs, self.free = 0, threading.Event(), threading.Event()

    def _turn(self) -> None:
        self.turns += 1
        if self.turns == 3:
            self.hangs.set()
            self.free.wait()
        super()._turn()


def test_a_hung_loop_falls_silent(systemd: Systemd, config: Path) -> None:
    (config.parent / "state" / "trainer").mkdir(parents=True)
    service = _Hung(config, Notifier(str(systemd.path), watchdog_s=0.4))
    running = threading.Thread(target=service.run, daemon=True)
    running.start()
    try:
        assert service.hangs.wait(10)
        heard = _heard(systemd.next)
        assert "WATCHDOG=1" in heard
        assert systemd.next(1.0) is None  # more than twice what systemd waits
    finally:
        service.stopping.set()
        service.free.set()
        running.join(20)


def _heard(next_message: Callable[[float], str | None]) -> list[str]:
    heard = []
    while (message := next_message(0.05)) is not None:
        heard.append(message)
    return heard


# The unit files.


@needs_analyze
@pytest.mark.parametrize(("unit", "tenths"), [("trainer", 6), ("agent", 12), ("receiver", 15), ("aggregator", 15)])
def test_the_hardening_score_holds(unit: str, tenths: int) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={tenths}"]
    done = subprocess.run([*command, UNITS / f"hemofed-{unit}.service"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level" in done.stdout


@needs_analyze
@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.glob("*.service")))
def test_systemd_understands_every_line_of_a_unit(unit: str, tmp_path: Path) -> None:
    # The program is not installed here, and its manual is not either.
    text = re.sub(r"^ExecStart=.*$", "ExecStart=/bin/true", (UNITS / unit).read_text(), flags=re.MULTILINE)
    (tmp_path / unit).write_text(text)
    shutil.copy(UNITS / "hemofed.slice", tmp_path)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit in line]) == (0, [])


def _directives(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([A-Za-z]+)=(.*)$", (UNITS / unit).read_text(), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def test_the_wall_stands_in_the_units() -> None:
    agent, trainer = _directives("hemofed-agent.service"), _directives("hemofed-trainer.service")
    assert (trainer["PrivateNetwork"], trainer["RestrictAddressFamilies"]) == (["yes"], ["AF_UNIX"])
    hidden = " ".join(agent["InaccessiblePaths"])
    assert all(path in hidden for path in ("-/srv", "-/var/lib/hemofed/trainer", "-/var/cache/hemofed"))
    assert agent["MemoryDenyWriteExecute"] == ["yes"]
    assert trainer["InaccessiblePaths"] == ["-/var/lib/hemofed/agent"]
    assert agent["User"] != trainer["User"]
    assert agent["Group"] == trainer["Group"]
    assert agent["Slice"] == trainer["Slice"] == ["hemofed.slice"]


def test_the_receiver_s_unit_shows_it_one_folder_and_lets_nobody_through_by_itself() -> None:
    receiver, trainer = _directives("hemofed-receiver.service"), _directives("hemofed-trainer.service")
    assert receiver["IPAddressDeny"] == ["any"]
    assert "IPAddressAllow" not in receiver
    (covered,) = receiver["TemporaryFileSystem"]
    assert {path.partition(":")[0] for path in covered.split()} >= {"/srv", "/var/lib/hemofed"}
    settings = ReceiverSettings()
    assert receiver["BindPaths"] == [f"-{settings.incoming}"]
    assert receiver["BindReadOnlyPaths"] == [f"-{settings.taken}"]
    assert "ReadWritePaths" not in receiver
    assert Path("/var/lib", *receiver["StateDirectory"]) == settings.state
    assert receiver["User"] == receiver["Group"] == ["hemofed-receiver"]
    assert receiver["User"] != trainer["User"]
    assert (receiver["Type"], "WatchdogSec" in receiver) == (["notify"], True)


def test_the_aggregator_s_unit_writes_its_state_and_hides_the_custodian_s_key_and_a_hospital() -> None:
    unit, state = _directives("hemofed-aggregator.service"), AggregatorSettings().state.folder
    assert unit["User"] == unit["Group"] == ["hemofed-aggregator"]
    assert Path("/var/lib", *unit["StateDirectory"]) == state
    assert "ReadWritePaths" not in unit
    assert (unit["ProtectHome"], unit["ProtectSystem"]) == (["yes"], ["strict"])  # ~/hemofed-custodian is not there
    hidden = " ".join(unit["InaccessiblePaths"]).split()
    assert f"-{state}/ca/custodian.key" in hidden
    assert {"-/var/lib/hemofed", "-/var/cache/hemofed", "-/srv/hemofed"} <= set(hidden)
    assert unit["ConditionPathExists"] == [str(state / "ca" / "ca.key")]


def test_the_aggregator_s_unit_gives_up_what_the_agent_s_does() -> None:
    """All but the agent's place in the queue of the hospital's machine."""
    agent, aggregator = _directives("hemofed-agent.service"), _directives("hemofed-aggregator.service")
    of_the_machine = {"Nice", "IOSchedulingClass", "OOMScoreAdjust", "Slice", "LimitNOFILE", "ReadWritePaths"}
    sandbox = list(agent)[list(agent).index("RestrictAddressFamilies") : list(agent).index("WantedBy")]
    assert len(sandbox) > 25
    assert {key: agent[key] for key in sandbox if key not in of_the_machine} == {
        key: aggregator.get(key) for key in sandbox if key not in of_the_machine
    }


def test_the_aggregator_s_unit_has_descriptors_for_the_limits_and_time_for_the_stop() -> None:
    unit, limits = _directives("hemofed-aggregator.service"), LimitsSettings()
    connections = limits.connections + limits.enrolment_connections
    wanted = DESCRIPTORS_PER_CONNECTION * connections + limits.dashboard_connections + DESCRIPTORS_KEPT
    assert int(*unit["LimitNOFILE"]) >= wanted
    assert STOPS_WITHIN_S < int(*unit["TimeoutStopSec"]) <= 2 * STOPS_WITHIN_S
    assert (unit["Type"], unit["WatchdogSec"], unit["Restart"]) == (["notify"], ["60"], ["on-failure"])


def test_the_package_makes_the_receiver_s_folders_and_does_not_enable_it() -> None:
    deb = UNITS.parent / "deb" / "site"
    folders = (deb / "tmpfiles.conf").read_text()
    assert re.search(r"^d- /srv/hemofed/export/received +2750 hemofed-receiver hemofed-export$", folders, re.MULTILINE)
    assert re.search(r"^d /var/lib/hemofed/trainer/taken +0755 hemofed-trainer hemofed$", folders, re.MULTILINE)
    users = (deb / "sysusers.conf").read_text()
    assert re.search(r"^u hemofed-receiver +- ", users, re.MULTILINE)
    assert "m hemofed-receiver" not in users
    enabled = re.findall(r"systemctl enable.*", (deb / "postinst").read_text())
    assert enabled
    assert "receiver" not in " ".join(enabled)


def test_the_defaults_of_site_toml_are_the_folders_of_the_units(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('name = "north"\n')
    folders = load(path).folders
    agent, trainer = _directives("hemofed-agent.service"), _directives("hemofed-trainer.service")
    assert Path("/var/lib", *agent["StateDirectory"]) == folders.agent
    assert Path("/var/lib", *trainer["StateDirectory"]) == folders.trainer
    assert Path("/var/cache", *trainer["CacheDirectory"]) == folders.cache
    assert agent["ReadWritePaths"] == [str(folders.spool / "to_trainer")]
    assert trainer["ReadWritePaths"] == [str(folders.spool / "to_agent")]
