"""A hospital with the package installed, in a federation with two others that run as plain processes on this host."""

import json
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aggregator.states import RoundState
from aggregator.store import round_rows, run_rows, site_rows
from deploy.demonstration.federation import Federation, Options
from tests.system.machine import Machine

STUDIES = 12
UNITS = TRAINER, AGENT = "hemofed-trainer.service", "hemofed-agent.service"
STATUS = "/var/lib/hemofed/spool/to_agent/status.json"
ROUND_S = 900.0
# Two other hospitals and an aggregator use the same cores, so nothing but an operator's pause may suspend this one ...
SITE_TOML = """\
name = "{name}"
[aggregator]
address = "{address}"
enrolment_address = "{enrolment_address}"
[policy]
studies_min = 4
[ingest]
settle_s = 0
slices_min = 8
[training]
threads = 1
[idle]
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
[agent]
poll_min_s = 0.1
poll_max_s = 2.0
"""

# ... and its agent gets its turn as theirs do. Nothing else of the units is changed.
PRIORITY = "[Service]\nNice=0\n"


def options(folder: Path, port: int) -> Options:
    """Orders three hospitals, and more rounds than any test waits for."""
    return Options(3, 200, "lite", STUDIES, 7, port, folder, False, None, None, 8, 0.003)


class Hospital:
    """The machine, and its part in the federation."""

    def __init__(self, machine: Machine, federation: Federation) -> None:
        self.machine, self.federation = machine, federation
        self.name = federation.sites[0].name

    def prepare(self) -> None:
        """Brings up everything but this hospital: patients for all three, the aggregator, two enrolled sites."""
        federation = self.federation
        federation.initialize()
        federation.make_initial_model()
        federation.provide_data()
        federation.start_aggregator()
        self._await_port(federation.ports[1])
        federation.enroll(federation.sites[1:])
        for other in federation.sites[1:]:
            federation.start_site(other)

    def fill_export(self) -> None:
        """Copies DICOM and labels into a folder that only the group may read, as a mount would be."""
        export = self.machine.file("/srv/hemofed/export")
        shutil.copytree(self.federation.sites[0].data, export, dirs_exist_ok=True)
        self.machine.run("chown", "-R", "root:hemofed-export", "/srv/hemofed/export")
        self.machine.run("chmod", "-R", "u=rwX,g=rX,o=", "/srv/hemofed/export")

    def configure(self) -> None:
        """Writes the settings into the conffile, whose owner and mode stay as the package made them."""
        service, enrolment, _ = self.federation.ports
        text = SITE_TOML.format(
            name=self.name, address=f"127.0.0.1:{service}", enrolment_address=f"127.0.0.1:{enrolment}"
        )
        self.machine.file("/etc/hemofed/site.toml").write_text(text)
        folder = self.machine.file(f"/etc/systemd/system/{AGENT}.d")
        folder.mkdir(parents=True)
        (folder / "test.conf").write_text(PRIORITY)
        self.machine.run("systemctl", "daemon-reload")

    def invite(self) -> str:
        """Lets the coordinator invite this hospital; gives the token."""
        invitation = self.federation.aggregator_command("site", "invite", self.name, "--auto-approve", "--json")
        return str(json.loads(invitation)["token"])

    def join(self) -> str:
        """Lets this hospital join, and the custodian sign a roster with it; gives the output of the command."""
        address, token = f"127.0.0.1:{self.federation.ports[1]}", self.invite()
        with ThreadPoolExecutor(1) as pool:
            joining = pool.submit(self.machine.run, "hemofed-site", "join", address, token, "--yes")
            self.machine.wait("approval", lambda: self._go_on() and self._is_approved(), 120)
            self.federation.sign_roster()
            return joining.result(120)

    def _is_approved(self) -> bool:
        with self.federation.app().store.read() as session:
            return self.name in {site.name for site in site_rows.active(session)}

    def published(self) -> int:
        """Counts published rounds with this hospital in the cohort."""
        with self.federation.app().store.read() as session:
            rows = round_rows.of_run(session, run_rows.all_runs(session)[-1].run_id)
            done = [row for row in rows if row.state is RoundState.PUBLISHED]
            return sum(any(seat.site == self.name for seat in round_rows.seats(session, row.id)) for row in done)

    def complete_a_round(self) -> None:
        before = self.published()
        self.machine.wait("another round", lambda: self._go_on() and self.published() > before, ROUND_S)

    def await_training(self) -> None:
        """Waits for the middle of a round: some steps of training are done, and the update is not."""
        self.machine.wait("training", lambda: self._go_on() and self._trains(), ROUND_S)

    def await_active(self) -> None:
        """Waits until both services are active, however they were started."""
        states = ["active"] * len(UNITS)
        self.machine.wait("both", lambda: [self.machine.show(unit, "ActiveState") for unit in UNITS] == states, 120)

    def status_text(self, unit: str) -> str:
        return self.machine.show(unit, "StatusText")

    def _trains(self) -> bool:
        try:
            status = self.machine.json(STATUS)
        except FileNotFoundError:
            return False
        return status["state"] == "SITE_TRAINING" and bool(status["step"])

    def _go_on(self) -> bool:
        self.federation.processes.restart_the_dead()
        return True

    def _await_port(self, port: int) -> None:
        ends_at = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            assert time.monotonic() < ends_at, f"no server listens on port {port}"
            time.sleep(0.2)
