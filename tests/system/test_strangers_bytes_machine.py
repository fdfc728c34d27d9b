"""Strangers' bytes behind the walls of the shipped units, on a Debian that systemd boots.

Real: systemd with every line of both units, users, modes, the programs as they are installed here. Shown to the machine
from this host, read-only: the project and its libraries, in the places where the package would put its own.
"""

import json
import re
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from site_client.ingest.files.reader import Reader
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.study import Wishes
from tests.ports import free_port
from tests.site_client.ingest.conftest import Scanner
from tests.site_client.ingest.damage import deflated
from tests.site_client.ingest.test_ingest_readers import aborting
from tests.site_client.receiver.test_counterparts import data_sets, run
from tests.site_client.receiver.web import serving
from tests.system.machine import CannotBoot, Machine, debian, missing, system_bus

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = Path(msgspec.__file__).parents[1]
TRAINER, RECEIVER = "hemofed-trainer.service", "hemofed-receiver.service"
EXPORT, RECEIVED = "/srv/hemofed/export", "/srv/hemofed/export/received"
# As `hemofed-site` of the package, with the project's folders where the package has an environment of its own.
PROGRAM = """\
#!/bin/sh
export PYTHONPATH=/opt/hemofed/project:/opt/hemofed/project/proto:/opt/hemofed/libraries PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python3.11 -P -m site_client.cli "$@"
"""
# Nothing pauses the scan: other tests want the cores of this host, too.
SITE_TOML = """\
name = "north"
[ingest]
settle_s = 0
slices_min = 8
[idle]
foreign_cpu_max = 1.0
memory_pressure_max = 1.0
io_pressure_max = 1.0
memory_free_min_gib = 0.0
disk_free_min_gib = 0.0
user_idle_min_s = 0
remote_idle_min_s = 0
gpu_others = "ignore"
battery = "ignore"
start_delay_s = 0
calm_s = 2
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing()), reason=missing() or "a machine can be booted"),
    pytest.mark.skipif(shutil.which("storescu") is None, reason="dcmtk is not installed"),
]
STUDIES = 6


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Users, folders and units as the package makes them; the trainer's export is empty, nothing runs."""
    folder = tmp_path_factory.mktemp("strangers")
    shown = {"/opt/hemofed/project": ROOT, "/opt/hemofed/libraries": LIBRARIES}
    machine = Machine(folder / "root", folder / "console.log", shown)
    try:
        debian(machine.root)
    except CannotBoot as reason:
        pytest.skip(str(reason))
    program = machine.file("/usr/bin/hemofed-site")
    program.write_text(PROGRAM)
    program.chmod(0o755)
    for unit in (TRAINER, RECEIVER, "hemofed.slice"):
        shutil.copy(ROOT / "deploy" / "systemd" / unit, machine.file("/usr/lib/systemd/system"))
    for name, place in (("sysusers", "sysusers.d"), ("tmpfiles", "tmpfiles.d")):
        shutil.copy(ROOT / "deploy" / "deb" / "site" / f"{name}.conf", machine.file(f"/usr/lib/{place}/hemofed.conf"))
    machine.file("/etc/hemofed").mkdir()
    machine.file("/etc/hemofed/site.toml").write_text(SITE_TOML)
    with system_bus():
        try:
            machine.boot()
            yield machine
        finally:
            machine.power_off()


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Sequence[list[Path]]:
    """The files of six synthetic studies, each in another encoding: raw, four of JPEG and RLE, deflated."""
    out = tmp_path_factory.mktemp("phantom") / "set"
    make_set(Order("S", STUDIES, 5, Wishes(size_px=128)), out)
    studies: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(path for path in (out / "dicom").rglob("*") if path.is_file()):
        studies[str(dcmread(path, specific_tags=["StudyInstanceUID"]).StudyInstanceUID)].append(path)
    for path in (path for paths in studies.values() for path in paths):
        dataset = dcmread(path)
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            dataset.decompress(generate_instance_uid=False)
            dataset.save_as(path)
    _, *compressed, lossless, deflated_ones = studies.values()
    for paths, syntax in zip(compressed, (RLELossless, JPEGLSLossless, JPEG2000Lossless), strict=True):
        for path in paths:
            dataset = dcmread(path)
            dataset.compress(syntax, generate_instance_uid=False)
            dataset.save_as(path)
    for path in lossless:
        run("dcmcjpeg", "+e1", path, path)
    for path in deflated_ones:
        run("dcmconv", "+td", path, path)
    return list(studies.values())


@pytest.fixture(autouse=True)
def nothing_runs(machine: Machine) -> Iterator[None]:
    """Each test starts its units on an export of its own."""
    yield
    machine.run("systemctl", "stop", TRAINER, RECEIVER)
    machine.run(
        "sh", "-c", f"rm -rf {EXPORT}/[!r]* {RECEIVED}/* {RECEIVED}/.arriving /var/lib/hemofed/trainer/*.sqlite*"
    )


def fill(machine: Machine, folder: Path) -> None:
    """Copies an export into the machine, for the group that reads exports alone."""
    shutil.copytree(folder, machine.file(EXPORT), dirs_exist_ok=True)
    copied = [f"{EXPORT}/{child.name}" for child in folder.iterdir()]  # not `received`, which is the receiver's
    machine.run("chown", "-R", "root:hemofed-export", *copied)
    machine.run("chmod", "-R", "u=rwX,g=rX,o=", *copied)


def scanned(machine: Machine) -> int:
    """Starts the trainer and waits for its first scan; gives the number of studies with a series to train on."""
    machine.run("systemctl", "start", TRAINER)
    machine.wait("a scan", lambda: '"export scanned"' in journal(machine), 300)
    (line,) = (line for line in journal(machine).splitlines() if '"export scanned"' in line)
    return int(json.loads(line)["studies_ready"])


def journal(machine: Machine) -> str:
    """The journal of the trainer since its last start."""
    started = machine.show(TRAINER, "InvocationID")
    return machine.run("journalctl", "--no-pager", "-o", "cat", f"_SYSTEMD_INVOCATION_ID={started}")


def assert_walled(status: str, unit: str, machine: Machine) -> None:
    """A process of the unit's user, with the unit's filter and without a capability. `status`: /proc/PID/status."""
    user = machine.run("id", "-u", machine.show(unit, "User")).strip()
    for line in (rf"Uid:\t{user}\t{user}\t.*", r"NoNewPrivs:\t1", r"Seccomp:\t2", r"Cap(Eff|Bnd):\t0+"):
        assert re.search(rf"^{line}$", status, re.MULTILINE), status


def test_behind_the_trainer_s_walls_every_encoding_is_read_and_an_abort_costs_one_series(
    machine: Machine, phantom: Sequence[list[Path]], tmp_path: Path
) -> None:
    export = tmp_path / "export"
    for number, paths in enumerate(phantom[1:]):
        (export / f"S{number}").mkdir(parents=True)
        for path in paths:
            shutil.copy(path, export / f"S{number}")
    with zipfile.ZipFile(export / "raw.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in phantom[0]:
            archive.write(path, path.name)
    damaged = Scanner(export / "damaged")
    paths = damaged.series("1.2.9")
    with closing(Reader()) as reader:
        aborting(paths[0], reader).replace(paths[0])
    (export / "bomb").write_bytes(deflated(damaged.series("1.2.10", slices=1)[0], 100))
    fill(machine, export)

    readers: list[str] = []

    def a_reader_runs() -> bool:
        for process in machine.run("pgrep", "-f", "files.reader_process", good=False).split():
            readers.append(machine.run("cat", f"/proc/{process}/status", good=False))
        return any("Seccomp" in status for status in readers)

    machine.run("systemctl", "start", TRAINER)
    machine.wait("a reader", a_reader_runs, 120)
    assert scanned(machine) == STUDIES
    for status in readers:
        if "Seccomp" in status:  # it had not ended yet
            assert_walled(status, TRAINER, machine)
    for damaged_file, code in (("bomb", "Q_DECODE_LIMIT"), (str(paths[0].relative_to(export)), "Q_DECODE")):
        assert re.search(rf"\b{code}\b", machine.run("hemofed-site", "catalog", "explain", f"{EXPORT}/{damaged_file}"))
    assert machine.show(TRAINER, "NRestarts") == "0"


def test_what_dcmtk_sends_and_an_archive_answers_reaches_the_trainer_through_both_walls(
    machine: Machine, phantom: Sequence[list[Path]]
) -> None:
    *sent, pulled = phantom
    images = [dcmread(path) for path in pulled]
    for data in images:
        data.StudyDate = f"{datetime.now():%Y%m%d}"
    port = free_port()
    with serving(images) as archive:
        machine.file("/etc/hemofed/receiver.toml").write_text(
            "disk_free_min_gib = 0.0\n"
            f'[storage]\nport = {port}\naddress = "127.0.0.1"\nsenders = {{ NORTH = ["127.0.0.1"] }}\n'
            f'[dicomweb]\nurl = "{archive.url.replace("localhost", "127.0.0.1")}"\n'
        )
        drop_in = machine.file(f"/etc/systemd/system/{RECEIVER}.d/peers.conf")
        drop_in.parent.mkdir()
        drop_in.write_text("[Service]\nIPAddressAllow=127.0.0.1/32\n")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", RECEIVER, good=False)
        machine.wait("a receiver", lambda: machine.show(RECEIVER, "ActiveState") == "active", 30)
        ends = ["-aet", "NORTH", "-aec", "HEMOFED", "127.0.0.1", str(port)]
        run("echoscu", *ends)
        for option, paths in zip(("-xi", "-xr", "-xt", "-xv", "-xs"), sent, strict=True):
            run("storescu", option, *ends, *paths)
        stored = machine.file(RECEIVED)
        count = sum(map(len, phantom))
        machine.wait("every image", lambda: len(list(stored.glob("??/*.dcm"))) == count, 120)
    assert data_sets(list(stored.glob("??/*.dcm"))) >= data_sets([path for paths in sent[1:] for path in paths])
    process = machine.show(RECEIVER, "MainPID")
    assert_walled(machine.run("cat", f"/proc/{process}/status"), RECEIVER, machine)
    assert machine.show(RECEIVER, "MemoryDenyWriteExecute") == "yes"
    assert scanned(machine) == STUDIES
    assert machine.show(RECEIVER, "NRestarts") == "0"
