"""Whole attempts: the sum is exact, or nothing is opened, for every moment at which each member may fall silent."""

import itertools

import numpy as np
import pytest
from federation.secagg import BelowThreshold, Phase, threshold

from tests.contract.secagg_session import Session, Silent, a_context


def expected_uploads(size: int, silent: dict[str, Silent], sites: list[str]) -> list[str] | None:
    """U3 of a pattern, None when fewer than t are left in some phase."""
    left = [sum(silent[site] > phase for site in sites) for phase in list(Silent)[:-1]]
    if min(left) < threshold(size):
        return None
    return [site for site in sites if silent[site] > Silent.UPLOAD]


def check_pattern(size: int, pattern: tuple[Silent, ...], seed: int) -> None:
    session = Session(size, seed=seed)
    silent = dict(zip(session.sites, pattern, strict=True))
    uploaded = expected_uploads(size, silent, session.sites)
    if uploaded is None:
        with pytest.raises(BelowThreshold):
            session.play(silent)
        return
    played = session.play(silent)
    assert np.array_equal(played.total, session.plain_sum(uploaded))


def test_sum_is_exact_or_refused_for_every_drop_pattern_of_three_members() -> None:
    for seed, pattern in enumerate(itertools.product(Silent, repeat=3)):
        check_pattern(3, pattern, seed)


def test_the_sum_is_exact_or_refused_for_every_way_to_lose_two_of_four_members() -> None:
    patterns = [p for p in itertools.product(Silent, repeat=4) if sum(moment is not Silent.NEVER for moment in p) <= 2]
    for seed, pattern in enumerate(patterns):
        check_pattern(4, pattern, seed)


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 5])
def test_sum_is_exact_or_refused_for_every_drop_pattern_of(size: int) -> None:
    for seed, pattern in enumerate(itertools.product(Silent, repeat=size)):
        check_pattern(size, pattern, seed)


def test_sum_is_exact_in_a_larger_cohort_with_drops_in_every_phase() -> None:
    session = Session(24, length=40_000, seed=7)
    silent = dict(zip(session.sites, [Silent.SHARES, Silent.UPLOAD, Silent.CONFIRM, Silent.REVEAL], strict=False))
    played = session.play(silent)
    assert np.array_equal(played.total, session.plain_sum(session.sites[2:]))


def test_words_wrap_modulo_two_to_the_sixty_four() -> None:
    session = Session(3, length=3)
    session.words = {site: np.full(3, (1 << 64) - 1, dtype=np.uint64) for site in session.sites}
    assert session.play().total.tolist() == [(1 << 64) - 3] * 3


def test_a_vector_of_one_word_and_an_empty_one_are_summed() -> None:
    assert Session(3, length=1).play().total.size == 1
    assert Session(3, length=0).play().total.size == 0


def test_members_end_in_the_last_phase() -> None:
    session = Session(4)
    session.play()
    assert {member.phase for member in session.members.values()} == {Phase.REVEALED}


@pytest.mark.parametrize(("members", "t"), [(3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (64, 43), (100, 67), (500, 334)])
def test_threshold_is_more_than_two_thirds(members: int, t: int) -> None:
    assert threshold(members) == t
    assert 3 * t > 2 * members >= 3 * (t - 1)


@pytest.mark.parametrize(
    "change",
    [
        {"plan_digest": b"\x07" * 32},
        {"base_digest": b"\x07" * 32},
        {"run_id": b"other"},
        {"round_number": 2},
        {"attempt": 2},
        {"roster_epoch": 2},
        {"shard": 1},
    ],
)
def test_every_input_changes_the_context(change: dict[str, object]) -> None:
    assert a_context(**change) != a_context()
