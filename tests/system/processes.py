"""A federation of real processes on this machine, whose training takes no time: one aggregator, N site agents.

This process plays every site's trainer and puts an update into its spool as soon as a job appears. Everything else is
what a coordinator and a hospital run. Used by benchmarks and by tests of the wire.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from federation.description import ModelDescription
from federation.manifest import Manifest, Model, TensorSpec, save_model
from federation.vocabulary import Outcome, SiteState

from site_client.files import Building, lend_file, sha256_of, write_file
from site_client.records import Status, Update, to_json
from site_client.spool import TrainerSide
from site_client.typed_json import Digest

BIN = Path(sys.executable).parent
TENSORS = 364  # as the peers' measurement of the same vector

AGGREGATOR_TOML = """\
[listen]
sites = "{host}:{sites}"
enrolment = "{host}:{enrolment}"
host_names = ["{host}"]
answer_hold_ms = 5000

[state]
folder = "{folder}"

[pacing]
idle_s = 0.5
training_s = 0.5
masking_s = 0.2

[enrolment]
retry_after_s = 1

[dashboard]
enabled = false
"""

SITE_TOML = """\
name = "{name}"

[aggregator]
address = "{host}:{sites}"
enrolment_address = "{host}:{enrolment}"

[folders]
state = "{folder}/state"
spool = "{folder}/spool"
export = "{folder}/export"
cache = "{folder}/cache"

[policy]
plan_approval = "automatic"
roster_approval = "wait"
roster_wait_days = 0
studies_min = 1

[agent]
poll_min_s = 0.01
trainer_silent_s = 86400.0
"""

PLAN_TOML = """\
name = "benchmark"
architecture = "densenet121-gru"
rounds = {rounds}
metrics = {metrics}

[training]
studies_min = 100
trainable = "{trainable}"

[cohort]
minimum = {sites}
target = {sites}
maximum = 64

[deadlines]
training_s = 1800
phase_s = 600
{encoding}"""

# Of an ordinary plan: every site has 100 studies, so that rounding does not drown its update.
ENCODING_TOML = """
[encoding]
weight_cap = 100
"""

# So many patients that `plan export` finds the noise small enough; the cost of a round does not depend on them.
PRIVACY_TOML = """
[privacy]
sampling_rate = 0.1
noise_multiplier = 1.0
patients_expected = 100000
batch_max = 2500
epsilon_train = 20.0
validation_multiplier = 10.0
epsilon_validation = 20.0
"""


@dataclass(frozen=True)
class Place:
    """One federation in one folder. `namespaces`: of a program that runs in a network other than ours."""

    folder: Path
    sites: int
    ports: tuple[int, int]
    host: str = "127.0.0.1"
    namespaces: dict[str, str] = field(default_factory=dict)

    @property
    def aggregator_toml(self) -> Path:
        return self.folder / "aggregator.toml"

    @property
    def names(self) -> list[str]:
        return [f"site-{number:02}" for number in range(self.sites)]

    @property
    def serve_command(self) -> list[str]:
        command = [str(BIN / "hemofed-aggregator"), "--config", str(self.aggregator_toml), "serve"]
        return self._in_its_network("aggregator", command)

    def site_command(self, name: str, *words: str) -> list[str]:
        command = [str(BIN / "hemofed-site"), *words, "--config", str(self.site(name) / "site.toml")]
        return self._in_its_network(name, command)

    def site(self, name: str) -> Path:
        return self.folder / name

    def aggregator_command(self, *words: str) -> str:
        return _run([str(BIN / "hemofed-aggregator"), "--config", str(self.aggregator_toml), *words])

    def begin(self) -> None:
        """Make the custodian and the aggregator's state folder."""
        self._passphrase_file.write_text("correct horse battery staple")
        self.custodian_command("init")
        self.aggregator_command("init", "--custodian", str(self.folder / "custodian" / "custodian.pub"))

    def custodian_command(self, command: str, *words: str) -> str:
        program = [str(BIN / "hemofed-custodian"), "--folder", str(self.folder / "custodian"), command, *words]
        return _run([*program, "--passphrase-file", str(self._passphrase_file)])

    def sign_roster(self) -> None:
        request = self.folder / "roster.request"
        self.aggregator_command("roster", "export", str(request))
        self.custodian_command("sign", str(request), "--yes")
        self.aggregator_command("roster", "import", f"{request}.signed")

    def start_run(self, plan: Path, model: Path) -> None:
        request = self.folder / "plan.request"
        # --force: the models of tests have any size, and no architecture has their tensors.
        self.aggregator_command("plan", "export", str(plan), str(request), "--model", str(model), "--force")
        self.custodian_command("sign", str(request), "--yes")
        self.aggregator_command("run", "start", f"{request}.signed", "--model", str(model), "--force")

    @property
    def _passphrase_file(self) -> Path:
        return self.folder / "custodian.passphrase"

    def _in_its_network(self, program: str, command: list[str]) -> list[str]:
        space = self.namespaces.get(program)
        return command if space is None else ["ip", "netns", "exec", space, *command]


class Trainers(threading.Thread):
    """Stands in for every site's trainer: the same update for every job, at once.

    Its bytes are written and hashed once, and each delivery is a further name for them. The cost of a trainer's disk
    belongs to the hours of training, and is not measured here.
    """

    def __init__(self, place: Place, delta: np.ndarray) -> None:
        super().__init__(name="trainers", daemon=True)
        self._spools = [place.site(name) / "spool" for name in place.names]
        self._sides = [TrainerSide(spool) for spool in self._spools]
        self._delta = place.folder / "delta.f32"
        self._delta.write_bytes(delta.astype("<f4").tobytes())
        self._digest = Digest(sha256_of(self._delta))
        self._seen: dict[Path, list[str]] = {}
        self._stopping = threading.Event()
        for side in self._sides:
            side.write_status(Status(datetime.now(UTC), SiteState.IDLE))

    def run(self) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hospitals do not wait for one another's disk
            while not self._stopping.wait(0.05):
                list(pool.map(self._look_after, self._sides, self._spools))

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def _look_after(self, side: TrainerSide, spool: Path) -> None:
        to_trainer = spool / "to_trainer"
        names = os.listdir(to_trainer) if to_trainer.exists() else []
        if self._seen.get(spool) == names:  # reading jobs takes time of the cores that are measured
            return
        self._seen[spool] = names
        for job in side.jobs():
            if side.delivered(job.run_id, job.round):
                continue
            update = Update(job.run_id, job.round, job.base_model_digest, Outcome.EVALUATED, None, 100, 0.0, 0, False)
            if job.evaluation_only:
                side.deliver(update)
            else:
                trained = replace(
                    update, outcome=Outcome.TRAINED, delta_sha256=self._digest, loss_sum=50.0, example_count=100
                )
                self._lend(spool / "to_agent" / f"update-{job.run_id.hex()}-{job.round}", trained)
        side.sweep()

    def _lend(self, folder: Path, update: Update) -> None:
        with Building(folder, 0o750) as draft:
            lend_file(self._delta, draft / "delta.f32", 0o640)
            write_file(draft / "update.json", to_json(update), 0o640)


def write_settings(place: Place) -> None:
    where = {"host": place.host, "sites": place.ports[0], "enrolment": place.ports[1]}
    place.aggregator_toml.write_text(AGGREGATOR_TOML.format(**where, folder=place.folder / "hub"))
    for name in place.names:
        own = place.site(name)
        (own / "export").mkdir(parents=True)
        (own / "site.toml").write_text(SITE_TOML.format(name=name, **where, folder=own))


def write_plan(
    place: Place, parameters: int, training_rounds: int, *, moving: int | None = None, private: bool = False
) -> tuple[Path, Path]:
    """Writes a model of TENSORS tensors of very different sizes, as networks have, and the plan to train it.

    moving: so many parameters are those of the reader, and only they move; None moves all.
    """
    frozen = parameters - (moving or 0)
    shares = np.geomspace(1.0, 1000.0, TENSORS)
    sizes = np.maximum(1, (shares / shares.sum() * frozen).astype(int))
    sizes[-1] += frozen - sizes.sum()
    tensors = [TensorSpec(f"layer{index}.weight", (int(size),)) for index, size in enumerate(sizes)]
    if moving is not None:
        tensors.append(TensorSpec("reader.weight", (moving,)))
    weights = np.random.default_rng(0).standard_normal(parameters).astype(np.float32)
    model, plan = place.folder / "initial.safetensors", place.folder / "plan.toml"
    parts = "t" * TENSORS + ("" if moving is None else "r")
    description = ModelDescription("densenet121-gru", parts=parts)
    save_model(model, Model(Manifest(tuple(tensors)), weights), description=description)
    text = PLAN_TOML.format(
        rounds=training_rounds,
        sites=place.sites,
        metrics='["histograms"]' if private else '["loss", "histograms"]',
        trainable="all" if moving is None else "reader",
        encoding="" if private else ENCODING_TOML,
    )
    plan.write_text(text + (PRIVACY_TOML if private else ""))
    return model, plan


def enrol_all(place: Place) -> None:
    """Every hospital joins, and the custodian signs one roster with all of them."""

    def join(name: str) -> None:
        token = json.loads(place.aggregator_command("site", "invite", name, "--auto-approve", "--json"))["token"]
        _run(place.site_command(name, "join", f"{place.host}:{place.ports[1]}", token, "--yes"))

    def approved() -> list[str]:
        rows = json.loads(place.aggregator_command("site", "list", "--json"))
        return [row["site"] for row in rows if row["standing"] == "approved"]

    with ThreadPoolExecutor(len(place.names)) as pool:
        joining = [pool.submit(join, name) for name in place.names]
        while approved() != place.names and not any(join.done() for join in joining):
            time.sleep(0.1)
        if approved() == place.names:
            place.sign_roster()
        for join_of_one in joining:
            join_of_one.result()


@contextmanager
def running(name: str, command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            if name == "aggregator":
                _await_line(folder / f"{name}.log", b"aggregator started", process)
            yield process
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def all_running(names: list[str], commands: list[list[str]], folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    if not names:
        yield []
        return
    with (
        running(names[0], commands[0], folder) as first,
        all_running(names[1:], commands[1:], folder) as others,
    ):
        yield [first, *others]


def _await_line(log: Path, word: bytes, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if word in log.read_bytes():
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"the aggregator did not come up:\n{log.read_text()}")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{done.stderr}")
    return done.stdout
