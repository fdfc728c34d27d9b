"""federation.roster: sorted, unique, signed, and never an older one."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.errors import BadSignature, Malformed, RosterRefused
from federation.fingerprint import custodian_words, six_words
from federation.roster import (
    Roster,
    RosterEntry,
    custodian_after,
    custodian_of,
    sign_roster,
    succeed,
    verify_roster,
)
from hypothesis import given
from hypothesis import strategies as st


def _entry(site: str, number: int) -> RosterEntry:
    return RosterEntry(site, bytes([number]) * 32, bytes([number]) * 1216)


ROSTER = Roster(4, (_entry("east", 1), _entry("north", 2), _entry("west", 3)))


def test_a_roster_comes_back_as_it_was(custodian: Ed25519PrivateKey) -> None:
    opened = verify_roster(sign_roster(ROSTER, custodian), custodian.public_key(), epoch_held=4)
    assert opened == ROSTER
    assert opened.signing_keys == {"east": bytes([1]) * 32, "north": bytes([2]) * 32, "west": bytes([3]) * 32}


def test_a_roster_without_sites_is_one() -> None:
    assert Roster.from_bytes(Roster(1, ()).to_bytes()) == Roster(1, ())


@pytest.mark.parametrize(
    ("epoch", "entries"),
    [
        pytest.param(0, (), id="epoch 0"),
        pytest.param(2**63, (), id="epoch beyond a database's integer"),
        pytest.param(1, (_entry("b", 1), _entry("a", 2)), id="not sorted"),
        pytest.param(1, (_entry("a", 1), _entry("a", 2)), id="a site twice"),
        pytest.param(1, (_entry("a", 1), replace(_entry("b", 2), signing_key=bytes([1]) * 32)), id="one signing key"),
        pytest.param(1, (_entry("a", 1), replace(_entry("b", 2), sealing_key=bytes([1]) * 1216)), id="one sealing key"),
    ],
)
def test_a_roster_that_contradicts_itself_is_refused(epoch: int, entries: tuple[RosterEntry, ...]) -> None:
    with pytest.raises(RosterRefused):
        Roster(epoch, entries)


@pytest.mark.parametrize("field", ["signing_key", "sealing_key"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_key_of_another_length_is_refused(field: str, change: int) -> None:
    entry = _entry("a", 1)
    changes: dict[str, Any] = {field: bytes(len(getattr(entry, field)) + change)}
    with pytest.raises(RosterRefused):
        replace(entry, **changes)


@pytest.mark.parametrize("site", ["", "A", "a_b", "-a", "a-", "a" * 33, "a b", "ä", "a\n"])
def test_a_site_name_out_of_form_is_refused(site: str) -> None:
    with pytest.raises(RosterRefused):
        _entry(site, 1)


def test_an_older_roster_is_refused_even_with_a_good_signature(custodian: Ed25519PrivateKey) -> None:
    with pytest.raises(RosterRefused, match="epoch 5"):
        verify_roster(sign_roster(ROSTER, custodian), custodian.public_key(), epoch_held=5)


def test_a_roster_signed_by_another_key_is_refused(custodian: Ed25519PrivateKey) -> None:
    with pytest.raises(BadSignature):
        verify_roster(sign_roster(ROSTER, Ed25519PrivateKey.generate()), custodian.public_key())


@given(position=st.integers(0, len(ROSTER.to_bytes()) - 1), bit=st.integers(0, 7))
def test_a_changed_roster_is_refused_or_is_openly_another_one(position: int, bit: int) -> None:
    changed = bytearray(ROSTER.to_bytes())
    changed[position] ^= 1 << bit
    try:
        roster = Roster.from_bytes(bytes(changed))
    except (Malformed, RosterRefused):
        return
    assert roster != ROSTER


@given(length=st.integers(0, len(ROSTER.to_bytes()) - 1))
def test_a_truncated_roster_is_refused_or_is_openly_another_one(length: int) -> None:
    try:
        roster = Roster.from_bytes(ROSTER.to_bytes()[:length])
    except (Malformed, RosterRefused):
        return
    assert roster != ROSTER


def test_a_roster_says_until_when_it_holds_and_one_of_the_first_version_never_ends(
    custodian: Ed25519PrivateKey,
) -> None:
    dated = replace(ROSTER, created_at_s=1_000, expires_at_s=2_000)
    verified = verify_roster(sign_roster(dated, custodian), custodian.public_key())
    assert (verified.created_at_s, verified.expires_at_s) == (1_000, 2_000)
    assert [verified.has_expired(datetime.fromtimestamp(at, UTC)) for at in (1_999, 2_000)] == [False, True]
    assert not ROSTER.has_expired(datetime(2100, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (1, 0), (2, 2), (3, 2), (1, 2**63)])
def test_a_roster_that_ends_before_it_begins_is_refused(begin: int, end: int) -> None:
    with pytest.raises(RosterRefused, match="begins before it ends"):
        replace(ROSTER, created_at_s=begin, expires_at_s=end)


def test_a_site_follows_the_custodian_s_keys_from_whichever_it_holds() -> None:
    keys = [Ed25519PrivateKey.generate() for _ in range(3)]
    chain = [succeed(old, new.public_key()) for old, new in itertools.pairwise(keys)]
    signed = sign_roster(ROSTER, keys[2], chain)
    for held in keys:
        custodian = custodian_after(signed.successions, held.public_key())
        assert verify_roster(signed, custodian) == ROSTER


def test_a_stranger_s_key_does_not_succeed_the_custodian_s() -> None:
    custodian, next_one, stranger = (Ed25519PrivateKey.generate() for _ in range(3))
    forged = [succeed(stranger, next_one.public_key())]
    assert (
        custodian_after(forged, custodian.public_key()).public_bytes_raw() == custodian.public_key().public_bytes_raw()
    )
    with pytest.raises(BadSignature):
        verify_roster(sign_roster(ROSTER, next_one, forged), custodian_after(forged, custodian.public_key()))
    broken = [succeed(custodian, next_one.public_key()), succeed(stranger, stranger.public_key())]
    with pytest.raises(BadSignature):
        custodian_after(broken, custodian.public_key())


def test_a_reader_never_goes_back_to_an_older_key_and_can_verify_again_from_the_first_one() -> None:
    first, second, thief = (Ed25519PrivateKey.generate() for _ in range(3))
    anchor, newest = first.public_key(), second.public_key()
    chain, stolen = [succeed(first, newest)], [succeed(first, thief.public_key())]
    followed = sign_roster(ROSTER, second, chain)
    assert custodian_of(followed, anchor, held=anchor) == custodian_of(followed, anchor, held=newest) == newest
    refused = {
        "the old key": sign_roster(ROSTER, first),
        "a chain to another key": sign_roster(ROSTER, thief, stolen),
        "no chain to the newest key": sign_roster(ROSTER, second),
    }
    for signed in refused.values():
        with pytest.raises(RosterRefused, match="newest key"):
            custodian_of(signed, anchor, held=newest)
    # A site that has not followed yet cannot tell the thief's chain from the custodian's: docs/SECURITY.md says so.
    assert custodian_of(refused["a chain to another key"], anchor, held=anchor) == thief.public_key()


def test_a_fingerprint_is_over_both_keys() -> None:
    entry = _entry("east", 1)
    others = (replace(entry, signing_key=bytes(32)), replace(entry, sealing_key=bytes(1216)))
    assert len({entry.fingerprint, *(other.fingerprint for other in others)}) == 3
    assert replace(entry, site="west").fingerprint == entry.fingerprint


def test_the_custodian_s_six_words_follow_from_its_key() -> None:
    assert custodian_words(bytes(32)) == custodian_words(bytes(32))
    assert len(custodian_words(bytes(32)).split()) == 6
    assert custodian_words(bytes(32)) not in (custodian_words(bytes([1]) * 32), six_words(bytes(32), b"", b""))
