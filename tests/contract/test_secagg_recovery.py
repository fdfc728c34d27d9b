"""The aggregator's end: answers of the wrong shape are refused, altered shares are found and their revealer named."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from federation.secagg import (
    BelowThreshold,
    RevealedShare,
    ShareKind,
    ShareRefused,
    Unrecoverable,
    Words,
    recover_masks,
    unmask,
    verify_answer,
)
from federation.secagg.keys import seal_shares
from federation.secagg.member import _deal
from federation.secagg.shamir import ELEMENT_BYTES, PRIME, encode, weights_at

from tests.contract.secagg_session import Session

Answers = dict[str, dict[str, RevealedShare]]


def answered(size: int, vanished: int, length: int = 3) -> tuple[Session, dict[str, np.ndarray], Answers]:
    """A session whose last `vanished` members dealt shares and never uploaded; uploads and answers of the others."""
    session = Session(size, length=length)
    uploaded = session.sites[: size - vanished]
    uploads = session.mask_all(session.share_all(), uploaded)
    confirmations = session.confirm_all(uploaded, uploaded)
    return session, uploads, {site: session.members[site].reveal(uploaded, confirmations) for site in uploaded}


def alter(answers: Answers, revealer: str, about: str) -> None:
    revealed = answers[revealer][about]
    error = int.from_bytes(sha256(f"{revealer} about {about}".encode()).digest(), "big")
    share = (int.from_bytes(revealed.share, "big") + error) % PRIME
    answers[revealer][about] = replace(revealed, share=share.to_bytes(ELEMENT_BYTES, "big"))


def check_opens(
    session: Session, uploads: dict[str, np.ndarray], answers: Answers, altered: dict[str, set[str]]
) -> None:
    played = session.open(session.sites, uploads, answers)
    assert np.array_equal(played.total, session.plain_sum(list(uploads)))
    assert {about: set(liars) for about, liars in played.recovered.altered.items()} == altered


@pytest.mark.parametrize("about", ["site-0002", "site-0009"])
@pytest.mark.parametrize("liar", ["site-0000", "site-0003", "site-0006"])
def test_one_altered_share_of_a_seed_or_a_mask_key_is_survived_and_its_revealer_named(about: str, liar: str) -> None:
    session, uploads, answers = answered(10, 1)
    alter(answers, liar, about)
    check_opens(session, uploads, answers, {about: {liar}})


def test_an_altered_share_that_was_not_needed_does_no_harm() -> None:
    session, uploads, answers = answered(10, 1)
    alter(answers, "site-0008", "site-0002")
    check_opens(session, uploads, answers, {})


@pytest.mark.parametrize("liars", [("site-0000", "site-0004"), ("site-0001", "site-0002"), ("site-0005", "site-0008")])
def test_as_many_liars_as_there_are_spare_shares_are_survived(liars: tuple[str, str]) -> None:
    """Two of nine with t = 7: they could be two honest members framed by two others, so nobody is named."""
    session, uploads, answers = answered(10, 1)
    for liar in liars:
        alter(answers, liar, "site-0009")
    check_opens(session, uploads, answers, {"site-0009": set()})


def test_liars_whose_errors_cancel_cannot_have_an_honest_member_named() -> None:
    """t = 7 of m = 9. Places 2 and 3 cancel in the choice of places 2..8, place 1 spoils the choice before it."""
    session, uploads, answers = answered(10, 1)
    weights = dict(zip(range(2, 9), weights_at(0, tuple(range(2, 9))), strict=True))
    errors = {"site-0000": 5, "site-0001": weights[3], "site-0002": PRIME - weights[2]}
    for liar, error in errors.items():
        revealed = answers[liar]["site-0009"]
        share = (int.from_bytes(revealed.share, "big") + error) % PRIME
        answers[liar]["site-0009"] = replace(revealed, share=encode(share))
    check_opens(session, uploads, answers, {"site-0009": set()})


def test_a_revealer_who_alters_everything_is_named_once_and_then_passed_over() -> None:
    session, uploads, answers = answered(10, 1)
    for about in session.sites:
        alter(answers, "site-0000", about)
    check_opens(session, uploads, answers, {"site-0000": {"site-0000"}})


def test_several_liars_in_a_larger_cohort_are_found() -> None:
    session, uploads, answers = answered(40, 2)
    liars = {"site-0001", "site-0013", "site-0022"}
    for liar in liars:
        alter(answers, liar, "site-0039")
    check_opens(session, uploads, answers, {"site-0039": liars})


def test_more_liars_than_spare_shares_open_nothing_and_everybody_involved_is_named() -> None:
    session, uploads, answers = answered(7, 1)
    for liar in ("site-0000", "site-0003"):
        alter(answers, liar, "site-0002")
    with pytest.raises(Unrecoverable) as refused:
        session.open(session.sites, uploads, answers)
    assert refused.value.about == "site-0002"
    assert set(refused.value.suspects) == set(session.sites[:6])


@pytest.mark.parametrize("own_kind", [ShareKind.SEED, ShareKind.MASK_KEY])
def test_a_dealer_whose_shares_do_not_fit_its_commitment_is_noticed(own_kind: ShareKind) -> None:
    """A corrupt dealer shares another secret than it committed to, correctly encrypted for everybody."""
    session = Session(7)
    crooked = session.members["site-0006"]
    dealt = session.share_all()
    secrets = crooked._secrets(crooked.phase)
    pairs = _deal(secrets, session.cohort)
    wrong = {site: (key_share, seed_share) for site, (seed_share, key_share) in pairs.items()}
    dealt["site-0006"] = {
        peer: seal_shares(
            secrets.share, session.advertisements[peer].share_key, session.cohort.uctx, "site-0006", peer, wrong[peer]
        )
        for peer in session.sites[:6]
    }
    uploaded = session.sites[: 7 if own_kind is ShareKind.SEED else 6]
    uploads = session.mask_all(dealt, uploaded)
    confirmations = session.confirm_all(uploaded, uploaded)
    answers = {site: session.members[site].reveal(uploaded, confirmations) for site in session.sites[:6]}
    with pytest.raises(Unrecoverable) as refused:
        session.open(session.sites, uploads, answers)
    assert refused.value.about == "site-0006"


def test_fewer_answers_or_uploads_than_the_threshold_open_nothing() -> None:
    session, uploads, answers = answered(7, 1)
    for site in session.sites[:2]:
        del answers[site]
    with pytest.raises(BelowThreshold, match="answers: 4, the threshold is 5"):
        session.open(session.sites, uploads, answers)
    with pytest.raises(BelowThreshold, match="uploads"):
        recover_masks(session.ctx, session.cohort, session.sites, session.sites[:4], {})


def test_answers_of_the_wrong_shape_are_refused_and_their_sender_named() -> None:
    session, uploads, answers = answered(7, 1)
    uploaded, answer = list(uploads), answers["site-0001"]
    verify_answer(session.cohort, session.sites, uploaded, "site-0001", answer)
    seed, key = answer["site-0000"], answer["site-0006"]
    wrong = [
        {about: share for about, share in answer.items() if about != "site-0000"},
        {**answer, "nobody": seed},
        {**answer, "site-0000": replace(seed, kind=ShareKind.MASK_KEY)},
        {**answer, "site-0006": replace(key, kind=ShareKind.SEED)},
        {**answer, "site-0000": replace(seed, share=seed.share[1:])},
        {**answer, "site-0000": replace(seed, share=b"\xff" * ELEMENT_BYTES)},
    ]
    for one in wrong:
        with pytest.raises(ShareRefused) as refused:
            verify_answer(session.cohort, session.sites, uploaded, "site-0001", one)
        assert refused.value.site == "site-0001"
    with pytest.raises(ShareRefused, match="in the sum"):
        verify_answer(session.cohort, session.sites, uploaded, "site-0006", answer)


def test_unmasking_gives_the_same_sum_with_any_number_of_threads() -> None:
    session, uploads, answers = answered(8, 1, length=100_003)
    recovered = recover_masks(session.ctx, session.cohort, session.sites, list(uploads), answers)
    for threads in (1, 2, 5):
        total: Words = np.add.reduce(list(uploads.values()))
        unmask(total, recovered, threads)
        assert np.array_equal(total, session.plain_sum(list(uploads)))
