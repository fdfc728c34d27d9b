"""Checks of the optional receiver: its settings, who may send, its folder, its port, its disk, and its firewall.

Made by root: the receiver's user reads no settings of the site, and the site's users read none of the receiver.
"""

import grp
import os
import re
import stat
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from site_client.check_result import CheckResult, green, grey, red
from site_client.config import SiteSettings
from site_client.doctor.units import UNIT_FOLDERS, drop_ins, is_enabled
from site_client.errors import ConfigRefused
from site_client.received_files import RECEIVED
from site_client.receiver.settings import Network, ReceiverSettings, load

UNIT: Final = "hemofed-receiver"
_CHECK: Final = "receiver"
_LISTENING: Final = "0A"  # TCP_LISTEN in /proc/net/tcp, proc(5)
_GIB: Final = 1 << 30
_TRAINER: Final = "hemofed-trainer"


def check_receiver(
    site: SiteSettings, config: Path, folders: tuple[Path, ...] = UNIT_FOLDERS, proc: Path = Path("/proc")
) -> Iterator[CheckResult]:
    """Check the receiver, where there is one.

    Args:
        site: The site's settings.
        config: The receiver.toml.
        folders: Of units and their drop-ins.
        proc: The mounted proc(5).
    """
    if not config.exists():
        yield grey(_CHECK, "there is no receiver.toml: no receiver is set up")
        return
    try:
        settings = load(config)
    except ConfigRefused as error:
        yield red(_CHECK, str(error), "Correct receiver.toml", local=True)
        return
    if not settings.is_configured:
        yield grey(_CHECK, "not configured: nobody may send, and nothing is fetched", "Edit receiver.toml to use it")
        return
    yield from check_folder(site, settings)
    yield from check_disk(settings)
    yield from check_allowed(site, settings, folders)
    if settings.dicomweb.credential != "none":
        yield _check_credential(Path(settings.dicomweb.credential_file))
    if settings.storage.senders:
        yield _check_port(settings.storage.port, proc, runs=is_enabled(UNIT))


def check_folder(site: SiteSettings, settings: ReceiverSettings) -> Iterator[CheckResult]:
    """Check the incoming folder: only the trainer and its group read it, as a part of the export."""
    incoming, check = settings.incoming, "receiver's folder"
    if incoming not in (site.folders.export, site.folders.export / RECEIVED):
        fix = f"Set incoming in receiver.toml to folders.export or to {RECEIVED} in it"
        yield red(check, "the trainer does not read the folder `incoming`", fix)
    if settings.taken != site.folders.trainer / "taken":
        yield red(check, "`taken` is not where the trainer answers", "Set taken to <folders.state>/trainer/taken")
    try:
        state = incoming.stat()
    except OSError as error:
        why = os.strerror(error.errno or 0).lower()
        yield red(check, f"`incoming` cannot be looked at ({why})", "systemd-tmpfiles --create hemofed.conf")
        return
    mode, fix = stat.S_IMODE(state.st_mode), "chown hemofed-receiver:hemofed-export and chmod 2750 it"
    if mode & 0o027 or not mode & stat.S_ISGID:
        yield red(check, f"its mode is {mode:04o}; 2750 is wanted", fix)
    elif not _reads(_TRAINER, state.st_gid):
        yield red(check, f"{_TRAINER} is not in its group", fix)
    else:
        yield green(check, "read by the trainer, written by the receiver alone")


def check_disk(settings: ReceiverSettings) -> Iterator[CheckResult]:
    """Check that the disk has more free than the limit below which nothing is stored."""
    try:
        figures = os.statvfs(settings.incoming)
    except OSError:
        return  # said by `check_folder`
    free_gib = figures.f_bavail * figures.f_frsize / _GIB
    if free_gib < settings.disk_free_min_gib:
        fix = f"Free {settings.disk_free_min_gib - free_gib:.1f} GiB, or lower keep_days"
        yield red("receiver's disk", f"{free_gib:.1f} GiB free: senders are told to keep their images", fix)
    else:
        yield green("receiver's disk", f"{free_gib:.0f} GiB free")


def check_allowed(site: SiteSettings, settings: ReceiverSettings, folders: tuple[Path, ...]) -> Iterator[CheckResult]:
    """Check that the unit lets exactly the peers of receiver.toml through, and not the aggregator."""
    check, peers = "receiver's peers", sorted(set(settings.peers()), key=str)
    text = "\n".join(path.read_text(errors="replace") for path in drop_ins(UNIT, folders))
    allowed = list(_networks(text))
    fix = f"systemctl edit {UNIT}: [Service] IPAddressAllow={' '.join(map(str, peers))}"
    if not settings.storage.senders:
        yield grey(check, "storage.senders is empty: there is no listener")
    lacking = sum(not any(_covers(network, peer) for network in allowed) for peer in peers)
    if lacking:
        yield red(
            check, f"the unit lets {lacking} of {len(peers)} addresses of receiver.toml not through", fix, local=True
        )
    wide = [network for network in allowed if not any(_covers(peer, network) for peer in peers)]
    host = urlsplit(settings.dicomweb.url).hostname
    if wide and (host is None or _literal(host)):
        yield red(check, f"the unit lets {len(wide)} addresses through that are not in receiver.toml", fix, local=True)
    aggregator = site.aggregator.address.rpartition(":")[0].strip("[]")
    if _literal(aggregator) and any(_covers(network, ip_network(aggregator)) for network in allowed):
        yield red(check, "the unit lets the receiver reach the coordinator", fix, local=True)
    if host is not None and not _literal(host):
        words = "dicomweb.url has a name: it must resolve without a network, or the resolver be let through"
        yield grey(check, words, "Write the name into /etc/hosts, and its address into IPAddressAllow=")
    if not lacking and not wide:
        yield green(check, f"the unit lets {len(peers)} addresses through, those of receiver.toml")


def _check_credential(path: Path) -> CheckResult:
    check, fix = "receiver's credential", "chown root:hemofed-receiver and chmod 0640 the file"
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return red(check, f"credential_file cannot be looked at ({os.strerror(error.errno or 0).lower()})", fix)
    if mode & 0o027:
        return red(check, f"its mode is {mode:04o}; 0640 is wanted", fix)
    return green(check, "read by the receiver alone")


def _check_port(port: int, proc: Path, *, runs: bool) -> CheckResult:
    lines = [line.split() for name in ("tcp", "tcp6") for line in _lines(proc / "net" / name)[1:]]
    if any(line[3] == _LISTENING and int(line[1].rpartition(":")[2], 16) == port for line in lines):
        return green("receiver's port", f"{port} is listened at")
    if runs:
        return red("receiver's port", f"nobody listens at {port}", f"journalctl -u {UNIT} says why")
    return grey("receiver's port", f"{UNIT} does not run", f"systemctl enable --now {UNIT}")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _reads(user: str, group: int) -> bool:
    """Whether a user is in a group. True where there is no such user: then no unit is installed here."""
    try:
        entry = grp.getgrgid(group)
    except KeyError:
        return False
    known = any(user in other.gr_mem for other in grp.getgrall())
    return not known or user in entry.gr_mem


def _networks(text: str) -> Iterator[Network]:
    """Yield the addresses of IPAddressAllow=; an empty one takes those before it back, systemd.resource-control(5)."""
    words: list[str] = []
    for value in re.findall(r"^[ \t]*IPAddressAllow[ \t]*=(.*)$", text, re.MULTILINE):
        words = [*words, *value.split()] if value.strip() else []
    aliases = {"any": ["0.0.0.0/0", "::/0"], "localhost": ["127.0.0.0/8", "::1"]}
    for word in words:
        for name in aliases.get(word, [word]):
            try:
                yield ip_network(name, strict=False)
            except ValueError:
                continue


def _covers(network: Network, other: Network) -> bool:
    return network.version == other.version and other.subnet_of(network)  # type: ignore[arg-type]  # one version


def _literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
