"""The roster: names and keys of the sites, signed by the custodian, in an epoch that only grows.

A site keeps the newest roster it has accepted. Nothing the aggregator says during a round may stand in for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from federation.errors import BadSignature, RosterRefused
from federation.hpke import SEALING_KEY_BYTES
from federation.limits import is_site_name
from federation.signing import Signer, sign, verify
from federation.v1 import enrolment_pb2
from federation.wire import parse, serialize

SITES_MAX = 10_000
SIGNING_KEY_BYTES = 32

_DOMAIN = "hemofed roster v1"
_SUCCESSION_DOMAIN = "hemofed custodian v1"
ROSTER_DAYS: Final = 180  # a roster's life
ROSTER_WARNING_DAYS: Final = 30  # before its end, both sides say so every day


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

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 over both keys, 32 bytes; people compare its first hexadecimal digits."""
        return sha256(self.signing_key + self.sealing_key).digest()


@dataclass(frozen=True)
class Roster:
    """The sites of one epoch, sorted by name.

    Attributes:
        epoch: From 1 to 2^63 - 1.
        entries: At most 10,000.
        created_at_s: Unix time in seconds; 0 in a roster of version 0.1.0.
        expires_at_s: Likewise.

    Raises:
        RosterRefused: A name or a key stands twice, the order is another, or there are too many sites.
    """

    epoch: int
    entries: tuple[RosterEntry, ...]
    created_at_s: int = 0
    expires_at_s: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.epoch < 2**63:
            raise RosterRefused(f"expected an epoch of at least 1, got {self.epoch}")
        if (self.created_at_s, self.expires_at_s) != (0, 0) and not 0 < self.created_at_s < self.expires_at_s < 2**63:
            raise RosterRefused(
                f"expected a roster that begins before it ends, got {self.created_at_s} to {self.expires_at_s}"
            )
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
        entries = tuple(RosterEntry(entry.site, entry.signing_key, entry.sealing_key) for entry in message.sites)
        return cls(message.epoch, entries, message.created_at_s, message.expires_at_s)

    def to_bytes(self) -> bytes:
        """Returns the canonical bytes. The custodian signs them."""
        sites = [
            enrolment_pb2.RosterEntry(site=entry.site, signing_key=entry.signing_key, sealing_key=entry.sealing_key)
            for entry in self.entries
        ]
        return serialize(
            enrolment_pb2.Roster(
                epoch=self.epoch, sites=sites, created_at_s=self.created_at_s, expires_at_s=self.expires_at_s
            )
        )

    def has_expired(self, now: datetime) -> bool:
        """Tells whether the roster has ended at `now`, aware UTC. A roster of version 0.1.0 never ends.

        An aggregator could otherwise withhold for ever a newer roster that removes a site.
        """
        return 0 < self.expires_at_s <= now.timestamp()

    @property
    def expires_at(self) -> datetime | None:
        """The roster's end, aware UTC; None for one of version 0.1.0."""
        return datetime.fromtimestamp(self.expires_at_s, UTC) if self.expires_at_s else None

    @cached_property
    def signing_keys(self) -> dict[str, bytes]:
        """Raw Ed25519 public keys by site, 32 bytes each."""
        return {entry.site: entry.signing_key for entry in self.entries}


def sign_roster(
    roster: Roster,
    custodian: Signer,
    successions: Sequence[enrolment_pb2.CustodianSuccession] = (),
) -> enrolment_pb2.SignedRoster:
    """Signs a roster with Ed25519 (RFC 8032): 64 bytes over a domain and the canonical roster.

    Args:
        roster: The roster.
        custodian: The custodian's newest key.
        successions: From older keys of the custodian to this one, oldest first.
    """
    data = roster.to_bytes()
    return enrolment_pb2.SignedRoster(roster=data, signature=sign(custodian, _DOMAIN, data), successions=successions)


def succeed(custodian: Signer, successor: Ed25519PublicKey) -> enrolment_pb2.CustodianSuccession:
    """Signs the custodian's new raw key of 32 bytes with the old one: Ed25519, 64 bytes."""
    key = successor.public_bytes_raw()
    return enrolment_pb2.CustodianSuccession(key=key, signature=sign(custodian, _SUCCESSION_DOMAIN, key))


def custodian_after(
    successions: Sequence[enrolment_pb2.CustodianSuccession], held: Ed25519PublicKey
) -> Ed25519PublicKey:
    """Follows the custodian's keys from the one that a site holds to the newest.

    A held key that no succession begins with stays: it is the newest, or a stranger's.

    Raises:
        BadSignature: An old key did not sign its successor.
    """
    key = held
    begun = False
    for succession in successions:
        try:
            verify(key, _SUCCESSION_DOMAIN, succession.key, succession.signature)
        except BadSignature:
            if begun:
                raise
            continue  # of an older key than the one held
        key, begun = Ed25519PublicKey.from_public_bytes(succession.key), True
    return key


def custodian_of(
    signed: enrolment_pb2.SignedRoster, anchor: Ed25519PublicKey, held: Ed25519PublicKey
) -> Ed25519PublicKey:
    """Finds the key that a roster has to be signed with.

    Args:
        signed: The roster as it travels.
        anchor: The key of the custodian's certificate.
        held: The newest key that the reader has accepted; `anchor` before the first succession.

    Raises:
        BadSignature: An old key did not sign its successor.
        RosterRefused: The successions do not lead from `anchor` to the key that follows `held`. A stolen old key could
            otherwise be used again, and a reader that stores the roster could not verify it from `anchor` alone.
    """
    key = custodian_after(signed.successions, held)
    if custodian_after(signed.successions, anchor) != key:
        raise RosterRefused("expected a roster of the custodian's newest key, got one of an older key or of a stranger")
    return key


def verify_roster(signed: enrolment_pb2.SignedRoster, custodian: Ed25519PublicKey, epoch_held: int = 0) -> Roster:
    """Checks the custodian's signature, then parses the roster. No byte is parsed before.

    Args:
        signed: The roster as it travels.
        custodian: The custodian's public key, from `custodian_of`.
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
