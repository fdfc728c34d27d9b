"""dpkg runs the scripts of the coordinator's package in a root that is thrown away, also beside a hospital's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.package_tree import AGGREGATOR, SITE, UNITS, Root, build, fresh_root, missing

pytestmark = pytest.mark.skipif(missing() != "", reason=missing() or "-")
UNIT = "hemofed-aggregator.service"
STATE = "/var/lib/hemofed-aggregator"
OLD, NEW = "0.2.0", "0.3.0"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("packages")
    return [*(build(out, version, side=AGGREGATOR) for version in (OLD, NEW)), build(out, OLD, side=SITE)]


@pytest.fixture
def root(tmp_path: Path, packages: list[Path]) -> Iterator[Root]:
    """The old version is installed and has a state."""
    with fresh_root(tmp_path / "fs") as root:
        for package in packages:
            root.give(package)
        install(root, OLD)
        root.run(f"install -d -m 700 -o hemofed-aggregator {STATE}/ca && echo key >{STATE}/ca/ca.key")
        yield root


def install(root: Root, version: str, package: str = "hemofed-aggregator") -> str:
    return root.run(f"dpkg --force-unsafe-io -i /var/tmp/{package}_{version}_amd64.deb")


def running(root: Root) -> dict[str, str]:
    lines = root.run("cd /var/active && grep . * /dev/null").splitlines()
    return dict(line.split(":") for line in lines)


def test_a_first_install_makes_the_user_and_the_folder_and_starts_nothing(root: Root) -> None:
    assert root.run("ls /var/active").split() == []
    assert f"enable --quiet {UNIT}" in root.run("cat /var/log/systemctl")
    assert root.run(f"stat -c '%a %U %G' {STATE} /etc/hemofed/aggregator.toml").splitlines() == [
        "700 hemofed-aggregator hemofed-aggregator",
        "644 root hemofed-aggregator",
    ]
    assert root.run("hemofed-aggregator --version").split() == [OLD]


def test_an_upgrade_restarts_what_runs_once_and_a_rollback_goes_back(root: Root) -> None:
    root.run(f"systemctl start {UNIT}; : >/var/log/systemctl")
    install(root, NEW)
    assert running(root) == {UNIT: NEW}
    calls = [line for line in root.run("cat /var/log/systemctl").splitlines() if not line.startswith("is-active")]
    assert calls == ["daemon-reload", f"restart {UNIT}"]
    assert f"{NEW} -> {OLD}" in root.run("hemofed-aggregator-rollback")
    assert running(root) == {UNIT: OLD}
    assert root.run("ls /opt/hemofed-aggregator").split() == [OLD, NEW, "current", "package", "previous"]


def test_a_rollback_that_could_not_read_the_state_changes_nothing_and_says_what_to_do(root: Root) -> None:
    install(root, NEW)
    root.run(f"systemctl start {UNIT} && touch {STATE}/of-a-newer-version")
    said = root.run("hemofed-aggregator-rollback", good=False)
    assert "expected a database of another revision" in said
    assert f"{OLD} cannot use what {NEW} has written" in said
    assert running(root) == {UNIT: NEW}
    assert root.run("readlink /opt/hemofed-aggregator/current").split() == [NEW]
    root.run(f"mv {STATE} {STATE}.newer")
    assert f"{NEW} -> {OLD}" in root.run("hemofed-aggregator-rollback")


def test_both_packages_live_on_one_host_and_each_leaves_the_other_alone(root: Root) -> None:
    install(root, OLD, "hemofed-site")
    root.run(f"systemctl start {' '.join([UNIT, *UNITS])}; : >/var/log/systemctl")
    install(root, NEW)
    assert running(root) == {UNIT: NEW, UNITS[0]: OLD, UNITS[1]: OLD}
    assert f"restart {UNITS[0]}" not in root.run("cat /var/log/systemctl")
    root.run("HEMOFED_SEARCH_S=0.001 dpkg --purge hemofed-site")
    assert running(root) == {UNIT: NEW}
    assert root.run("hemofed-aggregator --version").split() == [NEW]
    assert root.run("ls /etc/hemofed").split() == ["aggregator.toml"]
    assert root.run(f"cat {STATE}/ca/ca.key").split() == ["key"]
    assert f"{NEW} -> {OLD}" in root.run("hemofed-aggregator-rollback")


def test_the_purge_of_the_aggregator_leaves_a_hospital_on_that_host_as_it_is(root: Root) -> None:
    install(root, OLD, "hemofed-site")
    root.run(f"systemctl start {' '.join([UNIT, *UNITS])}")
    root.run("dpkg --purge hemofed-aggregator")
    assert running(root) == {UNITS[0]: OLD, UNITS[1]: OLD}
    assert "hemofed-aggregator" not in root.run("getent passwd; getent group")
    assert "hemofed-agent" in root.run("getent passwd")
    assert root.run("hemofed-site --version").split() == [OLD]
    assert root.run("ls /etc/hemofed").split() == ["site.toml"]


def test_purge_says_that_the_ca_is_gone_and_leaves_nothing(root: Root) -> None:
    assert "the consortium's CA is deleted now" in root.run("dpkg --purge hemofed-aggregator")
    assert "hemofed" not in root.run("getent passwd; getent group")
    places = "/etc /opt /usr/bin /usr/sbin /usr/lib /lib/systemd /var/lib /var/cache"
    assert root.run(f"find {places} -xdev -name '*hemofed*' -not -path '/var/lib/dpkg/*'") == ""


def test_purge_keeps_the_account_locked_while_a_backup_carries_its_number(root: Root) -> None:
    root.run("mkdir -p /data/backup && echo key >/data/backup/ca.key && chown hemofed-aggregator /data/backup/ca.key")
    said = root.run("dpkg --purge hemofed-aggregator")
    assert "stay, locked: a file outside has one of their numbers" in said
    assert "could get a number that may read a backup of the keys" in said
    assert root.run("getent shadow hemofed-aggregator").split(":")[1].startswith("!")


def test_removal_stops_the_service_and_keeps_the_state(root: Root) -> None:
    root.run(f"systemctl start {UNIT}")
    root.run("dpkg --remove hemofed-aggregator")
    assert root.run("ls /var/active").split() == []
    assert root.run(f"ls -d {STATE}/ca /etc/hemofed/aggregator.toml").count("\n") == 2
    assert "hemofed-aggregator" in root.run("getent passwd")
