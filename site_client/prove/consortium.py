"""A consortium of one hospital on this machine, for a round check: CA, custodian, roster. Its keys are never kept."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding as Form
from cryptography.x509.oid import NameOID
from federation.manifest import Model
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

from site_client.agent.identity.identity import Joining, Membership, SiteIdentity
from site_client.typed_json import Digest


@dataclass
class Consortium:
    """Its keys are drawn when it is made, and nothing of it outlives the round check."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    custodian: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def enrol(self, folder: Path, site: str) -> SiteIdentity:
        """Enrol a site as `hemofed-site join` does, without the network."""
        joining = Joining.prepare(folder, site)
        ca = self._certify("round check CA", self.key.public_key())
        own = RosterEntry(site, joining.keys.signing_public, joining.keys.sealing.public_bytes)
        public = x509.load_der_x509_csr(joining.request.csr_der).public_key()
        # `Joining.prepare` requested it a few lines above, for a key on P-256.
        assert isinstance(public, ec.EllipticCurvePublicKey)
        credentials = enrolment_pb2.Credentials(
            certificate_pem=self._certify(site, public).public_bytes(Form.PEM),
            ca_certificate_pem=ca.public_bytes(Form.PEM),
            custodian_certificate_pem=self._certify("custodian", self.custodian.public_key()).public_bytes(Form.PEM),
            roster=sign_roster(Roster(1, (own,)), self.custodian),
        )
        return joining.accept(
            credentials, Membership(site, "round-check.invalid:1", Digest(ca.fingerprint(hashes.SHA256())))
        )

    def _certify(self, name: str, key: ec.EllipticCurvePublicKey | Ed25519PublicKey) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "round check CA")]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
        )
        return builder.sign(self.key, hashes.SHA256())


def plan_for(model: Model, architecture: str) -> TrainingPlan:
    """Return the plan of one short round."""
    return TrainingPlan(
        run_id=bytes(range(16)),
        name="round check",
        purpose="To search the files that a round leaves.",
        architecture=architecture,
        manifest=model.manifest,
        initial_model_digest=model.digest,
        rounds=1,
        inputs=Inputs(64, 20),
        training=LocalTraining(1, 1e-3, 0.0, 0.0, 2, 2),
        server=ServerOptimizer(ServerKind.FEDAVG, 1.0),
        cohort=CohortBounds(3, 3, 3),
        deadlines=Deadlines(3600, 60),
        encoding=Encoding(1.0, 6, 40, bytes(range(32))),
        metrics=(Metric.LOSS, Metric.HISTOGRAMS),
    )
