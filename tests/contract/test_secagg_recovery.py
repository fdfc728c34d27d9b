"""The aggregator's end: a wrong share names its revealer, and wrong dealing its dealer."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from federation.secagg import (
    BadDealing,
    BelowThreshold,
    ComplaintRefused,
    ConfirmationRefused,
    DealtShares,
    EvidenceRefused,
    RevealedShare,
    ShareKind,
    ShareRefused,
    Unrecoverable,
    Words,
    complaints_max,
    proven_dealers,
    recover_masks,
    unmask,
    verify_answer,
    verify_complaint,
    verify_dealt,
    verify_opened,
    with_opened,
)
from federation.secagg import keys as secagg_keys
from federation.secagg.member import _split_secrets
from federation.secagg.shamir import ELEMENT_BYTES, PRIME
from federation.secagg.transcript import complaint_statement, dealt_statement, reveal_statement, share_digest

from tests.contract.secagg_session import Dealt, Session, addressed_to

Answers = dict[str, dict[str, RevealedShare]]


def answered(size: int, vanished: int, length: int = 3) -> tuple[Session, Dealt, dict[str, np.ndarray], Answers]:
    """A session whose last `vanished` members dealt shares and never uploaded; uploads and answers of the others."""
    session = Session(size, length=length)
    uploaded = session.sites[: size - vanished]
    dealt = session.share_all()
    uploads = session.mask_all(dealt, uploaded)
    confirmations = session.confirm_all(uploaded, uploaded)
    return session, dealt, uploads, {site: session.members[site].reveal(uploaded, confirmations) for site in uploaded}


def signed_answer(session: Session, revealer: str, answer: dict[str, RevealedShare]) -> bytes:
    """The signature of a corrupt member: over whatever it likes."""
    return session.signing_keys[revealer].sign(reveal_statement(session.cohort.uctx, revealer, answer))


def crooked_shares(session: Session, dealer: str, kind: str) -> dict[str, DealtShares]:
    """What a corrupt dealer may send to all others, each signed by it.

    "garbage": ciphertexts that do not decrypt. "other digests": good shares under digests of others. "no polynomial":
    shares that decrypt and have the digests it signed, and give no secret.
    """
    member = session.members[dealer]
    secrets = member._secrets(member.phase)
    cohort, uctx = session.cohort, session.cohort.uctx
    shares = _split_secrets(secrets, cohort)
    made = {}
    for number, (site, pair) in enumerate(shares.items()):
        if kind == "no polynomial":
            wrong = [(int.from_bytes(share, "big") + number**9 + 1) % PRIME for share in pair]  # 9 is above any t - 1
            pair = (wrong[0].to_bytes(ELEMENT_BYTES, "big"), wrong[1].to_bytes(ELEMENT_BYTES, "big"))
        parts = (b"", b"", b"")
        if site != dealer:
            peer = cohort.advertisements[site]
            mask_keys = secagg_keys.MaskKeys(secrets.mask)
            parts = secagg_keys.deal(secrets.share, mask_keys, (peer.kem_key, peer.share_key), uctx, dealer, site, pair)
        if kind == "garbage" and site != dealer:
            parts = (parts[0], parts[1], bytes(len(parts[2])))
        digests = [
            share_digest(uctx, share_kind, dealer, site if kind != "other digests" else "nobody", share)
            for share_kind, share in zip((ShareKind.SEED, ShareKind.MASK_KEY), pair, strict=True)
        ]
        unsigned = DealtShares(*parts, *digests)
        signature = session.signing_keys[dealer].sign(dealt_statement(uctx, dealer, site, unsigned))
        made[site] = replace(unsigned, signature=signature)
    return made


# What a revealer may do.


@pytest.mark.parametrize("about", ["site-0002", "site-0009"])
@pytest.mark.parametrize("liar", ["site-0000", "site-0003", "site-0006"])
def test_one_altered_share_of_a_seed_or_a_mask_key_is_refused_and_names_its_revealer(about: str, liar: str) -> None:
    session, dealt, uploads, answers = answered(10, 1)
    answer = dict(answers[liar])
    error = int.from_bytes(sha256(f"{liar} about {about}".encode()).digest(), "big")
    share = (int.from_bytes(answer[about].share, "big") + error) % PRIME
    answer[about] = replace(answer[about], share=share.to_bytes(ELEMENT_BYTES, "big"))
    signature, key = signed_answer(session, liar, answer), session.roster[liar]
    with pytest.raises(ShareRefused, match="not the one that") as refused:
        verify_answer(session.cohort, dealt, list(uploads), (), liar, answer, signature, key)
    assert refused.value.site == liar
    del answers[liar]
    assert np.array_equal(session.aggregate(dealt, uploads, answers), session.plain_sum(list(uploads)))


def test_answers_of_the_wrong_shape_are_refused_and_their_sender_named() -> None:
    session, dealt, uploads, answers = answered(7, 1)
    uploaded, answer, key = list(uploads), answers["site-0001"], session.roster["site-0001"]
    good = signed_answer(session, "site-0001", answer)
    verify_answer(session.cohort, dealt, uploaded, (), "site-0001", answer, good, key)
    seed, mask_key = answer["site-0000"], answer["site-0006"]
    for wrong in (
        {about: share for about, share in answer.items() if about != "site-0000"},
        {**answer, "nobody": seed},
        {**answer, "site-0000": replace(seed, kind=ShareKind.MASK_KEY)},
        {**answer, "site-0006": replace(mask_key, kind=ShareKind.SEED)},
        {**answer, "site-0000": replace(seed, share=seed.share[1:])},
        {**answer, "site-0000": replace(seed, share=b"\xff" * ELEMENT_BYTES)},
    ):
        signature = signed_answer(session, "site-0001", wrong)
        with pytest.raises(ShareRefused) as refused:
            verify_answer(session.cohort, dealt, uploaded, (), "site-0001", wrong, signature, key)
        assert refused.value.site == "site-0001"
    with pytest.raises(ShareRefused, match="in the sum"):
        verify_answer(session.cohort, dealt, uploaded, (), "site-0006", answer, good, key)
    with pytest.raises(ShareRefused, match="not signed"):
        verify_answer(session.cohort, dealt, uploaded, (), "site-0001", answer, bytes(64), key)


def test_fewer_answers_or_uploads_than_the_threshold_recover_nothing() -> None:
    session, dealt, uploads, answers = answered(7, 1)
    for site in session.sites[:2]:
        del answers[site]
    with pytest.raises(BelowThreshold, match="answers: 4, the threshold is 5"):
        session.aggregate(dealt, uploads, answers)
    with pytest.raises(BelowThreshold, match="uploads"):
        recover_masks(session.ctx, session.cohort, dealt, session.sites[:4], {})


# What a dealer may do.


@pytest.mark.parametrize("kind", ["garbage", "other digests"])
@pytest.mark.parametrize("size", [3, 4, 7, 16])
def test_a_dealer_of_garbage_is_proven_guilty_by_complaints_before_anything_is_revealed(size: int, kind: str) -> None:
    session = Session(size)
    crook, honest = session.sites[-1], session.sites[:-1]
    dealt = session.share_all() | {crook: crooked_shares(session, crook, kind)}
    for site in honest:
        shares = addressed_to(site, dealt)
        try:
            complaints = session.members[site].receive(shares)
        except BelowThreshold:  # of three, each needs the shares of all
            assert size == 3
            continue
        assert list(complaints) == [crook]
        signature, key = complaints[crook], session.roster[site]
        verify_complaint(session.cohort.uctx, site, crook, dealt[crook][site], signature, key)
        with pytest.raises(ComplaintRefused):
            verify_complaint(session.cohort.uctx, site, honest[0], dealt[crook][site], signature, key)
        session.complaints.setdefault(crook, set()).add(site)
    assert proven_dealers(size, session.complaints) == ([crook] if size > 3 else [])


@pytest.mark.parametrize("size", [4, 7, 16])
def test_as_many_complaints_as_there_may_be_liars_prove_nothing_and_harm_nothing(size: int) -> None:
    """Garbage for so few, or so many who complain falsely: the sum is recovered either way."""
    session = Session(size)
    few = session.sites[: (size - 1) // 3]
    crook = session.sites[-1]
    dealt = session.share_all()
    garbage = crooked_shares(session, crook, "garbage")
    dealt[crook] = {site: garbage[site] if site in few else shares for site, shares in dealt[crook].items()}
    uploads = session.mask_all(dealt, session.sites)
    assert session.complaints == {crook: set(few)}
    assert proven_dealers(size, session.complaints) == []
    confirmations = session.confirm_all(session.sites, session.sites)
    answers = {site: session.members[site].reveal(session.sites, confirmations) for site in session.sites}
    assert all((crook in answers[site]) == (site not in few) for site in session.sites)
    assert np.array_equal(session.aggregate(dealt, uploads, answers), session.plain_sum(session.sites))


@pytest.mark.parametrize("size", [4, 7, 16])
def test_with_what_an_accused_dealer_opens_a_third_of_silent_members_cannot_stop_the_sum(size: int) -> None:
    """Garbage for so few, and the crook and its friends are silent when shares are revealed."""
    session = Session(size)
    most = complaints_max(size)
    few, crooks, crook = session.sites[:most], session.sites[-most:], session.sites[-1]
    dealt = session.share_all()
    corrupt = session.members[crook]
    for site in few:
        bad = replace(dealt[crook][site], ciphertext=bytes(82))
        statement = dealt_statement(session.cohort.uctx, crook, site, bad)
        dealt[crook][site] = replace(bad, signature=session.signing_keys[crook].sign(statement))
    corrupt._state = replace(corrupt._state, dealt=dealt[crook])
    complaints = {}
    for site in session.sites:
        shares = addressed_to(site, dealt)
        for signed in session.members[site].receive(shares).values():
            complaints[site] = signed
    uploads = session.mask_all(dealt, session.sites)
    confirmations = {
        site: session.members[site].confirm(session.sites, complaints if site == crook else {})
        for site in session.sites
    }
    opened = {crook: corrupt.opened}
    assert list(opened[crook]) == few
    for site in few:
        verify_opened(session.cohort.uctx, crook, site, dealt[crook][site], opened[crook][site])
    answers = {
        site: session.members[site].reveal(session.sites, confirmations) for site in session.sites if site not in crooks
    }
    with pytest.raises(BelowThreshold, match="shares about"):
        session.aggregate(dealt, uploads, answers)
    total: Words = np.add.reduce(list(uploads.values()))
    added = with_opened(answers, opened, session.sites)
    unmask(total, recover_masks(session.ctx, session.cohort, dealt, session.sites, added))
    assert np.array_equal(total, session.plain_sum(session.sites))


def test_a_dealer_opens_only_what_a_member_complained_about_and_the_same_again() -> None:
    session = Session(4)
    dealt = session.share_all()
    session.mask_all(dealt, session.sites)
    member, uctx, accuser = session.members["site-0000"], session.cohort.uctx, "site-0003"
    statement = complaint_statement(uctx, accuser, "site-0000", dealt["site-0000"][accuser])
    signed = session.signing_keys[accuser].sign(statement)
    before = member.to_bytes()
    for wrong, refusal in (
        ({accuser: bytes(64)}, ComplaintRefused),
        ({"site-0002": signed}, ComplaintRefused),
        ({"nobody": signed}, ConfirmationRefused),
        ({"site-0000": signed}, ConfirmationRefused),
        ({accuser: signed, "site-0002": signed}, ConfirmationRefused),  # of four, one may be corrupt
    ):
        with pytest.raises(refusal):
            member.confirm(session.sites, wrong)
        assert member.to_bytes() == before
    member.confirm(session.sites, {accuser: signed})
    opened = member.opened[accuser]
    verify_opened(uctx, "site-0000", accuser, dealt["site-0000"][accuser], opened)
    with pytest.raises(ShareRefused, match="not those that it dealt"):
        verify_opened(uctx, "site-0000", "site-0002", dealt["site-0000"]["site-0002"], opened)
    again = type(member).from_bytes(member.to_bytes(), session.signing_keys["site-0000"])
    again.confirm(session.sites, {accuser: signed})
    assert again.opened == {accuser: opened}
    with pytest.raises(ConfirmationRefused, match="other complaints"):
        again.confirm(session.sites)
    assert "hidden" in repr(opened)


@pytest.mark.parametrize("uploads_too", [True, False])
def test_a_dealer_whose_shares_give_no_secret_is_found_when_they_are_revealed(uploads_too: bool) -> None:
    """A corrupt dealer shares other secrets than it committed to, correctly encrypted and signed for everybody."""
    session = Session(7)
    crook = "site-0006"
    dealt = session.share_all() | {crook: crooked_shares(session, crook, "no polynomial")}
    uploaded = session.sites[: 7 if uploads_too else 6]
    uploads = session.mask_all(dealt, uploaded)
    assert session.complaints == {}
    confirmations = session.confirm_all(uploaded, uploaded)
    answers = {site: session.members[site].reveal(uploaded, confirmations) for site in session.sites[:6]}
    with pytest.raises(Unrecoverable) as refused:
        session.aggregate(dealt, uploads, answers)
    assert refused.value.about == crook


def test_shares_that_the_aggregator_altered_are_not_held_against_their_dealer() -> None:
    session = Session(4)
    dealt = session.share_all()
    for altered in (
        replace(dealt["site-0001"]["site-0000"], ciphertext=bytes(82)),
        replace(dealt["site-0001"]["site-0000"], kem_ciphertext=bytes(1088)),
        replace(dealt["site-0001"]["site-0000"], seed_digest=bytes(32)),
        replace(dealt["site-0001"]["site-0000"], pair_secret=b"x"),
        dealt["site-0001"]["site-0002"],
    ):
        with pytest.raises(ShareRefused, match=r"not signed by|other lengths"):
            session.members["site-0000"].receive(
                addressed_to("site-0000", {**dealt, "site-0001": {"site-0000": altered}})
            )
        with pytest.raises(ShareRefused):
            verify_dealt(session.cohort.uctx, "site-0001", "site-0000", altered, session.roster["site-0001"])


def test_unmasking_gives_the_same_sum_with_any_number_of_threads() -> None:
    session, dealt, uploads, answers = answered(8, 1, length=100_003)
    recovered = recover_masks(session.ctx, session.cohort, dealt, list(uploads), answers)
    for threads in (1, 2, 5):
        total: Words = np.add.reduce(list(uploads.values()))
        unmask(total, recovered, threads)
        assert np.array_equal(total, session.plain_sum(list(uploads)))


def _evidence(session: Session, crook: str) -> BadDealing:
    """What six of seven members hold of a dealer that shared another seed than it committed to."""
    dealt = session.share_all() | {crook: crooked_shares(session, crook, "no polynomial")}
    session.mask_all(dealt, session.sites)
    confirmations = session.confirm_all(session.sites, session.sites)
    members = session.sites[:6]
    shares = {site: session.members[site].reveal(session.sites, confirmations)[crook].share for site in members}
    return BadDealing(crook, ShareKind.SEED, {site: dealt[crook][site] for site in members}, shares)


def test_shares_of_no_secret_prove_to_every_member_that_their_dealer_lied() -> None:
    session = Session(7)
    evidence = _evidence(session, "site-0006")
    for site in session.sites[:6]:
        session.members[site].verify_bad_dealing(evidence)


@pytest.mark.parametrize("spoiled", ["signature", "share", "too few", "other kind", "stranger", "no member"])
def test_evidence_that_was_touched_proves_nothing(spoiled: str) -> None:
    session = Session(7)
    good = _evidence(session, "site-0006")
    first = session.sites[0]
    other = {
        "signature": replace(good, dealt={**good.dealt, first: replace(good.dealt[first], signature=bytes(64))}),
        "share": replace(good, shares={**good.shares, first: bytes(33)}),
        "too few": replace(
            good,
            dealt={site: good.dealt[site] for site in session.sites[:4]},
            shares={site: good.shares[site] for site in session.sites[:4]},
        ),
        "other kind": replace(good, kind=ShareKind.MASK_KEY),
        "stranger": replace(good, dealer="nobody"),
        "no member": replace(
            good,
            dealt={**good.dealt, "nobody": good.dealt[first]},
            shares={**good.shares, "nobody": good.shares[first]},
        ),
    }[spoiled]
    with pytest.raises(EvidenceRefused):
        session.members[first].verify_bad_dealing(other)


def test_nobody_has_evidence_against_an_honest_dealer() -> None:
    session = Session(7)
    dealt = session.share_all()
    session.mask_all(dealt, session.sites)
    confirmations = session.confirm_all(session.sites, session.sites)
    members, honest = session.sites[:6], "site-0006"
    shares = {site: session.members[site].reveal(session.sites, confirmations)[honest].share for site in members}
    evidence = BadDealing(honest, ShareKind.SEED, {site: dealt[honest][site] for site in members}, shares)
    with pytest.raises(EvidenceRefused, match="give the secret"):
        session.members[members[0]].verify_bad_dealing(evidence)
