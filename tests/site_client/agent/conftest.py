"""A consortium with its own CA and custodian, a hospital enrolled in it, a plan, and a wire that ends in a list."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID
from federation.manifest import Manifest, TensorSpec
from federation.plan import (
    CohortBounds,
    Deadlines,
    Encoding,
    Inputs,
    LocalTraining,
    ServerKind,
    ServerOptimizer,
    TrainingPlan,
)
from federation.roster import Roster, RosterEntry, sign_roster
from federation.v1 import enrolment_pb2
from federation.vocabulary import Metric
from federation.wire import serialize
from google.protobuf.message import Message

from site_client.agent.egress.egress import Cleared, Egress
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import Ledger
from site_client.agent.identity.identity import Joining, Membership, SiteIdentity
from site_client.config import PolicySettings
from site_client.typed_json import Digest

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER


@dataclass
class StandingClock:
    """Moves only when told to."""

    now: datetime = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **parts: float) -> None:
        self.now += timedelta(**parts)


@dataclass
class Consortium:
    """A CA, a custodian, and the roster so far. Certificates are valid by the real clock, for TLS looks at that."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    custodian: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    entries: list[RosterEntry] = field(default_factory=list)
    name: str = "test consortium CA"

    def __post_init__(self) -> None:
        self.ca = self._certify(self.name, self.key.public_key(), ca=True)

    @property
    def ca_pem(self) -> bytes:
        return self.ca.public_bytes(PEM)

    @property
    def fingerprint(self) -> bytes:
        return self.ca.fingerprint(hashes.SHA256())

    def site_certificate(self, site: str, csr_der: bytes, days: float = 30, begins_days_ago: float = 0.1) -> bytes:
        key = x509.load_der_x509_csr(csr_der).public_key()
        return self._certify(site, key, days=days, begins_days_ago=begins_days_ago).public_bytes(PEM)

    def server_pair(self, days: float = 30, begins_days_ago: float = 0.1) -> tuple[bytes, bytes]:
        """Key and chain, for 127.0.0.1 and localhost."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._certify("aggregator", key.public_key(), days=days, begins_days_ago=begins_days_ago, server=True)
        pem = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return pem, leaf.public_bytes(PEM) + self.ca_pem

    def signed_roster(self, epoch: int = 1) -> enrolment_pb2.SignedRoster:
        return sign_roster(Roster(epoch, tuple(sorted(self.entries, key=lambda one: one.site))), self.custodian)

    def custodian_pem(self) -> bytes:
        return self._certify("custodian", self.custodian.public_key()).public_bytes(PEM)

    def credentials(self, joining: Joining, **dates: float) -> enrolment_pb2.Credentials:
        entry = RosterEntry(joining.site, joining.keys.signing_public, joining.keys.sealing.public_bytes)
        self.entries = [one for one in self.entries if one.site != joining.site] + [entry]
        return enrolment_pb2.Credentials(
            certificate_pem=self.site_certificate(joining.site, joining.request.csr_der, **dates),
            ca_certificate_pem=self.ca_pem,
            custodian_certificate_pem=self.custodian_pem(),
            roster=self.signed_roster(),
        )

    def enrol(self, folder: Path, site: str = "mercy", **dates: float) -> SiteIdentity:
        joining = Joining.prepare(folder, site)
        return joining.accept(
            self.credentials(joining, **dates), Membership(site, "127.0.0.1:1", Digest(self.fingerprint))
        )

    def _certify(
        self,
        name: str,
        key: CertificatePublicKeyTypes,
        *,
        ca: bool = False,
        server: bool = False,
        days: float = 30,
        begins_days_ago: float = 0.1,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=begins_days_ago))
        builder = builder.not_valid_after(now - timedelta(days=begins_days_ago) + timedelta(days=days))
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        if server:
            names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())


@dataclass
class Wire:
    """A transport that ends here: what was cleared is kept, `answers` says what comes back."""

    peer: str = "hub.example:8443"
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    answers: dict[str, Callable[[bytes], Message]] = field(default_factory=dict)
    streams: dict[str, list[Message]] = field(default_factory=dict)

    def unary(self, path: str, request: Cleared) -> bytes:
        self.sent.append((path, request.data))
        return serialize(self.answers[path.removeprefix("/hemofed.v1.")](request.data))

    def put(self, path: str, requests: Iterator[Cleared]) -> bytes:
        data = b""
        for request in requests:
            self.sent.append((path, request.data))
            data = request.data
        return serialize(self.answers[path.removeprefix("/hemofed.v1.")](data))

    def get(self, path: str, request: Cleared) -> Iterator[bytes]:
        self.sent.append((path, request.data))
        yield from (serialize(one) for one in self.streams[path.removeprefix("/hemofed.v1.")])


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture(scope="session")
def signer() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(sha256(b"the site's signing key in tests").digest())


@pytest.fixture
def consortium() -> Consortium:
    return Consortium()


@pytest.fixture
def identity(tmp_path: Path, consortium: Consortium) -> SiteIdentity:
    """A hospital named mercy, enrolled."""
    return consortium.enrol(tmp_path / "state" / "agent" / "identity")


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def guard() -> Guard:
    return Guard(PolicySettings())


@pytest.fixture
def ledger(tmp_path: Path, signer: Ed25519PrivateKey, clock: StandingClock) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger" / "ledger.jsonl", signer, clock)
    yield opened
    opened.close()


@pytest.fixture
def egress(guard: Guard, ledger: Ledger, wire: Wire) -> Egress:
    return Egress(guard, ledger, wire)


@pytest.fixture(scope="session")
def plan() -> TrainingPlan:
    return TrainingPlan(
        run_id=bytes(range(16)),
        name="Run 1",
        purpose="Find hemorrhage on head CT, for research.",
        architecture="lite",
        manifest=Manifest((TensorSpec("head.weight", (6, 5)), TensorSpec("head.bias", (6,)))),
        initial_model_digest=bytes(32),
        rounds=5,
        inputs=Inputs(image_size_px=256, slices_max=40),
        training=LocalTraining(1, 1e-3, 0.01, 0.0, 2, 32),
        server=ServerOptimizer(ServerKind.FEDAVG, 1.0),
        cohort=CohortBounds(minimum=3, target=3, maximum=8),
        deadlines=Deadlines(training_s=86_400, phase_s=600),
        encoding=Encoding(clip_norm=1.0, bits=6, weight_cap=100, rotation_seed=bytes(range(32))),
        metrics=(Metric.LOSS, Metric.HISTOGRAMS),
    )


@pytest.fixture
def random_bytes() -> Callable[[int], bytes]:
    return os.urandom


@pytest.fixture
def other_plan(plan: TrainingPlan) -> TrainingPlan:
    return replace(plan, run_id=bytes(range(1, 17)), name="Run 2")
