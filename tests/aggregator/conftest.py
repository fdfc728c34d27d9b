"""What the aggregator's tests start from: a clock that stands, a migrated store, a CA, and hosts that want to join."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from federation.token import Token
from federation.v1 import enrolment_pb2

from aggregator import config
from aggregator.custodian import sealed_key
from aggregator.migrations import upgrade
from aggregator.sites.authority import Authority, create_authority
from aggregator.sites.enrolment import EnrolmentService
from aggregator.store import Store, open_store, people
from tests.aggregator.dashboard_fixtures import ada, app, client, enrolled, running
from tests.custodian import CUSTODIAN

__all__ = ["ada", "app", "client", "enrolled", "running"]


@dataclass
class StandingClock:
    """Moves only when told to."""

    now: datetime = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **parts: float) -> None:
        self.now += timedelta(**parts)


@dataclass(frozen=True)
class Host:
    """A hospital's machine with keys of its own, as a site client makes them."""

    tls_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    signing_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    sealing_key: bytes = field(default_factory=lambda: os.urandom(1216))

    @property
    def signing_public(self) -> bytes:
        return self.signing_key.public_key().public_bytes_raw()

    def csr(self) -> bytes:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "what a host calls itself does not matter")])
        request = x509.CertificateSigningRequestBuilder().subject_name(name)
        signed = request.sign(self.tls_key, hashes.SHA256(), ecdsa_deterministic=True)
        return signed.public_bytes(serialization.Encoding.DER)

    def join_request(self, token: Token) -> enrolment_pb2.JoinRequest:
        csr = self.csr()
        proof = b"hemofed join v1\x00" + sha256(csr).digest() + sha256(self.sealing_key).digest()
        return enrolment_pb2.JoinRequest(
            site=token.site,
            secret=token.secret,
            csr_der=csr,
            signing_key=self.signing_public,
            sealing_key=self.sealing_key,
            possession=self.signing_key.sign(proof),
        )

    def recover_request(self, site: str, nonce: bytes) -> enrolment_pb2.RecoverRequest:
        csr = self.csr()
        signature = self.signing_key.sign(b"hemofed recover v1\x00" + nonce + sha256(csr).digest())
        return enrolment_pb2.RecoverRequest(site=site, nonce=nonce, csr_der=csr, signature=signature)


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with every table, made by the migrations once; tests copy it."""
    path = tmp_path_factory.mktemp("migrated") / "hub.sqlite"
    opened = open_store(f"sqlite:///{path}")
    upgrade(opened.engine)
    opened.close()
    return path


@pytest.fixture
def cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """New hashes and sealed keys at the lowest cost; each names its cost, so they verify as any other."""
    monkeypatch.setattr(people, "COST", people.Cost(passes=1, memory_kib=8, lanes=1))
    monkeypatch.setattr(sealed_key, "COST_N", 2)


@pytest.fixture
def store(tmp_path: Path, migrated: Path) -> Iterator[Store]:
    """SQLite in a file, WAL, every table."""
    shutil.copy(migrated, tmp_path / "hub.sqlite")
    opened = open_store(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    yield opened
    opened.close()


@pytest.fixture
def authority(tmp_path: Path, clock: StandingClock) -> Authority:
    return create_authority(tmp_path / "ca", clock, CUSTODIAN.public_key())


@pytest.fixture
def enrolment(store: Store, authority: Authority, clock: StandingClock) -> EnrolmentService:
    """The enrolment service with the default settings."""
    return EnrolmentService(store, authority, config.EnrolmentSettings(), clock, os.urandom)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def other_host() -> Host:
    return Host()
