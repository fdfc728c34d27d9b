"""The identity of this site and its anchors of trust: keys, certificate, the consortium's CA, custodian, roster.

    <state>/agent/identity/
      signing.key  sealing.key   made here, never leave
      joining.key  joining.csr   from the first join call until it is answered: a repeated call sends the same bytes
      ca.pem  custodian.pem  roster.bin  membership.json
      approved.json  seen.json   the hospitals known here, see `known_sites`
      tls.pem                    key and certificate in one file, so that no crash can pair the wrong two; written
                                 last: a site is enrolled when it is there
      left                       the day on which this host left, until it joins again

Trust starts at the CA fingerprint in the token. The CA vouches for the custodian, the custodian signs rosters. A roster
may bring the custodian's newer keys, each signed by the one before; this site follows them and never goes back.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID
from federation.errors import FederationError
from federation.limits import MESSAGE_BYTES_MAX, SITE_NAME
from federation.roster import Roster, custodian_of, verify_roster
from federation.v1 import enrolment_pb2
from federation.wire import parse, serialize
from msgspec import Meta

from site_client.agent.identity import keys
from site_client.agent.identity.keys import Request, SiteKeys
from site_client.agent.identity.known_sites import KnownSites
from site_client.errors import IdentityRefused, StateUnreadable
from site_client.files import private_folder, remove, replace_file, sync_folder
from site_client.typed_json import SIZE_MAX, Digest, decode_state, encode_state
from site_client.untrusted_files import read_regular

_CERTIFICATE_BEGINS = b"-----BEGIN CERTIFICATE-----"
_LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class Membership:
    """The facts agreed at join."""

    site: Annotated[str, Meta(pattern=rf"^{SITE_NAME.pattern}\Z")]
    enrolment_address: Annotated[str, Meta(min_length=1, max_length=300)]
    ca_fingerprint: Digest


class SiteIdentity:
    """An enrolled site. Reads everything once; roster and certificate are replaced on disk and here together.

    A damaged tls.pem is no obstacle: the signing key can have another certificate issued (`certificates`). Until then
    this site has none.

    Attributes:
        tls_damage: A clause about a damaged tls.pem; empty otherwise.
    """

    def __init__(self, folder: Path) -> None:
        """Read and verify every file.

        Raises:
            IdentityRefused: This host has not joined, or a file does not verify.
        """
        self._folder = folder
        if not (folder / "tls.pem").exists():
            day = left_on(folder)
            if day is None:
                raise IdentityRefused("this host is not enrolled; run `hemofed-site join ADDRESS TOKEN` first")
            raise IdentityRefused(
                f"this host left on {day}; to come back, ask for an invitation and run "
                "`hemofed-site join ADDRESS TOKEN`"
            )
        self.keys: SiteKeys = keys.load(folder)
        # In the order of trust: the fingerprint from the token, the CA it names, the custodian's certificate that the
        # CA issued, the roster that the custodian signed.
        self.membership = _read_membership(folder / "membership.json")
        with _intact("ca.pem"):
            self.ca_pem = read_regular(folder / "ca.pem", SIZE_MAX)
            self._ca = _pinned_ca(self.ca_pem, self.membership.ca_fingerprint)
        with _intact("custodian.pem"):
            self._anchor = _custodian_key(read_regular(folder / "custodian.pem", SIZE_MAX), self._ca)
        with _intact("roster.bin"):
            signed = parse(enrolment_pb2.SignedRoster, read_regular(folder / "roster.bin", MESSAGE_BYTES_MAX))
            # The stored roster brings the whole chain from the certificate's key: the newest key needs no file.
            self.custodian = custodian_of(signed, self._anchor, held=self._anchor)
            self.roster: Roster = verify_roster(signed, self.custodian)
        with _intact("signing.key or sealing.key"):
            _check_own_entry(self.roster, self.site, self.keys)
        self.known_sites = KnownSites(folder)
        self.tls_damage = ""
        self._load_tls()

    @property
    def site(self) -> str:
        """This site's name in the consortium."""
        return self.membership.site

    @property
    def expires_at(self) -> datetime:
        """End of the TLS certificate, aware UTC; long ago where there is none."""
        return _LONG_AGO if self._certificate is None else self._certificate.not_valid_after_utc

    @property
    def valid_from(self) -> datetime:
        """Beginning of the TLS certificate, aware UTC; the CA dates it back by some minutes."""
        return _LONG_AGO if self._certificate is None else self._certificate.not_valid_before_utc

    def renewal_due(self) -> datetime:
        """Return two thirds into the certificate's life plus up to a twentieth of it, the same at every restart."""
        if self._certificate is None:
            return _LONG_AGO
        starts, ends = self.valid_from, self.expires_at
        # From the certificate, not drawn: a restart must not move the day, and sites must not renew all at once.
        spread = int.from_bytes(self._certificate.fingerprint(hashes.SHA256())[:4], "big") / 2**32
        return starts + (ends - starts) * (2 / 3 + spread / 20)

    def accept_roster(self, signed: enrolment_pb2.SignedRoster) -> Roster:
        """Keep a roster of a higher epoch that the custodian signed; the one already held changes nothing.

        Raises:
            BadSignature: The custodian did not sign it, or an old key of the custodian not its successor.
            RosterRefused: It is older than the one held, or of an older key of the custodian.
            IdentityRefused: It lacks this site's own keys, or is a second roster of one epoch.
        """
        custodian = custodian_of(signed, self._anchor, held=self.custodian)
        roster = verify_roster(signed, custodian, epoch_held=self.roster.epoch)
        # Two signed rosters of one epoch mean that the custodian's key is misused.
        if roster.epoch == self.roster.epoch:
            if roster != self.roster:
                raise IdentityRefused(f"expected one roster of epoch {roster.epoch}, got a second; call the custodian")
            return self.roster
        # A roster with other keys for this site would let another machine take its place.
        _check_own_entry(roster, self.site, self.keys)
        self.known_sites.keep(self.roster)
        # On disk before it is used: a restart must not return to an older epoch or an older key.
        replace_file(self._folder / "roster.bin", serialize(signed))
        self.roster, self.custodian = roster, custodian
        return roster

    def accept_certificate(self, request: Request, credentials: enrolment_pb2.Credentials) -> None:
        """Switch to a renewed certificate for the key in `request`.

        Raises:
            IdentityRefused: The certificate is not for this site and key, or not of the consortium's CA.
        """
        _check_certificate(credentials.certificate_pem, request, self.site, self._ca)
        # One file for key and certificate: a crash between two files would pair a key with another's certificate.
        replace_file(self._folder / "tls.pem", request.key_pem + credentials.certificate_pem)
        self._load_tls()
        if credentials.HasField("roster"):
            self.accept_roster(credentials.roster)

    def _load_tls(self) -> None:
        self.tls_key_pem: bytes | None = None
        self.certificate_pem: bytes | None = None
        self._certificate: x509.Certificate | None = None
        try:
            key, begins, rest = read_regular(self._folder / "tls.pem", SIZE_MAX).partition(_CERTIFICATE_BEGINS)
            certificate = x509.load_pem_x509_certificate(begins + rest)
            certificate.verify_directly_issued_by(self._ca)
            if serialization.load_pem_private_key(key, None).public_key() != certificate.public_key():
                raise ValueError("the key is of another certificate")
        except OSError as error:
            raise StateUnreadable.of("tls.pem", error) from error
        # cryptography raises these for text that is no PEM, and for a certificate that was changed.
        except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
            self.tls_damage = f"tls.pem is damaged ({type(error).__name__})"
            return
        self.tls_key_pem, self.certificate_pem, self._certificate = key, begins + rest, certificate
        self.tls_damage = ""


@dataclass(frozen=True)
class Joining:
    """A site that has keys and no certificate yet."""

    folder: Path
    site: str
    keys: SiteKeys
    request: Request

    @classmethod
    def prepare(cls, folder: Path, site: str) -> "Joining":
        """Make the keys and the request that are missing; a second call finds the same ones.

        Raises:
            IdentityRefused: This host is enrolled already.
        """
        if (folder / "tls.pem").exists():
            raise IdentityRefused("this host is enrolled already; to enrol it anew, move its identity folder away")
        private_folder(folder)
        key, csr = folder / "joining.key", folder / "joining.csr"
        if not (key.exists() and csr.exists()):
            fresh = keys.request_certificate(site)
            replace_file(key, fresh.key_pem)
            replace_file(csr, fresh.csr_der)
        try:
            request = Request(read_regular(key, SIZE_MAX), read_regular(csr, SIZE_MAX))
            owner = serialization.load_pem_private_key(request.key_pem, None)
            if x509.load_der_x509_csr(request.csr_der).public_key() != owner.public_key():
                raise ValueError("the key is of another request")
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
            raise IdentityRefused(
                "joining.key or joining.csr in the identity folder is damaged; move both away, ask the coordinator "
                "for a new invitation, and join with it"
            ) from None
        return cls(folder, site, keys.make_or_load(folder), request)

    def check(self, credentials: enrolment_pb2.Credentials, membership: Membership) -> tuple[Roster, Ed25519PublicKey]:
        """Verify everything against the token's CA, and keep nothing.

        Returns:
            The first roster, and the custodian's key that signed it.

        Raises:
            IdentityRefused: A certificate or the roster is not right for this host.
            BadSignature: The custodian did not sign the roster.
        """
        # Against the fingerprint in the token: everything else in this message came over the network.
        ca = _pinned_ca(credentials.ca_certificate_pem, membership.ca_fingerprint)
        _check_certificate(credentials.certificate_pem, self.request, self.site, ca)
        anchor = _custodian_key(credentials.custodian_certificate_pem, ca)
        custodian = custodian_of(credentials.roster, anchor, held=anchor)
        roster = verify_roster(credentials.roster, custodian)
        _check_own_entry(roster, self.site, self.keys)
        return roster, custodian

    def accept(self, credentials: enrolment_pb2.Credentials, membership: Membership) -> SiteIdentity:
        """Verify everything, then keep it. All hospitals of the roster are known from then on.

        Raises:
            IdentityRefused, BadSignature: As `check`.
        """
        roster, _ = self.check(credentials, membership)
        KnownSites(self.folder).approve(roster.entries)
        replace_file(self.folder / "ca.pem", credentials.ca_certificate_pem)
        replace_file(self.folder / "custodian.pem", credentials.custodian_certificate_pem)
        replace_file(self.folder / "roster.bin", serialize(credentials.roster))
        replace_file(self.folder / "membership.json", encode_state(membership))
        # Last: a site is enrolled when this file is there, and a crash before it leaves the site joining.
        replace_file(self.folder / "tls.pem", self.request.key_pem + credentials.certificate_pem)
        remove(self.folder / "joining.key")
        remove(self.folder / "joining.csr")
        remove(self.folder / "left")
        return SiteIdentity(self.folder)


def forget(folder: Path, now: datetime) -> None:
    """Remove TLS key and certificate of a host that has left. The signing key stays: the ledger needs it to verify."""
    replace_file(folder / "left", f"{now:%Y-%m-%d}".encode())
    remove(folder / "tls.pem")
    sync_folder(folder)


def left_on(folder: Path) -> str | None:
    """Return the day on which this host left; None when it has not, or has joined again."""
    has_left = (folder / "left").exists() and not (folder / "tls.pem").exists()
    if not has_left:
        return None
    try:
        return date.fromisoformat(read_regular(folder / "left", SIZE_MAX).decode()).isoformat()
    except (OSError, ValueError):
        return "a day that is no longer known"


def days_left(identity: SiteIdentity, now: datetime) -> float:
    """Return the days until the certificate ends; negative afterwards."""
    return (identity.expires_at - now) / timedelta(days=1)


@contextmanager
def _intact(name: str) -> Iterator[None]:
    """Say of a stored file that does not verify which one it is, and what to do."""
    try:
        yield
    except OSError as error:
        raise StateUnreadable.of(name, error) from error
    except (ValueError, FederationError, IdentityRefused) as error:
        raise IdentityRefused(
            f"{name} in the state folder is damaged ({error}); put the identity folder of the last backup back, or "
            "move it away, ask the coordinator for an invitation and run `hemofed-site join ADDRESS TOKEN`"
        ) from error


def _pinned_ca(pem: bytes, fingerprint: bytes) -> x509.Certificate:
    ca = _certificate(pem, "CA")
    if hashlib.sha256(ca.public_bytes(serialization.Encoding.DER)).digest() != fingerprint:
        raise IdentityRefused("the CA certificate is not the one the token names; ask the coordinator for a new token")
    return ca


def _custodian_key(pem: bytes, ca: x509.Certificate) -> Ed25519PublicKey:
    certificate = _certificate(pem, "custodian")
    _check_issued(certificate, ca, "custodian")
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise IdentityRefused("the custodian's certificate has no Ed25519 key; ask the coordinator")
    return key


def _check_certificate(pem: bytes, request: Request, site: str, ca: x509.Certificate) -> None:
    certificate = _certificate(pem, "site")
    _check_issued(certificate, ca, "site")
    wanted = x509.load_der_x509_csr(request.csr_der).public_key()
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    # The certificate must hold the key that was made here, or another party could speak for this site.
    if certificate.public_key() != wanted or [name.value for name in names] != [site]:
        raise IdentityRefused("the certificate is not for this host's name and key; ask the coordinator")


def _check_issued(certificate: x509.Certificate, ca: x509.Certificate, owner: str) -> None:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise IdentityRefused(f"the {owner} certificate was not issued by the consortium's CA") from error


def _check_own_entry(roster: Roster, site: str, own: SiteKeys) -> None:
    entries = [entry for entry in roster.entries if entry.site == site]
    ours = [(entry.signing_key, entry.sealing_key) for entry in entries]
    if ours != [(own.signing_public, own.sealing.public_bytes)]:
        raise IdentityRefused(f"the roster does not hold this site's own keys under {site!r}; call the custodian")


def _certificate(pem: bytes, owner: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise IdentityRefused(f"the {owner} certificate is not a PEM certificate; ask the coordinator") from error


def _read_membership(path: Path) -> Membership:
    try:
        return decode_state(Membership, read_regular(path, SIZE_MAX))
    except (OSError, ValueError) as error:
        raise IdentityRefused(
            "membership.json in the state folder is damaged; put the identity folder of the last backup back, or move "
            "it away and join again"
        ) from error
