"""The coordinator's package with its real contents: built, installed, initialised, serving, stopped.

The build takes its wheels from the wheelhouse, and from the network what is not there.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.custodian import CUSTODIAN
from tests.ports import free_port
from tests.system.package_tree import DEB, Root, fresh_root, missing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.skipif(missing() != "", reason=missing() or "-")]
AS_SERVICE = "runuser -u hemofed-aggregator -- hemofed-aggregator"


def build(out: Path) -> Path:
    command = [str(DEB / "build.sh"), "aggregator", "--out", str(out), "--version", "0.2.0", "--compression", "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Could not find a version" in done.stderr or "Connection" in done.stderr:
        pytest.skip("the wheels of the lock are neither in the wheelhouse nor to be downloaded")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Iterator[Root]:
    with fresh_root(tmp_path_factory.mktemp("machine") / "fs") as root:
        root.run(f"dpkg --force-depends --force-unsafe-io -i {root.give(package)}")
        yield root


def test_the_same_commit_gives_the_same_bytes_and_a_bill_without_pytorch(package: Path, tmp_path: Path) -> None:
    assert build(tmp_path).read_bytes() == package.read_bytes()
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)
    bill = json.loads((tmp_path / "hemofed-aggregator_0.2.0.cdx.json").read_text())
    assert bill["metadata"]["component"]["name"] == "hemofed-aggregator"
    names = {component["name"] for component in bill["components"]}
    assert {"grpcio", "cryptography", "psycopg-binary"} <= names
    assert {"torch", "monai", "pydicom"}.isdisjoint(names)


def test_settings_are_readable_by_the_service_and_by_no_other_user(root: Root) -> None:
    modes = root.run("stat -c '%a %U %G' /etc/hemofed/aggregator.toml /var/lib/hemofed-aggregator").splitlines()
    assert modes == ["640 root hemofed-aggregator", "700 hemofed-aggregator hemofed-aggregator"]


def test_the_lines_of_the_page_bring_it_up_and_the_service_serves(root: Root, tmp_path: Path) -> None:
    public = tmp_path / "custodian.pub"
    public.write_bytes(CUSTODIAN.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    root.run(f"cp {root.give(public)} /root/custodian.pub")
    port = free_port(in_a_row=3)
    edits = {"0.0.0.0:8443": port, "0.0.0.0:8444": port + 1, "127.0.0.1:8080": port + 2}
    expressions = " ".join(f"-e s/{address}/127.0.0.1:{to}/" for address, to in edits.items())
    folder = "/root"  # where the page's reader stands
    for line in lines_of_the_page():
        command = line.partition("  #")[0].strip()
        if command.startswith("cd "):
            folder = command.removeprefix("cd ")
        elif command.startswith("nano "):
            root.run(f"sed -i {expressions} {command.removeprefix('nano ')}")
        elif "admin add" in command:
            root.run(f"cd {folder} && echo 'correct horse battery' | {command} --password-stdin")
        elif not command.startswith(("apt install", "systemctl")):  # installed already; no systemd runs here
            root.run(f"cd {folder} && {command}")
    # Not runuser, which stays beside its child: the signal below is for the service.
    user = "--reuid hemofed-aggregator --regid hemofed-aggregator --init-groups"
    serving = root.start(f"exec setpriv {user} hemofed-aggregator serve")
    try:
        deadline = time.monotonic() + 60
        while "aggregator started" not in (line := serving.stdout.readline() if serving.stdout else ""):
            assert line
            assert time.monotonic() < deadline
        assert "st-marys" in root.run(f"{AS_SERVICE} site invite st-marys")
        assert root.run(f"{AS_SERVICE} site list --json").startswith("[")
        assert "got root, whose files" in root.run("hemofed-aggregator site list", good=False)
        root.run(f"cd /srv/consortium && {AS_SERVICE} backup before-0.3.0")
    finally:
        serving.terminate()  # each program on the way has become the next
        serving.communicate(timeout=60)
    assert serving.returncode == 0
    assert root.run("find /var/lib/hemofed-aggregator -user root") == ""


def test_a_backup_is_restored_after_the_folder_was_moved_away(root: Root) -> None:
    root.run("mv /var/lib/hemofed-aggregator /var/lib/newer && systemd-tmpfiles --create hemofed-aggregator.conf")
    root.run(f"cd /srv/consortium && {AS_SERVICE} restore before-0.3.0")
    assert root.run("stat -c '%a %U' /var/lib/hemofed-aggregator").split() == ["700", "hemofed-aggregator"]
    assert "YOUR-NAME" in root.run(f"{AS_SERVICE} admin list")


def lines_of_the_page() -> list[str]:
    """The second block of OPERATIONS.md: what is typed on the aggregator's machine."""
    page = (DEB.parents[1] / "docs" / "OPERATIONS.md").read_text()
    return page.split("### From the package\n")[1].split("```sh\n")[2].split("```")[0].splitlines()


def test_its_programs_and_manual_are_there(root: Root) -> None:
    assert "0.2.0" in root.run("hemofed-aggregator --version")
    assert "sign" in root.run("hemofed-custodian --help")
    assert "complete" in root.run(
        "bash -c '. /usr/share/bash-completion/completions/hemofed-aggregator; complete -p hemofed-aggregator'"
    )
    page = root.run("gzip -dc /usr/share/man/man1/hemofed-aggregator.1.gz")
    assert "hemofed-aggregator-rollback" in page
