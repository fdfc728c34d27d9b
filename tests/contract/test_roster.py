"""federation.roster: sorted, unique, signed, and never an older one."""

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.errors import BadSignature, Malformed, RosterRefused
from federation.roster import Roster, RosterEntry, sign_roster, verify_roster
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
