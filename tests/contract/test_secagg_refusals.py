"""What an aggregator that lies may try, and the refusal that answers each."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from federation.secagg import (
    Advertisement,
    AdvertisementRefused,
    BelowThreshold,
    CohortRefused,
    ConfirmationRefused,
    MalformedValue,
    Member,
    OutOfOrder,
    Phase,
    ShareKind,
    ShareRefused,
    UploadRefused,
    check_distinct,
    split,
    verify_advertisement,
    verify_claim,
    verify_confirmation,
)
from federation.secagg.keys import _SMALL_ORDER, MaskKeys
from federation.secagg.secret import MaskSecret
from federation.secagg.transcript import keys_statement

from tests.contract.secagg_session import BLOB_DIGEST, Session, a_context, addressed_to

CURVE_PRIME = (1 << 255) - 19


def signed(session: Session, site: str, **changes: Any) -> Advertisement:
    """A member's advertisement with something changed, signed by that member itself: a corrupt member's work."""
    altered = replace(session.members[site].advertisement, **changes)
    return replace(altered, signature=session.signing_keys[site].sign(keys_statement(session.ctx, altered)))


def masked(size: int = 5, dealers: int | None = None) -> tuple[Session, list[str]]:
    """A session in which the first `dealers` members masked and claimed; and those."""
    session = Session(size)
    sites = session.sites[: dealers or size]
    session.mask_all(session.share_all(sites), sites)
    return session, sites


# keys and shares phase


def test_a_member_the_roster_does_not_know_is_refused() -> None:
    session, stranger = Session(4), "site-9999"
    key = Ed25519PrivateKey.generate()
    forged = Member.begin(session.ctx, stranger, key).advertisement
    with pytest.raises(AdvertisementRefused, match="not in the roster"):
        session.members["site-0000"].share({**session.advertisements, stranger: forged}, session.roster)


def test_keys_signed_by_the_aggregator_under_a_known_name_are_refused() -> None:
    session = Session(4)
    forged = Member.begin(session.ctx, "site-0001", Ed25519PrivateKey.generate()).advertisement
    with pytest.raises(AdvertisementRefused, match="signature") as refused:
        session.members["site-0000"].share({**session.advertisements, "site-0001": forged}, session.roster)
    assert refused.value.site == "site-0001"


@pytest.mark.parametrize("part", ["mask_key", "kem_key", "share_key", "seed_commitment"])
def test_a_key_or_commitment_swapped_under_a_true_signature_is_refused(part: str) -> None:
    session = Session(4)
    stranger = Member.begin(session.ctx, "site-0001", Ed25519PrivateKey.generate()).advertisement
    swapped = replace(session.members["site-0001"].advertisement, **{part: getattr(stranger, part)})
    with pytest.raises(AdvertisementRefused, match="signature"):
        session.members["site-0000"].share({**session.advertisements, "site-0001": swapped}, session.roster)


def test_two_members_advertisements_exchanged_are_refused() -> None:
    session = Session(4)
    shown = session.advertisements
    shown["site-0001"], shown["site-0002"] = shown["site-0002"], shown["site-0001"]
    with pytest.raises(AdvertisementRefused, match="another name"):
        session.members["site-0000"].share(shown, session.roster)


@pytest.mark.parametrize("part", ["mask_key", "kem_key", "share_key", "seed_commitment"])
def test_a_corrupt_member_that_echoes_anothers_key_is_refused(part: str) -> None:
    session = Session(4)
    echoed = signed(session, "site-0001", **{part: getattr(session.members["site-0002"].advertisement, part)})
    with pytest.raises(AdvertisementRefused, match="also stands in"):
        session.members["site-0000"].share({**session.advertisements, "site-0001": echoed}, session.roster)


def test_one_key_for_both_uses_is_refused() -> None:
    session = Session(4)
    a = signed(session, "site-0001", share_key=session.members["site-0001"].advertisement.mask_key)
    with pytest.raises(AdvertisementRefused, match="also stands in"):
        check_distinct([a])


@pytest.mark.parametrize("coordinate", sorted(_SMALL_ORDER))
def test_points_of_small_order_are_refused_and_rightly_so(coordinate: int) -> None:
    session, key = Session(3), coordinate.to_bytes(32, "little")
    with pytest.raises(AdvertisementRefused, match="large order"):
        verify_advertisement(session.ctx, session.roster, signed(session, "site-0001", mask_key=key))
    with pytest.raises(ValueError, match="shared key"):
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))


@pytest.mark.parametrize("key", [b"", b"\x09" * 31, (CURVE_PRIME + 9).to_bytes(32, "little"), b"\xff" * 32])
def test_a_key_that_is_not_in_canonical_form_is_refused(key: bytes) -> None:
    session = Session(3)
    with pytest.raises(AdvertisementRefused, match="canonical"):
        verify_advertisement(session.ctx, session.roster, signed(session, "site-0001", share_key=key))


@pytest.mark.parametrize("key", [b"", bytes(1183), b"\xff" * 1184])
def test_a_kem_key_that_is_not_in_canonical_form_is_refused(key: bytes) -> None:
    session = Session(3)
    with pytest.raises(AdvertisementRefused, match="canonical ML-KEM-768"):
        verify_advertisement(session.ctx, session.roster, signed(session, "site-0001", kem_key=key))


def test_a_cohort_without_this_member_or_with_its_keys_replaced_is_refused() -> None:
    session = Session(4)
    member = session.members["site-0000"]
    without = {site: a for site, a in session.advertisements.items() if site != member.site}
    replaced = {**without, member.site: signed(session, member.site, mask_key=b"\x09" + bytes(31))}
    for shown in (without, replaced):
        with pytest.raises(CohortRefused, match="own advertisement"):
            member.share(shown, session.roster)


def test_a_cohort_below_the_sites_own_minimum_is_refused() -> None:
    session = Session(4)
    with pytest.raises(CohortRefused, match="asks for 5"):
        session.members["site-0000"].share(session.advertisements, session.roster, minimum=5)


def test_a_cohort_of_two_is_refused_and_a_minimum_below_three_is_no_minimum() -> None:
    session = Session(2)
    with pytest.raises(CohortRefused, match="2 members"):
        session.members["site-0000"].share(session.advertisements, session.roster)
    with pytest.raises(MalformedValue, match="would not protect"):
        session.members["site-0000"].share(session.advertisements, session.roster, minimum=2)


@pytest.mark.parametrize(
    "change", [{"round_number": 2}, {"attempt": 2}, {"run_id": b"x"}, {"base_digest": b"\x07" * 32}]
)
def test_advertisements_replayed_from_another_round_or_base_model_are_refused(change: dict[str, object]) -> None:
    now, before = Session(4), Session(4, ctx=a_context(**change))
    shown = {**before.advertisements, "site-0000": now.members["site-0000"].advertisement}
    with pytest.raises(AdvertisementRefused, match="signature"):
        now.members["site-0000"].share(shown, now.roster)


def test_a_second_cohort_is_refused_once_shares_were_dealt_and_the_first_repeats_its_bytes() -> None:
    session = Session(5)
    member = session.members["site-0000"]
    smaller = {site: session.advertisements[site] for site in session.sites[:4]}
    dealt = member.share(session.advertisements, session.roster)
    with pytest.raises(CohortRefused, match="second"):
        member.share(smaller, session.roster)
    assert member.share(session.advertisements, session.roster) == dealt


# upload phase


def test_members_shown_different_cohorts_cannot_decrypt_each_others_shares() -> None:
    session = Session(5)
    smaller = {site: session.advertisements[site] for site in session.sites[:4]}
    session.members["site-0000"].share(session.advertisements, session.roster)
    dealt = {site: session.members[site].share(smaller, session.roster) for site in session.sites[1:4]}
    with pytest.raises(ShareRefused, match="not signed"):
        session.members["site-0000"].receive(addressed_to("site-0000", dealt))


def test_shares_meant_for_another_or_from_another_or_reflected_are_refused() -> None:
    session = Session(4)
    dealt = session.share_all()
    shares = addressed_to("site-0000", dealt)
    for foreign in (dealt["site-0001"]["site-0002"], shares["site-0002"], dealt["site-0000"]["site-0001"]):
        with pytest.raises(ShareRefused):
            session.members["site-0000"].receive({**shares, "site-0001": foreign})
    assert session.members["site-0000"].phase is Phase.SHARED


def test_too_few_dealers_end_the_attempt_before_anything_is_masked() -> None:
    session = Session(6)
    dealt = session.share_all(session.sites[:4])
    with pytest.raises(BelowThreshold) as refused:
        session.members["site-0000"].receive(addressed_to("site-0000", dealt))
    assert (refused.value.have, refused.value.need) == (4, 5)


def test_other_words_under_the_same_mask_are_refused_and_the_same_words_give_identical_bytes() -> None:
    session = Session(4)
    member, shares = session.members["site-0000"], addressed_to("site-0000", session.share_all())
    member.receive(shares)
    first = member.mask(session.words["site-0000"], shares)
    with pytest.raises(UploadRefused, match="other words"):
        member.mask(session.words["site-0000"] + np.uint64(1), shares)
    assert np.array_equal(member.mask(session.words["site-0000"], shares), first)


def test_words_are_masked_in_their_own_place_if_asked_and_left_alone_when_refused() -> None:
    session = Session(4)
    member, shares = session.members["site-0000"], addressed_to("site-0000", session.share_all())
    words = session.words["site-0000"].copy()
    member.receive(shares)
    masked = member.mask(session.words["site-0000"], shares)
    assert member.mask(words, shares, in_place=True) is words
    assert np.array_equal(words, masked)
    other = words.copy()
    with pytest.raises(UploadRefused, match="other words"):
        member.mask(other, shares, in_place=True)
    assert np.array_equal(other, words)


def test_the_same_words_under_masks_of_other_members_or_other_shares_are_refused() -> None:
    session = Session(7)
    member, shares = session.members["site-0000"], addressed_to("site-0000", session.share_all())
    member.receive(shares)
    member.mask(session.words["site-0000"], shares)
    altered = replace(shares["site-0006"], seed_digest=bytes(32))
    for others in ({s: d for s, d in shares.items() if s != "site-0006"}, {**shares, "site-0006": altered}):
        with pytest.raises(UploadRefused, match="received other shares"):
            member.mask(session.words["site-0000"], others)
        with pytest.raises(UploadRefused, match="received other shares"):
            member.receive(others)


def test_a_second_digest_is_never_claimed() -> None:
    session, _ = masked()
    with pytest.raises(UploadRefused, match="another upload"):
        session.members["site-0000"].claim(b"\x0e" * 32)


def test_a_claim_for_other_bytes_another_member_or_another_round_is_refused() -> None:
    session, _ = masked()
    claim, key = session.members["site-0000"].claim(BLOB_DIGEST), session.roster["site-0000"]
    uctx = session.cohort.uctx
    verify_claim(uctx, "site-0000", BLOB_DIGEST, claim, key)
    later = Session(5, ctx=a_context(attempt=2)).cohort.uctx
    for wrong in (
        (uctx, "site-0000", b"\x0e" * 32, claim, key),
        (uctx, "site-0001", BLOB_DIGEST, claim, session.roster["site-0001"]),
        (later, "site-0000", BLOB_DIGEST, claim, key),
        (uctx, "site-0000", BLOB_DIGEST, claim[:-1], key),
    ):
        with pytest.raises(UploadRefused, match="not signed"):
            verify_claim(*wrong)


@pytest.mark.parametrize(
    "words", [np.zeros(4, np.int64), np.zeros((2, 2), np.uint64), np.zeros(8, np.uint64)[::2], np.zeros(4, ">u8")]
)
def test_anything_but_a_contiguous_vector_of_words_is_refused(words: np.ndarray) -> None:
    session = Session(3)
    shares = addressed_to("site-0000", session.share_all())
    session.members["site-0000"].receive(shares)
    with pytest.raises(MalformedValue, match="contiguous uint64"):
        session.members["site-0000"].mask(words, shares)


# confirm and reveal phase


def test_a_second_set_of_uploads_is_never_confirmed() -> None:
    session, sites = masked(7)
    member = session.members["site-0000"]
    signature = member.confirm(sites)
    with pytest.raises(ConfirmationRefused, match="another set"):
        member.confirm(sites[:-1])
    assert member.confirm(sites[::-1]) == signature


def test_a_set_of_uploads_without_this_member_or_with_a_stranger_or_a_repeat_is_refused() -> None:
    session, sites = masked(7, dealers=6)
    member = session.members["site-0000"]
    for uploaded in (sites[1:], [*sites, "site-0006"], [*sites, "nobody"], [*sites[:5], sites[0]]):
        with pytest.raises(ConfirmationRefused):
            member.confirm(uploaded)
    assert member.phase is Phase.MASKED


def test_a_set_that_names_this_member_before_it_uploaded_is_refused() -> None:
    session = Session(4)
    dealt = session.share_all()
    session.members["site-0000"].receive(addressed_to("site-0000", dealt))
    session.members["site-0000"].mask(session.words["site-0000"], addressed_to("site-0000", dealt))
    with pytest.raises(ConfirmationRefused, match="before it uploaded"):
        session.members["site-0000"].confirm(session.sites)


def test_too_few_uploads_end_the_attempt() -> None:
    session, sites = masked(6)
    with pytest.raises(BelowThreshold):
        session.members["site-0000"].confirm(sites[:4])


def test_two_sets_of_uploads_shown_to_two_halves_open_nothing() -> None:
    session, sites = masked(7)
    one, other = sites[:6], sites[1:]
    confirmations = session.confirm_all(sites[:3], one) | session.confirm_all(sites[3:], other)
    for site, uploaded in ((sites[0], one), (sites[-1], other)):
        with pytest.raises(ConfirmationRefused):
            session.members[site].reveal(uploaded, {s: confirmations[s] for s in uploaded})
        honest = {s: confirmations[s] for s in (sites[:3] if uploaded is one else sites[3:])}
        with pytest.raises(BelowThreshold):
            session.members[site].reveal(uploaded, honest)
        assert session.members[site].phase is Phase.CONFIRMED


def test_fewer_confirmations_than_the_threshold_open_nothing_however_they_are_filled_up() -> None:
    session, sites = masked(7, dealers=6)
    confirmations = session.confirm_all(sites[:5], sites[:5])
    del confirmations[sites[4]]
    member = session.members[sites[0]]
    with pytest.raises(BelowThreshold):
        member.reveal(sites[:5], confirmations)
    copied = confirmations[sites[0]]
    for stranger in (sites[4], sites[5], "site-0006", "nobody"):
        with pytest.raises(ConfirmationRefused):
            member.reveal(sites[:5], {**confirmations, stranger: copied})


def test_both_kinds_of_share_about_one_member_are_never_given() -> None:
    session, sites = masked(7)
    confirmations = session.confirm_all(sites, sites)
    member = session.members["site-0000"]
    answer = member.reveal(sites, confirmations)
    assert {revealed.kind for revealed in answer.values()} == {ShareKind.SEED}
    with pytest.raises(ConfirmationRefused, match="not the one"):
        member.reveal(sites[:-1], confirmations)
    assert member.reveal(sites, confirmations) == answer


def test_the_answer_has_one_kind_a_member_seeds_of_the_uploaded_and_mask_keys_of_the_vanished() -> None:
    session = Session(7)
    dealt = session.share_all(session.sites[:6])
    uploaded = session.sites[:5]
    session.mask_all(dealt, uploaded)
    answer = session.members["site-0000"].reveal(uploaded, session.confirm_all(uploaded, uploaded))
    kinds = {about: revealed.kind for about, revealed in answer.items()}
    assert kinds == dict.fromkeys(uploaded, ShareKind.SEED) | {"site-0005": ShareKind.MASK_KEY}


def test_a_confirmation_of_another_set_or_round_is_refused_by_the_aggregator_too() -> None:
    session, sites = masked()
    signature, key = session.members["site-0000"].confirm(sites), session.roster["site-0000"]
    verify_confirmation(session.cohort.uctx, "site-0000", reversed(sites), signature, key)
    later = Session(5, ctx=a_context(round_number=2)).cohort.uctx
    for uctx, uploaded in ((session.cohort.uctx, sites[:-1]), (later, sites)):
        with pytest.raises(ConfirmationRefused):
            verify_confirmation(uctx, "site-0000", uploaded, signature, key)


# order


def test_steps_out_of_order_are_refused() -> None:
    session = Session(3)
    member, words = session.members["site-0000"], session.words["site-0000"]
    for early in (
        lambda: member.uctx,
        lambda: member.receive({}),
        lambda: member.mask(words, {}),
        lambda: member.claim(BLOB_DIGEST),
        lambda: member.confirm(session.sites),
        lambda: member.reveal(session.sites, {}),
    ):
        with pytest.raises(OutOfOrder):
            early()
    session.play()
    for late in (
        lambda: member.share(session.advertisements, session.roster),
        lambda: member.receive({}),
        lambda: member.mask(words, {}),
        lambda: member.claim(BLOB_DIGEST),
        lambda: member.confirm(session.sites),
    ):
        with pytest.raises(OutOfOrder):
            late()


def test_different_base_models_make_masks_that_do_not_cancel() -> None:
    """Even behind every signature: members with two base models agree other keys, so their sum is noise."""
    session = Session(4)
    first, second = (session.members[site].advertisement for site in session.sites[:2])
    mask_keys = MaskKeys(MaskSecret(b"\x11" * 32))
    here = session.cohort.uctx
    elsewhere = split(a_context(base_digest=b"\x07" * 32), session.advertisements)[0].uctx
    agreed = [mask_keys.pair_key(uctx, first.site, second.site, second.mask_key, None) for uctx in (here, elsewhere)]
    assert agreed[0] != agreed[1]
