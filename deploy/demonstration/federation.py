"""The demo's federation, built with the commands that administrators type."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from aggregator.config import load_settings
from aggregator.context import AppContext, open_context
from deploy.demonstration.hospitals import Hospital, fix_held_out, hospitals, split_rsna, write_config
from deploy.demonstration.processes import Processes

IMAGE_SIZE_PX = 96  # small images and thick slices: generating and training take minutes on two cores
THICKNESS_MM = 8.0
ADMINISTRATOR = "admin"
JOIN_TRIES = 4
JOIN_AGAIN_S = 3.0  # an aggregator is back by then
CLIP_NORM = 10.0
MASKING_PHASE_S = 60  # long enough to restart a process that was killed
# Large bright bleeds in half of the patients: so a few minutes of training show an effect.
PHANTOM_DEMO_OPTIONS = ("--prevalence", "balanced", "--difficulty", "0.2", "--workers", "1")
BIN = Path(sys.executable).parent

AGGREGATOR_TOML = """\
[listen]
sites = "127.0.0.1:{sites}"
enrolment = "127.0.0.1:{enrolment}"
dashboard = "127.0.0.1:{dashboard}"

[state]
folder = "{folder}"

[pacing]  # a person watches the demo; real sites poll about once a minute
idle_s = 1.0
training_s = 1.0
masking_s = 0.2
paused_s = 1.0

[enrolment]
retry_after_s = 1
"""

PLAN_TOML = """\
name = "demo"
purpose = "Demonstration on synthetic patients; says nothing about real ones."
architecture = "{architecture}"
rounds = {rounds}

[inputs]
image_size_px = {image_size_px}
slices_max = 32

[training]
epochs = {epochs}
learning_rate = {learning_rate}
studies_per_step = 4
slices_per_study = 4
studies_min = 4

[cohort]
minimum = {sites}
target = {sites}
maximum = 64

[deadlines]
training_s = 3600
phase_s = {phase_s}

[encoding]
clip_norm = {clip_norm}
# The step of the quantizer is a share of clip_norm at full weight: a cap far above the studies drowns the update.
bits = 8
weight_cap = {studies}
"""


class StepFailed(RuntimeError):
    """A command that the demo ran failed; the message holds the command's last line."""


@dataclass(frozen=True)
class Options:
    """The command line, checked by click."""

    sites: int
    rounds: int
    architecture: str
    studies: int
    seed: int
    port: int
    state: Path
    keep: bool
    data: Path | None
    json_file: Path | None
    epochs: int
    learning_rate: float


class Federation:
    """One aggregator and its hospitals in one folder. Each method does one step; the caller keeps their order."""

    def __init__(self, options: Options) -> None:
        """Starts and writes nothing."""
        self.options = options
        self.folder = options.state
        self.sites: list[Hospital] = hospitals(self.folder, options.sites)
        self.aggregator_toml = self.folder / "aggregator" / "aggregator.toml"
        self.processes = Processes(self.folder / "logs", _environment())
        self.initial_model = self.folder / "initial.safetensors"
        self.password = ""
        self.stopping = False

    @property
    def ports(self) -> tuple[int, int, int]:
        """Ports of service, enrolment and dashboard."""
        return self.options.port, self.options.port + 1, self.options.port + 2

    @property
    def dashboard_url(self) -> str:
        """Address of the dashboard."""
        return f"http://127.0.0.1:{self.ports[2]}/"

    def app(self) -> AppContext:
        """Opens the aggregator's database, from which the demo shows rounds and figures."""
        return open_context(load_settings(self.aggregator_toml))

    def require_ports(self) -> None:
        """Checks that the three ports are free.

        Raises:
            StepFailed: one is in use.
        """
        for port in self.ports:
            with socket.socket() as probe:
                # As the servers bind: a connection that is only fading away does not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    raise StepFailed(
                        f"port {port} on 127.0.0.1 is in use; choose three free in a row with --port"
                    ) from None

    def initialize(self) -> None:
        """Makes folders, settings, CA, an administrator, and the configuration of each hospital.

        Raises:
            StepFailed: a command failed.
        """
        service, enrolment, dashboard = self.ports
        self.aggregator_toml.parent.mkdir(parents=True)
        self.aggregator_toml.write_text(
            AGGREGATOR_TOML.format(
                sites=service, enrolment=enrolment, dashboard=dashboard, folder=self.aggregator_toml.parent / "state"
            )
        )
        self.aggregator_command("init")
        # Through standard input: arguments of a process are visible to all users of the machine.
        self.password = os.urandom(9).hex()
        self.aggregator_command("admin", "add", ADMINISTRATOR, "--password-stdin", stdin=self.password + "\n")
        labels = ["data"] if self.options.data is None else ["data/labels_slices.csv"]
        for hospital in self.sites:
            write_config(hospital, f"127.0.0.1:{service}", f"127.0.0.1:{enrolment}", labels, "data/dicom")

    def provide_data(self) -> None:
        """Provides every hospital's DICOM: synthetic patients from its own scanner, or its part of --data.

        Raises:
            BadDataFolder: --data is not an RSNA folder.
            StepFailed: a generator failed.
        """
        if self.options.data is not None:
            split_rsna(self.options.data, self.sites, self.options.studies)
            return
        # Each hospital's patients and scanner follow from the seed; two generators at a time fill two cores.
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(self._generate, range(len(self.sites))))

    def start_aggregator(self) -> None:
        """Starts the aggregator; it listens a few seconds later."""
        self.processes.start(
            "aggregator", [str(BIN / "hemofed-aggregator"), "--config", str(self.aggregator_toml), "serve"]
        )

    def enroll(self, hospital: Hospital) -> None:
        """Enrolls a hospital: the coordinator makes a one-time token, and the hospital joins with it.

        Raises:
            StepFailed: the hospital cannot join.
        """
        invited = self.aggregator_command("site", "invite", hospital.name, "--auto-approve", "--json")
        token = str(json.loads(invited)["token"])
        address = f"127.0.0.1:{self.ports[1]}"
        join = [str(BIN / "hemofed-site"), "join", address, token, "--config", str(hospital.config)]
        for left in reversed(range(JOIN_TRIES)):
            try:
                self._run(join)
                return
            except StepFailed:  # the aggregator may have died; the same token resumes the enrolment
                if not left:
                    raise
            self.processes.restart_the_dead()
            time.sleep(JOIN_AGAIN_S)

    def start_site(self, hospital: Hospital) -> None:
        """Starts the agent and the trainer of a hospital."""
        for side in ("agent", "trainer"):
            command = [str(BIN / "hemofed-site"), side, "--config", str(hospital.config)]
            self.processes.start(f"{hospital.name}-{side}", command)

    def make_initial_model(self) -> None:
        """Writes fresh weights, which follow from the seed.

        Raises:
            StepFailed: the architecture does not exist.
        """
        architecture, seed = self.options.architecture, str(self.options.seed)
        site = str(BIN / "hemofed-site")
        self._run(
            [site, "init-weights", "--architecture", architecture, "--seed", seed, "--out", str(self.initial_model)]
        )

    def start_run(self) -> None:
        """Signs the plan and starts the run.

        Raises:
            StepFailed: the aggregator refuses the plan.
        """
        plan = self.folder / "plan.toml"
        plan.write_text(
            PLAN_TOML.format(
                architecture=self.options.architecture,
                rounds=self.options.rounds,
                sites=self.options.sites,
                epochs=self.options.epochs,
                learning_rate=self.options.learning_rate,
                image_size_px=IMAGE_SIZE_PX,
                phase_s=MASKING_PHASE_S,
                clip_norm=CLIP_NORM,
                studies=self.options.studies,
            )
        )
        self.aggregator_command("run", "start", str(plan), "--model", str(self.initial_model))

    def export_model(self) -> Path:
        """Exports the last model.

        Returns:
            A .safetensors file.
        """
        path = self.folder / "model.safetensors"
        self.aggregator_command("model", "export", str(path))
        return path

    def aggregator_command(self, *words: str, stdin: str | None = None) -> str:
        """Runs a command of the coordinator; gives its standard output.

        Raises:
            StepFailed: the command failed.
        """
        return self._run([str(BIN / "hemofed-aggregator"), "--config", str(self.aggregator_toml), *words], stdin)

    def _generate(self, index: int) -> None:
        hospital = self.sites[index]
        # Before the first scan, which would make a random secret.
        fix_held_out(hospital, self.options.seed)
        seed = self.options.seed * 1000 + index  # of its own for each hospital: no two share a patient
        words = ["--profile", hospital.profile, "--studies", str(self.options.studies)]
        words += ["--seed", str(seed), "--out", str(hospital.data)]
        words += ["--size-px", str(IMAGE_SIZE_PX), "--thickness-mm", str(THICKNESS_MM), *PHANTOM_DEMO_OPTIONS]
        self._run([str(BIN / "hemofed-site"), "phantom", *words])

    def _run(self, command: list[str], stdin: str | None = None) -> str:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, env=dict(self.processes.environment)
        )
        if done.returncode != 0:
            # The last line holds the sentence of the refusal; the lines above are logs.
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise StepFailed(f"{Path(command[0]).name} {' '.join(command[1:3])}: {last}")
        return done.stdout


def _environment() -> dict[str, str]:
    # One thread of arithmetic a process: more threads would only compete for two cores.
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, **threads, "PYTHONUNBUFFERED": "1"}
