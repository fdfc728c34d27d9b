"""dpkg runs our scripts in a root that is thrown away: upgrades without a hole, and a purge that gives nothing away."""

import json
import random
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from site_client.agent.egress import verify
from site_client.agent.egress.ledger import EgressDecision, Ledger, Outgoing
from site_client.typed_json import encode_state
from tests.system.package_tree import UNITS, Root, build, fresh_root, missing

pytestmark = pytest.mark.skipif(missing() != "", reason=missing() or "-")
INSTALL = "dpkg --force-unsafe-io -i"
FIRST, OLD, NEW = "0.1.0", "0.2.0", "0.3.0"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("packages")
    return {version: build(out, version, is_0_1_0=version == FIRST) for version in (FIRST, OLD, NEW)}


@pytest.fixture
def root(tmp_path: Path, packages: dict[str, Path]) -> Iterator[Root]:
    """The old version is installed, and both units run."""
    with fresh_root(tmp_path / "fs") as root:
        for package in packages.values():
            root.give(package)
        install(root, OLD)
        start(root)
        root.run(": >/var/log/systemctl")
        yield root


def install(root: Root, version: str) -> str:
    return root.run(f"{INSTALL} /var/tmp/hemofed-site_{version}_amd64.deb")


def start(root: Root) -> None:
    root.run("; ".join(f"systemctl start {unit}" for unit in UNITS))


def running(root: Root) -> list[str]:
    return root.run("cd /var/active && cat *").split()


def test_a_first_install_starts_nothing_and_makes_the_accounts(tmp_path: Path, packages: dict[str, Path]) -> None:
    with fresh_root(tmp_path / "fs") as root:
        root.give(packages[OLD])
        assert "now edit /etc/hemofed/site.toml" in install(root, OLD)
        assert root.run("hemofed-site --version").split() == [OLD]
        assert root.run("ls /var/active").split() == []
        assert "hemofed-trainer" in root.run("getent group hemofed-export")


def test_the_version_that_runs_can_be_started_at_every_moment_of_an_upgrade(root: Root) -> None:
    # A program that is started over and over: what a worker process or a power cut with a reboot would do.
    probe = root.start(
        "while [ ! -e /var/tmp/done ]; do /opt/hemofed/current/bin/hemofed-site --version || echo HOLE; done"
    )
    install(root, NEW)
    root.run("touch /var/tmp/done")
    versions = probe.communicate(timeout=60)[0].split()
    assert set(versions) == {OLD, NEW}
    assert versions == sorted(versions)
    assert running(root) == [NEW, NEW]
    calls = root.run("cat /var/log/systemctl").splitlines()
    assert [call for call in calls if not call.startswith(("is-active", "daemon-reload"))] == [
        *(f"restart {unit}" for unit in UNITS),
    ]


def test_what_does_not_run_is_not_started_by_an_upgrade(root: Root) -> None:
    root.run(f"systemctl stop {UNITS[1]}")
    install(root, NEW)
    assert root.run("ls /var/active").split() == [UNITS[0]]


def test_a_rollback_and_another_upgrade_switch_back_and_forth(root: Root) -> None:
    install(root, NEW)
    assert f"{NEW} -> {OLD}" in root.run("hemofed-rollback")
    assert running(root) == [OLD, OLD]
    root.run("hemofed-rollback")
    assert running(root) == [NEW, NEW]
    install(root, NEW)  # installed again: nothing to lay out
    assert running(root) == [NEW, NEW]
    assert root.run("ls /opt/hemofed").split() == [OLD, NEW, "current", "package", "previous"]


def test_services_restart_after_a_masking_phase_and_not_in_it(root: Root) -> None:
    status = "/var/lib/hemofed/agent/status.json"
    root.run(f"""echo '{{"state":"SITE_MASKING"}}' >{status}""")
    upgrade = root.start(f"{INSTALL} /var/tmp/hemofed-site_{NEW}_amd64.deb")
    # The new version is laid out meanwhile; the old one runs.
    while "being masked" not in (line := upgrade.stdout.readline() if upgrade.stdout else ""):
        assert line
    assert running(root) == [OLD, OLD]
    assert root.run("readlink /opt/hemofed/current").split() == [OLD]
    root.run(f"""echo '{{"state":"SITE_IDLE"}}' >{status}""")
    assert upgrade.wait(60) == 0
    upgrade.communicate()
    assert running(root) == [NEW, NEW]


def test_a_masking_phase_that_never_ends_is_waited_for_until_its_deadline(root: Root) -> None:
    root.run("""echo '{"state":"SITE_MASKING"}' >/var/lib/hemofed/agent/status.json""")
    root.run(f"HEMOFED_MASKING_S=2 {INSTALL} /var/tmp/hemofed-site_{NEW}_amd64.deb")
    assert running(root) == [NEW, NEW]


def test_a_kill_at_any_moment_of_an_upgrade_leaves_one_of_the_two_versions(root: Root) -> None:
    began = time.monotonic()
    install(root, NEW)
    took_s = time.monotonic() - began
    moments = random.Random(7)
    seen = set()
    for number in range(8):
        before, after = (NEW, OLD) if number % 2 == 0 else (OLD, NEW)
        upgrade = root.start(f"{INSTALL} /var/tmp/hemofed-site_{after}_amd64.deb")
        time.sleep(moments.uniform(0, took_s))  # the moment is the thing that is tried
        root.kill(upgrade)
        (version,) = root.run("/opt/hemofed/current/bin/hemofed-site --version").split()
        assert version in (before, after)
        seen.add(version == before)
        root.run("rm -f /var/lib/dpkg/lock*; dpkg --configure -a", good=False)
        install(root, after)
        assert root.run("hemofed-site --version").split() == [after]
    assert seen  # both, on most machines


# ---- back to version 0.1.0


def test_a_rollback_to_0_1_0_writes_the_state_as_that_version_reads_it(
    tmp_path: Path, packages: dict[str, Path]
) -> None:
    signer = Ed25519PrivateKey.generate()
    agent = tmp_path / "agent"
    ledger = Ledger(agent / "ledger.jsonl", signer, lambda: datetime.now(UTC), segment_bytes=2000)
    for size in range(30):
        ledger.append(Outgoing("hub:8443", "Rounds/Poll", bytes(size), {}, EgressDecision.ALLOWED, "call, fields"))
    ledger.close()
    whole = b"".join(verify.lines(agent / "ledger.jsonl"))
    closed = {"00" * 16: 3}
    (agent / "rounds").mkdir()
    (agent / "rounds" / "closed.json").write_bytes(encode_state(closed))
    (agent / "old.json").write_text('{\n "several": "lines"\n}')
    (agent / "rounds" / "left_bases.bin").write_bytes(b"sha256 " + bytes(32) + b"\x01" * 32)
    tarball = tmp_path / "agent.tar"
    subprocess.run(["tar", "-C", str(tmp_path), "-cf", str(tarball), "agent"], check=True)
    with fresh_root(tmp_path / "fs") as root:
        for version in (FIRST, OLD):
            root.give(packages[version])
        install(root, FIRST)
        start(root)
        assert install(root, OLD)
        assert running(root) == [OLD, OLD]
        root.run(f"rm -rf /var/lib/hemofed/agent; tar -C /var/lib/hemofed -xf {root.give(tarball)}")
        root.run("chown -R hemofed-agent:hemofed /var/lib/hemofed/agent")
        assert f"{OLD} -> {FIRST}" in root.run("hemofed-rollback")
        is_as_0_1_0_reads_it(root, whole, closed)
        assert running(root) == [FIRST, FIRST]


def is_as_0_1_0_reads_it(root: Root, whole: bytes, closed: dict[str, int]) -> None:
    at = "/var/lib/hemofed/agent"
    assert root.run(f"cat {at}/ledger.jsonl").encode() == whole
    assert root.run(f"ls -A {at}").split() == ["ledger.jsonl", "old.json", "rounds"]
    assert json.loads(root.run(f"cat {at}/old.json")) == {"several": "lines"}
    assert json.loads(root.run(f"cat {at}/rounds/closed.json")) == closed
    assert root.run(f"wc -l -c <{at}/rounds/left_bases.bin").split() == ["0", "32"]
    owners = root.run(f"stat -c '%U:%G %a' {at}/ledger.jsonl {at}/rounds/closed.json {at}/rounds/left_bases.bin")
    assert set(owners.splitlines()) <= {"hemofed-agent:hemofed 600", "hemofed-agent:hemofed 644"}


# ---- purge


def test_purge_without_any_file_left_removes_the_accounts(root: Root) -> None:
    root.run("dpkg --purge hemofed-site")
    assert "hemofed" not in root.run("getent passwd; getent group")
    places = "/etc /opt /srv /usr/bin /usr/sbin /usr/lib /lib/systemd /var/lib /var/cache"
    assert root.run(f"find {places} -xdev -name '*hemofed*' -not -path '/var/lib/dpkg/*'") == ""


@pytest.mark.parametrize(
    "command", ["chgrp hemofed-export", pytest.param("chown hemofed-trainer", marks=pytest.mark.slow)]
)
def test_purge_keeps_the_accounts_locked_while_a_file_carries_their_numbers(root: Root, command: str) -> None:
    root.run(f"mkdir -p /data/pacs && echo image >/data/pacs/1 && {command} /data/pacs/1 && chmod 640 /data/pacs/1")
    numbers = root.run("getent group hemofed hemofed-export; getent passwd hemofed-agent hemofed-trainer")
    said = root.run("dpkg --purge hemofed-site")
    assert "stay, locked: a file outside has one of their numbers" in said
    assert root.run("getent group hemofed hemofed-export; getent passwd hemofed-agent hemofed-trainer") == numbers
    for user in ("hemofed-agent", "hemofed-trainer"):
        assert root.run(f"getent shadow {user}").split(":")[1].startswith("!")
        assert root.run(f"getent shadow {user}").split(":")[7] == "1"
    # The next account gets no number of ours.
    root.run("useradd --system another")
    assert root.run("id another").isascii()
    taken = {line.split(":")[2] for line in numbers.splitlines()}
    assert root.run("id -u another; id -g another").split() not in [[number] * 2 for number in taken]
    assert "/data/pacs" not in said
    assert root.run("ls /var/lib/hemofed 2>&1; true").startswith("ls: cannot access")


def test_purge_keeps_the_accounts_where_it_cannot_look_everywhere_in_time(root: Root) -> None:
    said = root.run("HEMOFED_SEARCH_S=0.001 dpkg --purge hemofed-site")
    assert "the search for files with their numbers did not end" in said
    assert "hemofed-export" in root.run("getent group")


def test_purge_keeps_the_administrator_s_own_files_beside_the_settings(root: Root) -> None:
    root.run("echo mine >/etc/hemofed/our-notes.txt")
    root.run("HEMOFED_SEARCH_S=0.001 dpkg --purge hemofed-site")
    assert root.run("ls /etc/hemofed").split() == ["our-notes.txt"]


def test_removal_stops_the_services_and_keeps_state_and_accounts(root: Root) -> None:
    root.run("dpkg --remove hemofed-site")
    assert root.run("ls /var/active").split() == []
    assert "ledger" not in root.run("ls /opt")
    assert root.run("ls -d /var/lib/hemofed/agent /etc/hemofed/site.toml").count("\n") == 2
    assert "hemofed-agent" in root.run("getent passwd")
