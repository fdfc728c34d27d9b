"""Cohorts above 500: who is in which shard, why shards are as large as they are, and a thousand members."""

from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from federation.secagg import Advertisement, MalformedValue, Words, split, threshold
from federation.secagg.cohort import SHARD_SIZE, SHARD_SIZE_MIN, SPLIT_ABOVE

from tests.contract.secagg_session import Session, a_context


def advertised(size: int, seed: int = 0) -> dict[str, Advertisement]:
    """Advertisements as `split` sees them: it is told by its docstring that signatures were checked before."""
    draw = np.random.default_rng(seed).bytes
    sites = [f"site-{number:04d}" for number in range(size)]
    return {site: Advertisement(site, draw(32), draw(1184), draw(32), draw(32), draw(64)) for site in sites}


def test_up_to_five_hundred_members_are_one_complete_graph() -> None:
    (cohort,) = split(a_context(), advertised(SPLIT_ABOVE))
    assert len(cohort.members) == SPLIT_ABOVE


@pytest.mark.parametrize("size", [501, 700, 1000, 1003])
def test_larger_cohorts_are_parted_into_shards_of_nearly_equal_size(size: int) -> None:
    shards = split(a_context(), advertised(size))
    sizes = [len(shard.members) for shard in shards]
    assert sorted(site for shard in shards for site in shard.members) == sorted(advertised(size))
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= SHARD_SIZE
    assert max(sizes) < 2 * SHARD_SIZE
    assert len({shard.uctx for shard in shards}) == len(shards)


def test_membership_does_not_depend_on_the_order_in_which_advertisements_arrive() -> None:
    shown = advertised(1000)
    backwards = dict(reversed(shown.items()))
    assert [s.members for s in split(a_context(), shown)] == [s.members for s in split(a_context(), backwards)]


@pytest.mark.parametrize("what", ["another round", "one key", "one member fewer"])
def test_membership_changes_with_the_round_every_key_and_every_member(what: str) -> None:
    shown, ctx = advertised(1000), a_context()
    before = {site: number for number, shard in enumerate(split(ctx, shown)) for site in shard.members}
    if what == "another round":
        ctx = a_context(round_number=2)
    elif what == "one key":
        shown["site-0500"] = advertised(1000, seed=1)["site-0500"]
    else:
        del shown["site-0500"]
    after = {site: number for number, shard in enumerate(split(ctx, shown)) for site in shard.members}
    moved = sum(after[site] != before[site] for site in after)
    assert 0.65 * len(after) < moved < 0.85 * len(after)


def test_every_member_finds_itself_in_the_shard_that_the_aggregator_computes() -> None:
    """Shards of 112 are the least allowed; a shard below is refused."""
    with pytest.raises(MalformedValue, match="not safe"):
        split(a_context(), advertised(1000), shard_size=SHARD_SIZE_MIN - 1)
    sizes = [len(shard.members) for shard in split(a_context(), advertised(1000), shard_size=SHARD_SIZE_MIN)]
    assert min(sizes) >= SHARD_SIZE_MIN


def chance_of_a_lost_shard(sites: int, corrupt: int, size: int) -> Fraction:
    """Hypergeometric: that one shard gets so many corrupt members that two sets can both collect t signatures."""
    enough = 2 * threshold(size) - size
    ways = sum(comb(corrupt, k) * comb(sites - corrupt, size - k) for k in range(enough, min(corrupt, size) + 1))
    return Fraction(ways, comb(sites, size))


def test_shard_sizes_keep_the_promise_with_a_tenth_of_a_thousand_sites_corrupt() -> None:
    assert chance_of_a_lost_shard(1000, 100, SHARD_SIZE_MIN) < Fraction(1, 2**44)
    assert chance_of_a_lost_shard(1000, 100, SHARD_SIZE) < Fraction(1, 2**130)
    assert chance_of_a_lost_shard(1000, 100, 60) > Fraction(1, 2**40)


def play_shard(index: int) -> tuple[list[str], Words]:
    """(U3, unmasked sum) of one shard of a thousand, every member making all of its own checks.

    The members are the same in every call: each shard can be played in a process of its own.
    """
    session = Session(1000, length=40)
    shard = split(session.ctx, session.advertisements)[index]
    members = shard.members
    leaving = len(members) * 3 // 10
    dealers, uploaded = members[leaving // 3 :], members[2 * (leaving // 3) :]
    confirming, revealing = members[leaving - 10 :], members[leaving:]
    dealt = session.share_all(dealers)
    uploads = session.mask_all(dealt, uploaded)
    confirmations = session.confirm_all(confirming, uploaded)
    # t signatures convince a member; more of them only cost time.
    shown = {site: confirmations[site] for site in confirming[: shard.threshold]}
    answers = {site: session.members[site].reveal(uploaded, shown) for site in revealing}
    return uploaded, session.aggregate(dealt, uploads, answers, shard)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_sites_of_whom_thirty_percent_vanish_open_exactly_the_sum_of_the_others() -> None:
    """All five phases, sharded as in production; those who vanish do so in all phases. Takes minutes."""
    with ProcessPoolExecutor() as pool:
        played = list(pool.map(play_shard, range(1000 // SHARD_SIZE)))
    summed = [site for uploaded, _ in played for site in uploaded]
    total = np.sum([words for _, words in played], axis=0, dtype=np.uint64)
    assert np.array_equal(total, Session(1000, length=40).plain_sum(summed))
    assert 800 <= len(summed) < 1000
