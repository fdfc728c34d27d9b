"""Who a site is and whom it believes: everything hangs on the fingerprint in the token."""

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.errors import BadSignature, RosterRefused
from federation.hpke import SealingKey, encrypt_to
from federation.roster import RosterEntry
from federation.v1 import enrolment_pb2
from structlog.testing import capture_logs

from site_client.agent.egress.egress import Egress
from site_client.agent.identity import keys
from site_client.agent.identity.certificates import Certificates
from site_client.agent.identity.identity import Joining, Membership, SiteIdentity
from site_client.errors import IdentityRefused
from site_client.typed_json import Digest
from tests.site_client.agent.conftest import Consortium, StandingClock, Wire


@pytest.fixture
def joining(tmp_path: Path) -> Joining:
    return Joining.prepare(tmp_path / "identity", "mercy")


def membership(consortium: Consortium, **changes: Any) -> Membership:
    return replace(Membership("mercy", "127.0.0.1:1", Digest(consortium.fingerprint)), **changes)


def test_join_repeated_before_the_answer_sends_the_same_keys_and_request(joining: Joining) -> None:
    again = Joining.prepare(joining.folder, "mercy")
    assert again.request == joining.request
    assert again.keys.signing_public == joining.keys.signing_public
    assert again.keys.sealing.public_bytes == joining.keys.sealing.public_bytes


def test_an_enrolled_identity_is_the_same_after_a_restart(joining: Joining, consortium: Consortium) -> None:
    made = joining.accept(consortium.credentials(joining), membership(consortium))
    found = SiteIdentity(joining.folder)
    assert (found.site, found.roster, found.certificate_pem) == ("mercy", made.roster, made.certificate_pem)
    assert not (joining.folder / "joining.key").exists()
    with pytest.raises(IdentityRefused, match="enrolled already"):
        Joining.prepare(joining.folder, "mercy")


def test_a_host_that_has_not_joined_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(IdentityRefused, match="hemofed-site join"):
        SiteIdentity(tmp_path)


def test_credentials_of_another_consortium_are_refused_and_nothing_is_kept(
    joining: Joining, consortium: Consortium
) -> None:
    other = type(consortium)()
    with pytest.raises(IdentityRefused, match="not the one the token names"):
        joining.accept(other.credentials(joining), membership(consortium))
    assert not (joining.folder / "tls.pem").exists()


def test_credentials_that_do_not_hang_together_are_refused(joining: Joining, consortium: Consortium) -> None:
    other = type(consortium)()
    stranger = keys.request_certificate("mercy")
    good = consortium.credentials(joining)

    def changed(**fields: object) -> enrolment_pb2.Credentials:
        copy = enrolment_pb2.Credentials()
        copy.CopyFrom(good)
        for name, value in fields.items():
            setattr(copy, name, value)
        return copy

    for credentials, why in (
        (changed(certificate_pem=other.site_certificate("mercy", joining.request.csr_der)), "not issued by"),
        (changed(certificate_pem=consortium.site_certificate("mercy", stranger.csr_der)), "name and key"),
        (changed(certificate_pem=consortium.site_certificate("north", joining.request.csr_der)), "name and key"),
        (changed(certificate_pem=b"no PEM"), "not a PEM"),
        (changed(custodian_certificate_pem=other.custodian_pem()), "not issued by"),
        (changed(custodian_certificate_pem=good.certificate_pem), "no Ed25519 key"),
    ):
        with pytest.raises(IdentityRefused, match=why):
            joining.accept(credentials, membership(consortium))
    assert not (joining.folder / "tls.pem").exists()


def test_a_roster_is_kept_only_with_the_custodian_s_signature_and_never_goes_back(
    identity: SiteIdentity, consortium: Consortium
) -> None:
    north = RosterEntry("north", Ed25519PrivateKey.generate().public_key().public_bytes_raw(), bytes(1216))
    first = consortium.signed_roster(1)
    consortium.entries.append(north)
    second = consortium.signed_roster(2)
    assert [one.site for one in identity.accept_roster(second).entries] == ["mercy", "north"]
    with pytest.raises(RosterRefused):
        identity.accept_roster(first)
    forged = enrolment_pb2.SignedRoster(roster=consortium.signed_roster(3).roster, signature=second.signature)
    with pytest.raises(BadSignature):
        identity.accept_roster(forged)
    assert identity.roster.epoch == 2


def test_two_rosters_of_one_epoch_or_one_without_our_keys_are_refused(
    identity: SiteIdentity, consortium: Consortium
) -> None:
    own = consortium.entries[0]
    north = RosterEntry("north", Ed25519PrivateKey.generate().public_key().public_bytes_raw(), bytes(1216))
    consortium.entries = [own, north]
    with pytest.raises(IdentityRefused, match="got a second"):
        identity.accept_roster(consortium.signed_roster(1))
    consortium.entries = [replace(own, signing_key=bytes(32)), north]
    with pytest.raises(IdentityRefused, match="this site's own keys"):
        identity.accept_roster(consortium.signed_roster(2))
    assert identity.roster.epoch == 1


@pytest.mark.parametrize("name", ["membership.json", "signing.key", "sealing.key"])
def test_a_damaged_file_is_named_and_not_worked_around(identity: SiteIdentity, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "state" / "agent" / "identity"
    (folder / name).write_bytes(b"{}")
    with pytest.raises(IdentityRefused, match="backup"):
        SiteIdentity(folder)


def test_renewal_is_due_between_two_thirds_and_two_thirds_plus_a_twentieth(identity: SiteIdentity) -> None:
    life = identity.expires_at - identity.valid_from
    assert timedelta(days=29) < life < timedelta(days=31)
    assert 2 / 3 <= (identity.renewal_due() - identity.valid_from) / life <= 2 / 3 + 1 / 20


# Keys.


def test_no_secret_is_in_a_repr(joining: Joining) -> None:
    shown = repr(joining) + repr(joining.keys) + repr(joining.request)
    assert "PRIVATE" not in shown
    assert joining.keys.signing.private_bytes_raw().hex() not in shown


def test_what_is_sealed_to_the_roster_s_key_only_this_site_opens() -> None:
    key = SealingKey.from_bytes(SealingKey.generate().to_bytes())
    assert len(key.public_bytes) == 1216
    assert key.decrypt(encrypt_to(key.public_bytes, b"a data key", b"mercy"), b"mercy") == b"a data key"


def test_signatures_are_over_what_enrolment_says(joining: Joining) -> None:
    public, csr = joining.keys.signing.public_key(), joining.request.csr_der
    digests = hashlib.sha256(csr).digest() + hashlib.sha256(joining.keys.sealing.public_bytes).digest()
    public.verify(keys.prove_possession(joining.keys, csr), b"hemofed join v1\x00" + digests)
    answer = keys.answer_challenge(joining.keys, bytes(32), csr)
    public.verify(answer, b"hemofed recover v1\x00" + bytes(32) + hashlib.sha256(csr).digest())
    with pytest.raises(InvalidSignature):
        public.verify(answer, b"hemofed join v1\x00" + bytes(32) + hashlib.sha256(csr).digest())


@pytest.mark.parametrize("data", [b"", b"-----BEGIN CERTIFICATE-----", b"\xff" * 900, "half", "a folder", "flipped"])
def test_a_damaged_certificate_is_no_obstacle_and_another_one_is_requested(
    consortium: Consortium,
    identity: SiteIdentity,
    egress: Egress,
    wire: Wire,
    clock: StandingClock,
    tmp_path: Path,
    data: bytes | str,
) -> None:
    folder = tmp_path / "state" / "agent" / "identity"
    path = folder / "tls.pem"
    whole = path.read_bytes()
    if data == "a folder":
        path.unlink()
        path.mkdir()
    elif data == "flipped":
        at = len(whole) - 100
        path.write_bytes(whole[:at] + (b"A" if whole[at : at + 1] != b"A" else b"B") + whole[at + 1 :])
    else:
        path.write_bytes(data if isinstance(data, bytes) else whole[: len(whole) // 2])
    damaged = SiteIdentity(folder)
    assert damaged.certificate_pem is None
    clock.now = datetime.now(UTC)

    def recover(request: bytes) -> enrolment_pb2.Credentials:
        csr_der = enrolment_pb2.RecoverRequest.FromString(request).csr_der
        return enrolment_pb2.Credentials(certificate_pem=consortium.site_certificate("mercy", csr_der))

    wire.answers["Enrolment/Challenge"] = lambda _: enrolment_pb2.ChallengeReply(nonce=bytes(32))
    wire.answers["Enrolment/Recover"] = recover
    certificates = Certificates(damaged, egress, lambda: nullcontext(egress), clock)
    with capture_logs() as logs:
        assert certificates.keep()
    assert [event["event"] for event in logs if event["log_level"] == "warning"][:1] == ["certificate damaged"]
    assert SiteIdentity(folder).expires_at == damaged.expires_at > clock.now
    assert not certificates.keep()
