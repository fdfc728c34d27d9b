"""The demo as a person runs it: it completes, survives kill -9 of every process, and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = ("aggregator", *(f"{site}-{side}" for site in ("north", "south", "east") for side in ("agent", "trainer")))
STARTED_S = 240
COMPLETED_S = 280


@dataclass
class Demo:
    """One ./deploy/demo in a folder of its own."""

    folder: Path
    arguments: tuple[str, ...]
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        command = [str(ROOT / "deploy" / "demo"), "--state", str(self.folder / "state"), "--port", str(_free_ports())]
        command += ["--json", str(self.folder / "figures.json"), *self.arguments]
        with (self.folder / "demo.log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, cwd=ROOT)

    @property
    def output(self) -> str:
        return (self.folder / "demo.log").read_text()

    def pids(self) -> dict[str, int]:
        """Name -> process id of what is up now."""
        try:
            return dict(json.loads((self.folder / "state" / "logs" / "processes.json").read_text()))
        except FileNotFoundError:
            return {}

    def wait_until(self, what: str, true: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not true():
            assert self.process.poll() is None, f"the demo ended before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"{timeout_s} s without {what}:\n{self.output}"
            time.sleep(0.1)

    def kill(self, name: str) -> None:
        """kill -9, then wait for the demo to have started it again."""
        before = self.pids()[name]
        os.kill(before, signal.SIGKILL)
        self.wait_until(f"{name} is back", lambda: self.pids()[name] != before, 30)

    def finish(self) -> int:
        return self.process.wait(COMPLETED_S)

    def figures(self) -> dict[str, object]:
        return dict(json.loads((self.folder / "figures.json").read_text()))


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    started: list[Demo] = []

    def start(*arguments: str) -> Demo:
        started.append(Demo(tmp_path, arguments))
        return started[-1]

    yield start
    for each in started:
        each.process.send_signal(signal.SIGINT)
        each.process.wait(60)
        assert _left_behind(tmp_path) == []


SMALL = ("--studies", "10", "--rounds", "2", "--epochs", "1")


@pytest.mark.timeout(600)
def test_a_run_completes_though_each_of_the_seven_processes_is_killed_once(demo: Callable[..., Demo]) -> None:
    running = demo(*SMALL)
    running.wait_until("all seven processes run", lambda: set(running.pids()) == set(PROCESSES), STARTED_S)
    running.wait_until("round 1 began", lambda: "round 1: training" in running.output, 60)
    for name in PROCESSES:
        running.kill(name)
    running.finish()
    _completed(running)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("moment", ["round 1: training", "round 1: upload", "round 1: published"])
@pytest.mark.parametrize("name", PROCESSES)
def test_a_run_completes_though_this_process_is_killed(demo: Callable[..., Demo], name: str, moment: str) -> None:
    running = demo(*SMALL)
    # A short phase may pass between two looks of the demo; the next one is as good a moment.
    running.wait_until(moment, lambda: any(line in running.output for line in (moment, "round 2")), STARTED_S)
    running.kill(name)
    running.finish()
    _completed(running)


@pytest.mark.timeout(400)
def test_ctrl_c_leaves_no_process_behind(demo: Callable[..., Demo], tmp_path: Path) -> None:
    running = demo(*SMALL)
    running.wait_until("all seven processes run", lambda: set(running.pids()) == set(PROCESSES), STARTED_S)
    running.process.send_signal(signal.SIGINT)
    assert running.finish() == 130
    assert _left_behind(tmp_path) == []


def test_a_folder_that_is_not_a_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("keep")
    done = subprocess.run(
        [ROOT / "deploy" / "demo", "--state", tmp_path], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 1
    assert "choose another with --state" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "keep"


def _completed(running: Demo) -> None:
    figures = running.figures()
    assert figures["completed"], running.output
    sites = figures["site_digests"]
    assert isinstance(sites, dict)
    assert len(sites) == 3
    assert set(sites.values()) == {figures["model_digest"]}, running.output


def _left_behind(folder: Path) -> list[list[str]]:
    """Command lines of processes that still name this demo's folder."""
    return [
        each.info["cmdline"]
        for each in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in each.info["cmdline"] or [])
    ]


def _free_ports() -> int:
    """The first of three free ports in a row."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        if first < 65_000 and all(_is_free(first + offset) for offset in (1, 2)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
