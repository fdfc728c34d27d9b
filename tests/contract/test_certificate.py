"""federation.certificate: t known members signed this model of this round, or it proves nothing."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.certificate import ModelCertificate, verify_certificate
from federation.errors import CertificateRefused

SITES = ("a", "b", "c", "d")
KEYS = {site: Ed25519PrivateKey.from_private_bytes(site[:1].encode() * 32) for site in (*SITES, "ghost")}
ROSTER = {site: key.public_key().public_bytes_raw() for site, key in KEYS.items()}
UNSIGNED = ModelCertificate(bytes(32), 3, b"b" * 32, b"m" * 32, SITES)


def signed(*sites: str, by: ModelCertificate = UNSIGNED) -> ModelCertificate:
    return replace(by, signatures={site: UNSIGNED.sign(KEYS[site]) for site in sites})


def check(certificate: ModelCertificate, **changes: object) -> None:
    given = {"plan_digest": bytes(32), "model_digest": b"m" * 32, "signing_keys": ROSTER, "known": SITES, "minimum": 3}
    verify_certificate(certificate, **(given | changes))  # type: ignore[arg-type]  # the keys are its own


def test_t_signatures_of_the_cohort_prove_a_model_and_survive_the_wire() -> None:
    certificate = signed("a", "b", "d")
    assert certificate.needed(len(SITES)) == 3
    check(ModelCertificate.of_message(certificate.to_message()))


@pytest.mark.parametrize(
    ("certificate", "changes", "because"),
    [
        (signed("a", "b"), {}, "2 known members signed"),
        (signed("a", "b", "c"), {"known": [*SITES, *"efghij"]}, "3 known members signed the model, 4 are needed"),
        (signed("a", "b", "c"), {"model_digest": b"x" * 32}, "another model"),
        (signed("a", "b", "c"), {"plan_digest": b"x" * 32}, "another plan"),
        (signed("a", "b", "c"), {"known": ("a", "b", "d")}, "2 known members signed"),
        (signed("a", "b", "c"), {"known": ("a", "b")}, "fewer than 3 hospitals known"),
        (signed("a", "b", "c"), {"minimum": 5}, "fewer than 5 hospitals known"),
        (signed("a", "b", "c", by=replace(UNSIGNED, round=4)), {}, "not over this model"),
        (signed("a", "b", "c", by=replace(UNSIGNED, base_model_digest=bytes(32))), {}, "not over this model"),
        (signed("a", "b", "c", by=replace(UNSIGNED, cohort=("a", "b", "c"))), {}, "not over this model"),
        (signed("a", "b", "ghost"), {"known": (*SITES, "ghost")}, "not a member of the round"),
        (replace(signed("a", "b", "c"), signatures={s: bytes(64) for s in "abc"}), {}, "not over this model"),
    ],
)
def test_anything_less_is_refused(certificate: ModelCertificate, changes: dict[str, object], because: str) -> None:
    with pytest.raises(CertificateRefused, match=because):
        check(certificate, **changes)


def test_a_site_that_signs_twice_in_a_message_is_refused() -> None:
    message = signed("a", "b", "c").to_message()
    message.signatures.add(site="a", signature=bytes(64))
    with pytest.raises(CertificateRefused, match="two of one"):
        ModelCertificate.of_message(message)
