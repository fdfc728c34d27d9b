"""A second attempt at a round: when a member whose upload left in the first one may take part, and when it may not."""

import math

import pytest
from federation.secagg import CohortRefused, out_of_reach, threshold

from tests.contract.secagg_session import Session, a_context

COHORTS = range(3, 101)


def names(count: int) -> list[str]:
    return [f"site-{number:04d}" for number in range(count)]


@pytest.mark.parametrize("n", COHORTS)
def test_an_attempt_is_out_of_reach_exactly_when_too_few_are_left_to_open_it(n: int) -> None:
    """By counting: of those who signed again, the corrupt may reveal all the same, the honest will not."""
    corrupt = math.ceil(n / 3) - 1
    for again in range(n + 1):
        left_to_reveal = n - again + min(again, corrupt)
        assert out_of_reach(names(n), names(again)) == (again >= corrupt and left_to_reveal < threshold(n)), again


def test_strangers_prove_nothing() -> None:
    assert not out_of_reach(names(4), [f"other-{number}" for number in range(100)])


def test_three_who_need_all_three_need_no_proof_but_their_own_word() -> None:
    assert out_of_reach(names(3), names(1))


def test_a_member_deals_no_shares_to_a_cohort_that_leaves_its_upload_openable() -> None:
    """Seven members, five open; two of them were told that it failed. With a third, corrupt one they are a cohort."""
    first, second = Session(7), Session(3, ctx=a_context(attempt=2))
    member = second.members["site-0000"]
    with pytest.raises(CohortRefused, match="could still be recovered"):
        member.share(second.advertisements, second.roster, uploaded_to=first.sites)
    assert member.phase.value == "advertised"


def test_a_member_joins_again_when_enough_of_the_earlier_cohort_signed_again() -> None:
    first, second = Session(7), Session(5, ctx=a_context(attempt=2))
    for member in second.members.values():
        assert len(member.share(second.advertisements, second.roster, uploaded_to=first.sites)) == 4


def test_the_same_step_again_after_the_upload_left_is_no_later_attempt() -> None:
    session = Session(4)
    member = session.members["site-0001"]
    dealt = member.share(session.advertisements, session.roster)
    assert member.share(session.advertisements, session.roster, uploaded_to=member.cohort) == dealt
