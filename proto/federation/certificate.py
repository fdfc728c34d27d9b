"""The proof that the members of a round computed a model, for sites that did not take part.

Every member computes the next model from the published sum. With more than two thirds of their signatures on its
digest, an aggregator cannot offer another model as that round's. The aggregator chooses cohorts, so a third of all
hospitals have to be among the signers as well: a cohort of its accomplices proves nothing.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from federation.errors import BadSignature, CertificateRefused
from federation.limits import DIGEST_BYTES, is_site_name
from federation.secagg import threshold
from federation.signing import sign, verify
from federation.v1 import rounds_pb2
from federation.wire import serialize

_DOMAIN = "hemofed model v1"


@dataclass(frozen=True)
class ModelCertificate:
    """A statement about the model that a round led to, with the signatures of members.

    Attributes:
        plan_digest: 32 bytes.
        round: Number of the round, 1 to 2^31 - 1.
        base_model_digest: 32 bytes.
        model_digest: 32 bytes.
        cohort: U3 of the round, sorted.
        signatures: By site, Ed25519 (RFC 8032) over all other fields, 64 bytes each.

    Raises:
        CertificateRefused: A field has another form.
    """

    plan_digest: bytes
    round: int
    base_model_digest: bytes
    model_digest: bytes
    cohort: tuple[str, ...]
    signatures: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        digests = (self.plan_digest, self.base_model_digest, self.model_digest)
        if any(len(digest) != DIGEST_BYTES for digest in digests) or not 1 <= self.round < 2**31:
            raise CertificateRefused("expected digests of 32 bytes and a round from 1, got others")
        if list(self.cohort) != sorted(set(self.cohort)) or not all(map(is_site_name, self.cohort)):
            raise CertificateRefused("expected a cohort of site names, sorted, without repeats")

    @classmethod
    def of_message(cls, message: rounds_pb2.ModelCertificate) -> "ModelCertificate":
        """Converts a message.

        Raises:
            CertificateRefused: A field has another form, or a site signs twice.
        """
        signatures = {entry.site: entry.signature for entry in message.signatures}
        if len(signatures) != len(message.signatures):
            raise CertificateRefused("expected one signature a site, got two of one")
        return cls(
            message.plan_digest,
            message.round,
            message.base_model_digest,
            message.model_digest,
            tuple(message.cohort),
            signatures,
        )

    def to_message(self) -> rounds_pb2.ModelCertificate:
        """Converts to the message."""
        message = self._unsigned()
        # Sorted: certificates with equal signatures have equal bytes, in whatever order the signatures came.
        for site in sorted(self.signatures):
            message.signatures.add(site=site, signature=self.signatures[site])
        return message

    def sign(self, key: Ed25519PrivateKey) -> bytes:
        """Signs all fields but the signatures with Ed25519 (RFC 8032): 64 bytes."""
        return sign(key, _DOMAIN, serialize(self._unsigned()))

    def check_signature(self, site: str, signature: bytes, signing_keys: Mapping[str, bytes]) -> None:
        """Checks one signature.

        Args:
            site: The signer.
            signature: Ed25519, 64 bytes.
            signing_keys: Raw Ed25519 public keys by site, 32 bytes each.

        Raises:
            CertificateRefused: The site is not of the cohort or the roster, or the signature does not hold.
        """
        if site not in self.cohort or site not in signing_keys:
            raise CertificateRefused(f"{site!r} is not a member of the round's cohort in the roster held here")
        try:
            key = Ed25519PublicKey.from_public_bytes(signing_keys[site])
            verify(key, _DOMAIN, serialize(self._unsigned()), signature)
        except BadSignature:
            raise CertificateRefused(f"the signature of {site!r} is not over this model") from None

    def needed(self, hospitals: int) -> int:
        """Returns the number of signatures that prove the model: t of the cohort, and a third of all `hospitals`."""
        # Rounded up: of seven hospitals a third are three.
        return max(threshold(len(self.cohort)), -(-hospitals // 3))

    def _unsigned(self) -> rounds_pb2.ModelCertificate:
        return rounds_pb2.ModelCertificate(
            plan_digest=self.plan_digest,
            round=self.round,
            base_model_digest=self.base_model_digest,
            model_digest=self.model_digest,
            cohort=self.cohort,
        )


def verify_certificate(
    certificate: ModelCertificate,
    plan_digest: bytes,
    model_digest: bytes,
    signing_keys: Mapping[str, bytes],
    known: Collection[str],
    minimum: int,
) -> None:
    """Refuses a certificate that does not prove a model to this site.

    Args:
        certificate: As shown by the aggregator.
        plan_digest: Of the run, 32 bytes.
        model_digest: Of the model on offer, 32 bytes.
        signing_keys: Raw Ed25519 public keys by site, 32 bytes each, from the roster that this site stores.
        known: Names of the roster that this hospital has accepted.
        minimum: The site's own minimum of a cohort.

    Raises:
        CertificateRefused: It is of another plan or model, or fewer than t known members of a cohort of at least
            `minimum` known names signed it, or fewer than a third of all known hospitals.
    """
    if (certificate.plan_digest, certificate.model_digest) != (plan_digest, model_digest):
        raise CertificateRefused("the certificate is of another plan or another model than the one on offer")
    # Only names of the accepted roster count: the aggregator may have enrolled accomplices under any number of others.
    signers = [site for site in certificate.signatures if site in known]
    if len(set(certificate.cohort) & set(known)) < minimum:
        raise CertificateRefused(f"fewer than {minimum} hospitals known here were in the round that made the model")
    # Each one, and not only as many as are needed: an honest aggregator passes on no bad signature.
    for site in signers:
        certificate.check_signature(site, certificate.signatures[site], signing_keys)
    needed = certificate.needed(len(known))
    if len(signers) < needed:
        raise CertificateRefused(f"{len(signers)} known members signed the model, {needed} are needed")
