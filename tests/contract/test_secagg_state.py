"""What a member remembers: identical bytes after a crash at every step, and no secret longer than it is needed."""

import copy
import pickle
from hashlib import sha256

import numpy as np
import pytest
from federation.secagg import Member, OutOfOrder, Phase, RevealedShare, ShareKind, SnapshotRefused
from federation.secagg.errors import MalformedValue
from federation.secagg.secret import MaskSecret, Seed, StreamKey
from federation.secagg.state import unframe
from federation.secagg.transcript import frame

from tests.contract.secagg_session import BLOB_DIGEST, Session, addressed_to


def reboot(session: Session, site: str) -> None:
    """The process dies and comes back with what it had saved."""
    member = session.members[site]
    session.members[site] = Member.from_bytes(member.to_bytes(), session.signing_keys[site])
    assert session.members[site].to_bytes() == member.to_bytes()


def saved_at_every_phase(session: Session) -> dict[Phase, bytes]:
    """Bytes of site-0000 after each step of a whole attempt in which site-0004 vanishes before its upload."""
    member, site = session.members["site-0000"], "site-0000"
    saved = {Phase.ADVERTISED: member.to_bytes()}
    dealt = session.share_all()
    saved[Phase.SHARED] = member.to_bytes()
    uploaded = session.sites[:4]
    member.receive(addressed_to(site, dealt))
    saved[Phase.RECEIVED] = member.to_bytes()
    session.mask_all(dealt, uploaded)
    saved[Phase.MASKED] = member.to_bytes()
    confirmations = session.confirm_all(uploaded, uploaded)
    saved[Phase.CONFIRMED] = member.to_bytes()
    session.members[site].reveal(uploaded, confirmations)
    saved[Phase.REVEALED] = member.to_bytes()
    return saved


def test_every_step_repeated_after_a_crash_gives_identical_bytes() -> None:
    session, site = Session(4), "site-0001"
    advertised = session.members[site].advertisement
    reboot(session, site)
    assert session.members[site].advertisement == advertised
    dealt = session.share_all()
    reboot(session, site)
    assert session.members[site].share(session.advertisements, session.roster) == dealt[site]
    uploads = session.mask_all(dealt, session.sites)
    claim = session.members[site].claim(BLOB_DIGEST)
    reboot(session, site)
    assert session.members[site].receive(addressed_to(site, dealt)) == {}
    again = session.members[site].mask(session.words[site], addressed_to(site, dealt))
    assert np.array_equal(again, uploads[site])
    assert session.members[site].claim(BLOB_DIGEST) == claim
    confirmations = session.confirm_all(session.sites, session.sites)
    reboot(session, site)
    assert session.members[site].confirm(session.sites) == confirmations[site]
    answer = session.members[site].reveal(session.sites, confirmations)
    reboot(session, site)
    assert session.members[site].reveal(session.sites, confirmations) == answer


def test_a_crash_before_shares_were_saved_deals_the_same_shares_under_fresh_keys() -> None:
    """The polynomial is derived, so the shares fit together; nothing of the first dealing has left the machine."""
    session = Session(4)
    member = session.members["site-0000"]
    before = member.to_bytes()
    first = member.share(session.advertisements, session.roster)
    session.members["site-0000"] = Member.from_bytes(before, session.signing_keys["site-0000"])
    second = session.members["site-0000"].share(session.advertisements, session.roster)
    assert [(d.seed_digest, d.key_digest) for d in first.values()] == [
        (d.seed_digest, d.key_digest) for d in second.values()
    ]
    assert all(first[site].kem_ciphertext != second[site].kem_ciphertext for site in session.sites[1:])
    assert np.array_equal(session.play().total, session.plain_sum(session.sites))


def test_a_rebooted_member_still_refuses_what_it_refused_before() -> None:
    session, site = Session(5), "site-0000"
    dealt = session.share_all()
    session.mask_all(dealt, session.sites)
    session.members[site].confirm(session.sites)
    reboot(session, site)
    with pytest.raises(OutOfOrder):
        session.members[site].mask(session.words[site], addressed_to(site, dealt))
    with pytest.raises(OutOfOrder):
        session.members[site].share(session.advertisements, session.roster)


def test_own_secrets_are_gone_after_confirming_and_the_unrevealed_kind_after_answering() -> None:
    session = Session(5, seed=3)
    draw = np.random.default_rng(3)
    for _ in range(5):
        draw.bytes(32)  # the signing keys come first
    own_secrets = [draw.bytes(32) for _ in range(4)]
    saved = saved_at_every_phase(session)
    for phase in (Phase.ADVERTISED, Phase.SHARED, Phase.RECEIVED, Phase.MASKED):
        assert all(secret in saved[phase] for secret in own_secrets)
    for phase in (Phase.CONFIRMED, Phase.REVEALED):
        assert not any(secret in saved[phase] for secret in own_secrets)
    pairs = [unframe(entry)[1] for entry in unframe(unframe(saved[Phase.CONFIRMED][:-32])[11])]
    assert len(pairs) == 5
    hidden = [pair[33:] for pair in pairs[:4]] + [pairs[4][:33]]
    revealed = [pair[:33] for pair in pairs[:4]] + [pairs[4][33:]]
    assert all(share in saved[Phase.REVEALED] for share in revealed)
    assert not any(share in saved[Phase.REVEALED] for share in hidden)


def test_the_state_of_every_phase_is_read_back() -> None:
    session = Session(5)
    saved = saved_at_every_phase(session)
    assert set(saved) == set(Phase)
    for phase, data in saved.items():
        assert Member.from_bytes(data, session.signing_keys["site-0000"]).phase is phase


def test_a_torn_or_altered_state_is_refused() -> None:
    session = Session(3)
    session.share_all()
    member, key = session.members["site-0000"], session.signing_keys["site-0000"]
    data = member.to_bytes()
    for broken in (b"", data[:31], data[:-1], data + b"\x00", data[1:], data[:200] + b"\xff" + data[201:]):
        with pytest.raises(SnapshotRefused):
            Member.from_bytes(broken, key)


@pytest.mark.parametrize(
    "fields", [[], [b"hemofed secagg member 3"] + [b""] * 16, [b"hemofed secagg member 2"] + [b""] * 12]
)
def test_a_state_of_another_version_or_shape_is_refused_even_with_a_right_checksum(fields: list[bytes]) -> None:
    body = frame(*fields)
    with pytest.raises(SnapshotRefused, match="version"):
        Member.from_bytes(body + sha256(body).digest(), Session(3).signing_keys["site-0000"])


@pytest.mark.parametrize("data", [frame(b"one")[:-1], frame(b"one") + b"\x00", b"\x00" * 7 + b"\x02" + b"\x00" * 8])
def test_frames_are_read_strictly(data: bytes) -> None:
    with pytest.raises(MalformedValue):
        unframe(data)


def test_the_signing_key_is_never_in_the_state() -> None:
    session = Session(5)
    signing_key = session.signing_keys["site-0000"].private_bytes_raw()
    assert not any(signing_key in data for data in saved_at_every_phase(session).values())


def test_no_repr_shows_a_secret() -> None:
    session = Session(4)
    session.play()
    member = session.members["site-0000"]
    assert repr(member) == "Member('site-0000', revealed)"
    assert repr(Seed(b"s" * 32)) == "Seed(hidden)"
    assert repr(RevealedShare(ShareKind.SEED, b"s" * 33)) == "RevealedShare(SEED, hidden)"
    assert "ssss" not in str(Seed(b"s" * 32))


def test_secrets_are_neither_pickled_nor_copied_nor_hashed_nor_mixed_up() -> None:
    seed = Seed(bytes(32))
    for operation in (pickle.dumps, copy.copy, copy.deepcopy, hash):
        with pytest.raises(TypeError):
            operation(seed)
    assert seed == Seed(bytes(32))
    assert seed != MaskSecret(bytes(32))
    assert seed != bytes(32)
    with pytest.raises(MalformedValue, match="32 bytes"):
        StreamKey(bytes(31))


def test_a_wiped_secret_is_empty() -> None:
    seed = Seed(b"s" * 32)
    seed.wipe()
    assert seed.wiped
    assert seed.expose() == b""
