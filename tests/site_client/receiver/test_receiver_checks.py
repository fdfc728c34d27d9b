"""What doctor and prove say of the receiver."""

import socket
from pathlib import Path

import pytest

from site_client.check_result import CheckResult, Color
from site_client.config import AggregatorAddress, FoldersSettings, SiteSettings
from site_client.doctor.receiver import check_receiver
from site_client.doctor.units import check_units, weakens
from site_client.prove.attempts import of_receiver
from site_client.prove.confined import assess_attempts
from site_client.prove.finding import ProofOutcome
from site_client.receiver.settings import parse

SENDERS = 'senders = { NORTH = ["10.1.2.3"], SOUTH = ["10.1.3.0/24"] }'


@pytest.fixture
def site(tmp_path: Path) -> SiteSettings:
    received = tmp_path / "export" / "received"
    received.mkdir(parents=True)
    received.chmod(0o2750)
    folders = FoldersSettings(tmp_path / "state", tmp_path / "spool", tmp_path / "export", (), tmp_path / "cache")
    return SiteSettings("mercy", AggregatorAddress("192.0.2.7:8443"), folders)


def checked(site: SiteSettings, text: str = "", drop_in: str = "") -> dict[str, CheckResult]:
    """The results by name; of several, the red one."""
    folder = site.folders.export.parent
    config, units = folder / "receiver.toml", folder / "units"
    config.write_text(
        f'incoming = "export/received"\ntaken = "state/trainer/taken"\ndisk_free_min_gib = 0.0\n[storage]\n{text}'
    )
    (units / "hemofed-receiver.service.d").mkdir(parents=True, exist_ok=True)
    (units / "hemofed-receiver.service.d" / "peers.conf").write_text(f"[Service]\n{drop_in}\n")
    results = sorted(check_receiver(site, config, (units,)), key=lambda result: result.color is Color.RED)
    return {result.check: result for result in results}


def test_a_receiver_that_is_not_in_use_is_no_fault(site: SiteSettings) -> None:
    assert checked(site)["receiver"].color is Color.GREY
    (result,) = check_receiver(site, site.folders.export / "nowhere.toml")
    assert result.color is Color.GREY
    assert checked(site, "senderz = {}")["receiver"].color is Color.RED
    optional = [result for result in check_units((Path("/nowhere"),)) if "receiver" in result.found]
    assert [result.color for result in optional] == [Color.GREY]


def test_the_unit_must_let_exactly_the_peers_through_and_the_drop_in_is_printed(site: SiteSettings) -> None:
    check = "receiver's peers"
    lacking = checked(site, SENDERS)[check]
    assert (lacking.color, "2 of 2 addresses" in lacking.found) == (Color.RED, True)
    assert lacking.fix.endswith("IPAddressAllow=10.1.2.3/32 10.1.3.0/24")
    assert checked(site, SENDERS, "IPAddressAllow=10.1.2.3/32 10.1.3.0/24")[check].color is Color.GREEN
    for wide in ("10.0.0.0/8", "10.1.2.3 10.1.3.0/24 10.9.9.9"):
        assert "not in receiver.toml" in checked(site, SENDERS, f"IPAddressAllow={wide}")[check].found
    assert "reach the coordinator" in checked(site, SENDERS, "IPAddressAllow=any")[check].found
    same_network = checked(site, 'senders = { NORTH = ["192.0.2.0/24"] }', "IPAddressAllow=192.0.2.0/24")[check]
    assert "reach the coordinator" in same_network.found
    taken_back = "IPAddressAllow=any\nIPAddressAllow=\nIPAddressAllow=10.1.2.3 10.1.3.0/24"
    assert checked(site, SENDERS, taken_back)[check].color is Color.GREEN


def test_a_drop_in_that_opens_the_receiver_s_wall_is_named() -> None:
    unit = "hemofed-receiver"
    assert list(weakens(unit, "IPAddressAllow=10.1.2.3")) == []
    for line in ("IPAddressAllow=any", "IPAddressDeny=", "TemporaryFileSystem=", "User=root"):
        assert list(weakens(unit, line)) == [line.partition("=")[0]]


def test_modes_and_place_of_the_folder_are_checked(site: SiteSettings) -> None:
    check, folder = "receiver's folder", site.folders.export / "received"
    assert checked(site, SENDERS)[check].color is Color.GREEN
    for mode in (0o2755, 0o2770, 0o0750, 0o2777):
        folder.chmod(mode)
        assert f"its mode is {mode:04o}" in checked(site, SENDERS)[check].found
    folder.rmdir()
    assert "no such file" in checked(site, SENDERS)[check].found
    elsewhere = SiteSettings("mercy", folders=FoldersSettings(export=Path("/elsewhere")))
    lines = list(check_receiver(elsewhere, folder.parent.parent / "receiver.toml", ()))
    assert any("the trainer does not read" in line.found for line in lines)


def test_a_low_disk_a_silent_port_and_an_open_credential_are_named(site: SiteSettings) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        assert checked(site, f"{SENDERS}\nport = {port}")["receiver's port"].color is Color.GREY
        listening.listen()
        assert checked(site, f"{SENDERS}\nport = {port}")["receiver's port"].color is Color.GREEN
    assert checked(site, SENDERS)["receiver's disk"].color is Color.GREEN
    config = site.folders.export.parent / "receiver.toml"
    config.write_text(config.read_text().replace("disk_free_min_gib = 0.0", "disk_free_min_gib = 90000.0"))
    lines = {line.check: line for line in check_receiver(site, config, ())}
    assert "told to keep their images" in lines["receiver's disk"].found
    secret = site.folders.export / "credential"
    secret.write_text("token")
    secret.chmod(0o644)
    web = f'{SENDERS}\n[dicomweb]\nurl = "https://pacs.example"\ncredential = "bearer"\ncredential_file = "{secret}"'
    assert "its mode is 0644" in checked(site, web)["receiver's credential"].found
    secret.chmod(0o640)
    assert checked(site, web)["receiver's credential"].color is Color.GREEN


def test_without_confinement_the_receiver_s_forbidden_attempts_succeed(site: SiteSettings) -> None:
    """On a machine without any wall the claim is broken: the probe does try."""
    site.folders.agent.mkdir(parents=True)
    settings = parse(f'incoming = "{site.folders.export / "received"}"', Path("/"))
    attempts = list(of_receiver(settings, "127.0.0.1", [site.folders.agent]))
    answers = {attempt.what: attempt.answer for attempt in attempts}
    assert answers["send a packet to the coordinator"] is None
    assert answers[f"look into {site.folders.agent}"] is None
    assert answers["write into its own folder"] is None
    assert assess_attempts("a claim", attempts).outcome is ProofOutcome.BROKEN
    assert list((site.folders.export / "received").iterdir()) == []
