"""The demo as a person runs it: it completes, survives kill -9 of every process, and leaves nothing behind."""

import contextlib
import csv
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import psutil
import pydicom
import pytest
from click.testing import CliRunner

from deploy.demonstration.__main__ import main
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = ("aggregator", *(f"{site}-{side}" for site in ("north", "south", "east") for side in ("agent", "trainer")))
STARTED_S = 800
COMPLETED_S = 800  # a minute or two, unless the machine is busy with much else


@dataclass
class Demo:
    """One ./deploy/demo in a folder of its own."""

    folder: Path
    arguments: tuple[str, ...]
    port: int = field(init=False)
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        self.port = free_port(in_a_row=3)
        command = [str(ROOT / "deploy" / "demo"), "--state", str(self.folder / "state"), "--port", str(self.port)]
        command += ["--json", str(self.folder / "figures.json"), *self.arguments]
        with (self.folder / "demo.log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, cwd=ROOT)

    @property
    def output(self) -> str:
        return (self.folder / "demo.log").read_text()

    def pids(self) -> dict[str, int]:
        """Process ids of the running children, by name."""
        try:
            return dict(json.loads((self.folder / "state" / "logs" / "processes.json").read_text()))
        except FileNotFoundError:
            return {}

    def wait_until(self, event: str, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"the demo ended before {event}:\n{self.output}"
            assert time.monotonic() < deadline, f"{timeout_s} s without {event}:\n{self.output}"
            time.sleep(0.1)

    def kill(self, name: str) -> None:
        """Kills a child (kill -9), and waits until the demo has started it again."""
        before = self.pids()[name]
        os.kill(before, signal.SIGKILL)
        self.wait_until(f"{name} is back", lambda: self.pids()[name] != before, 60)

    def kill_worker(self, site: str) -> None:
        """Kills a site's worker (kill -9) as soon as there is one; its trainer starts another."""
        workers: list[psutil.Process] = []

        def has_worker() -> bool:
            with contextlib.suppress(psutil.NoSuchProcess):
                trainer = psutil.Process(self.pids()[f"{site}-trainer"])
                workers[:] = [child for child in trainer.children() if "--run" in child.cmdline()]
            return bool(workers)

        self.wait_until(f"{site} has a worker", has_worker, STARTED_S)
        workers[0].kill()

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
    for running in started:
        running.process.send_signal(signal.SIGINT)
        running.process.wait(60)
    assert _left_behind(tmp_path) == []


@pytest.fixture(scope="session")
def rsna_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of RSNA 2019: one label table, every slice under its SOP instance UID, no other order."""
    folder = tmp_path_factory.mktemp("rsna")
    made = folder / "made"
    command: list[str | Path] = [
        Path(sys.executable).with_name("hemofed-site"),
        "phantom",
        "--profile",
        "T",
        "--studies",
        "36",
    ]
    size = ["--size-px", "96", "--thickness-mm", "8", "--prevalence", "balanced"]
    subprocess.run([*command, *size, "--seed", "5", "--out", made], check=True)
    uids = {row["ID"]: row["SOPInstanceUID"] for row in _rows(made / "slice_map.csv")}
    (folder / "rsna" / "stage_2_train").mkdir(parents=True)
    for path in (made / "dicom").rglob("*.dcm"):
        uid = pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID
        path.rename(folder / "rsna" / "stage_2_train" / f"{uid}.dcm")
    with (folder / "rsna" / "stage_2_train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["ID", "Label"])
        for row in _rows(made / "labels_slices.csv"):
            identifier, _, label = row["ID"].rpartition("_")
            table.writerow([f"{uids[identifier]}_{label}", row["Label"]])
    return folder / "rsna"


SMALL = ("--studies", "10", "--rounds", "1", "--epochs", "1")


@pytest.mark.timeout(1200)
def test_a_run_completes_though_each_of_the_seven_processes_and_a_worker_are_killed(
    demo: Callable[..., Demo], tmp_path: Path
) -> None:
    """It stays up then, and Ctrl-C leaves no process behind."""
    running = demo(*SMALL, "--keep")
    running.wait_until("all seven processes run", lambda: set(running.pids()) == set(PROCESSES), STARTED_S)
    running.wait_until("round 1 began", lambda: "round 1: training" in running.output, 60)
    for name in PROCESSES:
        running.kill(name)
    running.kill_worker("east")
    running.wait_until("it stays up", lambda: "staying up; Ctrl-C ends everything" in running.output, COMPLETED_S)
    _completed(running)
    assert set(running.pids()) == set(PROCESSES)
    running.process.send_signal(signal.SIGINT)
    assert running.finish() == 130
    assert _left_behind(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", PROCESSES)
def test_a_run_completes_though_this_process_is_killed_at_every_turn(demo: Callable[..., Demo], name: str) -> None:
    running = demo(*SMALL)
    moments = ["east enrolled", "round 1: training", "round 1: upload", "round 1: published"]
    if name == "aggregator":
        moments.insert(0, "north enrolled")
    for moment in moments:
        # A short phase may pass between two polls of the demo; the next one is as good a moment.
        running.wait_until(moment, partial(_has_passed, running, moment), STARTED_S)
        running.kill(name)
    running.finish()
    _completed(running)
    assert running.output.count(f"{name} had died and was restarted") >= len(moments) - 2  # the first are not printed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_completes_though_every_hospitals_worker_is_killed_while_it_trains(demo: Callable[..., Demo]) -> None:
    running = demo(*SMALL[:-1], "4")
    for site in ("north", "south", "east"):
        running.wait_until(f"{site} trains", partial(_has_said, running, f"{site:<8} training"), STARTED_S)
        running.kill_worker(site)
    running.finish()
    _completed(running)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_while_it_works_leaves_no_process_behind(demo: Callable[..., Demo], tmp_path: Path) -> None:
    running = demo(*SMALL)
    running.wait_until("all seven processes run", lambda: set(running.pids()) == set(PROCESSES), STARTED_S)
    running.process.send_signal(signal.SIGINT)
    assert running.finish() == 130
    assert _left_behind(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_second_demo_in_the_same_folder_begins_anew_and_keeps_up_when_asked(demo: Callable[..., Demo]) -> None:
    first = demo(*SMALL)
    first.finish()
    _completed(first)
    second = demo(*SMALL, "--keep")
    second.wait_until("it stays up", lambda: "staying up; Ctrl-C ends everything" in second.output, COMPLETED_S)
    _completed(second)
    with urllib.request.urlopen(f"http://127.0.0.1:{second.port + 2}/login", timeout=10) as page:
        assert page.status == 200


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_rsna_folder_is_dealt_to_the_hospitals_by_patient(demo: Callable[..., Demo], rsna_folder: Path) -> None:
    running = demo("--studies", "12", "--rounds", "1", "--epochs", "1", "--data", str(rsna_folder))
    running.finish()
    _completed(running)
    owners = [_patients(site) for site in (running.folder / "state" / "sites").iterdir()]
    assert all(len(patients) >= 4 for patients in owners)
    assert sum(map(len, owners)) == len(set.union(*owners))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_messy_export_is_dealt_to_the_hospitals_by_patient(demo: Callable[..., Demo], tmp_path: Path) -> None:
    folder = tmp_path / "messy"
    command: list[str | Path] = [Path(sys.executable).with_name("hemofed-site"), "phantom", "--profile", "T"]
    size = ["--studies", "24", "--size-px", "96", "--thickness-mm", "8", "--prevalence", "balanced", "--seed", "5"]
    subprocess.run([*command, *size, "--out", folder], check=True)
    # Every third study as an archive; and what an export brings along.
    archived = sorted((folder / "dicom").glob("*/*"))[::3]
    for number, study in enumerate(archived):
        shutil.make_archive(str(folder / f"study{number}"), "zip", study)
        shutil.rmtree(study)
    (folder / "VIEWER").write_bytes(bytes(5000))
    (folder / "broken.zip").write_bytes(b"PK\x03\x04" + bytes(500))
    running = demo("--studies", "12", "--rounds", "1", "--epochs", "1", "--data", str(folder))
    running.finish()
    _completed(running)
    assert len(list((running.folder / "state" / "sites").rglob("study*.zip"))) == len(archived) > 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_private_demo_shows_what_it_spent_and_that_its_noise_eats_the_signal(demo: Callable[..., Demo]) -> None:
    running = demo("--privacy", "--keep", "--sites", "3", "--studies", "12", "--rounds", "2")
    running.wait_until("it stays up", lambda: "staying up; Ctrl-C ends everything" in running.output, COMPLETED_S)
    _completed(running)
    privacy = running.figures()["privacy"]
    assert isinstance(privacy, dict)
    assert privacy["train"]["count"] == 2
    assert privacy["validation"]["count"] == 2
    assert 7 < privacy["train"]["epsilon"] <= privacy["train_budget"] == 8
    assert 7 < privacy["validation"]["epsilon"] <= privacy["validation_budget"] == 8
    assert "epsilon of a patient at delta 0.0001: training 7." in running.output
    # Nine patients a hospital are too few, and everybody is told so.
    assert "warning: The noise of this run eats its signal" in running.output
    page = _dashboard(running)
    assert "Epsilon of training" in page
    assert "The noise of this run eats its signal" in page


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_demo_with_a_poisoner_shows_the_model_that_was_refused(demo: Callable[..., Demo]) -> None:
    running = demo("--poison", "--keep")
    running.wait_until("it stays up", lambda: "staying up; Ctrl-C ends everything" in running.output, COMPLETED_S)
    _completed(running, hospitals=4)
    refused = running.figures()["refused"]
    assert isinstance(refused, dict)
    assert list(refused) == ["2"]
    assert "  refused   the model of round 2: worse than its predecessor by " in running.output
    assert "model at start refused: worse than its predecessor by" in _dashboard(running)


def test_a_private_plan_has_no_gate_so_a_demo_shows_one_of_them() -> None:
    refusal = CliRunner().invoke(main, ["--privacy", "--poison"])
    assert refusal.exit_code == 2
    assert "a private plan has no gate" in refusal.output


def test_a_folder_that_is_not_a_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("keep")
    assert "choose another with --state" in _refused("--state", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "keep"


def test_a_second_demo_in_the_folder_of_a_running_one_is_refused(tmp_path: Path) -> None:
    with (tmp_path / ".hemofed-demo").open("w") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        assert "a demo is running" in _refused("--state", tmp_path, "--port", free_port(in_a_row=3))
    assert [path.name for path in tmp_path.iterdir()] == [".hemofed-demo"]


def test_a_taken_port_or_a_json_file_that_cannot_be_written_is_said_before_anything_is_done(tmp_path: Path) -> None:
    state, port = tmp_path / "state", free_port(in_a_row=3)
    with socket.create_server(("127.0.0.1", port + 2)):
        assert f"port {port + 2} on 127.0.0.1 is in use" in _refused("--state", state, "--port", port)
    assert "--json needs a folder" in _refused("--state", state, "--json", tmp_path / "nowhere" / "figures.json")
    assert not state.exists()


def _refused(*arguments: object) -> str:
    command = [str(ROOT / "deploy" / "demo"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1, done.stdout
    return done.stderr


def _completed(running: Demo, hospitals: int = 3) -> None:
    figures = running.figures()
    rounds, sites = figures["rounds"], figures["site_digests"]
    assert isinstance(rounds, list)
    assert isinstance(sites, dict)
    assert "the run did not complete" not in running.output
    assert all(len(figures["cohort"]) == hospitals for figures in rounds), running.output
    assert rounds, running.output
    assert len(sites) == hospitals
    assert set(sites.values()) == {figures["model_digest"]}, running.output


def _dashboard(running: Demo) -> str:
    """The overview, as the administrator sees it whose password the demo prints."""
    address = f"http://127.0.0.1:{running.port + 2}"
    found = re.search(r"dashboard \S+  \((\w+) / (\w+)\)", running.output)
    assert found is not None
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    browser.open(f"{address}/login", urlencode({"name": found[1], "password": found[2]}).encode(), timeout=30)
    with browser.open(f"{address}/", timeout=30) as page:
        return str(page.read().decode())


def _patients(site: Path) -> set[str]:
    files = (site / "data" / "dicom").iterdir()
    return {str(pydicom.dcmread(path, specific_tags=["PatientID"]).PatientID) for path in files}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _left_behind(folder: Path) -> list[list[str]]:
    """Command lines of processes that still name this demo's folder."""
    return [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or [])
    ]


def _has_said(demo: Demo, text: str) -> bool:
    return text in demo.output


def _has_passed(demo: Demo, moment: str) -> bool:
    return moment in demo.output or "round 2" in demo.output
