"""The demo's federation, built with the commands that administrators type."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from federation.description import PART_LETTERS
from federation.manifest import load_description, load_model

from aggregator.config import load_settings
from aggregator.context import AppContext, open_context
from aggregator.store import site_rows
from deploy.demonstration.export_folder import deal_export
from deploy.demonstration.hospitals import (
    LABELS_FOLDER,
    Hospital,
    fix_held_out,
    hospitals,
    is_rsna_layout,
    split_rsna,
    write_config,
)
from deploy.demonstration.joining import Join, StepFailed, last_line
from deploy.demonstration.plan_files import GATED, PRIVATE_VALIDATION_FRACTION, ordinary_plan, private_plan
from deploy.demonstration.processes import Processes

IMAGE_SIZE_PX = 96  # small images and thick slices: generating and training take minutes on two cores
THICKNESS_MM = 8.0
VALIDATION_FRACTION = 0.2  # the default of a site
ADMINISTRATOR = "admin"
JOIN_LOOK_S = 0.2
MASKING_PHASE_S = 60  # long enough to restart a process that was killed
# Large bleeds in half of the patients: so a few minutes of training show an effect. A histogram would see them, too.
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
    privacy: bool = False
    poison: bool = False


class Federation:
    """One aggregator and its hospitals in one folder. Each method does one step; the caller keeps their order."""

    def __init__(self, options: Options) -> None:
        """Starts and writes nothing."""
        self.options = options
        self.folder = options.state
        self.sites: list[Hospital] = hospitals(self.folder, options.sites)
        self.aggregator_toml = self.folder / "aggregator" / "aggregator.toml"
        self.custodian_folder = self.folder / "custodian"
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
            StepFailed: One is in use.
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
        """Makes folders, settings, custodian, CA, an administrator, and the configuration of each hospital.

        Raises:
            StepFailed: A command failed.
        """
        service, enrolment, dashboard = self.ports
        self.aggregator_toml.parent.mkdir(parents=True)
        self.aggregator_toml.write_text(
            AGGREGATOR_TOML.format(
                sites=service, enrolment=enrolment, dashboard=dashboard, folder=self.aggregator_toml.parent / "state"
            )
        )
        # A small consortium may keep the custodian on the same host. `serve` never reads this folder.
        self.custodian_folder.mkdir()
        self._passphrase_file.touch(0o600)
        self._passphrase_file.write_text(os.urandom(16).hex())
        self.custodian_command("init")
        self.aggregator_command("init", "--custodian", str(self.custodian_folder / "custodian.pub"))
        # Through standard input: arguments of a process are visible to all users of the machine.
        self.password = os.urandom(9).hex()
        self.aggregator_command("admin", "add", ADMINISTRATOR, "--password-stdin", stdin=self.password + "\n")
        labels = ["data"] if self.options.data is None else [f"data/{LABELS_FOLDER}"]
        validation_fraction = PRIVATE_VALIDATION_FRACTION if self.options.privacy else VALIDATION_FRACTION
        for hospital in self.sites:
            addresses = f"127.0.0.1:{service}", f"127.0.0.1:{enrolment}"
            write_config(hospital, *addresses, labels, "data/dicom", validation_fraction)

    def provide_data(self) -> None:
        """Provides every hospital's DICOM: synthetic patients from its own scanner, or its part of --data.

        Raises:
            BadDataFolder: --data cannot be dealt to the hospitals.
            StepFailed: A generator failed.
        """
        if self.options.data is not None:
            # The challenge's folder is too large to be scanned first, and the header of each file says whose it is.
            deal = split_rsna if is_rsna_layout(self.options.data) else deal_export
            deal(self.options.data, self.sites, self.options.studies)
            return
        # Each hospital's patients and scanner follow from the seed; two generators at a time fill two cores.
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(self._generate, range(len(self.sites))))

    def start_aggregator(self) -> None:
        """Starts the aggregator; it listens a few seconds later."""
        self.processes.start(
            "aggregator", [str(BIN / "hemofed-aggregator"), "--config", str(self.aggregator_toml), "serve"]
        )

    def enroll(self, joining: Sequence[Hospital]) -> None:
        """Enrolls hospitals: each joins with a one-time token, and the custodian signs one roster with all of them.

        Raises:
            StepFailed: A hospital cannot join.
        """
        names = {hospital.name for hospital in joining}
        joins = [Join(self._join_command(hospital), self.processes.environment) for hospital in joining]
        signed = False
        try:
            while not all([join.has_ended() for join in joins]):
                if self.stopping:
                    raise KeyboardInterrupt
                self.processes.restart_the_dead()
                # A host waits in its join until a roster lists it, so the roster is signed while all of them wait.
                if not signed and names <= self._approved():
                    self.sign_roster()
                    signed = True
                time.sleep(JOIN_LOOK_S)
        finally:
            for join in joins:
                join.stop()

    def sign_roster(self) -> None:
        """Brings the roster that awaits a signature to the custodian and back.

        Raises:
            StepFailed: A command failed.
        """
        request = self.folder / "roster.request"
        self.aggregator_command("roster", "export", str(request))
        self.aggregator_command("roster", "import", str(self._signed(request)))

    def start_site(self, hospital: Hospital) -> None:
        """Starts the agent and the trainer of a hospital."""
        for side in ("agent", "trainer"):
            program = [str(BIN / "hemofed-site")]
            if self.options.poison and side == "agent" and hospital is self.sites[-1]:
                program = [sys.executable, "-m", "deploy.demonstration.poison"]
            command = [*program, side, "--config", str(hospital.config)]
            self.processes.start(f"{hospital.name}-{side}", command)

    def make_initial_model(self) -> None:
        """Writes fresh weights, which follow from the seed.

        Raises:
            StepFailed: The architecture does not exist.
        """
        architecture, seed = self.options.architecture, str(self.options.seed)
        site = str(BIN / "hemofed-site")
        self._run(
            [site, "init-weights", "--architecture", architecture, "--seed", seed, "--out", str(self.initial_model)]
        )

    def start_run(self) -> None:
        """Lets the custodian sign the plan, and starts the run.

        Raises:
            StepFailed: The aggregator or the custodian refuses the plan.
        """
        plan = self.folder / "plan.toml"
        options = self.options
        common = {
            "architecture": options.architecture,
            "sites": options.sites,
            "image_size_px": IMAGE_SIZE_PX,
            "phase_s": MASKING_PHASE_S,
        }
        if options.privacy:
            heads = self._numbers_of_the_heads()
            text = private_plan(options.studies, options.rounds, heads, **common)
        else:
            text = ordinary_plan(
                options.studies, options.epochs, options.learning_rate, rounds=options.rounds, **common
            )
            text += GATED if options.poison else ""
        plan.write_text(text)
        request, model = self.folder / "plan.request", str(self.initial_model)
        # A demo of few patients may be drowned by its noise, and shows the alarm.
        self.aggregator_command("plan", "export", str(plan), str(request), "--model", model, "--force")
        self.aggregator_command("run", "start", str(self._signed(request)), "--model", model)

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
            StepFailed: The command failed.
        """
        return self._run([str(BIN / "hemofed-aggregator"), "--config", str(self.aggregator_toml), *words], stdin)

    def custodian_command(self, command: str, *words: str) -> str:
        """Runs a command of the custodian; gives its standard output.

        Raises:
            StepFailed: The command failed.
        """
        program = [str(BIN / "hemofed-custodian"), "--folder", str(self.custodian_folder), command, *words]
        return self._run([*program, "--passphrase-file", str(self._passphrase_file)])

    def _numbers_of_the_heads(self) -> int:
        description, model = load_description(self.initial_model), load_model(self.initial_model)
        # init-weights has written it.
        assert description is not None
        parts = zip(description.parts, model.manifest.tensors, strict=True)
        return sum(tensor.size for part, tensor in parts if part == PART_LETTERS[0])

    @property
    def _passphrase_file(self) -> Path:
        # Beside the key only because a demo has no person who types it.
        return self.custodian_folder / "passphrase"

    def _signed(self, request: Path) -> Path:
        self.custodian_command("sign", str(request), "--yes")
        return request.with_name(f"{request.name}.signed")

    def _join_command(self, hospital: Hospital) -> list[str]:
        invited = self.aggregator_command("site", "invite", hospital.name, "--auto-approve", "--json")
        token, address = str(json.loads(invited)["token"]), f"127.0.0.1:{self.ports[1]}"
        return [str(BIN / "hemofed-site"), "join", address, token, "--yes", "--config", str(hospital.config)]

    def _approved(self) -> set[str]:
        app = self.app()
        try:
            with app.store.read() as session:
                return {site.name for site in site_rows.active(session)}
        finally:
            app.store.close()

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
            last = last_line(done.stderr.strip() or done.stdout)
            raise StepFailed(f"{Path(command[0]).name} {' '.join(command[1:3])}: {last}")
        return done.stdout


def _environment() -> dict[str, str]:
    # One thread of arithmetic a process: more threads would only compete for two cores.
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, **threads, "PYTHONUNBUFFERED": "1"}
