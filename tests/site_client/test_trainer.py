"""The trainer as it runs: a worker that does a job from DICOM, and the service that looks after it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.gate import Gate
from federation.manifest import load_model
from federation.plan import (
    CohortBounds,
    Deadlines,
    Encoding,
    Inputs,
    LocalTraining,
    ServerKind,
    ServerOptimizer,
    TrainingPlan,
    sign_plan,
)
from federation.release import Release
from federation.sealed_model import seal_model
from federation.vocabulary import Metric

from site_client.config import FoldersSettings, IngestSettings, SiteSettings, load
from site_client.errors import TrainingFailed
from site_client.ingest.pseudonym import load_secret
from site_client.model.initial_weights import write_fresh
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.study import Wishes
from site_client.spool import AgentSide, Job, RunId, Update, UpdateSeal
from site_client.trainer.idle import operator
from site_client.trainer.job import JobInProgress, scan
from site_client.trainer.suspend import is_suspended, resume, suspend
from site_client.trainer.worker import STOPPED
from site_client.typed_json import Digest

SITE_TOML = """
name = "north"
[folders]
state = "state"
spool = "spool"
cache = "{cache}"
export = "{data}/dicom"
labels = ["{data}"]
[policy]
studies_min = {studies_min}
[ingest]
settle_s = 0
slices_min = 8
[idle]  # a machine shared with other tests
foreign_cpu_max = 1.0
memory_pressure_max = 1.0
io_pressure_max = 1.0
memory_free_min_gib = 0.2
disk_free_min_gib = 0.2
user_idle_min_s = 0
remote_idle_min_s = 0
gpu_others = "ignore"
battery = "ignore"
start_delay_s = 0
calm_s = 2
[training]
threads = 1
validation_fraction = 0.3
"""
CONTENT_KEY = bytes(range(32))
Instead = tuple[tuple[str, str], ...]  # parts of SITE_TOML, each with what stands there instead
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patients") / "data"
    make_set(Order("S", 12, 5, Wishes(64, 10.0, "balanced", 0.5), None, False), folder, 1)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "initial.safetensors"
    write_fresh("lite", 3, path)
    return path


@dataclass(frozen=True)
class Place:
    """A hospital's folder with a job in its spool."""

    folder: Path
    job: Job

    @property
    def config(self) -> Path:
        return self.folder / "site.toml"

    @property
    def spool(self) -> AgentSide:
        return AgentSide(self.folder / "spool")

    def update(self) -> Update | None:
        return self.spool.update(self.job.run_id, self.job.round)

    def worker(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "site_client.trainer.worker", "--config", str(self.config)]
        command += ["--parent", str(os.getpid()), "--run", self.job.run_id.hex(), "--round", str(self.job.round)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)

    def stop_at(self, step: int, number: signal.Signals) -> int:
        """Starts a worker and signals it once it reports training step `step`; gives its exit status."""
        process = self.worker()
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                message = json.loads(line)
                if message["state"] == "SITE_TRAINING" and message["step"] >= step:
                    process.send_signal(number)
                    break
            lines.read()
        return process.wait(120)

    def finish(self) -> Update:
        process = self.worker()
        process.communicate(timeout=280)
        assert process.returncode == 0
        update = self.update()
        assert update is not None
        return update


@pytest.fixture
def place(tmp_path: Path, data: Path, model: Path) -> Callable[..., Place]:
    def make(
        name: str,
        *,
        evaluation_only: bool = False,
        studies_min: int = 4,
        epochs: int = 3,
        per_step: int = 1,
        instead: Instead = (),
        gate: Gate | None = None,
        release: Release | None = None,
    ) -> Place:
        folder = tmp_path / name
        folder.mkdir()
        text = SITE_TOML.format(data=data, cache=tmp_path / "cache", studies_min=studies_min)
        for old, new in instead:
            assert old in text
            text = text.replace(old, new)
        (folder / "site.toml").write_text(text)
        # One hospital in two folders: with the same pseudonyms its patients are split the same way.
        (folder / "state" / "trainer").mkdir(parents=True)
        load_secret(folder / "state" / "trainer" / "pseudonym.key", lambda count: bytes(range(count)))
        plan = replace(_plan(model, epochs, per_step), gate=gate, release=release)
        signed = sign_plan(plan, Ed25519PrivateKey.generate()).SerializeToString()
        job = Job(RunId(plan.run_id), 1, evaluation_only, Digest(load_model(model).digest), Digest(plan.digest))
        base = model
        if release is not None:
            base = tmp_path / f"{name}.sealed"
            base.write_bytes(b"".join(seal_model(CONTENT_KEY, plan.digest, load_model(model))))
        return Place(folder, AgentSide(folder / "spool").offer_job(job, signed, base))

    return make


def _plan(model: Path, epochs: int, per_step: int) -> TrainingPlan:
    initial = load_model(model)
    return TrainingPlan(
        run_id=bytes(16),
        name="test",
        purpose="",
        architecture="lite",
        manifest=initial.manifest,
        initial_model_digest=initial.digest,
        rounds=1,
        inputs=Inputs(64, 16),
        training=LocalTraining(
            epochs=epochs,
            learning_rate=0.001,
            weight_decay=0.0,
            proximal_mu=0.01,
            studies_per_step=per_step,
            studies_min=2,
        ),
        server=ServerOptimizer(ServerKind.FEDAVG, 1.0, 0.0, 0.0, 0.0),
        cohort=CohortBounds(3, 3, 64),
        deadlines=Deadlines(3600, 60),
        encoding=Encoding(10.0, 6, 100, bytes(32)),
        metrics=(Metric.LOSS, Metric.HISTOGRAMS),
    )


@pytest.mark.timeout(900)
def test_stopped_and_killed_it_ends_with_the_very_bits_of_an_undisturbed_run(place: Callable[..., Place]) -> None:
    undisturbed = place("undisturbed").finish()
    disturbed = place("disturbed")
    assert disturbed.stop_at(3, signal.SIGTERM) == STOPPED
    assert disturbed.update() is None
    assert disturbed.stop_at(5, signal.SIGKILL) == -signal.SIGKILL
    assert disturbed.stop_at(8, signal.SIGTERM) == STOPPED
    resumed = disturbed.finish()
    assert resumed == undisturbed
    assert resumed.delta_sha256 is not None


@pytest.mark.timeout(900)
def test_a_job_yields_a_clipped_delta_and_what_the_sums_need(place: Callable[..., Place]) -> None:
    at = place("site")
    update = at.finish()
    delta = at.spool.delta(update, load_model(at.job.base_file).manifest.size)
    assert update.outcome == "trained"
    assert 0 < np.linalg.norm(delta) <= 10.0001
    assert update.studies == update.example_count >= 4
    assert update.loss_sum > 0
    slices = np.array(update.histograms).sum(axis=(1, 2))
    assert slices[0] > 0
    assert len(set(slices)) == 1  # every label of every validation slice is known in this set


@pytest.mark.timeout(900)
def test_an_evaluation_only_job_evaluates_the_same_slices_and_trains_nothing(place: Callable[..., Place]) -> None:
    trained, evaluated = place("training").finish(), place("evaluating", evaluation_only=True).finish()
    assert evaluated.outcome == "evaluated"
    assert evaluated.delta_sha256 is None
    assert evaluated.histograms == trained.histograms
    assert evaluated.studies == trained.studies


def test_under_a_gate_a_job_compares_its_base_model_with_that_of_the_job_before(
    place: Callable[..., Place], model: Path
) -> None:
    at = place("gated", evaluation_only=True, gate=Gate(clip=0.25))
    assert at.finish().comparison is None
    other = at.folder / "other.safetensors"
    write_fresh("lite", 4, other)
    job = replace(at.job, round=2, base_model_digest=Digest(load_model(other).digest), folder=Path())
    offered = at.spool.offer_job(job, at.job.plan_file.read_bytes(), other)
    at.spool.withdraw_job(at.job.run_id, at.job.round)
    compared = Place(at.folder, offered).finish().comparison
    assert compared is not None
    assert compared.earlier_digest == load_model(model).digest
    assert compared.patients >= 1
    assert 0 < abs(compared.difference_sum) <= 0.25 * compared.patients
    assert compared.difference_sum**2 <= compared.square_sum * compared.patients * (1 + 1e-9)


def test_a_hospital_with_too_few_studies_declines(place: Callable[..., Place]) -> None:
    update = place("small", studies_min=32).finish()
    assert (update.outcome, update.reason) == ("declined", "TOO_FEW_STUDIES")


@pytest.fixture
def service() -> Iterator[Callable[[Place], "subprocess.Popen[bytes]"]]:
    started = []

    def start(at: Place) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "site_client.cli", "trainer", "--config", str(at.config)]
        started.append(subprocess.Popen(command, env=ENVIRONMENT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.timeout(900)
def test_the_service_delivers_tidies_up_after_the_job_and_ends_when_told(
    place: Callable[..., Place], service: Callable[[Place], "subprocess.Popen[bytes]"]
) -> None:
    at = place("served", evaluation_only=True)
    process = service(at)
    _wait(lambda: at.update() is not None)
    _wait(lambda: (status := at.spool.status()) is not None and status.studies_ready == 12)
    at.spool.withdraw_job(at.job.run_id, at.job.round)
    _wait(lambda: not at.spool.delivered(at.job.run_id, at.job.round))
    _wait(lambda: list((load(at.config).folders.trainer / "jobs").glob("*")) == [])
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_sealed_base_model_is_read_with_its_own_content_key_only(place: Callable[..., Place], model: Path) -> None:
    at = place("sealed", release=Release())
    settings = load(at.config)
    read = JobInProgress(settings, at.job, lambda: False, content_key=CONTENT_KEY)
    assert read.base.digest == load_model(model).digest
    for key in (None, bytes(32)):
        with pytest.raises(TrainingFailed, match=r"sealed"):
            JobInProgress(settings, at.job, lambda: False, content_key=key)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sealed_job_waits_for_its_key_and_leaves_nothing_in_the_clear(
    place: Callable[..., Place], service: Callable[[Place], "subprocess.Popen[bytes]"]
) -> None:
    """Stopped in the middle, so that there are checkpoints; the second trainer needs the key for its own new key."""
    undisturbed = place("clear").finish()
    at = place("sealed", release=Release())
    process = service(at)
    _wait(lambda: (status := at.spool.status()) is not None and status.studies_ready == 12)
    assert at.spool.trainer_key() is not None
    status = at.spool.status()
    assert status is not None
    assert status.round is None
    at.spool.lend_key(at.job, CONTENT_KEY)
    _wait(lambda: (status := at.spool.status()) is not None and status.state == "SITE_TRAINING" and status.step >= 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    kept = list((load(at.config).folders.trainer / "jobs").rglob("*.sealed"))
    assert kept
    service(at)
    first = at.spool.trainer_key()
    _wait(lambda: at.spool.trainer_key() != first)
    at.spool.lend_key(at.job, CONTENT_KEY)
    _wait(lambda: at.update() is not None)
    update = at.update()
    assert update is not None
    seal = UpdateSeal(CONTENT_KEY, at.job.plan_digest, at.job.base_model_digest)
    delta = at.spool.delta(update, load_model(place("other").job.base_file).manifest.size, seal)
    assert update.outcome == undisturbed.outcome == "trained"
    assert np.isfinite(delta).all()
    for path in (path for path in at.folder.rglob("*") if path.is_file()):
        assert path.suffix != ".safetensors"
        assert delta.tobytes()[4000:4032] not in path.read_bytes()


@pytest.mark.timeout(900)
def test_a_job_that_is_withdrawn_stops_its_worker(
    place: Callable[..., Place], service: Callable[[Place], "subprocess.Popen[bytes]"]
) -> None:
    at = place("cancelled")
    service(at)
    _wait(lambda: (status := at.spool.status()) is not None and status.round == 1)
    at.spool.withdraw_job(at.job.run_id, at.job.round)
    _wait(lambda: (status := at.spool.status()) is not None and status.state == "SITE_IDLE")
    assert at.update() is None


@pytest.mark.timeout(900)
def test_paused_by_hand_it_is_suspended_within_a_second_names_the_reason_and_resumes(
    place: Callable[..., Place], service: Callable[[Place], "subprocess.Popen[bytes]"]
) -> None:
    at = place("paused")
    service(at)
    _wait(lambda: (status := at.spool.status()) is not None and status.round == 1)
    state = load(at.config).folders.state
    operator.pause(state, datetime.now(UTC), None, after_round=False)
    began = time.monotonic()
    _wait(lambda: (status := at.spool.status()) is not None and status.reasons == ("OPERATOR",))
    assert time.monotonic() - began < 3.0  # the status is written once a second
    status = at.spool.status()
    assert status is not None
    assert status.state == "SITE_PAUSED"
    assert operator.resume(state)
    _wait(lambda: at.update() is not None)
    update = at.update()
    assert update is not None
    assert update.outcome == "trained"


@pytest.mark.slow  # `test_paused_by_hand…` holds the pause in the normal run
@pytest.mark.timeout(900)
def test_a_worker_that_was_suspended_ends_with_the_very_bits_of_one_that_was_not(
    place: Callable[..., Place],
) -> None:
    undisturbed = place("free").finish()
    at = place("suspended")
    process = at.worker()
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            message = json.loads(line)
            if message["state"] == "SITE_TRAINING" and message["step"] in (2, 5):
                assert suspend(process) < 1.0
                assert is_suspended(process)
                resume(process)
    assert process.wait(120) == 0
    assert at.update() == undisturbed


def test_training_comes_last_on_the_processor_and_the_service_that_pauses_it_does_not(
    place: Callable[..., Place], service: Callable[[Place], "subprocess.Popen[bytes]"]
) -> None:
    trainer = service(place("patient"))
    children = Path(f"/proc/{trainer.pid}/task/{trainer.pid}/children")
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    _wait(lambda: [os.getpriority(os.PRIO_PROCESS, int(pid)) for pid in children.read_text().split()] == [19])
    assert os.getpriority(os.PRIO_PROCESS, trainer.pid) == mine


@pytest.mark.timeout(900)
def test_a_worker_that_keeps_failing_is_declined_not_repeated_for_ever(
    place: Callable[..., Place], service: Callable[[Place], "subprocess.Popen[bytes]"]
) -> None:
    at = place("broken")
    (at.job.base_file).write_bytes(b"not a model")
    service(at)
    _wait(lambda: at.update() is not None)
    update = at.update()
    assert update is not None
    assert (update.outcome, update.reason) == ("declined", "TRAINING_FAILED")


def test_the_first_scan_is_followed_by_one_that_finds_the_same_files_unless_it_has_to_end(
    data: Path, tmp_path: Path
) -> None:
    def scanned(name: str, stopping: Callable[[], bool]) -> int:
        folders = FoldersSettings(state=tmp_path / name, export=data / "dicom", labels=(data,))
        return scan(SiteSettings("north", folders=folders, ingest=IngestSettings(0.3, 8)), stopping)

    assert scanned("ends", lambda: True) == 0
    assert scanned("goes-on", lambda: False) == 12


def test_the_service_starts_without_torch_and_grpc() -> None:
    source = "import sys, site_client.trainer.service as s; print({'torch', 'grpc', 'pydicom'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _wait(condition: Callable[[], bool], timeout_s: float = 280) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
