"""Who the sites are: names and keys, signed by the custodian, in an epoch that only grows.

A site keeps the newest roster it has accepted. Nothing the aggregator says during a round may stand in for it.
"""

from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from federation.errors import RosterRefused
from federation.limits import is_site_name
from federation.signing import sign, verify
from federation.v1 import enrolment_pb2
from federation.wire import parse, serialize

SITES_MAX = 10_000
SIGNING_KEY_BYTES = 32
SEALING_KEY_BYTES = 1216

_DOMAIN = "hemofed roster v1"


@dataclass(frozen=True)
class RosterEntry:
    """One site.

    Attributes:
        site: Its name.
        signing_key: Ed25519 public key, 32 bytes.
        sealing_key: HPKE X-Wing public key, 1216 bytes.

    Raises:
        RosterRefused: The name or a key's length is wrong.
    """

    site: str
    signing_key: bytes
    sealing_key: bytes

    def __post_init__(self) -> None:
        if not is_site_name(self.site):
            raise RosterRefused(f"expected a site name, got {self.site[:40]!r}")
        for what, key, size in (
            ("signing", self.signing_key, SIGNING_KEY_BYTES),
            ("sealing", self.sealing_key, SEALING_KEY_BYTES),
        ):
            if len(key) != size:
                raise RosterRefused(f"site {self.site}: expected a {what} key of {size} bytes, got {len(key)}")


@dataclass(frozen=True)
class Roster:
    """The sites of one epoch, sorted by name.

    Raises:
        RosterRefused: A name or a key stands twice, the order is another, or there are too many sites.
    """

    epoch: int
    entries: tuple[RosterEntry, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.epoch < 2**63:
            raise RosterRefused(f"expected an epoch of at least 1, got {self.epoch}")
        if len(self.entries) > SITES_MAX:
            raise RosterRefused(f"expected at most {SITES_MAX} sites, got {len(self.entries)}")
        names = [entry.site for entry in self.entries]
        if names != sorted(set(names)):
            raise RosterRefused("expected sites sorted by name without repeats")
        for keys in ({entry.signing_key for entry in self.entries}, {entry.sealing_key for entry in self.entries}):
            if len(keys) != len(self.entries):
                raise RosterRefused("expected a key of its own for every site, got one key for two")

    @classmethod
    def from_bytes(cls, data: bytes) -> "Roster":
        """Parses the canonical bytes of a roster.

        Raises:
            Malformed: The bytes are not a canonical Roster.
            RosterRefused: An entry is bad.
        """
        message = parse(enrolment_pb2.Roster, data)
        entries = tuple(RosterEntry(one.site, one.signing_key, one.sealing_key) for one in message.sites)
        return cls(message.epoch, entries)

    def to_bytes(self) -> bytes:
        """Returns the canonical bytes. The custodian signs them."""
        sites = [
            enrolment_pb2.RosterEntry(site=one.site, signing_key=one.signing_key, sealing_key=one.sealing_key)
            for one in self.entries
        ]
        return serialize(enrolment_pb2.Roster(epoch=self.epoch, sites=sites))

    @cached_property
    def signing_keys(self) -> dict[str, bytes]:
        """Ed25519 public key by site."""
        return {entry.site: entry.signing_key for entry in self.entries}


def sign_roster(roster: Roster, custodian: Ed25519PrivateKey) -> enrolment_pb2.SignedRoster:
    """The roster as it travels."""
    data = roster.to_bytes()
    return enrolment_pb2.SignedRoster(roster=data, signature=sign(custodian, _DOMAIN, data))


def verify_roster(signed: enrolment_pb2.SignedRoster, custodian: Ed25519PublicKey, epoch_held: int = 0) -> Roster:
    """Checks the custodian's signature, then parses the roster. No byte is parsed before.

    Args:
        signed: The roster as it travels.
        custodian: The custodian's public key.
        epoch_held: The epoch that the site holds. An older roster is refused: with it an aggregator could bring back a
            removed site.

    Raises:
        BadSignature: The custodian did not sign these bytes.
        Malformed: The bytes are not a canonical Roster.
        RosterRefused: An entry is bad, or the epoch is older than `epoch_held`.
    """
    verify(custodian, _DOMAIN, signed.roster, signed.signature)
    roster = Roster.from_bytes(signed.roster)
    if roster.epoch < epoch_held:
        raise RosterRefused(f"expected a roster of epoch {epoch_held} or later, got epoch {roster.epoch}")
    return roster
