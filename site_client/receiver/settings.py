"""Settings of the receiver, read from receiver.toml. deploy/receiver.toml documents every key.

A file of its own: site.toml may hold the password of a proxy, and the receiver's user must not read it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from msgspec import Meta

from site_client.errors import ConfigRefused
from site_client.toml_settings import parse_settings, read_text
from site_client.windows import WindowRefused, parse_window

DEFAULT_FILE: Final = Path("/etc/hemofed/receiver.toml")
_FILE: Final = "receiver.toml"
_TITLE: Final = re.compile(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?")  # PS3.5 section 6.2, AE: no backslash
_KEYWORD: Final = re.compile(r"[A-Z0-9_ ]{1,16}")  # PS3.5 section 6.2, CS
Network: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True)
class StorageSettings:
    """The C-STORE listener. Without senders there is none."""

    port: Annotated[int, Meta(ge=1, le=65_535)] = 11_112
    address: str = "0.0.0.0"  # noqa: S104  # the LAN's interface; senders are bounded by `senders` and by the unit
    title: str = "HEMOFED"
    senders: dict[str, tuple[str, ...]] = field(default_factory=dict)
    commitment: dict[str, str] = field(default_factory=dict)
    accept: Literal["ct", "all"] = "ct"
    associations_max: Annotated[int, Meta(ge=1, le=64)] = 8
    idle_s: Annotated[float, Meta(ge=1, le=3_600)] = 60.0

    def __post_init__(self) -> None:
        """Check titles and addresses."""
        for title in (self.title, *self.senders, *self.commitment):
            _require(bool(_TITLE.fullmatch(title)), f"an AE title is 1 to 16 printable characters, got {title!r}")
        _require(_is_ip(self.address), f"storage.address is an IP address of this machine, got {self.address!r}")
        for title, addresses in self.senders.items():
            _require(bool(addresses), f"storage.senders names the addresses of {title}, got none")
            for text in addresses:
                _network(f"storage.senders of {title}", text)
        for title, peer in self.commitment.items():
            _require(title in self.senders, f"storage.commitment: {title} is not in storage.senders")
            host, _, port = peer.rpartition(":")
            _require(
                _is_ip(host.strip("[]")) and port.isdigit() and 0 < int(port) < 65_536,
                f"storage.commitment of {title} is an IP address and a port, as in 10.1.2.3:104, got {peer!r}",
            )

    @property
    def networks(self) -> dict[str, tuple[Network, ...]]:
        """The addresses of each title."""
        return {title: tuple(ip_network(text) for text in texts) for title, texts in self.senders.items()}


@dataclass(frozen=True)
class DicomwebSettings:
    """The pull from a DICOMweb server. Without a URL there is none."""

    url: str = ""
    body_parts: tuple[str, ...] = ()
    days_back: Annotated[int, Meta(ge=1, le=36_500)] = 3
    every_s: Annotated[float, Meta(ge=1, le=86_400)] = 900.0
    windows: tuple[str, ...] = ()
    concurrency: Annotated[int, Meta(ge=1, le=8)] = 2
    kib_s: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    stall_s: Annotated[float, Meta(ge=1, le=3_600)] = 60.0
    ca_file: str = ""
    credential: Literal["none", "basic", "bearer"] = "none"
    credential_file: str = "/etc/hemofed/receiver.credential"

    def __post_init__(self) -> None:
        """Check the URL, the windows and the body parts."""
        for text in self.windows:
            try:
                parse_window(text)
            except WindowRefused as error:
                raise ConfigRefused(f"{_FILE}: dicomweb.windows: {error}") from error
        for part in self.body_parts:
            _require(bool(_KEYWORD.fullmatch(part)), f"dicomweb.body_parts holds words such as HEAD, got {part!r}")
        if not self.url:
            return
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        # Never repeated: a person may have put a password into it.
        plain = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and port != 0
        _require(
            bool(plain and not parts.query and not parts.fragment),
            "dicomweb.url is https://host[:port]/path, without user and password (credential_file)",
        )
        is_open = parts.scheme == "http" and self.credential != "none"
        _require(not is_open, "dicomweb.credential needs an https:// url: http:// would show it to the network")


@dataclass(frozen=True)
class ReceiverSettings:
    """All of receiver.toml."""

    incoming: Path = Path("/srv/hemofed/export/received")
    state: Path = Path("/var/lib/hemofed-receiver")
    taken: Path = Path("/var/lib/hemofed/trainer/taken")
    keep_days: Annotated[int, Meta(ge=0, le=36_500)] = 365
    disk_free_min_gib: Annotated[float, Meta(ge=0, le=100_000)] = 10.0
    object_max_mib: Annotated[int, Meta(ge=1, le=4_096)] = 2_048
    storage: StorageSettings = field(default_factory=StorageSettings)
    dicomweb: DicomwebSettings = field(default_factory=DicomwebSettings)

    def __post_init__(self) -> None:
        """Check a bound that spans two sections."""
        # A study that was removed here and is still within the days asked for would be fetched again, for ever.
        _require(
            not (self.dicomweb.url and self.keep_days) or self.keep_days > self.dicomweb.days_back,
            f"keep_days is above dicomweb.days_back = {self.dicomweb.days_back}, or 0, got {self.keep_days}",
        )

    @property
    def is_configured(self) -> bool:
        """Whether there is a source."""
        return bool(self.storage.senders or self.dicomweb.url)

    @property
    def object_max_bytes(self) -> int:
        """`object_max_mib` in bytes."""
        return self.object_max_mib << 20

    @property
    def disk_free_min_bytes(self) -> int:
        """`disk_free_min_gib` in bytes."""
        return int(self.disk_free_min_gib * (1 << 30))

    def peers(self) -> Iterator[Network]:
        """Yield every address that the receiver talks to and that is known without a resolver."""
        for networks in self.storage.networks.values():
            yield from networks
        for peer in self.storage.commitment.values():
            yield ip_network(peer.rpartition(":")[0].strip("[]"))
        host = urlsplit(self.dicomweb.url).hostname or ""
        if _is_ip(host):
            yield ip_network(host)


def load(path: Path) -> ReceiverSettings:
    """Read and check a receiver.toml.

    Raises:
        ConfigRefused: The file cannot be read or used.
    """
    return parse(read_text(path), path.parent)


def parse(text: str, base: Path) -> ReceiverSettings:
    """Read and check the text of a receiver.toml; relative paths start from `base`.

    Raises:
        ConfigRefused: The text cannot be used.
    """
    return parse_settings(ReceiverSettings, text, base, _FILE)


def _network(key: str, text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError:
        raise ConfigRefused(f"{_FILE}: {key} is an IP address or a network such as 10.1.2.0/24, got {text!r}") from None


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ConfigRefused(f"{_FILE}: {sentence}")
